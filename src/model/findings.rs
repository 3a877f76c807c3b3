//! Findings about the leases and the host's networks for an administrator, as data: those that hold now, and those
//! that began or ended since it was last taken.

use super::lease::Name;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};

/// Something that began or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// This lease is refused, or is refused for another reason than before.
    Refused {
        /// The lease's name in the store.
        lease: Name,
        /// Why the lease is refused.
        reason: String,
    },
    /// This lease was refused and no longer is.
    RefusalEnded {
        /// The lease's name in the store.
        lease: Name,
    },
    /// An interface of the host is in a network that overlaps the overlay and is wider than a peer's subnet.
    WiderNetwork {
        /// The interface's name.
        interface: String,
        /// The network of its address.
        network: Ipv4Net,
        /// The overlay.
        overlay: Ipv4Net,
    },
}

/// The findings that hold now, and their changes.
#[derive(Debug, Default)]
pub struct Findings {
    /// The leases that are refused, and why.
    refused: BTreeMap<Name, String>,
    /// The leases of other hosts with our public IP, and a sentence on each.
    duplicate_ips: BTreeMap<Name, String>,
    /// The networks of other interfaces that overlap the overlay and are wider than a peer's subnet.
    wider: BTreeSet<(String, Ipv4Net)>,
    news: Vec<Finding>,
}

impl Findings {
    /// The findings that began or ended since the last call, in that order.
    pub fn take(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.news)
    }

    /// The leases with a refusal or a duplicate public IP.
    pub fn leases(&self) -> impl Iterator<Item = &Name> {
        self.refused.keys().chain(self.duplicate_ips.keys())
    }

    /// A sentence on the first lease of another host with our public IP, and the number of further ones.
    pub fn duplicate_ip(&self) -> Option<String> {
        let first = self.duplicate_ips.values().next()?;
        Some(match self.duplicate_ips.len() - 1 {
            0 => first.clone(),
            more => format!("{first} (and {more} more)"),
        })
    }

    /// Sets whether, and why, a lease is refused.
    pub fn set_refusal(&mut self, lease: &Name, reason: Option<String>) {
        if self.refused.get(lease) == reason.as_ref() {
            return;
        }
        let lease = lease.clone();
        self.news.push(match reason {
            Some(reason) => {
                self.refused.insert(lease.clone(), reason.clone());
                Finding::Refused { lease, reason }
            }
            None => {
                self.refused.remove(&lease);
                Finding::RefusalEnded { lease }
            }
        });
    }

    /// Sets whether a lease is one of another host with our public IP.
    pub fn set_duplicate_ip(&mut self, lease: &Name, sentence: Option<String>) {
        match sentence {
            Some(sentence) => drop(self.duplicate_ips.insert(lease.clone(), sentence)),
            None => drop(self.duplicate_ips.remove(lease)),
        }
    }

    /// Sets which interfaces are in wider networks that overlap this overlay. Each is reported once, until it has gone.
    pub fn set_wider_networks(&mut self, overlay: Ipv4Net, wider: BTreeSet<(String, Ipv4Net)>) {
        for (interface, network) in wider.difference(&self.wider).cloned() {
            self.news.push(Finding::WiderNetwork { interface, network, overlay });
        }
        self.wider = wider;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        "10.5.1.0-24".into()
    }

    fn refused(reason: &str) -> Finding {
        Finding::Refused { lease: name(), reason: reason.to_owned() }
    }

    #[test]
    fn a_refusal_is_reported_once_per_reason_and_so_is_its_end() {
        let mut findings = Findings::default();
        for reason in [Some("a"), Some("a"), Some("b"), None, None, Some("b")] {
            findings.set_refusal(&name(), reason.map(str::to_owned));
        }
        let ended = Finding::RefusalEnded { lease: name() };
        assert_eq!(findings.take(), [refused("a"), refused("b"), ended, refused("b")]);
        assert_eq!(findings.take(), []);
        assert!(findings.leases().eq([&name()]));
    }

    #[test]
    fn a_wider_network_is_reported_again_only_after_it_has_gone() {
        let (overlay, network) = ("10.5.0.0/16".parse().unwrap(), "10.0.0.0/8".parse().unwrap());
        let wider: BTreeSet<_> = [("eth1".to_owned(), network)].into();
        let found = Finding::WiderNetwork { interface: "eth1".to_owned(), network, overlay };
        let mut findings = Findings::default();
        findings.set_wider_networks(overlay, wider.clone());
        findings.set_wider_networks(overlay, wider.clone());
        assert_eq!(findings.take(), std::slice::from_ref(&found));
        findings.set_wider_networks(overlay, BTreeSet::new());
        findings.set_wider_networks(overlay, wider);
        assert_eq!(findings.take(), [found]);
    }

    #[test]
    fn further_hosts_with_our_public_ip_are_counted() {
        let mut findings = Findings::default();
        assert_eq!(findings.duplicate_ip(), None);
        findings.set_duplicate_ip(&name(), Some("first".to_owned()));
        findings.set_duplicate_ip(&"10.5.2.0-24".into(), Some("second".to_owned()));
        assert_eq!(findings.duplicate_ip().as_deref(), Some("first (and 1 more)"));
        findings.set_duplicate_ip(&name(), None);
        assert_eq!(findings.duplicate_ip().as_deref(), Some("second"));
    }
}
