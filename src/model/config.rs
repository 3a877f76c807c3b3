//! The network config: what an operator puts at `<prefix>/config`.

use super::foreign::{QUOTED, invisible, shown};
use super::go_json::GoObject;
use super::subnet::{SubnetRange, number};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The network that all hosts share, as read from the store and checked.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The IPv4 overlay; `None` with `EnableIPv4: false`.
    pub ipv4: Option<Overlay>,
    /// The IPv6 overlay; `None` unless `EnableIPv6: true`.
    pub ipv6: Option<Overlay>,
    /// Rules by nftables instead of iptables.
    pub enable_nftables: bool,
    /// `None` when the config names no backend at all.
    pub backend: Option<BackendConfig>,
}

/// One address family's share of the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlay {
    /// All addresses of the overlay, without host bits.
    pub network: IpNet,
    /// The subnets that hosts may take.
    pub subnets: SubnetRange,
}

/// The `Backend` member: its type, and what only the backend itself understands.
#[derive(Debug, Clone)]
pub struct BackendConfig {
    /// `Type`, lower-cased as flannel compares it; empty when it is missing.
    pub kind: String,
    /// All members of the object.
    pub params: GoObject,
}

/// A config as far as it can be read, and what is wrong with it, one sentence each.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The config; an overlay with a problem is `None`, other members have their defaults instead.
    pub config: NetworkConfig,
    /// `EnableIPv4`.
    pub enable_ipv4: bool,
    /// `EnableIPv6`.
    pub enable_ipv6: bool,
    /// The problems, apart from those of the members of IPv6.
    pub problems: Vec<String>,
    /// The problems of the members of IPv6. They do not matter to a host without IPv6.
    pub ipv6_problems: Vec<String>,
}

/// Everything that is wrong with a config, one sentence each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// The differences between the families: names of the members and limits, as in flannel's `pkg/subnet/config.go`.
struct Rules {
    network: &'static str,
    min: &'static str,
    max: &'static str,
    len: &'static str,
    example: &'static str,
    usual_len: u8,
    longest_subnet: u8,
    longest_network: u8,
}

const IPV4: Rules = Rules {
    network: "Network",
    min: "SubnetMin",
    max: "SubnetMax",
    len: "SubnetLen",
    example: "\"10.5.0.0/16\"",
    usual_len: 24,
    longest_subnet: 30,
    longest_network: 28,
};

const IPV6: Rules = Rules {
    network: "IPv6Network",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    len: "IPv6SubnetLen",
    example: "\"fc00::/48\"",
    usual_len: 64,
    longest_subnet: 126,
    longest_network: 124,
};

impl NetworkConfig {
    /// Reads the config as Go's decoder does (see [`GoObject`]) and checks it.
    ///
    /// # Errors
    /// When the text is no JSON object. Other problems are in the draft, each with the member, its value and what would
    /// be right.
    pub fn draft(text: &[u8]) -> Result<Draft, ConfigErrors> {
        let object = GoObject::parse(text).map_err(|e| {
            let hidden = invisible(&String::from_utf8_lossy(text));
            let hidden = hidden.map(|what| format!("; it holds {what}, which editors do not show: remove it"));
            let (shown, hidden) = (shown(text, QUOTED), hidden.unwrap_or_default());
            ConfigErrors(vec![format!("it is not a JSON object ({e}): {shown}{hidden}")])
        })?;
        Ok(Problems(Vec::new()).draft(&object))
    }

    /// Reads the config as [`NetworkConfig::draft`] does, for a reader that has both families.
    ///
    /// # Errors
    /// All problems that were found, each with the member, its value and what would be right.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigErrors> {
        let Draft { config, mut problems, ipv6_problems, .. } = Self::draft(text)?;
        problems.extend(ipv6_problems);
        if problems.is_empty() { Ok(config) } else { Err(ConfigErrors(problems)) }
    }
}

/// Collects what is wrong while reading on with defaults.
struct Problems(Vec<String>);

