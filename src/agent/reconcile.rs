//! The loop: facts come in, what differs is found and applied, what failed is tried again.
//!
//! What the kernel holds is read in full at the start, and from then on kept in step by what the kernel reports, so
//! one entry's repair costs one entry's work. It is read in full again when something happened that takes entries
//! along without a word (the device, its addresses), when reports were lost, and from time to time to be sure.

use super::announce;
use super::lease_manager::{Address, KeyObservation, StoreProgress};
use super::loop_state::{LoopState, PATIENCE};
use super::peers::News;
use super::report;
use super::retry_queue::Tried;
use super::runtime::{Notice, Runtime};
use super::status::{Condition, StatusHandle};
use crate::files::EnvFiles;
use crate::firewall::obstacles::OnHost;
use crate::kernel::{Event, Kernel, KernelError};
use crate::malloc;
use crate::model::desired::{DesiredState, Dirty, LocalNode};
use crate::model::kernel_state::ExistingDevice;
use crate::model::lease_set::{Change, Moment};
use crate::model::mirror::Noticed;
use crate::model::plan::{Key, Op, Plan, Step};
use crate::model::subnet::SubnetKey;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use tokio::sync::{mpsc, watch};

/// Turns facts into kernel state.
pub struct Reconciler<K> {
    /// Where it is applied.
    pub kernel: K,
    /// The facts, and what follows from them.
    pub desired: DesiredState,
    /// The files that others read.
    pub files: EnvFiles,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// Time, and the service manager.
    pub runtime: Rc<Runtime>,
    /// Where to say how it goes.
    pub status: StatusHandle,
    /// Tells the lease_manager what is seen of our own key.
    pub observations: watch::Sender<Option<KeyObservation>>,
    /// Tells the lease_manager under what addresses we are known.
    pub addresses: watch::Sender<Address>,
    /// Tells the lease_manager what is to be remembered of the store.
    pub store_progress_updates: watch::Sender<StoreProgress>,
    /// Tells the guard of the firewall what networks are on the host's interfaces.
    pub on_host: watch::Sender<Vec<OnHost>>,
    /// Hears from it whether the rules stand, without which the host is not ready.
    pub rules_stand: watch::Receiver<bool>,
    /// Receives the addresses of the store's members.
    pub endpoints: watch::Receiver<Vec<IpAddr>>,
}

