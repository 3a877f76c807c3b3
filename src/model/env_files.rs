//! The files that other programs read: `subnet.env` (Docker scripts, CNI plugins) and `docker_opts.env` (dockerd's unit).

use super::foreign::{QUOTED, shown};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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
    let Some(value) = assigned(text, "FLANNEL_SUBNET") else { return Ok(None) };
    match value.parse::<Ipv4Net>() {
        Ok(net) => Ok(Some(net.trunc())),
        Err(_) => Err(format!("FLANNEL_SUBNET is \"{}\", not a subnet such as 10.5.72.1/24", shown(value, QUOTED))),
    }
}

/// The value that a shell reading `text` would end up with for this variable, without its quotes.
fn assigned<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let of_line = |line: &'a str| line.trim().strip_prefix(name)?.strip_prefix('=');
    let value = text.lines().rev().find_map(of_line)?;
    Some(value.trim_matches(['"', '\'']))
}

/// The first usable address of a subnet with its length: what the bridge of the containers gets.
fn gateway(subnet: IpNet) -> String {
    let first = super::subnet::number(subnet.network()) + 1;
    match subnet {
        IpNet::V4(net) => format!("{}/{}", std::net::Ipv4Addr::from(first as u32), net.prefix_len()),
        IpNet::V6(net) => format!("{}/{}", std::net::Ipv6Addr::from(first), net.prefix_len()),
    }
}

/// What Docker is to be told about the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DockerOpts {
    /// The address of Docker's bridge, and the length of this host's subnet.
    pub bridge: Option<Ipv4Net>,
    /// This host's IPv6 subnet, without host bits. Docker's bridge gets its first address.
    pub ipv6: Option<Ipv6Net>,
    /// Whether Docker masquerades what leaves the overlay.
    pub ip_masq: Option<bool>,
    /// Largest packet that containers may send, in bytes.
    pub mtu: Option<u32>,
}

/// Which of the lines of `docker_opts.env` are wanted, and what stands in the combined one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DockerLines<'a> {
    /// A variable for each option, such as `DOCKER_OPT_MTU`.
    pub individual: bool,
    /// One variable with all options.
    pub combined: bool,
    /// The name of that variable.
    pub key: &'a str,
    /// Options that go before ours in it; may be empty.
    pub before: &'a str,
}

impl Default for DockerLines<'_> {
    fn default() -> Self {
        DockerLines { individual: true, combined: true, key: "DOCKER_OPTS", before: "" }
    }
}

impl From<&SubnetEnv> for DockerOpts {
    fn from(env: &SubnetEnv) -> Self {
        let bridge = env.ipv4.and_then(|(_, subnet)| gateway(subnet.into()).parse().ok());
        // Docker masquerades exactly when flanneld does not.
        let ipv6 = env.ipv6.map(|(_, subnet)| subnet);
        DockerOpts { bridge, ipv6, ip_masq: Some(!env.ip_masq), mtu: Some(env.mtu) }
    }
}

impl DockerOpts {
    /// The changes since `before` that a running Docker does not know yet.
    pub fn changes_since(&self, before: &DockerOpts) -> Vec<String> {
        let bridge = self.bridge.zip(before.bridge).filter(|(now, before)| now != before);
        let mtu = self.mtu.zip(before.mtu).filter(|(now, before)| now != before);
        let bridge =
            bridge.map(|(now, before)| format!("the address of Docker's bridge is now {now}, it was {before}"));
        let mtu = mtu.map(|(now, before)| format!("the MTU for containers is now {now}, it was {before}"));
        [bridge, mtu].into_iter().flatten().collect()
    }

