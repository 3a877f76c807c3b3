//! etcd loses what it knew: a wipe, an old backup, a deleted prefix. Hosts register again, keep their subnets, and no
//! packet is lost. A host that was away for longer than its lease lives finds its place again.

use std::path::Path;
use std::time::Duration;

use crate::lab::{CONFIG, Container, DEVICE, Etcd, Host, Lab, PREFIX, containers_on, eventually, eventually_eq};

/// Two hosts with a container each that ping each other while `disaster` happens, which is given a backup that knows neither;
/// in the end all is as it was.
fn survive(name: &str, disaster: impl FnOnce(&mut Etcd, &mut [Host], &Path)) {
    let lab = Lab::new(name);
    let mut etcd = lab.etcd_with_config();
    let backup = etcd.backup();
    let mut hosts = lab.joined(2);
    hosts.iter().for_each(|host| host.follows(&etcd));
    let containers: Vec<Container> = containers_on(&mut hosts);
    let (from, to) = (&containers[0], containers[1].address());
    from.ping(to, 1).unwrap();
    let before: Vec<_> = hosts.iter().map(|host| (host.device(DEVICE), host.tables())).collect();
    let mut leases = etcd.leases();
    leases.sort();
    let pinging = from.ping_background(to);
    disaster(&mut etcd, &mut hosts, &backup);
    eventually_eq("all are registered as before", &leases, || {
        let mut now = etcd.leases();
        now.sort();
        now
    });
    hosts.iter().for_each(|host| host.follows(&etcd));
    from.ping(to, 5).unwrap();
    let pinged = pinging.stop();
    assert!(pinged.lost_nothing(), "{pinged:?}");
    assert_eq!(hosts.iter().map(|host| (host.device(DEVICE), host.tables())).collect::<Vec<_>>(), before);
}

fn all_keys() -> String {
    format!("{PREFIX}/")
}

#[test]
fn a_deleted_prefix_is_filled_again_and_no_packet_lost() {
    survive("deleted", |etcd, _, _| {
        etcd.del_prefix(&all_keys());
        etcd.put(&format!("{PREFIX}/config"), CONFIG);
    });
}

#[test]
fn a_wiped_etcd_is_filled_again_and_no_packet_lost() {
    survive("wiped", |etcd, _, _| {
        etcd.kill();
        etcd.wipe();
        etcd.start();
        etcd.put(&format!("{PREFIX}/config"), CONFIG);
    });
}

#[test]
fn an_old_backup_is_brought_up_to_date_and_no_packet_lost() {
    survive("backup", |etcd, _, backup| {
        etcd.kill();
        etcd.restore(backup);
        etcd.start();
    });
}

#[test]
fn a_wipe_while_the_daemons_are_down_cuts_nobody_off() {
    survive("wiped-down", |etcd, hosts, _| {
        for host in hosts.iter_mut() {
            host.stop();
        }
        etcd.kill();
        etcd.wipe();
        etcd.start();
        etcd.put(&format!("{PREFIX}/config"), CONFIG);
        hosts[0].join();
        std::thread::sleep(Duration::from_secs(1));
        hosts[1].join();
    });
}

#[test]
fn a_daemon_that_stood_still_for_longer_than_its_lease_lives_is_back_with_the_same_subnet() {
    let lab = Lab::new("suspended");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.hosts(2);
    hosts.iter_mut().for_each(|host| host.start(&["--subnet-lease-ttl=3s"]));
    hosts.iter().for_each(|host| host.wait_ready());
    hosts.iter().for_each(|host| host.follows(&etcd));
    let lease = etcd.lease_of_host(&hosts[0]);
    hosts[0].freeze();
    eventually("its lease is over", || etcd.leases().len() == 1);
    hosts[1].follows(&etcd);
    hosts[0].thaw();
    eventually("it is registered again", || etcd.leases().contains(&lease));
    hosts.iter().for_each(|host| host.follows(&etcd));
    assert!(hosts.iter_mut().all(|host| host.running()));
}
