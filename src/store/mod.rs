//! Where leases live. Following the peers needs a [`Registry`]; holding a lease of our own needs [`Leases`]. The daemon
//! knows only these traits: etcd is behind them today.

pub mod etcd;

pub use crate::model::lease_set::Change;
pub use crate::model::view::History;

use crate::model::foreign::{MESSAGE, shown};
use crate::model::lease::{LeaseAttrs, LeaseId, Record, Revision};
use crate::model::subnet::SubnetKey;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::watch;

/// Why a call to the store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached, does not answer in time, or has no leader. Another try may succeed.
    #[error("{}", shown(.0, MESSAGE))]
    Unavailable(String),
    /// The store answered and refused: a permission is missing, or the request is wrong. Somebody has to change that
    /// before another try can succeed.
    #[error("{}", shown(.0, MESSAGE))]
    Refused(String),
    /// The store no longer keeps the changes since that revision. List again.
    #[error("changes since revision {0} are compacted")]
    Compacted(Revision),
}

/// All keys under `subnets/` at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision of the whole store when the keys were read.
    pub revision: Revision,
    /// Every key, sorted by name.
    pub records: Vec<Record>,
    /// The history of the store that the revision belongs to, as far as the store can tell.
    pub history: History,
}

impl Snapshot {
    /// Adds a key, or replaces the key of that name.
    pub fn put(&mut self, record: Record) {
        match self.records.binary_search_by(|known| known.name.cmp(&record.name)) {
            Ok(place) => self.records[place] = record,
            Err(place) => self.records.insert(place, record),
        }
    }
}

/// Changes in the order of their revisions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The revision of the last change. Without changes, the revision that the store claims to have reached.
    pub revision: Revision,
    /// The changes; empty when the store only reports progress.
    pub changes: Vec<Change>,
}

/// The condition under which a write happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// The key does not exist.
    Absent,
    /// The key was last written at this revision.
    Unchanged(Revision),
}

/// What keeps a written key alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// A new lease with this time to live. etcd counts whole seconds.
    Grant(Duration),
    /// The lease that the key has already.
    Keep(LeaseId),
    /// Nothing: the key is a reservation and never expires.
    Forever,
}

/// The outcome of a write with a [`Precondition`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The key was written; this is the key as it is now.
    Committed(Record),
    /// The precondition did not hold; this is the key that exists instead, if any. A lease that was granted for the
    /// write is given back.
    Conflict(Option<Record>),
}

/// A store to read from: all that following the peers needs.
#[allow(async_fn_in_trait, reason = "the daemon is one thread: no Send bounds are wanted")]
pub trait Registry {
    /// A running watch.
    type Watch: Watch;

    /// Reads the text of the network config; `None` if there is none.
    async fn config(&self) -> Result<Option<Vec<u8>>, StoreError>;

    /// Returns the keys of network configs under other prefixes, as far as they are found at little cost. If there is no
    /// config under our prefix, the prefix may be wrong.
    async fn other_configs(&self) -> Vec<String> {
        Vec::new()
    }

    /// Reads all keys under `subnets/` from a quorum.
    async fn list(&self) -> Result<Snapshot, StoreError>;

    /// Starts to receive every change after `revision`.
    async fn watch(&self, after: Revision) -> Result<Self::Watch, StoreError>;

    /// The addresses of all members of the store, as they become known. No peer may take them into the overlay.
    fn endpoints(&self) -> watch::Receiver<Vec<IpAddr>>;

    /// Sends the next calls to another member, because the last answer was useless although it was no error.
    fn ask_another(&self) {}

    /// Sends the next calls over new connections, because this host's own address has changed. Old connections would
    /// only time out.
    fn redial(&self) {}
}

/// A store that also holds a lease of our own.
#[allow(async_fn_in_trait, reason = "the daemon is one thread: no Send bounds are wanted")]
pub trait Leases: Registry {
    /// Writes a lease if `precondition` holds.
    ///
    /// # Errors
    /// After an error the outcome is unknown: list to learn it.
    async fn write(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        precondition: Precondition,
        expiry: Expiry,
    ) -> Result<WriteOutcome, StoreError>;

    /// Deletes a key if it was last written at `unchanged`. Returns whether the key was deleted.
    async fn remove(&self, subnet: SubnetKey, unchanged: Revision) -> Result<bool, StoreError>;

    /// Extends a lease to its full time to live and returns that; `None` if the lease no longer exists.
    async fn keep_alive(&self, id: LeaseId) -> Result<Option<Duration>, StoreError>;

    /// Ends a lease and deletes its keys. A lease that has already ended is no error.
    async fn release(&self, id: LeaseId) -> Result<(), StoreError>;
}

/// A running watch.
#[allow(async_fn_in_trait, reason = "the daemon is one thread: no Send bounds are wanted")]
pub trait Watch {
    /// Waits for the next changes or for a sign of life. Cancel-safe.
    ///
    /// An implementation notices within about half a minute that the store no longer answers.
    ///
    /// # Errors
    /// After an error the watch is over: list and watch again.
    async fn next(&mut self) -> Result<Changes, StoreError>;

    /// The history of the store that is watched, as far as the store can tell.
    fn history(&self) -> History {
        History::default()
    }
}
