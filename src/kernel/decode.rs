//! From rtnetlink messages to the model.
//!
//! Old kernels ignore the filters of a dump, and a family that is switched off is answered with all families, so
//! everything that was asked for is checked again here.

use crate::model::device::{Device, ExistingDevice, Link};
use crate::model::entry::{NeighborState, Oif, Route};
use crate::model::iface::{DefaultRoute, Interface, InterfaceAddress, WayOut};
use crate::model::kernel_state::Scope;
use crate::model::links::LinkRoute;
use crate::model::mac::VtepMac;
use ipnet::IpNet;
use netlink_packet_core::Nla;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteScope, RouteType, RouteVia,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NDA_NH_ID: u16 = 13;
const RT_SCOPE_LINK: u8 = 253;

/// The interface, still without its addresses.
pub fn interface(message: &LinkMessage) -> Interface {
    let mut interface = Interface {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        controller: None,
        addresses: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Controller(index) => interface.controller = Some(*index),
            LinkAttribute::Address(bytes) if message.header.link_layer_type == LinkLayerType::Ether => {
                interface.mac = VtepMac::from_slice(bytes);
            }
            _ => {}
        }
    }
    interface
}

/// An address with the index of its interface.
pub fn interface_address(message: &AddressMessage) -> Option<(u32, InterfaceAddress)> {
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // On a point-to-point link `Address` is the other end.
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    let address = InterfaceAddress {
        net,
        scope: message.header.scope.into(),
        permanent: flags.contains(AddressFlags::Permanent),
        deprecated: flags.contains(AddressFlags::Deprecated),
        temporary: flags.contains(AddressFlags::Secondary),
    };
    Some((message.header.index, address))
}

/// An address of the device with this index, unless it is an IPv6 link-local one.
pub fn device_address(message: &AddressMessage, index: u32) -> Option<IpNet> {
    let (on, address) = interface_address(message)?;
    let is_link_local = address.net.addr().is_ipv6() && address.scope == RT_SCOPE_LINK;
    (on == index && !is_link_local).then_some(address.net)
}

/// The kind of the device that has our name. The message does not contain its offloads.
pub fn found(message: &LinkMessage) -> ExistingDevice {
    let index = message.header.index;
    let info = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => Some(info.as_slice()),
        _ => None,
    });
    let (mut kind, mut link) = ("physical".to_owned(), None);
    for part in info.unwrap_or_default() {
        match part {
            LinkInfo::Kind(name) => kind = name.to_string(),
            LinkInfo::Data(data) => link = super::link::decode(data),
            _ => {}
        }
    }
    match link {
        None => ExistingDevice::Other(index, kind),
        Some(link) => ExistingDevice::Known(index, device(message, link)),
    }
}

fn device(message: &LinkMessage, link: Link) -> Device {
    let Interface { name, mtu, mac, up, .. } = interface(message);
    Device { name, mac, mtu, up, tx_checksum_off: false, link }
}

/// A neighbour on the device with this index; as none when it is one that needs no resolution (multicast, say).
pub fn neighbor(message: &NeighbourMessage, index: u32) -> Option<(IpAddr, Option<NeighborState>)> {
    let state = u16::from(message.header.state);
    if message.header.ifindex != index {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = VtepMac::from_slice(bytes),
            _ => {}
        }
    }
    let neighbor = NeighborState { mac, permanent: state & NUD_PERMANENT != 0 };
    Some((ip?, (state & NUD_NOARP == 0).then_some(neighbor)))
}

/// Whether a message is about the device's own FDB, not about a bridge's that it is a port of.
fn is_own_fdb(message: &NeighbourMessage, index: u32) -> bool {
    let header = &message.header;
    header.family == AddressFamily::Bridge && header.ifindex == index && header.flags.contains(NeighbourFlags::Own)
}

/// Whether a report of an FDB entry says what the entry is. Up to 6.12 the kernel's general code adds a second report to that of
/// vxlan, and sends one also when nothing changed. Such a report has the MAC but neither destination nor times.
pub fn is_whole_fdb_report(message: &NeighbourMessage) -> bool {
    message.attributes.iter().any(|attribute| matches!(attribute, NeighbourAttribute::CacheInfo(_)))
}

/// The MAC of any FDB entry of the device with this index: the last one given, as everywhere here.
pub fn fdb_mac(message: &NeighbourMessage, index: u32) -> Option<VtepMac> {
    let mac = message.attributes.iter().rev().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => VtepMac::from_slice(bytes),
        _ => None,
    });
    mac.filter(|_| is_own_fdb(message, index))
}

/// A permanent FDB entry of the device with this index. The destination is `None` when it is more than an address
/// (a port, a VNI or a device of its own, or a nexthop group), which none of ours is. One with a nexthop group is given even if
/// it is not permanent, because the kernel puts no other entry in its place.
pub fn fdb_entry(message: &NeighbourMessage, index: u32) -> Option<(VtepMac, Option<IpAddr>)> {
    let permanent = u16::from(message.header.state) & NUD_PERMANENT != 0;
    let (mut mac, mut dst, mut plain, mut group) = (None, None, true, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = VtepMac::from_slice(bytes),
            NeighbourAttribute::Destination(address) => dst = underlay_address(address),
            NeighbourAttribute::Port(_) | NeighbourAttribute::Vni(_) | NeighbourAttribute::IfIndex(_) => plain = false,
            NeighbourAttribute::Other(other) if other.kind() == NDA_NH_ID => group = true,
            _ => {}
        }
    }
    let counts = is_own_fdb(message, index) && (permanent || group);
    mac.filter(|_| counts).map(|mac| (mac, dst.filter(|_| plain && !group)))
}

