//! The external interface: the one that carries tunnel packets, and the address others reach this host at.

use super::mac::VtepMac;
use ipnet::IpNet;
use regex::Regex;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// A network interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Hardware address, if it is an Ethernet one.
    pub mac: Option<VtepMac>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address with its prefix length (host bits kept).
    pub net: IpNet,
    /// Kernel scope (`RT_SCOPE_*`): 0 global, 253 link, 254 host.
    pub scope: u8,
    /// Not configured by DHCP or router advertisements with a lifetime.
    pub permanent: bool,
    /// Past its preferred lifetime.
    pub deprecated: bool,
    /// IPv6 privacy address (`IFA_F_SECONDARY`/`IFA_F_TEMPORARY`); for IPv4 a secondary address, which is fine to use.
    pub temporary: bool,
}

/// One next hop of a default route in table main.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Index of the outgoing interface.
    pub oif: u32,
    /// Its gateway, if it has one.
    pub gateway: Option<IpAddr>,
    /// Priority; the lowest is used first.
    pub metric: u32,
    /// Whether it is an IPv6 route.
    pub is_v6: bool,
}

/// The host's interfaces and default routes at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostView {
    /// All interfaces.
    pub interfaces: Vec<Interface>,
    /// The default routes of table main, one entry a next hop, best metric first.
    pub default_routes: Vec<DefaultRoute>,
}
