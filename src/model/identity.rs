//! Which lease is ours, and what to do about it: one pure decision, taken anew whenever the leases may have changed.

use super::config::Overlay;
use super::lease::{Lease, LeaseId, Record, Revision};
use super::mac::VtepMac;
use super::occupied::Occupied;
use super::peer_policy::{Needed, needed_inside};
use super::subnet::{SubnetKey, overlap};
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The largest number of rivals that is remembered: flannel's own has a new MAC for each new device, and nothing of
/// it may grow for ever.
const MOST_RIVALS: usize = 100;

/// The facts by which a host recognises its own lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// The address that others reach this host at.
    pub public_ip: Option<Ipv4Addr>,
    /// The MAC in the state file.
    pub remembered_mac: Option<VtepMac>,
    /// The etcd lease id in the state file.
    pub remembered_lease: Option<LeaseId>,
    /// The subnet in the state file.
    pub remembered_subnet: Option<Ipv4Net>,
    /// The subnet in `subnet.env`.
    pub env_subnet: Option<Ipv4Net>,
    /// The MAC of the VXLAN device, if it exists.
    pub device_mac: Option<VtepMac>,
    /// The MACs of hosts that have shown that they live under our public IP: while there are any, no lease is ours to
    /// adopt because of that address.
    pub rivals: BTreeSet<VtepMac>,
    /// The subnet that this process has given to containers already.
    pub in_use: Option<InUse>,
}

/// A subnet that containers use. It is never changed under them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InUse {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// The revision that created its key. A host that overwrites the key while this revision is unchanged has not found the
    /// subnet free.
    pub created: Revision,
}

/// The addresses that our subnet must not hold. A peer's lease would be refused for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The networks on this host's other interfaces.
    pub on_host: Vec<Ipv4Net>,
    /// The addresses that this host depends on.
    pub needed: Vec<Needed>,
}

/// The decision about our lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This one is ours beyond doubt: keep it, on its etcd lease.
    Keep(Lease),
    /// It has our public IP, but nothing proves that it is ours (as flannel does, it is taken over): under a new etcd
    /// lease, so that another live host on that key sees it.
    Adopt(Lease),
    /// It is ours beyond doubt but does not fit the config: delete it and decide again.
    Discard(Lease),
    /// Somebody with our public IP has adopted the lease of the subnet in use: take it back, once.
    Reclaim(Lease),
    /// The key of the subnet in use holds what is no lease at all, last written at this revision: overwrite it.
    Overwrite(Ipv4Net, Revision),
    /// Make a key for this free subnet.
    Create(Ipv4Net),
    /// The subnet in use belongs to this one now.
    Taken(Record),
    /// No subnet of the range is free.
    OutOfSubnets,
    /// No free subnet is of use: this one, for example, holds that.
    Unusable(Ipv4Net, String),
}

impl Identity {
    /// Whether a lease is surely ours: it is kept by the etcd lease that we remember, or it has the MAC that we
    /// remember or find on our device, or it is the subnet that `subnet.env` names under our public IP. The last is
    /// no proof when we know a MAC of ours: another host may have our public IP.
    pub fn surely_owns(&self, lease: &Lease) -> bool {
        let mac = lease.attrs.vtep_mac();
        let same_lease = lease.lease_id.is_some() && lease.lease_id == self.remembered_lease;
        let same_mac = mac.is_some() && (mac == self.remembered_mac || mac == self.device_mac);
        let no_mac = self.remembered_mac.is_none() && self.device_mac.is_none();
        let same_subnet = no_mac && self.env_subnet == Some(lease.subnet.v4) && self.has_our_ip(lease);
        same_lease || same_mac || same_subnet
    }

    /// Another host has shown that this lease, which we took for ours, is its own. If it has our MAC as well we are a
    /// copy of it, and nothing that we remember is true of us.
    pub fn back_off(&mut self, lease: &Lease) {
        let mac = lease.attrs.vtep_mac();
        self.meet(lease);
        (self.remembered_lease, self.remembered_subnet, self.env_subnet) = (None, None, None);
        if mac.is_some() && mac == self.remembered_mac {
            self.remembered_mac = None;
        }
        if mac.is_some() && mac == self.device_mac {
            self.device_mac = None;
        }
    }

    /// The host with this lease lives under our public IP.
    pub fn meet(&mut self, rival: &Lease) {
        let Some(mac) = rival.attrs.vtep_mac() else { return };
        while self.rivals.len() >= MOST_RIVALS && !self.rivals.contains(&mac) {
            self.rivals.pop_first();
        }
        self.rivals.insert(mac);
    }

    fn has_our_ip(&self, lease: &Lease) -> bool {
        self.public_ip == Some(lease.attrs.public_ip)
    }

    /// The MAC to publish: that of a lease which is surely ours, else the remembered one, else the device's. `None`
    /// when a new one must be made. While we run it never changes.
    pub fn mac(&self, decision: &Decision) -> Option<VtepMac> {
        let leased = match decision {
            Decision::Keep(lease) if self.in_use.is_none() => lease.attrs.vtep_mac(),
            _ => None,
        };
        [leased, self.remembered_mac, self.device_mac].into_iter().flatten().find(|mac| mac.is_usable())
    }

