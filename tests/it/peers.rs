//! Peers come, change and go, and the kernel of every other host follows exactly.

use crate::lab::{Lab, Lease, Tables, eventually_eq};

#[test]
fn a_deleted_lease_removes_that_peer_and_no_other() {
    let lab = Lab::new("leave");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.joined(3);
    hosts.iter().for_each(|host| host.follows(&etcd));

    let mut leaving = hosts.pop().unwrap();
    leaving.stop();
    etcd.del(&etcd.lease_of_host(&leaving).key());
    for host in &hosts {
        host.follows(&etcd);
        assert_eq!(host.tables().routes.len(), 1);
    }
}

#[test]
fn a_peer_whose_etcd_lease_ends_is_removed() {
    let lab = Lab::new("expire");
    let etcd = lab.etcd_with_config();
    let host = lab.joined(1).remove(0);
    let guest = Lease::guest(200);
    let id = etcd.put_with_ttl(&guest.key(), &guest.value(), 600);
    eventually_eq("the guest is a peer", &Tables::to([&guest]), || host.tables());
    etcd.revoke(id);
    eventually_eq("the guest is gone", &Tables::default(), || host.tables());
}

#[test]
fn a_peer_that_changes_its_mac_or_its_address_is_followed() {
    let lab = Lab::new("change");
    let etcd = lab.etcd_with_config();
    let host = lab.joined(1).remove(0);
    let (steady, original) = (Lease::guest(206), Lease::guest(207));
    let other_mac = Lease { mac: "0e:00:00:00:01:77".into(), ..original.clone() };
    let other_address = Lease { public_ip: "172.31.0.107".into(), ..other_mac.clone() };
    let both = Lease { public_ip: "172.31.0.108".into(), mac: "0e:00:00:00:02:77".into(), ..original.clone() };
    etcd.put_lease(&steady);
    // The old FDB entry goes too: the tables hold nothing but the two peers at every step.
    for peer in [&original, &other_mac, &other_address, &both, &original] {
        etcd.put_lease(peer);
        eventually_eq("the change is followed", &Tables::to([&steady, peer]), || host.tables());
    }
}

#[test]
fn what_changed_while_the_daemon_was_down_is_made_good_at_its_start() {
    let lab = Lab::new("missed");
    let etcd = lab.etcd_with_config();
    let mut host = lab.joined(1).remove(0);
    let (leaves, moves, stays) = (Lease::guest(201), Lease::guest(202), Lease::guest(203));
    etcd.put_leases([&leaves, &moves, &stays]);
    eventually_eq("three peers", &Tables::to([&leaves, &moves, &stays]), || host.tables());

    host.stop();
    let moved = Lease { public_ip: "172.31.0.102".into(), mac: "0e:00:00:00:01:72".into(), ..moves };
    let came = Lease::guest(204);
    etcd.del(&leaves.key());
    etcd.put_leases([&moved, &came]);
    host.join();
    eventually_eq("the new three", &Tables::to([&moved, &stays, &came]), || host.tables());
}
