//! The host's firewall, as far as the overlay needs it: what should be there is a value, and the difference to what is
//! there is one transaction.
//!
//! [`RuleSet`] says what is wanted, in flannel's chains and order. [`iptables`] and [`nftables`] turn it into what
//! `iptables-restore` and `nft` take, and find out from what these print whether it stands. [`obstacles`] finds rules of
//! others that keep the overlay's packets from their containers. All of that is pure; only [`tools`] starts programs.

pub mod iptables;
pub mod nftables;
pub mod obstacles;
pub mod saved;

use ipnet::IpNet;

/// The mark of packets that kube-proxy masquerades itself (`KUBE-MARK-MASQ`).
pub const KUBE_PROXY_MARK: u32 = 0x4000;

/// What the firewall should hold for one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    /// The whole overlay.
    pub network: IpNet,
    /// Our own subnet, of the same family.
    pub subnet: IpNet,
    /// Whether packets from and to the overlay are accepted in the forward chain.
    pub forward: bool,
    /// Whether packets that leave the overlay get this host's address, and how.
    pub masquerade: Option<Masquerade>,
    /// Whether packets that come in through this device for our containers are accepted in Docker's chain for users.
    pub docker_user: Option<String>,
    /// What the names of chains and tables end with: nothing for VNI 1, as in flannel, so that its own rules are taken
    /// over; `-7` for VNI 7, so that two overlays on one host have rules of their own.
    pub suffix: String,
}

/// How to masquerade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masquerade {
    /// Source ports are chosen at random, which avoids collisions that cost packets; needs iptables 1.6.2.
    pub random_fully: bool,
}

impl RuleSet {
    /// The suffix of names for a VNI.
    pub fn suffix(vni: u32) -> String {
        match vni {
            1 => String::new(),
            vni => format!("-{vni}"),
        }
    }

    /// Nothing is wanted.
    pub fn is_empty(&self) -> bool {
        !self.forward && self.masquerade.is_none() && self.docker_user.is_none()
    }

    fn is_v6(&self) -> bool {
        self.network.addr().is_ipv6()
    }

    /// Where multicast goes, which is never masqueraded.
    fn multicast(&self) -> &'static str {
        if self.is_v6() { "ff00::/8" } else { "224.0.0.0/4" }
    }
}
