//! Repeats an attempt until it succeeds.

use super::runtime::{Backoff, Runtime};
use super::status::{Condition, StatusHandle};
use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Repeats an attempt at start-up until it succeeds, with pauses that double. While it fails, `condition` is raised with
/// the reason.
pub(super) async fn retry<T>(
    runtime: &Runtime,
    status: &StatusHandle,
    condition: Condition,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match attempt().await {
            Ok(value) => {
                status.clear(condition);
                return value;
            }
            Err(reason) => {
                status.raise(condition, reason);
                tokio::time::sleep(backoff.pause(runtime)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[tokio::test(start_paused = true)]
    async fn an_attempt_is_repeated_with_growing_pauses_and_its_reason_is_reported_until_it_succeeds() {
        let began = tokio::time::Instant::now();
        let runtime = Rc::new(Runtime::new(move || began.elapsed(), 1, |_| {}));
        let (status, attempts) = (StatusHandle::new(runtime.clone()), Cell::new(0));
        let answer = retry(&runtime, &status, Condition::Config, async || {
            attempts.set(attempts.get() + 1);
            match attempts.get() {
                8 => {
                    assert_eq!(status.read().reasons(), ["attempt 7"]);
                    Ok("done")
                }
                nth => Err(format!("attempt {nth}")),
            }
        });
        assert_eq!(answer.await, "done");
        assert_eq!(status.read().reasons(), ["starting"]);
        // 0.2, 0.4, 0.8, 1.6 and three times 2 seconds, give or take a fifth.
        let (least, most) = (Duration::from_millis(7200), Duration::from_millis(10_800));
        assert!((least..=most).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}
