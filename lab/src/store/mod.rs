//! A store in memory with etcd's semantics, for scenarios in which many daemons run in one process under paused time.

mod client;
mod data;
mod faults;
#[cfg(test)]
mod tests;

pub use client::{Calls, MemoryWatch};
pub use faults::{Link, Lost};

use client::{Client, Cluster};
use data::Data;
use faults::{CALL_DEADLINE, unreachable};
use flanneld::model::lease::{LeaseAttrs, LeaseId, Revision};
use flanneld::model::subnet::SubnetKey;
use flanneld::store::{Expiry, Leases, Precondition, Registry, Snapshot, StoreError, WriteOutcome};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

/// A store in memory. Clones are the same client; [`another_client`](Self::another_client) is one with faults,
/// counters and watches of its own on the same data. Leases expire by tokio's clock.
#[derive(Clone, Default)]
pub struct MemoryStore {
    cluster: Rc<Cluster>,
    client: Rc<RefCell<Client>>,
}

/// A copy of a store, including leases and history.
#[derive(Debug, Clone)]
pub struct Backup(Data);

/// The actions of other hosts and of an administrator: immediate and without faults.
impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        MemoryStore::default()
    }

    /// Another host's handle on the same data.
    pub fn another_client(&self) -> Self {
        MemoryStore { cluster: self.cluster.clone(), client: Rc::default() }
    }

    /// Writes the network config.
    pub fn set_config(&self, text: &str) {
        self.cluster.change(|data, _| data.set_config(Some(text.into())));
    }

    /// Deletes the network config.
    pub fn remove_config(&self) {
        self.cluster.change(|data, _| data.set_config(None));
    }

    /// Writes any bytes under `subnets/`, without a lease.
    pub fn put(&self, name: &str, value: impl AsRef<[u8]>) -> Revision {
        self.cluster.change(|data, _| data.put(name, value.as_ref().to_vec(), None))
    }

    /// Writes any bytes under `subnets/`, with a new lease.
    pub fn put_for(&self, name: &str, value: impl AsRef<[u8]>, ttl: Duration) -> LeaseId {
        self.cluster.change(|data, now| {
            let id = data.grant(ttl, now);
            data.put(name, value.as_ref().to_vec(), Some(id));
            id
        })
    }

    /// Writes any bytes under `subnets/`, on a lease that is there.
    pub fn put_on(&self, name: &str, value: impl AsRef<[u8]>, lease: LeaseId) -> Revision {
        self.cluster.change(|data, _| data.put(name, value.as_ref().to_vec(), Some(lease)))
    }

    /// Deletes a key and returns whether it existed.
    pub fn delete(&self, name: &str) -> bool {
        self.cluster.change(|data, _| data.delete(|other, _| other == name)) > 0
    }

    /// Deletes all keys with this prefix in one revision and returns their number.
    pub fn delete_prefix(&self, start: &str) -> usize {
        self.cluster.change(|data, _| data.delete(|name, _| name.starts_with(start)))
    }

    /// Ends a lease and deletes its keys.
    pub fn revoke(&self, id: LeaseId) {
        self.cluster.change(|data, _| data.revoke(id));
    }

    /// Forgets the changes before a revision. Watches from there fail as compacted.
    pub fn compact(&self, revision: Revision) {
        self.cluster.change(|data, _| data.compacted = revision);
    }

    /// Loses everything, as when etcd's data directory is thrown away. Watches of all clients end.
    pub fn wipe(&self) {
        self.restore(Backup(Data::default()));
    }

    /// Copies the whole store.
    pub fn backup(&self) -> Backup {
        self.cluster.change(|data, _| Backup(data.clone()))
    }

    /// Goes back to a copy, its revision included. Leases that it holds live for their whole time again. Watches of all
    /// clients end.
    pub fn restore(&self, backup: Backup) {
        self.cluster.change(|data, now| backup.0.replace(data, now));
        self.cluster.cut(|_| true, &unreachable("etcd was restarted"));
    }

    /// A key's value.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.cluster.change(|data, _| data.entry(name).map(|entry| entry.value.clone()))
    }

    /// All keys now.
    pub fn snapshot(&self) -> Snapshot {
        self.cluster.change(|data, _| data.snapshot())
    }

    /// The number of leases, including those without keys.
    pub fn leases(&self) -> usize {
        self.cluster.change(|data, _| data.leases())
    }

    /// Makes every watch of all clients report its progress, as etcd does from time to time.
    pub fn report_progress(&self) {
        self.cluster.report_progress();
    }
}

