//! How long a watch may be silent before it counts as dead.
//!
//! A connection that is dead is found by HTTP/2's pings. But those are answered by whatever is at its other end, be it
//! a proxy, or a member whose watches stand still. So a watch that has been silent for some time is asked how far it
//! is, and is over when it does not say. What it says then is taken for a sign of life and nothing else: etcd before
//! 3.4.25 and 3.5.8 answers with a revision whose changes it may not have sent yet (#15220).
//!
//! `etcd grpc-proxy` and etcd before 3.4 never answer that question. Whoever watches through them cannot tell a quiet
//! watch from a dead one, and begins it anew less and less often; what it misses meanwhile is found by audits.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::Instant;

/// At most so often the patience doubles: from half a minute to an hour and three quarters.
const DOUBLINGS: u32 = 8;

/// With how much silence all watches of a store put up.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// After so long a watch is asked whether it is still there.
    pub(super) ask_after: Duration,
    /// So long it may take to answer.
    pub(super) answer_within: Duration,
    /// How many watches in a row have died without ever answering.
    mute: Rc<Cell<u32>>,
}

impl Default for Patience {
    fn default() -> Self {
        Patience::new(Duration::from_secs(10), Duration::from_secs(15))
    }
}

impl Patience {
    /// Patience for that much silence, and then for that much more.
    pub(super) fn new(ask_after: Duration, answer_within: Duration) -> Self {
        Patience { ask_after, answer_within, mute: Rc::default() }
    }
}

/// The silence of one watch: since when, or since when it has been asked for a sign of life.
pub(super) struct Liveness {
    patience: Patience,
    since: Instant,
    asked: bool,
}

/// What to do when a silence has lasted for its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask for a sign of life.
    Ask,
    /// The watch is dead.
    GiveUp,
}

impl Liveness {
    /// A watch that has just spoken.
    pub(super) fn new(patience: Patience) -> Self {
        Liveness { patience, since: Instant::now(), asked: false }
    }

    /// When something is to be done unless the watch speaks.
    pub(super) fn end(&self) -> Instant {
        let time = if self.asked { self.patience.answer_within } else { self.patience.ask_after };
        self.since + time * 2u32.pow(self.patience.mute.get().min(DOUBLINGS))
    }

    /// The end has come.
    pub(super) fn timed_out(&mut self) -> Next {
        if self.asked {
            self.patience.mute.set(self.patience.mute.get() + 1);
            return Next::GiveUp;
        }
        (self.since, self.asked) = (Instant::now(), true);
        Next::Ask
    }

    /// The watch has spoken, maybe because it was asked.
    pub(super) fn heard(&mut self) {
        if self.asked {
            self.patience.mute.set(0);
        }
        (self.since, self.asked) = (Instant::now(), false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep_until;

    async fn outlast(liveness: &mut Liveness) -> Next {
        sleep_until(liveness.end()).await;
        liveness.timed_out()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_watch_is_asked_and_then_given_up_in_half_a_minute() {
        let began = Instant::now();
        let mut liveness = Liveness::new(Patience::default());
        assert_eq!(outlast(&mut liveness).await, Next::Ask);
        liveness.heard();
        assert_eq!([outlast(&mut liveness).await, outlast(&mut liveness).await], [Next::Ask, Next::GiveUp]);
        assert_eq!(began.elapsed(), Duration::from_secs(35));
    }

    #[tokio::test(start_paused = true)]
    async fn where_nobody_ever_answers_watches_are_given_up_less_and_less_often() {
        let patience = Patience::default();
        let mut lives = Vec::new();
        for _ in 0..12 {
            let (began, mut liveness) = (Instant::now(), Liveness::new(patience.clone()));
            while outlast(&mut liveness).await == Next::Ask {}
            lives.push(began.elapsed().as_secs());
        }
        assert_eq!(lives, [25, 50, 100, 200, 400, 800, 1600, 3200, 6400, 6400, 6400, 6400]);
        let mut liveness = Liveness::new(patience);
        assert_eq!(outlast(&mut liveness).await, Next::Ask);
        liveness.heard();
        assert_eq!(liveness.end(), Instant::now() + Duration::from_secs(10), "one answer shows that they can");
    }
}
