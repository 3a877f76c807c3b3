//! Peers are not trusted: which leases may become kernel state, and why not the others.
//!
//! A lease is judged alone (is its subnet, address and MAC one that a peer may have?), then against the others: of
//! two that exclude each other the one with the higher rank wins, as a rule the older one. A verdict depends on few other
//! leases, and a change of one lease costs O(log n) among n leases, hostile ones included: see [`contenders`].

mod contenders;
mod facts;

pub use contenders::MOST_SUBNETS;
pub use facts::{Facts, Needed, needed_inside, underlay};

use super::lease::{Lease, Name, Record};
use super::mac::VtepMac;
use super::subnet::SubnetKey;
use contenders::{Candidate, Contenders};
use facts::Checks;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Where a peer's tunnel ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Its underlay address.
    pub address: Ipv4Addr,
    /// Its MAC, for backends that have one.
    pub mac: Option<VtepMac>,
}

/// The backend's reading of a lease.
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

/// The verdict on a lease.
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
    checks: Checks,
    /// The leases that pass alone, and so take part in conflicts.
    contenders: Contenders,
    /// Those of them that are refused for the sake of others.
    conflicts: BTreeSet<SubnetKey>,
    /// The verdicts on the others.
    rejected: BTreeMap<Name, Verdict>,
    tally: Tally,
}

impl Peers {
    /// Judges everything anew under other facts.
    pub fn revalidate<'r>(
        &mut self,
        facts: Facts,
        records: impl Iterator<Item = &'r Record>,
        read: impl Fn(&Lease) -> Reading,
    ) {
        let usual_len = facts.own_subnet.map_or(0, |own| own.prefix_len());
        *self = Peers { checks: Checks::new(facts), ..Peers::default() };
        let mut all = Vec::new();
        for record in records {
            match self.alone(record, &read) {
                Ok(candidate) => all.push(candidate),
                Err(verdict) => self.set_rejected(record.name.clone(), verdict),
            }
        }
        self.contenders = Contenders::new(usual_len, all);
        let keys = self.contenders.iter().map(|(key, _)| *key);
        self.conflicts = keys.filter(|key| self.contenders.is_refused(key)).collect();
    }

    /// The facts by which it judges.
    pub fn facts(&self) -> &Facts {
        &self.checks.facts
    }

    /// Takes in that the key `name` now has this record, or none; returns this name and all others of which it changed
    /// whether they are peers.
    pub fn update(&mut self, name: &str, record: Option<&Record>, read: impl Fn(&Lease) -> Reading) -> BTreeSet<Name> {
        if let Some(old) = self.rejected.remove(name) {
            *self.tally.of(&old) -= 1;
        }
        let new = match record.map(|record| (record, self.alone(record, read))) {
            Some((_, Ok((_, candidate)))) => Some(candidate),
            Some((record, Err(verdict))) => {
                self.set_rejected(record.name.clone(), verdict);
                None
            }
            None => None,
        };
        let key = SubnetKey::parse(name).ok();
        let changed = key.map(|key| self.replace(key, new)).unwrap_or_default();
        changed.into_iter().map(|key| key.to_string().into()).chain([name.into()]).collect()
    }

    /// Puts a candidate, or none, in the place of the one with this key; returns of whom it changed whether they are
    /// refused.
    fn replace(&mut self, key: SubnetKey, new: Option<Candidate>) -> Vec<SubnetKey> {
        let old = self.contenders.get(&key).copied();
        if old == new {
            return Vec::new();
        }
        let mut affected = BTreeSet::from([key]);
        let look = |contenders: &Contenders, affected: &mut BTreeSet<SubnetKey>| {
            let both = old.iter().chain(&new);
            both.for_each(|candidate| contenders.affected(&key, candidate.endpoint, affected));
        };
        look(&self.contenders, &mut affected);
        self.contenders.remove(&key);
        if let Some(candidate) = new {
            self.contenders.insert(key, candidate);
        }
        look(&self.contenders, &mut affected);
        affected.into_iter().filter(|key| self.resolve_conflict(*key)).collect()
    }

    /// The verdict on the lease with this name.
    pub fn verdict(&self, name: &str) -> Option<Verdict> {
        if let Some(verdict) = self.rejected.get(name) {
            return Some(verdict.clone());
        }
        let key = SubnetKey::parse(name).ok()?;
        let candidate = self.contenders.get(&key)?;
        Some(match self.conflicts.contains(&key) {
            true => Verdict::Refused(self.contenders.reason(&key).unwrap_or_default()),
            false => Verdict::Peer(candidate.endpoint),
        })
    }

    /// The peers.
    pub fn peers(&self) -> impl Iterator<Item = (SubnetKey, Endpoint)> + '_ {
        let peers = self.contenders.iter().filter(|(key, _)| !self.conflicts.contains(key));
        peers.map(|(key, candidate)| (*key, candidate.endpoint))
    }

    /// The names of the leases that are refused.
    pub fn refused(&self) -> impl Iterator<Item = Name> + '_ {
        let rejected = self.rejected.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Refused(_)));
        rejected.map(|(name, _)| name.clone()).chain(self.conflicts.iter().map(|key| key.to_string().into()))
    }

    /// How many leases there are with each verdict.
    pub fn tally(&self) -> Tally {
        let conflicts = self.conflicts.len();
        Tally { peers: self.contenders.len() - conflicts, refused: self.tally.refused + conflicts, ..self.tally }
    }

    /// Judges a record alone: one that passes takes part in conflicts.
    fn alone(&self, record: &Record, read: impl Fn(&Lease) -> Reading) -> Result<(SubnetKey, Candidate), Verdict> {
        let lease = record.content.as_ref().map_err(|malformed| Verdict::Refused(malformed.reason.clone()))?;
        if self.facts().own_subnet == Some(lease.subnet.v4) {
            return Err(Verdict::Own);
        }
        let endpoint = match read(lease) {
            Reading::Pending => return Err(Verdict::Pending),
            Reading::OtherBackend => return Err(Verdict::OtherBackend),
            Reading::Bad(reason) => return Err(Verdict::Refused(reason)),
            Reading::Endpoint(endpoint) => endpoint,
        };
        match self.checks.objection(lease, endpoint) {
            Some(reason) => Err(Verdict::Refused(reason)),
            None => Ok((lease.subnet, Candidate { endpoint, created: lease.created })),
        }
    }

    fn set_rejected(&mut self, name: Name, verdict: Verdict) {
        *self.tally.of(&verdict) += 1;
        self.rejected.insert(name, verdict);
    }

    /// Finds out whether a lease is refused for the sake of others; tells whether that has changed, or it is gone.
    fn resolve_conflict(&mut self, key: SubnetKey) -> bool {
        match self.contenders.is_refused(&key) {
            true => self.conflicts.insert(key),
            false => self.conflicts.remove(&key),
        }
    }
}

#[cfg(test)]
mod growth_tests;
#[cfg(test)]
mod tests;
