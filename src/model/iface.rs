//! The external interface: the one that carries tunnel packets, and the address others reach this host at.

use super::links::Links;
use super::mac::VtepMac;
use ipnet::{IpNet, Ipv4Net};
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
    /// Index of the bridge or bond that it is a port of.
    pub controller: Option<u32>,
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

/// How a packet leaves the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WayOut {
    /// Index of the interface.
    pub index: u32,
    /// The address that the kernel gives it as its source.
    pub source: Option<IpAddr>,
}

/// The host's interfaces and default routes at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostView {
    /// All interfaces.
    pub interfaces: Vec<Interface>,
    /// The default routes of table main, one entry a next hop, best metric first.
    pub default_routes: Vec<DefaultRoute>,
    /// The addresses on their links.
    pub links: Links,
    /// The UDP port that the kernel gives a VXLAN device for which none is asked (`udp_port` of the module `vxlan`); `None`
    /// while the module is not loaded.
    pub vxlan_port: Option<u16>,
}

impl HostView {
    /// The IPv4 addresses with their networks on all interfaces but the one named `except`, by interface name.
    pub fn connected<'h>(&'h self, except: &'h str) -> impl Iterator<Item = (&'h str, Ipv4Net)> {
        let others = self.interfaces.iter().filter(move |interface| interface.name != except);
        others.flat_map(|interface| {
            interface.addresses.iter().filter_map(|address| match address.net {
                IpNet::V4(net) => Some((interface.name.as_str(), net)),
                IpNet::V6(_) => None,
            })
        })
    }
}

/// How the operator wants the external interface to be found; all empty means the default route's.
#[derive(Debug, Clone, Default)]
pub struct IfaceRules {
    /// `--iface`: names or addresses, the first that fits.
    pub names: Vec<String>,
    /// `--iface-regex`: tried after those, against addresses first, then names.
    pub regexes: Vec<Regex>,
    /// `--iface-can-reach`: tried last.
    pub can_reach: Option<IpAddr>,
    /// `--public-ip`: what others use to reach this host, if it is not the interface's address.
    pub public_ip: Option<Ipv4Addr>,
}

impl IfaceRules {
    fn is_default(&self) -> bool {
        self.names.is_empty() && self.regexes.is_empty() && self.can_reach.is_none()
    }
}

/// The interface that carries tunnel packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalInterface {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Hardware address, if it has one.
    pub mac: Option<VtepMac>,
    /// The address tunnel packets are sent from.
    pub address: Ipv4Addr,
    /// The address others send theirs to.
    pub public_ip: Ipv4Addr,
}

/// No interface fits; says what was looked for and what there is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no external interface: {wanted}; candidates: {candidates}")]
pub struct NoInterface {
    wanted: String,
    candidates: String,
}

/// Chooses the external interface. `reach` is the way by which `can_reach` is reached.
///
/// # Errors
/// When none fits yet: names what was looked for and all candidates.
pub fn choose(rules: &IfaceRules, host: &HostView, reach: Option<WayOut>) -> Result<ExternalInterface, NoInterface> {
    let by_flag = || {
        let by_name = rules.names.iter().find_map(|name| by_name_or_address(host, name));
        let by_regex = || rules.regexes.iter().find_map(|regex| by_regex(host, regex));
        let by_reach = || by_way_out(host, reach?);
        by_name.or_else(by_regex).or_else(by_reach)
    };
    let by_default = || {
        let local = rules.public_ip.and_then(|ip| by_address(host, ip));
        local.or_else(|| default_routes(host).find_map(|index| by_index(host, index)))
    };
    let chosen = if rules.is_default() { by_default() } else { by_flag() };
    let (interface, address) =
        chosen.ok_or_else(|| NoInterface { wanted: describe_wanted(rules), candidates: describe_candidates(host) })?;
    Ok(external(interface, address, rules.public_ip))
}

