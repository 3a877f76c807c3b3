//! What is to happen, and when: all of it drawn from the seed before anything runs.

use super::lab::{mins, secs};
use super::mishaps::{CRASH, MISHAPS, Mishap, OLD_LIST};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::fmt;
use std::time::Duration;

/// One life of a cluster.
pub struct Life {
    /// What it was drawn from.
    pub seed: u64,
    /// How many hosts there are.
    pub hosts: u8,
    /// How many subnets there are beside those that the hosts need.
    pub spare: u8,
    /// How long leases live, and how long peers are held.
    pub ttl: Duration,
    /// Whether only the store fails, and in no way that says that a host has gone: then nothing may be removed.
    pub gentle: bool,
    /// One after the other; after each the cluster recovers and its laws are checked.
    pub schedules: Vec<Schedule>,
}

/// Mishaps in the order of their time.
pub struct Schedule {
    /// What happens.
    pub steps: Vec<Step>,
}

/// One mishap.
pub struct Step {
    /// When it happens, since the schedule began.
    pub at: Duration,
    /// How long it lasts, if it does.
    pub lasts: Duration,
    /// What it is.
    pub mishap: &'static Mishap,
    /// Where.
    pub host: u8,
    /// Chooses among variants of it.
    pub number: u64,
}

impl Life {
    /// The life that grows from this seed.
    pub fn draw(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let hosts = rng.random_range(2..=6);
        let spare = rng.random_range(1..=hosts);
        let ttl = [mins(2), mins(5), mins(10)][rng.random_range(0..3)];
        let gentle = rng.random_range(0..3) == 0;
        let schedules = (0..rng.random_range(1..=2)).map(|_| Schedule::draw(&mut rng, hosts, ttl, gentle)).collect();
        Life { seed, hosts, spare, ttl, gentle, schedules }
    }
}

impl Schedule {
    fn draw(rng: &mut StdRng, hosts: u8, ttl: Duration, gentle: bool) -> Self {
        // A host that is away for longer than its lease lives is gone by right.
        let length = if gentle { ttl * 2 / 5 } else { secs(rng.random_range(10..ttl.as_secs() * 2)) };
        let choice: Vec<&Mishap> = MISHAPS.iter().filter(|mishap| mishap.is_gentle || !gentle).collect();
        let mut steps = Vec::new();
        for _ in 0..rng.random_range(1..=25) {
            let at = length.mul_f64(rng.random());
            let most = if gentle { length - at } else { ttl * 3 / 2 };
            let lasts = most.min(secs(20)).mul_f64(rng.random());
            let lasts = if rng.random() { most.mul_f64(rng.random()) } else { lasts };
            let mishap = choice[rng.random_range(0..choice.len())];
            let lasts = if mishap.end.is_some() { lasts } else { Duration::ZERO };
            steps.push(Step { at, lasts, mishap, host: rng.random_range(1..=hosts), number: rng.random() });
        }
        steps.sort_by_key(|step| step.at);
        if gentle {
            keep_one_disaster(&mut steps);
        }
        Schedule { steps }
    }
}

/// Who has lost its key in one disaster and not got it back, or has not heard of that, is right to believe what it hears
/// in a second one: that the others alone have gone. So is who hears of an earlier state after a disaster or a crash.
fn keep_one_disaster(steps: &mut Vec<Step>) {
    if steps.iter().any(|step| step.mishap.is_disaster || step.mishap.name == CRASH) {
        steps.retain(|step| step.mishap.name != OLD_LIST);
    }
    let first = steps.iter().position(|step| step.mishap.is_disaster);
    let mut place = 0;
    steps.retain(|step| {
        place += 1;
        !step.mishap.is_disaster || Some(place - 1) == first
    });
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Life { seed, hosts, spare, ttl, gentle, schedules } = self;
        let kind = if *gentle { "only the store fails" } else { "anything may happen" };
        writeln!(f, "seed {seed}: {hosts} hosts, {spare} spare subnets, TTL {ttl:?}, {kind}")?;
        for (number, schedule) in schedules.iter().enumerate() {
            writeln!(f, " schedule {}:", number + 1)?;
            for step in &schedule.steps {
                writeln!(f, "  {step}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step { at, lasts, mishap, host, number } = self;
        write!(f, "{:9.3} s host {host}: {}", at.as_secs_f64(), mishap.name)?;
        if !lasts.is_zero() {
            write!(f, ", for {:.3} s", lasts.as_secs_f64())?;
        }
        write!(f, " ({:04x})", number & 0xffff)
    }
}
