//! etcd comes late, dies, hangs, and comes back; traffic does not care and nothing is missed.

use std::time::Duration;

use crate::lab::{CONFIG, Lab, Lease, PREFIX, Tables, eventually_eq};

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
    let mut hosts = lab.hosts(2);
    hosts.iter_mut().for_each(|host| host.join());
    let peer = etcd
        .leases()
        .into_iter()
        .find(|lease| lease.public_ip == hosts[1].public_ip())
        .unwrap();
    let containers = hosts
        .iter_mut()
        .map(|host| host.attach_container("c1"))
        .collect::<Vec<_>>();
    eventually_eq("the peer is there", &Tables::to([&peer]), || {
        hosts[0].tables()
    });
    containers[0].ping(containers[1].address(), 1).unwrap();

    let pinging = containers[0].ping_background(containers[1].address());
    etcd.kill();
    assert!(containers[0].ping(containers[1].address(), 5).is_ok());
    etcd.start();
    let first = Lease::guest(201);
    etcd.put_lease(&first);
    eventually_eq(
        "a change after the crash",
        &Tables::to([&peer, &first]),
        || hosts[0].tables(),
    );

    etcd.pause();
    assert!(containers[0].ping(containers[1].address(), 5).is_ok());
    etcd.resume();
    let second = Lease::guest(202);
    etcd.put_lease(&second);
    eventually_eq(
        "a change after the hang",
        &Tables::to([&peer, &first, &second]),
        || hosts[0].tables(),
    );
    let pinged = pinging.stop();
    assert!(
        pinged.received > 0 && pinged.received + 1 >= pinged.sent,
        "{pinged:?}"
    );
    assert!(hosts.iter_mut().all(|host| host.running()));
}