fn underlay_address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        NeighbourAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        // This is what the family of a bridge leaves it as.
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}

/// A next hop.
struct Hop {
    oif: u32,
    gateway: Option<IpAddr>,
}

/// A route of table main.
struct Decoded {
    dest: IpNet,
    /// At least one.
    hops: Vec<Hop>,
    multipath: bool,
    /// The nexthop object that it has its next hops from.
    nexthop: Option<u32>,
    metric: u32,
}

/// Reads a route of `family`; `None` for other families and tables, and for routes that are chosen by more than their
/// destination (type of service, source): those are other routes than ours to the kernel, too.
fn decode(message: &RouteMessage, family: AddressFamily) -> Option<Decoded> {
    let header = &message.header;
    if header.address_family != family
        || header.tos != 0
        || header.source_prefix_length != 0
        || header.flags.contains(RouteFlags::Cloned)
    {
        return None;
    }
    let mut table = u32::from(header.table);
    let (mut dest, mut metric, mut multipath, mut nexthop) = (None, 0, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Destination(address) => dest = ip(address),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::MultiPath(hops) => multipath = Some(hops),
            RouteAttribute::NhId(id) => nexthop = Some(*id),
            _ => {}
        }
    }
    let dest = IpNet::new(dest.unwrap_or(unspecified(family)), header.destination_prefix_length).ok()?.trunc();
    let hops = match multipath {
        Some(hops) => hops.iter().map(next_hop).collect(),
        None => vec![Hop { oif: oif(&message.attributes).unwrap_or(0), gateway: gateway(&message.attributes) }],
    };
    let main = table == u32::from(RouteHeader::RT_TABLE_MAIN) && !hops.is_empty();
    main.then_some(Decoded { dest, hops, multipath: multipath.is_some(), nexthop, metric })
}

fn next_hop(hop: &RouteNextHop) -> Hop {
    Hop { oif: hop.interface_index, gateway: gateway(&hop.attributes) }
}

/// A route that leaves by the device with this index or leads into the overlay. One with several next hops, which is
/// none of ours, is shown with its first; one of IPv6 without a gateway, because the kernel deletes only the next hop that is named.
pub fn route(message: &RouteMessage, family: AddressFamily, index: Option<u32>, scope: &Scope) -> Option<Route> {
    let route = decode(message, family)?;
    let leaves_by_ours = route.hops.iter().any(|hop| Some(hop.oif) == index);
    if !(leaves_by_ours || scope.covers(route.dest)) || is_kernels_own(route.dest) {
        return None;
    }
    let (hop, is_v6) = (route.hops.first()?, family == AddressFamily::Inet6);
    let ours = Some(hop.oif) == index && !route.multipath;
    let oif = match (message.header.kind, route.nexthop) {
        (RouteType::Unicast, Some(id)) => Oif::Nexthop(id),
        (RouteType::Unicast, None) if ours => Oif::Ours,
        (RouteType::Unicast, None) => Oif::Other(hop.oif),
        (kind, _) => Oif::Special(kind.into()),
    };
    Some(Route {
        dest: route.dest,
        gateway: hop.gateway.filter(|_| matches!(oif, Oif::Ours | Oif::Other(_)) && !(route.multipath && is_v6)),
        oif,
        onlink: message.header.flags.contains(RouteFlags::Onlink),
        metric: route.metric,
        protocol: message.header.protocol.into(),
    })
}

/// IPv6 link-local and multicast routes, which come with every interface.
fn is_kernels_own(dest: IpNet) -> bool {
    match dest.addr() {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast(),
    }
}

/// The next hops of a default route; nothing for other routes.
pub fn default_routes(message: &RouteMessage, family: AddressFamily) -> Vec<DefaultRoute> {
    if message.header.destination_prefix_length != 0 {
        return vec![];
    }
    let leads_on = message.header.kind == RouteType::Unicast;
    let route = decode(message, family).filter(|_| leads_on);
    let Some(route) = route else { return vec![] };
    let (metric, is_v6) = (route.metric, family == AddressFamily::Inet6);
    route.hops.iter().map(|hop| DefaultRoute { oif: hop.oif, gateway: hop.gateway, metric, is_v6 }).collect()
}

/// An IPv4 route, as far as it tells who is on a link. One with several next hops leads to no single one, and on a link that
/// is not said to be one by the route's scope the kernel takes no gateway.
pub fn link_route(message: &RouteMessage) -> Option<LinkRoute> {
    let route = decode(message, AddressFamily::Inet)?;
    let IpNet::V4(dest) = route.dest else { return None };
    let is_link = message.header.kind == RouteType::Unicast && message.header.scope == RouteScope::Link;
    let link = match &route.hops[..] {
        [Hop { oif, gateway: None }] if is_link && *oif != 0 => Some(*oif),
        _ => None,
    };
    Some(LinkRoute { dest, metric: route.metric, link })
}

/// The way by which a looked up route leaves; `None` for a blackhole and its like.
pub fn way_out(message: &RouteMessage) -> Option<WayOut> {
    let leads_on = matches!(
        message.header.kind,
        RouteType::Unicast | RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast
    );
    let index = oif(&message.attributes).filter(|_| leads_on)?;
    let source = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => ip(address),
        _ => None,
    });
    Some(WayOut { index, source })
}

fn oif(attributes: &[RouteAttribute]) -> Option<u32> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn unspecified(family: AddressFamily) -> IpAddr {
    if family == AddressFamily::Inet6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}
