//! VXLAN: every host is a tunnel endpoint with a MAC of its own; for each peer there is an ARP entry (its inner
//! address to its MAC), an FDB entry (its MAC to its underlay address) and a route to its subnet.

use super::{Backend, OwnEntries, PeerEntries};
use crate::model::backend_data::VxlanData;
use crate::model::config::ConfigErrors;
use crate::model::go_json::GoObject;
use crate::model::iface::ExternalInterface;
use crate::model::kernel_state::{Device, Have, Oif, Route, Vxlan as VxlanParams};
use crate::model::lease::{Lease, LeaseAttrs, Record, Revision};
use crate::model::mac::VtepMac;
use crate::model::peer_policy::{Endpoint, Reading};
use crate::model::subnet::SubnetKey;
use ipnet::{IpNet, Ipv4Net};
use serde::de::DeserializeOwned;
use std::net::{IpAddr, Ipv4Addr};

/// The name of the backend in configs and leases.
pub const KIND: &str = "vxlan";

/// What tunnelling adds to a packet over IPv4, in bytes: outer IP 20, UDP 8, VXLAN 8, inner Ethernet 14.
pub const OVERHEAD: u32 = 50;

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
    /// 0: the kernel's default, 8472.
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

    fn own_entries(&self, nic: &ExternalInterface, subnet: Ipv4Net, mac: VtepMac) -> OwnEntries {
        let vxlan = VxlanParams {
            vni: self.vni,
            local: Some(nic.address.into()),
            lower: nic.index,
            port: self.port,
            learning: self.learning,
            gbp: self.gbp,
            group: None,
            ttl: 0,
            ageing: 300,
        };
        OwnEntries {
            device: Device {
                name: self.device_name(),
                mac,
                mtu: self.mtu(nic),
                up: true,
                tx_checksum_off: false,
                vxlan,
            },
            address: IpNet::V4(Ipv4Net::from(subnet.network())),
        }
    }

    /// A peer on the same link keeps its ARP and FDB entries, which no packet uses then: so the change from one way to the
    /// other is a single message, and what is found in the kernel tells of each route whose it is.
    fn peer_entries(&self, subnet: Ipv4Net, endpoint: Endpoint, link: Option<u32>) -> PeerEntries {
        let inner = IpAddr::V4(subnet.network());
        let (gateway, oif, onlink) = match link.filter(|_| self.direct_routing) {
            Some(index) => (endpoint.address.into(), Oif::Other(index), false),
            None => (inner, Oif::Ours, true),
        };
        let (gateway, protocol) = (Some(gateway), Route::protocol_for(subnet));
        PeerEntries {
            neighbor: endpoint.mac.map(|mac| (inner, mac)),
            fdb: endpoint.mac.map(|mac| (mac, endpoint.address.into())),
            route: Route { dest: subnet.into(), gateway, oif, onlink, metric: 0, protocol },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::read_config;
    use crate::model::kernel_state::Neighbor;
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
            have.neighbors.insert(dest.network(), Neighbor { mac: Some(mac), permanent: true });
        }
        let names: Vec<String> = Vxlan::default().recover(&have).iter().map(|peer| peer.name.to_string()).collect();
        assert_eq!(names, ["10.5.2.0-24", "10.5.3.0-24"]);
    }

    #[test]
    fn a_peer_needs_three_entries() {
        let endpoint = Endpoint { address: "192.168.0.2".parse().unwrap(), mac: "0e:00:00:00:00:02".parse().ok() };
        let entries = Vxlan::default().peer_entries("10.5.2.0/24".parse().unwrap(), endpoint, Some(2));
        assert_eq!(entries.neighbor, Some(("10.5.2.0".parse().unwrap(), "0e:00:00:00:00:02".parse().unwrap())));
        assert_eq!(entries.fdb, Some(("0e:00:00:00:00:02".parse().unwrap(), "192.168.0.2".parse().unwrap())));
        assert_eq!(entries.route.to_string(), "10.5.2.0/24 via 10.5.2.0 onlink");
        assert!(entries.route.has_flannel_shape());
    }

    #[test]
    fn a_peer_on_the_same_link_is_routed_to_directly_if_the_config_says_so() {
        let endpoint = Endpoint { address: "192.168.0.2".parse().unwrap(), mac: "0e:00:00:00:00:02".parse().ok() };
        let backend = Vxlan { direct_routing: true, ..Vxlan::default() };
        let entries = |link| backend.peer_entries("10.5.2.0/24".parse().unwrap(), endpoint, link);
        assert_eq!(entries(Some(2)).route.to_string(), "10.5.2.0/24 via 192.168.0.2 dev #2");
        assert_eq!(entries(None).route.to_string(), "10.5.2.0/24 via 10.5.2.0 onlink");
        assert_eq!((entries(Some(2)).neighbor, entries(Some(2)).fdb), (entries(None).neighbor, entries(None).fdb));
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
