//! VXLAN: each host is a tunnel endpoint with its own MAC. For each peer the kernel holds a route, an ARP entry and an FDB
//! entry.
//!
//! One packet from a container on this host (10.5.1.7) to a container on a peer (10.5.2.9) takes these steps:
//!
//! 1. **Route.** The container sends the packet to its bridge, and the host forwards it. The route `10.5.2.0/24 via 10.5.2.0
//!    dev flannel.1 onlink` matches the destination. The gateway is the first address of the peer's subnet, which is the
//!    inner address of the peer's tunnel endpoint.
//! 2. **ARP.** The device needs a destination MAC. The permanent neighbour `10.5.2.0 lladdr 0e:00:00:00:00:02` is the MAC of
//!    the peer's tunnel endpoint, so no ARP request is sent. The packet becomes an Ethernet frame to that MAC.
//! 3. **FDB.** The device needs to know which host has that MAC. The FDB entry `0e:00:00:00:00:02 dst 192.168.0.2` is the
//!    peer's address in the underlay. The frame is sent as UDP payload to 192.168.0.2, with the VNI in the VXLAN header.
//! 4. **Peer.** The peer's kernel receives the UDP packet at the port of its device, finds the device by the VNI, and
//!    removes the outer headers. The MAC is that of its own device, so the peer routes the packet to its bridge and the
//!    container.
//!
//! With DirectRouting and a peer on the same link, the route is `10.5.2.0/24 via 192.168.0.2 dev eth0` instead, and the packet
//! is sent without a tunnel.

use super::{Backend, Entries, OwnEntries};
use crate::model::backend_data::VxlanData;
use crate::model::config::ConfigErrors;
use crate::model::device::{self, Device, DeviceWant, Link};
use crate::model::entry::{Address, FdbEntry, Neighbor, Oif, Route};
use crate::model::go_json::GoObject;
use crate::model::iface::{ExternalInterface, HostView};
use crate::model::kernel_state::Have;
use crate::model::lease::{Lease, LeaseAttrs, Record, Revision};
use crate::model::mac::VtepMac;
use crate::model::peer_policy::{Endpoint, Reading};
use crate::model::subnet::SubnetKey;
use ipnet::{IpNet, Ipv4Net};
use serde::de::DeserializeOwned;
use smallvec::smallvec;
use std::net::{IpAddr, Ipv4Addr};

/// The name of the backend in configs and leases.
pub const KIND: &str = "vxlan";

/// Bytes that tunnelling adds to a packet over IPv4: outer IP 20, UDP 8, VXLAN 8, inner Ethernet 14.
pub const OVERHEAD: u32 = 50;

/// The UDP port that the kernel's module `vxlan` uses by default. It is older than the port that IANA assigned, 4789.
const DEFAULT_PORT: u16 = 8472;

/// The smallest MTU with which IPv4 works (RFC 791).
const SMALLEST_MTU: u32 = 68;

/// The longest name, in bytes, that Linux gives a device (IFNAMSIZ without its end).
const LONGEST_DEVICE_NAME: usize = 15;

/// The VNIs with which the device's name is not too long. VXLAN itself has 24 bits for them.
const VNI_RANGE: &str = "a number from 0 to 9999999";

/// The VXLAN backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    vni: u32,
    /// 0: the kernel's default, usually 8472.
    port: u16,
    /// 0: that of the external interface.
    mtu: u32,
    gbp: bool,
    learning: bool,
    direct_routing: bool,
}

impl Default for Vxlan {
    fn default() -> Self {
        Vxlan { vni: 1, port: 0, mtu: 0, gbp: false, learning: false, direct_routing: false }
    }
}

