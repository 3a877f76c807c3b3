//! The loop: facts come in, what differs is found and applied, what failed is tried again.

use super::env::{Backoff, Env, Notice};
use super::keeper::{Address, Sighting};
use super::peers::News;
use super::status::{Board, Topic};
use super::world::{Dirty, Own, World};
use crate::files::EnvFiles;
use crate::kernel::{Kernel, KernelError};
use crate::model::kernel_state::Have;
use crate::model::lease_set::{Change, Moment};
use crate::model::plan::{Key, Plan, Step};
use crate::model::subnet::SubnetKey;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long the kernel's state is trusted before it is read again in full. Healing by notification comes on top.
const FULL_READ_EVERY: Duration = Duration::from_secs(10);

/// How often the loop turns when nothing happens: for the watchdog and `/healthz`.
const TURN_EVERY: Duration = Duration::from_secs(5);

/// How long the service manager is kept waiting for the first list of peers.
const PATIENCE_FOR_PEERS: Duration = Duration::from_secs(30);

/// A plan of at most this many steps is logged step by step, a larger one in a line.
const LOGGED_ONE_BY_ONE: usize = 16;

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
}

/// What the loop remembers from turn to turn.
struct Progress {
    have: Have,
    dirty: Dirty,
    read_again_at: Moment,
    backoff: Backoff,
    give_up_on_peers_at: Moment,
}

