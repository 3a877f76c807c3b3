//! Faults between one client and the store.

use flanneld::model::lease::Revision;
use flanneld::store::{Changes, Snapshot, StoreError};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long a call waits for its answer.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(4);

/// How long a silent connection lives: keepalive pings after 5 s and gives up 3 s later.
const DEAD_AFTER: Duration = Duration::from_secs(8);

/// A kind of change whose answer gets lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    /// A key was created.
    Creation,
    /// A key was written again.
    Rewrite,
    /// A key was deleted.
    Removal,
    /// A lease was extended.
    Renewal,
    /// A lease was granted, and the write that needed it was never sent.
    Grant,
}

impl Lost {
    fn name(self) -> &'static str {
        match self {
            Lost::Creation => "the answer to a creation is lost",
            Lost::Rewrite => "the answer to a rewrite is lost",
            Lost::Removal => "the answer to a removal is lost",
            Lost::Renewal => "the answer to a renewal is lost",
            Lost::Grant => "the answer to a grant is lost",
        }
    }
}

/// The direction in which messages between a client and the store get lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// Messages to the store.
    pub loses_requests: bool,
    /// Messages from the store; requests are executed.
    pub loses_answers: bool,
}

/// All faults of one client.
#[derive(Default)]
pub(super) struct Faults {
    /// The error of all calls.
    pub(super) all: Option<StoreError>,
    /// Whether the answer to the next write or removal gets lost.
    pub(super) loses_answer: bool,
    /// How long a message takes.
    pub(super) latency: Duration,
    /// Changes whose next answer gets lost.
    pub(super) lost: Vec<Lost>,
    /// The snapshot that lists return instead of the current one.
    pub(super) past: Option<Snapshot>,
    /// How many of the next lists break off.
    pub(super) torn_lists: usize,
    /// How long watches delay a change.
    pub(super) lag: Duration,
    /// How many of the next messages of watches come twice.
    pub(super) repeats: usize,
    /// How many of the next messages of watches lack a change.
    pub(super) gaps: usize,
    /// Whether the next message of a watch is left out.
    pub(super) swallows: bool,
    /// How many of the next messages of watches break off.
    pub(super) torn_events: usize,
    /// How many revisions too early the next watch starts.
    pub(super) rewind: Revision,
    link: Link,
    dark_since: Option<Instant>,
    fired: BTreeMap<&'static str, usize>,
}

impl Faults {
    /// From now on these messages get lost.
    pub(super) fn set_link(&mut self, link: Link) {
        self.link = link;
        self.dark_since = (link != Link::default()).then(|| self.dark_since.unwrap_or_else(Instant::now));
    }

    /// Which messages get lost.
    pub(super) fn link(&self) -> Link {
        self.link
    }

    /// When keepalive finds the connection dead.
    pub(super) fn dead_at(&self) -> Option<Instant> {
        self.dark_since.map(|since| since + DEAD_AFTER)
    }

    /// No faults, with the counters of past faults.
    pub(super) fn mended(&self) -> Self {
        Faults { fired: self.fired.clone(), ..Faults::default() }
    }

    /// How often each fault had an effect.
    pub(super) fn fired(&self) -> BTreeMap<&'static str, usize> {
        self.fired.clone()
    }

    /// Counts an effect of a fault.
    pub(super) fn fire(&mut self, name: &'static str) {
        *self.fired.entry(name).or_default() += 1;
    }

    /// Whether the answer to this change gets lost.
    pub(super) fn loses(&mut self, change: Lost) -> bool {
        let is_write = !matches!(change, Lost::Renewal | Lost::Grant);
        let armed = self.lost.iter().position(|lost| *lost == change);
        let any = is_write && std::mem::take(&mut self.loses_answer);
        if let Some(at) = armed {
            self.lost.swap_remove(at);
        }
        if any || armed.is_some() {
            self.fire(change.name());
        }
        any || armed.is_some()
    }

    /// The result of a list, given the current snapshot.
    pub(super) fn list(&mut self, truth: Snapshot) -> Result<Snapshot, StoreError> {
        if self.torn_lists > 0 {
            self.torn_lists -= 1;
            self.fire("a list breaks off");
            return Err(unreachable("the connection broke in the middle of an answer"));
        }
        let Some(past) = self.past.clone() else { return Ok(truth) };
        if past.revision != truth.revision {
            self.fire("a list is old");
        }
        Ok(past)
    }

    /// The revision at which a watch starts that should report all changes after `after`.
    pub(super) fn start(&mut self, after: Revision, compacted: Revision) -> Revision {
        let start = (after - std::mem::take(&mut self.rewind)).max(compacted - 1).max(0).min(after);
        if start < after {
            self.fire("a watch starts in the past");
        }
        start
    }

    /// The changes that a watch reports, and whether it repeats them.
    pub(super) fn tell(&mut self, mut news: Changes) -> (Changes, bool) {
        let repeats = self.repeats > 0 && !news.changes.is_empty();
        if repeats {
            self.repeats -= 1;
            self.fire("a watch tells changes twice");
        } else if self.gaps > 0 && !news.changes.is_empty() {
            self.gaps -= 1;
            self.fire("a watch leaves out a change");
            news.changes.remove(0);
        }
        (news, repeats)
    }

    /// Whether the watch breaks after the first of its changes.
    pub(super) fn tears(&mut self) -> bool {
        let tears = self.torn_events > 0;
        if tears {
            self.torn_events -= 1;
            self.fire("an answer of a watch breaks off");
        }
        tears
    }
}

/// The error of a store that cannot be reached.
pub(super) fn unreachable(why: &str) -> StoreError {
    StoreError::Unavailable(format!("memory: {why}"))
}