/// Faults between this client and the store.
impl MemoryStore {
    /// Makes all calls of this client fail with this error and without effect. Its watches continue.
    pub fn fail_with(&self, error: StoreError) {
        self.client.borrow_mut().faults.all = Some(error);
    }

    /// Cuts this client off: its calls fail and its watches end.
    pub fn go_down(&self) {
        let error = unreachable("connection refused");
        self.fail_with(error.clone());
        self.cut_watches(error);
    }

    /// Calls work again.
    pub fn come_back(&self) {
        self.client.borrow_mut().faults.all = None;
    }

    /// Loses the answer to the next write or removal of this client, which is executed.
    pub fn lose_next_answer(&self) {
        self.client.borrow_mut().faults.loses_answer = true;
    }

    /// Loses the answer to this client's next change of this kind.
    pub fn lose_next(&self, change: Lost) {
        self.client.borrow_mut().faults.lost.push(change);
    }

    /// Loses messages in these directions. Calls fail at their deadline; watches end when keepalive gives up.
    pub fn set_link(&self, link: Link) {
        self.client.borrow_mut().faults.set_link(link);
        self.cluster.wake();
    }

    /// Breaks the next `times` lists off.
    pub fn tear_lists(&self, times: usize) {
        self.client.borrow_mut().faults.torn_lists = times;
    }

    /// Ends the watches of this client with this error.
    pub fn cut_watches(&self, error: StoreError) {
        let client = Rc::as_ptr(&self.client);
        self.cluster.cut(|owner| std::ptr::eq(owner, client), &error);
    }

    /// Hides the next change, or batch of changes, from all watches of this client.
    pub fn swallow_next_change(&self) {
        self.client.borrow_mut().faults.swallows = true;
    }

    /// Makes lists of this client return this snapshot, like those of a member that lags behind; `None` ends that.
    pub fn list_as_of(&self, past: Option<Snapshot>) {
        self.client.borrow_mut().faults.past = past;
    }

    /// Silences the watches of this client without ending them.
    pub fn silence_watches(&self) {
        let client = Rc::as_ptr(&self.client);
        self.cluster.silence(|owner| std::ptr::eq(owner, client));
    }

    /// Makes watches report changes with this delay.
    pub fn delay_events(&self, lag: Duration) {
        self.client.borrow_mut().faults.lag = lag;
        self.cluster.wake();
    }

    /// Repeats the next `times` messages of watches.
    pub fn repeat_events(&self, times: usize) {
        self.client.borrow_mut().faults.repeats = times;
    }

    /// Removes the first change from the next `times` messages of watches.
    pub fn lose_events(&self, times: usize) {
        self.client.borrow_mut().faults.gaps = times;
    }

    /// Breaks the next `times` messages of watches off after the first revision.
    pub fn tear_events(&self, times: usize) {
        self.client.borrow_mut().faults.torn_events = times;
    }

    /// Makes the next watch start this many revisions too early.
    pub fn rewind_next_watch(&self, revisions: Revision) {
        self.client.borrow_mut().faults.rewind = revisions;
    }

    /// Ends all faults of this client at once. Silenced watches stay silent.
    pub fn mend(&self) {
        let mut client = self.client.borrow_mut();
        client.faults = client.faults.mended();
        drop(client);
        self.cluster.wake();
    }

    /// How often each fault of this client had an effect.
    pub fn fired(&self) -> BTreeMap<&'static str, usize> {
        self.client.borrow().faults.fired()
    }

    /// Delays calls of this client and their answers by this time each.
    pub fn set_latency(&self, each_way: Duration) {
        self.client.borrow_mut().faults.latency = each_way;
    }

    /// Changes the addresses at which this client reaches the store.
    pub fn set_endpoints(&self, addresses: Vec<IpAddr>) {
        self.client.borrow().endpoints.send_replace(addresses);
    }

    /// The calls of this client so far.
    pub fn calls(&self) -> Calls {
        self.client.borrow().calls
    }
}

impl MemoryStore {
    /// Makes one call: counts it, delays it, executes it, delays the answer.
    async fn call<T>(
        &self,
        count: fn(&mut Calls) -> &mut usize,
        work: impl FnOnce(&mut Data, Instant) -> T,
    ) -> Result<T, StoreError> {
        *count(&mut self.client.borrow_mut().calls) += 1;
        let deadline = Instant::now() + CALL_DEADLINE;
        self.travel(|link| link.loses_requests, deadline).await?;
        let done = self.cluster.change(work);
        self.travel(|link| link.loses_answers, deadline).await?;
        Ok(done)
    }

