//! Does damage after damage and measures how long each one lasts.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::cluster::{Network, Peer, inside, runtime};
use crate::damage::{Damage, Vandal};
use crate::lab::{DEVICE, Host};
use crate::table::Times;
use crate::witness::{Report, Witness};

/// The time limit for a repair.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing may be reported before the next damage is done.
const QUIET: Duration = Duration::from_millis(3);
/// Damage that takes everything is done once for so many damages to single entries.
const SHARE: usize = 10;
/// After so many repairs of one object flanneld takes it to be fought over and waits between them. That is not what is
/// timed here: each kind of damage is done to a daemon that has repaired nothing before, and no more often than this.
const MOST_TO_ONE: usize = 20;

/// The repair times of one kind of damage.
pub struct Measured {
    pub damage: Damage,
    pub times: Times,
    /// How often there was no repair in time.
    pub lost: usize,
}

/// Measures a host with all peers of `network` against `rounds` damages of each kind whose name contains `only`.
pub fn measure(host: &mut Host, network: &Network, only: &str, rounds: usize) -> Vec<Measured> {
    inside(host, |host| {
        let runtime = runtime();
        let kinds = Damage::ALL.into_iter().filter(|damage| damage.name().contains(only));
        kinds.map(|damage| runtime.block_on(one_kind(damage, host, network, rounds))).collect()
    })
}

async fn one_kind(damage: Damage, host: &mut Host, network: &Network, rounds: usize) -> Measured {
    host.start_with(env!("CARGO_BIN_EXE_flanneld"), &network.own_flags(host));
    assert!(host.ready_within(3 * PATIENCE), "the host did not join:\n{}", host.log());
    let rounds = match damage.hits_all() {
        true => rounds.div_ceil(SHARE).min(MOST_TO_ONE),
        false => rounds.min(MOST_TO_ONE * network.peers.len()),
    };
    let (mut witness, mut vandal) = (Witness::start(), Vandal::new(network.scope()));
    witness.settle(Duration::from_millis(300));
    let mut measured = Measured { damage, times: Times::default(), lost: 0 };
    for round in 0..rounds {
        let peer = &network.peers[round * 7919 % network.peers.len()];
        let wanted = damage.repairs(peer, &network.peers);
        // Not in step with whatever else the daemon does.
        std::thread::sleep(Duration::from_micros(rand::random_range(0..5000)));
        witness.settle(QUIET);
        let struck = vandal.strike(damage, peer).await;
        match struck.and_then(|struck| repair(damage, peer, wanted, &mut witness, struck)) {
            Some(time) => measured.times.add(time),
            None => measured.lost += 1,
        }
    }
    witness.settle(Duration::from_millis(300));
    let entries = vandal.entries().await;
    if entries.iter().any(|count| *count != network.peers.len()) {
        println!("after {}: {entries:?} routes, neighbours and FDB entries!", damage.name());
    }
    host.stop();
    measured
}

/// From the report of the damage to the report of the repair, of all of it. On a busy machine the first may be read late:
/// then it is the end of the request that did the damage which counts.
fn repair(
    damage: Damage,
    peer: &Peer,
    wanted: HashSet<Report>,
    witness: &mut Witness,
    struck: Instant,
) -> Option<Duration> {
    let deadline = Instant::now() + PATIENCE;
    let done = witness.first(deadline, |report| damage.is_done(peer, DEVICE, report))?;
    Some(witness.all(deadline, wanted)? - done.min(struck))
}
