//! A cluster's life from a seed: whole daemons on a store and kernels that fail, under a clock that stands still while
//! nothing happens. The same seed gives the same life to the last detail.

pub mod broken;
#[allow(dead_code, reason = "scenarios use more of it")]
#[path = "../../scenarios/lab/mod.rs"]
pub mod lab;
mod laws;
#[allow(clippy::unit_arg, reason = "what was done is told in one line with doing it")]
pub mod mishaps;
mod schedule;

use flanneld::store::Snapshot;
use flanneld_lab::store::Backup;
use lab::{Cluster, Launch, Peer, millis, mins, secs};
use laws::Laws;
use mishaps::{EXPIRED, MISHAPS, Mishap, REFUSALS};
use schedule::{Life, Schedule};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use tokio::time::Instant;

/// How often which fault did something.
pub type Fired = BTreeMap<&'static str, usize>;

/// How many copies of the store are kept to go back to.
const COPIES: usize = 4;

/// How a life went.
pub struct Outcome {
    /// From what it grew.
    pub seed: u64,
    /// What was to happen, for people.
    pub story: String,
    /// How many schedules it had.
    pub schedules: usize,
    /// What was not as it must be.
    pub violations: Vec<String>,
    /// Stands for all that could be observed.
    pub digest: u64,
    /// How long it lasted in its own time.
    pub lasted: Duration,
    /// What went wrong on purpose.
    pub fired: Fired,
}

/// The names of all kinds of faults.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    MISHAPS.iter().map(|mishap| mishap.name).chain([EXPIRED])
}

/// What is to happen in the life that grows from a seed.
pub fn story(seed: u64) -> String {
    Life::draw(seed).to_string()
}

/// Lets a cluster live whose hosts run these daemons.
pub fn live(seed: u64, launch: Launch) -> Outcome {
    let life = Life::draw(seed);
    let (story, schedules) = (life.to_string(), life.schedules.len());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime needs nothing");
    let lived = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let began = Instant::now();
            let mut sim = Sim::new(life, launch);
            sim.live().await;
            (sim.laws.digest(), began.elapsed(), sim.count_fired(), sim.laws.violations)
        })
    }));
    let (digest, lasted, fired, violations) = lived.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("for no reason given");
        (0, Duration::ZERO, Fired::new(), vec![format!("panicked: {text}")])
    });
    Outcome { seed, story, schedules, violations, digest, lasted, fired }
}

/// A cluster, and what happens to it.
pub struct Sim {
    /// Its hosts and its store.
    pub cluster: Cluster,
    /// What it is to go through.
    pub life: Life,
    /// Which of two ranges subnets are chosen from.
    pub range_is_high: bool,
    laws: Laws,
    fired: Fired,
    guests: BTreeMap<String, Peer>,
    backups: Vec<Backup>,
    /// What lists told in the store's present history.
    views: Vec<Snapshot>,
}