impl ExternalInterface {
    /// The same interface in a later view: it stays pinned by name, and keeps its address while that is there.
    /// `None` while it has gone or has no address.
    pub fn follow(&self, host: &HostView, public_ip: Option<Ipv4Addr>) -> Option<ExternalInterface> {
        let interface = host.interfaces.iter().find(|interface| interface.name == self.name)?;
        let kept = usable(interface).find(|ip| *ip == self.address);
        Some(external(interface, kept.or_else(|| best_address(interface))?, public_ip))
    }
}

fn external(interface: &Interface, address: Ipv4Addr, public_ip: Option<Ipv4Addr>) -> ExternalInterface {
    ExternalInterface {
        index: interface.index,
        name: interface.name.clone(),
        mtu: interface.mtu,
        mac: interface.mac,
        address,
        public_ip: public_ip.unwrap_or(address),
    }
}

/// Interfaces that may carry tunnel packets: all but flannel's own devices.
fn candidates(host: &HostView) -> impl Iterator<Item = &Interface> {
    host.interfaces.iter().filter(|interface| !interface.name.starts_with("flannel"))
}

/// Its IPv4 addresses that others can reach it at.
fn usable(interface: &Interface) -> impl Iterator<Item = Ipv4Addr> {
    ranked(interface).map(|(_, ip)| ip)
}

/// Global before link-local, permanent before dynamic, as flannel ranks them.
fn best_address(interface: &Interface) -> Option<Ipv4Addr> {
    ranked(interface).min_by_key(|(rank, _)| *rank).map(|(_, ip)| ip)
}

fn ranked(interface: &Interface) -> impl Iterator<Item = ((bool, bool, bool), Ipv4Addr)> {
    const SCOPE_HOST: u8 = 254;
    interface.addresses.iter().filter_map(|address| match address.net.addr() {
        IpAddr::V4(ip) if address.scope < SCOPE_HOST && !address.deprecated && !ip.is_loopback() => {
            Some(((address.scope != 0 || ip.is_link_local(), !address.permanent, address.temporary), ip))
        }
        _ => None,
    })
}

type Chosen<'h> = Option<(&'h Interface, Ipv4Addr)>;

fn by_index(host: &HostView, index: u32) -> Chosen<'_> {
    let interface = candidates(host).find(|interface| interface.index == index)?;
    Some((interface, best_address(interface)?))
}

fn by_way_out(host: &HostView, way: WayOut) -> Chosen<'_> {
    let (interface, best) = by_index(host, way.index)?;
    let source = usable(interface).find(|ip| way.source == Some(IpAddr::V4(*ip)));
    Some((interface, source.unwrap_or(best)))
}

fn by_address(host: &HostView, address: Ipv4Addr) -> Chosen<'_> {
    let interface = candidates(host).find(|interface| usable(interface).any(|ip| ip == address))?;
    Some((interface, address))
}

fn by_name_or_address<'h>(host: &'h HostView, name: &str) -> Chosen<'h> {
    if let Ok(address) = name.parse() {
        return by_address(host, address);
    }
    let interface = candidates(host).find(|interface| interface.name == name)?;
    Some((interface, best_address(interface)?))
}

fn by_regex<'h>(host: &'h HostView, regex: &Regex) -> Chosen<'h> {
    let matching = |interface: &'h Interface| {
        let matching = ranked(interface).filter(|(_, ip)| regex.is_match(&ip.to_string()));
        matching.min_by_key(|(rank, _)| *rank).map(|(_, ip)| (interface, ip))
    };
    let by_name = || candidates(host).find(|i| regex.is_match(&i.name)).and_then(|i| Some((i, best_address(i)?)));
    candidates(host).find_map(matching).or_else(by_name)
}

/// The interfaces of the best IPv4 default routes, each next hop of a multipath route among them.
fn default_routes(host: &HostView) -> impl Iterator<Item = u32> {
    host.default_routes.iter().filter(|route| !route.is_v6).map(|route| route.oif)
}

fn describe_wanted(rules: &IfaceRules) -> String {
    let mut wanted = Vec::new();
    wanted.extend(rules.names.iter().map(|name| format!("--iface={name} is not there or has no IPv4 address")));
    wanted.extend(rules.regexes.iter().map(|regex| format!("--iface-regex={regex} matches none")));
    wanted.extend(
        rules.can_reach.map(|ip| format!("--iface-can-reach={ip} is not reached by an interface with an IPv4 address")),
    );
    if wanted.is_empty() {
        wanted
            .push("there is no IPv4 default route over an interface with an address (choose one with --iface)".into());
    }
    wanted.join(", ")
}

