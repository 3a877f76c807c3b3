//! Our own lease: found or made at the start, then kept for as long as the daemon runs.
//!
//! It is kept alive on one etcd lease by KeepAlive; now and then the key is written again as it is, since a Go flanneld
//! that lost sight of us learns of us only from a write. Nothing is ever written blindly.

use super::env::{Backoff, Env};
use super::status::{Board, Topic};
use crate::backend::Backend;
use crate::files::Memory;
use crate::model::config::Overlay;
use crate::model::identity::{Claim, Me};
use crate::model::lease::{Lease, LeaseAttrs, LeaseId, Record, Revision};
use crate::model::lease_set::Moment;
use crate::model::mac::VtepMac;
use crate::model::state_file::Remembered;
use crate::model::subnet::SubnetKey;
use crate::store::{Guard, Life, Snapshot, Store, StoreError, Written};
use ipnet::Ipv4Net;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch;

/// The longest pause between attempts to get the lease back.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long our key lives without us, and how long before its end it is written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Time to live of the etcd lease.
    pub ttl: Duration,
    /// The key is written again when no more than this is left since the last write (`--subnet-lease-renew-margin`).
    pub renew_margin: Duration,
}

impl Terms {
    /// How long a key that was just written is left as it is.
    fn until_write(&self) -> Duration {
        self.ttl.saturating_sub(self.renew_margin)
    }
}

/// Our lease as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Our subnet.
    pub subnet: Ipv4Net,
    /// The MAC of our tunnel endpoint.
    pub mac: VtepMac,
    /// What keeps it alive; `None` for a reservation, which needs nothing.
    lease_id: Option<LeaseId>,
    modified: Revision,
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
pub struct Sighting {
    /// When.
    pub revision: Revision,
    /// The key, if it was there.
    pub record: Option<Record>,
}

/// How the lease is being looked after.
struct Care {
    /// Whether the key is, or may be, other than it should be.
    amiss: bool,
    /// What is seen of the key leads to no attempt before this moment: two hosts that claim one key must not race.
    earliest: Moment,
    /// When the next attempt is due.
    due: Moment,
    backoff: Backoff,
}

impl Care {
    /// The key has to be looked at, as soon as may be.
    fn doubt(&mut self) {
        (self.amiss, self.due) = (true, self.due.min(self.earliest));
    }
}

/// What came of one attempt to get hold of a lease.
enum Attempt {
    Held(Held),
    /// Something changed underfoot: look again.
    Again,
    /// Nothing can be done for now, for this reason.
    Wait(String),
}

/// Keeps our lease.
pub struct Keeper<S> {
    /// Where leases live.
    pub store: Rc<S>,
    /// Time and randomness.
    pub env: Rc<Env>,
    /// Where to say how it goes.
    pub board: Board,
    /// The network config's text, from which all of this was made.
    pub config: Vec<u8>,
    /// What is published of us.
    pub backend: Rc<dyn Backend>,
    /// Whether the config names the backend; if not, leases of another type call for an explicit one.
    pub backend_is_explicit: bool,
    /// The subnets to choose from.
    pub overlay: Overlay,
    /// For how long.
    pub terms: Terms,
    /// The state file.
    pub memory: Memory,
    /// What we know of ourselves.
    pub me: Me,
    /// Under what addresses we are known.
    pub address: Address,
    /// The networks on this host's other interfaces: no subnet to choose.
    pub on_host: Vec<Ipv4Net>,
}

