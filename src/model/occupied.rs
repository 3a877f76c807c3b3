//! Which subnets the keys in the store keep from being given out.
//!
//! Every key that names a subnet counts, refused ones too: behind each may be a host that runs another flanneld. But there
//! are two questions. A new host, which may choose, leaves alone whatever is named, as long as anything else is free. A
//! host that wants its own subnet back, and a new one that finds nothing else, yield to what may be a host's: a key of the
//! size of a host's subnet or smaller, or a wider one that is a live lease without a host's lease inside it. A stray wide
//! key, which every host refuses because of its size, stops nobody. A key that covers the whole network counts for nothing.

use super::config::Overlay;
use super::lease::{Lease, Record};
use super::subnet::overlap;
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The subnets that keys in the store occupy.
pub(super) struct Occupied {
    /// The subnets that may belong to hosts.
    contesting: Vec<Ipv4Net>,
    /// Wide keys that are nobody's.
    stray: Vec<Ipv4Net>,
    /// The hosts' own addresses as far as they lie in the overlay.
    public_ips: BTreeSet<Ipv4Addr>,
}

impl Occupied {
    pub(super) fn by(records: &[Record], overlay: &Overlay) -> Self {
        let (network, usual_len) = (overlay.network, overlay.subnets.subnet_len());
        let lease = |record: &'_ Record| record.content.as_ref().ok().map(|lease| lease.attrs.public_ip);
        let in_overlay = |ip: &Ipv4Addr| network.contains(&IpNet::from(std::net::IpAddr::from(*ip)));
        let public_ips = records.iter().filter_map(lease).filter(in_overlay).collect();
        let all = records.iter().filter_map(|record| Some((record.occupies()?, record)));
        let all = all.filter(|(net, _)| net.prefix_len() > network.prefix_len());
        let (wide, mut contesting): (Vec<_>, Vec<_>) = all.partition(|(net, _)| net.prefix_len() < usual_len);
        let mut stray = Vec::new();
        if !wide.is_empty() {
            let of_hosts: BTreeSet<Ipv4Net> =
                contesting.iter().filter(|(_, record)| live(record).is_some()).map(|(net, _)| *net).collect();
            let has_host = |net: Ipv4Net| of_hosts.range(net..).next().is_some_and(|inside| net.contains(inside));
            for (net, record) in wide {
                match live(record).is_some_and(is_plausible) && !has_host(net) {
                    true => contesting.push((net, record)),
                    false => stray.push(net),
                }
            }
        }
        Occupied { contesting: contesting.into_iter().map(|(net, _)| net).collect(), stray, public_ips }
    }

    /// Whether a subnet overlaps what may be a host's.
    pub(super) fn contests(&self, subnet: Ipv4Net) -> bool {
        self.contesting.iter().any(|net| overlap((*net).into(), subnet.into()))
    }

    /// The subnets that may belong to hosts.
    pub(super) fn contesting(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.contesting.iter().map(|net| IpNet::from(*net))
    }

    /// Whether there are wide keys that are nobody's.
    pub(super) fn has_strays(&self) -> bool {
        !self.stray.is_empty()
    }

    /// Everything that a key names.
    pub(super) fn all(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.contesting().chain(self.stray.iter().map(|net| IpNet::from(*net)))
    }

    /// The addresses of hosts in the overlay.
    pub(super) fn public_ips(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.public_ips.iter().map(|ip| IpNet::from(std::net::IpAddr::from(*ip)))
    }

    /// Such an address inside a subnet, in words.
    pub(super) fn public_ip_inside(&self, subnet: Ipv4Net) -> Option<String> {
        let ip = self.public_ips.range(subnet.network()..=subnet.broadcast()).next()?;
        Some(format!("{ip}, the PublicIP of another lease"))
    }
}

/// The lease of a host that renews it.
fn live(record: &Record) -> Option<&Lease> {
    record.content.as_ref().ok().filter(|lease| lease.lease_id.is_some())
}

/// Whether others could reach the host behind a lease.
fn is_plausible(lease: &Lease) -> bool {
    let ip = lease.attrs.public_ip;
    let is_host = !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast());
    is_host && !lease.subnet.v4.contains(&ip) && lease.attrs.vtep_mac().is_none_or(|mac| mac.is_usable())
}
