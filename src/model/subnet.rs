//! Subnets: how their keys are spelled in etcd, which ones a network has, and which one a new host takes.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use regex::Regex;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

/// The last segment of a lease's key: `10.5.34.0-24`, or with an IPv6 subnet `10.5.34.0-24&fc00:5:22::-64`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubnetKey {
    /// The IPv4 subnet, without host bits.
    pub v4: Ipv4Net,
    /// The IPv6 subnet of a dual-stack lease, without host bits.
    pub v6: Option<Ipv6Net>,
}

/// Why a key under `subnets/` names no subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadKey {
    /// The problem, for the log.
    pub reason: String,
    /// The addresses that some other reader may think it names, so that nobody is given them.
    pub occupies: Option<Ipv4Net>,
}

impl SubnetKey {
    /// Reads a key segment. Only what flannel itself writes is a subnet: no host bits, no leading zeros, nothing
    /// around it.
    pub fn parse(text: &str) -> Result<Self, BadKey> {
        Self::parse_strictly(text).map_err(|reason| BadKey { reason, occupies: read_loosely(text) })
    }

    fn parse_strictly(text: &str) -> Result<Self, String> {
        let form = || "not of the form 10.5.34.0-24".to_owned();
        let (v4, v6) = match text.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (text, None),
        };
        let (address, length) = split_length(v4).ok_or_else(form)?;
        let v4 = Ipv4Net::new(address.parse().map_err(|_| form())?, length).map_err(|_| form())?;
        if length > 31 {
            return Err("prefix length over 31".into());
        }
        if v4 != v4.trunc() {
            return Err("host bits are set".into());
        }
        Ok(SubnetKey { v4, v6: v6.map(parse_v6).transpose()? })
    }

    /// The key of an IPv4-only subnet.
    pub fn v4(net: Ipv4Net) -> Self {
        SubnetKey { v4: net.trunc(), v6: None }
    }
}

/// The subnet that another reader may see in a bad key. flannel's own looks for one anywhere before the end.
fn read_loosely(text: &str) -> Option<Ipv4Net> {
    static PATTERN: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&.*)?$").expect("a constant"));
    let found = PATTERN.captures(text)?;
    Ipv4Net::new(found[1].parse().ok()?, found[2].parse().ok()?).ok().map(|net| net.trunc())
}

fn parse_v6(text: &str) -> Result<Ipv6Net, String> {
    let form = || "the part after & is not of the form fc00:5:22::-64".to_owned();
    let (spelled, length) = split_length(text).ok_or_else(form)?;
    let address: Ipv6Addr = spelled.parse().map_err(|_| form())?;
    let net = Ipv6Net::new(address, length).map_err(|_| form())?;
    if net != net.trunc() {
        return Err("host bits are set in the IPv6 part".into());
    }
    if address.to_string() != spelled {
        return Err(format!("the IPv6 part is not spelled as flannel does, {address}-{length}"));
    }
    Ok(net)
}

