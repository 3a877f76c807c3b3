//! Measures what a network of n peers costs a host, for any binaries with flanneld's flags side by side. Daemons and etcd
//! are real, the host is a network namespace, and the peers are only leases.
//!
//! In each round every contestant is measured in every size of network, one after the other. The floor is measured too: the
//! same work by kernel and etcd alone. Prints numbers, also beside the targets, without a verdict. Other work on the machine
//! shows in them, least in ratios within a round.

#[allow(dead_code, reason = "only a part is needed here")]
#[path = "../repair/cluster.rs"]
mod cluster;
mod contestant;
#[allow(dead_code, reason = "only a part is needed here")]
#[path = "../repair/damage.rs"]
mod damage;
mod events;
mod floor;
mod join;
#[allow(dead_code, unused_imports, reason = "made for the tests; only a part is needed here")]
#[path = "../../../../tests/it/lab/mod.rs"]
mod lab;
mod measures;
mod plot;
mod report;
mod scene;
mod targets;
mod trace;
mod upsets;
mod usage;
#[path = "../repair/witness.rs"]
mod witness;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use cluster::MOST_PEERS;
use contestant::Contestant;
use measures::*;
use report::Results;
use scene::Scene;

/// Measures flanneld at scale. Needs root.
#[derive(Parser)]
struct Options {
    /// A binary with flanneld's flags; may be given several times, the first is compared with the others.
    #[arg(long, value_name = "[NAME=]PATH", default_value = concat!("ours=", env!("CARGO_BIN_EXE_flanneld")))]
    flanneld: Vec<Contestant>,
    /// Sizes of network.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000,5000,10000,50000", value_parser = peers)]
    peers: Vec<u32>,
    /// The largest network for binaries after the first.
    #[arg(long, default_value_t = 10_000)]
    peer_max: u32,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Parts that are measured.
    #[arg(long, value_delimiter = ',', default_value = "floor,restart,events,resync,repair,removal,idle,trace")]
    also: Vec<Part>,
    /// Sizes of network in which idle daemons are watched, in the first round.
    #[arg(long, value_delimiter = ',', default_value = "10,10000", value_parser = peers)]
    idle_peers: Vec<u32>,
    /// For how many seconds.
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// How many single peers come and go.
    #[arg(long, default_value_t = 200)]
    events: usize,
    /// Events a second under load, and for how many seconds.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    #[arg(long, default_value_t = 5)]
    load: u64,
    /// How many peers come at once.
    #[arg(long, default_value_t = 5000)]
    burst: usize,
    /// The largest network in which system calls and netlink messages are counted.
    #[arg(long, default_value_t = 10_000)]
    trace_max: u32,
    /// Time limit of each part in seconds.
    #[arg(long, default_value_t = 180)]
    patience: u64,
    /// File for the numbers.
    #[arg(long, default_value = "target/bench/scale.json")]
    json: PathBuf,
    /// Directory for the plots.
    #[arg(long, default_value = "target/bench")]
    plots: PathBuf,
}

/// The parts that are measured beside the cold join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Floor,
    Restart,
    Events,
    Resync,
    Repair,
    Removal,
    Idle,
    Trace,
}

/// Newcomers need numbers above those of the network's own peers.
fn peers(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count) if (1..MOST_PEERS).contains(&count) => Ok(count),
        _ => Err(format!("not a number from 1 to {}", MOST_PEERS - 1)),
    }
}

fn main() {
    let options = Options::parse();
    let (start, mut results) = (Instant::now(), Results::new(&options));
    for round in 1..=options.rounds {
        for &peers in &options.peers {
            for (at, contestant) in options.flanneld.iter().enumerate() {
                if at > 0 && peers > options.peer_max {
                    results.leave_out(format!("{} with {peers} peers: more than --peer-max", contestant.name));
                    continue;
                }
                progress(start, round, &contestant.name, peers);
                results.sessions.push(options.session(round, contestant, peers));
                results.write(&options.json);
            }
            if options.wants(Part::Floor) {
                progress(start, round, report::FLOOR_NAME, peers);
                results.sessions.push(floor(round, peers));
                results.write(&options.json);
            }
        }
    }
    results.seconds = start.elapsed().as_secs();
    results.write(&options.json);
    print!("{}", results.tables());
    print!("{}", targets::table_of(&results));
    plot::write(&results, &options.plots);
    println!("\n{} s. Numbers: {}; plots: {}/*.svg", results.seconds, options.json.display(), options.plots.display());
}

fn progress(start: Instant, round: usize, who: &str, peers: u32) {
    eprintln!("{:5} s  round {round}: {who}, {peers} peers", start.elapsed().as_secs());
}

fn floor(round: usize, peers: u32) -> Session {
    let mut session = Session::new(round, report::FLOOR_NAME, peers);
    let floor = floor::measure(&mut Scene::new(peers));
    session.set(FLOOR, millis(floor.write));
    session.set(RANGE, millis(floor.range));
    session
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.also.contains(&part)
    }

    fn session(&self, round: usize, contestant: &Contestant, peers: u32) -> Session {
        let mut session = Session::new(round, &contestant.name, peers);
        session.set(SIZE, contestant.size());
        self.play(round, contestant, &mut Scene::new(peers), &mut session);
        let joined = session.get(JOIN_ROUTES).flatten().is_some();
        if self.wants(Part::Trace) && joined && round == 1 && peers <= self.trace_max {
            trace::measure(contestant, peers, self.patience(), &mut session);
        }
        session
    }

    /// Measures all parts with one daemon.
    fn play(&self, round: usize, contestant: &Contestant, scene: &mut Scene, session: &mut Session) {
        let patience = self.patience();
        if !join::cold(scene, contestant, patience, session) {
            eprintln!("{} did not join {} peers:\n{}", contestant.name, session.peers, end_of(&scene.host.log()));
            return;
        }
        let watched = self.wants(Part::Idle) && round == 1 && self.idle_peers.contains(&session.peers);
        if watched {
            join::idle(&scene.host, Duration::from_secs(self.idle), session);
        }
        if self.wants(Part::Restart) {
            join::warm(scene, contestant, patience, session);
        }
        if self.wants(Part::Events) {
            events::measure(scene, &self.plan(session.peers), session);
        }
        if self.wants(Part::Repair) {
            upsets::repair(&mut scene.host, &scene.network, session);
        }
        if self.wants(Part::Removal) {
            upsets::removal(scene, patience, session);
            upsets::arrival(scene, patience, session);
        }
        if self.wants(Part::Resync) {
            upsets::resync(scene, patience, session);
        }
        if watched {
            join::idle_with_rules(scene, contestant, Duration::from_secs(self.idle), session);
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }

    /// As many newcomers as there are subnets left.
    fn plan(&self, peers: u32) -> events::Plan {
        let left = (MOST_PEERS - peers) as usize;
        events::Plan {
            single: self.events.min(left),
            rate: self.rate,
            load: Duration::from_secs(self.load),
            burst: self.burst.min(left),
        }
    }
}

fn end_of(log: &str) -> &str {
    let lines = log.rmatch_indices('\n').nth(20).map_or(0, |(at, _)| at + 1);
    &log[lines..]
}

/// Writes a file and creates its directory.
fn save(path: &std::path::Path, text: &str) {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    made.unwrap_or_else(|error| eprintln!("{}: {error}", path.display()));
}