impl Problems {
    fn draft(mut self, object: &GoObject) -> Draft {
        let on_v4 = self.take(object.get("EnableIPv4", "true or false")).unwrap_or(true);
        let on_v6 = self.take(object.get("EnableIPv6", "true or false")).unwrap_or(false);
        let enable_nftables = self.take(object.get("EnableNFTables", "true or false")).unwrap_or(false);
        if !on_v4 && !on_v6 {
            self.0.push("EnableIPv4 and EnableIPv6 are both false: one must be true".into());
        }
        let backend = self.take(object.object("Backend")).map(|params| {
            let kind: Option<String> = self.take(params.get("Type", "text")).map(|kind: String| kind.to_lowercase());
            BackendConfig { kind: kind.unwrap_or_default(), params }
        });
        let mut of_ipv6 = Problems(Vec::new());
        let config = NetworkConfig {
            ipv4: if on_v4 { self.overlay::<Ipv4Net>(object, &IPV4) } else { None },
            ipv6: if on_v6 { of_ipv6.overlay::<Ipv6Net>(object, &IPV6) } else { None },
            enable_nftables,
            backend,
        };
        Draft { config, enable_ipv4: on_v4, enable_ipv6: on_v6, problems: self.0, ipv6_problems: of_ipv6.0 }
    }

    fn overlay<N: Family>(&mut self, object: &GoObject, rules: &Rules) -> Option<Overlay> {
        let network = self.network::<N>(object, rules);
        if network.is_none() {
            self.forms::<N>(object, rules);
        }
        self.subnets::<N>(object, rules, network?)
    }

    fn network<N: Family>(&mut self, object: &GoObject, rules: &Rules) -> Option<IpNet> {
        let form = format!("a network such as {}", rules.example);
        let Some(text) = self.take(object.get::<String>(rules.network, &form)) else {
            if object.raw(rules.network).is_none() {
                self.0.push(format!("{} is missing: set {form}", rules.network));
            }
            return None;
        };
        let Some(network) = N::network(&text) else {
            self.0.push(format!("{} is \"{}\", not {form}", rules.network, shown(&text, QUOTED)));
            return None;
        };
        if network.prefix_len() == 0 {
            self.0.push(format!("{} is {network}, every address there is, not {form}", rules.network));
            return None;
        }
        Some(network)
    }

    /// Checks the other members as far as that does not depend on the network.
    fn forms<N: Family>(&mut self, object: &GoObject, rules: &Rules) {
        self.take(object.get::<u64>(rules.len, "a whole number of bits"));
        for name in [rules.min, rules.max] {
            let text: Option<String> = self.take(object.get(name, "an address"));
            if let Some(text) = text.filter(|text| N::address(text).is_none()) {
                self.0.push(format!("{name} is \"{}\", not an address", shown(&text, QUOTED)));
            }
        }
    }

    fn subnets<N: Family>(&mut self, object: &GoObject, rules: &Rules, network: IpNet) -> Option<Overlay> {
        let len = self.subnet_len(object, rules, network);
        let given_min = self.address::<N>(object, rules.min, network);
        let given_max = self.address::<N>(object, rules.max, network);
        let len = len?;
        let whole = SubnetRange::new(network.network(), last_subnet::<N>(network, len), len);
        let min = given_min.unwrap_or_else(|| second_subnet::<N>(network, len));
        let max = given_max.unwrap_or(whole.max());
        for (name, at) in [(rules.min, min), (rules.max, max)] {
            if !IpNet::new(at, len).is_ok_and(|net| net.network() == at && whole.contains(net)) {
                self.0.push(format!("{name} is {at}, not the start of a /{len} subnet inside {network}"));
            }
        }
        if number(min) > number(max) {
            self.0.push(format!("{} {min} comes after {} {max}", rules.min, rules.max));
        }
        Some(Overlay { network, subnets: SubnetRange::new(min, max.max(min), len) })
    }

    fn subnet_len(&mut self, object: &GoObject, rules: &Rules, network: IpNet) -> Option<u8> {
        let bits = network.prefix_len();
        if bits > rules.longest_network {
            let longest = rules.longest_network;
            self.0.push(format!("{} is {network}: /{longest} is the smallest network possible", rules.network));
            return None;
        }
        let default = if bits <= rules.usual_len - 2 { rules.usual_len } else { bits + 2 };
        let given: u64 = self.take(object.get(rules.len, "a whole number of bits")).unwrap_or(0);
        match u8::try_from(given) {
            Ok(0) => Some(default),
            Ok(len) if (bits + 2..=rules.longest_subnet).contains(&len) => Some(len),
            _ => {
                let (from, to) = (bits + 2, rules.longest_subnet);
                let message = format!("{} is {given}, not {from} to {to} as {network} needs", rules.len);
                self.0.push(message);
                None
            }
        }
    }

