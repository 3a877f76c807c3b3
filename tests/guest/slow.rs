//! A host whose way to etcd is slow, long and lossy.

use crate::lab::{DEVICE, Lab, Lease, WIDE_CONFIG, eventually, eventually_eq, patience};

const PEERS: u32 = 500;
const PREFIX: &str = "/network-of-500";

/// What a packet goes through in each direction. Five hundred leases take seconds so.
const LINK: &str = "netem delay 100ms 20ms loss 3% rate 1mbit";

#[test]
fn over_a_slow_link_a_host_joins_and_follows() {
    let lab = Lab::new("slow");
    let etcd = lab.etcd();
    etcd.put(&format!("{PREFIX}/config"), WIDE_CONFIG);
    etcd.fill(PREFIX, &(0..PEERS).map(Lease::numbered).collect::<Vec<_>>());
    let mut host = lab.host(1);
    host.sh(&format!("tc qdisc add dev eth0 root {LINK}"));
    let port = lab.underlay_command("tc").args("qdisc add dev p1 root".split(' ')).args(LINK.split(' ')).status();
    assert!(port.is_ok_and(|status| status.success()), "no netem on the underlay");
    host.start(&[&format!("--etcd-prefix={PREFIX}")]);
    assert!(host.ready_within(patience() * 3), "not ready: {:?}", host.status());
    let peers = || host.routes(DEVICE).len();
    eventually_eq("all peers are known", &(PEERS as usize), peers);

    let late = Lease::numbered(PEERS);
    etcd.put(&late.key_under(PREFIX), &late.value());
    eventually_eq("a new peer is known", &(PEERS as usize + 1), peers);
    etcd.del(&late.key_under(PREFIX));
    eventually_eq("a peer that left is gone", &(PEERS as usize), peers);
    eventually("no trouble is reported", || host.status().is_some_and(|status| status.ends_with(", 500 peers")));
}
