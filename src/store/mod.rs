//! Where leases live. The daemon knows only [`Store`]; what is behind it (etcd, memory, later Kubernetes) does not show.

pub mod etcd;
pub mod memory;

pub use crate::model::lease_set::Change;
pub use crate::model::view::History;

use crate::model::lease::{LeaseAttrs, LeaseId, Record, Revision};
use crate::model::subnet::SubnetKey;
use std::net::IpAddr;
use std::time::Duration;

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, does not answer in time, or has no leader: trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// It answered and refuses: permissions, a broken request. Trying again helps once somebody mends it.
    #[error("{0}")]
    Refused(String),
    /// The changes since that revision are not kept any more: list again.
    #[error("changes since revision {0} are compacted")]
    Compacted(Revision),
}

/// All keys under `subnets/` at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision of the whole store when it was read.
    pub revision: Revision,
    /// Every key, in the order of the keys.
    pub records: Vec<Record>,
    /// In which history of the store that revision was, as far as the store can tell.
    pub history: History,
}

impl Snapshot {
    /// Adds a key, or puts it in the place of what it was.
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
    /// The revision of the last change; without changes, how far the store claims to be.
    pub revision: Revision,
    /// The changes; none when the store only reports progress.
    pub changes: Vec<Change>,
}

/// When a write is to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Only if the key does not exist.
    Absent,
    /// Only if the key was last written at this revision.
    Unchanged(Revision),
}

/// What is to keep a written key alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// A new lease with this time to live (whole seconds are what etcd counts).
    Grant(Duration),
    /// The lease that the key has already.
    Keep(LeaseId),
    /// Nothing: the key is a reservation and stays for ever.
    Forever,
}

/// What became of a guarded write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It was done; this is the key as it stands now.
    Committed(Record),
    /// The guard did not hold; this is what stands there instead, if anything. A lease granted for it is given back.
    Conflict(Option<Record>),
}

/// Where leases live.
#[allow(async_fn_in_trait, reason = "the daemon is one thread: no Send bounds are wanted")]
pub trait Store {
    /// A running watch.
    type Watch: Watch;

    /// The network config's text; `None` if there is none.
    async fn config(&self) -> Result<Option<Vec<u8>>, StoreError>;

    /// All keys under `subnets/`, read from a quorum.
    async fn list(&self) -> Result<Snapshot, StoreError>;

    /// Every change after `revision`, from now on.
    async fn watch(&self, after: Revision) -> Result<Self::Watch, StoreError>;

    /// Writes a lease if `guard` holds. After an error it is not known whether it was written: list to find out.
    async fn write(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        precondition: Precondition,
        expiry: Expiry,
    ) -> Result<WriteOutcome, StoreError>;

    /// Deletes a key if it was last written at `unchanged`; tells whether it did.
    async fn remove(&self, subnet: SubnetKey, unchanged: Revision) -> Result<bool, StoreError>;

    /// Extends a lease to its full time to live, which is returned; `None` when the lease no longer exists.
    async fn keep_alive(&self, id: LeaseId) -> Result<Option<Duration>, StoreError>;

    /// Ends a lease and the keys on it; one that has ended already is no error.
    async fn release(&self, id: LeaseId) -> Result<(), StoreError>;

    /// The addresses at which the store is reached, as far as known: no peer may take them into the overlay.
    fn addresses(&self) -> Vec<IpAddr>;

    /// The last answer is of no use, though it was given: others are to be asked from now on, if there are others.
    fn ask_another(&self) {}

    /// This host's own address has changed: what is asked from now on goes over new connections. Those from an address
    /// that is gone would only be waited for.
    fn redial(&self) {}
}

/// A running watch.
#[allow(async_fn_in_trait, reason = "the daemon is one thread: no Send bounds are wanted")]
pub trait Watch {
    /// The next changes, or a sign of life. After an error the watch is over: list and watch again. Cancel-safe.
    ///
    /// Whoever implements this notices by himself that the store no longer answers, within half a minute or so.
    async fn next(&mut self) -> Result<Changes, StoreError>;

    /// In which history of the store it watches, as far as the store can tell.
    fn history(&self) -> History {
        History::default()
    }
}
