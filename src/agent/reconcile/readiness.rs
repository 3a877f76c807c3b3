//! Writes the files that others read, and reports readiness once everything is in place.

use super::Reconciler;
use crate::agent::loop_state::LoopState;
use crate::agent::runtime::Notice;
use crate::agent::status::Condition;
use crate::kernel::Kernel;
use crate::model::kernel_state::Key;
use crate::model::lease_set::Moment;
use crate::model::plan::Plan;

impl<K: Kernel> Reconciler<K> {
    /// Writes `subnet.env` and `docker_opts.env` if their contents have changed.
    pub(super) fn write_files(&mut self, state: &mut LoopState, now: Moment) {
        if !state.files_are_due(now) {
            return;
        }
        let network = self.desired.network();
        match self.files.write(network, self.desired.own().subnet, self.desired.mtu()) {
            Ok(()) => {
                state.files_were_written();
                self.status.clear(Condition::Files);
            }
            Err(error) => {
                state.files_failed(now, &self.runtime);
                self.status.raise(Condition::Files, error);
            }
        }
    }

    /// Reports once that everything is in place.
    pub(super) fn report_readiness(&self, state: &LoopState) {
        if self.status.read().started {
            return;
        }
        let listed = self.desired.leases().is_known() && state.news.is_clean();
        let addresses: Vec<Key> = self.desired.want().addresses.keys().map(Key::Address).collect();
        let plan = Plan::at(&addresses, &state.have, self.desired.want(), &self.desired.scope());
        let device_is_in_place = !plan.touches_device() && !state.nic_is_gone;
        let rules_in_place = *self.ends.rules_in_place.borrow();
        if listed && device_is_in_place && rules_in_place && self.files.are_written() {
            let (subnet, peers) = (self.desired.own().subnet, self.desired.tally().peers);
            tracing::info!(%subnet, peers, mtu = self.desired.mtu(), "ready");
            self.status.update(|status| status.started = true);
            self.runtime.notify(Notice::Ready);
        }
    }
}
