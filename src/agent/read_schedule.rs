//! When the kernel's state and the host's interfaces are read next: periodically, and soon after an event whose outcome
//! only a reading shows. In a storm of such events the readings are paced.

use super::repair_limiter::RateLimit;
use super::runtime::{Backoff, Runtime};
use crate::model::lease_set::Moment;
use std::time::Duration;

/// The shortest and the longest time for which the kernel's state is trusted before it is read again in full. A reading
/// may have taken long only because the host was paused meanwhile.
const FULL_READ_EVERY: Duration = Duration::from_secs(60);
const FULL_READ_AT_LATEST: Duration = Duration::from_secs(600);

/// Periodic readings take one part in this many of the time. At 10,000 peers a reading takes some 40 ms, so it is done
/// every three minutes.
const FULL_READ_SHARE: u32 = 4000;

/// In a lasting storm of events, readings take a tenth of the time, and are this far apart. No repair waits longer than
/// the second value for a reading.
const STORM_READ_EVERY: Duration = Duration::from_millis(50);
const STORM_READ_AT_LATEST: Duration = Duration::from_millis(500);
const STORM_READ_SHARE: u32 = 10;

/// How soon the host's interfaces are read after a change of one that is not ours. Containers come and go in bursts.
const HOST_READ_AFTER: Duration = Duration::from_millis(100);

/// When the kernel's state and the host's interfaces are read next.
pub(super) struct ReadSchedule {
    reads: RateLimit,
    host_reads: RateLimit,
    read_at: Moment,
    read_host_at: Option<Moment>,
    failing: Backoff,
}

impl ReadSchedule {
    /// Both are read at once.
    pub(super) fn new(now: Moment) -> Self {
        ReadSchedule {
            reads: RateLimit::default(),
            host_reads: RateLimit::default(),
            read_at: now,
            read_host_at: None,
            failing: Backoff::new(Duration::from_millis(100), Duration::from_secs(10)),
        }
    }

    /// Whether the kernel's state is due to be read. The host's interfaces are read with it.
    pub(super) fn is_due(&self, now: Moment) -> bool {
        now >= self.read_at
    }

    /// Whether the host's interfaces are due to be read.
    pub(super) fn host_is_due(&self, now: Moment) -> bool {
        self.read_host_at.is_some_and(|at| now >= at)
    }

    /// When the next reading is due.
    pub(super) fn next(&self) -> Moment {
        self.read_host_at.map_or(self.read_at, |at| at.min(self.read_at))
    }

    /// Something happened whose outcome only a full reading shows.
    pub(super) fn read_soon(&mut self, now: Moment) {
        let allowed = self.reads.allowed_at(STORM_READ_EVERY).min(now + STORM_READ_AT_LATEST);
        self.read_at = self.read_at.min(allowed.max(now));
    }

    /// The host's interfaces are to be read at this moment.
    pub(super) fn read_host_soon(&mut self, at: Moment) {
        let allowed = self.host_reads.allowed_at(STORM_READ_EVERY).min(at + STORM_READ_AT_LATEST);
        let at = at.max(allowed);
        self.read_host_at = Some(self.read_host_at.map_or(at, |known| known.min(at)));
    }

    /// An interface that is not ours has changed.
    pub(super) fn read_host_some_time(&mut self, now: Moment) {
        self.read_host_soon(now + HOST_READ_AFTER);
    }

    /// The host's interfaces have been read.
    pub(super) fn host_was_read(&mut self, now: Moment) {
        self.host_reads.spend(now, STORM_READ_EVERY);
        self.read_host_at = None;
    }

    /// The kernel's state has been read in full, from `started` until `now`.
    pub(super) fn was_read(&mut self, started: Moment, now: Moment, runtime: &Runtime) {
        let took = now.saturating_sub(started);
        let pause = (took * STORM_READ_SHARE).clamp(STORM_READ_EVERY, STORM_READ_AT_LATEST);
        self.reads.spend(now, pause);
        let rest = (took * FULL_READ_SHARE).clamp(FULL_READ_EVERY, FULL_READ_AT_LATEST);
        self.read_at = now + runtime.jittered(rest);
        self.failing.reset();
    }

    /// The kernel's state could not be read.
    pub(super) fn failed(&mut self, now: Moment, runtime: &Runtime) {
        self.read_at = now + self.failing.pause(runtime);
        self.read_host_at = None;
    }

    /// The host's interfaces could not be read.
    pub(super) fn host_failed(&mut self, now: Moment, runtime: &Runtime) {
        self.read_host_at = Some(now + self.failing.pause(runtime));
    }
}
