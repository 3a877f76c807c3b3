//! Peers that stay although their keys have gone, each until its own end.

use super::lease::Name;
use super::lease_set::Moment;
use std::collections::{BTreeMap, BTreeSet};

/// The held peers with the ends of their holds. The loop asks in each round for those whose time is over, so they are
/// kept in that order, too.
#[derive(Debug, Default)]
pub(super) struct Holds {
    until: BTreeMap<Name, Moment>,
    ends: BTreeSet<(Moment, Name)>,
}

impl Holds {
    pub(super) fn names(&self) -> impl Iterator<Item = &Name> {
        self.until.keys()
    }

    pub(super) fn len(&self) -> usize {
        self.until.len()
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.until.contains_key(name)
    }

    /// When the last one's time is over.
    pub(super) fn last_end(&self) -> Option<Moment> {
        self.ends.last().map(|(until, _)| *until)
    }

    pub(super) fn insert(&mut self, name: Name, until: Moment) {
        self.remove(&name);
        self.ends.insert((until, name.clone()));
        self.until.insert(name, until);
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some((name, until)) = self.until.remove_entry(name) {
            self.ends.remove(&(until, name));
        }
    }

    /// Removes and returns those whose time is over.
    pub(super) fn take_over(&mut self, now: Moment) -> BTreeSet<Name> {
        let mut over = BTreeSet::new();
        while let Some((until, _)) = self.ends.first()
            && *until <= now
            && let Some((_, name)) = self.ends.pop_first()
        {
            self.until.remove(&name);
            over.insert(name);
        }
        over
    }
}
