//! The keys as the store has reported them so far, and the worth of a further answer.
//!
//! A watch promises much: each change once, all of them, in order, from where one asks. Released versions of etcd have
//! broken each of these promises (#15271 replays the past, #17529 loses events, #18089 and #19179 a deletion at a
//! compaction, #15220 claims progress early, #20418 reads from long ago). So nothing here relies on them:
//!
//! - A change that is not newer than what is known of its key is dropped: replays, duplicates and stragglers do nothing.
//! - What was never told is found by comparing with a complete list (an *audit*), and made good as the changes that
//!   the watch should have told.
//! - An answer from before the question was asked is no view of anything, until several agree.
//! - Only a list moves on the point up to which all is known. What a watch claims about its progress is not used.

use super::lease::{LeaseId, Name, Record, Revision};
use super::lease_set::Change;
use std::collections::{BTreeMap, HashMap};

/// How many answers in a row must be too old before it is believed that the store itself has gone back. Each is asked
/// of another member if there are others: more than one of three would have to be stuck, and a cluster that has lost
/// its majority gives no answers at all.
const AGREEING: u32 = 3;

/// Which of its pasts a store speaks of: one that was wiped, or restored from a backup, has another than before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History {
    /// Which store it is; 0 if it cannot be told.
    pub store: u64,
    /// Never falls within one history.
    pub term: u64,
}

impl History {
    /// Whether it may go on where `earlier` was.
    pub fn continues(self, earlier: History) -> bool {
        [self.store, earlier.store].contains(&0) || (self.store == earlier.store && self.term >= earlier.term)
    }
}

/// The worth of a complete list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It shows the store as it was after the list was asked for.
    Fresh,
    /// It is older than what was known when it was asked for: no view. Ask another member.
    Behind,
    /// The store was wiped or restored: it is a view, but who is absent from it need not be gone.
    Rewritten,
}

/// How many deletions are remembered. Each guards against a late or repeated change of its key from before it.
const MOST_GONE: usize = 4096;

/// Deletions of keys with longer names are not remembered: the longest name of a lease has 62 characters, and a change
/// of a junk key that is repeated does no harm.
const LONGEST_NAME: usize = 64;

/// A stand-in for the whole content of a key: within one history the revision of its last change, and in two that have
/// the same revisions what keeps it alive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    revision: Revision,
    lease_id: Option<LeaseId>,
    is_lease: bool,
}

/// The keys of the store, as far as they are known.
#[derive(Debug, Default)]
pub struct View {
    /// Whether it can be followed from here, or a complete list is needed first.
    complete: bool,
    history: History,
    /// All changes up to this one are in: so far a list has vouched for it.
    base: Revision,
    /// The last change that was heard of.
    highest: Revision,
    present: HashMap<Name, Seen>,
    /// How many of the keys are leases.
    leases: usize,
    /// The deletions after `base`, with their revisions.
    gone: HashMap<Name, Revision>,
    /// Deletions up to this revision may have been forgotten.
    forgotten: Revision,
    /// The last answer that was too old, and how many of them agree.
    behind: Option<(Revision, u32)>,
}

impl View {
    /// After which revision a watch has to go on; `None` if a complete list is needed.
    ///
    /// The last revision is asked for again: its changes may have come in parts (a deleted prefix is one revision), of
    /// which the rest got lost with the connection.
    pub fn resume(&self) -> Option<Revision> {
        self.complete.then_some(self.base.max(self.highest - 1))
    }

