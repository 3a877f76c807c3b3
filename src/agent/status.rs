//! How the daemon is doing: one value that the health endpoints and the service manager's status line render.

pub use super::condition::Condition;
use super::health::{Health, Report};
use super::rate_limit::{RateLimit, Slowdown};
use super::runtime::{Notice, Runtime};
use crate::model::foreign::shown;
use crate::model::lease::LeaseId;
use crate::model::lease_set::Moment;
use crate::model::peer_policy::Tally;
use ipnet::Ipv4Net;
use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How the daemon is doing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// Our own lease.
    pub own: OwnStatus,
    /// How many leases in the store are peers, refused, and so on.
    pub leases: Tally,
    /// Peers whose entries stay although their keys have gone.
    pub held: usize,
    /// Counters since the start.
    pub counters: Counters,
    /// Lines of the log that were lost since the start because nobody read them.
    pub log_lines_lost: u64,
    /// When the main loop last turned.
    pub last_tick: Option<Moment>,
    /// Whether everything has been in place once.
    pub started: bool,
    raised: BTreeMap<Condition, Raised>,
    /// Grows with each change of what is raised.
    raised_changes: u64,
}

/// Our own lease, once it is acquired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnStatus {
    /// Our subnet.
    pub subnet: Option<Ipv4Net>,
    /// The etcd lease that keeps our key alive. `None` for a reservation.
    pub lease: Option<LeaseId>,
    /// When our lease ends unless it is renewed. `None` for a reservation.
    pub lease_ends: Option<Moment>,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Writes of our key that failed because another host had written it first.
    pub lost_races: u64,
    /// Changes of leases that the store's watch did not report.
    pub missed_events: u64,
    /// Changes made to the kernel because the facts changed.
    pub kernel_changes: u64,
    /// Changes made to the kernel to repair what somebody else had done.
    pub repairs: u64,
    /// Entries that were compared with what the kernel holds.
    pub compared: u64,
    /// Full readings of the kernel's state.
    pub full_reads: u64,
    /// Losses of kernel reports.
    pub overruns: u64,
    /// Changes that the kernel refused.
    pub kernel_failures: u64,
    /// Firewall rules and chains repaired because somebody else had changed them.
    pub rule_repairs: u64,
}

/// The reason of a condition, and what has been logged of it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Raised {
    reason: String,
    since: Moment,
    /// The reasons that were logged, the last one at the end.
    logged: Vec<String>,
    /// How often a reason was logged that had been logged before, or that came after the first [`NEW_REASONS`].
    repeats: RateLimit,
    /// Such a reason is logged again from this moment on.
    quiet_until: Moment,
}

/// The number of different reasons of one condition that are logged at once. Others, and those that come back, are
/// logged less and less often.
const NEW_REASONS: usize = 10;
/// The pauses between log lines about such reasons.
const OTHER_REASONS: Slowdown =
    Slowdown { at_once: 1, first_pause: Duration::from_secs(60), longest_pause: Duration::from_secs(3600) };

impl Raised {
    /// Whether the reason as it stands is worth a line. A condition that lasts may alternate between reasons for hours.
    fn is_worth_a_line(&mut self, now: Moment) -> bool {
        if self.logged.last() == Some(&self.reason) {
            return false;
        }
        let known = self.logged.iter().position(|logged| *logged == self.reason);
        if known.is_some() || self.logged.len() == NEW_REASONS {
            if now < self.quiet_until {
                return false;
            }
            self.quiet_until = self.repeats.slow_down(now, &OTHER_REASONS);
            self.logged.remove(known.unwrap_or(0));
        }
        self.logged.push(self.reason.clone());
        true
    }
}

/// The longest reason, in characters.
const LONGEST_REASON: usize = 1500;

impl Status {
    /// Why the host is not ready; empty when it is.
    pub fn reasons(&self) -> Vec<String> {
        let starting = (!self.started && self.raised.is_empty()).then(|| "starting".to_owned());
        self.raised.values().map(|raised| raised.reason.clone()).chain(starting).collect()
    }