    /// Reads a `subnet.env`. Without `FLANNEL_MTU` or `FLANNEL_IPMASQ` that option is left to Docker.
    ///
    /// # Errors
    /// Names the variable that is missing or wrong, its value, and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value = |name| assigned(text, name).filter(|value| !value.is_empty());
        let wrong =
            |name: &str, value: &str, right: &str| format!("{name} is \"{}\", not {right}", shown(value, QUOTED));
        let bridge = value("FLANNEL_SUBNET").ok_or("FLANNEL_SUBNET is missing, such as FLANNEL_SUBNET=10.5.72.1/24")?;
        let (mtu, ip_masq) = (value("FLANNEL_MTU"), value("FLANNEL_IPMASQ"));
        let ipv6 = value("FLANNEL_IPV6_SUBNET").map(|subnet| {
            const RIGHT: &str = "an IPv6 subnet of at most /126, such as fd00:0:0:7::1/64";
            let net = subnet.parse::<Ipv6Net>().ok().filter(|net| (1..=126).contains(&net.prefix_len()));
            net.map(|net| net.trunc()).ok_or_else(|| wrong("FLANNEL_IPV6_SUBNET", subnet, RIGHT))
        });
        let mtu = mtu.map(|mtu| {
            const RIGHT: &str = "a number of bytes from 68 to 65535, such as 1450";
            mtu.parse().ok().filter(|mtu| (68..=65535).contains(mtu)).ok_or_else(|| wrong("FLANNEL_MTU", mtu, RIGHT))
        });
        let ip_masq = ip_masq.map(|we_masquerade| match we_masquerade {
            "true" => Ok(false),
            "false" => Ok(true),
            other => Err(wrong("FLANNEL_IPMASQ", other, "true or false")),
        });
        const RIGHT: &str = "the address of a bridge with the length of its subnet, such as 10.5.72.1/24";
        let bridge = bridge_address(bridge).ok_or_else(|| wrong("FLANNEL_SUBNET", bridge, RIGHT))?;
        let (ipv6, ip_masq, mtu) = (ipv6.transpose()?, ip_masq.transpose()?, mtu.transpose()?);
        Ok(DockerOpts { bridge: Some(bridge), ipv6, ip_masq, mtu })
    }

    /// The file's text, in the form that flannel's `mk-docker-opts.sh` writes, which knows no IPv6: with an IPv6 subnet
    /// there are two options more, in the alphabetical order of that script.
    pub fn render(&self, lines: &DockerLines) -> String {
        let options = [
            ("BIP", self.bridge.map(|bridge| format!("--bip={bridge}"))),
            ("FIXED_CIDR_V6", self.ipv6.map(|subnet| format!("--fixed-cidr-v6={subnet}"))),
            ("IPMASQ", self.ip_masq.map(|docker_does| format!("--ip-masq={docker_does}"))),
            ("IPV6", self.ipv6.map(|_| "--ipv6=true".to_owned())),
            ("MTU", self.mtu.map(|mtu| format!("--mtu={mtu}"))),
        ];
        let (mut text, mut combined) = (String::new(), quoted(lines.before));
        if !lines.before.is_empty() {
            combined.push(' ');
        }
        for (name, option) in options.iter().filter_map(|(name, option)| Some((name, option.as_ref()?))) {
            if lines.individual {
                text += &format!("DOCKER_OPT_{name}=\"{option}\"\n");
            }
            combined += &format!(" {option}");
        }
        if lines.combined {
            text += &format!("{}=\"{combined}\"\n", lines.key);
        }
        text
    }
}

/// An address that a bridge can have in a subnet in which there is room for a container.
fn bridge_address(text: &str) -> Option<Ipv4Net> {
    let net = text.parse::<Ipv4Net>().ok()?;
    let address = net.addr();
    let is_edge = address == net.network() || address == net.broadcast();
    let is_odd = address.is_loopback() || address.is_multicast();
    (1..=30).contains(&net.prefix_len()).then_some(net).filter(|_| !is_edge && !is_odd)
}

