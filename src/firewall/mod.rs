//! The firewall rules of the overlay. The wanted rules are a value; one transaction removes the difference to the actual
//! rules.
//!
//! [`RuleSet`] holds the wanted rules in flannel's chains and order. [`iptables`] and [`nftables`] render them for
//! `iptables-restore` and `nft`, and compare them with what these programs print. [`obstacles`] finds rules of other
//! programs that block packets to our containers. These modules are pure; [`host`] runs the programs.

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

/// The rules that the firewall should hold for one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    /// The whole overlay.
    pub network: IpNet,
    /// Our own subnet, of the same family.
    pub subnet: IpNet,
    /// Whether packets from and to the overlay are accepted in the forward chain.
    pub forward: bool,
    /// Whether and how packets that leave the overlay get this host's address.
    pub masquerade: Option<Masquerade>,
    /// The device from which packets to our containers are accepted in DOCKER-USER, if that is wanted.
    pub docker_user: Option<String>,
    /// The interface from which packets of the overlay also come without a tunnel, if there is one.
    pub direct_nic: Option<String>,
    /// The suffix of the names of chains and tables. It is empty for VNI 1, so that flannel's own rules are taken over.
    /// It is `-7` for VNI 7, so that two overlays on one host have separate rules.
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

    /// Whether no rule is wanted.
    pub fn is_empty(&self) -> bool {
        !self.forward && self.masquerade.is_none() && self.docker_user.is_none()
    }

    fn is_v6(&self) -> bool {
        self.network.addr().is_ipv6()
    }

    /// The multicast addresses, which are never masqueraded.
    fn multicast(&self) -> &'static str {
        if self.is_v6() { "ff00::/8" } else { "224.0.0.0/4" }
    }
}

/// The tables that hold the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The tables of iptables, beside the rules of Docker and kube-proxy.
    Iptables,
    /// Tables of our own (`EnableNFTables` in the network config).
    Nftables,
}

/// The result of one check of the firewall.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// One phrase for each difference that was repaired.
    pub changes: Vec<String>,
    /// One sentence for each rule of another program that blocks packets to our containers, with a remedy.
    pub obstacles: Vec<String>,
    /// Chains of other programs that drop forwarded packets unless they accept them.
    pub dropping_chains: Vec<String>,
}

/// A host's firewall.
#[allow(async_fn_in_trait, reason = "the daemon is one thread: no Send bounds are wanted")]
pub trait Firewall {
    /// Compares the rules and repairs differences, with one transaction for each family. `on_host` are the networks on
    /// the host's interfaces.
    async fn ensure(&mut self, mode: Mode, sets: &[RuleSet], on_host: &[OnHost]) -> Result<Look, ToolError>;

    /// Whether [`Firewall::changed`] reports all changes to the rules. If so, periodic checks are only a safety net.
    fn reports_changes(&self) -> bool;

    /// Waits until somebody has changed rules. Cancel-safe.
    async fn changed(&mut self);
}

/// A host without a firewall.
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
