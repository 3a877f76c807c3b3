//! The main loop: takes in facts, finds what differs from what is wanted, applies it, and tries again what failed.
//!
//! The kernel's state is read in full at the start. From then on the kernel's reports keep it current, so the repair of
//! one entry costs the work of one entry. It is read in full again after an event that can remove entries without a report
//! (a change of the device or of its addresses), after reports were lost, and periodically.

mod execute;
mod kernel_reports;
mod readiness;
mod store_news;

use super::announce;
use super::loop_state::LoopState;
use super::runtime::{Notice, Runtime};
use super::status::{Condition, StatusHandle};
use super::wiring::ReconcilerEnds;
use crate::files::EnvFiles;
use crate::kernel::Kernel;
use crate::model::desired::DesiredState;
use crate::model::lease_set::Moment;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::rc::Rc;

/// Makes the kernel hold what follows from the facts.
pub(super) struct Reconciler<K> {
    kernel: K,
    desired: DesiredState,
    files: EnvFiles,
    /// `--public-ip`.
    public_ip: Option<Ipv4Addr>,
    runtime: Rc<Runtime>,
    status: StatusHandle,
    ends: ReconcilerEnds,
    /// Whether the log has explained that the device has an offload off without our doing.
    offload_was_logged: bool,
}

impl<K: Kernel> Reconciler<K> {
    /// A reconciler that has not read the kernel's state yet.
    pub(super) fn new(
        kernel: K,
        desired: DesiredState,
        files: EnvFiles,
        public_ip: Option<Ipv4Addr>,
        (runtime, status): (Rc<Runtime>, StatusHandle),
        ends: ReconcilerEnds,
    ) -> Self {
        Reconciler { kernel, desired, files, public_ip, runtime, status, ends, offload_was_logged: false }
    }

    /// Runs forever.
    pub(super) async fn run(mut self) -> Infallible {
        let mut state = LoopState::new(self.runtime.now());
        loop {
            self.tick(&mut state).await;
            let pause = state.pause(self.runtime.now());
            tokio::select! {
                biased;
                Some(first) = self.ends.news.recv() => {
                    self.take_news(first, &mut state);
                    while let Ok(more) = self.ends.news.try_recv() {
                        self.take_news(more, &mut state);
                    }
                }
                () = self.kernel.changed() => {}
                Ok(()) = self.ends.rules_in_place.changed() => {}
                () = self.files.finished() => {}
                Ok(()) = self.ends.endpoints.changed() => {
                    let endpoints = self.ends.endpoints.borrow_and_update().clone();
                    state.news.merge(self.desired.set_endpoints(endpoints));
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn tick(&mut self, state: &mut LoopState) {
        let now = self.runtime.now();
        self.take_kernel_events(state, now);
        let expired = self.desired.expire(now);
        state.news.merge(expired);
        announce::log(self.desired.take_findings());
        if self.read_what_is_due(state, now).await && !state.nic_is_gone {
            self.reconcile(state).await;
            self.report_failures(state);
        }
        self.write_files(state, now);
        self.publish_store_progress();
        self.report_status();
        self.report_readiness(state);
        state.trim_heap();
    }

    /// Reads the kernel's state or the host's interfaces if that is due. Returns whether the kernel's state is known.
    async fn read_what_is_due(&mut self, state: &mut LoopState, now: Moment) -> bool {
        if state.reads.is_due(now) {
            return self.read(state).await;
        }
        if state.reads.host_is_due(now)
            && let Err(error) = self.read_host(state).await
        {
            // The kernel's state as it was read before is still true.
            self.status.raise(Condition::Host, format!("the host's interfaces cannot be read: {error}"));
            state.reads.host_failed(now, &self.runtime);
        }
        true
    }

    fn report_status(&self) {
        self.status.set(Condition::PublicIp, self.desired.duplicate_ip());
        self.status.set(Condition::Subnet, self.desired.subnet_complaint());
        let (tally, held) = (self.desired.tally(), self.desired.leases().held_count());
        self.status.update(|status| (status.leases, status.held) = (tally, held));
        self.status.tick();
        self.runtime.notify(Notice::Alive);
    }
}
