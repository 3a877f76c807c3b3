//! Keeps our lease while the daemon runs. KeepAlive keeps the key alive on one etcd lease. From time to time the key is
//! also written again with the same value, because a Go flanneld that lost our lease sees it again only when it is
//! written.

use super::{Attempt, KeyObservation, LeaseManager, OwnLease};
use crate::agent::runtime::{Backoff, Runtime};
use crate::agent::status::Condition;
use crate::agent::wiring::LeaseEnds;
use crate::model::lease::Record;
use crate::model::lease_set::Moment;
use crate::model::state_file::StoreProgress;
use crate::model::subnet::SubnetKey;
use crate::store::{Expiry, Leases, Precondition, StoreError, WriteOutcome};
use std::convert::Infallible;
use std::time::Duration;

/// The longest pause between attempts to get the lease back, or a sixth of its time to live if that is less. So an outage
/// that is shorter than the TTL does not cost the lease.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The newest revision is written to the state file at most this often.
const REMEMBER_EVERY: Duration = Duration::from_secs(60);

/// The end of the holds is written to the state file at most this often, after the first one, which is written at once.
const REMEMBER_HOLDS_EVERY: Duration = Duration::from_secs(10);

/// The next tasks for the lease, with their times.
struct Upkeep {
    /// When the state file is written with the store's progress.
    remember_at: Option<Moment>,
    /// When the state file was last written for that reason.
    remembered_at: Option<Moment>,
    /// Whether the key differs, or may differ, from what it should be.
    in_doubt: bool,
    /// An observation of the key causes no attempt before this moment, so that two hosts which claim one key do not race.
    earliest: Moment,
    /// When the next attempt is due.
    due: Moment,
    backoff: Backoff,
}

impl Upkeep {
    fn new(due: Moment, longest_pause: Duration) -> Self {
        Upkeep {
            remember_at: None,
            remembered_at: None,
            in_doubt: false,
            earliest: Moment::ZERO,
            due,
            backoff: Backoff::new(Duration::from_secs(1), longest_pause),
        }
    }

    /// The key may differ from what it should be: it is checked as soon as is allowed.
    fn doubt(&mut self) {
        (self.in_doubt, self.due) = (true, self.due.min(self.earliest));
    }

    /// Another host is probing our key: it is defended at once.
    fn defend(&mut self) {
        (self.in_doubt, self.due) = (true, Moment::ZERO);
    }

    /// The store's progress has changed: it is written to the state file in a while, or at once if a hold has begun.
    fn progress(&mut self, before: StoreProgress, after: StoreProgress, now: Moment) {
        let at = match (before.hold_until, after.hold_until) {
            (before, after) if before == after => now + REMEMBER_EVERY,
            (None, _) => Moment::ZERO,
            _ => self.remembered_at.map_or(Moment::ZERO, |last| last + REMEMBER_HOLDS_EVERY),
        };
        self.remember_at = Some(self.remember_at.map_or(at, |known| known.min(at)));
    }
}

impl<S: Leases> LeaseManager<S> {
    /// Keeps the lease forever, and gets it back when it was lost.
    pub(in crate::agent) async fn maintain(mut self, mut own: OwnLease, mut ends: LeaseEnds) -> Infallible {
        let mut upkeep = Upkeep::new(self.next_renewal(&own), LONGEST_PAUSE.min(self.ttl() / 6));
        loop {
            let remember_at = upkeep.remember_at.unwrap_or(Moment::MAX);
            tokio::select! {
                biased;
                () = sleep_until(&self.runtime, upkeep.due) => self.attend(&mut own, &mut upkeep).await,
                () = sleep_until(&self.runtime, remember_at), if upkeep.remember_at.is_some() => {
                    (upkeep.remember_at, upkeep.remembered_at) = (None, Some(self.runtime.now()));
                    self.remember(own.subnet, own.mac, own.lease_id);
                }
                Ok(()) = ends.store_progress.changed() => {
                    let progress = *ends.store_progress.borrow_and_update();
                    let before = std::mem::replace(&mut self.store_progress, progress);
                    upkeep.progress(before, progress, self.runtime.now());
                }
                Ok(()) = ends.observations.changed() => {
                    let observation = ends.observations.borrow_and_update().clone();
                    match observation {
                        Some(observation) if self.is_newcomer(&own, &observation) => upkeep.defend(),
                        Some(observation) if is_news(&own, &observation) => upkeep.doubt(),
                        _ => {}
                    }
                }
                Ok(()) = ends.addresses.changed() => {
                    self.address = *ends.addresses.borrow_and_update();
                    self.identity.public_ip = Some(self.address.public_ip);
                    self.store.redial();
                    upkeep.doubt();
                }
            }
        }
    }

