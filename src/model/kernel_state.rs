//! The part of a host's network state that flanneld looks after: what the kernel should hold ([`Want`]), what it
//! does hold ([`Have`]), and which of that is ours to change ([`Scope`]).

use super::mac::VtepMac;
use ipnet::{IpNet, Ipv4Net};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// A VXLAN device as we make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `flannel.<VNI>`, or `flannel-v6.<VNI>` for an IPv6 overlay.
    pub name: String,
    /// The MAC of this host's tunnel endpoint.
    pub mac: VtepMac,
    /// Largest inner packet, in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether packets get their checksums before they reach it (`tx-checksum-ip-generic off`): slow, and needed where what is
    /// below spoils them. If it is not wanted it is left as it is.
    pub tx_checksum_off: bool,
    /// Tunnel parameters.
    pub vxlan: Vxlan,
}

/// Tunnel parameters of a VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 0 to 16777215.
    pub vni: u32,
    /// Source address of tunnel packets.
    pub local: Option<IpAddr>,
    /// Interface index of the device below.
    pub lower: u32,
    /// UDP destination port.
    pub port: u16,
    /// Whether the kernel learns FDB entries from received packets.
    pub learning: bool,
    /// Group based policy extension.
    pub gbp: bool,
    /// Multicast group or default remote; ours has none.
    pub group: Option<IpAddr>,
    /// TTL of tunnel packets; 0 lets the kernel choose.
    pub ttl: u8,
    /// Seconds after which learned FDB entries go; 300 is the kernel's default.
    pub ageing: u32,
}

/// A device that was found under our name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExistingDevice {
    /// A VXLAN device, with its interface index.
    Vxlan(u32, Device),
    /// Some other kind of device, with its interface index and kind.
    Other(u32, String),
}

/// An ARP or NDP entry on our device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbor {
    /// The inner MAC; `None` while unresolved.
    pub mac: Option<VtepMac>,
    /// Permanent entries are ours; others come from the kernel itself.
    pub permanent: bool,
}

/// Where a route leaves the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Oif {
    /// Our VXLAN device, whatever index it has now.
    Ours,
    /// Another interface, by index.
    Other(u32),
    /// As the nexthop object with this id says.
    Nexthop(u32),
    /// Not at all: a route of this type (`RTN_*`) other than unicast, such as blackhole.
    Special(u8),
}

/// A route in table main.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Destination, without host bits.
    pub dest: IpNet,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Outgoing interface.
    pub oif: Oif,
    /// Next hop is taken to be on the link, whatever the addresses say.
    pub onlink: bool,
    /// Priority; 0 is tried first (for IPv6 the kernel turns 0 into 1024).
    pub metric: u32,
    /// Who installed it (`RTPROT_*`): 2 is the kernel itself, 3 `boot`.
    pub protocol: u8,
}

/// The routes of ours are spread over these protocol numbers, which nobody has been assigned
/// (`/etc/iproute2/rt_protos`): the kernel's hash of routes mixes the protocol but not the gateway, so without this each
/// further route would cost a walk over all that are there.
const PROTOCOLS: std::ops::Range<u32> = 100..186;

/// The kernel's number for routes that swallow packets (`RTN_BLACKHOLE`).
pub const BLACKHOLE: u8 = 6;

/// The metric of our blackhole route: the last to be tried, so that the bridge's connected network goes before it.
pub const BLACKHOLE_METRIC: u32 = u32::MAX;

/// `RTPROT_KERNEL`: connected networks; never touched.
pub const PROTOCOL_KERNEL: u8 = 2;

impl Route {
    /// Equal in all that decides where packets go: everything but who installed it.
    pub fn same_path(&self, other: &Route) -> bool {
        Route { protocol: 0, ..*self } == Route { protocol: 0, ..*other }
    }

    /// What is sent to these addresses goes nowhere, unless another route leads there.
    pub fn blackhole(dest: IpNet, protocol: u8) -> Self {
        let oif = Oif::Special(BLACKHOLE);
        Route { dest, gateway: None, oif, onlink: false, metric: BLACKHOLE_METRIC, protocol }
    }

    /// The protocol number of our route to a subnet: neighbouring subnets have different ones.
    pub fn protocol_for(subnet: Ipv4Net) -> u8 {
        let index = u32::from(subnet.network()) >> (32 - subnet.prefix_len().max(1));
        (PROTOCOLS.start + index % (PROTOCOLS.end - PROTOCOLS.start)) as u8
    }

