//! The data of an etcd: keys with revisions, leases with deadlines, and the history of all changes. The time is an
//! argument.

use flanneld::model::lease::{LeaseId, Record, Revision};
use flanneld::store::{Change, Changes, History, Snapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Everything in the store.
#[derive(Debug, Clone)]
pub(super) struct Data {
    /// The revision of the last change.
    pub(super) revision: Revision,
    /// A new watch may not start before this revision.
    pub(super) compacted: Revision,
    /// The network config.
    pub(super) config: Option<Vec<u8>>,
    keys: BTreeMap<String, Entry>,
    leases: BTreeMap<LeaseId, Granted>,
    deadlines: BTreeSet<(Instant, LeaseId)>,
    granted: i64,
    history: Vec<(Revision, Change)>,
}

/// A key's value and its metadata.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// The value.
    pub(super) value: Vec<u8>,
    /// The lease that keeps it alive.
    pub(super) lease: Option<LeaseId>,
    /// The revision at which it was created.
    pub(super) created: Revision,
    /// The revision at which it was last written.
    pub(super) modified: Revision,
}

#[derive(Debug, Clone, Copy)]
struct Granted {
    ttl: Duration,
    deadline: Instant,
}

impl Default for Data {
    fn default() -> Self {
        Data {
            revision: 1,
            compacted: 0,
            config: None,
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            granted: 0,
            history: Vec::new(),
        }
    }
}

impl Data {
    /// The key of this name.
    pub(super) fn entry(&self, name: &str) -> Option<&Entry> {
        self.keys.get(name)
    }

    /// The decoded key of this name.
    pub(super) fn record(&self, name: &str) -> Option<Record> {
        self.keys.get(name).map(|entry| entry.record(name))
    }

    /// All keys.
    pub(super) fn snapshot(&self) -> Snapshot {
        let records = self.keys.iter().map(|(name, entry)| entry.record(name)).collect();
        Snapshot { revision: self.revision, records, history: History::default() }
    }

    /// The changes after a revision, if there are any: about `limit`, and never a part of a revision.
    pub(super) fn changes_after(&self, after: Revision, batch: usize) -> Option<Changes> {
        let news = &self.history[self.history.partition_point(|(revision, _)| *revision <= after)..];
        let last = news.get(batch - 1).or(news.last())?.0;
        let news = &news[..news.partition_point(|(revision, _)| *revision <= last)];
        Some(Changes { revision: last, changes: news.iter().map(|(_, change)| change.clone()).collect() })
    }

    /// Writes the network config, or deletes it.
    pub(super) fn set_config(&mut self, text: Option<Vec<u8>>) {
        self.revision += 1;
        self.config = text;
    }

    /// Writes a key.
    pub(super) fn put(&mut self, name: &str, value: Vec<u8>, lease: Option<LeaseId>) -> Revision {
        self.revision += 1;
        let modified = self.revision;
        let created = self.keys.get(name).map_or(modified, |entry| entry.created);
        let entry = Entry { value, lease, created, modified };
        self.history.push((modified, Change::Put(entry.record(name))));
        self.keys.insert(name.to_owned(), entry);
        modified
    }

    /// Deletes keys in one revision and returns their number.
    pub(super) fn delete(&mut self, is_meant: impl Fn(&str, &Entry) -> bool) -> usize {
        let meant = self.keys.iter().filter(|(name, entry)| is_meant(name, entry));
        let names: Vec<String> = meant.map(|(name, _)| name.clone()).collect();
        self.revision += Revision::from(!names.is_empty());
        for name in &names {
            self.keys.remove(name);
            let change = Change::delete(name, self.revision);
            self.history.push((self.revision, change));
        }
        names.len()
    }

    /// A new lease, of whole seconds as in etcd.
    pub(super) fn grant(&mut self, ttl: Duration, now: Instant) -> LeaseId {
        let ttl = Duration::from_secs(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).max(Duration::from_secs(1));
        self.granted += 1;
        let id = LeaseId::new(0x1000 + self.granted).expect("it is not 0");
        let deadline = now + ttl;
        self.leases.insert(id, Granted { ttl, deadline });
        self.deadlines.insert((deadline, id));
        id
    }

    /// Whether there is such a lease.
    pub(super) fn has_lease(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// How many leases there are.
    pub(super) fn leases(&self) -> usize {
        self.leases.len()
    }

    /// Extends a lease to its full time to live, which is returned.
    pub(super) fn renew(&mut self, id: LeaseId, now: Instant) -> Option<Duration> {
        let granted = self.leases.get_mut(&id)?;
        self.deadlines.remove(&(granted.deadline, id));
        granted.deadline = now + granted.ttl;
        self.deadlines.insert((granted.deadline, id));
        Some(granted.ttl)
    }

    /// Ends a lease and deletes its keys in one revision.
    pub(super) fn revoke(&mut self, id: LeaseId) {
        if let Some(granted) = self.leases.remove(&id) {
            self.deadlines.remove(&(granted.deadline, id));
            self.delete(|_, entry| entry.lease == Some(id));
        }
    }

    /// Ends the leases that have expired.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((_, id)) = self.deadlines.first().filter(|(deadline, _)| *deadline <= now).copied() {
            self.revoke(id);
        }
    }

    /// Takes the place of `other`, as a backup does: its leases live anew, and no lease is granted under the name of one
    /// that there has been.
    pub(super) fn replace(mut self, other: &mut Data, now: Instant) {
        self.granted = self.granted.max(other.granted);
        let ids: Vec<LeaseId> = self.leases.keys().copied().collect();
        for id in ids {
            self.renew(id, now);
        }
        *other = self;
    }

    /// When the next lease ends.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }
}

impl Entry {
    fn record(&self, name: &str) -> Record {
        Record::decode(name, &self.value, self.lease, self.created, self.modified)
    }
}
