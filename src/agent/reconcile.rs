//! The loop: facts come in, what differs is found and applied, what failed is tried again.
//!
//! What the kernel holds is read in full at the start, and from then on kept in step by what the kernel reports, so
//! one entry's repair costs one entry's work. It is read in full again when something happened that takes entries
//! along without a word (the device, its addresses), when reports were lost, and from time to time to be sure.

use super::env::{Backoff, Env, Notice};
use super::fights::{Fights, Pace};
use super::keeper::{Address, Horizon, Sighting};
use super::peers::News;
use super::report;
use super::retries::{Retries, Tried};
use super::status::{Board, Topic};
use super::world::{Dirty, Own, World};
use crate::files::EnvFiles;
use crate::firewall::obstacles::OnHost;
use crate::kernel::{Event, Kernel, KernelError};
use crate::model::kernel_state::{Found, Have};
use crate::model::lease_set::{Change, Moment};
use crate::model::mirror::Noticed;
use crate::model::plan::{Key, Plan, Step};
use crate::model::subnet::SubnetKey;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long the kernel's state is trusted before it is read again in full, at least and at most. A reading may have
/// taken long because the host was paused in the midst of it.
const FULL_READ_EVERY: Duration = Duration::from_secs(60);
const FULL_READ_AT_LATEST: Duration = Duration::from_secs(600);

/// A full read may take this share of the time.
const FULL_READ_SHARE: u32 = 1000;

/// In a lasting storm of changes a full read may take a tenth of the time, and follows at most so often. No repair waits
/// for longer than this because of it.
const STORM_READ_EVERY: Duration = Duration::from_millis(50);
const STORM_READ_AT_LATEST: Duration = Duration::from_millis(500);
const STORM_READ_SHARE: u32 = 10;

/// How soon the host's interfaces are looked at again after one that is not ours changed. Containers come and go in
/// bursts.
const HOST_READ_AFTER: Duration = Duration::from_millis(100);

/// How often the loop turns when nothing happens: for the watchdog and `/healthz`.
const TURN_EVERY: Duration = Duration::from_secs(5);

/// The pause before more is done of what one turn did not finish, because somebody keeps changing the device.
const BREATH: Duration = Duration::from_millis(10);

/// How long the service manager is kept waiting for the first list of peers.
const PATIENCE_FOR_PEERS: Duration = Duration::from_secs(30);

/// Turns facts into kernel state.
pub struct Reconciler<K> {
    /// Where it is applied.
    pub kernel: K,
    /// The facts, and what follows from them.
    pub world: World,
    /// The files that others read.
    pub files: EnvFiles,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// Time, and the service manager.
    pub env: Rc<Env>,
    /// Where to say how it goes.
    pub board: Board,
    /// Tells the keeper what is seen of our own key.
    pub sightings: watch::Sender<Option<Sighting>>,
    /// Tells the keeper under what addresses we are known.
    pub addresses: watch::Sender<Address>,
    /// Tells the keeper what is to be remembered of the store.
    pub horizons: watch::Sender<Horizon>,
    /// Tells the guard of the firewall what networks are on the host's interfaces.
    pub on_host: watch::Sender<Vec<OnHost>>,
    /// Hears from it whether the rules stand, without which the host is not ready.
    pub rules_stand: watch::Receiver<bool>,
}

/// What the loop remembers from turn to turn.
struct Progress {
    have: Have,
    /// What may differ because the facts changed.
    news: Dirty,
    /// What may differ because somebody changed the kernel, and since when that is known.
    damage: Dirty,
    damaged_at: Moment,
    retries: Retries,
    fights: Fights,
    reads: Pace,
    host_reads: Pace,
    write_files_at: Moment,
    unwritable: Backoff,
    read_at: Moment,
    read_host_at: Option<Moment>,
    /// While the external interface is gone nothing can be right, and nothing is touched.
    nic_is_gone: bool,
    unreadable: Backoff,
    give_up_on_peers_at: Moment,
}