    /// Renews the lease, or gets it back if it is in doubt.
    async fn attend(&mut self, own: &mut OwnLease, upkeep: &mut Upkeep) {
        self.clear_old_conflict();
        let renewed = if upkeep.in_doubt { Ok(false) } else { self.renew(own).await };
        upkeep.in_doubt = renewed == Ok(false);
        let kept = if upkeep.in_doubt { self.reclaim(own).await } else { renewed };
        let pause = upkeep.backoff.pause(&self.runtime);
        let later = self.runtime.now() + pause;
        upkeep.due = match kept {
            Ok(true) => {
                self.status.clear(Condition::Lease);
                match std::mem::take(&mut upkeep.in_doubt) {
                    true => upkeep.earliest = later,
                    false => upkeep.backoff.reset(),
                }
                self.next_renewal(own)
            }
            Ok(false) => {
                upkeep.earliest = later;
                later
            }
            Err(error) => {
                let subnet = own.subnet;
                self.status.raise(Condition::Lease, format!("the lease of {subnet} cannot be renewed: {error}"));
                later
            }
        };
    }

    /// When to extend the lease, or to write the key again, whichever comes first.
    fn next_renewal(&self, own: &OwnLease) -> Moment {
        let now = self.runtime.now();
        let keep_alive = now + self.runtime.jittered(self.ttl() / 3);
        let write = own.write_at.max(now + Duration::from_secs(1));
        let renewal = if own.lease_id.is_some() { keep_alive.min(write) } else { keep_alive };
        renewal.min(self.probe.conflict_ends_at.unwrap_or(Moment::MAX))
    }

    /// Extends the lease, and writes the key again when that is due. Returns whether the lease is still ours.
    async fn renew(&mut self, own: &mut OwnLease) -> Result<bool, StoreError> {
        let Some(id) = own.lease_id else { return Ok(true) };
        if self.extend(id).await?.is_none() {
            tracing::warn!(subnet = %own.subnet, "our lease has expired or was revoked");
            return Ok(false);
        }
        if self.runtime.now() < own.write_at {
            return Ok(true);
        }
        let (precondition, was_unsure) =
            (Precondition::Unchanged(own.modified), std::mem::replace(&mut own.unsure, true));
        let written = self.store.write(SubnetKey::v4(own.subnet), &own.attrs, precondition, Expiry::Keep(id)).await?;
        own.unsure = was_unsure;
        match written {
            WriteOutcome::Committed(record) => {
                own.unsure = false;
                own.write_at = self.runtime.now() + self.settings.times.until_write();
                own.modified = record.content.map_or(own.modified, |lease| lease.modified);
                Ok(true)
            }
            WriteOutcome::Conflict(_) => Ok(false),
        }
    }

    /// Gets the lease of the subnet in use back, or writes our new address to it. Returns whether the lease is ours.
    async fn reclaim(&mut self, own: &mut OwnLease) -> Result<bool, StoreError> {
        let before = own.clone();
        own.unsure = true;
        let attempt = self.attempt(Some(&before)).await?;
        own.unsure = before.unsure;
        match attempt {
            Attempt::Owned(new) | Attempt::Probing(new) => {
                self.settle(&new);
                *own = new;
                Ok(true)
            }
            Attempt::Again => Ok(false),
            Attempt::Wait(reason) => {
                self.status.raise(Condition::Lease, reason);
                Ok(false)
            }
        }
    }
}

/// Whether an observation shows our key with another value than ours, or written by another host. A lower revision than
/// ours counts as well: the store may have been restored, and later writes of other hosts build on its present state. An
/// observation that is merely old costs one list and no write.
fn is_news(own: &OwnLease, observation: &KeyObservation) -> bool {
    match &observation.record {
        Some(Record { content: Ok(lease), .. }) => {
            let other = lease.modified != own.modified && !own.unsure;
            lease.attrs != own.attrs || lease.lease_id != own.lease_id || other
        }
        _ => true,
    }
}

/// Sleeps until `end`, on a clock that also counts while the host is suspended.
async fn sleep_until(runtime: &Runtime, end: Moment) {
    loop {
        let left = end.saturating_sub(runtime.now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(5))).await;
    }
}
