//! Our own lease: found or made at the start, then kept for as long as the daemon runs. Nothing is ever written
//! blindly.

mod conflict;
mod upkeep;

pub use conflict::OwnershipProbe;

use super::runtime::{Backoff, Runtime};
use super::status::{Condition, StatusHandle};
use crate::backend::Backend;
use crate::files::StateFile;
use crate::model::config::Overlay;
use crate::model::identity::{Decision, Identity, InUse};
use crate::model::lease::{Lease, LeaseAttrs, LeaseId, Record, Revision};
use crate::model::lease_set::Moment;
use crate::model::mac::VtepMac;
use crate::model::state_file::Remembered;
use crate::model::subnet::SubnetKey;
use crate::store::{Expiry, Leases, Precondition, Snapshot, StoreError, WriteOutcome};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

/// How long our key lives without us, and how long before its end it is written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// Time to live of the etcd lease.
    pub ttl: Duration,
    /// The key is written again when no more than this is left since the last write (`--subnet-lease-renew-margin`).
    pub renew_margin: Duration,
}

impl LeaseTimes {
    /// How long a key that was just written is left as it is.
    fn until_write(&self) -> Duration {
        self.ttl.saturating_sub(self.renew_margin)
    }
}

/// Our lease as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnLease {
    /// Our subnet.
    pub subnet: Ipv4Net,
    /// The MAC of our tunnel endpoint.
    pub mac: VtepMac,
    /// What keeps it alive; `None` for a reservation, which needs nothing.
    lease_id: Option<LeaseId>,
    created: Revision,
    modified: Revision,
    /// The outcome of a write is not known: the key may have a later revision by our own hand. A renewal that failed is
    /// none: who takes that for a write takes a copy's writes for its own.
    unsure: bool,
    attrs: LeaseAttrs,
    /// When the key is to be written again.
    write_at: Moment,
}

/// Under what addresses we are known: part of the lease and of the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Where others send their packets.
    pub public_ip: Ipv4Addr,
    /// Hardware address of the external interface.
    pub nic_mac: Option<VtepMac>,
}

/// What was last seen of our key by the watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyObservation {
    /// When.
    pub revision: Revision,
    /// The key, if it was there.
    pub record: Option<Record>,
}

/// How much of the store's history has been seen, and until when peers are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreProgress {
    /// The newest revision.
    pub revision: Revision,
    /// When the last peer that is held is let go.
    pub hold_until: Option<Moment>,
}

/// What came of one attempt to get hold of a lease.
enum Attempt {
    Owned(OwnLease),
    /// We have written it, but it may be another host's: who lives on it has to be given time to say so.
    Probing(OwnLease),
    /// Something changed underfoot: look again.
    Again,
    /// Nothing can be done for now, for this reason.
    Wait(String),
}

/// Keeps our lease.
pub struct LeaseManager<S> {
    /// Where leases live.
    pub store: Rc<S>,
    /// Time and randomness.
    pub runtime: Rc<Runtime>,
    /// Where to say how it goes.
    pub status: StatusHandle,
    /// The network config's text, from which all of this was made.
    pub config: Vec<u8>,
    /// What is published of us.
    pub backend: Rc<dyn Backend>,
    /// Whether the config names the backend; if not, leases of another type call for an explicit one.
    pub backend_is_explicit: bool,
    /// The subnets to choose from.
    pub overlay: Overlay,
    /// For how long.
    pub times: LeaseTimes,
    /// The state file.
    pub state_file: StateFile,
    /// What we know of ourselves.
    pub identity: Identity,
    /// Under what addresses we are known.
    pub address: Address,
    /// The networks on this host's other interfaces: no subnet to choose.
    pub on_host: Vec<Ipv4Net>,
    /// The peers that an earlier run left in the kernel.
    pub left_behind: Vec<Record>,
    /// What an earlier run has seen of the store, then what this one sees.
    pub store_progress: StoreProgress,
    /// How long peers are held that vanish in a way that does not look like their own doing.
    pub peer_hold: Duration,
    /// Whether the lease is given back at the end of each run: then it is no wonder if it is gone.
    pub gives_back: bool,
    /// Whether the first look at the store showed it set back, or without our lease.
    pub set_back: Option<bool>,
    /// The quarrel over our key, if there is one.
    pub probe: OwnershipProbe,
    /// The list of all keys that the lease was found by: who follows the peers need not ask for another.
    pub listed: Option<Snapshot>,
}

