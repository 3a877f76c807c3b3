//! The daemon's surroundings besides store, kernel and firewall: time, randomness and the service manager. They are
//! arguments, so that whole clusters can run in one test under a clock that the test sets.

use crate::files::FileIo;
use crate::model::lease_set::Moment;
use nix::time::{ClockId, clock_gettime};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::cell::RefCell;
use std::time::Duration;

/// A notification for the service manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The overlay works: lease, device, files and the known peers are there.
    Ready,
    /// One line for an administrator.
    Status(String),
    /// Start-up is still waiting for something and will go on doing so for at least this long.
    StillStarting(Duration),
    /// The loop turns.
    Alive,
}

/// Time, randomness and the service manager.
pub struct Runtime {
    now: Box<dyn Fn() -> Moment>,
    rng: RefCell<StdRng>,
    notify: Box<dyn Fn(Notice)>,
    log_lines_lost: Box<dyn Fn() -> u64>,
    files: FileIo,
}

impl Runtime {
    /// Surroundings made of these parts; `now` must not go backwards.
    pub fn new(now: impl Fn() -> Moment + 'static, seed: u64, notify: impl Fn(Notice) + 'static) -> Self {
        Runtime {
            now: Box::new(now),
            rng: RefCell::new(StdRng::seed_from_u64(seed)),
            notify: Box::new(notify),
            log_lines_lost: Box::new(|| 0),
            files: FileIo::Here,
        }
    }

    /// The same surroundings whose files are worked on there.
    pub fn with_files(self, files: FileIo) -> Self {
        Runtime { files, ..self }
    }

    /// The same surroundings with a log that may lose lines, whose count `lines` gives.
    pub fn with_log_lines_lost(self, lines: impl Fn() -> u64 + 'static) -> Self {
        Runtime { log_lines_lost: Box::new(lines), ..self }
    }

    /// The host's own: a clock that counts while the host sleeps (`CLOCK_BOOTTIME`), and true randomness.
    pub fn of_host(notify: impl Fn(Notice) + 'static) -> Self {
        Runtime::new(boottime, rand::random(), notify)
    }

    /// Time since some fixed start.
    pub fn now(&self) -> Moment {
        (self.now)()
    }

    /// A uniform number.
    pub fn random(&self) -> u128 {
        self.rng.borrow_mut().random()
    }

    /// Six uniform bytes.
    pub fn random_bytes(&self) -> [u8; 6] {
        self.rng.borrow_mut().random()
    }

    /// `around` give or take a fifth, so that hosts which started together do not go on together.
    pub fn jittered(&self, around: Duration) -> Duration {
        around.mul_f64(self.rng.borrow_mut().random_range(0.8..1.2))
    }

    /// Where work on files is done.
    pub fn files(&self) -> FileIo {
        self.files
    }

    /// How many lines of the log were lost since the start.
    pub fn log_lines_lost(&self) -> u64 {
        (self.log_lines_lost)()
    }

    /// Tells the service manager.
    pub fn notify(&self, notice: Notice) {
        (self.notify)(notice)
    }
}

/// The host's clock: the time since it was booted, suspended or not.
pub fn boottime() -> Moment {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Growing pauses between attempts.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    most: Duration,
}

impl Backoff {
    /// Pauses that start at `first`, or at `most` if that is less, and double up to `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        let first = first.min(most);
        Backoff { next: first, first, most }
    }

    /// How long to pause now.
    pub fn pause(&mut self, runtime: &Runtime) -> Duration {
        let pause = runtime.jittered(self.next);
        self.next = (self.next * 2).min(self.most);
        pause
    }

    /// It went well: start small again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pause_is_longer_than_the_longest() {
        let runtime = Runtime::new(Duration::default, 1, |_| {});
        for most in [Duration::from_millis(333), Duration::from_secs(60)] {
            let mut backoff = Backoff::new(Duration::from_secs(1), most);
            for _ in 0..20 {
                // A fifth is the jitter.
                assert!(backoff.pause(&runtime) <= most.mul_f64(1.2));
            }
        }
    }
}