/// For between double quotes, where a shell and systemd's `EnvironmentFile=` read the same: each gets the value back.
fn quoted(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for letter in value.chars() {
        if matches!(letter, '"' | '\\' | '$' | '`') {
            text.push('\\');
        }
        text.push(letter);
    }
    text
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

    fn opts() -> DockerOpts {
        DockerOpts::from(&env())
    }

    #[test]
    fn docker_opts_are_mk_docker_opts_byte_for_byte() {
        let expected = "DOCKER_OPT_BIP=\"--bip=10.5.72.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
            DOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_OPTS=\" --bip=10.5.72.1/24 --ip-masq=true --mtu=1450\"\n";
        assert_eq!(opts().render(&DockerLines::default()), expected);
        let masq = SubnetEnv { ip_masq: true, ..env() };
        assert!(DockerOpts::from(&masq).render(&DockerLines::default()).contains("--ip-masq=false"));
    }

    #[test]
    fn docker_opts_are_read_from_what_we_write_and_from_what_others_may_have_made_of_it() {
        assert_eq!(DockerOpts::parse(&env().render()), Ok(opts()));
        let bare = DockerOpts { bridge: "10.5.72.9/24".parse().ok(), ipv6: None, ip_masq: None, mtu: None };
        for text in [
            "FLANNEL_SUBNET=10.5.72.9/24",
            "  FLANNEL_SUBNET='10.5.72.9/24' \r\nFLANNEL_MTU=\nFLANNEL_IPMASQ=\"\"\n",
            "FLANNEL_SUBNET=1.2.3.4/24\n#FLANNEL_MTU=9\n\nFLANNEL_SUBNET=\"10.5.72.9/24\"\nFLANNEL_SUBNETS=1\n",
        ] {
            assert_eq!(DockerOpts::parse(text).as_ref(), Ok(&bare), "{text}");
        }
    }

    #[test]
    fn what_docker_does_not_know_yet_is_told() {
        let opts = |text: &str| DockerOpts::parse(text).unwrap();
        let now = opts("FLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true");
        assert_eq!(now.changes_since(&opts("FLANNEL_SUBNET=10.5.72.1/24")), [""; 0]);
        assert_eq!(
            now.changes_since(&opts("FLANNEL_SUBNET=10.5.3.1/24\nFLANNEL_MTU=1450")),
            [
                "the address of Docker's bridge is now 10.5.72.1/24, it was 10.5.3.1/24",
                "the MTU for containers is now 1400, it was 1450"
            ]
        );
    }

    #[test]
    fn nonsense_for_docker_is_named() {
        for subnet in
            ["10.5.72.0/24", "10.5.72.255/24", "10.5.72.1", "10.5.72.1/31", "1.2.3.4/0", "127.0.0.2/8", "fc00::1/64"]
        {
            let error = DockerOpts::parse(&format!("FLANNEL_SUBNET={subnet}\n")).unwrap_err();
            assert!(
                error.starts_with(&format!("FLANNEL_SUBNET is {subnet:?}, not the address of a bridge")),
                "{error}"
            );
        }
        for (name, value) in [("MTU", "67"), ("MTU", "65536"), ("MTU", "-1"), ("MTU", "1450 # x"), ("IPMASQ", "yes")] {
            let error = DockerOpts::parse(&format!("FLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_{name}={value}")).unwrap_err();
            assert!(error.starts_with(&format!("FLANNEL_{name} is {value:?}, not ")), "{error}");
        }
        for subnet in ["10.5.72.1/24", "fd00::1", "fd00::1/127", "::/0"] {
            let text = format!("FLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_IPV6_SUBNET={subnet}\n");
            let error = DockerOpts::parse(&text).unwrap_err();
            assert!(error.starts_with(&format!("FLANNEL_IPV6_SUBNET is {subnet:?}, not an IPv6 subnet")), "{error}");
        }
        for text in ["", "FLANNEL_SUBNET=\n", "FLANNEL_IPV6_SUBNET=fc00::1/64\n"] {
            assert!(DockerOpts::parse(text).unwrap_err().starts_with("FLANNEL_SUBNET is missing"), "{text}");
        }
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
            let _ = DockerOpts::parse(&text);
        }

        #[test]
        fn what_is_rendered_is_read_back(ip: u32, len in 1u8..=30) {
            let subnet = Ipv4Net::new(ip.into(), len).unwrap().trunc();
            let text = SubnetEnv { ipv4: Some((subnet, subnet)), ..env() }.render();
            prop_assert_eq!(previous_subnet(&text), Ok(Some(subnet)));
            let read = DockerOpts::parse(&text).ok();
            let is_odd = subnet.hosts().next().is_some_and(|first| first.is_loopback() || first.is_multicast());
            prop_assert_eq!(read.and_then(|opts| opts.bridge).is_some(), !is_odd);
        }
    }
}