/// `10.5.34.0-24` as its two halves; the length in plain decimal without a sign or leading zeros.
fn split_length(text: &str) -> Option<(&str, u8)> {
    let (address, length) = text.rsplit_once('-')?;
    let plain = length.bytes().all(|b| b.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    plain.then_some((address, length.parse().ok()?))
}

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.v4.addr(), self.v4.prefix_len())?;
        match self.v6 {
            Some(v6) => write!(f, "&{}-{}", v6.addr(), v6.prefix_len()),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The subnets that hosts of a network may take: all of `len` bits from `min` to `max`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetRange {
    min: u128,
    max: u128,
    len: u8,
    is_v6: bool,
}

impl SubnetRange {
    /// The range from the subnet that starts at `min` to the one that starts at `max`; both aligned to `len` bits
    /// and of one family, `min <= max` (checked by `NetworkConfig`).
    pub fn new(min: IpAddr, max: IpAddr, len: u8) -> Self {
        SubnetRange { min: number(min), max: number(max), len, is_v6: min.is_ipv6() }
    }

    /// Prefix length of each subnet, in bits.
    pub fn subnet_len(&self) -> u8 {
        self.len
    }

    /// Start of the first subnet.
    pub fn min(&self) -> IpAddr {
        self.address(self.min)
    }

    /// Start of the last subnet.
    pub fn max(&self) -> IpAddr {
        self.address(self.max)
    }

    /// Whether `net` is one of the subnets.
    pub fn contains(&self, net: IpNet) -> bool {
        let start = number(net.network());
        net.addr().is_ipv6() == self.is_v6
            && net.prefix_len() == self.len
            && (self.min..=self.max).contains(&start)
            && (start - self.min).is_multiple_of(self.step())
    }

    /// How many subnets the range has.
    pub fn count(&self) -> u128 {
        (self.max - self.min) / self.step() + 1
    }

    /// One of the subnets that overlap nothing in `taken`, each with the same probability when `random` is uniform;
    /// `None` when all are taken. Costs O(t log t) in the number of taken ones, whatever the size of the range.
    pub fn choose_free(&self, taken: impl IntoIterator<Item = IpNet>, random: u128) -> Option<IpNet> {
        let mut blocks: Vec<(u128, u128)> = taken.into_iter().filter_map(|net| self.block(net)).collect();
        blocks.sort_unstable();
        let gaps = self.gaps(&blocks);
        let free: u128 = gaps.iter().map(|(start, end)| end - start).sum();
        if free == 0 {
            return None;
        }
        let mut nth = random % free;
        for (start, end) in gaps {
            if nth < end - start {
                let net = IpNet::new(self.address(self.min + (start + nth) * self.step()), self.len);
                return net.ok();
            }
            nth -= end - start;
        }
        None
    }

    /// The indexes of the first and the last subnet that `net` overlaps.
    fn block(&self, net: IpNet) -> Option<(u128, u128)> {
        if net.addr().is_ipv6() != self.is_v6 {
            return None;
        }
        let (first, last) = (number(net.network()), number(net.broadcast()));
        let end = self.max + (self.step() - 1);
        if last < self.min || first > end {
            return None;
        }
        let index = |at: u128| (at.clamp(self.min, end) - self.min) / self.step();
        Some((index(first), index(last)))
    }

    /// The runs of indexes, end excluded, that no block covers; `blocks` is sorted.
    fn gaps(&self, blocks: &[(u128, u128)]) -> Vec<(u128, u128)> {
        let mut gaps = Vec::new();
        let mut next = 0;
        for &(first, last) in blocks {
            if first > next {
                gaps.push((next, first));
            }
            next = next.max(last + 1);
        }
        if next < self.count() {
            gaps.push((next, self.count()));
        }
        gaps
    }

    fn step(&self) -> u128 {
        let width = if self.is_v6 { 128 } else { 32 };
        1 << (width - self.len)
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.is_v6 {
            true => IpAddr::V6(Ipv6Addr::from(number)),
            false => IpAddr::V4(Ipv4Addr::from(number as u32)),
        }
    }
}

/// An address as a number, so that both families are counted alike.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// Whether two networks of the same family share an address.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range(min: &str, max: &str, len: u8) -> SubnetRange {
        SubnetRange::new(min.parse().unwrap(), max.parse().unwrap(), len)
    }

    #[test]
    fn keys_as_flannel_writes_them() {
        for text in ["10.5.34.0-24", "172.30.46.0-24", "10.5.34.0-24&fc00:5:22::-64", "0.0.0.0-0&fd00::-64"] {
            assert_eq!(SubnetKey::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_keys_are_refused_with_what_they_may_occupy() {
        for text in [
            "",
            "foo",
            "10.5.34.0",
            "10.5.34.0-",
            "10.5.34.0-+24",
            "010.5.34.0-24",
            "10.5.34.0/24",
            "10.5.34.0-33",
            "10.5.34.0-24 ",
        ] {
            assert_eq!(SubnetKey::parse(text).unwrap_err().occupies, None, "{text}");
        }
        for text in [
            "10.5.34.7-24",
            "10.5.34.0-024",
            "x/10.5.34.0-24",
            "x10.5.34.0-24",
            "10.5.34.0-24&",
            "10.5.34.0-24&fc00::1-64",
            "10.5.34.0-24&10.5.35.0-24",
            "10.5.34.0-24&fc00::-129",
            "10.5.34.0-24&fc00::0-64",
            "10.5.34.0-24&FC00::-64",
        ] {
            assert_eq!(SubnetKey::parse(text).unwrap_err().occupies, Some("10.5.34.0/24".parse().unwrap()), "{text}");
        }
        assert_eq!(SubnetKey::parse("10.5.34.9-32").unwrap_err().occupies, Some("10.5.34.9/32".parse().unwrap()));
    }

    #[test]
    fn the_whole_range_is_used_and_then_it_is_out() {
        let range = range("10.5.1.0", "10.5.255.0", 24);
        let mut taken: Vec<IpNet> = Vec::new();
        for i in 0..255u128 {
            let net = range.choose_free(taken.iter().copied(), i * 7919).expect("free ones left");
            assert!(range.contains(net) && !taken.contains(&net), "{net}");
            taken.push(net);
        }
        assert_eq!(range.choose_free(taken, 0), None);
    }

    #[test]
    fn leases_of_other_sizes_block_what_they_overlap() {
        let range = range("10.5.0.0", "10.5.3.0", 24);
        let taken = ["10.5.0.128/25", "10.5.2.0/23", "0.0.0.0/30", "fc00::/7"].map(|t| t.parse().unwrap());
        for random in 0..20 {
            assert_eq!(range.choose_free(taken, random), Some("10.5.1.0/24".parse().unwrap()));
        }
        assert_eq!(range.choose_free(["10.0.0.0/8".parse().unwrap()], 3), None);
    }

    #[test]
    fn the_end_of_the_address_space_is_no_edge() {
        let v4 = range("255.255.255.0", "255.255.255.0", 24);
        assert_eq!(v4.choose_free([], 9), Some("255.255.255.0/24".parse().unwrap()));
        let v6 = range("fc00::", "fc00:0:0:ffff::", 64);
        assert_eq!(v6.count(), 65536);
        assert_eq!(v6.choose_free([], 65537), Some("fc00:0:0:1::/64".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_or_an_error(text in ".*") {
            if let Ok(key) = SubnetKey::parse(&text) {
                prop_assert_eq!(key.to_string(), text);
            }
        }

        #[test]
        fn what_is_rendered_is_read_back(a: u32, len in 0u8..32, b: u128, len6 in 0u8..=128, dual: bool) {
            let v4 = Ipv4Net::new(a.into(), len).unwrap().trunc();
            let v6 = dual.then(|| Ipv6Net::new(b.into(), len6).unwrap().trunc());
            let key = SubnetKey { v4, v6 };
            prop_assert_eq!(SubnetKey::parse(&key.to_string()), Ok(key));
        }

        #[test]
        fn each_free_subnet_is_chosen_by_as_many_numbers_and_no_other_is(
            taken in prop::collection::vec((0u32..4096, 21u8..=32), 0..12),
        ) {
            let range = range("10.5.1.0", "10.5.15.0", 24);
            let taken: Vec<IpNet> = taken.iter()
                .map(|(low, len)| IpNet::new(Ipv4Addr::from(0x0a05_0000 | low).into(), *len).unwrap().trunc())
                .collect();
            let all = (1..=15u8).map(|third| IpNet::from(Ipv4Net::new(Ipv4Addr::new(10, 5, third, 0), 24).unwrap()));
            let free: BTreeSet<IpNet> = all.filter(|net| taken.iter().all(|t| !overlap(*t, *net))).collect();
            let choose = |random| range.choose_free(taken.iter().copied(), random);
            let chosen: BTreeSet<IpNet> = (0..free.len() as u128).filter_map(choose).collect();
            prop_assert_eq!(chosen, free.clone());
            prop_assert_eq!(choose(free.len() as u128), choose(0));
            prop_assert_eq!(choose(u128::MAX).is_some(), !free.is_empty());
        }
    }
}