impl<S: Store> Keeper<S> {
    /// Finds our lease or makes one; waits for as long as that takes, or until the network config is another one: then
    /// it is `None`.
    pub async fn acquire(&mut self) -> Option<Held> {
        // More than a few lost races in a row are something to speak of.
        const LOST_RACES: u32 = 10;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
        let mut lost = 0;
        loop {
            let reason = match self.attempt().await {
                Ok(Attempt::Held(held)) => {
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
            let pause = backoff.pause(&self.env);
            if let Some(reason) = reason {
                self.board.waiting(Topic::Lease, reason, pause);
            }
            tokio::time::sleep(pause).await;
            if matches!(self.store.config().await, Ok(Some(config)) if config != self.config) {
                return None;
            }
        }
    }

    /// Keeps the lease for ever; gets it back when it was lost. `sightings` are what the watch sees of our key,
    /// `addresses` what we are to be known by.
    pub async fn maintain(
        mut self,
        mut held: Held,
        mut sightings: watch::Receiver<Option<Sighting>>,
        mut addresses: watch::Receiver<Address>,
    ) -> Infallible {
        let mut care = Care {
            amiss: false,
            earliest: Moment::ZERO,
            due: self.next_renewal(&held),
            backoff: Backoff::new(Duration::from_secs(1), LONGEST_PAUSE),
        };
        loop {
            tokio::select! {
                () = sleep_until(&self.env, care.due) => self.attend(&mut held, &mut care).await,
                Ok(()) = sightings.changed() => {
                    let sighting = sightings.borrow_and_update().clone();
                    if sighting.is_some_and(|sighting| is_news(&held, &sighting)) {
                        care.doubt();
                    }
                }
                Ok(()) = addresses.changed() => {
                    self.address = *addresses.borrow_and_update();
                    self.me.public_ip = Some(self.address.public_ip);
                    self.store.redial();
                    care.doubt();
                }
            }
        }
    }

    /// Renews the lease, or sets right what is amiss.
    async fn attend(&mut self, held: &mut Held, care: &mut Care) {
        let renewed = if care.amiss { Ok(false) } else { self.renew(held).await };
        care.amiss = renewed == Ok(false);
        let kept = if care.amiss { self.reclaim(held).await } else { renewed };
        let pause = care.backoff.pause(&self.env);
        let later = self.env.now() + pause;
        care.due = match kept {
            Ok(true) => {
                self.board.over(Topic::Lease);
                match std::mem::take(&mut care.amiss) {
                    true => care.earliest = later,
                    false => care.backoff.reset(),
                }
                self.next_renewal(held)
            }
            Ok(false) => {
                care.earliest = later;
                later
            }
            Err(error) => {
                let subnet = held.subnet;
                self.board.trouble(Topic::Lease, format!("the lease of {subnet} cannot be renewed: {error}"));
                later
            }
        };
    }

    /// When to extend the lease, or to write the key again, whichever comes first.
    fn next_renewal(&self, held: &Held) -> Moment {
        let now = self.env.now();
        let keep_alive = now + self.env.jittered(self.terms.ttl / 3);
        let write = held.write_at.max(now + Duration::from_secs(1));
        if held.lease_id.is_some() { keep_alive.min(write) } else { keep_alive }
    }

    /// Extends the lease; tells whether it is still ours.
    async fn renew(&mut self, held: &mut Held) -> Result<bool, StoreError> {
        let Some(id) = held.lease_id else { return Ok(true) };
        if self.store.keep_alive(id).await?.is_none() {
            tracing::warn!(subnet = %held.subnet, "our lease has expired or was revoked");
            return Ok(false);
        }
        if self.env.now() < held.write_at {
            return Ok(true);
        }
        let guard = Guard::Unchanged(held.modified);
        match self.store.write(SubnetKey::v4(held.subnet), &held.attrs, guard, Life::Keep(id)).await? {
            Written::Done(record) => {
                held.write_at = self.env.now() + self.terms.until_write();
                held.modified = record.content.map_or(held.modified, |lease| lease.modified);
                Ok(true)
            }
            Written::Lost(_) => Ok(false),
        }
    }

    /// Gets the lease of the subnet in use back, or brings it in line with our address.
    async fn reclaim(&mut self, held: &mut Held) -> Result<bool, StoreError> {
        match self.attempt().await? {
            Attempt::Held(new) => {
                self.settle(&new);
                *held = new;
                Ok(true)
            }
            Attempt::Again => Ok(false),
            Attempt::Wait(reason) => {
                self.board.trouble(Topic::Lease, reason);
                Ok(false)
            }
        }
    }

    async fn attempt(&mut self) -> Result<Attempt, StoreError> {
        let snapshot = self.store.list().await?;
        if let Some(reason) = self.unclear_backend(&snapshot) {
            return Ok(Attempt::Wait(reason));
        }
        let claim = self.me.claim(&snapshot.records, &self.on_host, &self.overlay, self.env.random());
        let mac = self.me.mac(&claim).unwrap_or_else(|| VtepMac::from_random(self.env.random_bytes()));
        match claim {
            Claim::Keep(lease) => self.keep(lease, mac).await,
            Claim::Adopt(lease) => {
                tracing::warn!(
                    lease = %lease.subnet, "taking over the lease with our public IP {}: nothing else proves it ours",
                    lease.attrs.public_ip
                );
                let life = lease.lease_id.map_or(Life::Forever, |_| Life::Grant(self.terms.ttl));
                self.write(lease.subnet.v4, mac, Guard::Unchanged(lease.modified), life).await
            }
            Claim::Discard(lease) => {
                tracing::warn!(lease = %lease.subnet, "deleting our lease: its subnet does not fit the network config");
                self.store.remove(lease.subnet, lease.modified).await?;
                Ok(Attempt::Again)
            }
            Claim::Mend(subnet, modified) => {
                tracing::warn!(%subnet, "writing our lease again: what stands in its place is no lease");
                self.write(subnet, mac, Guard::Unchanged(modified), Life::Grant(self.terms.ttl)).await
            }
            Claim::Create(subnet) => self.write(subnet, mac, Guard::Absent, Life::Grant(self.terms.ttl)).await,
            Claim::Taken(record) => Ok(Attempt::Wait(taken(&record))),
            Claim::OutOfSubnets => {
                let (min, max) = (self.overlay.subnets.min(), self.overlay.subnets.max());
                let len = self.overlay.subnets.subnet_len();
                Ok(Attempt::Wait(format!("out of subnets: every /{len} from {min} to {max} is taken")))
            }
        }
    }

    /// Without a Backend in the config it is VXLAN, unless the hosts that are there think otherwise. Once containers
    /// use a subnet the question is settled.
    fn unclear_backend(&self, snapshot: &Snapshot) -> Option<String> {
        if self.backend_is_explicit || self.me.in_use.is_some() {
            return None;
        }
        let leases = snapshot.records.iter().filter_map(|record| record.content.as_ref().ok());
        let kinds = leases.filter(|lease| lease.lease_id.is_some()).map(|lease| lease.attrs.backend_type.as_str());
        let other =
            kinds.filter(|kind| !kind.is_empty()).find(|kind| !kind.eq_ignore_ascii_case(self.backend.kind()))?;
        let ours = self.backend.kind();
        Some(format!(
            "the network config names no Backend, which means {ours}, but there are leases of type {other:?}: set Backend \
             explicitly, such as \"Backend\":{{\"Type\":\"{ours}\"}}"
        ))
    }

    /// A lease that is ours beyond doubt: kept as it is, or brought up to date on the same etcd lease.
    async fn keep(&mut self, lease: Lease, mac: VtepMac) -> Result<Attempt, StoreError> {
        let life = match lease.lease_id {
            None => Life::Forever,
            Some(id) => match self.store.keep_alive(id).await? {
                None => return Ok(Attempt::Again),
                Some(ttl) if ttl != self.terms.ttl => Life::Grant(self.terms.ttl),
                Some(_) => Life::Keep(id),
            },
        };
        let attrs = self.backend.own_attrs(self.address.public_ip, mac);
        if lease.attrs == attrs && !matches!(life, Life::Grant(_)) {
            // When it was last written is not known.
            let write_in = self.terms.until_write().min(self.terms.ttl / 3);
            return Ok(Attempt::Held(self.held(lease, mac, write_in)));
        }
        self.write(lease.subnet.v4, mac, Guard::Unchanged(lease.modified), life).await
    }

    async fn write(&mut self, subnet: Ipv4Net, mac: VtepMac, guard: Guard, life: Life) -> Result<Attempt, StoreError> {
        // Before the write, so that a crash right after it does not make us strangers to our own lease.
        let lease_id = match life {
            Life::Keep(id) => Some(id),
            Life::Grant(_) | Life::Forever => None,
        };
        self.remember(subnet, mac, lease_id);
        let attrs = self.backend.own_attrs(self.address.public_ip, mac);
        match self.store.write(SubnetKey::v4(subnet), &attrs, guard, life).await? {
            Written::Done(Record { content: Ok(lease), .. }) => {
                Ok(Attempt::Held(self.held(lease, mac, self.terms.until_write())))
            }
            Written::Done(_) | Written::Lost(_) => Ok(Attempt::Again),
        }
    }

    /// `write_in` says when the key is to be written again.
    fn held(&self, lease: Lease, mac: VtepMac, write_in: Duration) -> Held {
        Held {
            subnet: lease.subnet.v4,
            mac,
            lease_id: lease.lease_id,
            modified: lease.modified,
            attrs: lease.attrs,
            write_at: self.env.now() + write_in,
        }
    }

    /// From now on this is our subnet.
    fn settle(&mut self, held: &Held) {
        self.remember(held.subnet, held.mac, held.lease_id);
        if self.me.in_use != Some(held.subnet) {
            tracing::info!(subnet = %held.subnet, public_ip = %self.address.public_ip, mac = %held.mac, "lease held");
        }
        self.me.in_use = Some(held.subnet);
        self.board.update(|status| (status.subnet, status.lease) = (Some(held.subnet), held.lease_id));
        self.board.over(Topic::Lease);
    }

    fn remember(&mut self, subnet: Ipv4Net, mac: VtepMac, lease_id: Option<LeaseId>) {
        self.me.remembered_mac = Some(mac);
        self.me.remembered_lease = lease_id;
        self.me.remembered_subnet = Some(subnet);
        let Address { public_ip, nic_mac } = self.address;
        self.memory.save(&Remembered { mac, lease_id, subnet, public_ip, nic_mac });
    }
}

/// Whether a sighting of our key shows anything else than what we hold. Revisions say nothing here: they are lower
/// than ours after the store was wiped or restored. To look again at an old sighting costs a list and no write.
fn is_news(held: &Held, sighting: &Sighting) -> bool {
    match &sighting.record {
        Some(Record { content: Ok(lease), .. }) => lease.attrs != held.attrs || lease.lease_id != held.lease_id,
        _ => true,
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

/// Sleeps until `end` on a clock that counts while the host is suspended.
async fn sleep_until(env: &Env, end: Moment) {
    loop {
        let left = end.saturating_sub(env.now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(5))).await;
    }
}
