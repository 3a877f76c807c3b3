//! Waiting for something to become true, with a message worth reading when it does not.

use std::fmt::Debug;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a test waits for what takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(20);

/// Whether `condition` became true in time.
pub fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(PAUSE);
    }
}

/// Panics unless `condition` becomes true within [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(wait_until(PATIENCE, condition), "not within {PATIENCE:?}: {what}");
}

/// Panics with both values unless `actual` becomes `expected` within [`PATIENCE`].
#[track_caller]
pub fn eventually_eq<T: PartialEq + Debug>(what: &str, expected: &T, mut actual: impl FnMut() -> T) {
    let mut last = None;
    let equal = wait_until(PATIENCE, || last.insert(actual()) == expected);
    assert!(equal, "not within {PATIENCE:?}: {what}\nexpected {expected:#?}\nbut it is {:#?}", last.unwrap());
}
