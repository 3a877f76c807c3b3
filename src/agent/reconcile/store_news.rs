//! Takes in what the store's watch and lists show, and publishes what the lease manager needs of it.

use super::Reconciler;
use crate::agent::lease_manager::KeyObservation;
use crate::agent::loop_state::LoopState;
use crate::agent::peers::News;
use crate::kernel::Kernel;
use crate::model::lease::{Record, Revision};
use crate::model::lease_set::Change;
use crate::model::state_file::StoreProgress;
use crate::model::subnet::SubnetKey;
use crate::store::{Changes, Snapshot};

impl<K: Kernel> Reconciler<K> {
    /// Takes in news of the leases.
    pub(super) fn take_news(&mut self, news: News, state: &mut LoopState) {
        match news {
            News::OtherHistory => self.desired.doubt_next_list(),
            News::All(snapshot) => self.take_list(snapshot, state),
            News::Some(changes) => self.take_changes(changes, state),
        }
    }

    fn take_list(&mut self, snapshot: Snapshot, state: &mut LoopState) {
        let (own, now) = (self.own_key(), self.runtime.now());
        let record = snapshot.records.iter().find(|record| *record.name == own).cloned();
        self.observe_own_key(snapshot.revision, record);
        tracing::info!(leases = snapshot.records.len(), revision = snapshot.revision, "leases listed");
        state.handled(snapshot.records.len());
        state.news.merge(self.desired.set_leases(snapshot.revision, snapshot.records, now));
    }

    fn take_changes(&mut self, changes: Changes, state: &mut LoopState) {
        let (own, now) = (self.own_key(), self.runtime.now());
        if self.status.read().own.lease_ends.is_some_and(|end| now >= end) {
            self.desired.expect_loss_of_own(now);
        }
        for change in &changes.changes {
            match change {
                Change::Put(record) if *record.name == own => {
                    self.observe_own_key(changes.revision, Some(record.clone()));
                }
                Change::Delete { name, revision } if **name == own => self.observe_own_key(*revision, None),
                _ => {}
            }
        }
        state.news.merge(self.desired.change_leases(changes.revision, changes.changes, now));
    }

    fn own_key(&self) -> String {
        SubnetKey::v4(self.desired.own().subnet).to_string()
    }

    fn observe_own_key(&self, revision: Revision, record: Option<Record>) {
        self.ends.observations.send_replace(Some(KeyObservation { revision, record }));
    }

    /// Publishes how much of the store's history is known. An older revision than before is published as well: the store
    /// was set back, and this is its history now.
    pub(super) fn publish_store_progress(&self) {
        let leases = self.desired.leases();
        if leases.is_known() {
            let progress = StoreProgress { revision: leases.revision(), hold_until: leases.last_expiry() };
            self.ends.store_progress.send_if_modified(|known| std::mem::replace(known, progress) != progress);
        }
    }
}