fn describe_candidates(host: &HostView) -> String {
    let shown: Vec<String> = candidates(host)
        .map(|interface| {
            let addresses: Vec<String> = usable(interface).map(|ip| ip.to_string()).collect();
            let text = if addresses.is_empty() { "without IPv4 address".into() } else { addresses.join(" ") };
            format!("{} {text}", interface.name)
        })
        .collect();
    if shown.is_empty() { "none".into() } else { shown.join(", ") }
}

impl fmt::Display for ExternalInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} mtu {}", self.name, self.address, self.mtu)?;
        if self.public_ip != self.address {
            write!(f, " public IP {}", self.public_ip)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> InterfaceAddress {
        let net: IpNet = text.parse().unwrap();
        let scope = if net.addr().is_loopback() { 254 } else { 0 };
        InterfaceAddress { net, scope, permanent: true, deprecated: false, temporary: false }
    }

    fn interface(index: u32, name: &str, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|text| address(text)).collect();
        Interface { index, name: name.into(), mtu: 1500, mac: None, up: true, controller: None, addresses }
    }

    fn route(oif: u32) -> DefaultRoute {
        DefaultRoute { oif, gateway: None, metric: 0, is_v6: false }
    }

    fn host() -> HostView {
        HostView {
            interfaces: vec![
                interface(1, "lo", &["127.0.0.1/8"]),
                interface(2, "eth0", &["192.168.1.5/24", "192.168.1.6/24"]),
                interface(3, "eth1", &["10.9.0.5/16"]),
                interface(4, "wlan0", &[]),
                interface(5, "flannel.1", &["10.5.1.0/32"]),
            ],
            default_routes: vec![DefaultRoute { is_v6: true, ..route(3) }, route(4), route(2), route(3)],
            ..HostView::default()
        }
    }

    fn rules(names: &[&str], regexes: &[&str], reach: Option<&str>, public: Option<&str>) -> IfaceRules {
        IfaceRules {
            names: names.iter().map(|name| name.to_string()).collect(),
            regexes: regexes.iter().map(|regex| Regex::new(regex).unwrap()).collect(),
            can_reach: reach.map(|ip| ip.parse().unwrap()),
            public_ip: public.map(|ip| ip.parse().unwrap()),
        }
    }

    #[test]
    fn the_choice() {
        for (names, regexes, reach, public, expected) in [
            // Without a flag: the first default route whose interface has an address.
            (&[][..], &[][..], None, None, "eth0 192.168.1.5 mtu 1500"),
            // A public IP that is not here leaves the choice alone; one that is here makes it.
            (&[], &[], None, Some("203.0.113.9"), "eth0 192.168.1.5 mtu 1500 public IP 203.0.113.9"),
            (&[], &[], None, Some("10.9.0.5"), "eth1 10.9.0.5 mtu 1500"),
            (&["eth1"], &[], None, None, "eth1 10.9.0.5 mtu 1500"),
            (&["192.168.1.6"], &[], None, None, "eth0 192.168.1.6 mtu 1500"),
            (&["eth7", "wlan0", "eth1"], &["eth0"], None, None, "eth1 10.9.0.5 mtu 1500"),
            (&["eth7"], &["^10\\."], None, None, "eth1 10.9.0.5 mtu 1500"),
            (&[], &["nothing", "h1$"], None, None, "eth1 10.9.0.5 mtu 1500"),
            // Addresses first, of all interfaces, then names: eth0's name would match, too.
            (&[], &["0"], None, None, "eth1 10.9.0.5 mtu 1500"),
            (&[], &["192\\.168\\..*6$|eth1"], None, None, "eth0 192.168.1.6 mtu 1500"),
            (&["eth7"], &["nothing"], Some("10.9.0.1"), None, "eth1 10.9.0.5 mtu 1500"),
            (&["eth1"], &[], None, Some("203.0.113.9"), "eth1 10.9.0.5 mtu 1500 public IP 203.0.113.9"),
        ] {
            let chosen =
                choose(&rules(names, regexes, reach, public), &host(), Some(WayOut { index: 3, source: None }));
            assert_eq!(chosen.unwrap().to_string(), expected, "{names:?} {regexes:?} {reach:?} {public:?}");
        }
    }

    #[test]
    fn when_none_fits_it_says_what_there_is() {
        for (names, regexes, reach, says) in [
            (&["eth7"][..], &[][..], None, "--iface=eth7 is not there"),
            (&["wlan0"], &[], None, "--iface=wlan0"),
            (&["flannel.1"], &[], None, "--iface=flannel.1"),
            (&[], &["^10\\.5\\."], None, "--iface-regex=^10\\.5\\. matches none"),
            (&[], &[], Some("1.1.1.1"), "--iface-can-reach=1.1.1.1"),
        ] {
            let error = choose(&rules(names, regexes, reach, None), &host(), None).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert!(
                error.contains("eth0 192.168.1.5 192.168.1.6, eth1 10.9.0.5, wlan0 without IPv4 address"),
                "{error}"
            );
        }
        let nothing = choose(&IfaceRules::default(), &HostView::default(), None).unwrap_err();
        assert!(nothing.to_string().contains("no IPv4 default route"));
    }

    #[test]
    fn addresses_are_ranked() {
        let mut nic = interface(2, "eth0", &["169.254.0.9/16", "10.0.0.1/24", "10.0.0.2/24", "10.0.0.3/24"]);
        nic.addresses[1].deprecated = true;
        nic.addresses[2].permanent = false;
        assert_eq!(best_address(&nic), Some(Ipv4Addr::new(10, 0, 0, 3)));
        nic.addresses.truncate(1);
        assert_eq!(best_address(&nic), Some(Ipv4Addr::new(169, 254, 0, 9)));
    }

    #[test]
    fn a_pattern_takes_the_best_of_the_addresses_it_matches() {
        let mut host = host();
        let addresses = &mut host.interfaces[1].addresses;
        *addresses =
            ["10.0.0.1/24", "169.254.0.9/16", "10.0.0.2/24", "10.0.0.3/24", "172.16.0.1/24"].map(address).into();
        addresses[0].deprecated = true;
        addresses[2].permanent = false;
        for (regex, expected) in [("^1[60]", "10.0.0.3"), ("^169", "169.254.0.9"), ("^10.*2$", "10.0.0.2")] {
            let chosen = choose(&rules(&[], &[regex], None, None), &host, None).unwrap();
            assert_eq!((chosen.name.as_str(), chosen.address.to_string().as_str()), ("eth0", expected), "{regex}");
        }
    }

    #[test]
    fn the_address_is_the_one_that_reaches() {
        let rules = rules(&[], &[], Some("192.168.1.1"), None);
        for (source, expected) in [
            (Some("192.168.1.6"), "192.168.1.6"),
            (Some("192.168.1.7"), "192.168.1.5"),
            (Some("fd00::1"), "192.168.1.5"),
            (None, "192.168.1.5"),
        ] {
            let way = WayOut { index: 2, source: source.map(|ip| ip.parse().unwrap()) };
            assert_eq!(choose(&rules, &host(), Some(way)).unwrap().address.to_string(), expected, "{way:?}");
        }
    }

    #[test]
    fn a_pinned_interface_keeps_its_address_while_that_is_there() {
        let mut host = host();
        let chosen = choose(&rules(&["192.168.1.6"], &[], None, None), &host, None).unwrap();
        host.interfaces[1].index = 9;
        let followed = chosen.follow(&host, None).unwrap();
        assert_eq!((followed.index, followed.address), (9, chosen.address));
        host.interfaces[1].addresses.pop();
        assert_eq!(chosen.follow(&host, None).unwrap().address, Ipv4Addr::new(192, 168, 1, 5));
        host.interfaces.remove(1);
        assert_eq!(chosen.follow(&host, None), None);
    }
}
