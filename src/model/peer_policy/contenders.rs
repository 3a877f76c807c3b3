//! The leases that pass alone, and which of them exclude each other.
//!
//! In every conflict one side is known to win before it starts: leases are ranked, and a conflict needs only its winner.
//! So a lease is compared with the first of each group that it belongs to and never with the whole group, and a change
//! affects only the few that were or become first:
//!
//! - One subnet (its IPv6 parts may differ) has one lease, the first.
//! - Of two subnets of which one lies inside the other, the one with the usual size of a host's subnet wins, else the
//!   smaller one. A stray wide key never outweighs the hosts inside it.
//! - One MAC has one address, that of the first lease with the MAC.
//! - Of a subnet and an address inside it the first wins; a subnet of an unusual size always loses.
//! - One address has at most [`MOST_SUBNETS`] leases, the first ones.
//!
//! A lease that is refused still excludes others: otherwise one change could turn a chain of verdicts, each into the
//! opposite of the one before.

use super::Endpoint;
use crate::model::lease::Revision;
use crate::model::mac::VtepMac;
use crate::model::subnet::SubnetKey;
use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Bound;

/// The most subnets that one address is the way to. A host has one, or a few after it lost its memory; a thousand leases
/// with one address are a fault of whoever wrote them.
pub const MOST_SUBNETS: usize = 8;

/// The least and the greatest of all keys.
const FIRST_KEY: SubnetKey = SubnetKey { v4: Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0), v6: None };
const LAST_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(!0, !0, !0, !0, !0, !0, !0, !0), 128);
const LAST_KEY: SubnetKey = SubnetKey { v4: Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32), v6: Some(LAST_V6) };

/// A lease that passes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) endpoint: Endpoint,
    pub(super) created: Revision,
}

/// The rank of a lease in a conflict: subnets of the usual size before all others, then older keys before younger ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    age: u64,
    key: SubnetKey,
}

impl Rank {
    const FIRST: Rank = Rank { age: 0, key: FIRST_KEY };
    const LAST: Rank = Rank { age: u64::MAX, key: LAST_KEY };
    const UNUSUAL: u64 = 1 << 63;
}

/// Why a lease is refused for the sake of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Conflict {
    /// Their subnets overlap.
    Overlap(SubnetKey),
    /// They have one MAC and two addresses.
    SameMac(SubnetKey),
    /// Its subnet holds the address of the other one.
    Holds(SubnetKey),
    /// Its address lies in the subnet of the other one.
    LiesIn(SubnetKey),
    /// Enough others have its address.
    TooMany,
}

/// The leases that pass alone, indexed by all that they can collide in.
#[derive(Debug, Default)]
pub(super) struct Contenders {
    /// Prefix length of a host's subnet in this network.
    usual_len: u8,
    candidates: BTreeMap<SubnetKey, Candidate>,
    /// Those with an IPv6 part: only with them a subnet has several leases.
    dual: BTreeSet<(Ipv4Net, Rank)>,
    by_mac: BTreeSet<(VtepMac, Rank)>,
    by_address: BTreeSet<(Ipv4Addr, Rank)>,
    /// How many have a prefix of this length: of hardly any length are there some.
    lengths: BTreeMap<u8, usize>,
    /// How often an index was searched.
    #[cfg(test)]
    pub(super) steps: std::cell::Cell<usize>,
}

impl Contenders {
    /// Indexes them all. From sorted lists the maps are built faster and denser than one by one.
    pub(super) fn new(usual_len: u8, all: Vec<(SubnetKey, Candidate)>) -> Self {
        let mut contenders = Contenders { usual_len, ..Contenders::default() };
        let ranked: Vec<(Rank, Candidate)> = all.iter().map(|(key, c)| (contenders.rank_of(*key, c), *c)).collect();
        contenders.by_mac = ranked.iter().filter_map(|(rank, c)| Some((c.endpoint.mac?, *rank))).collect();
        contenders.by_address = ranked.iter().map(|(rank, c)| (c.endpoint.address, *rank)).collect();
        contenders.dual = ranked.iter().filter_map(|(rank, _)| dual(rank)).collect();
        all.iter().for_each(|(key, _)| *contenders.lengths.entry(key.v4.prefix_len()).or_default() += 1);
        contenders.candidates = all.into_iter().collect();
        contenders
    }

    pub(super) fn get(&self, key: &SubnetKey) -> Option<&Candidate> {
        self.candidates.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&SubnetKey, &Candidate)> {
        self.candidates.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.candidates.len()
    }

    pub(super) fn insert(&mut self, key: SubnetKey, candidate: Candidate) {
        let rank = self.rank_of(key, &candidate);
        *self.lengths.entry(key.v4.prefix_len()).or_default() += 1;
        self.by_address.insert((candidate.endpoint.address, rank));
        self.by_mac.extend(candidate.endpoint.mac.map(|mac| (mac, rank)));
        self.dual.extend(dual(&rank));
        self.candidates.insert(key, candidate);
    }