impl Vxlan {
    /// Reads the members of the config's Backend.
    ///
    /// # Errors
    /// All that are wrong, each with its value and what would be right.
    pub fn from_params(params: &GoObject) -> Result<Self, ConfigErrors> {
        let mut problems = Vec::new();
        let vni: Option<u32> = take(&mut problems, params, "VNI", VNI_RANGE);
        let port: Option<u16> = take(&mut problems, params, "Port", "a UDP port from 0 to 65535");
        let mtu: Option<u32> = take(&mut problems, params, "MTU", "a number of bytes, or 0");
        let gbp: Option<bool> = take(&mut problems, params, "GBP", "true or false");
        let learning: Option<bool> = take(&mut problems, params, "Learning", "true or false");
        let direct: Option<bool> = take(&mut problems, params, "DirectRouting", "true or false");
        if let Some(vni) = vni.filter(|vni| device_name(*vni).len() > LONGEST_DEVICE_NAME) {
            problems.push(format!("VNI is {vni}, not {VNI_RANGE}: {} is too long for Linux", device_name(vni)));
        }
        let smallest = SMALLEST_MTU + OVERHEAD;
        if let Some(mtu) = mtu.filter(|mtu| *mtu != 0 && !(smallest..=65535).contains(mtu)) {
            problems.push(format!("MTU is {mtu}, not 0 or {smallest} to 65535 bytes"));
        }
        if !problems.is_empty() {
            return Err(ConfigErrors(problems.iter().map(|p| format!("Backend.{p}")).collect()));
        }
        Ok(Vxlan {
            vni: vni.unwrap_or(1),
            port: port.unwrap_or(0),
            mtu: mtu.unwrap_or(0),
            gbp: gbp.unwrap_or(false),
            learning: learning.unwrap_or(false),
            direct_routing: direct.unwrap_or(false),
        })
    }
}

fn device_name(vni: u32) -> String {
    format!("flannel.{vni}")
}

fn take<T: DeserializeOwned>(problems: &mut Vec<String>, params: &GoObject, name: &str, expected: &str) -> Option<T> {
    params.get(name, expected).unwrap_or_else(|problem| {
        problems.push(problem);
        None
    })
}

impl Backend for Vxlan {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn device_name(&self) -> String {
        device_name(self.vni)
    }

    fn routes_directly(&self) -> bool {
        self.direct_routing
    }

    fn network_id(&self) -> u32 {
        self.vni
    }

    fn attrs(&self, public_ip: Ipv4Addr, mac: VtepMac) -> LeaseAttrs {
        LeaseAttrs {
            public_ip,
            public_ipv6: None,
            backend_type: KIND.into(),
            backend_data: Some(VxlanData { vni: Some(self.vni), mac }.to_json().into()),
            backend_v6_data: None,
        }
    }

    fn read(&self, lease: &Lease) -> Reading {
        let attrs = &lease.attrs;
        if !attrs.backend_type.eq_ignore_ascii_case(KIND) {
            // A reservation may name a host before that host has said how it is reached.
            let pending = lease.lease_id.is_none() && attrs.backend_type.is_empty();
            return if pending { Reading::Pending } else { Reading::OtherBackend };
        }
        let Some(data) = &attrs.backend_data else {
            return match lease.lease_id {
                None => Reading::Pending,
                Some(_) => Reading::Bad("BackendData is missing: the VtepMAC is not known".into()),
            };
        };
        match data.vxlan() {
            Err(reason) => Reading::Bad(reason),
            Ok(VxlanData { vni: Some(vni), .. }) if vni != self.vni => {
                Reading::Bad(format!("its VNI {vni} is not ours, {}", self.vni))
            }
            Ok(data) => Reading::Endpoint(Endpoint { address: attrs.public_ip, mac: Some(data.mac) }),
        }
    }

    fn recover(&self, have: &Have) -> Vec<Record> {
        let routes = have.routes.values().flatten();
        let lease = |route: &Route| {
            // No key names a single address.
            let IpNet::V4(subnet) = route.dest else { return None };
            if subnet.prefix_len() == 32 {
                return None;
            }
            let mac = have.neighbors.get(&route.dest.network()).filter(|neighbor| neighbor.permanent)?.mac?;
            let IpAddr::V4(address) = *have.fdb.get(&mac)?.first()? else { return None };
            let direct = matches!(route.oif, Oif::Other(_)) && route.gateway == Some(address.into());
            if !direct && !route.has_flannel_shape() {
                return None;
            }
            let (subnet, attrs) = (SubnetKey::v4(subnet), self.attrs(address, mac));
            let content = Ok(Lease { subnet, attrs, lease_id: None, created: Revision::MAX, modified: 0 });
            Some(Record { name: subnet.to_string().into(), content })
        };
        routes.filter_map(lease).collect()
    }

