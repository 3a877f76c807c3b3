//! All keys under `subnets/` as this host knows them, and the peers that it holds although their keys have gone.

use super::holds::Holds;
use super::lease::{Name, Record, Revision, bounded_name};

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A moment, as time since some fixed start; it counts while the host sleeps.
pub type Moment = Duration;

/// How near to the loss of our own key a peer's deletion is taken for part of the same accident.
const SAME_ACCIDENT: Duration = Duration::from_secs(5);

/// One change of a key under `subnets/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key was made or overwritten.
    Put(Record),
    /// The key was deleted or expired.
    Delete {
        /// The last segment of the key.
        name: Name,
        /// The revision of the deletion; keys deleted together share one.
        revision: Revision,
    },
}

impl Change {
    /// The key with this last segment was deleted.
    pub fn delete(segment: &str, revision: Revision) -> Self {
        Change::Delete { name: bounded_name(segment), revision }
    }

    /// The last segment of the key.
    pub fn name(&self) -> &str {
        match self {
            Change::Put(record) => &record.name,
            Change::Delete { name, .. } => name,
        }
    }

    /// When it happened.
    pub fn revision(&self) -> Revision {
        match self {
            Change::Put(record) => record.modified(),
            Change::Delete { revision, .. } => *revision,
        }
    }
}

/// All keys under `subnets/`; unknown until the first complete list.
#[derive(Debug, Default)]
pub struct LeaseSet {
    records: BTreeMap<Name, Record>,
    /// Peers whose keys have gone in a way that does not look like their own doing, and until when they stay.
    held: Holds,
    known: bool,
    revision: Revision,
    own_lost: Option<Moment>,
    /// Whether the next list is one of another history.
    doubted: bool,
}

impl LeaseSet {
    /// Whether a complete list has been seen.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// The newest revision that was heard of.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// All records, held ones included.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// The record with this name, held or not.
    pub fn get(&self, name: &str) -> Option<&Record> {
        self.records.get(name)
    }

    /// The records that are held although their keys have gone.
    pub fn held(&self) -> impl Iterator<Item = &Record> {
        self.held.names().filter_map(|name| self.records.get(name))
    }

    /// How many records are held.
    pub fn held_count(&self) -> usize {
        self.held.len()
    }

    /// The next complete list is one of another history than ours (the store was wiped or restored), whatever its
    /// revision: it may be higher again by now.
    pub fn doubt_next_list(&mut self) {
        self.doubted = true;
    }

    /// Takes in a complete list; returns the names whose record changed.
    ///
    /// A peer that is absent from it goes at once, unless the store went back in time (wiped, restored) or our own
    /// key, `own`, is missing too or was made anew meanwhile: then it is held until `now + hold`, or until its key is back.
    pub fn replace(
        &mut self,
        revision: Revision,
        records: Vec<Record>,
        own: Option<&str>,
        now: Moment,
        hold: Duration,
    ) -> BTreeSet<Name> {
        let listed: BTreeMap<Name, Record> = records.into_iter().map(|r| (r.name.clone(), r)).collect();
        let lost_own = own.is_some_and(|own| match (self.records.get(own), listed.get(own)) {
            (Some(known), Some(now)) => is_another(known, now),
            (known, _) => known.is_some(),
        });
        let doubted = std::mem::take(&mut self.doubted);
        let doubtful = self.known && (doubted || revision < self.revision || lost_own);
        let mut changed: BTreeSet<Name> = listed
            .iter()
            .filter(|(name, record)| self.records.get(*name) != Some(record))
            .map(|(n, _)| n.clone())
            .collect();
        let absent: Vec<Name> = self.records.keys().filter(|name| !listed.contains_key(&***name)).cloned().collect();
        for name in listed.keys() {
            self.held.remove(name);
        }
        match self.records.is_empty() {
            true => self.records = listed,
            false => self.records.extend(listed),
        }
        for name in absent {
            let holds = doubtful && Some(&*name) != own;
            if !holds && !self.held.contains(&name) {
                self.records.remove(&name);
                changed.insert(name);
            } else {
                changed.extend(self.hold(name, now + hold));
            }
        }
        if lost_own {
            self.own_lost = Some(now);
        }
        // A key that we have written since then is in the list, too.
        let newest = self.records.values().filter(|record| !self.held.contains(&record.name)).map(Record::modified);
        (self.known, self.revision) = (true, newest.fold(revision, Revision::max));
        changed
    }

    /// Our own key, `own`, has not been renewed for as long as it lives: its loss is part of whatever we hear now, even if
    /// we hear of it later than of others.
    pub fn expect_loss_of(&mut self, own: &str, now: Moment) {
        if self.records.contains_key(own) {
            self.own_lost = Some(now);
        }
    }

