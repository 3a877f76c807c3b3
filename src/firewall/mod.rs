//! The host's firewall, as far as the overlay needs it: what should be there is a value, and the difference to what is
//! there is one transaction.
//!
//! [`RuleSet`] says what is wanted, in flannel's chains and order. [`iptables`] and [`nftables`] turn it into what
//! `iptables-restore` and `nft` take, and find out from what these print whether it stands. [`obstacles`] finds rules of
//! others that keep the overlay's packets from their containers. All of that is pure; [`host`] starts the programs.

pub mod events;
pub mod host;
pub mod iptables;
pub mod nftables;
pub mod obstacles;
pub mod saved;
pub mod tools;

use ipnet::IpNet;
use obstacles::OnHost;
use tools::ToolError;

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
    /// The interface by which packets of the overlay come in without a tunnel, too, if any do.
    pub direct_nic: Option<String>,
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

/// Which tables hold the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// iptables', beside those of Docker and kube-proxy.
    Iptables,
    /// Tables of our own (`EnableNFTables` in the network config).
    Nftables,
}

/// What a look at the firewall has led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// What was not as wanted and is now, a phrase each.
    pub changes: Vec<String>,
    /// What others do that keeps packets from our containers, and what helps, a sentence each.
    pub obstacles: Vec<String>,
    /// Chains of others that drop what is forwarded unless it is accepted there.
    pub dropping_chains: Vec<String>,
}

/// A host's firewall.
#[allow(async_fn_in_trait, reason = "the daemon is one thread: no Send bounds are wanted")]
pub trait Firewall {
    /// Looks at the rules and brings them in line, in one transaction a family. `on_host` are the networks on the
    /// host's interfaces.
    async fn ensure(&mut self, mode: Mode, sets: &[RuleSet], on_host: &[OnHost]) -> Result<Look, ToolError>;

    /// Whether [`Firewall::changed`] hears of all changes to the rules, so that looking from time to time is only to be
    /// sure.
    fn reports_changes(&self) -> bool;

    /// Waits until somebody has changed rules. Cancel-safe.
    async fn changed(&mut self);
}

/// A host without a firewall, for scenarios about something else.
pub struct NoFirewall;

impl Firewall for NoFirewall {
    async fn ensure(&mut self, _: Mode, _: &[RuleSet], _: &[OnHost]) -> Result<Look, ToolError> {
        Ok(Look::default())
    }

    fn reports_changes(&self) -> bool {
        true
    }

    async fn changed(&mut self) {
        std::future::pending().await
    }
}
