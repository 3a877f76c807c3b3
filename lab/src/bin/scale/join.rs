//! Joins a network, is idle in it, and restarts with everything in place.

use std::time::{Duration, Instant};

use crate::cluster::{Network, inside};
use crate::contestant::Contestant;
use crate::damage::right_route;
use crate::lab::{Calls, Etcd, Host};
use crate::measures::*;
use crate::scene::{Scene, sent_by};
use crate::usage::{Usage, memory};
use crate::witness::Witness;

/// The pause after the last route, so that the daemon comes to rest.
pub const SETTLE: Duration = Duration::from_secs(1);
/// A daemon that uses less CPU than this in that time only keeps connections alive.
const AT_REST: Duration = Duration::from_millis(10);

/// A cold join of a host that has never run a daemon. Returns whether the join completed.
pub fn cold(scene: &mut Scene, contestant: &Contestant, patience: Duration, session: &mut Session) -> bool {
    let Scene { host, etcd, network, run, .. } = scene;
    let (etcd, network): (&Etcd, &Network) = (etcd, network);
    let flags = contestant.flags(host, network, run.path());
    let sent = sent_by(etcd);
    let mut joined = false;
    let calls = etcd.calls_during(|| {
        joined = inside(host, |host| {
            let mut witness = Witness::start();
            let routes = network.peers.iter().map(|peer| right_route(peer, true)).collect();
            let start = Instant::now();
            host.start_with(&contestant.path, &flags);
            let last = witness.all(start + patience, routes);
            let ready = host.ready_within(patience).then(|| host.ready_at()).flatten();
            witness.settle(SETTLE);
            session.set(JOIN_READY, ready.map(|at| millis(at - start)));
            session.set(JOIN_ROUTES, last.map(|at| millis(at - start)));
            session.set(JOIN_CPU, millis(Usage::of(host.pid()).cpu));
            last.is_some() && ready.is_some()
        });
    });
    session.set(RSS, memory(host.pid(), "VmRSS"));
    session.set(PEAK, memory(host.pid(), "VmHWM"));
    session.set(JOIN_BYTES, sent_by(etcd) - sent);
    session.set(JOIN_CALLS, count(&calls));
    session.calls.insert("join", calls);
    joined
}

/// Measures an idle daemon.
pub fn idle(host: &Host, time: Duration, session: &mut Session) {
    let (used, minutes) = used_in(host, time);
    session.set(IDLE_CPU, millis(used.cpu) / minutes);
    session.set(IDLE_VOLUNTARY, used.voluntary as f64 / minutes);
    session.set(IDLE_INVOLUNTARY, used.involuntary as f64 / minutes);
}

/// The same with the forward rules that every flanneld keeps by default, and with the processes that it starts for them.
pub fn idle_with_rules(scene: &mut Scene, contestant: &Contestant, time: Duration, session: &mut Session) {
    let Scene { host, network, run, .. } = scene;
    // Not all end soon when they are asked to.
    host.kill9();
    let mut flags = contestant.flags(host, network, run.path());
    flags.push("--iptables-forward-rules=true".into());
    host.start_with(&contestant.path, &flags);
    host.ready_within(time);
    until_at_rest(host, 2 * time);
    let (used, minutes) = used_in(host, time);
    session.set(RULES_CPU, millis(used.cpu + used.children) / minutes);
    session.set(RULES_VOLUNTARY, used.voluntary as f64 / minutes);
}

/// The resources that are used in this time, and the time in minutes.
fn used_in(host: &Host, time: Duration) -> (Usage, f64) {
    let (before, start) = (Usage::of(host.pid()), Instant::now());
    std::thread::sleep(time);
    (Usage::of(host.pid()).since(before), start.elapsed().as_secs_f64() / 60.0)
}

/// Stops the daemon with SIGTERM and starts it again with everything in place.
pub fn warm(scene: &mut Scene, contestant: &Contestant, patience: Duration, session: &mut Session) {
    let Scene { host, etcd, network, run, .. } = scene;
    let (etcd, network): (&Etcd, &Network) = (etcd, network);
    let flags = contestant.flags(host, network, run.path());
    let calls = etcd.calls_during(|| {
        inside(host, |host| {
            host.stop();
            let mut witness = Witness::start();
            let start = Instant::now();
            host.start_with(&contestant.path, &flags);
            let ready = host.ready_within(patience).then(|| host.ready_at()).flatten();
            until_at_rest(host, patience);
            let (changes, last) = until_quiet(&mut witness);
            session.set(RESTART_READY, ready.map(|at| millis(at - start)));
            session.set(RESTART_LAST, last.map_or(0.0, |at| millis(at - start)));
            session.set(RESTART_CHANGES, changes as f64);
            session.set(RESTART_CPU, millis(Usage::of(host.pid()).cpu));
        });
    });
    let writes = ["Put", "Txn", "DeleteRange"].map(|method| calls.get(method).unwrap_or(&0));
    session.set(RESTART_WRITES, writes.into_iter().sum::<u64>() as f64);
    session.set(RESTART_CALLS, count(&calls));
    session.calls.insert("restart", calls);
}

/// The number of changes that the kernel reports until none comes for a while, and the time of the last one.
pub fn until_quiet(witness: &mut Witness) -> (usize, Option<Instant>) {
    let (mut changes, mut last) = (0, None);
    while let Some((at, _)) = witness.next(Instant::now() + SETTLE) {
        changes += 1;
        last = Some(at);
    }
    (changes, last)
}

/// Waits until the daemon has nothing to do for a while: it may find that there is nothing to change long after READY.
pub fn until_at_rest(host: &Host, patience: Duration) {
    let (start, mut quiet) = (Instant::now(), 0);
    let mut before = Usage::of(host.pid());
    while quiet < 2 && start.elapsed() < patience {
        std::thread::sleep(SETTLE);
        let now = Usage::of(host.pid());
        quiet = if now.since(before).cpu < AT_REST { quiet + 1 } else { 0 };
        before = now;
    }
}

/// The number of all calls; a stream counts once.
pub fn count(calls: &Calls) -> f64 {
    calls.iter().filter(|(name, _)| !name.starts_with("messages")).map(|(_, count)| count).sum::<u64>() as f64
}
