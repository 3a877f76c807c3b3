//! Peers are not trusted: which leases may become kernel state, and why not the others.
//!
//! A lease is judged alone (is its subnet, address and MAC one that a peer may have?), then against the others: of
//! two that exclude each other the one with the older key wins, whatever becomes of it otherwise. So a verdict
//! depends on few other leases, and [`Peers::update`] says which verdicts a change may have touched.

use super::lease::{Lease, Name, Record, Revision};
use super::mac::VtepMac;
use super::subnet::SubnetKey;
use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Where a peer's tunnel ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// Its MAC, for backends that have one.
    pub mac: Option<VtepMac>,
}

/// What a backend reads in a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// A peer.
    Endpoint(Endpoint),
    /// A reservation that no host has filled in yet.
    Pending,
    /// A lease of another backend.
    OtherBackend,
    /// Something that no backend could use, and why.
    Bad(String),
}

/// What is to become of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is a peer of ours.
    Peer(Endpoint),
    /// It is our own.
    Own,
    /// Its host has not appeared yet.
    Pending,
    /// It is left to hosts with that backend.
    OtherBackend,
    /// It must not reach the kernel, for this reason.
    Refused(String),
}

/// What a lease is judged by, apart from other leases.
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
    /// Addresses that the underlay needs: the store's endpoints and next hops, each with what it is.
    pub underlay: Vec<(String, IpAddr)>,
}

/// How many leases there are with each verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Peers of ours.
    pub peers: usize,
    /// Our own.
    pub own: usize,
    /// Reservations without a host.
    pub pending: usize,
    /// Leases of other backends.
    pub other_backend: usize,
    /// Not trusted.
    pub refused: usize,
}

impl Tally {
    fn of(&mut self, verdict: &Verdict) -> &mut usize {
        match verdict {
            Verdict::Peer(_) => &mut self.peers,
            Verdict::Own => &mut self.own,
            Verdict::Pending => &mut self.pending,
            Verdict::OtherBackend => &mut self.other_backend,
            Verdict::Refused(_) => &mut self.refused,
        }
    }
}

/// All leases with what was made of them.
#[derive(Debug, Default)]
pub struct Peers {
    facts: Facts,
    /// The leases that pass alone, and so take part in conflicts.
    candidates: BTreeMap<SubnetKey, Candidate>,
    /// Why some of them are refused all the same.
    conflicts: BTreeMap<SubnetKey, String>,
    /// What became of the others.
    rejected: BTreeMap<Name, Verdict>,
    by_mac: BTreeSet<(VtepMac, SubnetKey)>,
    by_address: BTreeSet<(Ipv4Addr, SubnetKey)>,
    /// How many fit ones have a prefix of this length: of hardly any length are there some.
    lengths: BTreeMap<u8, usize>,
    tally: Tally,
}

/// The least of all keys.
const FIRST: SubnetKey = SubnetKey { v4: Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0), v6: None };

#[derive(Debug, Clone, Copy)]
struct Candidate {
    endpoint: Endpoint,
    created: Revision,
}

