//! Keeps the firewall's rules as they should be: compared when somebody changed some, and from time to time.

use super::runtime::{Backoff, Runtime};
use super::status::{Condition, StatusHandle};
use super::wiring::FirewallEnds;
use crate::firewall::tools::ToolError;
use crate::firewall::{Firewall, Look, Masquerade, Mode, RuleSet};
use crate::model::lease_set::Moment;
use ipnet::IpNet;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::sleep;

/// The rules are compared at least this often where every change is reported.
const RESYNC_AT_LEAST: Duration = Duration::from_secs(60);

/// The shortest pause between two comparisons, however often others change their rules.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);

/// How long no repair was needed before repairs are made at once again.
const CALM_AFTER: Duration = Duration::from_secs(30);

/// The rules that the operator wants, and how often they are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallSettings {
    /// `--ip-masq`.
    pub masquerade: Option<Masquerade>,
    /// `--iptables-forward-rules`.
    pub forward: bool,
    /// `--iptables-docker-user-rules`.
    pub docker_user: bool,
    /// How often the rules are compared where their changes are not reported (`--iptables-resync`).
    pub resync: Duration,
}

impl Default for FirewallSettings {
    /// No rules at all.
    fn default() -> Self {
        FirewallSettings { masquerade: None, forward: false, docker_user: false, resync: Duration::from_secs(5) }
    }
}

impl FirewallSettings {
    /// The rules of an overlay. `direct_nic` is the interface by which its packets arrive without a tunnel, if they may.
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

    /// Whether the operator asked for anything that flannel does not do by default.
    fn is_asked_for(&self) -> bool {
        self.masquerade.is_some() || self.docker_user
    }
}

/// Keeps the rules forever. A missing program is an error if the operator asked for the rules that need it. For the default
/// rules it is a warning.
pub(super) struct FirewallLoop<F> {
    firewall: F,
    mode: Mode,
    sets: Vec<RuleSet>,
    settings: FirewallSettings,
    runtime: Rc<Runtime>,
    status: StatusHandle,
    ends: FirewallEnds,
    /// Whether the rules have been in place: whatever differs from then on was changed by others.
    placed: bool,
    /// The warnings that were logged last.
    warned: Vec<String>,
}

impl<F: Firewall> FirewallLoop<F> {
    /// Keeps these rules, one set per address family.
    pub(super) fn new(
        firewall: F,
        mode: Mode,
        sets: Vec<RuleSet>,
        settings: FirewallSettings,
        (runtime, status): (Rc<Runtime>, StatusHandle),
        ends: FirewallEnds,
    ) -> Self {
        FirewallLoop { firewall, mode, sets, settings, runtime, status, ends, placed: false, warned: Vec::new() }
    }

    /// Runs forever.
    pub(super) async fn run(mut self) -> Infallible {
        let mut failing = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        // If another program undoes every repair, neither is kept busy.
        let mut restraint = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        let mut repaired_at = Moment::ZERO;
        loop {
            let networks = self.ends.on_host.borrow_and_update().clone();
            let (rest, pause) = match self.firewall.ensure(self.mode, &self.sets, &networks).await {
                Ok(look) => {
                    failing.reset();
                    let (repaired, now) = (!look.changes.is_empty(), self.runtime.now());
                    self.report(look);
                    if repaired {
                        repaired_at = now;
                    } else if now.saturating_sub(repaired_at) > CALM_AFTER {
                        restraint.reset();
                    }
                    (if repaired { restraint.pause(&self.runtime) } else { SHORTEST_PAUSE }, self.period())
                }
                Err(error) => {
                    self.report_failure(&error);
                    (SHORTEST_PAUSE, failing.pause(&self.runtime))
                }
            };
            sleep(rest).await;
            tokio::select! {
                biased;
                () = self.firewall.changed() => {}
                Ok(()) = self.ends.on_host.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    fn period(&self) -> Duration {
        let resync = self.settings.resync;
        let period = if self.firewall.reports_changes() { resync.max(RESYNC_AT_LEAST) } else { resync };
        self.runtime.jittered(period)
    }

    fn report(&mut self, look: Look) {
        self.status.clear(Condition::Firewall);
        let first = !std::mem::replace(&mut self.placed, true);
        let kind = if first { "" } else { "repaired: " };
        look.changes.iter().for_each(|change| tracing::info!("{kind}firewall: {change}"));
        let repairs = if first { 0 } else { look.changes.len() as u64 };
        self.status.update(|status| status.counters.rule_repairs += repairs);
        self.let_start();
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

    /// The host may become ready: the rules are in place, or are only the default ones.
    fn let_start(&self) {
        self.ends.rules_in_place.send_if_modified(|in_place| !std::mem::replace(in_place, true));
    }

    /// The default rules delay neither the start nor, if their program is missing, readiness.
    fn report_failure(&mut self, error: &ToolError) {
        let asked = self.settings.is_asked_for();
        if !asked {
            self.let_start();
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

    /// Logs each warning once. A warning does not make the host unready.
    fn warn(&mut self, texts: Vec<String>) {
        texts.iter().filter(|text| !self.warned.contains(text)).for_each(|text| tracing::warn!("{text}"));
        self.warned = texts;
    }
}