    fn mtu(&self, nic: &ExternalInterface) -> u32 {
        // The kernel clips an MTU above the lower device's silently, so what is written is what really holds.
        let outer = if self.mtu == 0 { nic.mtu } else { self.mtu.min(nic.mtu) };
        outer.saturating_sub(OVERHEAD).max(SMALLEST_MTU)
    }

    fn interface_complaint(&self, nic: &ExternalInterface) -> Option<String> {
        let (name, mtu, smallest) = (&nic.name, nic.mtu, SMALLEST_MTU + OVERHEAD);
        (mtu < smallest).then(|| {
            format!(
                "the external interface {name} has MTU {mtu}, VXLAN needs {smallest}: run: ip link set {name} mtu 1500"
            )
        })
    }

    fn own_entries(&self, nic: &ExternalInterface, host: &HostView, subnet: Ipv4Net, mac: VtepMac) -> OwnEntries {
        let link = Link::Vxlan(device::Vxlan {
            vni: self.vni,
            local: Some(nic.address.into()),
            lower: nic.index,
            port: if self.port == 0 { host.vxlan_port.unwrap_or(DEFAULT_PORT) } else { self.port },
            learning: self.learning,
            gbp: self.gbp,
            group: None,
            ttl: 0,
            ageing: 300,
        });
        let (name, mtu) = (self.device_name(), self.mtu(nic));
        let device = Device { name, mac: Some(mac), mtu, up: true, tx_checksum_off: false, link };
        let address = Address(IpNet::V4(Ipv4Net::from(subnet.network())));
        OwnEntries { device: DeviceWant::Is(device), entries: smallvec![address.into()] }
    }