impl<S: Leases> LeaseManager<S> {
    /// Finds our lease or makes one; waits for as long as that takes, or until the network config is another one: then
    /// it is `None`.
    pub async fn acquire(&mut self) -> Option<OwnLease> {
        // More than a few lost races in a row are something to speak of.
        const LOST_RACES: u32 = 10;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
        let mut lost = 0;
        loop {
            let reason = match self.attempt_with_probe().await {
                Ok(Attempt::Owned(held) | Attempt::Probing(held)) => {
                    self.settle(&held);
                    return Some(held);
                }
                Ok(Attempt::Again) => {
                    lost += 1;
                    (lost > LOST_RACES).then(|| "no lease yet: the leases in etcd keep changing underfoot".to_owned())
                }
                Ok(Attempt::Wait(reason)) => Some(reason),
                Err(error) => Some(format!("no lease yet: {error}")),
            };
            let pause = backoff.pause(&self.runtime);
            if let Some(reason) = reason {
                self.status.raise_starting(Condition::Lease, reason, pause);
            }
            tokio::time::sleep(pause).await;
            if matches!(self.store.config().await, Ok(Some(config)) if config != self.config) {
                return None;
            }
        }
    }

    /// Until when the peers that an earlier run left in the kernel are held although they are not in the store.
    pub fn hold_until(&self) -> Option<Moment> {
        let now = self.runtime.now();
        let longest = now + self.peer_hold;
        match self.set_back {
            Some(true) => Some(longest),
            _ => self.store_progress.hold_until.filter(|until| *until > now).map(|until| until.min(longest)),
        }
    }

    /// Gets hold of a lease; `before` is how it was last held by this process.
    async fn attempt(&mut self, before: Option<&OwnLease>) -> Result<Attempt, StoreError> {
        let mut snapshot = self.store.list().await?;
        if let Some(reason) = self.unclear_backend(&snapshot) {
            return Ok(Attempt::Wait(reason));
        }
        if self.set_back.is_none() {
            self.set_back = Some(self.is_set_back(&snapshot));
        }
        let listed = snapshot.records.len();
        if self.identity.in_use.is_none() && self.hold_until().is_some() {
            snapshot.records.extend(self.left_behind.iter().map(Record::taken));
        }
        let decision = self.identity.decide(&snapshot.records, &self.on_host, &self.overlay, self.runtime.random());
        if self.identity.in_use.is_none() {
            snapshot.records.truncate(listed);
            self.listed = Some(snapshot);
        }
        let mac = self.identity.mac(&decision).unwrap_or_else(|| VtepMac::from_random(self.runtime.random_bytes()));
        let reserved = before.is_some_and(|held| held.lease_id.is_none());
        match decision {
            Decision::Keep(lease) => self.keep(lease, mac, before).await,
            Decision::Reclaim(lease) => self.reclaim_lease(lease, mac, reserved).await,
            Decision::Adopt(lease) => self.adopt(lease, mac).await,
            Decision::Discard(lease) => {
                tracing::warn!(lease = %lease.subnet, "deleting our lease: its subnet does not fit the network config");
                self.store.remove(lease.subnet, lease.modified).await?;
                Ok(Attempt::Again)
            }
            Decision::Overwrite(subnet, modified) => {
                tracing::warn!(%subnet, "writing our lease again: what stands in its place is no lease");
                let expiry = if reserved { Expiry::Forever } else { Expiry::Grant(self.times.ttl) };
                self.write(subnet, mac, Precondition::Unchanged(modified), expiry).await
            }
            Decision::Create(subnet) => {
                self.write(subnet, mac, Precondition::Absent, Expiry::Grant(self.times.ttl)).await
            }
            Decision::Taken(record) => Ok(Attempt::Wait(taken(&record))),
            Decision::OutOfSubnets => {
                let (min, max) = (self.overlay.subnets.min(), self.overlay.subnets.max());
                let len = self.overlay.subnets.subnet_len();
                Ok(Attempt::Wait(format!("out of subnets: every /{len} from {min} to {max} is taken")))
            }
        }
    }