    fn address<N: Family>(&mut self, object: &GoObject, name: &str, network: IpNet) -> Option<IpAddr> {
        let text: String = self.take(object.get(name, "an address"))?;
        let address = N::address(&text);
        if address.is_some_and(|address| address.is_unspecified()) {
            // flannel cannot tell it from an absent one.
            return None;
        }
        let address = address.filter(|address| network.contains(address));
        if address.is_none() {
            self.0.push(format!("{name} is \"{}\", not an address inside {network}", shown(&text, QUOTED)));
        }
        address
    }

    fn take<T>(&mut self, value: Result<Option<T>, String>) -> Option<T> {
        value.unwrap_or_else(|problem| {
            self.0.push(problem);
            None
        })
    }
}

/// The few things that the reader asks of an address family.
trait Family {
    const BITS: u8;
    fn network(text: &str) -> Option<IpNet>;
    fn address(text: &str) -> Option<IpAddr>;
    fn at(number: u128) -> IpAddr;
}

impl Family for Ipv4Net {
    const BITS: u8 = 32;
    fn network(text: &str) -> Option<IpNet> {
        text.parse().ok().map(|net: Ipv4Net| net.trunc().into())
    }
    fn address(text: &str) -> Option<IpAddr> {
        text.parse().ok().map(IpAddr::V4)
    }
    fn at(number: u128) -> IpAddr {
        Ipv4Addr::from(number as u32).into()
    }
}

impl Family for Ipv6Net {
    const BITS: u8 = 128;
    fn network(text: &str) -> Option<IpNet> {
        text.parse().ok().map(|net: Ipv6Net| net.trunc().into())
    }
    fn address(text: &str) -> Option<IpAddr> {
        text.parse().ok().map(IpAddr::V6)
    }
    fn at(number: u128) -> IpAddr {
        Ipv6Addr::from(number).into()
    }
}

fn second_subnet<N: Family>(network: IpNet, len: u8) -> IpAddr {
    N::at(number(network.network()) + (1 << (N::BITS - len)))
}