    pub(super) fn remove(&mut self, key: &SubnetKey) {
        let Some(candidate) = self.candidates.remove(key) else { return };
        let rank = self.rank_of(*key, &candidate);
        self.by_address.remove(&(candidate.endpoint.address, rank));
        if let Some(mac) = candidate.endpoint.mac {
            self.by_mac.remove(&(mac, rank));
        }
        if let Some(entry) = dual(&rank) {
            self.dual.remove(&entry);
        }
        let length = key.v4.prefix_len();
        match self.lengths.get(&length).map_or(0, |count| count.saturating_sub(1)) {
            0 => drop(self.lengths.remove(&length)),
            others => drop(self.lengths.insert(length, others)),
        }
    }

    /// Whether a lease is refused for the sake of another one.
    pub(super) fn is_refused(&self, key: &SubnetKey) -> bool {
        self.conflict(key).is_some()
    }

    /// Why it is, in words.
    pub(super) fn reason(&self, key: &SubnetKey) -> Option<String> {
        let (conflict, candidate) = (self.conflict(key)?, self.candidates.get(key)?);
        let endpoint = candidate.endpoint;
        let (what, rival) = match conflict {
            Conflict::TooMany => {
                let ip = endpoint.address;
                return Some(format!("its PublicIP {ip} is that of {MOST_SUBNETS} other leases already"));
            }
            Conflict::Overlap(rival) => ("its subnet overlaps".to_owned(), rival),
            Conflict::SameMac(rival) => {
                (format!("it has the MAC {} of", endpoint.mac.map(|mac| mac.to_string()).unwrap_or_default()), rival)
            }
            Conflict::Holds(rival) => {
                let address = self.candidates.get(&rival)?.endpoint.address;
                (format!("its subnet holds {address}, the address of"), rival)
            }
            Conflict::LiesIn(rival) => (format!("its address {} lies in the subnet of", endpoint.address), rival),
        };
        let other = self.candidates.get(&rival)?;
        let address = other.endpoint.address;
        Some(match (other.created, rival) < (candidate.created, *key) {
            true => format!("{what} the older lease {rival} of {address}"),
            false => {
                let (len, usual) = (key.v4.prefix_len(), self.usual_len);
                format!("{what} the lease {rival} of {address}; a /{len} gives way, hosts' subnets are /{usual} here")
            }
        })
    }

    /// Those whose verdict may depend on whether there is a lease with this key and endpoint. To be asked before and
    /// after it comes or goes.
    pub(super) fn affected(&self, key: &SubnetKey, endpoint: Endpoint, affected: &mut BTreeSet<SubnetKey>) {
        let at = |address| self.first_at(address).map(|rank| rank.key);
        affected.extend(self.around(key.v4.addr(), key.v4.prefix_len()).map(|rank| rank.key));
        affected.extend(self.around(endpoint.address, 32).map(|rank| rank.key));
        affected.extend(at(endpoint.address));
        if let Some(first) = endpoint.mac.and_then(|mac| self.first_with_mac(mac)) {
            affected.extend(self.address_of(&first).into_iter().flat_map(at));
        }
        if self.is_usual(key) {
            let inside = self.nets_inside(key.v4).filter_map(|net| self.first_of_net(net));
            affected.extend(inside.map(|rank| rank.key));
            affected.extend(self.addresses_inside(key.v4).flat_map(at));
        }
    }

    fn conflict(&self, key: &SubnetKey) -> Option<Conflict> {
        let candidate = self.candidates.get(key)?;
        let mine = self.rank_of(*key, candidate);
        self.overlap(&mine)
            .or_else(|| self.other_address(candidate.endpoint))
            .or_else(|| self.address_inside(&mine))
            .or_else(|| self.subnet_around(&mine, candidate.endpoint.address))
            .or_else(|| {
                let is_among_the_first = self.first_at(candidate.endpoint.address).any(|rank| rank == mine);
                (!is_among_the_first).then_some(Conflict::TooMany)
            })
    }

    fn overlap(&self, mine: &Rank) -> Option<Conflict> {
        let net = mine.key.v4;
        let same = self.first_of_net(net).filter(|first| first < mine);
        let unusual = !self.is_usual(&mine.key);
        let inside = || self.nets_inside(net).next().and_then(|inside| self.first_of_net(inside));
        let around = || {
            let around = Ipv4Net::new(net.addr(), self.usual_len).ok()?.trunc();
            self.first_of_net(around).filter(|_| self.usual_len < net.prefix_len())
        };
        let rival = same.or_else(|| if unusual { inside().or_else(around) } else { None })?;
        Some(Conflict::Overlap(rival.key))
    }

