//! A store in memory with etcd's semantics, for scenarios in which many daemons run in one process under paused time.

mod client;
mod data;
#[cfg(test)]
mod tests;

pub use client::{Calls, MemoryWatch};

use super::{Guard, Life, Snapshot, Store, StoreError, Written};
use crate::model::lease::{LeaseAttrs, LeaseId, Revision};
use crate::model::subnet::SubnetKey;
use client::{Client, Cluster, unreachable};
use data::Data;
use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// A store in memory. Clones are the same client; [`another_client`](Self::another_client) is one with faults,
/// counters and watches of its own on the same data. Leases expire by tokio's clock.
#[derive(Clone, Default)]
pub struct MemoryStore {
    cluster: Rc<Cluster>,
    client: Rc<RefCell<Client>>,
}

/// Everything a store held at one time, leases and history too.
#[derive(Debug, Clone)]
pub struct Backup(Data);

/// What other hosts and an administrator do, without faults and at once.
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

    /// Deletes a key; tells whether there was one.
    pub fn delete(&self, name: &str) -> bool {
        self.cluster.change(|data, _| data.delete(|other, _| other == name)) > 0
    }

    /// Deletes all keys whose names start so, in one revision; tells how many there were.
    pub fn delete_prefix(&self, start: &str) -> usize {
        self.cluster.change(|data, _| data.delete(|name, _| name.starts_with(start)))
    }

    /// Ends a lease and its keys.
    pub fn revoke(&self, id: LeaseId) {
        self.cluster.change(|data, _| data.revoke(id));
    }

    /// Forgets the changes before a revision: watches that want to start there are told so.
    pub fn compact(&self, revision: Revision) {
        self.cluster.change(|data, _| data.compacted = revision);
    }

    /// Loses everything, as when etcd's data directory is thrown away. Watches of all clients end.
    pub fn wipe(&self) {
        self.restore(Backup(Data::default()));
    }

    /// A copy of everything.
    pub fn backup(&self) -> Backup {
        self.cluster.change(|data, _| Backup(data.clone()))
    }

    /// Goes back to a copy, its revision included. Watches of all clients end.
    pub fn restore(&self, backup: Backup) {
        self.cluster.change(|data, _| *data = backup.0);
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

    /// How many leases there are, used or not.
    pub fn leases(&self) -> usize {
        self.cluster.change(|data, _| data.leases())
    }

    /// Lets every watch of all clients report how far it is, as etcd does from time to time.
    pub fn report_progress(&self) {
        self.cluster.report_progress();
    }
}

/// What can be wrong between one client and the store.
impl MemoryStore {
    /// From now on all calls of this client fail so, and do nothing. Its watches go on.
    pub fn fail_with(&self, error: StoreError) {
        self.client.borrow_mut().fault = Some(error);
    }

    /// Cuts this client off: its calls fail and its watches end.
    pub fn go_down(&self) {
        let error = unreachable("connection refused");
        self.fail_with(error.clone());
        self.cut_watches(error);
    }

    /// Calls work again.
    pub fn come_back(&self) {
        self.client.borrow_mut().fault = None;
    }

    /// The next write or removal of this client is done, but its answer is lost.
    pub fn lose_next_answer(&self) {
        self.client.borrow_mut().loses_answer = true;
    }

    /// Ends the watches of this client with this error.
    pub fn cut_watches(&self, error: StoreError) {
        let client = Rc::as_ptr(&self.client);
        self.cluster.cut(|owner| std::ptr::eq(owner, client), &error);
    }

    /// The next change, or changes in one go, is told to no watch of this client.
    pub fn swallow_next_change(&self) {
        self.client.borrow_mut().swallows = true;
    }

    /// From now on lists of this client show what was there then, as those of a member that stands still; `None` ends
    /// that.
    pub fn list_as_of(&self, past: Option<Snapshot>) {
        self.client.borrow_mut().past = past;
    }

    /// From now on calls of this client take so long to arrive, and their answers so long to come back.
    pub fn set_latency(&self, each_way: Duration) {
        self.client.borrow_mut().latency = each_way;
    }

    /// Where this client says that the store is.
    pub fn set_addresses(&self, addresses: Vec<IpAddr>) {
        self.client.borrow_mut().addresses = addresses;
    }

