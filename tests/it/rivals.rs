//! Hosts that others cannot tell apart: one public IP for two, or a copy of a machine.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use crate::lab::{DEVICE, Host, Lab, Lease, eventually};

const SHARED: [&str; 3] = ["--public-ip=10.0.2.15", "--healthz-port=8123", "--subnet-lease-ttl=10s"];

/// The only lease that this host's subnet.env speaks of.
fn lease_of(leases: &[Lease], host: &Host) -> Lease {
    let subnet = host.subnet();
    leases.iter().find(|lease| lease.subnet == subnet).unwrap_or_else(|| panic!("{subnet} in {leases:?}")).clone()
}

fn complaint(host: &Host) -> String {
    host.http_get(8123, "/readyz").map(|(_, body)| body).unwrap_or_default()
}

/// Log, STATUS and readiness of `host` name the other host.
fn names(host: &Host, other: &Lease) {
    let parts = [&other.mac, &other.subnet, &other.public_ip];
    eventually("the other host is named", || {
        let texts = [complaint(host), host.status().unwrap_or_default(), host.log()];
        texts.iter().all(|text| parts.iter().all(|part| text.contains(*part)))
    });
}

#[test]
fn two_hosts_with_one_public_ip_are_found_out_by_both_and_take_nothing_from_each_other() {
    let lab = Lab::new("twins");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.hosts(2);
    hosts[0].start(&SHARED);
    hosts[0].wait_ready();
    let first = etcd.leases()[0].clone();
    let device = hosts[0].device(DEVICE);
    hosts[1].start(&SHARED);
    hosts[1].wait_ready();
    let leases = etcd.leases();
    assert_eq!(leases.len(), 2, "{leases:?}");
    let second = lease_of(&leases, &hosts[1]);
    assert_eq!(lease_of(&leases, &hosts[0]), first);
    assert!(second.mac != first.mac && second.subnet != first.subnet);
    names(&hosts[0], &second);
    names(&hosts[1], &first);
    let revisions = || [&first, &second].map(|lease| etcd.modified(&lease.key()));
    let before = revisions();
    let mut writes = [0; 2];
    for _ in 0..10 {
        let last = revisions();
        sleep(Duration::from_millis(500));
        let now = revisions();
        (0..2).for_each(|host| writes[host] += usize::from(now[host] != last[host]));
    }
    assert!(writes.iter().all(|count| *count <= 1), "more than a renewal each in half a TTL: {writes:?} {before:?}");
    assert_eq!(hosts[0].device(DEVICE), device);

    hosts[1].stop();
    etcd.revoke(etcd.lease_of(&second.key()).expect("an etcd lease"));
    eventually("the first is well again", || hosts[0].http_get(8123, "/readyz").is_ok_and(|(code, _)| code == 200));
}

#[test]
fn a_copy_of_a_host_with_its_state_file_becomes_a_host_of_its_own() {
    let lab = Lab::new("copy");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.hosts(2);
    hosts[0].start(&SHARED);
    hosts[0].wait_ready();
    let first = etcd.leases()[0].clone();
    fs::create_dir(hosts[1].path("state")).unwrap();
    for file in fs::read_dir(hosts[0].path("state")).unwrap().flatten() {
        fs::copy(file.path(), hosts[1].path("state").join(file.file_name())).unwrap();
    }
    hosts[1].start(&SHARED);
    hosts[1].wait_ready();
    let leases = etcd.leases();
    assert_eq!((leases.len(), lease_of(&leases, &hosts[0])), (2, first.clone()));
    let second = lease_of(&leases, &hosts[1]);
    assert_ne!(second.mac, first.mac);
    assert_eq!(hosts[1].device(DEVICE).map(|device| device.mac), Some(second.mac.clone()));
    names(&hosts[0], &second);
    names(&hosts[1], &first);
}

#[test]
fn a_host_that_was_booted_is_not_taken_for_another() {
    let lab = Lab::new("reboot");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let flags = ["--healthz-port=8123", "--subnet-lease-ttl=3s"];
    host.start(&flags);
    host.wait_ready();
    let lease = etcd.lease_of_host(&host);
    // The power fails: once for a moment, once for longer than the lease lives.
    for longer_than_the_ttl in [false, true] {
        host.kill9();
        host.ip(&format!("link del {DEVICE}"));
        fs::remove_file(host.path("subnet.env")).unwrap();
        if longer_than_the_ttl {
            eventually("the lease is over", || etcd.leases().is_empty());
        }
        host.start(&flags);
        host.wait_ready();
        assert_eq!(etcd.leases(), std::slice::from_ref(&lease));
        assert_eq!(host.device(DEVICE).map(|device| device.mac), Some(lease.mac.clone()));
        assert_eq!(host.http_get(8123, "/readyz").unwrap().0, 200, "{}", complaint(&host));
    }
    assert!(!host.log().contains("another host"), "{}", host.log());
}
