//! How the daemon is doing: one value that the health endpoints and the service manager's status line render.

use super::env::{Env, Notice};
use crate::model::judge::Tally;
use crate::model::lease::LeaseId;
use crate::model::lease_set::Moment;
use ipnet::Ipv4Net;
use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Something that keeps the daemon from being ready, or that an administrator should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// The network config in the store.
    Config,
    /// The external interface.
    Interface,
    /// The list of the host's interfaces.
    Host,
    /// Our own lease.
    Lease,
    /// Another host that claims our key.
    Rival,
    /// Another host that has registered with our public IP.
    PublicIp,
    /// The list of peers, and the watch for their changes.
    Peers,
    /// Device, routes, neighbours, FDB.
    Kernel,
    /// `subnet.env` and `docker_opts.env`.
    Files,
    /// Our rules in the firewall.
    Firewall,
    /// Rules of others that keep packets from our containers.
    Obstacle,
    /// Docker, which has not taken what was written for it.
    Docker,
}

/// How the daemon is doing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// Our subnet, once the lease is held.
    pub subnet: Option<Ipv4Net>,
    /// What keeps our key alive, once it is held; `None` for a reservation.
    pub lease: Option<LeaseId>,
    /// When our lease ends unless it is renewed; `None` for a reservation.
    pub lease_ends: Option<Moment>,
    /// What was made of the leases in the store.
    pub leases: Tally,
    /// How often since the start somebody else was faster to write the key that we wanted to be ours.
    pub lost_races: u64,
    /// Peers whose entries stay although their keys have gone.
    pub held: usize,
    /// Changes of leases since the start that the store's watch should have told and did not.
    pub missed_events: u64,
    /// Changes made to the kernel since the start because the facts changed.
    pub kernel_changes: u64,
    /// Changes made since the start to make good what somebody else had done.
    pub repairs: u64,
    /// How often the kernel's state was read in full.
    pub full_reads: u64,
    /// How often reports of the kernel were lost.
    pub overruns: u64,
    /// Changes that the kernel refused since the start.
    pub kernel_failures: u64,
    /// Rules and chains put right since the start because somebody else had changed them.
    pub rule_repairs: u64,
    /// When the main loop last turned.
    pub last_turn: Option<Moment>,
    /// Whether everything has been in place once.
    pub started: bool,
    troubles: BTreeMap<Topic, Trouble>,
}

/// What stands in the way, and what the log has heard of it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Trouble {
    reason: String,
    /// The reasons that were logged, the last one at the end.
    logged: Vec<String>,
    /// How often a reason was logged that was none of the first.
    repeated: u32,
    /// The next such is logged from this moment on.
    quiet_until: Moment,
}

/// So many different reasons of one trouble are logged as they come; others, and those that come back, less and less
/// often.
const NEW_REASONS: usize = 10;
/// The first and the longest pause between those.
const PAUSES: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

impl Trouble {
    /// Whether the reason as it stands is worth a line. A trouble that lasts may alternate between reasons for hours.
    fn is_worth_a_line(&mut self, now: Moment) -> bool {
        if self.logged.last() == Some(&self.reason) {
            return false;
        }
        let known = self.logged.iter().position(|logged| *logged == self.reason);
        if known.is_some() || self.logged.len() == NEW_REASONS {
            if now < self.quiet_until {
                return false;
            }
            let (first, longest) = PAUSES;
            self.quiet_until = now + first.saturating_mul(1 << self.repeated.min(16)).min(longest);
            self.repeated += 1;
            self.logged.remove(known.unwrap_or(0));
        }
        self.logged.push(self.reason.clone());
        true
    }
}

/// For how long the main loop may stand still before the daemon no longer counts as alive.
const STUCK_AFTER: Duration = Duration::from_secs(30);

impl Status {
    /// Why the host is not ready; empty when it is.
    pub fn reasons(&self) -> Vec<String> {
        let starting = (!self.started && self.troubles.is_empty()).then(|| "starting".to_owned());
        self.troubles.values().map(|trouble| trouble.reason.clone()).chain(starting).collect()
    }

    /// Whether the main loop turns.
    pub fn is_alive(&self, now: Moment) -> bool {
        self.last_turn.is_none_or(|turn| now.saturating_sub(turn) < STUCK_AFTER)
    }

    /// One line for `systemctl status`.
    pub fn line(&self) -> String {
        let (Tally { peers, pending, other_backend, refused, .. }, held) = (self.leases, self.held);
        let mut parts: Vec<String> = self.reasons();
        if let Some(subnet) = self.subnet {
            parts.push(format!("subnet {subnet}"));
            parts.push(format!("{peers} peers"));
        }
        let some = [(held, "held"), (pending, "pending"), (other_backend, "of other backends"), (refused, "refused")];
        parts.extend(some.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
        parts.join(", ")
    }
}

/// The one [`Status`] of a daemon, shared by its tasks. Tells the service manager when its line changes, and the log
/// when a trouble begins, changes or ends.
#[derive(Clone)]
pub struct Board {
    status: Rc<RefCell<Status>>,
    env: Rc<Env>,
}

impl Board {
    /// A board with nothing on it yet.
    pub fn new(env: Rc<Env>) -> Self {
        Board { status: Rc::default(), env }
    }