    /// How often this client has called.
    pub fn calls(&self) -> Calls {
        self.client.borrow().calls
    }
}

impl MemoryStore {
    /// One call: counted, delayed, done, delayed; or failed.
    async fn call<T>(
        &self,
        count: fn(&mut Calls) -> &mut usize,
        work: impl FnOnce(&mut Data, Instant) -> T,
    ) -> Result<T, StoreError> {
        *count(&mut self.client.borrow_mut().calls) += 1;
        self.travel().await?;
        let done = self.cluster.change(work);
        self.travel().await?;
        Ok(done)
    }

    /// A message one way; it is lost if the client is cut off meanwhile.
    async fn travel(&self) -> Result<(), StoreError> {
        let latency = self.client.borrow().latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        self.client.borrow().fault.clone().map_or(Ok(()), Err)
    }

    /// The answer to a change, unless it gets lost.
    fn answer<T>(&self, answer: T) -> Result<T, StoreError> {
        match std::mem::take(&mut self.client.borrow_mut().loses_answer) {
            true => Err(unreachable("no answer within 4 s")),
            false => Ok(answer),
        }
    }
}

impl Store for MemoryStore {
    type Watch = MemoryWatch;

    async fn config(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.call(|calls| &mut calls.config, |data, _| data.config.clone()).await
    }

    async fn list(&self) -> Result<Snapshot, StoreError> {
        let now = self.call(|calls| &mut calls.list, |data, _| data.snapshot()).await?;
        Ok(self.client.borrow().past.clone().unwrap_or(now))
    }

    async fn watch(&self, after: Revision) -> Result<MemoryWatch, StoreError> {
        let start = |data: &mut Data, _| {
            let refused = match after {
                after if after > data.revision => Some(StoreError::Compacted(after)),
                after if after + 1 < data.compacted => Some(StoreError::Compacted(data.compacted)),
                _ => None,
            };
            let watch = || MemoryWatch::new(self.cluster.clone(), self.client.clone(), after);
            refused.map_or_else(|| Ok(watch()), Err)
        };
        self.call(|calls| &mut calls.watch, start).await?
    }

    async fn write(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        guard: Guard,
        life: Life,
    ) -> Result<Written, StoreError> {
        let (name, value) = (subnet.to_string(), attrs.to_json().into_bytes());
        let write = |data: &mut Data, now| write(data, now, &name, value, guard, life);
        let written = self.call(|calls| &mut calls.write, write).await?;
        self.answer(written)
    }

    async fn remove(&self, subnet: SubnetKey, unchanged: Revision) -> Result<bool, StoreError> {
        let name = subnet.to_string();
        let remove = |data: &mut Data, _| data.delete(|other, entry| other == name && entry.modified == unchanged) > 0;
        let removed = self.call(|calls| &mut calls.remove, remove).await?;
        self.answer(removed)
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Option<Duration>, StoreError> {
        self.call(|calls| &mut calls.keep_alive, |data, now| data.renew(id, now)).await
    }

    async fn release(&self, id: LeaseId) -> Result<(), StoreError> {
        self.call(|calls| &mut calls.release, |data, _| data.revoke(id)).await
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.client.borrow().addresses.clone()
    }
}

fn write(data: &mut Data, now: Instant, name: &str, value: Vec<u8>, guard: Guard, life: Life) -> Written {
    let entry = data.entry(name);
    let holds = match guard {
        Guard::Absent => entry.is_none(),
        Guard::Unchanged(revision) => entry.is_some_and(|entry| entry.modified == revision),
    };
    let kept = match life {
        Life::Keep(id) => Some(id),
        Life::Grant(_) | Life::Forever => None,
    };
    let is_granted = matches!(life, Life::Grant(_));
    if !holds {
        let is_ours = !is_granted && entry.is_some_and(|entry| entry.value == value && entry.lease == kept);
        let record = data.record(name);
        return match record {
            Some(record) if is_ours => Written::Done(record),
            record => Written::Lost(record),
        };
    }
    if kept.is_some_and(|id| !data.has_lease(id)) {
        return Written::Lost(data.record(name));
    }
    let lease = match life {
        Life::Grant(ttl) => Some(data.grant(ttl, now)),
        Life::Keep(_) | Life::Forever => kept,
    };
    data.put(name, value, lease);
    Written::Done(data.record(name).expect("it was just written"))
}