impl Peers {
    /// Judges everything anew under other facts.
    pub fn revalidate<'r>(
        &mut self,
        facts: Facts,
        records: impl Iterator<Item = &'r Record>,
        read: impl Fn(&Lease) -> Reading,
    ) {
        *self = Peers { facts, ..Peers::default() };
        let mut all = Vec::new();
        for record in records {
            match self.alone(record, &read) {
                Ok(candidate) => all.push(candidate),
                Err(verdict) => self.set_rejected(record.name.clone(), verdict),
            }
        }
        // From sorted lists the maps are built faster and denser.
        self.by_mac = all.iter().filter_map(|(key, candidate)| Some((candidate.endpoint.mac?, *key))).collect();
        self.by_address = all.iter().map(|(key, candidate)| (candidate.endpoint.address, *key)).collect();
        all.iter().for_each(|(key, _)| *self.lengths.entry(key.v4.prefix_len()).or_default() += 1);
        let keys: Vec<SubnetKey> = all.iter().map(|(key, _)| *key).collect();
        self.candidates = all.into_iter().collect();
        keys.into_iter().for_each(|key| self.resolve_conflict(key));
    }

    /// What it judges by.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Takes in that the key `name` now has this record, or none; returns all names whose verdict may differ now.
    pub fn update(&mut self, name: &str, record: Option<&Record>, read: impl Fn(&Lease) -> Reading) -> BTreeSet<Name> {
        let mut touched = BTreeSet::new();
        if let Ok(key) = SubnetKey::parse(name)
            && let Some(old) = self.remove(&key)
        {
            touched.extend(self.rivals(&key, old.endpoint));
        }
        if let Some(old) = self.rejected.remove(name) {
            *self.tally.of(&old) -= 1;
        }
        match record.map(|record| (record, self.alone(record, read))) {
            Some((_, Ok((key, candidate)))) => {
                self.insert(key, candidate);
                touched.extend(self.rivals(&key, candidate.endpoint));
                touched.insert(key);
            }
            Some((record, Err(verdict))) => self.set_rejected(record.name.clone(), verdict),
            None => {}
        }
        touched.iter().for_each(|key| self.resolve_conflict(*key));
        touched.iter().map(|key| key.to_string().into()).chain([name.into()]).collect()
    }

    /// What is to become of the lease with this name.
    pub fn verdict(&self, name: &str) -> Option<Verdict> {
        if let Some(verdict) = self.rejected.get(name) {
            return Some(verdict.clone());
        }
        let key = SubnetKey::parse(name).ok()?;
        let candidate = self.candidates.get(&key)?;
        Some(match self.conflicts.get(&key) {
            Some(reason) => Verdict::Refused(reason.clone()),
            None => Verdict::Peer(candidate.endpoint),
        })
    }

    /// The peers.
    pub fn peers(&self) -> impl Iterator<Item = (SubnetKey, Endpoint)> + '_ {
        let peers = self.candidates.iter().filter(|(key, _)| !self.conflicts.contains_key(key));
        peers.map(|(key, candidate)| (*key, candidate.endpoint))
    }

    /// The names of the leases that are refused.
    pub fn refused(&self) -> impl Iterator<Item = Name> + '_ {
        let rejected = self.rejected.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Refused(_)));
        rejected.map(|(name, _)| name.clone()).chain(self.conflicts.keys().map(|key| key.to_string().into()))
    }

    /// How many leases there are with each verdict.
    pub fn tally(&self) -> Tally {
        let conflicts = self.conflicts.len();
        Tally { peers: self.candidates.len() - conflicts, refused: self.tally.refused + conflicts, ..self.tally }
    }

    /// Judges a record alone: one that passes takes part in conflicts.
    fn alone(&self, record: &Record, read: impl Fn(&Lease) -> Reading) -> Result<(SubnetKey, Candidate), Verdict> {
        let lease = record.content.as_ref().map_err(|malformed| Verdict::Refused(malformed.reason.clone()))?;
        if self.facts.own_subnet == Some(lease.subnet.v4) {
            return Err(Verdict::Own);
        }
        let endpoint = match read(lease) {
            Reading::Pending => return Err(Verdict::Pending),
            Reading::OtherBackend => return Err(Verdict::OtherBackend),
            Reading::Bad(reason) => return Err(Verdict::Refused(reason)),
            Reading::Endpoint(endpoint) => endpoint,
        };
        match self.facts.objection(lease, endpoint) {
            Some(reason) => Err(Verdict::Refused(reason)),
            None => Ok((lease.subnet, Candidate { endpoint, created: lease.created })),
        }
    }

    fn set_rejected(&mut self, name: Name, verdict: Verdict) {
        *self.tally.of(&verdict) += 1;
        self.rejected.insert(name, verdict);
    }

    /// Judges one that passes alone against the others.
    fn resolve_conflict(&mut self, key: SubnetKey) {
        let Some(candidate) = self.candidates.get(&key).copied() else { return };
        let older = |rival: &SubnetKey| {
            self.candidates.get(rival).is_some_and(|r| (r.created, rival) < (candidate.created, &key))
        };
        let rivals = self.rivals(&key, candidate.endpoint);
        match rivals.iter().find(|rival| older(rival)) {
            None => drop(self.conflicts.remove(&key)),
            Some(rival) => {
                let reason = self.conflict(&key, candidate.endpoint, rival);
                self.conflicts.insert(key, reason);
            }
        }
    }

    /// The leases that cannot be programmed beside a lease with this subnet and endpoint: those with its MAC and
    /// another address, those whose subnet overlaps, those of which one's subnet holds the other's address.
    fn rivals(&self, key: &SubnetKey, endpoint: Endpoint) -> BTreeSet<SubnetKey> {
        let elsewhere =
            |other: &SubnetKey| self.candidates.get(other).is_some_and(|f| f.endpoint.address != endpoint.address);
        let same_mac = endpoint.mac.into_iter().flat_map(|mac| self.with_mac(mac)).filter(elsewhere);
        let around = self.lengths.keys().filter(|length| **length <= key.v4.prefix_len());
        let around = around.flat_map(|length| self.with_net(key.v4.addr(), *length));
        let at_home = self.lengths.keys().flat_map(|length| self.with_net(endpoint.address, *length));
        let rivals = same_mac.chain(self.within(key.v4)).chain(around).chain(at_home).chain(self.addressed(key.v4));
        rivals.filter(|rival| rival != key).collect()
    }

    fn with_mac(&self, mac: VtepMac) -> impl Iterator<Item = SubnetKey> + '_ {
        self.by_mac.range((mac, FIRST)..).take_while(move |(other, _)| *other == mac).map(|(_, key)| *key)
    }

    /// Those whose address lies in this network.
    fn addressed(&self, net: Ipv4Net) -> impl Iterator<Item = SubnetKey> + '_ {
        let from = (net.network(), FIRST);
        self.by_address.range(from..).take_while(move |(address, _)| *address <= net.broadcast()).map(|(_, key)| *key)
    }

    fn within(&self, net: Ipv4Net) -> impl Iterator<Item = SubnetKey> + '_ {
        let from = SubnetKey { v4: net, v6: None };
        self.candidates.range(from..).map(|(key, _)| *key).take_while(move |key| net.contains(&key.v4.network()))
    }

    fn with_net(&self, address: Ipv4Addr, length: u8) -> impl Iterator<Item = SubnetKey> + '_ {
        let net = Ipv4Net::new(address, length).map(|net| net.trunc());
        let from = net.ok().map(|v4| SubnetKey { v4, v6: None });
        let range = from.map(|from| self.candidates.range(from..).take_while(move |(key, _)| key.v4 == from.v4));
        range.into_iter().flatten().map(|(key, _)| *key)
    }

    fn conflict(&self, key: &SubnetKey, endpoint: Endpoint, rival: &SubnetKey) -> String {
        let Some(other) = self.candidates.get(rival) else { return "conflicts with another lease".into() };
        let what = if key.v4.contains(&rival.v4) || rival.v4.contains(&key.v4) {
            "its subnet overlaps".to_owned()
        } else if key.v4.contains(&other.endpoint.address) {
            format!("its subnet holds {}, the address of", other.endpoint.address)
        } else if rival.v4.contains(&endpoint.address) {
            format!("its address {} lies in the subnet of", endpoint.address)
        } else {
            format!("it has the MAC {} of", endpoint.mac.map(|mac| mac.to_string()).unwrap_or_default())
        };
        format!("{what} the older lease {rival} of {}", other.endpoint.address)
    }

    fn insert(&mut self, key: SubnetKey, candidate: Candidate) {
        *self.lengths.entry(key.v4.prefix_len()).or_default() += 1;
        self.by_address.insert((candidate.endpoint.address, key));
        self.by_mac.extend(candidate.endpoint.mac.map(|mac| (mac, key)));
        self.candidates.insert(key, candidate);
    }

    fn remove(&mut self, key: &SubnetKey) -> Option<Candidate> {
        let candidate = self.candidates.remove(key)?;
        self.conflicts.remove(key);
        self.by_address.remove(&(candidate.endpoint.address, *key));
        if let Some(mac) = candidate.endpoint.mac {
            self.by_mac.remove(&(mac, *key));
        }
        let length = key.v4.prefix_len();
        let others = self.lengths.get(&length).map_or(0, |count| count.saturating_sub(1));
        match others {
            0 => drop(self.lengths.remove(&length)),
            others => drop(self.lengths.insert(length, others)),
        }
        Some(candidate)
    }
}