    /// The status as it is now.
    pub fn read(&self) -> Ref<'_, Status> {
        self.status.borrow()
    }

    /// Whether the main loop turns.
    pub fn is_alive(&self) -> bool {
        self.status.borrow().is_alive(self.env.now())
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        let before = self.read().line();
        change(&mut self.status.borrow_mut());
        let after = self.read().line();
        if before != after {
            self.env.notify(Notice::Status(after));
        }
    }

    /// Something stands in the way. Logged when it is new and when it has another reason than before; if the reason
    /// changes often, less and less often.
    pub fn trouble(&self, topic: Topic, reason: impl Into<String>) {
        let (reason, now) = (reason.into(), self.env.now());
        self.update(|status| {
            let trouble = status.troubles.entry(topic).or_default();
            trouble.reason = reason;
            if trouble.is_worth_a_line(now) {
                tracing::warn!("{}", trouble.reason);
            }
        });
    }

    /// It no longer does.
    pub fn over(&self, topic: Topic) {
        if self.read().troubles.contains_key(&topic) {
            self.update(|status| {
                if let Some(trouble) = status.troubles.remove(&topic) {
                    tracing::info!("over: {}", trouble.reason);
                }
            });
        }
    }

    /// A trouble with this reason, or none.
    pub fn say(&self, topic: Topic, reason: Option<String>) {
        match reason {
            Some(reason) => self.trouble(topic, reason),
            None => self.over(topic),
        }
    }

    /// The same as `trouble` while waiting at start-up: the service manager is asked for patience as well.
    pub fn waiting(&self, topic: Topic, reason: impl Into<String>, pause: Duration) {
        self.trouble(topic, reason);
        self.env.notify(Notice::StillStarting(pause + Duration::from_secs(30)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> (Board, Rc<RefCell<Vec<Notice>>>) {
        let heard: Rc<RefCell<Vec<Notice>>> = Rc::default();
        let ear = heard.clone();
        (Board::new(Rc::new(Env::new(Duration::default, 1, move |notice| ear.borrow_mut().push(notice)))), heard)
    }

    #[test]
    fn a_trouble_is_told_once_and_its_end_too() {
        let (board, heard) = board();
        board.trouble(Topic::Config, "no config");
        board.trouble(Topic::Config, "no config");
        assert_eq!(*heard.borrow(), [Notice::Status("no config".into())]);
        assert_eq!(board.read().reasons(), ["no config"]);
        board.over(Topic::Config);
        board.over(Topic::Config);
        assert_eq!(heard.borrow()[1..], [Notice::Status("starting".into())]);
    }

    #[test]
    fn reasons_that_alternate_for_an_hour_are_some_lines_and_the_last_one_is_told() {
        let mut trouble = Trouble::default();
        let hour = 1..3600;
        let lines = hour.filter(|second| {
            trouble.reason = ["no answer", "no connection"][second % 2].to_owned();
            trouble.is_worth_a_line(Duration::from_secs(*second as u64))
        });
        let lines: Vec<usize> = lines.collect();
        assert_eq!(lines, [1, 2, 3, 64, 185, 426, 907, 1868]);
        trouble.reason = "permission denied".to_owned();
        assert!(trouble.is_worth_a_line(Duration::from_secs(3600)), "what is new is told at once");
    }

    #[test]
    fn reasons_that_are_new_each_time_are_not_told_for_ever() {
        let mut trouble = Trouble::default();
        let lines = (1..3600u64).filter(|second| {
            trouble.reason = format!("attempt {second}");
            trouble.is_worth_a_line(Duration::from_secs(*second))
        });
        assert!((10..20).contains(&lines.count()));
    }

    #[test]
    fn the_line_tells_subnet_and_peers_and_what_is_wrong() {
        let (board, _) = board();
        board.update(|status| {
            status.started = true;
            status.subnet = "10.5.34.0/24".parse().ok();
            status.leases = Tally { peers: 12, refused: 1, ..Tally::default() };
        });
        assert_eq!(board.read().line(), "subnet 10.5.34.0/24, 12 peers, 1 refused");
        assert!(board.read().reasons().is_empty());
        board.trouble(Topic::Peers, "etcd does not answer");
        assert_eq!(board.read().line(), "etcd does not answer, subnet 10.5.34.0/24, 12 peers, 1 refused");
    }

    #[test]
    fn a_loop_that_stands_still_is_not_alive() {
        let status = Status { last_turn: Some(Duration::from_secs(100)), ..Status::default() };
        assert!(status.is_alive(Duration::from_secs(129)));
        assert!(!status.is_alive(Duration::from_secs(131)));
    }
}
