//! Damage after damage, and how long each stood.

use std::time::{Duration, Instant};

use crate::cluster::{Network, Peer, inside, runtime};
use crate::damage::{Damage, Vandal};
use crate::lab::{DEVICE, Host};
use crate::table::Times;
use crate::witness::{Report, Witness};

/// A repair that takes longer counts as none.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing may be reported before the next damage is done.
const QUIET: Duration = Duration::from_millis(3);
/// Damage that takes everything is done once for so many damages to single entries.
const SHARE: usize = 10;

/// The repair times of one kind of damage.
pub struct Measured {
    pub damage: Damage,
    pub times: Times,
    /// How often there was no repair in time.
    pub lost: usize,
}

/// What a host with all peers of `network` did against `rounds` damages of each kind.
pub fn measure(host: &mut Host, network: &Network, rounds: usize) -> Vec<Measured> {
    inside(host, |host| {
        let mut witness = Witness::start();
        host.start_with(env!("CARGO_BIN_EXE_flanneld"), &network.own_flags(host));
        let joined = witness.all(Instant::now() + 3 * PATIENCE, network.peers.len(), new_route);
        assert!(joined.is_some(), "the host did not join:\n{}", host.log());
        host.wait_ready();
        witness.settle(Duration::from_millis(300));
        runtime().block_on(async {
            let mut vandal = Vandal::new(network.scope());
            let before = vandal.entries().await;
            let mut all = Vec::new();
            for damage in Damage::ALL {
                all.push(one_kind(damage, network, rounds, &mut vandal, &mut witness).await);
                let after = vandal.entries().await;
                assert_eq!(before, after, "routes, neighbours, FDB entries before and after: {}", damage.name());
            }
            all
        })
    })
}

async fn one_kind(
    damage: Damage,
    network: &Network,
    rounds: usize,
    vandal: &mut Vandal,
    witness: &mut Witness,
) -> Measured {
    let rounds = if damage.hits_all() { rounds.div_ceil(SHARE) } else { rounds };
    let mut measured = Measured { damage, times: Times::default(), lost: 0 };
    for round in 0..rounds {
        // Spread over all peers, and over the beats of whatever else the daemon does.
        let peer = &network.peers[round * 7919 % network.peers.len()];
        std::thread::sleep(Duration::from_micros(rand::random_range(0..5000)));
        witness.settle(QUIET);
        let struck = vandal.strike(damage, peer).await;
        match repair(damage, peer, network, witness, struck) {
            Some(time) => measured.times.add(time),
            None => measured.lost += 1,
        }
    }
    witness.settle(Duration::from_millis(100));
    measured
}

/// From the report of the damage to the report of the repair, of all of it. On a busy machine the first may be read late:
/// then it is the end of the request that did the damage which counts.
fn repair(damage: Damage, peer: &Peer, network: &Network, witness: &mut Witness, struck: Instant) -> Option<Duration> {
    let deadline = Instant::now() + PATIENCE;
    let done = witness.first(deadline, |report| damage.is_done(peer, DEVICE, report))?;
    let repaired = match damage.hits_all() {
        true => witness.all(deadline, network.peers.len(), new_route)?,
        false => witness.first(deadline, |report| damage.is_repaired(peer, report))?,
    };
    Some(repaired - done.min(struck))
}

/// The destination of a route into the overlay that was made.
pub fn new_route(report: &Report) -> Option<std::net::Ipv4Addr> {
    match report {
        Report::Route { there: true, dest, gateway } if *gateway == Some(*dest) => Some(*dest),
        _ => None,
    }
}
