//! The kinds of damage, and the kernel's reports that show a damage and its repair.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use flanneld::kernel::Kernel;
use flanneld::kernel::netlink::NetlinkKernel;
use flanneld::kernel::socket::{NetlinkSocket, Request};
use flanneld::model::entry::{FdbEntry, Neighbor};
use flanneld::model::kernel_state::Scope;
use flanneld::model::mac::VtepMac;
use flanneld::model::plan::Op;
use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use crate::cluster::Peer;
use crate::witness::Report;

/// An unused address: the next hop of stray routes, and the destination of FDB entries that were moved.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const NOBODY: VtepMac = VtepMac([0x0e, 0xff, 0xff, 0xff, 0xff, 0xff]);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    RouteDeleted,
    NeighborDeleted,
    NeighborChanged,
    FdbDeleted,
    FdbMoved,
    StrayRoute,
    DeviceDown,
    DeviceDeleted,
}

impl Damage {
    pub const ALL: [Damage; 8] = [
        Damage::RouteDeleted,
        Damage::NeighborDeleted,
        Damage::NeighborChanged,
        Damage::FdbDeleted,
        Damage::FdbMoved,
        Damage::StrayRoute,
        Damage::DeviceDown,
        Damage::DeviceDeleted,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Damage::RouteDeleted => "route deleted",
            Damage::NeighborDeleted => "neighbour deleted",
            Damage::NeighborChanged => "neighbour's MAC changed",
            Damage::FdbDeleted => "FDB entry deleted",
            Damage::FdbMoved => "FDB entry moved",
            Damage::StrayRoute => "stray route prepended",
            Damage::DeviceDown => "device down",
            Damage::DeviceDeleted => "device deleted",
        }
    }

    /// Whether it takes the entries of all peers.
    pub fn hits_all(self) -> bool {
        matches!(self, Damage::DeviceDown | Damage::DeviceDeleted)
    }

    /// Whether `report` shows that it was done to `peer`.
    pub fn is_done(self, peer: &Peer, device: &str, report: &Report) -> bool {
        match (self, report) {
            (Damage::DeviceDown, Report::Link { there: true, name, up: false }) => name == device,
            (Damage::DeviceDeleted, Report::Link { there: false, name, .. }) => name == device,
            (Damage::RouteDeleted, report) => *report == right_route(peer, false),
            (Damage::StrayRoute, report) => *report == stray_route(peer, true),
            // A neighbour that is deleted is first reported as no longer permanent.
            (Damage::NeighborDeleted | Damage::NeighborChanged, Report::Neighbor { ip, .. }) => {
                *ip == IpAddr::V4(peer.gateway()) && *report != right_neighbor(peer)
            }
            (Damage::FdbDeleted | Damage::FdbMoved, Report::Fdb { mac, .. }) => {
                *mac == peer.mac.0 && *report != right_fdb(peer)
            }
            _ => false,
        }
    }

    /// The reports that together show the repair.
    pub fn repairs(self, peer: &Peer, all: &[Peer]) -> HashSet<Report> {
        match self {
            Damage::RouteDeleted => [right_route(peer, true)].into(),
            Damage::NeighborDeleted | Damage::NeighborChanged => [right_neighbor(peer)].into(),
            Damage::FdbDeleted | Damage::FdbMoved => [right_fdb(peer)].into(),
            Damage::StrayRoute => [stray_route(peer, false)].into(),
            // A device that is down keeps its FDB.
            Damage::DeviceDown => all.iter().flat_map(|peer| [right_neighbor(peer), right_route(peer, true)]).collect(),
            Damage::DeviceDeleted => {
                all.iter().flat_map(|peer| [right_neighbor(peer), right_fdb(peer), right_route(peer, true)]).collect()
            }
        }
    }
}

pub fn right_route(peer: &Peer, there: bool) -> Report {
    Report::Route { there, dest: peer.gateway(), gateway: Some(peer.gateway()) }
}

fn stray_route(peer: &Peer, there: bool) -> Report {
    Report::Route { there, dest: peer.gateway(), gateway: Some(NOWHERE) }
}

fn right_neighbor(peer: &Peer) -> Report {
    Report::Neighbor { there: true, ip: peer.gateway().into(), mac: peer.mac.0.to_vec(), permanent: true }
}

fn right_fdb(peer: &Peer) -> Report {
    Report::Fdb { there: true, mac: peer.mac.0.to_vec(), dst: Some(peer.public_ip) }
}

/// Does the damage.
pub struct Vandal {
    kernel: NetlinkKernel,
    socket: NetlinkSocket,
    scope: Scope,
}

impl Vandal {
    /// In the namespace of the calling thread. Needs a tokio runtime.
    pub fn new(scope: Scope) -> Vandal {
        let kernel = NetlinkKernel::new().expect("netlink");
        Vandal { kernel, socket: NetlinkSocket::open().expect("netlink"), scope }
    }

    /// Does the damage and returns when it was done; `None` if there is no device.
    pub async fn strike(&mut self, damage: Damage, peer: &Peer) -> Option<Instant> {
        let index = self.index().await?;
        let gateway = peer.gateway().into();
        match damage {
            Damage::RouteDeleted => self.apply(Op::delete(peer.route())).await,
            Damage::NeighborDeleted => self.apply(Op::delete(Neighbor { ip: gateway, mac: peer.mac })).await,
            Damage::NeighborChanged => self.apply(Op::set(Neighbor { ip: gateway, mac: NOBODY })).await,
            Damage::FdbDeleted => self.apply(Op::delete(FdbEntry { mac: peer.mac, dst: peer.public_ip.into() })).await,
            Damage::FdbMoved => self.apply(Op::set(FdbEntry { mac: peer.mac, dst: NOWHERE.into() })).await,
            Damage::StrayRoute => self.prepend_route(peer, index).await,
            Damage::DeviceDown => self.bring_down(index).await,
            Damage::DeviceDeleted => self.apply(Op::DeleteDevice(index)).await,
        }
        let done = Instant::now();
        // Only so that they do not pile up.
        self.kernel.take_changes(&self.scope);
        Some(done)
    }

    /// How many routes, neighbours and FDB entries there are.
    pub async fn entries(&mut self) -> [usize; 3] {
        let have = self.kernel.observe(&self.scope).await.expect("reading the kernel's state");
        let neighbors = have.neighbors.values().filter(|neighbor| neighbor.permanent).count();
        [have.routes.values().map(|routes| routes.len()).sum(), neighbors, have.fdb.len()]
    }

    async fn apply(&mut self, op: Op) {
        for result in self.kernel.apply(&self.scope, &[op]).await {
            result.expect("doing damage");
        }
    }

    /// `ip route prepend`: before the right one, with the same destination and metric.
    async fn prepend_route(&mut self, peer: &Peer, index: u32) {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = peer.subnet.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.header.flags = RouteFlags::Onlink;
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet(peer.gateway())),
            RouteAttribute::Gateway(RouteAddress::Inet(NOWHERE)),
            RouteAttribute::Oif(index),
        ];
        let request = Request { message: Message::NewRoute(message), flags: NLM_F_CREATE };
        self.socket.change(request).await.expect("a stray route");
    }

    async fn bring_down(&mut self, index: u32) {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        let request = Request { message: Message::SetLink(message), flags: 0 };
        self.socket.change(request).await.expect("bringing the device down");
    }

    /// The device's index, asked for by its name.
    async fn index(&mut self) -> Option<u32> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(self.scope.device.clone()));
        match self.socket.get("the device", Message::GetLink(message)).await {
            Ok(Some(Message::NewLink(link))) => Some(link.header.index),
            _ => None,
        }
    }
}
