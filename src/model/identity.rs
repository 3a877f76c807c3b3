//! Which lease is ours, and what to do about it: one pure decision, taken anew whenever the leases may have changed.

use super::config::Overlay;
use super::lease::{Lease, LeaseId, Record, Revision};
use super::mac::VtepMac;
use super::subnet::{SubnetKey, overlap};
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// So many rivals are remembered at most: flannel's own has a new MAC for each new device, and nothing of it may grow for
/// ever.
const MOST_RIVALS: usize = 100;

/// What a host knows of itself.
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
    /// What this process has given to containers already.
    pub in_use: Option<InUse>,
}

/// A subnet that containers use. It is never changed under them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InUse {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// When its key was made: while it lives on, whoever overwrites it has not found the subnet free.
    pub created: Revision,
}

/// What to do about our lease.
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

    /// Decides from all keys under `subnets/`, with a uniform `random` number for a new choice, which avoids the networks
    /// `on_host` that are connected to this host's other interfaces.
    pub fn decide(&self, records: &[Record], on_host: &[Ipv4Net], overlay: &Overlay, random: u128) -> Decision {
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
        let adoptable = |lease: &&Lease| self.has_our_ip(lease) && self.rivals.is_empty();
        if let Some(lease) = leases().filter(fits).find(adoptable) {
            return Decision::Adopt(lease.clone());
        }
        let taken = || taken(records, overlay);
        let is_free = |subnet: &Ipv4Net| !taken().any(|other| overlap(other, (*subnet).into()));
        if let Some(subnet) = self.previous().find(|subnet| range.contains((*subnet).into()) && is_free(subnet)) {
            return Decision::Create(subnet);
        }
        let avoided = on_host.iter().copied().filter(|net| net.prefix_len() > overlay.network.prefix_len());
        match range.choose_free(taken().chain(avoided.map(IpNet::from)), random) {
            Some(IpNet::V4(subnet)) => Decision::Create(subnet),
            _ => Decision::OutOfSubnets,
        }
    }

    fn is_rival(&self, lease: &Lease) -> bool {
        lease.attrs.vtep_mac().is_some_and(|mac| self.rivals.contains(&mac))
    }

    fn previous(&self) -> impl Iterator<Item = Ipv4Net> {
        [self.remembered_subnet, self.env_subnet].into_iter().flatten()
    }

    /// While containers use a subnet there is only that one: it is kept, taken back, made again, or somebody else's.
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
                let covers = |record: &&Record| record.occupies().is_some_and(|net| overlap(net.into(), subnet.into()));
                records.iter().find(covers).map_or(Decision::Create(subnet), |record| Decision::Taken(record.clone()))
            }
        }
    }
}

