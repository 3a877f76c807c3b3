//! Peers that come and go: the time from etcd's watch event to the route in the kernel.
//!
//! etcd sends an event to one watcher after the other, and the campaign's watcher is one of them. So the measured time may
//! be off by the time that etcd needs for one watcher.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::{Client, Event, EventType, KvClient, PutOptions, WatchOptions};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use crate::cluster::{Network, Peer, inside, runtime};
use crate::join::count;
use crate::lab::{Etcd, Host, Lease};
use crate::measures::*;
use crate::scene::{Scene, leases, newcomers};
use crate::usage::Usage;
use crate::witness::{Report, Witness};

/// The time limit for the effect of an event.
const PATIENCE: Duration = Duration::from_secs(20);
/// Under load a newcomer leaves after this number of further newcomers.
const STAY: usize = 100;

/// A subnet that came (true) or went.
type Subject = (Ipv4Addr, bool);
/// When they did.
type Times = HashMap<Subject, Instant>;

/// The events that a daemon is measured with.
pub struct Plan {
    /// Single events, one after the other.
    pub single: usize,
    /// Events a second.
    pub rate: u32,
    pub load: Duration,
    /// Newcomers at once.
    pub burst: usize,
}

pub fn measure(scene: &mut Scene, plan: &Plan, session: &mut Session) {
    let Scene { host, etcd, network, .. } = scene;
    let (etcd, network): (&Etcd, &Network) = (etcd, network);
    inside(host, |host| {
        single(etcd, network, plan, session);
        loaded(host, etcd, network, plan, session);
        burst(etcd, network, plan, session);
    });
}

/// One event at a time, at irregular intervals.
fn single(etcd: &Etcd, network: &Network, plan: &Plan, session: &mut Session) {
    let (mut witness, watcher) = (Witness::start(), Watcher::start(etcd, network));
    let peers = newcomers(network.peers.len(), plan.single);
    let (mut put, mut routes) = (Times::new(), Times::new());
    runtime().block_on(async {
        let mut writer = Writer::connect(etcd, network).await;
        for (there, peer) in [true, false].into_iter().flat_map(|there| peers.iter().map(move |peer| (there, peer))) {
            thread::sleep(Duration::from_micros(rand::random_range(2_000..12_000)));
            put.insert((peer.gateway(), there), Instant::now());
            writer.write(peer, there).await;
            let is = |report: &Report| subject(report) == Some((peer.gateway(), there));
            let Some(at) = witness.first(Instant::now() + PATIENCE, is) else { break };
            routes.insert((peer.gateway(), there), at);
        }
    });
    let seen = watcher.until(2 * peers.len());
    session.set(DELIVERY_50, percentile(&differences(&put, &seen), 50));
    session.set(EVENT_50, percentile(&differences(&seen, &routes), 50));
    session.set(EVENT_99, worst(&seen, &routes, 99));
}

/// Newcomers at a steady pace, each of which leaves again.
fn loaded(host: &Host, etcd: &Etcd, network: &Network, plan: &Plan, session: &mut Session) {
    let (mut witness, watcher) = (Witness::start(), Watcher::start(etcd, network));
    let peers = newcomers(network.peers.len(), (plan.load.as_secs_f64() * f64::from(plan.rate) / 2.0) as usize);
    let (before, start) = (Usage::of(host.pid()), Instant::now());
    let mut put = Times::new();
    let calls = etcd.calls_during(|| put = runtime().block_on(steadily(etcd, network, &peers, plan.rate)));
    let seen = watcher.until(2 * peers.len());
    let routes = follow(&mut witness, 2 * peers.len(), &put);
    let used = Usage::of(host.pid()).since(before);
    session.set(LOADED_DELIVERY_50, percentile(&differences(&put, &seen), 50));
    session.set(LOADED_50, percentile(&differences(&seen, &routes), 50));
    session.set(LOADED_99, worst(&seen, &routes, 99));
    session.set(LOADED_CPU, used.cpu.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0);
    // The bench's own are its writes and the lease that they are on.
    let own = 2.0 * peers.len() as f64 + 1.0;
    session.set(EVENT_CALLS, (count(&calls) - own) / (2.0 * peers.len() as f64));
}

