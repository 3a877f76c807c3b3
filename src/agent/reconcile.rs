//! The loop: facts come in, what differs is found and applied, what failed is tried again.
//!
//! What the kernel holds is read in full at the start, and from then on kept in step by what the kernel reports, so
//! one entry's repair costs one entry's work. It is read in full again when something happened that takes entries
//! along without a word (the device, its addresses), when reports were lost, and from time to time to be sure.

use super::env::{Env, Notice};
use super::keeper::{Address, Horizon, Sighting};
use super::peers::News;
use super::progress::{PATIENCE, Progress};
use super::report;
use super::retries::Tried;
use super::status::{Board, Topic};
use super::world::{Dirty, Own, World};
use crate::files::EnvFiles;
use crate::firewall::obstacles::OnHost;
use crate::heap;
use crate::kernel::{Event, Kernel, KernelError};
use crate::model::kernel_state::Found;
use crate::model::lease_set::{Change, Moment};
use crate::model::mirror::Noticed;
use crate::model::plan::{Key, Op, Plan, Step};
use crate::model::subnet::SubnetKey;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::rc::Rc;
use tokio::sync::{mpsc, watch};

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

impl<K: Kernel> Reconciler<K> {
    /// Runs for ever.
    pub async fn run(mut self, mut news: mpsc::Receiver<News>) -> Infallible {
        let mut progress = Progress::new(self.env.now());
        loop {
            self.turn(&mut progress).await;
            let pause = progress.pause(self.env.now());
            tokio::select! {
                biased;
                Some(first) = news.recv() => {
                    self.take(first, &mut progress);
                    while let Ok(more) = news.try_recv() {
                        self.take(more, &mut progress);
                    }
                }
                () = self.kernel.changed() => {}
                Ok(()) = self.rules_stand.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
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
        self.board.say(Topic::PublicIp, self.world.double());
        let (tally, held) = (self.world.tally(), self.world.leases().held_count());
        self.board.update(|status| {
            (status.leases, status.held) = (tally, held);
            status.last_turn = Some(now);
        });
        self.env.notify(Notice::Alive);
        self.tell_readiness(progress);
        if std::mem::take(&mut progress.was_large) {
            heap::trim();
        }
    }

    /// Takes in what the store says.
    fn take(&mut self, news: News, progress: &mut Progress) {
        let own = SubnetKey::v4(self.world.own().subnet).to_string();
        let now = self.env.now();
        match news {
            News::OtherHistory => self.world.doubt_next_list(),
            News::All(snapshot) => {
                let record = snapshot.records.iter().find(|record| *record.name == own).cloned();
                self.sightings.send_replace(Some(Sighting { revision: snapshot.revision, record }));
                tracing::info!(leases = snapshot.records.len(), revision = snapshot.revision, "leases listed");
                progress.was_large |= snapshot.records.len() >= heap::MANY;
                progress.news.merge(self.world.set_leases(snapshot.revision, snapshot.records, now));
            }
            News::Some(changes) => {
                if self.board.read().lease_ends.is_some_and(|end| now >= end) {
                    self.world.expect_loss_of_own(now);
                }
                for change in &changes.changes {
                    match change {
                        Change::Put(record) if *record.name == own => {
                            let sighting = Sighting { revision: changes.revision, record: Some(record.clone()) };
                            self.sightings.send_replace(Some(sighting));
                        }
                        Change::Delete { name, revision } if **name == own => {
                            self.sightings.send_replace(Some(Sighting { revision: *revision, record: None }));
                        }
                        _ => {}
                    }
                }
                progress.news.merge(self.world.change_leases(changes.revision, changes.changes, now));
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
        let events = self.kernel.take_changes(&self.world.scope());
        progress.was_large |= events.len() >= heap::MANY;
        for event in events {
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
                    if self.world.routes_directly() {
                        // Routes by an interface go with it without a word.
                        progress.read_soon(now);
                    }
                }
                Event::Underlay if self.world.routes_directly() => progress.read_host_some_time(now),
                Event::Underlay => {}
                Event::Host { .. } => progress.read_host_some_time(now),
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
                progress.was_read(have, started, now, &self.env);
                self.tell_of_offload(progress);
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

    /// Without the flag it is not known who had a reason to switch it off, perhaps an earlier run of ours: so it stays.
    fn tell_of_offload(&self, progress: &mut Progress) {
        let Some(Found::Vxlan(_, have)) = &progress.have.device else { return };
        let wanted = self.world.want().device.as_ref().is_some_and(|want| want.tx_checksum_off);
        let strange = have.tx_checksum_off && !wanted;
        if strange && !progress.told_of_offload {
            let name = &have.name;
            tracing::info!(
                "{name} has tx-checksum-ip-generic off, which costs most of its throughput: if nothing below it needs that, \
                 do: ethtool -K {name} tx-checksum-ip-generic on"
            );
        }
        progress.told_of_offload = strange;
    }

    /// Looks at the host's interfaces.
    async fn read_host(&mut self, progress: &mut Progress) -> Result<(), KernelError> {
        let host = self.kernel.host().await?;
        self.board.over(Topic::Host);
        progress.host_was_read(self.env.now());
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
        self.board.say(Topic::Docker, self.world.docker_complaint());
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
        if device_waits {
            progress.retries.wait_for_device();
        }
        if plan.is_empty() || device_waits {
            (progress.news, progress.damage) = (Dirty::default(), Dirty::default());
            return None;
        }
        Some(plan)
    }

    fn report_failures(&self, progress: &Progress) {
        let failures = progress.retries.describe().or_else(|| progress.fights.describe(self.env.now()));
        self.board.say(Topic::Kernel, failures);
    }

    /// Applies steps and keeps `have` in step with what was done.
    async fn execute(&mut self, steps: &[&Step], progress: &mut Progress) {
        let started = self.env.now();
        let refusals = self.apply(steps).await;
        let now = self.env.now();
        let repairs: Vec<bool> = steps.iter().map(|step| self.is_repair(step, progress)).collect();
        for (_, step) in steps.iter().enumerate().filter(|(at, _)| !refusals.contains_key(at)) {
            progress.have.apply(&step.op, 0);
        }
        if steps.len() >= heap::MANY {
            progress.have.compact();
            progress.was_large = true;
        }
        if !(refusals.is_empty() && progress.retries.is_empty()) {
            let tried = steps.iter().zip(&repairs).enumerate().map(|(at, (step, repair))| {
                let refusal = refusals.get(&at).map(|error| error.reason.as_str());
                Tried { op: &step.op, refusal, repair: *repair }
            });
            progress.retries.tried(&tried.collect::<Vec<_>>(), &self.env);
        }
        let failures = refusals.len();
        if failures > 0 {
            // What they left behind is not known: by the time of the next attempt it is.
            progress.read_soon(progress.retries.next().unwrap_or(now));
        }
        let done = |repair: bool| {
            let done = steps.iter().zip(&repairs).enumerate().filter(|(at, _)| !refusals.contains_key(at));
            done.filter(|(_, (_, is_repair))| **is_repair == repair).map(|(_, (step, _))| *step).collect::<Vec<&Step>>()
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
        if refusals.values().any(KernelError::device_is_out) {
            // Its end is reported after that of what it held.
            progress.read_soon(now);
        }
    }

    /// Has the kernel do some steps; gives those that it refuses, by their place.
    async fn apply(&mut self, steps: &[&Step]) -> BTreeMap<usize, KernelError> {
        let (scope, mut refusals) = (self.world.scope(), BTreeMap::new());
        for (nth, part) in steps.chunks(heap::MANY).enumerate() {
            let ops: Vec<Op> = part.iter().map(|step| step.op.clone()).collect();
            let results = self.kernel.apply(&scope, &ops).await.into_iter().enumerate();
            refusals.extend(results.filter_map(|(at, result)| Some((nth * heap::MANY + at, result.err()?))));
        }
        refusals
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
            self.env.notify(Notice::StillStarting(PATIENCE));
        }
    }
}
