//! From the model to rtnetlink messages.

use super::socket::Request;
use crate::model::device::{Device, Link};
use crate::model::entry::{Address, Neighbor, Oif, Route};
use crate::model::family::Family;
use crate::model::kernel_state::Entry;
use crate::model::mac::VtepMac;
use crate::model::plan::Op;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use std::net::IpAddr;

const MAKE: u16 = NLM_F_CREATE | NLM_F_EXCL;
const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// The change that `op` is on the device with this index. `None` for operations on the device itself, which are more
/// than one change.
pub fn change(op: &Op, index: u32) -> Option<Request> {
    let (flags, message) = match op {
        Op::DeleteDevice(_) | Op::CreateDevice(_) | Op::ChangeDevice(..) => return None,
        Op::Set(entry) => (SET, new_entry(entry, index)),
        Op::Add(entry) => (MAKE, new_entry(entry, index)),
        Op::Delete(entry) => (0, old_entry(entry, index)),
        Op::ClearFdb(mac) => (0, Message::DelNeighbour(fdb(*mac, None, index))),
    };
    Some(Request { message, flags })
}

fn new_entry(entry: &Entry, index: u32) -> Message {
    match entry {
        Entry::Address(Address(net)) => Message::NewAddress(address(*net, index)),
        Entry::Neighbor(Neighbor { ip, mac }) => Message::NewNeighbour(neighbor(*ip, Some(*mac), index)),
        Entry::FdbEntry(entry) => Message::NewNeighbour(fdb(entry.mac, Some(entry.dst), index)),
        Entry::Route(new) => Message::NewRoute(route(new, index)),
    }
}

fn old_entry(entry: &Entry, index: u32) -> Message {
    match entry {
        Entry::Address(Address(net)) => Message::DelAddress(address(*net, index)),
        Entry::Neighbor(Neighbor { ip, .. }) => Message::DelNeighbour(neighbor(*ip, None, index)),
        Entry::FdbEntry(entry) => Message::DelNeighbour(fdb(entry.mac, Some(entry.dst), index)),
        Entry::Route(old) => Message::DelRoute(old_route(old, index)),
    }
}

/// The family as netlink names it.
pub fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    address_family(Family::of(ip))
}

fn address(net: IpNet, index: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.prefix_len = net.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    if net.addr().is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    // The kernel compares the prefix length of an IPv4 address to be deleted only when it is given as both.
    message.attributes = vec![AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())];
    message
}

fn neighbor(ip: IpAddr, mac: Option<VtepMac>, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(ip.into()));
    message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
    message
}

fn fdb(mac: VtepMac, dst: Option<IpAddr>, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message.attributes.extend(dst.map(|dst| NeighbourAttribute::Destination(dst.into())));
    message
}

fn route(route: &Route, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.dest.addr());
    message.header.destination_prefix_length = route.dest.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    message.attributes.push(RouteAttribute::Destination(route.dest.network().into()));
    message.attributes.extend(route.gateway.map(|gateway| gateway_attribute(route.dest, gateway)));
    match route.oif {
        Oif::Ours => message.attributes.push(RouteAttribute::Oif(index)),
        Oif::Other(other) => message.attributes.push(RouteAttribute::Oif(other)),
        Oif::Nexthop(id) => message.attributes.push(RouteAttribute::NhId(id)),
        Oif::Special(kind) => message.header.kind = RouteType::from(kind),
    }
    if route.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

fn gateway_attribute(dest: IpNet, gateway: IpAddr) -> RouteAttribute {
    match (dest, gateway) {
        (IpNet::V4(_), IpAddr::V6(ip)) => RouteAttribute::Via(RouteVia::Inet6(ip)),
        _ => RouteAttribute::Gateway(RouteAddress::from(gateway)),
    }
}

/// A route to be deleted, with whatever scope. On our device it does not matter who installed it; elsewhere others may have
/// one with the same path.
fn old_route(old: &Route, index: u32) -> RouteMessage {
    let mut message = route(old, index);
    if old.oif == Oif::Ours {
        message.header.protocol = RouteProtocol::Unspec;
    }
    message.header.scope = RouteScope::NoWhere;
    message.header.flags = RouteFlags::empty();
    message
}

/// Makes a device, which is left down so that it can be prepared.
pub fn create_device(device: &Device) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(device.name.clone()));
    message.attributes.extend(device.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message.attributes.push(LinkAttribute::Mtu(device.mtu));
    message.attributes.push(LinkAttribute::TxQueueLen(0));
    message.attributes.push(super::link::create(&device.link));
    Request { message: Message::NewLink(message), flags: MAKE }
}

/// Changes the link parameters that can change in a living device. An MTU in the same message would be refused.
pub fn change_link(index: u32, kind: &Link) -> Request {
    Request { message: Message::NewLink(link(index, vec![super::link::change(kind)])), flags: 0 }
}

fn link(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

/// Removes a device.
pub fn delete_device(index: u32) -> Request {
    Request { message: Message::DelLink(link(index, vec![])), flags: 0 }
}

/// Changes a device's MTU.
pub fn set_mtu(index: u32, mtu: u32) -> Request {
    Request { message: Message::SetLink(link(index, vec![LinkAttribute::Mtu(mtu)])), flags: 0 }
}

/// Changes a device's MAC, which flushes its neighbours.
pub fn set_mac(index: u32, mac: VtepMac) -> Request {
    Request { message: Message::SetLink(link(index, vec![LinkAttribute::Address(mac.0.to_vec())])), flags: 0 }
}

/// Has a device get no IPv6 link-local address when it comes up.
pub fn no_link_local(index: u32) -> Request {
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    Request { message: Message::SetLink(link(index, vec![LinkAttribute::AfSpecUnspec(vec![mode])])), flags: 0 }
}

/// Brings a device up or down.
pub fn set_up(index: u32, up: bool) -> Request {
    let mut message = link(index, vec![]);
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    Request { message: Message::SetLink(message), flags: 0 }
}

/// Asks for the device with this name.
pub fn get_link(name: &str) -> Message {
    let mut message = LinkMessage::default();
    message.attributes =
        vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    Message::GetLink(message)
}

/// Asks for all devices.
pub fn dump_links() -> Message {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    Message::GetLink(message)
}

/// Asks for the addresses of one device; of all for index 0.
pub fn dump_addresses(index: u32) -> Message {
    let mut message = AddressMessage::default();
    message.header.index = index;
    Message::GetAddress(message)
}

/// Asks for the neighbours on one device.
pub fn dump_neighbors(index: u32) -> Message {
    let mut message = NeighbourMessage::default();
    message.attributes = vec![NeighbourAttribute::IfIndex(index)];
    Message::GetNeighbour(message)
}

/// Asks for the FDB of one device.
pub fn dump_fdb(index: u32) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    Message::GetNeighbour(message)
}

/// Asks for the routes of table main of one family.
pub fn dump_routes(family: Family) -> Message {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    Message::GetRoute(message)
}

/// Asks for the way to one address.
pub fn get_route(ip: IpAddr) -> Message {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip);
    message.header.destination_prefix_length = IpNet::from(ip).prefix_len();
    message.attributes = vec![RouteAttribute::Destination(ip.into())];
    Message::GetRoute(message)
}