fn last_subnet<N: Family>(network: IpNet, len: u8) -> IpAddr {
    N::at(number(network.broadcast()) - ((1 << (N::BITS - len)) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(text: &str) -> (String, u8, String, String) {
        let overlay = NetworkConfig::parse(text.as_bytes()).unwrap().ipv4.unwrap();
        let subnets = overlay.subnets;
        (overlay.network.to_string(), subnets.subnet_len(), subnets.min().to_string(), subnets.max().to_string())
    }

    #[test]
    fn defaults_are_flannels() {
        for (text, network, len, min, max) in [
            (r#"{"Network":"10.5.0.0/16"}"#, "10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"),
            (r#"{"NetWork":"10.5.7.9/16","unknown":[]}"#, "10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"),
            (r#"{"Network":"10.5.0.0/22"}"#, "10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"),
            (r#"{"Network":"10.5.0.0/23"}"#, "10.5.0.0/23", 25, "10.5.0.128", "10.5.1.128"),
            (r#"{"Network":"10.5.0.0/28"}"#, "10.5.0.0/28", 30, "10.5.0.4", "10.5.0.12"),
            (
                r#"{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0"}"#,
                "10.0.0.0/8",
                20,
                "10.10.0.0",
                "10.99.0.0",
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMin":"0.0.0.0","SubnetMax":"0.0.0.0"}"#,
                "10.5.0.0/16",
                24,
                "10.5.1.0",
                "10.5.255.0",
            ),
            (
                r#"{"Network":"1.0.0.0/8","network":"10.5.0.0/16","SubnetLen":0}"#,
                "10.5.0.0/16",
                24,
                "10.5.1.0",
                "10.5.255.0",
            ),
        ] {
            assert_eq!(v4(text), (network.into(), len, min.into(), max.into()), "{text}");
        }
    }

    #[test]
    fn backend_and_ipv6() {
        let text = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fc00::/48","backend":{"type":"VXLAN","VNI":7}}"#;
        let config = NetworkConfig::parse(text.as_bytes()).unwrap();
        let v6 = config.ipv6.unwrap();
        assert_eq!((v6.subnets.subnet_len(), v6.subnets.min().to_string()), (64, "fc00:0:0:1::".into()));
        assert_eq!(v6.subnets.max().to_string(), "fc00:0:0:ffff::");
        assert_eq!(config.backend.unwrap().kind, "vxlan");
        let bare = NetworkConfig::parse(br#"{"Network":"10.5.0.0/16","Backend":null}"#).unwrap();
        assert!(bare.backend.is_none() && bare.ipv6.is_none());
    }

    #[test]
    fn every_problem_is_named() {
        for (text, names) in [
            ("", vec!["not a JSON object"]),
            ("{}", vec!["Network is missing"]),
            (r#"{"Network":"10.5.0.0"}"#, vec![r#"Network is "10.5.0.0""#]),
            (
                r#"{"Network":7,"SubnetLen":"x","SubnetMin":"y","SubnetMax":1}"#,
                vec!["Network is 7", "SubnetLen is \"x\"", "SubnetMin is \"y\"", "SubnetMax is 1"],
            ),
            (r#"{"Network":"0.0.0.0/0"}"#, vec!["Network is 0.0.0.0/0"]),
            (r#"{"Network":"10.5.0.0/29"}"#, vec!["Network is 10.5.0.0/29"]),
            (r#"{"Network":"10.5.0.0/16","SubnetLen":17}"#, vec!["SubnetLen is 17, not 18 to 30"]),
            (r#"{"Network":"10.5.0.0/16","SubnetLen":31}"#, vec!["SubnetLen is 31"]),
            (r#"{"Network":"10.5.0.0/16","SubnetLen":24.5}"#, vec!["SubnetLen is 24.5"]),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMin":"10.6.1.0","SubnetMax":"10.5.9.1","EnableIPv4":1}"#,
                vec!["EnableIPv4 is 1", "SubnetMin is \"10.6.1.0\"", "SubnetMax is 10.5.9.1"],
            ),
            (
                r#"{"Network":"10.5.0.0/16","SubnetLen":12,"SubnetMin":"10.5.9.0","SubnetMax":"ten"}"#,
                vec!["SubnetLen is 12", "SubnetMax is \"ten\""],
            ),
            (r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0"}"#, vec!["comes after"]),
            (r#"{"EnableIPv4":false}"#, vec!["both false"]),
            (r#"{"Network":"10.5.0.0/16","Backend":"vxlan"}"#, vec![r#"Backend is "vxlan", not an object"#]),
            (r#"{"Network":"10.5.0.0/16","EnableIPv6":true}"#, vec!["IPv6Network is missing"]),
        ] {
            let errors = NetworkConfig::parse(text.as_bytes()).unwrap_err().to_string();
            for name in names {
                assert!(errors.contains(name), "{text}: {errors}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_config_or_errors(bytes: Vec<u8>) {
            let _ = NetworkConfig::parse(&bytes);
        }

        #[test]
        fn a_valid_network_has_its_subnets_inside(ip: u32, bits in 0u8..=32, len in 0u64..=33) {
            let net = Ipv4Net::new(ip.into(), bits).unwrap();
            let text = format!(r#"{{"Network":"{net}","SubnetLen":{len}}}"#);
            if let Ok(config) = NetworkConfig::parse(text.as_bytes()) {
                let overlay = config.ipv4.unwrap();
                let first = IpNet::new(overlay.subnets.min(), overlay.subnets.subnet_len()).unwrap();
                let last = IpNet::new(overlay.subnets.max(), overlay.subnets.subnet_len()).unwrap();
                prop_assert!(overlay.network.contains(&first) && overlay.network.contains(&last));
                prop_assert!(overlay.subnets.contains(first) && overlay.subnets.contains(last));
                prop_assert_eq!(overlay.subnets.count(), (1u128 << (overlay.subnets.subnet_len() - bits)) - 1);
            }
        }
    }
}