    /// Whether it leads through a gateway on the link of this interface and has the protocol number that ours would have.
    fn is_direct_of_ours(&self, nic: u32) -> bool {
        let direct = self.oif == Oif::Other(nic) && self.gateway.is_some() && !self.onlink && self.metric == 0;
        direct && matches!(self.dest, IpNet::V4(dest) if self.protocol == Route::protocol_for(dest))
    }

    /// The shape of flannel's overlay routes: onlink over our device, via the destination's own first address.
    pub fn has_flannel_shape(&self) -> bool {
        self.oif == Oif::Ours && self.onlink && self.gateway == Some(self.dest.network())
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Oif::Special(kind) = self.oif {
            write!(f, "{} ", type_name(kind))?;
        }
        write!(f, "{}", self.dest)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        match self.oif {
            Oif::Other(index) => write!(f, " dev #{index}")?,
            Oif::Nexthop(id) => write!(f, " nhid {id}")?,
            Oif::Ours | Oif::Special(_) => {}
        }
        if self.onlink {
            f.write_str(" onlink")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

/// As `ip route` names a type of route.
fn type_name(kind: u8) -> Cow<'static, str> {
    match kind {
        2 => "local".into(),
        BLACKHOLE => "blackhole".into(),
        7 => "unreachable".into(),
        8 => "prohibit".into(),
        9 => "throw".into(),
        other => format!("type {other}").into(),
    }
}

/// What the kernel should hold. All of it is keyed as the kernel keys it, so there is one wanted value per key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Want {
    /// Our VXLAN device; `None` until it is known what it should be.
    pub device: Option<Device>,
    /// Addresses on it.
    pub addresses: BTreeSet<IpNet>,
    /// Inner IP of a peer's VTEP to its MAC.
    pub neighbors: BTreeMap<IpAddr, VtepMac>,
    /// MAC of a peer's VTEP to its underlay address.
    pub fdb: BTreeMap<VtepMac, IpAddr>,
    /// Subnet of a peer to the way there.
    pub routes: BTreeMap<IpNet, Route>,
    /// Whether these are all peers. Until it is true, what no known peer has may belong to an unknown one.
    pub peers_complete: bool,
}

/// Several, but hardly ever more than one: that one lies in the list itself.
pub type Few<T> = SmallVec<[T; 1]>;

/// What the kernel holds, as far as it concerns us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Have {
    /// The device with our name.
    pub device: Option<ExistingDevice>,
    /// All its addresses but link-local ones.
    pub addresses: BTreeSet<IpNet>,
    /// All its neighbours.
    pub neighbors: BTreeMap<IpAddr, Neighbor>,
    /// All its permanent FDB entries.
    pub fdb: BTreeMap<VtepMac, Few<IpAddr>>,
    /// Routes in table main that leave by our device or lead into the overlay, by destination.
    pub routes: BTreeMap<IpNet, Few<Route>>,
}

impl Have {
    /// The MAC of the VXLAN device with our name, if it exists.
    pub fn device_mac(&self) -> Option<VtepMac> {
        match self.device.as_ref()? {
            ExistingDevice::Vxlan(_, device) => Some(device.mac),
            ExistingDevice::Other(..) => None,
        }
    }
}

/// What is ours to change or delete. Everything else belongs to somebody else and stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Name of our device.
    pub device: String,
    /// The overlay's networks.
    pub networks: Vec<IpNet>,
    /// Index of the external interface; 0 for none.
    pub nic: u32,
}

impl Scope {
    /// An address on our device is ours when it lies inside the overlay.
    pub fn owns_address(&self, address: &IpNet) -> bool {
        self.networks.iter().any(|network| network.contains(&address.addr()))
    }

    /// A route on our device is ours when it leads into the overlay or has flannel's own shape (which catches what
    /// an earlier Network left); a connected network never is. In the overlay a blackhole with our metric is ours, too,
    /// and a route on the external interface with our protocol number.
    pub fn owns_route(&self, route: &Route) -> bool {
        let on_device = route.oif == Oif::Ours && route.protocol != PROTOCOL_KERNEL;
        let blackhole = route.same_path(&Route::blackhole(route.dest, route.protocol));
        let beside = blackhole || route.is_direct_of_ours(self.nic);
        on_device && (self.covers(route.dest) || route.has_flannel_shape()) || beside && self.covers(route.dest)
    }

    /// Whether a destination lies inside the overlay.
    pub fn covers(&self, dest: IpNet) -> bool {
        self.networks.iter().any(|network| network.contains(&dest))
    }
}
