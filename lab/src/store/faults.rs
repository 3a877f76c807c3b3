//! What can be wrong between one client and the store.

use flanneld::model::lease::Revision;
use flanneld::store::{Changes, Snapshot, StoreError};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long a call waits for its answer.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(4);

/// How long a connection on which nothing arrives lives: keepalive finds it dead after 5 s and 3 s.
const DEAD_AFTER: Duration = Duration::from_secs(8);

/// A change whose answer gets lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    /// A key was made.
    Creation,
    /// A key was written again.
    Rewrite,
    /// A key was deleted.
    Removal,
    /// A lease was extended.
    Renewal,
    /// A lease was granted; what was to be written with it never was.
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

/// Which messages between a client and the store get lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// Those to the store.
    pub loses_requests: bool,
    /// Those from the store: what was asked for is done.
    pub loses_answers: bool,
}

/// All that one client suffers.
#[derive(Default)]
pub(super) struct Faults {
    /// What all calls fail with.
    pub(super) all: Option<StoreError>,
    /// Whether the answer to the next write or removal gets lost.
    pub(super) loses_answer: bool,
    /// How long messages take.
    pub(super) latency: Duration,
    /// Changes whose next answer gets lost.
    pub(super) lost: Vec<Lost>,
    /// What lists tell instead of the truth.
    pub(super) past: Option<Snapshot>,
    /// How many of the next lists break off.
    pub(super) torn_lists: usize,
    /// How long after a change watches tell it.
    pub(super) lag: Duration,
    /// How many of the next messages of watches come twice.
    pub(super) repeats: usize,
    /// How many of the next messages of watches lack a change.
    pub(super) gaps: usize,
    /// Whether the next message of a watch is left out.
    pub(super) swallows: bool,
    /// How many of the next messages of watches break off.
    pub(super) torn_events: usize,
    /// How far before its time the next watch starts.
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

    /// No faults, but the memory of those that there were.
    pub(super) fn mended(&self) -> Self {
        Faults { fired: self.fired.clone(), ..Faults::default() }
    }

    /// How often which fault did something.
    pub(super) fn fired(&self) -> BTreeMap<&'static str, usize> {
        self.fired.clone()
    }

    /// A fault did something.
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

    /// What a list tells, given the truth.
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

    /// Where a watch starts that is to tell all after a revision.
    pub(super) fn start(&mut self, after: Revision, compacted: Revision) -> Revision {
        let start = (after - std::mem::take(&mut self.rewind)).max(compacted - 1).max(0).min(after);
        if start < after {
            self.fire("a watch starts in the past");
        }
        start
    }

    /// What a watch tells of these changes, and whether it tells the same again.
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

    /// Whether the watch that has news now breaks after the first of them.
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