    /// Without a Backend in the config it is VXLAN, unless the hosts that are there think otherwise. Once containers
    /// use a subnet the question is settled.
    fn unclear_backend(&self, snapshot: &Snapshot) -> Option<String> {
        if self.backend_is_explicit || self.identity.in_use.is_some() {
            return None;
        }
        let leases = snapshot.records.iter().filter_map(|record| record.content.as_ref().ok());
        let kinds = leases.filter(|lease| lease.lease_id.is_some()).map(|lease| &*lease.attrs.backend_type);
        let other =
            kinds.filter(|kind| !kind.is_empty()).find(|kind| !kind.eq_ignore_ascii_case(self.backend.kind()))?;
        let ours = self.backend.kind();
        Some(format!(
            "the network config names no Backend, which means {ours}, but there are leases of type {other:?}: set Backend \
             explicitly, such as \"Backend\":{{\"Type\":\"{ours}\"}}"
        ))
    }

    /// Whether the store is older than what we have seen of it, or has lost our lease: then peers may be missing
    /// through no doing of their own.
    fn is_set_back(&self, snapshot: &Snapshot) -> bool {
        let mut leases = snapshot.records.iter().filter_map(|record| record.content.as_ref().ok());
        let lost = self.identity.remembered_lease.is_some() && !self.gives_back;
        snapshot.revision < self.store_progress.revision
            || (lost && !leases.any(|lease| self.identity.surely_owns(lease)))
    }

    /// A lease that is ours beyond doubt: kept as it is, or brought up to date on the same etcd lease.
    ///
    /// Beyond doubt it is also to a copy of this host, state file and all. A copy has been booted, so it has no
    /// device yet: then we write in any case, and whoever lives on the lease can tell.
    async fn keep(&mut self, lease: Lease, mac: VtepMac, before: Option<&OwnLease>) -> Result<Attempt, StoreError> {
        let expiry = match lease.lease_id {
            None => Expiry::Forever,
            Some(id) => match self.extend(id).await? {
                None => return Ok(Attempt::Again),
                Some(ttl) if ttl != self.times.ttl => Expiry::Grant(self.times.ttl),
                Some(_) => Expiry::Keep(id),
            },
        };
        let attrs = self.backend.attrs(self.address.public_ip, mac);
        let booted = self.identity.in_use.is_none() && self.identity.device_mac != Some(mac);
        if booted && self.is_defended(&lease) {
            return Ok(self.back_off(&lease));
        }
        let rewritten = before.is_some_and(|held| !held.unsure && lease.modified > held.modified);
        if rewritten && let Some(reason) = self.defend_against_copy(&lease) {
            return Ok(Attempt::Wait(reason));
        }
        if lease.attrs == attrs && !matches!(expiry, Expiry::Grant(_)) && !booted && !rewritten {
            // When it was last written is not known.
            let write_in = self.times.until_write().min(self.times.ttl / 3);
            return Ok(Attempt::Owned(self.held(lease, mac, write_in)));
        }
        let kept = self.write(lease.subnet.v4, mac, Precondition::Unchanged(lease.modified), expiry).await?;
        if rewritten && matches!(kept, Attempt::Owned(_)) {
            self.record_defence();
        }
        Ok(if booted { self.start_probe(kept) } else { kept })
    }

