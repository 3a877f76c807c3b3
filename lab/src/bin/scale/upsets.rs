//! Disturbances: a watch that has missed too much, a deleted route, the loss of all peers at once.

use std::time::{Duration, Instant};

use crate::cluster::{Network, Peer, inside, runtime};
use crate::damage::{Damage, Vandal, right_route};
use crate::join::{SETTLE, count, until_at_rest, until_quiet};
use crate::lab::{DEVICE, Etcd, Host};
use crate::measures::*;
use crate::scene::{Scene, compact, leases, newcomers};
use crate::usage::Usage;
use crate::witness::Witness;

/// How often a route is deleted.
const DAMAGES: usize = 20;
/// The time limit for the return of a route.
const REPAIR_PATIENCE: Duration = Duration::from_secs(10);

/// After [`removal`]: all peers come while the daemon runs, as fast as etcd takes them.
pub fn arrival(scene: &mut Scene, patience: Duration, session: &mut Session) {
    let Scene { host, etcd, network, .. } = scene;
    let (etcd, network): (&Etcd, &Network) = (etcd, network);
    let all = leases(0..network.peers.len() as u32);
    inside(host, |_| {
        let mut witness = Witness::start();
        let start = Instant::now();
        etcd.fill(&network.prefix, &all);
        let routes = network.peers.iter().map(|peer| right_route(peer, true)).collect();
        session.set(ARRIVAL, witness.all(start + patience, routes).map(|at| millis(at - start)));
        witness.settle(SETTLE);
    });
}

/// While the daemon is stopped, its connections are cut, a peer registers, and etcd compacts its history. So the daemon has
/// to list all leases again. Measures the time from SIGCONT to the route to that peer.
pub fn resync(scene: &mut Scene, patience: Duration, session: &mut Session) {
    let Scene { host, etcd, network, .. } = scene;
    let (etcd, network): (&Etcd, &Network) = (etcd, network);
    let present = network.peers.len() as u32;
    let (missed, lease) = (newcomers(network.peers.len(), 1)[0], leases(present..present + 1));
    host.freeze();
    // Before anything happens, since what has reached a socket can still be read when it is cut off.
    host.sh("ss -K dport = 2379 > /dev/null");
    // A watch can begin with the newest revision that is left, so the peer must have come before that.
    etcd.fill(&network.prefix, &lease);
    etcd.fill(&network.prefix, &lease);
    compact(etcd);
    let calls = etcd.calls_during(|| {
        inside(host, |host| {
            let mut witness = Witness::start();
            let (before, start) = (Usage::of(host.pid()), Instant::now());
            host.thaw();
            let mut changes = 0;
            let known = witness.first(start + patience, |report| {
                changes += 1;
                *report == right_route(&missed, true)
            });
            session.set(RESYNC, known.map(|at| millis(at - start)));
            until_at_rest(host, patience);
            changes += until_quiet(&mut witness).0;
            session.set(RESYNC_CPU, millis(Usage::of(host.pid()).since(before).cpu));
            session.set(RESYNC_CHANGES, changes as f64);
        });
    });
    session.set(RESYNC_CALLS, count(&calls));
    session.calls.insert("resync", calls);
}

/// Deletes routes, one after the other. One that never comes back is put back in the end.
pub fn repair(host: &mut Host, network: &Network, session: &mut Session) {
    let mut times = Vec::new();
    let mut left_broken = None;
    inside(host, |_| {
        let mut witness = Witness::start();
        runtime().block_on(async {
            let mut vandal = Vandal::new(network.scope());
            for round in 0..DAMAGES {
                let peer = &network.peers[round * 7919 % network.peers.len()];
                std::thread::sleep(Duration::from_millis(5));
                vandal.strike(Damage::RouteDeleted, peer).await;
                match repaired(&mut witness, peer) {
                    Some(time) => times.push(millis(time)),
                    None => return left_broken = Some(*peer),
                }
            }
        });
    });
    if let Some(peer) = left_broken {
        host.ip(&format!("route replace {} via {} dev {DEVICE} onlink", peer.subnet, peer.gateway()));
    }
    session.set(REPAIR, percentile(&times, 50).filter(|_| left_broken.is_none()));
}

fn repaired(witness: &mut Witness, peer: &Peer) -> Option<Duration> {
    let gone = witness.first(Instant::now() + REPAIR_PATIENCE, |report| *report == right_route(peer, false))?;
    let back = witness.first(Instant::now() + REPAIR_PATIENCE, |report| *report == right_route(peer, true))?;
    Some(back - gone)
}

/// Deletes the leases of all peers, as fast as etcd does that.
pub fn removal(scene: &mut Scene, patience: Duration, session: &mut Session) {
    let Scene { host, etcd, network, .. } = scene;
    let (etcd, network): (&Etcd, &Network) = (etcd, network);
    let all = leases(0..network.peers.len() as u32);
    inside(host, |host| {
        let mut witness = Witness::start();
        let (before, start) = (Usage::of(host.pid()), Instant::now());
        etcd.empty(&network.prefix, &all);
        let deleted = start.elapsed();
        let routes = network.peers.iter().map(|peer| right_route(peer, false)).collect();
        let last = witness.all(start + patience, routes);
        until_quiet(&mut witness);
        session.set(REMOVAL, last.map(|at| millis(at - start)));
        session.set(REMOVAL_ETCD, millis(deleted));
        session.set(REMOVAL_CPU, millis(Usage::of(host.pid()).since(before).cpu));
    });
}
