//! What the loop remembers from turn to turn, and when it turns next.

use super::repair_limiter::{RateLimit, RepairLimiter};
use super::retry_queue::RetryQueue;
use super::runtime::{Backoff, Runtime};
use crate::malloc;
use crate::model::desired::Dirty;
use crate::model::kernel_state::Have;
use crate::model::lease_set::Moment;
use std::time::Duration;

/// How long the kernel's state is trusted before it is read again in full, at least and at most. A reading may have
/// taken long because the host was paused in the midst of it.
const FULL_READ_EVERY: Duration = Duration::from_secs(60);
const FULL_READ_AT_LATEST: Duration = Duration::from_secs(600);

/// A full read may take this share of the time: at 10,000 peers it takes some 40 ms, and comes every three minutes.
const FULL_READ_SHARE: u32 = 4000;

/// In a lasting storm of changes a full read may take a tenth of the time, and follows at most so often. No repair waits
/// for longer than this because of it.
const STORM_READ_EVERY: Duration = Duration::from_millis(50);
const STORM_READ_AT_LATEST: Duration = Duration::from_millis(500);
const STORM_READ_SHARE: u32 = 10;

/// How soon the host's interfaces are looked at again after one that is not ours changed. Containers come and go in
/// bursts.
const HOST_READ_AFTER: Duration = Duration::from_millis(100);

/// How often the loop turns when nothing happens: for the watchdog and `/healthz`.
const TICK_EVERY: Duration = Duration::from_secs(5);

/// The pause before more is done of what one turn did not finish, because somebody keeps changing the device.
const BREATH: Duration = Duration::from_millis(10);

/// What the loop remembers from turn to turn.
pub(super) struct LoopState {
    pub(super) have: Have,
    /// What may differ because the facts changed.
    pub(super) news: Dirty,
    /// What may differ because somebody changed the kernel, and since when that is known.
    pub(super) damage: Dirty,
    pub(super) damaged_at: Moment,
    pub(super) retries: RetryQueue,
    pub(super) repair_limiter: RepairLimiter,
    pub(super) reads: RateLimit,
    pub(super) host_reads: RateLimit,
    pub(super) write_files_at: Moment,
    pub(super) unwritable: Backoff,
    pub(super) read_at: Moment,
    pub(super) read_host_at: Option<Moment>,
    /// While the external interface is gone nothing can be right, and nothing is touched.
    pub(super) nic_is_gone: bool,
    pub(super) unreadable: Backoff,
    /// It was said what it means that the device has an offload off without our doing.
    pub(super) offload_was_logged: bool,
    /// Whether much memory was used for a moment.
    pub(super) was_large: bool,
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
            reads: RateLimit::default(),
            host_reads: RateLimit::default(),
            write_files_at: now,
            unwritable: Backoff::new(Duration::from_millis(200), Duration::from_secs(5)),
            read_at: now,
            read_host_at: None,
            nic_is_gone: false,
            unreadable: Backoff::new(Duration::from_millis(100), Duration::from_secs(10)),
            offload_was_logged: false,
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
        let due = [Some(self.read_at), self.read_host_at, work, files];
        let next = due.into_iter().flatten().min().unwrap_or(self.read_at);
        next.saturating_sub(now).min(TICK_EVERY)
    }

    /// Something has happened that only a full read tells.
    pub(super) fn read_soon(&mut self, now: Moment) {
        let allowed = self.reads.allowed_at(STORM_READ_EVERY).min(now + STORM_READ_AT_LATEST);
        self.read_at = self.read_at.min(allowed.max(now));
    }

    /// The host's interfaces are to be looked at, at this moment.
    pub(super) fn read_host_soon(&mut self, at: Moment) {
        let allowed = self.host_reads.allowed_at(STORM_READ_EVERY).min(at + STORM_READ_AT_LATEST);
        let at = at.max(allowed);
        self.read_host_at = Some(self.read_host_at.map_or(at, |known| known.min(at)));
    }

    /// One that is not ours has changed.
    pub(super) fn read_host_some_time(&mut self, now: Moment) {
        self.read_host_soon(now + HOST_READ_AFTER);
    }

    /// The host's interfaces were looked at.
    pub(super) fn host_was_read(&mut self, now: Moment) {
        self.host_reads.spend(now, STORM_READ_EVERY);
        self.read_host_at = None;
    }

    /// This is all that the kernel holds, from a reading that lasted from `started` until `now`.
    pub(super) fn was_read(&mut self, have: Have, started: Moment, now: Moment, runtime: &Runtime) {
        if self.damage.is_clean() {
            self.damaged_at = started;
        }
        self.was_large |= have.routes.len() >= malloc::MANY;
        (self.have, self.damage) = (have, Dirty::All);
        let took = now.saturating_sub(started);
        let pause = (took * STORM_READ_SHARE).clamp(STORM_READ_EVERY, STORM_READ_AT_LATEST);
        self.reads.spend(now, pause);
        let rest = (took * FULL_READ_SHARE).clamp(FULL_READ_EVERY, FULL_READ_AT_LATEST);
        self.read_at = now + runtime.jittered(rest);
        self.unreadable.reset();
    }
}