/// The subnets that cannot be given out: every key that names one, refused ones too. A key that covers
/// a whole network or more is nobody's subnet; heeding it would let one key stop all hosts from joining.
fn taken<'r>(records: &'r [Record], overlay: &Overlay) -> impl Iterator<Item = IpNet> + 'r {
    let longest = overlay.network.prefix_len();
    let all = records.iter().filter_map(Record::occupies);
    all.filter(move |net| net.prefix_len() > longest).map(IpNet::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::NetworkConfig;

    const MAC: &str = "0e:00:00:00:00:01";
    const OTHER: &str = "0e:00:00:00:00:99";

    fn overlay() -> Overlay {
        let text = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.3.0"}"#;
        NetworkConfig::parse(text.as_bytes()).unwrap().ipv4.unwrap()
    }

    fn record(name: &str, ip: &str, mac: &str, lease: i64) -> Record {
        let value =
            format!(r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#);
        Record::decode(name, value.as_bytes(), LeaseId::new(lease), 1, 1)
    }

    fn lease(record: &Record) -> Lease {
        record.content.clone().unwrap()
    }

    fn identity() -> Identity {
        Identity { public_ip: Some("192.168.0.1".parse().unwrap()), ..Identity::default() }
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn each_proof_makes_a_lease_ours() {
        let mine = record("10.5.2.0-24", "192.168.0.1", MAC, 7);
        let moved = record("10.5.2.0-24", "192.168.0.77", MAC, 7);
        let mac = Some(MAC.parse().unwrap());
        for (identity, record) in [
            (Identity { remembered_lease: LeaseId::new(7), ..identity() }, &moved),
            (Identity { remembered_mac: mac, ..identity() }, &moved),
            (Identity { device_mac: mac, ..identity() }, &moved),
            (Identity { env_subnet: Some(net("10.5.2.0/24")), ..identity() }, &mine),
        ] {
            let decision = identity.decide(std::slice::from_ref(record), &[], &overlay(), 0);
            assert_eq!(decision, Decision::Keep(lease(record)), "{identity:?}");
            assert_eq!(identity.mac(&decision), mac);
        }
    }

    #[test]
    fn our_public_ip_alone_is_adopted_and_another_ones_key_is_left() {
        let same_ip = record("10.5.2.0-24", "192.168.0.1", OTHER, 7);
        assert_eq!(
            identity().decide(std::slice::from_ref(&same_ip), &[], &overlay(), 0),
            Decision::Adopt(lease(&same_ip))
        );
        let env = Identity { env_subnet: Some(net("10.5.2.0/24")), ..identity() };
        let foreign = record("10.5.2.0-24", "192.168.0.2", OTHER, 7);
        assert_eq!(env.decide(&[foreign], &[], &overlay(), 0), Decision::Create(net("10.5.1.0/24")));
    }

    #[test]
    fn two_reservations_are_not_taken_for_one_lease() {
        let reserved = record("10.5.2.0-24", "192.168.0.2", OTHER, 0);
        assert!(!identity().surely_owns(&lease(&reserved)));
    }

    #[test]
    fn what_does_not_fit_the_config_is_discarded() {
        let wrong = record("10.5.2.0-25", "192.168.0.1", MAC, 7);
        let identity = Identity { remembered_mac: Some(MAC.parse().unwrap()), ..identity() };
        assert_eq!(identity.decide(std::slice::from_ref(&wrong), &[], &overlay(), 0), Decision::Discard(lease(&wrong)));
    }

    #[test]
    fn a_dual_stack_lease_of_ours_does_not_fit_without_ipv6() {
        let dual = record("10.5.2.0-24&fc00:5:22::-64", "192.168.0.1", MAC, 7);
        let identity = Identity { remembered_mac: Some(MAC.parse().unwrap()), ..identity() };
        assert_eq!(identity.decide(std::slice::from_ref(&dual), &[], &overlay(), 0), Decision::Discard(lease(&dual)));
    }

    #[test]
    fn the_previous_subnet_is_taken_again_if_it_is_free() {
        let identity = Identity {
            remembered_subnet: Some(net("10.5.3.0/24")),
            env_subnet: Some(net("10.5.2.0/24")),
            ..identity()
        };
        assert_eq!(identity.decide(&[], &[], &overlay(), 0), Decision::Create(net("10.5.3.0/24")));
        let other = record("10.5.3.128-25", "192.168.0.2", OTHER, 7);
        assert_eq!(
            identity.decide(std::slice::from_ref(&other), &[], &overlay(), 0),
            Decision::Create(net("10.5.2.0/24"))
        );
        // Our own bridge still has the previous subnet: that is no reason not to take it again.
        let bridge = [net("10.5.2.0/24")];
        assert_eq!(identity.decide(&[other], &bridge, &overlay(), 0), Decision::Create(net("10.5.2.0/24")));
    }

    #[test]
    fn everything_parsable_is_taken_but_what_covers_the_network() {
        let bad = [
            Record::decode("10.5.1.7-24", b"", None, 1, 1),
            Record::decode("10.5.2.0-24", b"garbage", None, 1, 1),
            Record::decode("0.0.0.0-0", b"{}", None, 1, 1),
            Record::decode("10.5.0.0-16", b"{}", None, 1, 1),
        ];
        assert_eq!(identity().decide(&bad, &[], &overlay(), 5), Decision::Create(net("10.5.3.0/24")));
        assert_eq!(identity().decide(&bad, &[net("10.5.3.0/24")], &overlay(), 5), Decision::OutOfSubnets);
        assert_eq!(identity().decide(&bad, &[net("10.0.0.0/8")], &overlay(), 5), Decision::Create(net("10.5.3.0/24")));
    }

    #[test]
    fn a_subnet_in_use_is_kept_made_again_or_lost_but_never_changed() {
        let mac = Some(MAC.parse().unwrap());
        let in_use = Some(InUse { subnet: net("10.5.2.0/24"), created: 1 });
        let identity = Identity { in_use, remembered_mac: mac, ..identity() };
        let mine = record("10.5.2.0-24", "192.168.0.1", MAC, 7);
        let adopted = record("10.5.2.0-24", "192.168.0.1", OTHER, 8);
        let wider = record("10.5.2.0-23", "192.168.0.2", OTHER, 8);
        for (records, expected) in [
            (vec![], Decision::Create(net("10.5.2.0/24"))),
            (vec![mine.clone()], Decision::Keep(lease(&mine))),
            (vec![adopted.clone()], Decision::Reclaim(lease(&adopted))),
            (vec![Record::decode("10.5.2.0-24", b"garbage", None, 1, 9)], Decision::Overwrite(net("10.5.2.0/24"), 9)),
            (vec![wider.clone()], Decision::Taken(wider)),
        ] {
            assert_eq!(identity.decide(&records, &[], &overlay(), 0), expected);
        }
        let rivals = [OTHER.parse().unwrap()].into();
        let known = Identity { rivals, ..identity.clone() };
        assert_eq!(known.decide(std::slice::from_ref(&adopted), &[], &overlay(), 0), Decision::Taken(adopted.clone()));
        let later = Identity { in_use: Some(InUse { subnet: net("10.5.2.0/24"), created: 0 }), ..identity };
        assert_eq!(later.decide(std::slice::from_ref(&adopted), &[], &overlay(), 0), Decision::Taken(adopted));
    }

    #[test]
    fn who_yields_takes_another_subnet_and_a_copy_also_another_mac() {
        let mac: VtepMac = MAC.parse().unwrap();
        let [theirs, copied] = [OTHER, MAC].map(|mac| record("10.5.2.0-24", "192.168.0.1", mac, 7));
        let state = Identity {
            remembered_mac: Some(mac),
            remembered_lease: LeaseId::new(7),
            remembered_subnet: Some(net("10.5.2.0/24")),
            env_subnet: Some(net("10.5.2.0/24")),
            device_mac: Some(mac),
            ..identity()
        };
        for (record, keeps) in [(theirs, Some(mac)), (copied, None)] {
            let mut identity = state.clone();
            identity.back_off(&lease(&record));
            let decision = identity.decide(std::slice::from_ref(&record), &[], &overlay(), 0);
            assert_eq!(decision, Decision::Create(net("10.5.1.0/24")));
            assert_eq!(identity.mac(&decision), keeps);
        }
    }

    #[test]
    fn rivals_are_not_collected_without_end() {
        let mut identity = identity();
        for last in 0..=255 {
            let mac = format!("0e:00:00:00:00:{last:02x}");
            identity.meet(&lease(&record("10.5.2.0-24", "192.168.0.1", &mac, 7)));
            assert!(identity.rivals.contains(&mac.parse().unwrap()) && identity.rivals.len() <= MOST_RIVALS);
        }
        assert_eq!(identity.rivals.len(), MOST_RIVALS);
    }

    #[test]
    fn subnet_env_proves_nothing_to_a_host_that_knows_its_mac() {
        let same_ip = record("10.5.2.0-24", "192.168.0.1", OTHER, 7);
        let env_subnet = Some(net("10.5.2.0/24"));
        for identity in [
            Identity { remembered_mac: Some(MAC.parse().unwrap()), env_subnet, ..identity() },
            Identity { device_mac: Some(MAC.parse().unwrap()), env_subnet, ..identity() },
        ] {
            assert_eq!(
                identity.decide(std::slice::from_ref(&same_ip), &[], &overlay(), 0),
                Decision::Adopt(lease(&same_ip))
            );
        }
    }
}
