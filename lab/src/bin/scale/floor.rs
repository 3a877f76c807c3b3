//! The floor under every flanneld: the kernel's time for the entries if they are known beforehand and nothing else is
//! written, and etcd's time for a list of all leases.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::cluster::{Network, Peer, inside, runtime};
use crate::damage::right_route;
use crate::lab::{DEVICE, Etcd, Host};
use crate::scene::Scene;
use crate::witness::Witness;

/// Messages in one send; only the last one is acknowledged.
const BATCH: usize = 256;
const PATIENCE: Duration = Duration::from_secs(120);

const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
/// `NLM_F_REQUEST | NLM_F_EXCL | NLM_F_CREATE`.
const MAKE: u16 = 0x601;
const NLM_F_ACK: u16 = 4;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;
const RTNH_F_ONLINK: u32 = 4;

/// How long the kernel's and etcd's parts take.
pub struct Floor {
    pub write: Duration,
    pub range: Duration,
}

pub fn measure(scene: &mut Scene) -> Floor {
    let Scene { host, etcd, network, .. } = scene;
    make_device(host);
    let (etcd, network): (&Etcd, &Network) = (etcd, network);
    inside(host, |_| Floor { range: range(etcd, network), write: write(&network.peers) })
}

fn make_device(host: &Host) {
    let local = host.public_ip();
    host.ip(&format!("link add {DEVICE} type vxlan id 1 local {local} dev eth0 dstport 8472 nolearning"));
    host.ip(&format!("addr add 10.255.0.0/32 dev {DEVICE}"));
    host.ip(&format!("link set {DEVICE} up"));
}

/// All leases in one answer.
fn range(etcd: &Etcd, network: &Network) -> Duration {
    runtime().block_on(async {
        let client = Client::connect([etcd.endpoint()], None).await.expect("etcd");
        let mut kv = client.kv_client().max_decoding_message_size(256 << 20);
        kv.get("/", None).await.expect("an answer");
        let start = Instant::now();
        let all = GetOptions::new().with_prefix();
        let answer = kv.get(format!("{}/subnets/", network.prefix), Some(all)).await.expect("the leases");
        assert_eq!(answer.kvs().len(), network.peers.len());
        start.elapsed()
    })
}

/// The time from the first send to the last route, measured by the witness that also measures the daemons.
fn write(peers: &[Peer]) -> Duration {
    let index = nix::net::if_::if_nametoindex(DEVICE).expect("the device");
    let mut socket = Socket::new(NETLINK_ROUTE).expect("a netlink socket");
    socket.bind_auto().expect("binding it");
    socket.connect(&SocketAddr::new(0, 0)).expect("the kernel");
    let mut witness = Witness::start();
    let start = Instant::now();
    let mut batch = Batch::default();
    for kind in [neighbor, fdb, route] {
        for peer in peers {
            kind(&mut batch, peer, index);
            if batch.count == BATCH {
                batch.send(&socket);
            }
        }
        batch.send(&socket);
    }
    let routes = peers.iter().map(|peer| right_route(peer, true)).collect();
    witness.all(start + PATIENCE, routes).expect("all routes") - start
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
    count: usize,
}

impl Batch {
    fn push(&mut self, kind: u16, head: &[u8], attributes: &[(u16, &[u8])]) {
        self.last = self.bytes.len();
        self.count += 1;
        let rest = attributes.iter().map(|(_, value)| 4 + value.len().next_multiple_of(4)).sum::<usize>();
        self.bytes.extend((16 + head.len() as u32 + rest as u32).to_ne_bytes());
        self.bytes.extend([kind.to_ne_bytes(), MAKE.to_ne_bytes()].concat());
        self.bytes.extend([0; 8]);
        self.bytes.extend(head);
        for (kind, value) in attributes {
            self.bytes.extend((4 + value.len() as u16).to_ne_bytes());
            self.bytes.extend(kind.to_ne_bytes());
            self.bytes.extend(*value);
            self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        }
    }

    fn send(&mut self, socket: &Socket) {
        if self.count == 0 {
            return;
        }
        let flags = self.last + 6;
        self.bytes[flags..flags + 2].copy_from_slice(&(MAKE | NLM_F_ACK).to_ne_bytes());
        socket.send(&self.bytes, 0).expect("sending a batch");
        let mut answer = Vec::with_capacity(8 << 10);
        socket.recv(&mut answer, 0).expect("its answer");
        let errno = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
        assert_eq!(errno, Some(0), "the kernel refused a message of the batch");
        (self.count, self.last) = (0, 0);
        self.bytes.clear();
    }
}

fn neighbor(batch: &mut Batch, peer: &Peer, index: u32) {
    let head = neighbor_head(AF_INET, index, 0);
    batch.push(RTM_NEWNEIGH, &head, &[(1, &peer.gateway().octets()), (2, &peer.mac.0)]);
}

fn fdb(batch: &mut Batch, peer: &Peer, index: u32) {
    let head = neighbor_head(AF_BRIDGE, index, NTF_SELF);
    batch.push(RTM_NEWNEIGH, &head, &[(1, &peer.public_ip.octets()), (2, &peer.mac.0)]);
}

fn neighbor_head(family: u8, index: u32, flags: u8) -> Vec<u8> {
    let [a, b] = NUD_PERMANENT.to_ne_bytes();
    [&[family, 0, 0, 0][..], &index.to_ne_bytes(), &[a, b, flags, 0]].concat()
}

/// With protocols spread as ours are.
fn route(batch: &mut Batch, peer: &Peer, index: u32) {
    let gateway: Ipv4Addr = peer.gateway();
    let protocol = 100 + (u32::from(gateway) >> 8) % 86;
    let head = [&[AF_INET, 24, 0, 0, 254, protocol as u8, 0, 1][..], &RTNH_F_ONLINK.to_ne_bytes()].concat();
    let attributes: [(u16, &[u8]); 3] = [(1, &gateway.octets()), (5, &gateway.octets()), (4, &index.to_ne_bytes())];
    batch.push(RTM_NEWROUTE, &head, &attributes);
}