/// Something that is due.
enum Due {
    Begin(&'static Mishap, u8, u64, Duration),
    End(&'static Mishap, u8),
}

impl Sim {
    fn new(life: Life, launch: Launch) -> Self {
        let mut cluster = Cluster::with_seed(life.hosts, life.seed);
        cluster.direct = life.seed.is_multiple_of(2);
        for number in cluster.numbers() {
            let host = &mut cluster[number];
            host.launch = launch;
            host.settings.leases.times.ttl = life.ttl;
            host.settings.leases.times.renew_margin = life.ttl / 12;
            host.settings.leases.peer_hold = life.ttl;
        }
        let laws = Laws::new(life.hosts, life.gentle);
        let (fired, guests, backups, views) = Default::default();
        let mut sim = Sim { cluster, life, range_is_high: false, laws, fired, guests, backups, views };
        sim.set_config();
        (0..2).for_each(|number| sim.put_guest(mishaps::guest(number, 0)));
        sim.cluster.hostile.insert("10.5.219.0".into());
        sim
    }

    async fn live(&mut self) {
        let schedules = std::mem::take(&mut self.life.schedules);
        if self.life.gentle {
            self.cluster.start_all();
            self.cluster.until_ready().await;
            self.cluster.settle().await;
            self.laws.forget_logs(&self.cluster);
        } else {
            self.start_all();
        }
        for schedule in &schedules {
            self.suffer(schedule).await;
            self.recover().await;
        }
    }

    /// Goes through the mishaps.
    async fn suffer(&mut self, schedule: &Schedule) {
        let mut due: Vec<(Duration, Due)> = Vec::new();
        for step in &schedule.steps {
            due.push((step.at, Due::Begin(step.mishap, step.host, step.number, step.lasts)));
            if step.mishap.end.is_some() {
                due.push((step.at + step.lasts, Due::End(step.mishap, step.host)));
            }
        }
        due.sort_by_key(|(at, _)| *at);
        let began = Instant::now();
        for (at, due) in due {
            self.pass(at.saturating_sub(began.elapsed()), secs(1)).await;
            match due {
                Due::Begin(mishap, host, number, lasts) => {
                    self.laws.disturbed(host, lasts);
                    let did = (mishap.begin)(self, host, number);
                    *self.fired.entry(mishap.name).or_default() += usize::from(did);
                }
                Due::End(mishap, host) => mishap.end.iter().for_each(|end| end(self, host)),
            }
        }
    }

    /// Mends everything, and waits for longer than any pause of a daemon, than leases of hosts that are gone live, and
    /// than peers are held.
    async fn recover(&mut self) {
        for number in self.cluster.numbers() {
            let host = &mut self.cluster[number];
            host.store.mend();
            host.store.set_latency(millis(2));
            host.kernel.mend();
            host.freeze(false);
            (host.nic.present, host.nic.prefix) = (true, 24);
            host.replug();
        }
        self.put_back();
        self.start_all();
        self.pass(self.life.ttl * 2 + mins(8), secs(5)).await;
        if self.restart_where_asked() {
            self.pass(self.life.ttl + mins(3), secs(5)).await;
        }
        // Something may just be on its way, such as the end of a guest.
        for _ in 0..60 {
            if self.laws.wrong_now(&self.cluster).is_empty() {
                return;
            }
            self.pass(secs(1), secs(1)).await;
        }
        self.laws.check_end(&self.cluster);
    }

    /// Does what the daemons ask of the operator whose subnets others have got meanwhile.
    fn restart_where_asked(&mut self) -> bool {
        let asks = |host: &&lab::Host| host.reasons().contains("restart flanneld");
        let asking: Vec<u8> = self.cluster.running().filter(asks).map(|host| host.number).collect();
        for number in &asking {
            self.stop(*number);
            self.start(*number);
        }
        !asking.is_empty()
    }

    /// Lets time pass, and looks at everything after each step.
    async fn pass(&mut self, time: Duration, step: Duration) {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            self.cluster.pass(left.min(step)).await;
            self.laws.observe(&self.cluster);
            if left <= step {
                return;
            }
        }
    }

    /// Starts every daemon that does not run.
    fn start_all(&mut self) {
        self.cluster.numbers().into_iter().for_each(|number| self.start(number));
    }

    /// Starts a daemon, if it does not run.
    pub fn start(&mut self, number: u8) {
        if !self.cluster[number].runs() {
            self.cluster.start(number);
        }
    }

    /// Stops a daemon in the middle of whatever it does; tells whether it ran.
    pub fn stop(&mut self, number: u8) -> bool {
        let runs = self.cluster[number].runs();
        if runs {
            self.cluster.stop(number);
            self.laws.stopped(number);
        }
        runs
    }

    /// Writes the network config as it should be.
    pub fn set_config(&self) {
        let first = if self.range_is_high { 100 } else { 1 };
        let last = first + self.life.hosts + self.life.spare - 1;
        let backend = format!(r#"{{"Type":"vxlan","DirectRouting":{}}}"#, self.cluster.direct);
        self.cluster.store.set_config(&format!(
            r#"{{"Network":"10.5.0.0/16","SubnetMin":"10.5.{first}.0","SubnetMax":"10.5.{last}.0","Backend":{backend}}}"#
        ));
    }

    /// Writes the key of a guest; it stays until it is removed, or wiped.
    pub fn put_guest(&mut self, guest: Peer) {
        self.cluster.store.put_for(&guest.key(), guest.json(), mins(24 * 60));
        self.guests.insert(guest.key(), guest);
    }

    /// Removes the key of a guest; tells whether there was one.
    pub fn remove_guest(&mut self, guest: &Peer) -> bool {
        self.guests.remove(&guest.key());
        self.cluster.store.delete(&guest.key())
    }

    /// Puts back what the daemons cannot: the config, and guests.
    pub fn put_back(&mut self) {
        self.set_config();
        for guest in self.guests.values() {
            if self.cluster.store.get(&guest.key()) != Some(guest.json().into_bytes()) {
                self.cluster.store.put_for(&guest.key(), guest.json(), mins(24 * 60));
            }
        }
    }

    /// An earlier state of the store, of its present history.
    pub fn view(&mut self, number: u64) -> Snapshot {
        self.keep_copy();
        self.views[number as usize % self.views.len()].clone()
    }

    /// Restores an earlier state of the store, or wipes it.
    pub fn rewrite_history(&mut self, number: Option<u64>) {
        self.keep_copy();
        match number {
            Some(number) => self.cluster.store.restore(self.backups[number as usize % self.backups.len()].clone()),
            None => self.cluster.store.wipe(),
        }
        self.views.clear();
        self.laws.store_went_back();
    }

    fn keep_copy(&mut self) {
        self.backups.truncate(COPIES - 1);
        self.backups.push(self.cluster.store.backup());
        self.views.truncate(COPIES - 1);
        self.views.push(self.cluster.store.snapshot());
    }

    /// Notes that a host's lease has ended while it was cut off.
    pub fn note_expiry(&mut self, at: u8) {
        let is_cut_off = self.laws.cut_off_since(at).is_some_and(|since| since.elapsed() > self.life.ttl);
        if is_cut_off && self.cluster[at].runs() && self.cluster.lease(at).is_none() {
            *self.fired.entry(EXPIRED).or_default() += 1;
        }
    }

    fn count_fired(&self) -> Fired {
        let mut fired = self.fired.clone();
        for host in self.cluster.numbers().iter().map(|number| &self.cluster[*number]) {
            let kernel = host.kernel.refusals();
            let kernel = REFUSALS.iter().filter_map(|(errno, name)| Some((*name, *kernel.get(errno)?)));
            for (name, times) in host.store.fired().into_iter().chain(kernel) {
                *fired.entry(name).or_default() += times;
            }
        }
        fired
    }
}