    /// Takes in changes in their order; returns the names whose record changed.
    ///
    /// A deletion removes a peer at once, unless we hear of it together with the loss of our own key, `own`, or
    /// within 5 s after it. After an outage the loss of all leases may come at once: we were away, not our peers.
    pub fn apply(
        &mut self,
        revision: Revision,
        events: Vec<Change>,
        own: Option<&str>,
        now: Moment,
        hold: Duration,
    ) -> BTreeSet<Name> {
        // Its deletion itself may be what the watch did not tell.
        let is_loss = |event: &Change| match event {
            Change::Delete { name, .. } => Some(&**name) == own,
            Change::Put(new) => {
                Some(&*new.name) == own && self.records.get(&new.name).is_some_and(|known| is_another(known, new))
            }
        };
        if events.iter().any(is_loss) {
            self.own_lost = Some(now);
        }
        let just_lost = self.own_lost.is_some_and(|lost| now <= lost + SAME_ACCIDENT);
        let mut changed = BTreeSet::new();
        for event in events {
            match event {
                Change::Put(record) => {
                    changed.insert(record.name.clone());
                    self.held.remove(&record.name);
                    self.records.insert(record.name.clone(), record);
                }
                Change::Delete { name, .. } => {
                    let accident = Some(&*name) != own && just_lost;
                    if accident && self.records.contains_key(&name) {
                        changed.extend(self.hold(name, now + hold));
                    } else if self.records.remove(&name).is_some() {
                        self.held.remove(&name);
                        changed.insert(name);
                    }
                }
            }
        }
        self.revision = self.revision.max(revision);
        changed
    }

    /// Holds peers that an earlier run of ours knew, until they register or their time is over.
    pub fn hold_all(&mut self, peers: Vec<Record>, until: Moment) {
        for peer in peers {
            let name = peer.name.clone();
            self.records.entry(name.clone()).or_insert(peer);
            self.hold(name, until);
        }
    }

    /// Keeps a peer whose key has gone, unless it is held already; returns its name if its record changed. It gives way
    /// to any peer that is registered: its host may have come back under another key.
    fn hold(&mut self, name: Name, until: Moment) -> Option<Name> {
        if self.held.contains(&name) {
            return None;
        }
        if let Some(Record { content: Ok(lease), .. }) = self.records.get_mut(&name) {
            lease.created = Revision::MAX;
        }
        self.held.insert(name.clone(), until);
        Some(name)
    }

    /// Lets go of the peers whose time is over; returns their names.
    pub fn expire(&mut self, now: Moment) -> BTreeSet<Name> {
        let over = self.held.take_over(now);
        for name in &over {
            self.records.remove(name);
        }
        over
    }

    /// When the last held peer's time is over.
    pub fn last_expiry(&self) -> Option<Moment> {
        self.held.last_end()
    }

    /// Whether a peer is held although its key has gone.
    pub fn is_held(&self, name: &str) -> bool {
        self.held.contains(name)
    }
}

