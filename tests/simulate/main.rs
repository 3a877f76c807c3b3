//! Clusters that live through anything; `make simulate` lets many more of them live.

#[allow(dead_code, reason = "`make simulate` uses more of it")]
mod sim;

use sim::broken::{BLIND_PUT, DIFF_BY_SUBNET, PRUNE_ON_ERROR, SOUND};
use sim::lab::{Launch, seed};
use sim::{Fired, live};

/// How many seeds each test tries; `make simulate` is for more.
const SEEDS: u64 = 32;

fn seeds() -> std::ops::Range<u64> {
    seed()..seed() + SEEDS
}

/// The first of the seeds whose life shows that something is wrong, and what.
fn caught(launch: Launch) -> (u64, String) {
    let caught = seeds().find_map(|seed| Some((seed, live(seed, launch).violations.into_iter().next()?)));
    caught.expect("no seed shows it")
}

#[test]
fn after_any_mishaps_every_host_holds_what_the_leases_say() {
    let mut fired = Fired::new();
    for seed in seeds() {
        let outcome = live(seed, SOUND);
        assert!(outcome.violations.is_empty(), "{}{}", outcome.story, outcome.violations.join("\n"));
        outcome.fired.into_iter().for_each(|(name, times)| *fired.entry(name).or_default() += times);
    }
    assert!(fired.values().filter(|times| **times > 0).count() > 40, "{fired:?}");
}

#[test]
fn a_seed_lives_the_same_life_again() {
    for seed in seeds().take(4) {
        let [first, second] = [(); 2].map(|()| live(seed, SOUND));
        assert_eq!((first.story, first.digest, first.lasted), (second.story, second.digest, second.lasted));
        assert_eq!((first.fired, first.violations), (second.fired, second.violations));
    }
}

#[test]
fn a_daemon_that_writes_blindly_is_caught() {
    let (seed, violation) = caught(BLIND_PUT);
    assert!(violation.contains("was overwritten by"), "seed {seed}: {violation}");
}

#[test]
fn a_daemon_that_compares_lists_by_subnet_is_caught() {
    let (seed, violation) = caught(DIFF_BY_SUBNET);
    assert!(violation.contains("after recovery"), "seed {seed}: {violation}");
}

#[test]
fn a_daemon_that_takes_failed_lists_for_empty_ones_is_caught() {
    let (seed, violation) = caught(PRUNE_ON_ERROR);
    assert!(violation.contains("removed without need"), "seed {seed}: {violation}");
}
