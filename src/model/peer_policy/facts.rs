//! The facts by which a lease is judged apart from other leases: the overlay, and what this host itself needs.

use super::Endpoint;
use crate::model::iface::{ExternalInterface, HostView};
use crate::model::lease::Lease;
use crate::model::mac::VtepMac;
use crate::model::subnet::overlap;
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// An address with the words for it: `an endpoint of etcd`.
pub type Needed = (String, IpAddr);

/// The facts by which a lease is judged apart from other leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The overlay; `None` refuses everything.
    pub network: Option<IpNet>,
    /// Our own subnet.
    pub own_subnet: Option<Ipv4Net>,
    /// Our own MAC.
    pub own_mac: Option<VtepMac>,
    /// All addresses of this host, our public IP among them, but not those on our own device.
    pub own_addresses: BTreeSet<Ipv4Addr>,
    /// The networks connected to other interfaces than our device, by interface name.
    pub connected: Vec<(String, Ipv4Net)>,
    /// Addresses that this host's tunnel and its way to the store depend on.
    pub underlay: Vec<Needed>,
}

/// The addresses that this host depends on: its own on the external interface, next hops, the store's endpoints. A subnet
/// that holds one of them works for nobody: not as a peer's, and not as our own.
pub fn underlay(nic: &ExternalInterface, host: &HostView, endpoints: &[IpAddr]) -> Vec<Needed> {
    let mut needed = vec![(format!("the address of {}", nic.name), nic.address.into())];
    if nic.public_ip != nic.address {
        needed.push(("the public IP of this host".to_owned(), nic.public_ip.into()));
    }
    let gateways = host.default_routes.iter().filter_map(|route| route.gateway);
    needed.extend(gateways.map(|ip| ("the next hop of a default route".to_owned(), ip)));
    needed.extend(endpoints.iter().map(|ip| ("an endpoint of etcd".to_owned(), *ip)));
    needed
}

/// The first of these addresses that lies in a subnet, in words.
pub fn needed_inside(needed: &[Needed], subnet: Ipv4Net) -> Option<String> {
    let inside = |(_, ip): &&Needed| matches!(ip, IpAddr::V4(ip) if subnet.contains(ip));
    needed.iter().find(inside).map(|(what, ip)| format!("{ip}, {what}"))
}

impl Facts {
    /// The connected networks that reach over more than one host's subnet of the overlay, by interface name: no reason
    /// to refuse a peer, but what they have where a peer's subnet is cannot be reached from this host.
    pub fn wider_networks(&self) -> impl Iterator<Item = (&str, Ipv4Net)> {
        let one_host = self.own_subnet.map_or(0, |own| own.prefix_len());
        let overlay = self.network;
        let networks = self.connected.iter().map(|(name, net)| (name.as_str(), net.trunc()));
        networks.filter(move |(_, net)| {
            net.prefix_len() < one_host && overlay.is_some_and(|overlay| overlap((*net).into(), overlay))
        })
    }

    /// The address of the underlay that lies in our own subnet, in words, if there is one. With that subnet this host
    /// cuts itself off as soon as containers use it.
    pub fn own_subnet_objection(&self) -> Option<String> {
        needed_inside(&self.underlay, self.own_subnet?)
    }
}

/// Why an address must not lie in a peer's subnet. The number is an index into the list of that name.
#[derive(Debug, Clone, Copy)]
enum Why {
    Connected(usize),
    Own,
    Underlay(usize),
}

/// Facts, indexed: a lease is judged without a look at each of a host's thousand interfaces.
#[derive(Debug, Default)]
pub(super) struct Checks {
    pub(super) facts: Facts,
    /// The addresses that no peer's subnet may hold.
    needed: BTreeMap<Ipv4Addr, Why>,
}

impl Checks {
    pub(super) fn new(facts: Facts) -> Self {
        let mut needed = BTreeMap::new();
        for (index, (_, net)) in facts.connected.iter().enumerate() {
            needed.entry(net.addr()).or_insert(Why::Connected(index));
            needed.entry(net.network()).or_insert(Why::Connected(index));
        }
        for ip in &facts.own_addresses {
            needed.entry(*ip).or_insert(Why::Own);
        }
        for (index, (_, ip)) in facts.underlay.iter().enumerate() {
            if let IpAddr::V4(ip) = ip {
                needed.entry(*ip).or_insert(Why::Underlay(index));
            }
        }
        Checks { facts, needed }
    }

    /// Why a lease cannot be a peer, whatever the others are.
    pub(super) fn objection(&self, lease: &Lease, endpoint: Endpoint) -> Option<String> {
        self.subnet_objection(lease.subnet.v4).or_else(|| self.endpoint_objection(lease.subnet.v4, endpoint))
    }

    fn subnet_objection(&self, subnet: Ipv4Net) -> Option<String> {
        let facts = &self.facts;
        let inside =
            |network: &IpNet| network.contains(&IpNet::from(subnet)) && network.prefix_len() < subnet.prefix_len();
        if !facts.network.as_ref().is_some_and(inside) {
            let network = facts.network.map(|net| net.to_string()).unwrap_or_default();
            return Some(format!("its subnet is not inside the network {network}"));
        }
        if let Some(own) = facts.own_subnet.filter(|own| own.contains(&subnet) || subnet.contains(own)) {
            return Some(format!("its subnet overlaps ours, {own}"));
        }
        let (address, why) = self.needed.range(subnet.network()..=subnet.broadcast()).next()?;
        Some(match why {
            Why::Connected(index) => {
                let (name, net) = &facts.connected[*index];
                format!("its subnet holds {net}, which is on this host's {name}")
            }
            Why::Own => format!("its subnet holds {address}, an address of this host"),
            Why::Underlay(index) => format!("its subnet holds {address}, {}", facts.underlay[*index].0),
        })
    }

    fn endpoint_objection(&self, subnet: Ipv4Net, endpoint: Endpoint) -> Option<String> {
        let (facts, ip) = (&self.facts, endpoint.address);
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0 {
            return Some(format!("its PublicIP {ip} is not the address of a host"));
        }
        if facts.own_addresses.contains(&ip) {
            return Some(format!("its PublicIP {ip} is ours"));
        }
        if let Some(own) = facts.own_subnet.filter(|own| own.contains(&ip)) {
            return Some(format!("its PublicIP {ip} lies in our subnet, {own}"));
        }
        if subnet.contains(&ip) {
            return Some(format!("its PublicIP {ip} lies in its own subnet"));
        }
        let mac = endpoint.mac?;
        if !mac.is_usable() {
            return Some(format!("its VtepMAC {mac} is not the address of a host"));
        }
        (facts.own_mac == Some(mac)).then(|| format!("its VtepMAC {mac} is ours"))
    }
}