    /// One line for `systemctl status`.
    pub fn line(&self) -> String {
        let (Tally { peers, pending, other_backend, refused, .. }, held) = (self.leases, self.held);
        let mut parts: Vec<String> = self.reasons();
        if let Some(subnet) = self.own.subnet {
            parts.push(format!("subnet {subnet}"));
            parts.push(format!("{peers} {}", if peers == 1 { "peer" } else { "peers" }));
        }
        let some = [(held, "held"), (pending, "pending"), (other_backend, "of other backends"), (refused, "refused")];
        parts.extend(some.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
        parts.join(", ")
    }

    /// All that the line and the health endpoints show, in a form that is cheap to compare.
    fn visible(&self) -> impl PartialEq + use<> {
        (self.own.subnet, self.leases, self.held, self.started, self.raised_changes)
    }

    fn report(&self) -> Report {
        let since = self.raised.values().map(|raised| (raised.reason.clone(), Some(raised.since)));
        let starting = (!self.started && self.raised.is_empty()).then(|| ("starting".to_owned(), None));
        Report { started: self.started, reasons: since.chain(starting).collect() }
    }
}

/// The one [`Status`] of a daemon, shared by its tasks. Tells the service manager when its line changes, and the log
/// when a condition begins, changes or ends.
#[derive(Clone)]
pub struct StatusHandle {
    status: Rc<RefCell<Status>>,
    /// The line that the service manager has.
    line: Rc<RefCell<String>>,
    health: Arc<Health>,
    runtime: Rc<Runtime>,
}

impl StatusHandle {
    /// A status with nothing on it yet.
    pub fn new(runtime: Rc<Runtime>) -> Self {
        let status = Status::default();
        let health = Arc::new(Health::new(runtime.now(), status.report()));
        StatusHandle { status: Rc::new(RefCell::new(status)), line: Rc::default(), health, runtime }
    }

    /// The part that other threads may read.
    pub fn health(&self) -> Arc<Health> {
        self.health.clone()
    }

    /// The status as it is now.
    pub fn read(&self) -> Ref<'_, Status> {
        self.status.borrow()
    }

    /// Whether the main loop turns.
    pub fn is_alive(&self) -> bool {
        self.health.is_alive(self.runtime.now())
    }

    /// The thread of the daemon runs.
    pub fn beat(&self) {
        self.health.beat(self.runtime.now());
    }

    /// The main loop turns.
    pub fn tick(&self) {
        let now = self.runtime.now();
        self.health.tick(now);
        let mut status = self.status.borrow_mut();
        (status.last_tick, status.log_lines_lost) = (Some(now), self.runtime.log_lines_lost());
    }