    /// Extends our lease to its full time to live, which is returned; `None` when it no longer exists.
    async fn extend(&self, id: LeaseId) -> Result<Option<Duration>, StoreError> {
        let asked = self.runtime.now();
        let ttl = self.store.keep_alive(id).await?;
        if let Some(ttl) = ttl {
            self.status.update(|status| status.lease_ends = Some(asked + ttl));
        }
        Ok(ttl)
    }

    async fn write(
        &mut self,
        subnet: Ipv4Net,
        mac: VtepMac,
        precondition: Precondition,
        expiry: Expiry,
    ) -> Result<Attempt, StoreError> {
        self.probe.forget_probe();
        // Before the write, so that a crash right after it does not make us strangers to our own lease.
        let lease_id = match expiry {
            Expiry::Keep(id) => Some(id),
            Expiry::Grant(_) | Expiry::Forever => None,
        };
        self.remember(subnet, mac, lease_id);
        let attrs = self.backend.attrs(self.address.public_ip, mac);
        let asked = self.runtime.now();
        match self.store.write(SubnetKey::v4(subnet), &attrs, precondition, expiry).await? {
            WriteOutcome::Committed(Record { content: Ok(lease), name }) => {
                if let Some(listed) = &mut self.listed {
                    listed.put(Record { content: Ok(lease.clone()), name });
                }
                if !matches!(expiry, Expiry::Keep(_)) {
                    let ends = lease.lease_id.map(|_| asked + self.times.ttl);
                    self.status.update(|status| status.lease_ends = ends);
                }
                Ok(Attempt::Owned(self.held(lease, mac, self.times.until_write())))
            }
            WriteOutcome::Committed(_) => Ok(Attempt::Again),
            WriteOutcome::Conflict(_) => {
                self.status.update(|status| status.lost_races += 1);
                Ok(Attempt::Again)
            }
        }
    }

    /// `write_in` says when the key is to be written again.
    fn held(&self, lease: Lease, mac: VtepMac, write_in: Duration) -> OwnLease {
        OwnLease {
            subnet: lease.subnet.v4,
            mac,
            lease_id: lease.lease_id,
            created: lease.created,
            modified: lease.modified,
            unsure: false,
            attrs: lease.attrs,
            write_at: self.runtime.now() + write_in,
        }
    }

    /// From now on this is our subnet.
    fn settle(&mut self, held: &OwnLease) {
        self.probe.end_probe();
        self.remember(held.subnet, held.mac, held.lease_id);
        if self.identity.in_use.map(|in_use| in_use.subnet) != Some(held.subnet) {
            let lost_races = self.status.read().lost_races;
            tracing::info!(
                subnet = %held.subnet, public_ip = %self.address.public_ip, mac = %held.mac, lost_races, "lease held"
            );
        }
        self.identity.in_use = Some(InUse { subnet: held.subnet, created: held.created });
        self.status.update(|status| (status.subnet, status.lease) = (Some(held.subnet), held.lease_id));
        self.status.clear(Condition::Lease);
    }

    fn remember(&mut self, subnet: Ipv4Net, mac: VtepMac, lease_id: Option<LeaseId>) {
        self.identity.remembered_mac = Some(mac);
        self.identity.remembered_lease = lease_id;
        self.identity.remembered_subnet = Some(subnet);
        let Address { public_ip, nic_mac } = self.address;
        let StoreProgress { revision, hold_until } = self.store_progress;
        let hold_until = hold_until.map(|until| until.as_secs());
        let (rivals, trial) = (self.identity.rivals.clone(), self.probe.probe_of(subnet));
        self.state_file.save(&Remembered {
            mac,
            lease_id,
            subnet,
            public_ip,
            nic_mac,
            revision,
            hold_until,
            rivals,
            trial,
        });
    }
}

fn taken(record: &Record) -> String {
    let by = match &record.content {
        Ok(lease) => lease.attrs.to_string(),
        Err(malformed) => malformed.reason.clone(),
    };
    format!(
        "our subnet has been taken by the lease {} ({by}): containers here keep it, unregistered; restart flanneld and \
         then Docker to move to another subnet",
        record.name
    )
}
