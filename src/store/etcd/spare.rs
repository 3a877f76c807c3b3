//! The etcd lease that was granted for a write whose outcome is unknown. The next write that needs a lease takes it, so
//! that an outage leaves at most one behind.

use crate::model::lease::LeaseId;
use std::cell::Cell;

/// An etcd lease that may be free.
#[derive(Debug, Default)]
pub(super) struct Spare(Cell<Option<(LeaseId, i64)>>);

impl Spare {
    /// The lease, if it was granted for this many seconds.
    pub(super) fn get(&self, seconds: i64) -> Option<LeaseId> {
        self.0.get().filter(|(_, granted)| *granted == seconds).map(|(id, _)| id)
    }

    /// A lease is about to be granted for this many seconds.
    pub(super) fn set(&self, id: i64, seconds: i64) {
        self.0.set(LeaseId::new(id).map(|id| (id, seconds)));
    }

    /// This lease is in use, or was given back.
    pub(super) fn take(&self, used: Option<LeaseId>) {
        if self.0.get().is_some_and(|(id, _)| Some(id) == used) {
            self.0.set(None);
        }
    }
}
