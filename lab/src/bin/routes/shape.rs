//! The shapes that the entries of a peer could have.

use flanneld::model::entry::{FdbEntry, Neighbor, Oif, Route};
use flanneld::model::mac::VtepMac;
use flanneld::model::plan::Op;
use ipnet::IpNet;
use std::net::IpAddr;

/// A way to write one entry for each of many peers.
pub struct Shape {
    pub name: &'static str,
    kind: Kind,
}

enum Kind {
    /// A route with this protocol for all peers, as flannel writes it.
    Plain(u8),
    /// A route with one of so many protocols from 100 on.
    Protocols(u32),
    /// A route with one of so many metrics.
    Metrics(u32),
    /// A route by a nexthop object.
    Objects,
    Neighbor,
    Fdb,
}

const BOOT: u8 = 3;
const OURS: u32 = 100;

pub const SHAPES: [Shape; 7] = [
    Shape { name: "one protocol", kind: Kind::Plain(BOOT) },
    Shape { name: "86 protocols", kind: Kind::Protocols(86) },
    Shape { name: "142 protocols", kind: Kind::Protocols(142) },
    Shape { name: "4096 metrics", kind: Kind::Metrics(4096) },
    Shape { name: "nexthop objects", kind: Kind::Objects },
    Shape { name: "neighbours", kind: Kind::Neighbor },
    Shape { name: "FDB entries", kind: Kind::Fdb },
];

impl Shape {
    /// The request that adds the entry of the `n`th peer.
    pub fn add(&self, n: u32) -> Op {
        match self.kind {
            Kind::Neighbor => Op::set(Neighbor { ip: subnet(n).addr(), mac: mac(n) }),
            Kind::Fdb => Op::set(FdbEntry { mac: mac(n), dst: outer(n) }),
            _ => Op::add(self.route(n)),
        }
    }

    /// The request that removes it.
    pub fn delete(&self, n: u32) -> Op {
        match self.kind {
            Kind::Neighbor => Op::delete(Neighbor { ip: subnet(n).addr(), mac: mac(n) }),
            Kind::Fdb => Op::delete(FdbEntry { mac: mac(n), dst: outer(n) }),
            _ => Op::delete(self.route(n)),
        }
    }

    /// Whether it costs the square of the peers.
    pub fn is_quadratic(&self) -> bool {
        matches!(self.kind, Kind::Plain(_))
    }

    /// Whether each entry needs a nexthop object.
    pub fn has_objects(&self) -> bool {
        matches!(self.kind, Kind::Objects)
    }

    /// Whether its entries are routes.
    pub fn is_of_routes(&self) -> bool {
        !matches!(self.kind, Kind::Neighbor | Kind::Fdb)
    }

    fn route(&self, n: u32) -> Route {
        let dest = subnet(n);
        let plain =
            Route { dest, gateway: Some(dest.addr()), oif: Oif::Ours, onlink: true, metric: 0, protocol: OURS as u8 };
        match self.kind {
            Kind::Plain(protocol) => Route { protocol, ..plain },
            Kind::Protocols(count) => Route { protocol: (OURS + n % count) as u8, ..plain },
            Kind::Metrics(count) => Route { metric: 1 + n % count, ..plain },
            Kind::Objects => Route { gateway: None, onlink: false, oif: Oif::Nexthop(object(n)), ..plain },
            Kind::Neighbor | Kind::Fdb => plain,
        }
    }
}

/// The id of the nexthop object of the `n`th peer.
pub fn object(n: u32) -> u32 {
    n + 1
}

/// The `n`th /24 of 10.0.0.0/8.
pub fn subnet(n: u32) -> IpNet {
    IpNet::new(IpAddr::from((0x0a00_0000 | n << 8).to_be_bytes()), 24).expect("a subnet")
}

fn mac(n: u32) -> VtepMac {
    let [_, b, c, d] = n.to_be_bytes();
    VtepMac([0x0e, 0xfe, 0, b, c, d])
}

fn outer(n: u32) -> IpAddr {
    IpAddr::from((0xac10_0000 | (n + 1)).to_be_bytes())
}
