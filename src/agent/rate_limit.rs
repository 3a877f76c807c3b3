//! Limits for what may happen often in a short time but only rarely in the long run: repairs, full reads, log lines.
//!
//! A [`RateLimit`] is a generic cell rate algorithm (GCRA): one moment stands for the whole history. Pauses between
//! attempts that fail are another matter, see [`Backoff`](super::runtime::Backoff).

use crate::model::lease_set::Moment;
use std::time::Duration;

/// The history of one event that is limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// The moment at which all events would have been due if they had been spaced evenly.
    spent: Moment,
}

/// A limit whose pauses grow.
#[derive(Debug, Clone, Copy)]
pub struct Slowdown {
    /// The number of events that need no pause. One of them is forgotten in each `longest_pause`.
    pub at_once: u32,
    /// The pause after that many. It doubles with each further event.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl RateLimit {
    /// Counts an event at `now`. In the long run one event is allowed in each `every`.
    pub fn spend(&mut self, now: Moment, every: Duration) {
        self.spent = self.spent.max(now) + every;
    }

    /// The moment from which the next event is allowed, if `at_once` events may precede it without a pause.
    pub fn allowed_at(&self, every: Duration, at_once: u32) -> Moment {
        self.spent.saturating_sub(every * at_once)
    }

    /// Counts an event at `now` and returns the moment from which the next one is allowed.
    pub fn slow_down(&mut self, now: Moment, slowdown: &Slowdown) -> Moment {
        let Slowdown { at_once, first_pause, longest_pause } = *slowdown;
        self.spend(now, longest_pause);
        let pause = |further: u32| first_pause.saturating_mul(1 << further.min(16)).min(longest_pause);
        now + self.remembered(now, longest_pause).checked_sub(at_once).map_or(Duration::ZERO, pause)
    }

    /// Whether all events are forgotten.
    pub fn is_unspent(&self, now: Moment) -> bool {
        self.spent <= now
    }

    /// The number of events that are remembered if one is forgotten in each `every`.
    fn remembered(&self, now: Moment, every: Duration) -> u32 {
        let events = self.spent.saturating_sub(now).as_millis().div_ceil(every.as_millis());
        u32::try_from(events).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const START: Moment = Duration::from_secs(1000);

    #[test]
    fn a_burst_needs_no_pause_and_a_lasting_rate_is_kept() {
        let mut limit = RateLimit::default();
        for _ in 0..4 {
            assert!(limit.allowed_at(SECOND, 3) <= START);
            limit.spend(START, SECOND);
        }
        assert_eq!(limit.allowed_at(SECOND, 3), START + SECOND);
        assert!(!limit.is_unspent(START + 3 * SECOND) && limit.is_unspent(START + 4 * SECOND));
        assert_eq!(limit.allowed_at(SECOND, 0), START + 4 * SECOND);
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_shrink_when_events_are_forgotten() {
        let slowdown = Slowdown { at_once: 2, first_pause: SECOND, longest_pause: 60 * SECOND };
        let (mut limit, mut now, mut pauses) = (RateLimit::default(), START, Vec::new());
        for _ in 0..9 {
            let allowed = limit.slow_down(now, &slowdown);
            pauses.push((allowed - now).as_secs());
            now = allowed;
        }
        // One event is forgotten after the first minute.
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 32, 60]);
        now += 5 * 60 * SECOND;
        assert_eq!(limit.slow_down(now, &slowdown), now + 2 * SECOND);
        now += 3600 * SECOND;
        assert_eq!(limit.slow_down(now, &slowdown), now);
    }
}
