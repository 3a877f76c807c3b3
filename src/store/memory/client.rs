//! One client of the store in memory, its faults and its watches.

use super::data::Data;
use crate::model::lease::Revision;
use crate::store::{Changes, Snapshot, StoreError, Watch};
use std::cell::{Cell, RefCell};
use std::mem;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How often each call was made, failed ones too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// Reads of the network config.
    pub config: usize,
    /// Listings.
    pub list: usize,
    /// Watches begun.
    pub watch: usize,
    /// Guarded writes.
    pub write: usize,
    /// Guarded removals.
    pub remove: usize,
    /// Renewals.
    pub keep_alive: usize,
    /// Leases given back.
    pub release: usize,
}

/// What one client suffers and has done.
#[derive(Default)]
pub(super) struct Client {
    /// What all its calls fail with.
    pub(super) fault: Option<StoreError>,
    /// Whether the answer to its next change gets lost.
    pub(super) loses_answer: bool,
    /// Whether its watches are not told the next change.
    pub(super) swallows: bool,
    /// What its lists show in place of what is there.
    pub(super) past: Option<Snapshot>,
    /// How long its messages take.
    pub(super) latency: Duration,
    /// Where it says that the store is.
    pub(super) addresses: Vec<IpAddr>,
    /// What it has called.
    pub(super) calls: Calls,
}

/// The data that all clients share, and their watches.
#[derive(Default)]
pub(super) struct Cluster {
    data: RefCell<Data>,
    watches: RefCell<Vec<Weak<Slot>>>,
    changed: Notify,
}

/// What others tell a watch.
struct Slot {
    owner: Rc<RefCell<Client>>,
    over: RefCell<Option<StoreError>>,
    reports: Cell<bool>,
}

impl Cluster {
    /// Works on the data as they are now, and wakes all watches.
    pub(super) fn change<T>(&self, work: impl FnOnce(&mut Data, Instant) -> T) -> T {
        let now = Instant::now();
        let mut data = self.data.borrow_mut();
        data.expire(now);
        let done = work(&mut data, now);
        drop(data);
        self.changed.notify_waiters();
        done
    }

    /// Ends the watches whose owner is meant.
    pub(super) fn cut(&self, is_meant: impl Fn(*const RefCell<Client>) -> bool, error: &StoreError) {
        for slot in self.slots().iter().filter(|slot| is_meant(Rc::as_ptr(&slot.owner))) {
            slot.over.borrow_mut().get_or_insert_with(|| error.clone());
        }
        self.changed.notify_waiters();
    }

    /// Lets all watches say how far they are.
    pub(super) fn report_progress(&self) {
        self.slots().iter().for_each(|slot| slot.reports.set(true));
        self.changed.notify_waiters();
    }

    fn slots(&self) -> Vec<Rc<Slot>> {
        let mut watches = self.watches.borrow_mut();
        watches.retain(|slot| slot.strong_count() > 0);
        watches.iter().filter_map(Weak::upgrade).collect()
    }
}

/// A running watch of the store in memory.
pub struct MemoryWatch {
    cluster: Rc<Cluster>,
    slot: Rc<Slot>,
    at: Revision,
}

impl MemoryWatch {
    pub(super) fn new(cluster: Rc<Cluster>, owner: Rc<RefCell<Client>>, after: Revision) -> Self {
        let slot = Rc::new(Slot { owner, over: RefCell::new(None), reports: Cell::new(false) });
        cluster.watches.borrow_mut().push(Rc::downgrade(&slot));
        MemoryWatch { cluster, slot, at: after }
    }

    /// What there is to say now.
    fn news(&self) -> Option<Changes> {
        let mut data = self.cluster.data.borrow_mut();
        data.expire(Instant::now());
        let progress = || self.slot.reports.take().then(|| Changes { revision: data.revision, changes: Vec::new() });
        data.changes_after(self.at).or_else(progress)
    }

    async fn wait(&self) {
        let woken = self.cluster.changed.notified();
        let deadline = self.cluster.data.borrow().next_deadline();
        match deadline {
            Some(deadline) => tokio::select! { () = woken => {}, () = sleep_until(deadline) => {} },
            None => woken.await,
        }
    }
}

impl Watch for MemoryWatch {
    async fn next(&mut self) -> Result<Changes, StoreError> {
        loop {
            let over = self.slot.over.borrow().clone();
            if let Some(error) = over {
                return Err(error);
            }
            if let Some(news) = self.news() {
                self.at = news.revision;
                let is_swallowed = !news.changes.is_empty() && mem::take(&mut self.slot.owner.borrow_mut().swallows);
                if is_swallowed {
                    continue;
                }
                return Ok(news);
            }
            self.wait().await;
        }
    }
}

/// The error of a store that cannot be reached.
pub(super) fn unreachable(why: &str) -> StoreError {
    StoreError::Unavailable(format!("memory: {why}"))
}
