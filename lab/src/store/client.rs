//! One client of the store in memory, and its watches.

use super::data::Data;
use super::faults::{Faults, unreachable};
use flanneld::model::lease::Revision;
use flanneld::store::{Changes, StoreError, Watch};
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

/// The largest number of changes in one message of a watch that catches up, as in etcd.
const BATCH: usize = 1000;

/// The number of calls of each kind, including those that failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// Reads of the network config.
    pub config: usize,
    /// Listings.
    pub list: usize,
    /// Watches begun.
    pub watch: usize,
    /// Writes.
    pub write: usize,
    /// Removals.
    pub remove: usize,
    /// Renewals.
    pub keep_alive: usize,
    /// Releases.
    pub release: usize,
}

/// The faults and the history of one client.
#[derive(Default)]
pub(super) struct Client {
    /// Its faults.
    pub(super) faults: Faults,
    /// The addresses of the store.
    pub(super) endpoints: watch::Sender<Vec<IpAddr>>,
    /// Its calls.
    pub(super) calls: Calls,
}

/// The data that all clients share, and their watches.
#[derive(Default)]
pub(super) struct Cluster {
    data: RefCell<Data>,
    watches: RefCell<Vec<Weak<Slot>>>,
    changed: Notify,
}

/// The part of a watch that others change.
struct Slot {
    owner: Rc<RefCell<Client>>,
    over: RefCell<Option<StoreError>>,
    reports: Cell<bool>,
    /// Whether it reports nothing any more, although it does not end.
    silent: Cell<bool>,
}

impl Cluster {
    /// Expires leases, changes the data, and wakes all watches.
    pub(super) fn change<T>(&self, work: impl FnOnce(&mut Data, Instant) -> T) -> T {
        let now = Instant::now();
        let mut data = self.data.borrow_mut();
        data.expire(now);
        let done = work(&mut data, now);
        drop(data);
        self.changed.notify_waiters();
        done
    }

    /// Ends the watches of the owners that match.
    pub(super) fn cut(&self, is_meant: impl Fn(*const RefCell<Client>) -> bool, error: &StoreError) {
        for slot in self.slots().iter().filter(|slot| is_meant(Rc::as_ptr(&slot.owner))) {
            slot.over.borrow_mut().get_or_insert_with(|| error.clone());
        }
        self.changed.notify_waiters();
    }

    /// Silences the watches of the owners that match.
    pub(super) fn silence(&self, is_meant: impl Fn(*const RefCell<Client>) -> bool) {
        for slot in self.slots().iter().filter(|slot| is_meant(Rc::as_ptr(&slot.owner))) {
            slot.silent.set(true);
        }
    }

    /// Wakes all watches.
    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Makes all watches report their progress.
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
    /// When it reports changes that are delayed.
    due: Option<Instant>,
}

impl MemoryWatch {
    pub(super) fn new(cluster: Rc<Cluster>, owner: Rc<RefCell<Client>>, after: Revision) -> Self {
        let (over, reports, silent) = (RefCell::new(None), Cell::new(false), Cell::new(false));
        let slot = Rc::new(Slot { owner, over, reports, silent });
        cluster.watches.borrow_mut().push(Rc::downgrade(&slot));
        MemoryWatch { cluster, slot, at: after, due: None }
    }

    /// The changes or the progress to report now.
    fn news(&mut self) -> Option<Changes> {
        let now = Instant::now();
        let mut data = self.cluster.data.borrow_mut();
        data.expire(now);
        let Some(first) = data.changes_after(self.at, 1) else {
            return self.slot.reports.take().then(|| Changes { revision: data.revision, changes: Vec::new() });
        };
        let faults = &mut self.slot.owner.borrow_mut().faults;
        if self.slot.silent.get() || std::mem::take(&mut faults.swallows) {
            self.at = first.revision;
            faults.fire("a watch is silent");
            return None;
        }
        if faults.link().loses_answers {
            return None;
        }
        if !faults.lag.is_zero() && *self.due.get_or_insert(now + faults.lag) > now {
            return None;
        }
        if self.due.take().is_some() {
            faults.fire("a watch is late");
        }
        if faults.tears() {
            self.slot.over.borrow_mut().get_or_insert_with(|| unreachable("the connection broke"));
            self.at = first.revision;
            return Some(first);
        }
        let (news, again) = faults.tell(data.changes_after(self.at, BATCH)?);
        self.at = if again { self.at } else { news.revision };
        Some(news)
    }

    async fn wait(&self) {
        let woken = self.cluster.changed.notified();
        let next_end = self.cluster.data.borrow().next_deadline();
        let dead_at = self.slot.owner.borrow().faults.dead_at();
        let due = self.due.filter(|at| *at > Instant::now());
        match [next_end, dead_at, due].into_iter().flatten().min() {
            Some(deadline) => tokio::select! { biased; () = woken => {}, () = sleep_until(deadline) => {} },
            None => woken.await,
        }
    }

    /// The error that ended the watch.
    fn end(&self) -> Option<StoreError> {
        let dead_at = self.slot.owner.borrow().faults.dead_at();
        let dead = || unreachable("nothing arrived for 8 s");
        self.slot.over.borrow().clone().or_else(|| dead_at.filter(|at| *at <= Instant::now()).map(|_| dead()))
    }
}

impl Watch for MemoryWatch {
    async fn next(&mut self) -> Result<Changes, StoreError> {
        loop {
            if let Some(error) = self.end() {
                return Err(error);
            }
            if let Some(news) = self.news() {
                return Ok(news);
            }
            self.wait().await;
        }
    }
}
