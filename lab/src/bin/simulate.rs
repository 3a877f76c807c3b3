//! Runs simulated clusters, each from its own seed, and reports violations: `make simulate SEEDS=1000 START=1`.

#[path = "../../../tests/simulate/sim/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod sim;

use clap::Parser;
use sim::broken::SOUND;
use sim::{Fired, Outcome, kinds, live, story};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// From this number of seeds on, every kind of fault must have fired.
const ENOUGH: u64 = 200;

/// The number of failing seeds whose story is printed in full.
const TOLD_IN_FULL: usize = 3;

#[derive(Parser)]
struct Args {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    start: u64,
    /// How many seeds
    #[arg(long, default_value_t = 300)]
    seeds: u64,
}

/// The result of all seeds.
#[derive(Default)]
struct Sum {
    schedules: usize,
    lasted: Duration,
    fired: Fired,
    failed: Vec<Outcome>,
}

impl Sum {
    fn add(&mut self, outcome: Outcome) {
        self.schedules += outcome.schedules;
        self.lasted += outcome.lasted;
        outcome.fired.iter().for_each(|(name, times)| *self.fired.entry(name).or_default() += times);
        if !outcome.violations.is_empty() {
            self.failed.push(outcome);
        }
    }

    fn merge(mut self, other: Sum) -> Sum {
        self.schedules += other.schedules;
        self.lasted += other.lasted;
        other.fired.iter().for_each(|(name, times)| *self.fired.entry(name).or_default() += times);
        self.failed.extend(other.failed);
        self
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.seeds == 1 {
        print!("{}", story(args.start));
    }
    let began = Instant::now();
    let next = AtomicU64::new(args.start);
    let work = || {
        let mut sum = Sum::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= args.start + args.seeds {
                return sum;
            }
            let outcome = live(seed, SOUND);
            if !outcome.violations.is_empty() {
                println!("FAILED: seed {seed}: {}", outcome.violations[0]);
            }
            sum.add(outcome);
        }
    };
    let sum = thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().fold(Sum::default(), |sum, worker| sum.merge(worker.join().expect("it catches panics")))
    });
    report(&args, sum, began.elapsed())
}

fn report(args: &Args, mut sum: Sum, took: Duration) -> ExitCode {
    println!("how often each kind of fault fired:");
    let mut never = Vec::new();
    for kind in kinds() {
        let times = sum.fired.get(kind).copied().unwrap_or(0);
        println!("{times:8}  {kind}");
        if times == 0 {
            never.push(kind);
        }
    }
    sum.failed.sort_by_key(|outcome| outcome.seed);
    for outcome in sum.failed.iter().take(TOLD_IN_FULL) {
        println!("\nFAILED: {}", outcome.story);
        outcome.violations.iter().for_each(|violation| println!("  {violation}"));
        println!("  again: make simulate START={} SEEDS=1", outcome.seed);
    }
    let failed: Vec<String> = sum.failed.iter().map(|outcome| outcome.seed.to_string()).collect();
    println!(
        "\n{} seeds from {}, {} schedules, {:.1} days of virtual time in {:.1} s: {:.1} schedules a second",
        args.seeds,
        args.start,
        sum.schedules,
        sum.lasted.as_secs_f64() / 86_400.0,
        took.as_secs_f64(),
        sum.schedules as f64 / took.as_secs_f64(),
    );
    let incomplete = args.seeds >= ENOUGH && !never.is_empty();
    if incomplete {
        println!("FAILED: never fired: {}", never.join("; "));
    }
    if !failed.is_empty() {
        println!("FAILED: {} seeds: {}", failed.len(), failed.join(" "));
    }
    if failed.is_empty() && !incomplete { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
