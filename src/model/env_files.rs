//! The files that other programs read: `subnet.env` (Docker scripts, CNI plugins) and `docker_opts.env` (dockerd's unit).

use super::go_json::shorten;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::fmt;

/// The contents of `subnet.env`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_NETWORK`: the overlay, and `FLANNEL_SUBNET`: this host's subnet, written as its first usable address.
    pub ipv4: Option<(Ipv4Net, Ipv4Net)>,
    /// `FLANNEL_IPV6_NETWORK` and `FLANNEL_IPV6_SUBNET`.
    pub ipv6: Option<(Ipv6Net, Ipv6Net)>,
    /// `FLANNEL_MTU`: largest packet that containers may send, in bytes.
    pub mtu: u32,
    /// `FLANNEL_IPMASQ`: whether flanneld masquerades what leaves the overlay.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// The file's text, as flannel writes it: this order, one a line. Subnets are given without host bits.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Some((network, subnet)) = self.ipv4 {
            text += &format!("FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={}\n", gateway(subnet.into()));
        }
        if let Some((network, subnet)) = self.ipv6 {
            text += &format!("FLANNEL_IPV6_NETWORK={network}\nFLANNEL_IPV6_SUBNET={}\n", gateway(subnet.into()));
        }
        text + &format!("FLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n", self.mtu, self.ip_masq)
    }
}

/// The IPv4 subnet that a previous `subnet.env` names, without host bits; `None` where it names none.
///
/// # Errors
/// Names the value that is no subnet.
pub fn previous_subnet(text: &str) -> Result<Option<Ipv4Net>, String> {
    let Some(value) = text.lines().rev().find_map(|line| line.trim().strip_prefix("FLANNEL_SUBNET=")) else {
        return Ok(None);
    };
    let value = value.trim_matches('"');
    match value.parse::<Ipv4Net>() {
        Ok(net) => Ok(Some(net.trunc())),
        Err(_) => Err(format!("FLANNEL_SUBNET is {:?}, not a subnet such as 10.5.72.1/24", shorten(value))),
    }
}

/// The first usable address of a subnet with its length: what the bridge of the containers gets.
fn gateway(subnet: IpNet) -> String {
    let first = super::subnet::number(subnet.network()) + 1;
    match subnet {
        IpNet::V4(net) => format!("{}/{}", std::net::Ipv4Addr::from(first as u32), net.prefix_len()),
        IpNet::V6(net) => format!("{}/{}", std::net::Ipv6Addr::from(first), net.prefix_len()),
    }
}

/// Docker's options, in the form that flannel's `mk-docker-opts.sh` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DockerOpts<'a>(pub &'a SubnetEnv);

impl fmt::Display for DockerOpts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let env = self.0;
        let mut options = Vec::new();
        if let Some((_, subnet)) = env.ipv4 {
            options.push(("BIP", format!("--bip={}", gateway(subnet.into()))));
        }
        // Docker masquerades exactly when flanneld does not.
        options.push(("IPMASQ", format!("--ip-masq={}", !env.ip_masq)));
        options.push(("MTU", format!("--mtu={}", env.mtu)));
        for (name, option) in &options {
            writeln!(f, "DOCKER_OPT_{name}=\"{option}\"")?;
        }
        let combined: String = options.iter().map(|(_, option)| format!(" {option}")).collect();
        writeln!(f, "DOCKER_OPTS=\"{combined}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn env() -> SubnetEnv {
        SubnetEnv {
            ipv4: Some(("10.5.0.0/16".parse().unwrap(), "10.5.72.0/24".parse().unwrap())),
            ipv6: None,
            mtu: 1450,
            ip_masq: false,
        }
    }

    #[test]
    fn subnet_env_is_flannels_byte_for_byte() {
        let expected =
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        assert_eq!(env().render(), expected);
        let ipv6 = Some(("fc00::/48".parse().unwrap(), "fc00:0:0:7::/64".parse().unwrap()));
        let dual = SubnetEnv { ipv6, ip_masq: true, ..env() }.render();
        let expected = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\n\
            FLANNEL_IPV6_SUBNET=fc00:0:0:7::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(dual, expected);
    }

    #[test]
    fn docker_opts_are_mk_docker_opts_byte_for_byte() {
        let expected = "DOCKER_OPT_BIP=\"--bip=10.5.72.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
            DOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_OPTS=\" --bip=10.5.72.1/24 --ip-masq=true --mtu=1450\"\n";
        assert_eq!(DockerOpts(&env()).to_string(), expected);
        let masq = SubnetEnv { ip_masq: true, ..env() };
        assert!(DockerOpts(&masq).to_string().contains("--ip-masq=false"));
    }

    #[test]
    fn a_previous_subnet_is_found_or_named_as_wrong() {
        assert_eq!(previous_subnet(&env().render()), Ok(Some("10.5.72.0/24".parse().unwrap())));
        assert_eq!(previous_subnet("FLANNEL_SUBNET=\"10.5.72.1/24\"\n"), Ok(Some("10.5.72.0/24".parse().unwrap())));
        for text in ["", "FLANNEL_MTU=1450\n", "# FLANNEL_SUBNET=1.2.3.4/5"] {
            assert_eq!(previous_subnet(text), Ok(None), "{text}");
        }
        assert!(previous_subnet("FLANNEL_SUBNET=ten\n").unwrap_err().contains("\"ten\""));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text: String) {
            let _ = previous_subnet(&text);
        }

        #[test]
        fn what_is_rendered_is_read_back(ip: u32, len in 1u8..=30) {
            let subnet = Ipv4Net::new(ip.into(), len).unwrap().trunc();
            let text = SubnetEnv { ipv4: Some((subnet, subnet)), ..env() }.render();
            prop_assert_eq!(previous_subnet(&text), Ok(Some(subnet)));
        }
    }
}
