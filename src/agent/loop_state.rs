//! The memory of the main loop between ticks, and the time of its next tick.

use super::read_schedule::ReadSchedule;
use super::repair_limiter::RepairLimiter;
use super::retry_queue::RetryQueue;
use super::runtime::{Backoff, Runtime};
use crate::malloc;
use crate::model::desired::Dirty;
use crate::model::kernel_state::Have;
use crate::model::lease_set::Moment;
use std::time::Duration;

/// How often the loop ticks when nothing happens, for the watchdog and `/healthz`.
const TICK_EVERY: Duration = Duration::from_secs(5);

/// The pause before a tick continues the work that the last one did not finish, because somebody keeps changing the
/// device.
const BREATH: Duration = Duration::from_millis(10);

/// The memory of the main loop between ticks.
pub(super) struct LoopState {
    pub(super) have: Have,
    /// The entries that may differ because the facts changed.
    pub(super) news: Dirty,
    /// The entries that may differ because somebody changed the kernel.
    pub(super) damage: Dirty,
    /// Since when the oldest damage is known.
    pub(super) damaged_at: Moment,
    pub(super) retries: RetryQueue,
    pub(super) repair_limiter: RepairLimiter,
    pub(super) reads: ReadSchedule,
    /// While the external interface is gone, the kernel's state is left as it is: none would be right.
    pub(super) nic_is_gone: bool,
    write_files_at: Moment,
    files_failing: Backoff,
    /// Whether much memory was used for a short time.
    was_large: bool,
}

impl LoopState {
    /// Nothing is known yet.
    pub(super) fn new(now: Moment) -> Self {
        LoopState {
            have: Have::default(),
            news: Dirty::All,
            damage: Dirty::default(),
            damaged_at: now,
            retries: RetryQueue::default(),
            repair_limiter: RepairLimiter::default(),
            reads: ReadSchedule::new(now),
            nic_is_gone: false,
            write_files_at: now,
            files_failing: Backoff::new(Duration::from_millis(200), Duration::from_secs(5)),
            was_large: false,
        }
    }

    /// How long there is nothing to do, unless something happens.
    pub(super) fn pause(&self, now: Moment) -> Duration {
        let work = match self.news.is_clean() && self.damage.is_clean() {
            _ if self.nic_is_gone => None,
            true => [self.retries.next(), self.repair_limiter.next()].into_iter().flatten().min(),
            false => Some(now + BREATH),
        };
        let files = Some(self.write_files_at).filter(|at| *at > now);
        let next = [work, files].into_iter().flatten().fold(self.reads.next(), Moment::min);
        next.saturating_sub(now).min(TICK_EVERY)
    }

    /// Takes in all that the kernel holds, from a reading that lasted from `started` until `now`.
    pub(super) fn was_read(&mut self, have: Have, started: Moment, now: Moment, runtime: &Runtime) {
        if self.damage.is_clean() {
            self.damaged_at = started;
        }
        self.handled(have.routes.len());
        (self.have, self.damage) = (have, Dirty::All);
        self.reads.was_read(started, now, runtime);
    }

    /// Whether the files may be written, or must wait because writing them failed.
    pub(super) fn files_are_due(&self, now: Moment) -> bool {
        now >= self.write_files_at
    }

    /// The files have been written.
    pub(super) fn files_were_written(&mut self) {
        self.files_failing.reset();
    }

    /// The files could not be written.
    pub(super) fn files_failed(&mut self, now: Moment, runtime: &Runtime) {
        self.write_files_at = now + self.files_failing.pause(runtime);
    }

    /// The number of objects that were handled together.
    pub(super) fn handled(&mut self, objects: usize) {
        self.was_large |= objects >= malloc::MANY;
    }

    /// Trims the heap if many objects were handled together since the last call.
    pub(super) fn trim_heap(&mut self) {
        if std::mem::take(&mut self.was_large) {
            malloc::trim();
        }
    }
}