    /// Carries a message one way. The message is lost if the client is cut off meanwhile.
    async fn travel(&self, loses: fn(Link) -> bool, deadline: Instant) -> Result<(), StoreError> {
        let latency = self.client.borrow().faults.latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        if loses(self.client.borrow().faults.link()) {
            tokio::time::sleep_until(deadline).await;
            return Err(no_answer());
        }
        self.client.borrow().faults.all.clone().map_or(Ok(()), Err)
    }

    /// Returns the answer to a change, unless it gets lost.
    fn answer<T>(&self, change: Lost, answer: T) -> Result<T, StoreError> {
        match self.client.borrow_mut().faults.loses(change) {
            true => Err(no_answer()),
            false => Ok(answer),
        }
    }
}

fn no_answer() -> StoreError {
    unreachable("no answer within 4 s")
}

impl Registry for MemoryStore {
    type Watch = MemoryWatch;

    async fn config(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.call(|calls| &mut calls.config, |data, _| data.config.clone()).await
    }

    async fn list(&self) -> Result<Snapshot, StoreError> {
        let truth = self.call(|calls| &mut calls.list, |data, _| data.snapshot()).await?;
        self.client.borrow_mut().faults.list(truth)
    }

    async fn watch(&self, after: Revision) -> Result<MemoryWatch, StoreError> {
        let start = |data: &mut Data, _| {
            let refused = match after {
                after if after > data.revision => Some(StoreError::Compacted(after)),
                after if after + 1 < data.compacted => Some(StoreError::Compacted(data.compacted)),
                _ => None,
            };
            let start = || self.client.borrow_mut().faults.start(after, data.compacted);
            let watch = || MemoryWatch::new(self.cluster.clone(), self.client.clone(), start());
            refused.map_or_else(|| Ok(watch()), Err)
        };
        self.call(|calls| &mut calls.watch, start).await?
    }

    fn endpoints(&self) -> Receiver<Vec<IpAddr>> {
        self.client.borrow().endpoints.subscribe()
    }
}

impl Leases for MemoryStore {
    async fn write(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        precondition: Precondition,
        expiry: Expiry,
    ) -> Result<WriteOutcome, StoreError> {
        let (name, value) = (subnet.to_string(), attrs.to_json().into_bytes());
        let change = if precondition == Precondition::Absent { Lost::Creation } else { Lost::Rewrite };
        let granted_in_vain = |data: &mut Data, now| match expiry {
            Expiry::Grant(ttl) if self.client.borrow_mut().faults.loses(Lost::Grant) => Some(data.grant(ttl, now)),
            _ => None,
        };
        let work = |data: &mut Data, now| match granted_in_vain(data, now) {
            Some(_) => Err(no_answer()),
            None => Ok(write(data, now, &name, value, precondition, expiry)),
        };
        let written = self.call(|calls| &mut calls.write, work).await??;
        self.answer(change, written)
    }

    async fn remove(&self, subnet: SubnetKey, unchanged: Revision) -> Result<bool, StoreError> {
        let name = subnet.to_string();
        let remove = |data: &mut Data, _| data.delete(|other, entry| other == name && entry.modified == unchanged) > 0;
        let removed = self.call(|calls| &mut calls.remove, remove).await?;
        self.answer(Lost::Removal, removed)
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Option<Duration>, StoreError> {
        let renewed = self.call(|calls| &mut calls.keep_alive, |data, now| data.renew(id, now)).await?;
        self.answer(Lost::Renewal, renewed)
    }

    async fn release(&self, id: LeaseId) -> Result<(), StoreError> {
        self.call(|calls| &mut calls.release, |data, _| data.revoke(id)).await
    }
}

fn write(
    data: &mut Data,
    now: Instant,
    name: &str,
    value: Vec<u8>,
    precondition: Precondition,
    expiry: Expiry,
) -> WriteOutcome {
    let entry = data.entry(name);
    let holds = match precondition {
        Precondition::Absent => entry.is_none(),
        Precondition::Unchanged(revision) => entry.is_some_and(|entry| entry.modified == revision),
    };
    let kept = match expiry {
        Expiry::Keep(id) => Some(id),
        Expiry::Grant(_) | Expiry::Forever => None,
    };
    if !holds {
        return WriteOutcome::Conflict(data.record(name));
    }
    if kept.is_some_and(|id| !data.has_lease(id)) {
        return WriteOutcome::Conflict(data.record(name));
    }
    let lease = match expiry {
        Expiry::Grant(ttl) => Some(data.grant(ttl, now)),
        Expiry::Keep(_) | Expiry::Forever => kept,
    };
    data.put(name, value, lease);
    WriteOutcome::Committed(data.record(name).expect("it was just written"))
}