    /// The last change that was heard of. A list that is asked for from now on is from then or later.
    pub fn highest(&self) -> Revision {
        self.highest
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// How many of the keys are leases.
    pub fn leases(&self) -> usize {
        self.leases
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// Whether a watch in this history may go on from here.
    pub fn is_continued_by(&self, history: History) -> bool {
        history.continues(self.history)
    }

    /// Changes are lost for good: a complete list is needed.
    pub fn lose_track(&mut self) {
        self.complete = false;
    }

    /// Takes in what a watch tells; returns what of it is news.
    pub fn hear(&mut self, changes: Vec<Change>) -> Vec<Change> {
        changes.into_iter().filter(|change| self.take_in(change)).collect()
    }

    fn take_in(&mut self, change: &Change) -> bool {
        let (name, revision) = (change.name(), change.revision());
        if revision <= self.base {
            return false;
        }
        self.highest = self.highest.max(revision);
        if revision <= self.last_change(name) {
            return false;
        }
        match change {
            Change::Put(record) => {
                self.gone.remove(name);
                self.set(record.name.clone(), Some(seen(record)));
            }
            Change::Delete { name, .. } => {
                self.set(name.clone(), None);
                self.remember_gone(name, revision);
            }
        }
        true
    }

    fn set(&mut self, name: Name, now: Option<Seen>) {
        let before = match now {
            Some(seen) => self.present.insert(name, seen),
            None => self.present.remove(&name),
        };
        self.leases += usize::from(now.is_some_and(|seen| seen.is_lease));
        self.leases -= usize::from(before.is_some_and(|seen| seen.is_lease));
    }

    /// Remembers a deletion, and forgets the older half when there are too many.
    fn remember_gone(&mut self, name: &Name, revision: Revision) {
        if name.len() > LONGEST_NAME {
            return;
        }
        self.gone.insert(name.clone(), revision);
        if self.gone.len() > MOST_GONE {
            let mut revisions: Vec<Revision> = self.gone.values().copied().collect();
            let (_, middle, _) = revisions.select_nth_unstable(MOST_GONE / 2);
            self.forgotten = self.forgotten.max(*middle);
            self.gone.retain(|_, gone| *gone > self.forgotten);
        }
    }

    /// The last change of a key. A key that is not known may have been deleted in the time that is forgotten.
    fn last_change(&self, name: &str) -> Revision {
        match self.present.get(name) {
            Some(seen) => seen.revision,
            None => self.gone.get(name).copied().unwrap_or(self.forgotten),
        }
    }

    /// The worth of a list of this revision and history that was requested when `floor` was the highest revision.
    ///
    /// A store that was wiped and has come further than before since then is not found by its revision, and not always
    /// by its history. But within one history no key goes back to an earlier change, nor has one change two contents.
    pub fn weigh(&mut self, floor: Revision, revision: Revision, history: History, records: &[Record]) -> Answer {
        if revision >= floor {
            self.behind = None;
            let goes_back = |record: &Record| {
                let (now, known) = (seen(record), self.present.get(&record.name));
                let is_other = |then: &Seen| now.revision == then.revision && now.lease_id != then.lease_id;
                let is_past = |then: &&Seen| then.revision <= revision;
                now.is_lease && known.filter(is_past).is_some_and(|then| now.revision < then.revision || is_other(then))
            };
            let is_same = history.continues(self.history) && !records.iter().any(goes_back);
            return if is_same { Answer::Fresh } else { Answer::Rewritten };
        }
        let agreeing = match self.behind {
            Some((before, count)) if before <= revision => count + 1,
            _ => 1,
        };
        self.behind = Some((revision, agreeing));
        if agreeing < AGREEING { Answer::Behind } else { Answer::Rewritten }
    }

    /// The changes that a fresh list shows and that were never told, as they should have been told.
    ///
    /// The list is from `revision`, and the watch may be further or less far. What it told of later revisions the list
    /// cannot contradict: those keys are left out. What the list has and the watch may just be about to tell looks like
    /// a missed change, so ask again after a while; to make it good early is no harm, since it is a step forward too,
    /// and will be dropped when the watch tells it.
    pub fn missed(&self, revision: Revision, records: &[Record]) -> Vec<Change> {
        let listed: BTreeMap<&str, &Record> = records.iter().map(|record| (&*record.name, record)).collect();
        let is_later = |name: &str| self.last_change(name) > revision;
        let puts = listed.iter().filter(|(name, record)| {
            !is_later(name) && self.present.get(**name).is_none_or(|known| *known != seen(record))
        });
        let mut deleted: Vec<&Name> =
            self.present.keys().filter(|name| !is_later(name) && !listed.contains_key(&***name)).collect();
        deleted.sort_unstable();
        let deletes = deleted.into_iter().map(|name| Change::Delete { name: name.clone(), revision });
        puts.map(|(_, record)| Change::Put((*record).clone())).chain(deletes).collect()
    }

    /// Takes in a list that is a view: from now on all changes up to it are known. What was told of later revisions
    /// stays, unless the store is another.
    pub fn settle(&mut self, revision: Revision, history: History, records: &[Record], answer: Answer) {
        if answer == Answer::Rewritten {
            *self = View::default();
        }
        let valid: Vec<&Record> = records.iter().filter(|record| self.last_change(&record.name) <= revision).collect();
        self.present.retain(|_, known| known.revision > revision);
        self.gone.retain(|_, known| *known > revision);
        for record in valid {
            self.present.insert(record.name.clone(), seen(record));
        }
        self.leases = self.present.values().filter(|seen| seen.is_lease).count();
        if self.forgotten <= revision {
            self.forgotten = 0;
        }
        (self.complete, self.history, self.behind) = (true, history, None);
        (self.base, self.highest) = (revision, self.highest.max(revision));
    }
}

fn seen(record: &Record) -> Seen {
    let lease = record.content.as_ref().ok();
    Seen { revision: record.modified(), lease_id: lease.and_then(|lease| lease.lease_id), is_lease: lease.is_some() }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
