//! Keeps the firewall's rules as they should be: looked at when somebody changed some, and from time to time.

use super::env::{Backoff, Env};
use super::status::{Board, Topic};
use crate::firewall::obstacles::OnHost;
use crate::firewall::tools::ToolError;
use crate::firewall::{Firewall, Look, Masquerade, Mode, RuleSet};
use ipnet::IpNet;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// How often the rules are looked at where every change is reported, at least.
const TO_BE_SURE: Duration = Duration::from_secs(60);

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

impl FirewallSettings {
    /// The rules of an overlay: its network, our subnet, its device and VNI.
    pub fn rules(&self, network: IpNet, subnet: IpNet, device: String, vni: u32) -> RuleSet {
        RuleSet {
            network,
            subnet,
            forward: self.forward,
            masquerade: self.masquerade,
            docker_user: self.docker_user.then_some(device),
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
pub struct Guard<F> {
    /// The firewall.
    pub firewall: F,
    /// In which tables.
    pub mode: Mode,
    /// The rules, one set a family.
    pub sets: Vec<RuleSet>,
    /// What the operator asked for.
    pub settings: FirewallSettings,
    /// Time and randomness.
    pub env: Rc<Env>,
    /// Where to say how it goes.
    pub board: Board,
}

impl<F: Firewall> Guard<F> {
    /// Runs for ever; `on_host` are the networks on the host's interfaces.
    pub async fn run(mut self, mut on_host: watch::Receiver<Vec<OnHost>>) -> Infallible {
        let mut failing = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        // Who always undoes what we do is not to keep both of us busy.
        let mut restraint = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        loop {
            let networks = on_host.borrow_and_update().clone();
            let pause = match self.firewall.ensure(self.mode, &self.sets, &networks).await {
                Ok(look) => {
                    failing.reset();
                    let repaired = !look.changes.is_empty();
                    self.tell(look);
                    if repaired {
                        sleep(restraint.pause(&self.env)).await;
                    } else {
                        restraint.calm_down();
                    }
                    self.period()
                }
                Err(error) => {
                    self.tell_failure(&error);
                    failing.pause(&self.env)
                }
            };
            tokio::select! {
                () = self.firewall.changed() => {}
                Ok(()) = on_host.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    fn period(&self) -> Duration {
        let resync = self.settings.resync;
        let period = if self.firewall.reports_changes() { resync.max(TO_BE_SURE) } else { resync };
        self.env.jittered(period)
    }

    fn tell(&self, look: Look) {
        self.board.over(Topic::Firewall);
        let first = !std::mem::replace(&mut *self.board.rules_stand(), true);
        for change in &look.changes {
            match first {
                true => tracing::info!("firewall: {change}"),
                false => tracing::info!("repaired: firewall: {change}"),
            }
        }
        if !first {
            self.board.update(|status| status.rule_repairs += look.changes.len() as u64);
        }
        match look.obstacles.is_empty() {
            true => self.board.over(Topic::Obstacle),
            false => self.board.trouble(Topic::Obstacle, look.obstacles.join("; ")),
        }
        self.board.note(
            Topic::DroppingChains,
            (!look.dropping_chains.is_empty()).then(|| {
                format!(
                    "these chains drop what is forwarded unless they accept it themselves: {}; if containers reach no other \
                     host, accept {} there",
                    look.dropping_chains.join(", "),
                    self.sets.iter().map(|set| set.network.to_string()).collect::<Vec<_>>().join(" and ")
                )
            }),
        );
    }

    fn tell_failure(&self, error: &ToolError) {
        let missing = matches!(error, ToolError::Missing { .. });
        if missing && !self.settings.is_asked_for() {
            *self.board.rules_stand() = true;
            self.board.note(
                Topic::Firewall,
                Some(format!(
                    "no forward rules: {error}; if the FORWARD policy is DROP (Docker sets it), no container reaches another \
                     host; --iptables-forward-rules=false silences this"
                )),
            );
        } else {
            self.board.trouble(Topic::Firewall, format!("the firewall's rules cannot be kept: {error}"));
        }
    }
}