/// Writes without waiting for answers, as many hosts would.
async fn steadily(etcd: &Etcd, network: &Network, peers: &[Peer], rate: u32) -> Times {
    let writer = Writer::connect(etcd, network).await;
    let mut put = Times::new();
    let mut pace = tokio::time::interval(Duration::from_secs(1) / rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut writes = tokio::task::JoinSet::new();
    let coming = peers.iter().map(Some).chain(std::iter::repeat_n(None, STAY));
    let going = std::iter::repeat_n(None, STAY).chain(peers.iter().map(Some));
    for (comes, goes) in coming.zip(going) {
        for (peer, there) in [(comes, true), (goes, false)] {
            let Some(peer) = peer.copied() else { continue };
            pace.tick().await;
            put.insert((peer.gateway(), there), Instant::now());
            let mut writer = writer.clone();
            writes.spawn(async move { writer.write(&peer, there).await });
        }
    }
    writes.join_all().await;
    put
}

/// Newcomers as fast as etcd accepts them, which then leave.
fn burst(etcd: &Etcd, network: &Network, plan: &Plan, session: &mut Session) {
    let present = network.peers.len() as u32;
    let newcomers = leases(present..present + plan.burst as u32);
    let (mut witness, watcher) = (Witness::start(), Watcher::start(etcd, network));
    let start = Instant::now();
    etcd.fill(&network.prefix, &newcomers);
    let seen = watcher.until(newcomers.len());
    let all = newcomers.iter().map(|lease| ((lease.gateway().parse().expect("an address"), true), start)).collect();
    let routes = follow(&mut witness, newcomers.len(), &all);
    let rate = |times: &Times| {
        let last = times.values().max().filter(|_| times.len() == newcomers.len());
        last.map(|last| newcomers.len() as f64 / (*last - start).as_secs_f64())
    };
    session.set(SUSTAINED_ETCD, rate(&seen));
    session.set(SUSTAINED, rate(&routes));
    etcd.empty(&network.prefix, &newcomers);
    witness.settle(Duration::from_secs(1));
}

/// When the kernel reported each of the routes that are in `wanted`.
fn follow(witness: &mut Witness, count: usize, wanted: &Times) -> Times {
    let mut routes = Times::new();
    let deadline = Instant::now() + 3 * PATIENCE;
    while routes.len() < count
        && let Some((at, report)) = witness.next(deadline)
    {
        if let Some(subject) = subject(&report).filter(|subject| wanted.contains_key(subject)) {
            routes.entry(subject).or_insert(at);
        }
    }
    routes
}

fn subject(report: &Report) -> Option<Subject> {
    match report {
        Report::Route { there, dest, .. } => Some((*dest, *there)),
        _ => None,
    }
}

/// Milliseconds from what is in `from` to the same in `to`.
fn differences(from: &Times, to: &Times) -> Vec<f64> {
    let both = from.iter().filter_map(|(subject, start)| Some((start, to.get(subject)?)));
    both.map(|(start, end)| if end > start { millis(*end - *start) } else { -millis(*start - *end) }).collect()
}

/// A percentile, if every event had its effect.
fn worst(from: &Times, to: &Times, percent: usize) -> Option<f64> {
    let all = differences(from, to);
    percentile(&all, percent).filter(|_| all.len() == from.len())
}

#[derive(Clone)]
struct Writer {
    kv: KvClient,
    prefix: String,
    lease: i64,
}

impl Writer {
    async fn connect(etcd: &Etcd, network: &Network) -> Writer {
        let client = Client::connect([etcd.endpoint()], None).await.expect("etcd");
        let lease = client.lease_client().grant(86400, None).await.expect("a lease").id();
        Writer { kv: client.kv_client(), prefix: network.prefix.clone(), lease }
    }

    async fn write(&mut self, peer: &Peer, there: bool) {
        let lease =
            Lease { subnet: peer.subnet.to_string(), public_ip: peer.public_ip.to_string(), mac: peer.mac.to_string() };
        let key = lease.key_under(&self.prefix);
        if there {
            let options = PutOptions::new().with_lease(self.lease);
            self.kv.put(key, lease.value(), Some(options)).await.expect("a put");
        } else {
            self.kv.delete(key, None).await.expect("a delete");
        }
    }
}

/// A watch like any client's, on a thread that runs as long as the value lives.
struct Watcher {
    seen: Receiver<(Instant, Subject)>,
    _lives: oneshot::Sender<()>,
}

impl Watcher {
    /// Returns when etcd has confirmed the watch.
    fn start(etcd: &Etcd, network: &Network) -> Watcher {
        let (endpoint, prefix) = (etcd.endpoint(), format!("{}/subnets/", network.prefix));
        let (tell, seen) = channel();
        let (begun, begins) = channel();
        let (lives, over) = oneshot::channel();
        let watch = async move {
            let client = Client::connect([endpoint], None).await.expect("etcd");
            let options = WatchOptions::new().with_prefix();
            let mut stream = client.watch_client().watch(prefix, Some(options)).await.expect("a watch");
            while let Ok(Some(answer)) = stream.message().await {
                let now = Instant::now();
                if answer.created() {
                    let _ = begun.send(());
                }
                for subject in answer.events().iter().filter_map(subject_of_event) {
                    let _ = tell.send((now, subject));
                }
            }
        };
        thread::spawn(move || {
            runtime().block_on(async {
                tokio::select! { () = watch => {}, _ = over => {} }
            });
        });
        begins.recv().expect("a watch");
        Watcher { seen, _lives: lives }
    }

    /// When it saw each of so many events.
    fn until(&self, count: usize) -> Times {
        let mut times = Times::new();
        while times.len() < count
            && let Ok((at, subject)) = self.seen.recv_timeout(PATIENCE)
        {
            times.entry(subject).or_insert(at);
        }
        times
    }
}

fn subject_of_event(event: &Event) -> Option<Subject> {
    let key = event.kv()?.key_str().ok()?;
    let subnet = key.rsplit('/').next()?.split('-').next()?.parse().ok()?;
    Some((subnet, event.event_type() == EventType::Put))
}