    /// Changes the status. Renders it only if anything changed that can be seen.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        let before = self.read().visible();
        change(&mut self.status.borrow_mut());
        if before == self.read().visible() {
            return;
        }
        self.health.report(self.read().report());
        let line = self.read().line();
        if *self.line.borrow() != line {
            self.line.replace(line.clone());
            self.runtime.notify(Notice::Status(line));
        }
    }

    /// A condition begins or lasts. Logged when it is new and when its reason has changed; if that changes often, less and
    /// less often.
    pub fn raise(&self, topic: Condition, reason: impl Into<String>) {
        let (reason, now) = (shown(&reason.into(), LONGEST_REASON), self.runtime.now());
        self.update(|status| {
            let raised = status.raised.entry(topic).or_insert_with(|| Raised { since: now, ..Raised::default() });
            if raised.reason != reason {
                raised.reason = reason;
                status.raised_changes += 1;
            }
            if raised.is_worth_a_line(now) {
                tracing::warn!("{}", raised.reason);
            }
        });
    }

    /// The condition has ended. Logged with its duration.
    pub fn clear(&self, topic: Condition) {
        if self.read().raised.contains_key(&topic) {
            let now = self.runtime.now();
            self.update(|status| {
                if let Some(raised) = status.raised.remove(&topic) {
                    status.raised_changes += 1;
                    tracing::info!("{}", topic.ended_after(now.saturating_sub(raised.since)));
                }
            });
        }
    }

    /// Raises a condition with this reason, or clears it.
    pub fn set(&self, topic: Condition, reason: Option<String>) {
        match reason {
            Some(reason) => self.raise(topic, reason),
            None => self.clear(topic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> (StatusHandle, Rc<RefCell<Vec<Notice>>>) {
        let heard: Rc<RefCell<Vec<Notice>>> = Rc::default();
        let ear = heard.clone();
        (
            StatusHandle::new(Rc::new(Runtime::new(Duration::default, 1, move |notice| ear.borrow_mut().push(notice)))),
            heard,
        )
    }

    #[test]
    fn a_trouble_is_told_once_and_its_end_too() {
        let (status, heard) = status();
        status.raise(Condition::Config, "no config");
        status.raise(Condition::Config, "no config");
        assert_eq!(*heard.borrow(), [Notice::Status("no config".into())]);
        assert_eq!(status.read().reasons(), ["no config"]);
        status.clear(Condition::Config);
        status.clear(Condition::Config);
        assert_eq!(heard.borrow()[1..], [Notice::Status("starting".into())]);
    }

    #[test]
    fn reasons_that_alternate_for_an_hour_are_some_lines_and_the_last_one_is_told() {
        let mut raised = Raised::default();
        let hour = 1..3600;
        let lines = hour.filter(|second| {
            raised.reason = ["no answer", "no connection"][second % 2].to_owned();
            raised.is_worth_a_line(Duration::from_secs(*second as u64))
        });
        let lines: Vec<usize> = lines.collect();
        assert_eq!(lines, [1, 2, 3, 64, 185, 426, 907, 1868]);
        raised.reason = "permission denied".to_owned();
        assert!(raised.is_worth_a_line(Duration::from_secs(3600)), "what is new is told at once");
    }

    #[test]
    fn reasons_that_are_new_each_time_are_not_told_for_ever() {
        let mut raised = Raised::default();
        let lines = (1..3600u64).filter(|second| {
            raised.reason = format!("attempt {second}");
            raised.is_worth_a_line(Duration::from_secs(*second))
        });
        assert!((10..20).contains(&lines.count()));
    }

    #[test]
    fn the_line_tells_subnet_and_peers_and_what_is_wrong() {
        let (status, _) = status();
        status.update(|status| {
            status.started = true;
            status.own.subnet = "10.5.34.0/24".parse().ok();
            status.leases = Tally { peers: 12, refused: 1, ..Tally::default() };
        });
        assert_eq!(status.read().line(), "subnet 10.5.34.0/24, 12 peers, 1 refused");
        assert!(status.read().reasons().is_empty());
        status.raise(Condition::Peers, "etcd does not answer");
        assert_eq!(status.read().line(), "etcd does not answer, subnet 10.5.34.0/24, 12 peers, 1 refused");
    }

    #[test]
    fn one_peer_is_one_peer() {
        let own = OwnStatus { subnet: "10.5.34.0/24".parse().ok(), ..OwnStatus::default() };
        let leases = Tally { peers: 1, ..Tally::default() };
        let status = Status { started: true, own, leases, ..Status::default() };
        assert_eq!(status.line(), "subnet 10.5.34.0/24, 1 peer");
    }

    #[test]
    fn a_reason_of_others_words_is_one_line_and_not_endless() {
        let (status, heard) = status();
        status.raise(Condition::Config, format!("bad\nREADY=1\u{1b}[2J{}", "x".repeat(1 << 20)));
        let reason = status.read().reasons().remove(0);
        assert!(reason.starts_with("bad\\nREADY=1\\u{1b}[2Jxxx") && reason.len() < 2000, "{reason}");
        assert_eq!(*heard.borrow(), [Notice::Status(reason)]);
    }
}
