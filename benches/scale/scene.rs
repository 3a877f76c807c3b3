//! Where a contestant shows what it can: an etcd with the leases of a network, and a host that has never been in it.

use std::time::Duration;

use tempfile::TempDir;

use crate::cluster::{Network, Peer};
use crate::lab::{Etcd, Host, Lab, Lease};

/// How long etcd is left alone after it was filled.
const SETTLE: Duration = Duration::from_millis(500);

/// Everything goes with it, the host's daemon first.
pub struct Scene {
    pub host: Host,
    pub etcd: Etcd,
    pub network: Network,
    /// In memory, as /run is.
    pub run: TempDir,
    _lab: Lab,
}

impl Scene {
    /// With a network of so many peers.
    pub fn new(peers: u32) -> Scene {
        let lab = Lab::new("scale");
        let etcd = lab.etcd();
        let network = Network::new(&etcd, peers);
        etcd.fill(&network.prefix, &leases(0..peers));
        std::thread::sleep(SETTLE);
        let run = TempDir::with_prefix_in("flanneld-scale-", "/run").expect("a directory in /run");
        Scene { host: lab.host(1), etcd, network, run, _lab: lab }
    }
}

/// What such peers have in etcd.
pub fn leases(numbers: std::ops::Range<u32>) -> Vec<Lease> {
    numbers.map(Lease::numbered).collect()
}

/// Peers that are not among the first `present`.
pub fn newcomers(present: usize, count: usize) -> Vec<Peer> {
    (present as u32..(present + count) as u32).map(Peer::number).collect()
}
