//! Daemons that are wrong on purpose, each by one well-known mistake in how it deals with the store: the laws must
//! find them.

use super::lab::Launch;
use flanneld::agent::{self, Parts};
use flanneld::firewall::NoFirewall;
use flanneld::model::lease::{LeaseAttrs, LeaseId, Name, Record, Revision};
use flanneld::model::subnet::SubnetKey;
use flanneld::store::{
    Change, Changes, Expiry, Leases, Precondition, Registry, Snapshot, StoreError, Watch, WriteOutcome,
};
use flanneld_lab::store::{MemoryStore, MemoryWatch};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch::Receiver;

/// The daemon as it is.
pub const SOUND: Launch = |store, kernel, settings, runtime, status| {
    Box::pin(agent::run(Parts { store: Rc::new(store), kernel, firewall: NoFirewall, settings, runtime, status }))
};

/// It writes without asking what stands there.
pub const BLIND_PUT: Launch = |store, kernel, settings, runtime, status| {
    Box::pin(agent::run(Parts {
        store: Rc::new(Broken::new(store, Mistake::BlindPut)),
        kernel,
        firewall: NoFirewall,
        settings,
        runtime,
        status,
    }))
};

/// It compares lists by subnet only, so what changed about a peer in between is lost.
pub const DIFF_BY_SUBNET: Launch = |store, kernel, settings, runtime, status| {
    Box::pin(agent::run(Parts {
        store: Rc::new(Broken::new(store, Mistake::DiffBySubnet)),
        kernel,
        firewall: NoFirewall,
        settings,
        runtime,
        status,
    }))
};

/// It takes a list that failed for one of no peers.
pub const PRUNE_ON_ERROR: Launch = |store, kernel, settings, runtime, status| {
    Box::pin(agent::run(Parts {
        store: Rc::new(Broken::new(store, Mistake::PruneOnError)),
        kernel,
        firewall: NoFirewall,
        settings,
        runtime,
        status,
    }))
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    BlindPut,
    DiffBySubnet,
    PruneOnError,
}

/// A store as a daemon with one of the mistakes sees it.
struct Broken {
    store: MemoryStore,
    mistake: Mistake,
    known: Rc<Known>,
}

/// What a daemon has seen.
#[derive(Default)]
struct Known {
    records: RefCell<BTreeMap<Name, Record>>,
    revision: Cell<Revision>,
    own: Cell<Option<LeaseId>>,
}

impl Broken {
    fn new(store: MemoryStore, mistake: Mistake) -> Self {
        Broken { store, mistake, known: Rc::default() }
    }

    /// What is listed, but for known names as it was known.
    fn by_subnet(&self, mut snapshot: Snapshot) -> Snapshot {
        let mut known = self.known.records.borrow_mut();
        for record in &mut snapshot.records {
            *record = known.get(&record.name).unwrap_or(record).clone();
        }
        *known = snapshot.records.iter().map(|record| (record.name.clone(), record.clone())).collect();
        snapshot
    }

    /// No peers, at the revision that was last heard of.
    fn nobody(&self) -> Snapshot {
        let own = self.known.own.get();
        let is_own =
            |record: &&Record| record.content.as_ref().is_ok_and(|lease| own.is_some() && lease.lease_id == own);
        let records = self.known.records.borrow().values().filter(is_own).cloned().collect();
        Snapshot { revision: self.known.revision.get(), records, ..Snapshot::default() }
    }

    /// What makes the guard hold.
    async fn blind(&self, subnet: SubnetKey) -> Result<Precondition, StoreError> {
        let name = subnet.to_string();
        let record = self.store.list().await?.records.into_iter().find(|record| *record.name == name);
        Ok(record.map_or(Precondition::Absent, |record| {
            Precondition::Unchanged(match record.content {
                Ok(lease) => lease.modified,
                Err(malformed) => malformed.modified,
            })
        }))
    }
}

impl Registry for Broken {
    type Watch = BrokenWatch;

    async fn config(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.config().await
    }

    async fn list(&self) -> Result<Snapshot, StoreError> {
        let snapshot = match self.store.list().await {
            Err(_) if self.mistake == Mistake::PruneOnError => return Ok(self.nobody()),
            Ok(snapshot) if self.mistake == Mistake::DiffBySubnet => return Ok(self.by_subnet(snapshot)),
            listed => listed?,
        };
        let records = snapshot.records.iter().map(|record| (record.name.clone(), record.clone()));
        self.known.records.replace(records.collect());
        self.known.revision.set(snapshot.revision);
        Ok(snapshot)
    }

    async fn watch(&self, after: Revision) -> Result<BrokenWatch, StoreError> {
        Ok(BrokenWatch { watch: self.store.watch(after).await?, known: self.known.clone() })
    }

    fn endpoints(&self) -> Receiver<Vec<IpAddr>> {
        self.store.endpoints()
    }
}

impl Leases for Broken {
    async fn write(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        precondition: Precondition,
        expiry: Expiry,
    ) -> Result<WriteOutcome, StoreError> {
        if self.mistake != Mistake::BlindPut {
            return self.store.write(subnet, attrs, precondition, expiry).await;
        }
        loop {
            let precondition = self.blind(subnet).await?;
            match self.store.write(subnet, attrs, precondition, expiry).await? {
                // Somebody was faster: overwritten all the same.
                WriteOutcome::Conflict(_) if !matches!(expiry, Expiry::Keep(_)) => {}
                written => return Ok(written),
            }
        }
    }

    async fn remove(&self, subnet: SubnetKey, unchanged: Revision) -> Result<bool, StoreError> {
        self.store.remove(subnet, unchanged).await
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Option<Duration>, StoreError> {
        self.known.own.set(Some(id));
        self.store.keep_alive(id).await
    }

    async fn release(&self, id: LeaseId) -> Result<(), StoreError> {
        self.store.release(id).await
    }
}

struct BrokenWatch {
    watch: MemoryWatch,
    known: Rc<Known>,
}

impl Watch for BrokenWatch {
    async fn next(&mut self) -> Result<Changes, StoreError> {
        let news = self.watch.next().await?;
        self.known.revision.set(news.revision);
        let mut known = self.known.records.borrow_mut();
        for change in &news.changes {
            match change {
                Change::Put(record) => drop(known.insert(record.name.clone(), record.clone())),
                Change::Delete { name, .. } => drop(known.remove(name)),
            }
        }
        drop(known);
        Ok(news)
    }
}
