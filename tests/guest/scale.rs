//! A thousand peers.

use std::fs;
use std::time::Instant;

use crate::lab::{DEVICE, Lab, Lease, WIDE_CONFIG, eventually_eq};
use crate::rest::stay_at_rest;

const PEERS: u32 = 1000;
const PREFIX: &str = "/network-of-1000";

#[test]
fn a_thousand_peers_are_joined_and_left_at_rest() {
    let lab = Lab::new("scale");
    let etcd = lab.etcd();
    etcd.put(&format!("{PREFIX}/config"), WIDE_CONFIG);
    etcd.fill(PREFIX, &(0..PEERS).map(Lease::numbered).collect::<Vec<_>>());
    let mut host = lab.host(1);
    let start = Instant::now();
    host.start(&[&format!("--etcd-prefix={PREFIX}")]);
    host.wait_ready();
    let joined = start.elapsed();
    let entries = || [host.routes(DEVICE).len(), host.neighbors(DEVICE).len(), host.fdb(DEVICE).len()];
    eventually_eq("the kernel has three entries for each peer", &[PEERS as usize; 3], entries);
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid())).expect("its status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    println!("measured: {PEERS} peers: ready after {joined:.1?}, resident {}", resident.trim());
    stay_at_rest(&[&host]);
}
