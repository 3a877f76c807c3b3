//! The part of the daemon's state that other threads may read: its readiness, and whether its own thread still runs.

use super::runtime::{Notice, Runtime};
use super::status::StatusHandle;
use crate::model::lease_set::Moment;
use std::convert::Infallible;
use std::future::pending;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the daemon may stand still before it no longer counts as alive.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// How often a daemon that starts shows that it is alive.
const BEAT_EVERY: Duration = Duration::from_secs(5);

/// The time that the service manager is asked for with each beat.
const PATIENCE: Duration = Duration::from_secs(30);

/// Readiness, as the health endpoints show it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether everything has been in place once.
    pub started: bool,
    /// Why the host is not ready, and since when each reason holds; empty when it is ready. `None` means since the start.
    pub reasons: Vec<(String, Option<Moment>)>,
}

/// The part of the daemon's state that other threads may read.
#[derive(Debug)]
pub struct Health(Mutex<State>);

#[derive(Debug)]
struct State {
    report: Report,
    started_at: Moment,
    /// When the daemon's thread last ran.
    beat: Moment,
    /// When its main loop last turned; `None` before it turns for the first time.
    tick: Option<Moment>,
}

impl Health {
    pub(super) fn new(now: Moment, report: Report) -> Self {
        Health(Mutex::new(State { report, started_at: now, beat: now, tick: None }))
    }

    pub(super) fn report(&self, report: Report) {
        self.state().report = report;
    }

    pub(super) fn beat(&self, now: Moment) {
        self.state().beat = now;
    }

    pub(super) fn tick(&self, now: Moment) {
        let mut state = self.state();
        (state.beat, state.tick) = (now, Some(now));
    }

    /// Whether the daemon's thread and its main loop run.
    pub fn is_alive(&self, now: Moment) -> bool {
        self.still_for(now).is_none()
    }

    /// How long the daemon stands still already, if that is longer than it may.
    pub fn still_for(&self, now: Moment) -> Option<Duration> {
        let state = self.state();
        let last = state.beat.min(state.tick.unwrap_or(Moment::MAX));
        Some(now.saturating_sub(last)).filter(|still| *still >= STUCK_AFTER)
    }

    /// Why the host is not ready, and how long each reason holds already; empty when it is ready.
    pub fn reasons(&self, now: Moment) -> Vec<(String, Duration)> {
        let state = self.state();
        let age = |since: &Option<Moment>| now.saturating_sub(since.unwrap_or(state.started_at));
        state.report.reasons.iter().map(|(reason, since)| (reason.clone(), age(since))).collect()
    }

    /// Whether the host has been ready once.
    pub fn has_started(&self) -> bool {
        self.state().report.started
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete in itself, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows that the daemon is alive, and asks the service manager for time, until the host is ready for the first time. From
/// then on the main loop shows it.
pub async fn beat(runtime: &Runtime, status: &StatusHandle) -> Infallible {
    while !status.read().started {
        status.beat();
        if status.is_alive() {
            runtime.notify(Notice::StillStarting(PATIENCE));
        }
        tokio::time::sleep(BEAT_EVERY).await;
    }
    pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_thread_or_a_loop_that_stands_still_is_not_alive() {
        let health = Health::new(secs(100), Report::default());
        assert!(health.is_alive(secs(129)) && !health.is_alive(secs(131)));
        health.beat(secs(131));
        assert!(health.is_alive(secs(150)));
        health.tick(secs(150));
        health.beat(secs(180));
        assert!(!health.is_alive(secs(181)), "the thread runs, but its loop does not turn");
        assert_eq!(health.still_for(secs(181)), Some(secs(31)));
    }
}
