//! Keeps the firewall's rules as they should be: looked at when somebody changed some, and from time to time.

use super::runtime::{Backoff, Runtime};
use super::status::{Condition, StatusHandle};
use crate::firewall::obstacles::OnHost;
use crate::firewall::tools::ToolError;
use crate::firewall::{Firewall, Look, Masquerade, Mode, RuleSet};
use crate::model::lease_set::Moment;
use ipnet::IpNet;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// How often the rules are looked at where every change is reported, at least.
const TO_BE_SURE: Duration = Duration::from_secs(60);

/// Looks are at least so far apart, however often others change their rules.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// How long after its last repair a firewall counts as peaceful again.
const PEACE: Duration = Duration::from_secs(30);

/// What the operator wants of the firewall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallSettings {
    /// `--ip-masq`.
    pub masquerade: Option<Masquerade>,
    /// `--iptables-forward-rules`.
    pub forward: bool,
    /// `--iptables-docker-user-rules`.
    pub docker_user: bool,
    /// How often the rules are looked at where their changes are not reported (`--iptables-resync`).
    pub resync: Duration,
}

impl Default for FirewallSettings {
    /// No rules at all.
    fn default() -> Self {
        FirewallSettings { masquerade: None, forward: false, docker_user: false, resync: Duration::from_secs(5) }
    }
}

impl FirewallSettings {
    /// The rules of an overlay: its network, our subnet, its device and VNI, and the interface by which its packets come in
    /// without a tunnel.
    pub fn rules(
        &self,
        network: IpNet,
        subnet: IpNet,
        device: String,
        direct_nic: Option<String>,
        vni: u32,
    ) -> RuleSet {
        RuleSet {
            network,
            subnet,
            forward: self.forward,
            masquerade: self.masquerade,
            docker_user: self.docker_user.then_some(device),
            direct_nic,
            suffix: RuleSet::suffix(vni),
        }
    }

    /// Whether anything was asked for that flannel does not do by itself.
    fn is_asked_for(&self) -> bool {
        self.masquerade.is_some() || self.docker_user
    }
}

/// Keeps the rules for ever. A missing program is an error when the operator asked for what it does; for what is done by
/// default it is only a warning.
pub struct FirewallLoop<F> {
    firewall: F,
    mode: Mode,
    sets: Vec<RuleSet>,
    settings: FirewallSettings,
    runtime: Rc<Runtime>,
    status: StatusHandle,
    /// Tells whether the rules have stood, as far as they are wanted and can be had.
    stand: watch::Sender<bool>,
    /// Whether they have been in place: what differs from then on is somebody else's doing.
    stood: bool,
    /// What was last warned of without being a trouble of ours.
    warned: Vec<String>,
}

impl<F: Firewall> FirewallLoop<F> {
    /// A guard of these rules, one set a family.
    pub fn new(
        firewall: F,
        mode: Mode,
        sets: Vec<RuleSet>,
        settings: FirewallSettings,
        runtime: Rc<Runtime>,
        status: StatusHandle,
        stand: watch::Sender<bool>,
    ) -> Self {
        FirewallLoop { firewall, mode, sets, settings, runtime, status, stand, stood: false, warned: Vec::new() }
    }

    /// Runs for ever; `on_host` are the networks on the host's interfaces.
    pub async fn run(mut self, mut on_host: watch::Receiver<Vec<OnHost>>) -> Infallible {
        let mut failing = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        // Who always undoes what we do is not to keep both of us busy.
        let mut restraint = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        let mut repaired_at = Moment::ZERO;
        loop {
            let networks = on_host.borrow_and_update().clone();
            let (rest, pause) = match self.firewall.ensure(self.mode, &self.sets, &networks).await {
                Ok(look) => {
                    failing.reset();
                    let (repaired, now) = (!look.changes.is_empty(), self.runtime.now());
                    self.tell(look);
                    if repaired {
                        repaired_at = now;
                    } else if now.saturating_sub(repaired_at) > PEACE {
                        restraint.reset();
                    }
                    (if repaired { restraint.pause(&self.runtime) } else { BETWEEN_LOOKS }, self.period())
                }
                Err(error) => {
                    self.tell_failure(&error);
                    (BETWEEN_LOOKS, failing.pause(&self.runtime))
                }
            };
            sleep(rest).await;
            tokio::select! {
                biased;
                () = self.firewall.changed() => {}
                Ok(()) = on_host.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    fn period(&self) -> Duration {
        let resync = self.settings.resync;
        let period = if self.firewall.reports_changes() { resync.max(TO_BE_SURE) } else { resync };
        self.runtime.jittered(period)
    }

    fn tell(&mut self, look: Look) {
        self.status.clear(Condition::Firewall);
        let first = !std::mem::replace(&mut self.stood, true);
        let kind = if first { "" } else { "repaired: " };
        look.changes.iter().for_each(|change| tracing::info!("{kind}firewall: {change}"));
        let repairs = if first { 0 } else { look.changes.len() as u64 };
        self.status.update(|status| status.rule_repairs += repairs);
        self.stand.send_if_modified(|stand| !std::mem::replace(stand, true));
        match look.obstacles.is_empty() {
            true => self.status.clear(Condition::Obstacle),
            false => self.status.raise(Condition::Obstacle, look.obstacles.join("; ")),
        }
        let networks = self.sets.iter().map(|set| set.network.to_string()).collect::<Vec<_>>().join(" and ");
        let chains = look.dropping_chains.iter().map(|chain| {
            format!(
                "the chain {chain} drops what is forwarded and not accepted there, and no rule elsewhere can change that: \
                 accept {networks} in it if containers reach no other host"
            )
        });
        self.warn(chains.collect());
    }

    /// What is done by default holds up nobody: neither the start, nor, where its program is missing, readiness.
    fn tell_failure(&mut self, error: &ToolError) {
        let asked = self.settings.is_asked_for();
        if !asked {
            self.stand.send_if_modified(|stand| !std::mem::replace(stand, true));
        }
        if asked || !matches!(error, ToolError::Missing { .. }) {
            self.status.raise(Condition::Firewall, format!("the firewall's rules cannot be kept: {error}"));
            return;
        }
        self.warn(vec![format!(
            "no forward rules: {error}; where the FORWARD policy is DROP (Docker sets it) no container reaches another \
             host; --iptables-forward-rules=false silences this"
        )]);
    }

    /// Says once what an administrator may want to know, though nothing of ours is wrong.
    fn warn(&mut self, texts: Vec<String>) {
        texts.iter().filter(|text| !self.warned.contains(text)).for_each(|text| tracing::warn!("{text}"));
        self.warned = texts;
    }
}
