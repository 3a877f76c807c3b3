//! etcd comes late, dies, hangs, and comes back; traffic does not care and nothing is missed.

use std::time::Duration;

use crate::lab::{CONFIG, Lab, Lease, PREFIX, containers_on};

#[test]
fn a_host_that_starts_before_etcd_joins_when_etcd_is_there() {
    let lab = Lab::new("late");
    let mut host = lab.host(1);
    host.start(&[]);
    assert!(!host.ready_within(Duration::from_millis(500)));
    assert!(host.running());
    let etcd = lab.etcd();
    etcd.put(&format!("{PREFIX}/config"), CONFIG);
    host.wait_ready();
    assert_eq!(etcd.leases().len(), 1);
}

#[test]
fn while_etcd_is_dead_or_hangs_traffic_flows_and_afterwards_changes_arrive() {
    let lab = Lab::new("outage");
    let mut etcd = lab.etcd_with_config();
    let mut hosts = lab.joined(2);
    hosts.iter().for_each(|host| host.follows(&etcd));
    let containers = containers_on(&mut hosts);
    let (from, to) = (&containers[0], containers[1].address());
    from.ping(to, 1).unwrap();

    let pinging = from.ping_background(to);
    etcd.kill();
    from.ping(to, 5).unwrap();
    etcd.start();
    etcd.put_lease(&Lease::guest(201));
    hosts.iter().for_each(|host| host.follows(&etcd));

    etcd.pause();
    from.ping(to, 5).unwrap();
    etcd.resume();
    etcd.put_lease(&Lease::guest(202));
    hosts.iter().for_each(|host| host.follows(&etcd));
    assert!(pinging.stop().lost_nothing());
    assert!(hosts.iter_mut().all(|host| host.running()));
}