/// Whether a key was deleted and made anew between these two records.
fn is_another(before: &Record, after: &Record) -> bool {
    matches!((&before.content, &after.content), (Ok(before), Ok(after)) if before.created != after.created)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(60);
    const OWN: Option<&str> = Some("10.5.1.0-24");

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    fn record(third: u8) -> Record {
        Record::decode(&format!("10.5.{third}.0-24"), br#"{"PublicIP":"192.168.0.1"}"#, None, 1, third.into())
    }

    fn delete(third: u8, revision: Revision) -> Change {
        Change::Delete { name: format!("10.5.{third}.0-24").into(), revision }
    }

    fn set(thirds: &[u8]) -> LeaseSet {
        let mut set = LeaseSet::default();
        set.replace(10, thirds.iter().map(|third| record(*third)).collect(), OWN, at(0), HOLD);
        set
    }

    fn names(set: &LeaseSet) -> String {
        set.records().map(|r| r.name.split('.').nth(2).unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_list_tells_what_changed_attributes_included() {
        let mut set = set(&[1, 2, 3]);
        let moved = Record::decode("10.5.2.0-24", br#"{"PublicIP":"192.168.0.9"}"#, None, 1, 11);
        let changed = set.replace(12, vec![record(1), moved, record(4)], OWN, at(1), HOLD);
        assert!(changed.iter().map(|name| &**name).eq(["10.5.2.0-24", "10.5.3.0-24", "10.5.4.0-24"]));
        assert_eq!(names(&set), "1 2 4");
        assert!(set.replace(12, set.records().cloned().collect(), OWN, at(2), HOLD).is_empty());
    }

    #[test]
    fn a_deletion_removes_at_once() {
        let mut set = set(&[1, 2, 3]);
        assert_eq!(set.apply(11, vec![delete(2, 11)], OWN, at(1), HOLD).len(), 1);
        assert_eq!(names(&set), "1 3");
    }

    #[test]
    fn what_goes_together_with_our_own_key_is_held_for_a_time() {
        let mut set = set(&[1, 2, 3, 4, 5]);
        set.apply(12, vec![delete(3, 10), delete(1, 11), delete(2, 12)], OWN, at(1), HOLD);
        assert_eq!((names(&set), set.held().count()), ("2 3 4 5".into(), 2));
        set.apply(13, vec![delete(4, 13)], OWN, at(5), HOLD);
        assert_eq!((names(&set), set.held().count()), ("2 3 4 5".into(), 3));
        set.apply(14, vec![delete(5, 14)], OWN, at(7), HOLD);
        assert_eq!((names(&set), set.held().count()), ("2 3 4".into(), 3));
        set.apply(14, vec![Change::Put(record(4))], OWN, at(6), HOLD);
        assert_eq!(set.last_expiry(), Some(at(61)));
        assert!(set.expire(at(60)).is_empty());
        assert_eq!(set.expire(at(61)).len(), 2);
        assert_eq!(names(&set), "4");
    }

    #[test]
    fn what_goes_while_our_own_key_is_overdue_is_held() {
        let mut set = set(&[1, 2, 3, 4]);
        set.expect_loss_of(OWN.unwrap(), at(100));
        set.apply(11, vec![delete(2, 11)], OWN, at(100), HOLD);
        set.apply(12, vec![delete(1, 12)], OWN, at(101), HOLD);
        set.apply(13, vec![delete(3, 13)], OWN, at(102), HOLD);
        assert_eq!((names(&set), set.held().count()), ("2 3 4".into(), 2));
        set.expect_loss_of(OWN.unwrap(), at(200));
        set.apply(14, vec![delete(4, 14)], OWN, at(200), HOLD);
        assert_eq!(names(&set), "2 3", "it is gone, and that was long ago");
    }

    #[test]
    fn who_sees_its_own_key_made_anew_holds_those_whose_keys_are_gone() {
        let anew = || Record::decode("10.5.1.0-24", br#"{"PublicIP":"192.168.0.1"}"#, None, 9, 12);
        let mut told = set(&[1, 2, 3]);
        told.apply(12, vec![Change::Put(anew()), delete(2, 11)], OWN, at(1), HOLD);
        assert_eq!((names(&told), told.held().count()), ("1 2 3".into(), 1));
        let mut listed = set(&[1, 2, 3]);
        listed.replace(12, vec![anew(), record(3)], OWN, at(1), HOLD);
        assert_eq!((names(&listed), listed.held().count()), ("1 2 3".into(), 1));
    }

    #[test]
    fn a_store_that_went_back_in_time_removes_nobody_at_once() {
        let mut set = set(&[1, 2, 3]);
        let held = set.replace(4, vec![record(1), record(2)], OWN, at(1), HOLD);
        assert!(held.iter().map(|name| &**name).eq(["10.5.3.0-24"]));
        assert_eq!(names(&set), "1 2 3");
        assert_eq!(set.get("10.5.3.0-24").unwrap().content.as_ref().unwrap().created, Revision::MAX);
        assert!(set.replace(5, vec![record(1), record(2)], OWN, at(2), HOLD).is_empty(), "held further");
        assert_eq!(set.last_expiry(), Some(at(61)));
        set.expire(at(61));
        assert_eq!(names(&set), "1 2");
    }

    #[test]
    fn a_list_of_another_history_removes_nobody_at_once_however_high_its_revision() {
        let mut set = set(&[1, 2, 3]);
        set.doubt_next_list();
        assert_eq!(set.replace(40, vec![record(1)], OWN, at(1), HOLD).len(), 2, "as held ones they give way to others");
        assert_eq!((names(&set), set.held().count()), ("1 2 3".into(), 2));
        set.replace(41, vec![record(1), record(2)], OWN, at(2), HOLD);
        set.replace(42, vec![record(1)], OWN, at(3), HOLD);
        assert_eq!(names(&set), "1 3", "only the one list was doubtful");
    }

    #[test]
    fn a_list_without_our_own_key_holds_who_else_is_absent() {
        let mut set = set(&[1, 2, 3]);
        set.replace(20, vec![record(3)], OWN, at(1), HOLD);
        assert_eq!(names(&set), "2 3");
        set.apply(21, vec![delete(3, 21)], OWN, at(20), HOLD);
        assert_eq!(names(&set), "2", "an accident is over after five seconds");
    }

    #[test]
    fn peers_of_an_earlier_run_are_held_until_they_register_or_their_time_is_over() {
        let mut set = LeaseSet::default();
        set.hold_all(vec![record(2), record(3)], at(50));
        assert!(!set.is_known());
        assert_eq!(set.replace(10, vec![record(1), record(2)], OWN, at(1), HOLD).len(), 2);
        assert!(!set.is_held("10.5.2.0-24") && set.is_held("10.5.3.0-24"));
        assert_eq!((names(&set), set.last_expiry()), ("1 2 3".into(), Some(at(50))));
        set.expire(at(50));
        assert_eq!(names(&set), "1 2");
    }
}