impl Progress {
    /// Something has happened that only a full read tells.
    fn read_soon(&mut self, now: Moment) {
        let allowed = self.reads.allowed_at(STORM_READ_EVERY).min(now + STORM_READ_AT_LATEST);
        self.read_at = self.read_at.min(allowed.max(now));
    }

    /// The host's interfaces are to be looked at, at this moment.
    fn read_host_soon(&mut self, at: Moment) {
        let allowed = self.host_reads.allowed_at(STORM_READ_EVERY).min(at + STORM_READ_AT_LATEST);
        let at = at.max(allowed);
        self.read_host_at = Some(self.read_host_at.map_or(at, |known| known.min(at)));
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Runs for ever.
    pub async fn run(mut self, mut news: mpsc::Receiver<News>) -> Infallible {
        let now = self.env.now();
        let mut progress = Progress {
            have: Have::default(),
            news: Dirty::All,
            damage: Dirty::default(),
            damaged_at: now,
            retries: Retries::default(),
            fights: Fights::default(),
            reads: Pace::default(),
            host_reads: Pace::default(),
            write_files_at: now,
            unwritable: Backoff::new(Duration::from_millis(200), Duration::from_secs(5)),
            read_at: now,
            read_host_at: None,
            nic_is_gone: false,
            unreadable: Backoff::new(Duration::from_millis(100), Duration::from_secs(10)),
            give_up_on_peers_at: now + PATIENCE_FOR_PEERS,
        };
        loop {
            self.turn(&mut progress).await;
            let pause = self.pause(&progress);
            tokio::select! {
                Some(first) = news.recv() => {
                    self.take(first, &mut progress.news);
                    while let Ok(more) = news.try_recv() {
                        self.take(more, &mut progress.news);
                    }
                }
                () = self.kernel.changed() => {}
                Ok(()) = self.rules_stand.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn pause(&self, progress: &Progress) -> Duration {
        let now = self.env.now();
        let work = match progress.news.is_clean() && progress.damage.is_clean() {
            _ if progress.nic_is_gone => None,
            true => [progress.retries.next(), progress.fights.next()].into_iter().flatten().min(),
            false => Some(now + BREATH),
        };
        let files = Some(progress.write_files_at).filter(|at| *at > now);
        let due = [Some(progress.read_at), progress.read_host_at, work, files];
        let next = due.into_iter().flatten().min().unwrap_or(progress.read_at);
        next.saturating_sub(now).min(TURN_EVERY)
    }

    async fn turn(&mut self, progress: &mut Progress) {
        let now = self.env.now();
        self.notice(progress, now);
        let over = self.world.expire(now);
        progress.news.merge(over);
        let mut readable = true;
        if now >= progress.read_at {
            readable = self.read(progress).await;
        } else if progress.read_host_at.is_some_and(|at| now >= at)
            && let Err(error) = self.read_host(progress).await
        {
            // What is known of the rest still holds.
            self.board.trouble(Topic::Host, format!("the host's interfaces cannot be read: {error}"));
            progress.read_host_at = Some(now + progress.unreadable.pause(&self.env));
        }
        if readable && !progress.nic_is_gone {
            self.reconcile(progress).await;
            self.report_failures(progress);
        }
        self.write_files(progress, now);
        self.tell_horizon();
        match self.world.double() {
            Some(text) => self.board.trouble(Topic::PublicIp, text),
            None => self.board.over(Topic::PublicIp),
        }
        let (tally, held) = (self.world.tally(), self.world.leases().held().count());
        self.board.update(|status| {
            (status.leases, status.held) = (tally, held);
            status.last_turn = Some(now);
        });
        self.env.notify(Notice::Alive);
        self.tell_readiness(progress);
    }

    /// Takes in what the store says.
    fn take(&mut self, news: News, dirty: &mut Dirty) {
        let own = SubnetKey::v4(self.world.own().subnet).to_string();
        let now = self.env.now();
        match news {
            News::OtherHistory => self.world.doubt_next_list(),
            News::All(snapshot) => {
                let record = snapshot.records.iter().find(|record| record.name == own).cloned();
                self.sightings.send_replace(Some(Sighting { revision: snapshot.revision, record }));
                tracing::info!(leases = snapshot.records.len(), revision = snapshot.revision, "leases listed");
                dirty.merge(self.world.set_leases(snapshot.revision, snapshot.records, now));
            }
            News::Some(changes) => {
                for change in &changes.changes {
                    match change {
                        Change::Put(record) if record.name == own => {
                            let sighting = Sighting { revision: changes.revision, record: Some(record.clone()) };
                            self.sightings.send_replace(Some(sighting));
                        }
                        Change::Delete { name, revision } if *name == own => {
                            self.sightings.send_replace(Some(Sighting { revision: *revision, record: None }));
                        }
                        _ => {}
                    }
                }
                dirty.merge(self.world.change_leases(changes.revision, changes.changes, now));
            }
        }
    }

    /// Tells the keeper how much of the store's history is known. An older revision than before is told as well: the
    /// store was set back, and this is its history now.
    fn tell_horizon(&self) {
        let leases = self.world.leases();
        if leases.is_known() {
            let horizon = Horizon { revision: leases.revision(), hold_until: leases.last_expiry() };
            self.horizons.send_if_modified(|known| std::mem::replace(known, horizon) != horizon);
        }
    }

    /// Takes in what the kernel reports. All of it, always: only the end of the reports is the kernel's state.
    fn notice(&mut self, progress: &mut Progress, now: Moment) {
        let nic = &self.world.own().nic;
        for event in self.kernel.take_changes(&self.world.scope()) {
            if progress.damage.is_clean() {
                progress.damaged_at = now;
            }
            match event {
                Event::Entry(observed) => match progress.have.notice(&observed) {
                    Noticed::Nothing => {}
                    Noticed::Key(key) => progress.damage.merge(Dirty::Keys([key].into())),
                    Noticed::Doubt => progress.read_soon(now),
                },
                Event::Device => progress.read_soon(now),
                Event::Host { index, name } if index == nic.index || name.as_ref() == Some(&nic.name) => {
                    progress.read_host_soon(now);
                }
                Event::Host { .. } => progress.read_host_soon(now + HOST_READ_AFTER),
                Event::Overrun => {
                    tracing::info!("the kernel's reports came faster than they were read: reading everything");
                    self.board.update(|status| status.overruns += 1);
                    progress.read_soon(now);
                }
            }
        }
    }

    /// Reads in full what the kernel holds; tells whether it could.
    async fn read(&mut self, progress: &mut Progress) -> bool {
        // What was reported before the reading is in it.
        drop(self.kernel.take_changes(&self.world.scope()));
        self.files.doubt();
        let started = self.env.now();
        let have = match self.read_host(progress).await {
            Ok(()) => self.kernel.observe(&self.world.scope()).await,
            Err(error) => Err(error),
        };
        let now = self.env.now();
        match have {
            Ok(have) => {
                if progress.damage.is_clean() {
                    progress.damaged_at = started;
                }
                (progress.have, progress.damage) = (have, Dirty::All);
                let took = now.saturating_sub(started);
                let pause = (took * STORM_READ_SHARE).clamp(STORM_READ_EVERY, STORM_READ_AT_LATEST);
                progress.reads.spend(now, pause);
                let rest = (took * FULL_READ_SHARE).clamp(FULL_READ_EVERY, FULL_READ_AT_LATEST);
                let rest = self.env.jittered(rest);
                progress.read_at = now + rest;
                progress.unreadable.reset();
                self.board.update(|status| status.full_reads += 1);
                true
            }
            Err(error) => {
                self.board.trouble(Topic::Kernel, format!("the kernel's state cannot be read: {error}"));
                progress.read_at = now + progress.unreadable.pause(&self.env);
                progress.read_host_at = None;
                false
            }
        }
    }

    /// Looks at the host's interfaces.
    async fn read_host(&mut self, progress: &mut Progress) -> Result<(), KernelError> {
        let host = self.kernel.host().await?;
        self.board.over(Topic::Host);
        progress.host_reads.spend(self.env.now(), STORM_READ_EVERY);
        progress.read_host_at = None;
        let own = self.world.own().clone();
        let Some(nic) = own.nic.follow(&host, self.public_ip) else {
            let name = &own.nic.name;
            self.board
                .trouble(Topic::Interface, format!("the external interface {name} is gone or has no IPv4 address"));
            progress.nic_is_gone = true;
            return Ok(());
        };
        self.board.over(Topic::Interface);
        progress.nic_is_gone = false;
        if nic != own.nic {
            tracing::info!("external interface {nic}, it was {}", own.nic);
        }
        let address = Address { public_ip: nic.public_ip, nic_mac: nic.mac };
        self.addresses.send_if_modified(|known| std::mem::replace(known, address) != address);
        let on_host: Vec<OnHost> =
            host.connected(&self.world.scope().device).map(|(name, net)| (name.to_owned(), net.into())).collect();
        self.on_host.send_if_modified(|known| std::mem::replace(known, on_host.clone()) != on_host);
        let changed = self.world.set_host(Own { nic, ..own }, host);
        progress.news.merge(changed);
        Ok(())
    }

    /// Does what is to be done: the device first, and then, from what the kernel made of it, the rest.
    async fn reconcile(&mut self, progress: &mut Progress) {
        const ROUNDS: usize = 4;
        for _ in 0..ROUNDS {
            let Some(plan) = self.plan(progress) else { return };
            let on_device = plan.touches_device();
            let steps: Vec<&Step> = match on_device {
                true => plan.steps.iter().filter(|step| step.op.is_on_device()).collect(),
                false => plan.steps.iter().collect(),
            };
            self.execute(&steps, progress).await;
            if on_device && !self.read(progress).await {
                return;
            }
            if !on_device {
                (progress.news, progress.damage) = (Dirty::default(), Dirty::default());
            }
        }
    }

    /// What is to be done now; `None` when there is nothing, or nothing that could be done yet.
    fn plan(&self, progress: &mut Progress) -> Option<Plan> {
        let now = self.env.now();
        let due = [progress.retries.next(), progress.fights.next()].into_iter().flatten().any(|at| now >= at);
        if progress.news.is_clean() && progress.damage.is_clean() && !due {
            return None;
        }
        let (want, scope) = (self.world.want(), self.world.scope());
        let mut plan = match (&progress.news, &progress.damage) {
            (Dirty::Keys(news), Dirty::Keys(damage)) if !due => {
                let keys: Vec<Key> = news.union(damage).copied().collect();
                Plan::at(&keys, &progress.have, want, &scope)
            }
            _ => {
                let plan = Plan::between(&progress.have, want, &scope);
                progress.fights.look_again();
                progress.retries.keep_only(plan.steps.iter().map(|step| &step.op));
                plan
            }
        };
        let needs_device = !plan.steps.is_empty() && !matches!(progress.have.device, Some(Found::Vxlan(..)));
        // An object waits as a whole: what is added in a stray's place cannot be added before the stray has gone.
        let mut waiting = progress.retries.waiting(plan.steps.iter().map(|step| &step.op), now);
        waiting.extend(progress.fights.postpone(plan.steps.iter().map(|step| step.op.key()), now));
        plan.steps.retain(|step| !waiting.contains(&step.op.key()));
        let device_waits = needs_device && !plan.touches_device();
        if plan.is_empty() || device_waits {
            (progress.news, progress.damage) = (Dirty::default(), Dirty::default());
            return None;
        }
        Some(plan)
    }

    fn report_failures(&self, progress: &Progress) {
        match progress.retries.describe().or_else(|| progress.fights.describe(self.env.now())) {
            Some(failures) => self.board.trouble(Topic::Kernel, failures),
            None => self.board.over(Topic::Kernel),
        }
    }

    /// Applies steps and keeps `have` in step with what was done.
    async fn execute(&mut self, steps: &[&Step], progress: &mut Progress) {
        let started = self.env.now();
        let ops: Vec<_> = steps.iter().map(|step| step.op.clone()).collect();
        let results = self.kernel.apply(&self.world.scope(), &ops).await;
        let now = self.env.now();
        let repairs: Vec<bool> = steps.iter().map(|step| self.is_repair(step, progress)).collect();
        let mut tried = Vec::with_capacity(steps.len());
        for ((step, result), repair) in steps.iter().zip(&results).zip(repairs) {
            let refusal = result.as_ref().err().map(|error| error.reason.as_str());
            tried.push(Tried { op: &step.op, refusal, repair });
            if refusal.is_none() {
                progress.have.apply(&step.op, 0);
            }
        }
        progress.retries.tried(&tried, &self.env);
        let failures = tried.iter().filter(|tried| tried.refusal.is_some()).count();
        if failures > 0 {
            // What they left behind is not known: by the time of the next attempt it is.
            progress.read_soon(progress.retries.next().unwrap_or(now));
        }
        let done = |repair: bool| {
            let picked = steps.iter().zip(&tried).filter(move |(_, t)| t.refusal.is_none() && t.repair == repair);
            picked.map(|(step, _)| *step).collect::<Vec<&Step>>()
        };
        let (changes, repairs) = (done(false), done(true));
        self.board.update(|status| {
            status.kernel_changes += changes.len() as u64;
            status.repairs += repairs.len() as u64;
            status.kernel_failures += failures as u64;
        });
        progress.fights.repaired(repairs.iter().map(|step| &step.op), now);
        report::log("", &changes, now.saturating_sub(started));
        report::log("repaired: ", &repairs, now.saturating_sub(progress.damaged_at));
        if results.iter().flat_map(|result| result.as_ref().err()).any(KernelError::device_is_out) {
            // Its end is reported after that of what it held.
            progress.read_soon(now);
        }
    }

    /// Whether a step makes good what somebody else did, not what the store or the host's interfaces ask for.
    fn is_repair(&self, step: &Step, progress: &Progress) -> bool {
        let key = step.op.key();
        let damaged = progress.damage.covers(&key) || progress.retries.is_repair(&key);
        self.board.read().started && damaged && !progress.news.covers(&key)
    }

    fn write_files(&mut self, progress: &mut Progress, now: Moment) {
        if now < progress.write_files_at {
            return;
        }
        let network = self.world.network();
        match self.files.write(network, self.world.own().subnet, self.world.mtu()) {
            Ok(()) => {
                progress.unwritable.reset();
                self.board.over(Topic::Files);
            }
            Err(error) => {
                progress.write_files_at = now + progress.unwritable.pause(&self.env);
                self.board.trouble(Topic::Files, error);
            }
        }
    }

    /// Says that everything is in place, once.
    fn tell_readiness(&mut self, progress: &Progress) {
        if self.board.read().started {
            return;
        }
        let listed = self.world.leases().is_known() && progress.news.is_clean();
        let listed = listed || self.env.now() >= progress.give_up_on_peers_at;
        let addresses: Vec<Key> = self.world.want().addresses.iter().copied().map(Key::Address).collect();
        let plan = Plan::at(&addresses, &progress.have, self.world.want(), &self.world.scope());
        let stands = !plan.touches_device() && !progress.nic_is_gone;
        let rules_stand = *self.rules_stand.borrow();
        if listed && stands && rules_stand && self.files.are_written() {
            let (subnet, peers) = (self.world.own().subnet, self.world.tally().peers);
            tracing::info!(%subnet, peers, mtu = self.world.mtu(), "ready");
            self.board.update(|status| status.started = true);
            self.env.notify(Notice::Ready);
        } else {
            self.env.notify(Notice::StillStarting(PATIENCE_FOR_PEERS));
        }
    }
}