impl<K: Kernel> Reconciler<K> {
    /// Runs for ever.
    pub async fn run(mut self, mut news: mpsc::Receiver<News>) -> Infallible {
        let now = self.env.now();
        let mut progress = Progress {
            have: Have::default(),
            dirty: Dirty::All,
            read_again_at: now,
            backoff: Backoff::new(Duration::from_millis(100), FULL_READ_EVERY),
            give_up_on_peers_at: now + PATIENCE_FOR_PEERS,
        };
        loop {
            self.turn(&mut progress).await;
            let pause = progress.read_again_at.saturating_sub(self.env.now()).min(TURN_EVERY);
            tokio::select! {
                Some(first) = news.recv() => {
                    self.take(first, &mut progress.dirty);
                    while let Ok(more) = news.try_recv() {
                        self.take(more, &mut progress.dirty);
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn turn(&mut self, progress: &mut Progress) {
        let now = self.env.now();
        progress.dirty.merge(self.world.expire(now));
        let readable = if now >= progress.read_again_at { self.read(progress).await } else { true };
        if readable && !progress.dirty.is_clean() {
            self.apply(progress).await;
        }
        self.write_files();
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

    /// Reads in full what the kernel holds; tells whether it could.
    async fn read(&mut self, progress: &mut Progress) -> bool {
        self.files.doubt();
        let outcome = self.try_read().await;
        let pause = match &outcome {
            Ok(_) => self.env.jittered(FULL_READ_EVERY),
            Err(_) => progress.backoff.pause(&self.env),
        };
        progress.read_again_at = self.env.now() + pause;
        match outcome {
            Ok(Some(have)) => {
                (progress.have, progress.dirty) = (have, Dirty::All);
                true
            }
            Ok(None) => false,
            Err(error) => {
                self.board.trouble(Topic::Kernel, format!("the kernel's state cannot be read: {error}"));
                false
            }
        }
    }

    /// `None` while the external interface is gone: nothing can be right without it, and nothing is touched.
    async fn try_read(&mut self) -> Result<Option<Have>, KernelError> {
        let host = self.kernel.host().await?;
        let own = self.world.own().clone();
        let Some(nic) = own.nic.follow(&host, self.public_ip) else {
            let name = &own.nic.name;
            self.board
                .trouble(Topic::Interface, format!("the external interface {name} is gone or has no IPv4 address"));
            return Ok(None);
        };
        self.board.over(Topic::Interface);
        let address = Address { public_ip: nic.public_ip, nic_mac: nic.mac };
        self.addresses.send_if_modified(|known| std::mem::replace(known, address) != address);
        self.world.set_host(Own { nic, ..own }, host);
        self.kernel.observe(&self.world.scope()).await.map(Some)
    }

    /// Does what is to be done, and once more after the device changed: then it is read what the kernel made of it.
    async fn apply(&mut self, progress: &mut Progress) {
        for _ in 0..3 {
            let (want, scope) = (self.world.want(), self.world.scope());
            let plan = match &progress.dirty {
                Dirty::All => Plan::between(&progress.have, want, &scope),
                Dirty::Keys(keys) => {
                    Plan::at(&keys.iter().copied().collect::<Vec<Key>>(), &progress.have, want, &scope)
                }
            };
            progress.dirty = Dirty::default();
            if plan.is_empty() {
                progress.backoff.reset();
                self.board.over(Topic::Kernel);
                return;
            }
            let failed = self.execute(&plan, &mut progress.have).await;
            if let Some(reason) = failed {
                self.board.trouble(Topic::Kernel, reason);
                progress.read_again_at = self.env.now() + progress.backoff.pause(&self.env);
                return;
            }
            if !plan.touches_device() {
                progress.backoff.reset();
                self.board.over(Topic::Kernel);
                return;
            }
            if !self.read(progress).await {
                return;
            }
        }
    }

    /// Applies a plan and keeps `have` in step; returns the first failure.
    async fn execute(&mut self, plan: &Plan, have: &mut Have) -> Option<String> {
        let started = self.env.now();
        let ops: Vec<_> = plan.steps.iter().map(|step| step.op.clone()).collect();
        let results = self.kernel.apply(&self.world.scope(), &ops).await;
        let mut failures = Vec::new();
        for (step, result) in plan.steps.iter().zip(results) {
            match result {
                Ok(()) => have.apply(&step.op, 0),
                Err(error) => failures.push(format!("{} fails: {}", step.op, error.reason)),
            }
        }
        let done = plan.steps.len() - failures.len();
        self.board.update(|status| {
            status.kernel_changes += done as u64;
            status.kernel_failures += failures.len() as u64;
        });
        log(&plan.steps, failures.len(), self.env.now().saturating_sub(started));
        let more = failures.len().saturating_sub(1);
        let first = failures.into_iter().next()?;
        Some(if more > 0 { format!("{first} (and {more} more)") } else { first })
    }

    fn write_files(&mut self) {
        let network = self.world.network();
        match self.files.write(network, self.world.own().subnet, self.world.mtu()) {
            Ok(()) => self.board.over(Topic::Files),
            Err(error) => self.board.trouble(Topic::Files, error),
        }
    }

    /// Says that everything is in place, once.
    fn tell_readiness(&mut self, progress: &Progress) {
        if self.board.read().started {
            return;
        }
        let listed = self.world.leases().is_known() || self.env.now() >= progress.give_up_on_peers_at;
        let plan = Plan::at(&[], &progress.have, self.world.want(), &self.world.scope());
        if listed && !plan.touches_device() && self.files.are_written() {
            let (subnet, peers) = (self.world.own().subnet, self.world.tally().peers);
            tracing::info!(%subnet, peers, mtu = self.world.mtu(), "ready");
            self.board.update(|status| status.started = true);
            self.env.notify(Notice::Ready);
        } else if progress.give_up_on_peers_at > self.env.now() {
            self.env.notify(Notice::StillStarting(PATIENCE_FOR_PEERS));
        }
    }
}

fn log(steps: &[Step], failures: usize, took: Duration) {
    if steps.len() <= LOGGED_ONE_BY_ONE {
        for Step { op, why } in steps {
            tracing::info!(%why, "{op}");
        }
    } else {
        for Step { op, why } in steps {
            tracing::debug!(%why, "{op}");
        }
        tracing::info!(changes = steps.len(), failures, ?took, "kernel brought in line");
    }
}