impl Facts {
    /// The connected networks that reach over more than one host's subnet of the overlay, by interface name: no reason
    /// to refuse a peer, but what they have where a peer's subnet is cannot be reached from this host.
    pub fn wider_networks(&self) -> impl Iterator<Item = (&str, Ipv4Net)> {
        let one_host = self.own_subnet.map_or(0, |own| own.prefix_len());
        let overlay = self.network;
        let networks = self.connected.iter().map(|(name, net)| (name.as_str(), net.trunc()));
        networks.filter(move |(_, net)| {
            net.prefix_len() < one_host && overlay.is_some_and(|overlay| super::subnet::overlap((*net).into(), overlay))
        })
    }

    /// Why a lease cannot be a peer, whatever the others are.
    fn objection(&self, lease: &Lease, endpoint: Endpoint) -> Option<String> {
        self.subnet_objection(lease.subnet.v4).or_else(|| self.endpoint_objection(endpoint))
    }

    fn subnet_objection(&self, subnet: Ipv4Net) -> Option<String> {
        let inside =
            |network: &IpNet| network.contains(&IpNet::from(subnet)) && network.prefix_len() < subnet.prefix_len();
        if !self.network.as_ref().is_some_and(inside) {
            let network = self.network.map(|net| net.to_string()).unwrap_or_default();
            return Some(format!("its subnet is not inside the network {network}"));
        }
        if let Some(own) = self.own_subnet.filter(|own| own.contains(&subnet) || subnet.contains(own)) {
            return Some(format!("its subnet overlaps ours, {own}"));
        }
        let hit = self.connected.iter().find(|(_, net)| subnet.contains(&net.addr()) || subnet.contains(&net.trunc()));
        if let Some((name, net)) = hit {
            return Some(format!("its subnet holds {net}, which is on this host's {name}"));
        }
        let own = self.own_addresses.range(subnet.network()..=subnet.broadcast()).next();
        if let Some(address) = own {
            return Some(format!("its subnet holds {address}, an address of this host"));
        }
        let needed = self.underlay.iter().find(|(_, ip)| matches!(ip, IpAddr::V4(ip) if subnet.contains(ip)));
        needed.map(|(what, ip)| format!("its subnet holds {ip}, {what}"))
    }

    fn endpoint_objection(&self, endpoint: Endpoint) -> Option<String> {
        let ip = endpoint.address;
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0 {
            return Some(format!("its PublicIP {ip} is not the address of a host"));
        }
        if self.own_addresses.contains(&ip) {
            return Some(format!("its PublicIP {ip} is ours"));
        }
        if let Some(own) = self.own_subnet.filter(|own| own.contains(&ip)) {
            return Some(format!("its PublicIP {ip} lies in our subnet, {own}"));
        }
        let mac = endpoint.mac?;
        if !mac.is_usable() {
            return Some(format!("its VtepMAC {mac} is not the address of a host"));
        }
        (self.own_mac == Some(mac)).then(|| format!("its VtepMAC {mac} is ours"))
    }
}

#[cfg(test)]
#[path = "peer_policy_tests.rs"]
mod tests;