    /// Decides from all keys under `subnets/`, with a uniform `random` number for a new choice.
    pub fn decide(&self, records: &[Record], around: &Surroundings, overlay: &Overlay, random: u128) -> Decision {
        let range = &overlay.subnets;
        if let Some(in_use) = self.in_use {
            return self.reclaim(records, in_use);
        }
        let fits = |lease: &&Lease| lease.subnet.v6.is_none() && range.contains(lease.subnet.v4.into());
        let leases = || records.iter().filter_map(|record| record.content.as_ref().ok());
        // To look at each lease means to read its JSON: it is done once.
        let ours: Vec<&Lease> = leases().filter(|lease| self.surely_owns(lease)).collect();
        let fitting = || ours.iter().copied().filter(fits);
        let preferred = |lease: &&Lease| self.previous().any(|subnet| subnet == lease.subnet.v4);
        if let Some(lease) = fitting().find(preferred).or_else(|| fitting().next()) {
            return Decision::Keep(lease.clone());
        }
        if let Some(lease) = ours.first() {
            return Decision::Discard((*lease).clone());
        }
        // Where a rival has shown itself our public IP proves nothing: of those who share it each has a lease of its own.
        let adoptable = |lease: &&Lease| {
            self.has_our_ip(lease) && self.rivals.is_empty() && needed_inside(&around.needed, lease.subnet.v4).is_none()
        };
        if let Some(lease) = leases().filter(fits).find(adoptable) {
            return Decision::Adopt(lease.clone());
        }
        self.create(&Occupied::by(records, overlay), around, overlay, random)
    }

    /// Decides which subnet to create: the previous one if it is free, else a random one that is free.
    fn create(&self, occupied: &Occupied, around: &Surroundings, overlay: &Overlay, random: u128) -> Decision {
        let range = &overlay.subnets;
        // A network on the host may be that of our own bridge, which still has the previous subnet.
        let objection = |subnet| needed_inside(&around.needed, subnet).or_else(|| occupied.public_ip_inside(subnet));
        let is_free = |subnet: &Ipv4Net| {
            range.contains((*subnet).into()) && !occupied.contests(*subnet) && objection(*subnet).is_none()
        };
        if let Some(subnet) = self.previous().find(is_free) {
            return Decision::Create(subnet);
        }
        let on_host = around.on_host.iter().filter(|net| net.prefix_len() > overlay.network.prefix_len());
        let needed = around.needed.iter().map(|(_, ip)| IpNet::from(*ip)).chain(occupied.public_ips());
        let avoided: Vec<IpNet> = on_host.clone().map(|net| IpNet::from(*net)).chain(needed).collect();
        let avoiding =
            |taken: &mut dyn Iterator<Item = IpNet>| range.choose_free(avoided.iter().copied().chain(taken), random);
        let outside = avoiding(&mut occupied.all());
        let inside = || avoiding(&mut occupied.contesting());
        if let Some(IpNet::V4(subnet)) = outside.or_else(|| if occupied.has_strays() { inside() } else { None }) {
            return Decision::Create(subnet);
        }
        let Some(IpNet::V4(free)) = range.choose_free(occupied.contesting(), random) else {
            return Decision::OutOfSubnets;
        };
        let covers = |net: &&Ipv4Net| overlap((**net).into(), free.into());
        let network = || on_host.clone().find(covers).map(|net| format!("{net}, a network of this host"));
        Decision::Unusable(free, objection(free).or_else(network).unwrap_or_default())
    }

    fn is_rival(&self, lease: &Lease) -> bool {
        lease.attrs.vtep_mac().is_some_and(|mac| self.rivals.contains(&mac))
    }

    fn previous(&self) -> impl Iterator<Item = Ipv4Net> {
        [self.remembered_subnet, self.env_subnet].into_iter().flatten()
    }

    /// While containers use a subnet there is only that one: it is kept, taken back, made again, or somebody else's. Only
    /// a lease of the same subnet makes it somebody else's: peers refuse those that overlap it and have another size.
    fn reclaim(&self, records: &[Record], InUse { subnet, created }: InUse) -> Decision {
        let is_adopted = |lease: &Lease| lease.created == created && self.has_our_ip(lease) && !self.is_rival(lease);
        let key = SubnetKey::v4(subnet).to_string();
        let same = records.iter().find(|record| *record.name == *key);
        match same.map(|record| (&record.content, record)) {
            Some((Ok(lease), _)) if self.surely_owns(lease) => Decision::Keep(lease.clone()),
            Some((Ok(lease), _)) if is_adopted(lease) => Decision::Reclaim(lease.clone()),
            Some((Err(malformed), _)) => Decision::Overwrite(subnet, malformed.modified),
            Some((_, record)) => Decision::Taken(record.clone()),
            None => {
                let has_it = |record: &&Record| matches!(&record.content, Ok(lease) if lease.subnet.v4 == subnet);
                records.iter().find(has_it).map_or(Decision::Create(subnet), |record| Decision::Taken(record.clone()))
            }
        }
    }
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
