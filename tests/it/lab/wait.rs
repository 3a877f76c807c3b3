//! Waiting for something to become true, with a message worth reading when it does not.

use std::env;
use std::fmt::Debug;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The variable that multiplies [`patience`], a whole number. An emulated kernel needs it: it is ten times slower.
const FACTOR: &str = "FLANNELD_TEST_PATIENCE";

fn factor() -> u32 {
    env::var(FACTOR).map_or(1, |text| text.parse().unwrap_or_else(|_| panic!("{FACTOR}={text}: not a number")))
}

/// How long a test waits for what takes milliseconds on an idle machine.
pub fn patience() -> Duration {
    Duration::from_secs(20) * factor()
}

/// How long it waits before it looks again. Looks are most of the work of an emulated kernel, so it looks less often.
fn pause() -> Duration {
    Duration::from_millis(20) * factor().min(5)
}

/// Whether `condition` became true in time.
pub fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let (deadline, pause) = (Instant::now() + timeout, pause());
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(pause);
    }
}

/// Panics unless `condition` becomes true within [`patience`].
#[track_caller]
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(wait_until(patience(), condition), "not within {:?}: {what}", patience());
}

/// Panics with both values unless `actual` becomes `expected` within [`patience`].
#[track_caller]
pub fn eventually_eq<T: PartialEq + Debug>(what: &str, expected: &T, mut actual: impl FnMut() -> T) {
    let mut last = None;
    let equal = wait_until(patience(), || last.insert(actual()) == expected);
    assert!(equal, "not within {:?}: {what}\nexpected {expected:#?}\nbut it is {:#?}", patience(), last.unwrap());
}
