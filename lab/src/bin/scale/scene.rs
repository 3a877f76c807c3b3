//! The scene of a session: an etcd with the leases of a network, and a host that was never in it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use etcd_client::Client;
use tempfile::TempDir;

use crate::cluster::{Network, Peer, runtime};
use crate::lab::{Etcd, Host, Lab, Lease};

/// The pause after etcd was filled.
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

/// The leases of these peers in etcd.
pub fn leases(numbers: std::ops::Range<u32>) -> Vec<Lease> {
    numbers.map(Lease::numbered).collect()
}

/// Peers that are not among the first `present`.
pub fn newcomers(present: usize, count: usize) -> Vec<Peer> {
    (present as u32..(present + count) as u32).map(Peer::number).collect()
}

/// The amount of data that etcd has sent to clients, in KiB.
pub fn sent_by(etcd: &Etcd) -> f64 {
    let text = etcd.enter(|| {
        let mut stream = TcpStream::connect(etcd.endpoint().trim_start_matches("http://")).expect("etcd");
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").expect("asking etcd");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("etcd's metrics");
        answer
    });
    let count = text.lines().find_map(|line| line.strip_prefix("etcd_network_client_grpc_sent_bytes_total "));
    count.and_then(|count| count.trim().parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Compacts etcd's history, as etcd does by itself from time to time.
pub fn compact(etcd: &Etcd) {
    etcd.enter(|| {
        runtime().block_on(async {
            let mut kv = Client::connect([etcd.endpoint()], None).await.expect("etcd").kv_client();
            let answer = kv.get("/", None).await.expect("an answer");
            let now = answer.header().expect("a header").revision();
            kv.compact(now, None).await.expect("the history is forgotten");
        });
    });
}