    fn other_address(&self, endpoint: Endpoint) -> Option<Conflict> {
        let first = self.first_with_mac(endpoint.mac?)?;
        let address = self.address_of(&first)?;
        (address != endpoint.address).then_some(Conflict::SameMac(first.key))
    }

    /// An address of another one inside our subnet.
    fn address_inside(&self, mine: &Rank) -> Option<Conflict> {
        let mut firsts = self.addresses_inside(mine.key.v4).filter_map(|address| self.first_at(address).next());
        let rival = match self.is_usual(&mine.key) {
            true => firsts.find(|first| first < mine),
            false => firsts.next(),
        };
        rival.map(|rival| Conflict::Holds(rival.key))
    }

    /// A subnet of another one around our address.
    fn subnet_around(&self, mine: &Rank, address: Ipv4Addr) -> Option<Conflict> {
        let net = Ipv4Net::new(address, self.usual_len).ok()?.trunc();
        let first = self.first_of_net(net).filter(|first| first < mine)?;
        Some(Conflict::LiesIn(first.key))
    }

    fn is_usual(&self, key: &SubnetKey) -> bool {
        key.v4.prefix_len() == self.usual_len
    }

    fn rank_of(&self, key: SubnetKey, candidate: &Candidate) -> Rank {
        let unusual = if self.is_usual(&key) { 0 } else { Rank::UNUSUAL };
        Rank { age: candidate.created.max(0).cast_unsigned() | unusual, key }
    }

    fn address_of(&self, rank: &Rank) -> Option<Ipv4Addr> {
        self.candidates.get(&rank.key).map(|candidate| candidate.endpoint.address)
    }

    /// The first lease of exactly this subnet.
    fn first_of_net(&self, net: Ipv4Net) -> Option<Rank> {
        self.step();
        let key = SubnetKey { v4: net, v6: None };
        let plain = self.candidates.get(&key).map(|candidate| self.rank_of(key, candidate));
        let dual = self.dual.range((net, Rank::FIRST)..).next().filter(|(other, _)| *other == net);
        [plain, dual.map(|(_, rank)| *rank)].into_iter().flatten().min()
    }

    fn first_with_mac(&self, mac: VtepMac) -> Option<Rank> {
        self.step();
        let first = self.by_mac.range((mac, Rank::FIRST)..).next()?;
        Some(first.1).filter(|_| first.0 == mac)
    }

    /// The leases with this address that are among the first.
    fn first_at(&self, address: Ipv4Addr) -> impl Iterator<Item = Rank> + '_ {
        let all = self.by_address.range((address, Rank::FIRST)..=(address, Rank::LAST));
        all.take(MOST_SUBNETS).map(|(_, rank)| *rank).inspect(|_| self.step())
    }

    /// The first lease of each subnet that holds this address and whose prefix is at most so long.
    fn around(&self, address: Ipv4Addr, longest: u8) -> impl Iterator<Item = Rank> + '_ {
        let lengths = self.lengths.keys().copied().take_while(move |length| *length <= longest);
        let nets = lengths.filter_map(move |length| Ipv4Net::new(address, length).ok());
        nets.filter_map(|net| self.first_of_net(net.trunc()))
    }

    /// The subnets that lie inside this network, each once, and are not it.
    fn nets_inside(&self, net: Ipv4Net) -> impl Iterator<Item = Ipv4Net> + '_ {
        let has_longer = self.lengths.range(net.prefix_len() + 1..).next().is_some();
        let after = move |net: Ipv4Net| {
            self.step();
            let from = SubnetKey { v4: net, v6: Some(LAST_V6) };
            self.candidates.range((Bound::Excluded(from), Bound::Unbounded)).next().map(|(key, _)| key.v4)
        };
        let first = if has_longer { after(net) } else { None };
        std::iter::successors(first, move |net| after(*net)).take_while(move |inside| net.contains(inside))
    }

    /// The addresses of leases that lie inside this network, each once.
    fn addresses_inside(&self, net: Ipv4Net) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let next = move |from: Bound<(Ipv4Addr, Rank)>| {
            self.step();
            self.by_address.range((from, Bound::Unbounded)).next().map(|(address, _)| *address)
        };
        let first = next(Bound::Included((net.network(), Rank::FIRST)));
        let others = move |address: &Ipv4Addr| next(Bound::Excluded((*address, Rank::LAST)));
        std::iter::successors(first, others).take_while(move |address| net.contains(address))
    }

    #[cfg(test)]
    fn step(&self) {
        self.steps.set(self.steps.get() + 1);
    }

    #[cfg(not(test))]
    fn step(&self) {}
}

fn dual(rank: &Rank) -> Option<(Ipv4Net, Rank)> {
    rank.key.v6.map(|_| (rank.key.v4, *rank))
}