impl<K: Kernel> Reconciler<K> {
    /// Runs for ever.
    pub async fn run(mut self, mut news: mpsc::Receiver<News>) -> Infallible {
        let mut state = LoopState::new(self.runtime.now());
        loop {
            self.tick(&mut state).await;
            let pause = state.pause(self.runtime.now());
            tokio::select! {
                biased;
                Some(first) = news.recv() => {
                    self.take(first, &mut state);
                    while let Ok(more) = news.try_recv() {
                        self.take(more, &mut state);
                    }
                }
                () = self.kernel.changed() => {}
                Ok(()) = self.rules_stand.changed() => {}
                Ok(()) = self.endpoints.changed() => {
                    let endpoints = self.endpoints.borrow_and_update().clone();
                    state.news.merge(self.desired.set_endpoints(endpoints));
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn tick(&mut self, state: &mut LoopState) {
        let now = self.runtime.now();
        self.take_kernel_events(state, now);
        let over = self.desired.expire(now);
        state.news.merge(over);
        announce::log(self.desired.take_findings());
        let mut readable = true;
        if now >= state.read_at {
            readable = self.read(state).await;
        } else if state.read_host_at.is_some_and(|at| now >= at)
            && let Err(error) = self.read_host(state).await
        {
            // What is known of the rest still holds.
            self.status.raise(Condition::Host, format!("the host's interfaces cannot be read: {error}"));
            state.read_host_at = Some(now + state.unreadable.pause(&self.runtime));
        }
        if readable && !state.nic_is_gone {
            self.reconcile(state).await;
            self.report_failures(state);
        }
        self.write_files(state, now);
        self.publish_store_progress();
        self.status.set(Condition::PublicIp, self.desired.duplicate_ip());
        let (tally, held) = (self.desired.tally(), self.desired.leases().held_count());
        self.status.update(|status| {
            (status.leases, status.held) = (tally, held);
            status.last_tick = Some(now);
        });
        self.runtime.notify(Notice::Alive);
        self.report_readiness(state);
        if std::mem::take(&mut state.was_large) {
            malloc::trim();
        }
    }

    /// Takes in what the store says.
    fn take(&mut self, news: News, state: &mut LoopState) {
        let own = SubnetKey::v4(self.desired.own().subnet).to_string();
        let now = self.runtime.now();
        match news {
            News::OtherHistory => self.desired.doubt_next_list(),
            News::All(snapshot) => {
                let record = snapshot.records.iter().find(|record| *record.name == own).cloned();
                self.observations.send_replace(Some(KeyObservation { revision: snapshot.revision, record }));
                tracing::info!(leases = snapshot.records.len(), revision = snapshot.revision, "leases listed");
                state.was_large |= snapshot.records.len() >= malloc::MANY;
                state.news.merge(self.desired.set_leases(snapshot.revision, snapshot.records, now));
            }
            News::Some(changes) => {
                if self.status.read().lease_ends.is_some_and(|end| now >= end) {
                    self.desired.expect_loss_of_own(now);
                }
                for change in &changes.changes {
                    match change {
                        Change::Put(record) if *record.name == own => {
                            let observation =
                                KeyObservation { revision: changes.revision, record: Some(record.clone()) };
                            self.observations.send_replace(Some(observation));
                        }
                        Change::Delete { name, revision } if **name == own => {
                            self.observations.send_replace(Some(KeyObservation { revision: *revision, record: None }));
                        }
                        _ => {}
                    }
                }
                state.news.merge(self.desired.change_leases(changes.revision, changes.changes, now));
            }
        }
    }

    /// Tells the lease_manager how much of the store's history is known. An older revision than before is told as well: the
    /// store was set back, and this is its history now.
    fn publish_store_progress(&self) {
        let leases = self.desired.leases();
        if leases.is_known() {
            let store_progress = StoreProgress { revision: leases.revision(), hold_until: leases.last_expiry() };
            self.store_progress_updates
                .send_if_modified(|known| std::mem::replace(known, store_progress) != store_progress);
        }
    }

    /// Takes in what the kernel reports. All of it, always: only the end of the reports is the kernel's state.
    fn take_kernel_events(&mut self, state: &mut LoopState, now: Moment) {
        let nic = &self.desired.own().nic;
        let events = self.kernel.take_changes(&self.desired.scope());
        state.was_large |= events.len() >= malloc::MANY;
        for event in events {
            if state.damage.is_clean() {
                state.damaged_at = now;
            }
            match event {
                Event::Entry(observed) => match state.have.notice(&observed) {
                    Noticed::Nothing => {}
                    Noticed::Key(key) => state.damage.merge(Dirty::Keys([key].into())),
                    Noticed::Doubt => state.read_soon(now),
                },
                Event::Device => state.read_soon(now),
                Event::Host { index, name } if index == nic.index || name.as_ref() == Some(&nic.name) => {
                    state.read_host_soon(now);
                    if self.desired.routes_directly() {
                        // Routes by an interface go with it without a word.
                        state.read_soon(now);
                    }
                }
                Event::Underlay if self.desired.routes_directly() => state.read_host_some_time(now),
                Event::Underlay => {}
                Event::Host { .. } => state.read_host_some_time(now),
                Event::Overrun => {
                    tracing::info!("the kernel's reports came faster than they were read: reading everything");
                    self.status.update(|status| status.overruns += 1);
                    state.read_soon(now);
                }
            }
        }
    }

    /// Reads in full what the kernel holds; tells whether it could.
    async fn read(&mut self, state: &mut LoopState) -> bool {
        // What was reported before the reading is in it.
        drop(self.kernel.take_changes(&self.desired.scope()));
        self.files.doubt();
        let started = self.runtime.now();
        let have = match self.read_host(state).await {
            Ok(()) => self.kernel.observe(&self.desired.scope()).await,
            Err(error) => Err(error),
        };
        let now = self.runtime.now();
        match have {
            Ok(have) => {
                state.was_read(have, started, now, &self.runtime);
                self.log_offload(state);
                self.status.update(|status| status.full_reads += 1);
                true
            }
            Err(error) => {
                self.status.raise(Condition::Kernel, format!("the kernel's state cannot be read: {error}"));
                state.read_at = now + state.unreadable.pause(&self.runtime);
                state.read_host_at = None;
                false
            }
        }
    }

    /// Without the flag it is not known who had a reason to switch it off, perhaps an earlier run of ours: so it stays.
    fn log_offload(&self, state: &mut LoopState) {
        let Some(ExistingDevice::Vxlan(_, have)) = &state.have.device else { return };
        let wanted = self.desired.want().device.as_ref().is_some_and(|want| want.tx_checksum_off);
        let strange = have.tx_checksum_off && !wanted;
        if strange && !state.offload_was_logged {
            let name = &have.name;
            tracing::info!(
                "{name} has tx-checksum-ip-generic off, which costs most of its throughput: if nothing below it needs that, \
                 do: ethtool -K {name} tx-checksum-ip-generic on"
            );
        }
        state.offload_was_logged = strange;
    }

    /// Looks at the host's interfaces.
    async fn read_host(&mut self, state: &mut LoopState) -> Result<(), KernelError> {
        let host = self.kernel.host().await?;
        self.status.clear(Condition::Host);
        state.host_was_read(self.runtime.now());
        let own = self.desired.own().clone();
        let Some(nic) = own.nic.follow(&host, self.public_ip) else {
            let name = &own.nic.name;
            self.status
                .raise(Condition::Interface, format!("the external interface {name} is gone or has no IPv4 address"));
            state.nic_is_gone = true;
            return Ok(());
        };
        self.status.clear(Condition::Interface);
        state.nic_is_gone = false;
        if nic != own.nic {
            tracing::info!("external interface {nic}, it was {}", own.nic);
        }
        let address = Address { public_ip: nic.public_ip, nic_mac: nic.mac };
        self.addresses.send_if_modified(|known| std::mem::replace(known, address) != address);
        let on_host: Vec<OnHost> =
            host.connected(&self.desired.scope().device).map(|(name, net)| (name.to_owned(), net.into())).collect();
        self.on_host.send_if_modified(|known| std::mem::replace(known, on_host.clone()) != on_host);
        let changed = self.desired.set_host(LocalNode { nic, ..own }, host);
        state.news.merge(changed);
        announce::log(self.desired.take_findings());
        self.status.set(Condition::Docker, self.desired.docker_complaint());
        Ok(())
    }

    /// Does what is to be done: the device first, and then, from what the kernel made of it, the rest.
    async fn reconcile(&mut self, state: &mut LoopState) {
        const ROUNDS: usize = 4;
        for _ in 0..ROUNDS {
            let Some(plan) = self.plan(state) else { return };
            let on_device = plan.touches_device();
            let steps: Vec<&Step> = match on_device {
                true => plan.steps.iter().filter(|step| step.op.is_on_device()).collect(),
                false => plan.steps.iter().collect(),
            };
            self.execute(&steps, state).await;
            if on_device && !self.read(state).await {
                return;
            }
            if !on_device {
                (state.news, state.damage) = (Dirty::default(), Dirty::default());
            }
        }
    }

    /// What is to be done now; `None` when there is nothing, or nothing that could be done yet.
    fn plan(&self, state: &mut LoopState) -> Option<Plan> {
        let now = self.runtime.now();
        let due = [state.retries.next(), state.repair_limiter.next()].into_iter().flatten().any(|at| now >= at);
        if state.news.is_clean() && state.damage.is_clean() && !due {
            return None;
        }
        let (want, scope) = (self.desired.want(), self.desired.scope());
        let mut plan = match (&state.news, &state.damage) {
            (Dirty::Keys(news), Dirty::Keys(damage)) if !due => {
                let keys: Vec<Key> = news.union(damage).copied().collect();
                Plan::at(&keys, &state.have, want, &scope)
            }
            _ => {
                let plan = Plan::between(&state.have, want, &scope);
                state.repair_limiter.look_again();
                state.retries.keep_only(plan.steps.iter().map(|step| &step.op));
                plan
            }
        };
        let needs_device = !plan.steps.is_empty() && !matches!(state.have.device, Some(ExistingDevice::Vxlan(..)));
        // An object waits as a whole: what is added in a stray's place cannot be added before the stray has gone.
        let mut waiting = state.retries.waiting(plan.steps.iter().map(|step| &step.op), now);
        waiting.extend(state.repair_limiter.postpone(plan.steps.iter().map(|step| step.op.key()), now));
        plan.steps.retain(|step| !waiting.contains(&step.op.key()));
        let device_waits = needs_device && !plan.touches_device();
        if device_waits {
            state.retries.wait_for_device();
        }
        if plan.is_empty() || device_waits {
            (state.news, state.damage) = (Dirty::default(), Dirty::default());
            return None;
        }
        Some(plan)
    }

    fn report_failures(&self, state: &LoopState) {
        let failures = state.retries.describe().or_else(|| state.repair_limiter.describe(self.runtime.now()));
        self.status.set(Condition::Kernel, failures);
    }

    /// Applies steps and keeps `have` in step with what was done.
    async fn execute(&mut self, steps: &[&Step], state: &mut LoopState) {
        let started = self.runtime.now();
        let refusals = self.apply(steps).await;
        let now = self.runtime.now();
        let repairs: Vec<bool> = steps.iter().map(|step| self.is_repair(step, state)).collect();
        for (_, step) in steps.iter().enumerate().filter(|(at, _)| !refusals.contains_key(at)) {
            state.have.apply(&step.op, 0);
        }
        if steps.len() >= malloc::MANY {
            state.have.compact();
            state.was_large = true;
        }
        if !(refusals.is_empty() && state.retries.is_empty()) {
            let tried = steps.iter().zip(&repairs).enumerate().map(|(at, (step, repair))| {
                let refusal = refusals.get(&at).map(|error| error.reason.as_str());
                Tried { op: &step.op, refusal, repair: *repair }
            });
            state.retries.tried(&tried.collect::<Vec<_>>(), &self.runtime);
        }
        let failures = refusals.len();
        if failures > 0 {
            // What they left behind is not known: by the time of the next attempt it is.
            state.read_soon(state.retries.next().unwrap_or(now));
        }
        let done = |repair: bool| {
            let done = steps.iter().zip(&repairs).enumerate().filter(|(at, _)| !refusals.contains_key(at));
            done.filter(|(_, (_, is_repair))| **is_repair == repair).map(|(_, (step, _))| *step).collect::<Vec<&Step>>()
        };
        let (changes, repairs) = (done(false), done(true));
        self.status.update(|status| {
            status.kernel_changes += changes.len() as u64;
            status.repairs += repairs.len() as u64;
            status.kernel_failures += failures as u64;
        });
        state.repair_limiter.repaired(repairs.iter().map(|step| &step.op), now);
        report::log("", &changes, now.saturating_sub(started));
        report::log("repaired: ", &repairs, now.saturating_sub(state.damaged_at));
        if refusals.values().any(KernelError::device_is_out) {
            // Its end is reported after that of what it held.
            state.read_soon(now);
        }
    }

    /// Has the kernel do some steps; gives those that it refuses, by their place.
    async fn apply(&mut self, steps: &[&Step]) -> BTreeMap<usize, KernelError> {
        let (scope, mut refusals) = (self.desired.scope(), BTreeMap::new());
        for (nth, part) in steps.chunks(malloc::MANY).enumerate() {
            let ops: Vec<Op> = part.iter().map(|step| step.op.clone()).collect();
            let results = self.kernel.apply(&scope, &ops).await.into_iter().enumerate();
            refusals.extend(results.filter_map(|(at, result)| Some((nth * malloc::MANY + at, result.err()?))));
        }
        refusals
    }

    /// Whether a step makes good what somebody else did, not what the store or the host's interfaces ask for.
    fn is_repair(&self, step: &Step, state: &LoopState) -> bool {
        let key = step.op.key();
        let damaged = state.damage.covers(&key) || state.retries.is_repair(&key);
        self.status.read().started && damaged && !state.news.covers(&key)
    }

    fn write_files(&mut self, state: &mut LoopState, now: Moment) {
        if now < state.write_files_at {
            return;
        }
        let network = self.desired.network();
        match self.files.write(network, self.desired.own().subnet, self.desired.mtu()) {
            Ok(()) => {
                state.unwritable.reset();
                self.status.clear(Condition::Files);
            }
            Err(error) => {
                state.write_files_at = now + state.unwritable.pause(&self.runtime);
                self.status.raise(Condition::Files, error);
            }
        }
    }

    /// Says that everything is in place, once.
    fn report_readiness(&mut self, state: &LoopState) {
        if self.status.read().started {
            return;
        }
        let listed = self.desired.leases().is_known() && state.news.is_clean();
        let addresses: Vec<Key> = self.desired.want().addresses.iter().copied().map(Key::Address).collect();
        let plan = Plan::at(&addresses, &state.have, self.desired.want(), &self.desired.scope());
        let stands = !plan.touches_device() && !state.nic_is_gone;
        let rules_stand = *self.rules_stand.borrow();
        if listed && stands && rules_stand && self.files.are_written() {
            let (subnet, peers) = (self.desired.own().subnet, self.desired.tally().peers);
            tracing::info!(%subnet, peers, mtu = self.desired.mtu(), "ready");
            self.status.update(|status| status.started = true);
            self.runtime.notify(Notice::Ready);
        } else {
            self.runtime.notify(Notice::StillStarting(PATIENCE));
        }
    }
}