    /// A peer on the same link keeps its ARP and FDB entries, although no packet uses them. So the change from one path to
    /// the other is a single message, and each route that is found in the kernel can be matched to its peer.
    fn entries(&self, subnet: Ipv4Net, endpoint: Endpoint, link: Option<u32>) -> Entries {
        let (ip, dst) = (IpAddr::V4(subnet.network()), IpAddr::V4(endpoint.address));
        let (gateway, oif, onlink) = match link.filter(|_| self.direct_routing) {
            Some(index) => (dst, Oif::Other(index), false),
            None => (ip, Oif::Ours, true),
        };
        let (gateway, protocol) = (Some(gateway), Route::protocol_for(subnet));
        let mut entries = Entries::new();
        if let Some(mac) = endpoint.mac {
            entries.push(Neighbor { ip, mac }.into());
            entries.push(FdbEntry { mac, dst }.into());
        }
        entries.push(Route { dest: subnet.into(), gateway, oif, onlink, metric: 0, protocol }.into());
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::read_config;
    use crate::model::entry::NeighborState;
    use crate::model::kernel_state::Entry;
    use crate::model::lease::Record;

    fn backend(text: &str) -> Result<Vxlan, ConfigErrors> {
        Vxlan::from_params(&GoObject::parse(text.as_bytes()).unwrap())
    }

    fn nic(mtu: u32) -> ExternalInterface {
        let address = "192.168.0.1".parse().unwrap();
        ExternalInterface { index: 2, name: "eth0".into(), mtu, mac: None, address, public_ip: address }
    }

    #[test]
    fn the_config_is_read_or_all_its_problems_named() {
        assert_eq!(backend("{}"), Ok(Vxlan::default()));
        let full = backend(r#"{"vni":7,"Port":4789,"MTU":1400,"GBP":true,"Learning":true}"#).unwrap();
        assert_eq!((full.vni, full.port, full.mtu, full.gbp, full.learning), (7, 4789, 1400, true, true));
        let problems = backend(r#"{"VNI":16777216,"Port":70000,"MTU":60,"GBP":"x"}"#).unwrap_err().to_string();
        for name in ["Backend.VNI is 16777216", "Backend.Port is 70000", "Backend.MTU is 60", "Backend.GBP is \"x\""] {
            assert!(problems.contains(name), "{problems}");
        }
        assert!(backend(r#"{"directRouting":true}"#).unwrap().routes_directly());
    }

    #[test]
    fn a_vni_is_as_long_as_the_name_of_a_device_allows() {
        let longest = backend(r#"{"VNI":9999999}"#).unwrap();
        assert_eq!(longest.device_name().len(), LONGEST_DEVICE_NAME);
        let problem = backend(r#"{"VNI":10000000}"#).unwrap_err().to_string();
        let says = "Backend.VNI is 10000000, not a number from 0 to 9999999: flannel.10000000 is too long for Linux";
        assert_eq!(problem, says);
    }

    #[test]
    fn the_problems_of_all_stages_are_named_at_once() {
        let text = br#"{"Network":"10.5.0.0/16","SubnetLen":40,"EnableIPv6":true,"Backend":{"Type":"udp"}}"#;
        let problems = read_config(text).map(|(_, backend)| backend.kind()).unwrap_err().0;
        let [subnet_len, ipv6, kind] = &problems[..] else { panic!("{problems:?}") };
        assert!(subnet_len.contains("SubnetLen is 40") && kind.contains("Backend Type \"udp\""), "{problems:?}");
        assert!(ipv6.contains("set EnableIPv6 to false"), "who is to do without IPv6 is not to set IPv6Network");
        let text = br#"{"Network":"10.5.0.0","Backend":{"Type":"vxlan","VNI":-1,"Port":-1}}"#;
        assert_eq!(read_config(text).map(|(_, backend)| backend.kind()).unwrap_err().0.len(), 3);
    }

    #[test]
    fn an_interface_with_a_tiny_mtu_is_of_no_use() {
        let backend = Vxlan::default();
        assert_eq!(backend.interface_complaint(&nic(118)), None);
        assert_eq!(backend.mtu(&nic(118)), SMALLEST_MTU);
        let says = backend.interface_complaint(&nic(117)).unwrap();
        assert!(says.starts_with("the external interface eth0 has MTU 117, VXLAN needs 118"), "{says}");
    }

    #[test]
    fn the_type_is_chosen_or_what_there_is_is_named() {
        let from = |backend: &str| {
            let text = format!(r#"{{"Network":"10.5.0.0/16"{backend}}}"#);
            read_config(text.as_bytes()).map(|(_, backend)| backend.kind()).map_err(|errors| errors.to_string())
        };
        assert_eq!(from(""), Ok("vxlan"));
        assert_eq!(from(r#","Backend":{"Type":"VXLAN"}"#), Ok("vxlan"));
        for (text, says) in [
            (r#","Backend":{}"#, "no Type"),
            (r#","Backend":{"Type":"udp"}"#, "\"udp\" is not one that this version has: vxlan"),
            (r#","EnableIPv6":true,"IPv6Network":"fc00::/48""#, "EnableIPv6"),
        ] {
            assert!(from(text).unwrap_err().contains(says), "{text}");
        }
    }

    #[test]
    fn the_mtu_is_that_of_the_interface_less_the_overhead() {
        for (configured, nic_mtu, expected) in
            [(0, 1500, 1450), (0, 9001, 8951), (1400, 1500, 1350), (9000, 1500, 1450)]
        {
            let backend = Vxlan { mtu: configured, ..Vxlan::default() };
            assert_eq!(backend.mtu(&nic(nic_mtu)), expected);
        }
    }

    #[test]
    fn what_is_published_is_flannels_json() {
        let attrs = Vxlan::default().attrs("192.168.64.3".parse().unwrap(), "c6:d2:32:6f:8f:44".parse().unwrap());
        let json = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
        assert_eq!(attrs.to_json(), json);
    }

    #[test]
    fn leases_are_read() {
        for (value, lease, expected) in [
            (
                r#"{"PublicIP":"192.168.0.2","BackendType":"vxlan","BackendData":{"VtepMAC":"0e:00:00:00:00:02"}}"#,
                1,
                "Endpoint",
            ),
            (
                r#"{"PublicIP":"192.168.0.2","BackendType":"vxlan","BackendData":{"VNI":2,"VtepMAC":"0e:00:00:00:00:02"}}"#,
                1,
                "VNI 2 is not ours, 1",
            ),
            (r#"{"PublicIP":"192.168.0.2","BackendType":"vxlan"}"#, 1, "BackendData is missing"),
            (r#"{"PublicIP":"192.168.0.2","BackendType":"vxlan","BackendData":null}"#, 0, "Pending"),
            (r#"{"PublicIP":"192.168.0.2"}"#, 0, "Pending"),
            (r#"{"PublicIP":"192.168.0.2"}"#, 1, "OtherBackend"),
            (r#"{"PublicIP":"192.168.0.2","BackendType":"host-gw"}"#, 1, "OtherBackend"),
        ] {
            let id = crate::model::lease::LeaseId::new(lease);
            let record = Record::decode("10.5.2.0-24", value.as_bytes(), id, 1, 1);
            let reading = format!("{:?}", Vxlan::default().read(&record.content.unwrap()));
            assert!(reading.contains(expected), "{value}: {reading}");
        }
    }

    #[test]
    fn a_route_to_a_single_address_is_no_peers() {
        let mac = "0e:00:00:00:00:02".parse().unwrap();
        let mut have = Have { fdb: [(mac, [[192, 168, 0, 2].into()].into())].into(), ..Have::default() };
        for (dest, gateway, oif, onlink) in [
            ("10.5.2.0/24", "10.5.2.0", Oif::Ours, true),
            ("10.5.3.0/24", "192.168.0.2", Oif::Other(2), false),
            ("10.5.4.1/32", "10.5.4.1", Oif::Ours, true),
            ("10.5.5.1/32", "192.168.0.2", Oif::Other(2), false),
        ] {
            let (dest, gateway) = (dest.parse::<IpNet>().unwrap(), gateway.parse().ok());
            let route = Route { dest, gateway, oif, onlink, metric: 0, protocol: 100 };
            have.routes.insert(dest, [route].into());
            have.neighbors.insert(dest.network(), NeighborState { mac: Some(mac), permanent: true });
        }
        let names: Vec<String> = Vxlan::default().recover(&have).iter().map(|peer| peer.name.to_string()).collect();
        assert_eq!(names, ["10.5.2.0-24", "10.5.3.0-24"]);
    }

    fn lines(entries: Entries) -> Vec<String> {
        entries.iter().map(|entry| entry.to_string()).collect()
    }

    #[test]
    fn a_peer_needs_three_entries() {
        let endpoint = Endpoint { address: "192.168.0.2".parse().unwrap(), mac: "0e:00:00:00:00:02".parse().ok() };
        let entries = Vxlan::default().entries("10.5.2.0/24".parse().unwrap(), endpoint, Some(2));
        let Some(Entry::Route(route)) = entries.last() else { panic!("{entries:?}") };
        assert!(route.has_flannel_shape());
        let expected = [
            "neighbour 10.5.2.0 0e:00:00:00:00:02",
            "FDB entry 0e:00:00:00:00:02 dst 192.168.0.2",
            "route 10.5.2.0/24 via 10.5.2.0 onlink",
        ];
        assert_eq!(lines(entries), expected);
    }

    #[test]
    fn a_peer_on_the_same_link_is_routed_to_directly_if_the_config_says_so() {
        let endpoint = Endpoint { address: "192.168.0.2".parse().unwrap(), mac: "0e:00:00:00:00:02".parse().ok() };
        let backend = Vxlan { direct_routing: true, ..Vxlan::default() };
        let entries = |link| lines(backend.entries("10.5.2.0/24".parse().unwrap(), endpoint, link));
        assert_eq!(entries(Some(2))[2], "route 10.5.2.0/24 via 192.168.0.2 dev #2");
        assert_eq!(entries(None)[2], "route 10.5.2.0/24 via 10.5.2.0 onlink");
        assert_eq!(entries(Some(2))[..2], entries(None)[..2]);
    }

    #[test]
    fn neighbouring_routes_have_different_protocols() {
        let protocols: Vec<u8> =
            (0..86u8).map(|i| Route::protocol_for(Ipv4Net::new(Ipv4Addr::new(10, 5, i, 0), 24).unwrap())).collect();
        let distinct: std::collections::BTreeSet<&u8> = protocols.iter().collect();
        assert_eq!(distinct.len(), 86);
        assert!(protocols.iter().all(|p| (100..=185).contains(p)));
    }
}
