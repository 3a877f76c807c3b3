//! Looking after our lease while the daemon runs. It is kept alive on one etcd lease by KeepAlive; now and then the key
//! is written again as it is, since a Go flanneld that lost sight of us learns of us only from a write.

use super::{Address, Attempt, KeyObservation, LeaseManager, OwnLease, StoreProgress};
use crate::agent::runtime::{Backoff, Runtime};
use crate::agent::status::Condition;
use crate::model::lease::Record;
use crate::model::lease_set::Moment;
use crate::model::subnet::SubnetKey;
use crate::store::{Expiry, Leases, Precondition, StoreError, WriteOutcome};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::watch;

/// The longest pause between attempts to get the lease back, or a sixth of its time to live if that is less: an outage
/// that ends before the lease does is not to end it.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How often the newest revision is written to the state file at most.
const REMEMBER_EVERY: Duration = Duration::from_secs(60);

/// The same for the end of the holds: the first one at once, but peers may go one by one.
const REMEMBER_HOLDS_EVERY: Duration = Duration::from_secs(10);

/// How the lease is being looked after.
struct Care {
    /// When what has been seen of the store is to be remembered.
    remember_at: Option<Moment>,
    /// When it was remembered last.
    remembered_at: Option<Moment>,
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

impl<S: Leases> LeaseManager<S> {
    /// Keeps the lease for ever; gets it back when it was lost. `observations` are what the watch sees of our key,
    /// `addresses` what we are to be known by, `store_progress_updates` what is to be remembered of the store.
    pub async fn maintain(
        mut self,
        mut held: OwnLease,
        mut observations: watch::Receiver<Option<KeyObservation>>,
        mut addresses: watch::Receiver<Address>,
        mut store_progress_updates: watch::Receiver<StoreProgress>,
    ) -> Infallible {
        let mut care = Care {
            remember_at: None,
            remembered_at: None,
            amiss: false,
            earliest: Moment::ZERO,
            due: self.next_renewal(&held),
            backoff: Backoff::new(Duration::from_secs(1), LONGEST_PAUSE.min(self.times.ttl / 6)),
        };
        loop {
            tokio::select! {
                biased;
                () = sleep_until(&self.runtime, care.due) => self.attend(&mut held, &mut care).await,
                () = sleep_until(&self.runtime, care.remember_at.unwrap_or(Moment::MAX)), if care.remember_at.is_some() => {
                    (care.remember_at, care.remembered_at) = (None, Some(self.runtime.now()));
                    self.remember(held.subnet, held.mac, held.lease_id);
                }
                Ok(()) = store_progress_updates.changed() => {
                    let old = std::mem::replace(&mut self.store_progress, *store_progress_updates.borrow_and_update());
                    let at = match (old.hold_until, self.store_progress.hold_until) {
                        (before, now) if before == now => self.runtime.now() + REMEMBER_EVERY,
                        (None, _) => Moment::ZERO,
                        _ => care.remembered_at.map_or(Moment::ZERO, |last| last + REMEMBER_HOLDS_EVERY),
                    };
                    care.remember_at = Some(care.remember_at.map_or(at, |known| known.min(at)));
                }
                Ok(()) = observations.changed() => {
                    let observation = observations.borrow_and_update().clone();
                    match observation {
                        Some(observation) if self.is_newcomer(&held, &observation) => (care.amiss, care.due) = (true, Moment::ZERO),
                        Some(observation) if is_news(&held, &observation) => care.doubt(),
                        _ => {}
                    }
                }
                Ok(()) = addresses.changed() => {
                    self.address = *addresses.borrow_and_update();
                    self.identity.public_ip = Some(self.address.public_ip);
                    self.store.redial();
                    care.doubt();
                }
            }
        }
    }

    /// Renews the lease, or sets right what is amiss.
    async fn attend(&mut self, held: &mut OwnLease, care: &mut Care) {
        self.clear_old_conflict();
        let renewed = if care.amiss { Ok(false) } else { self.renew(held).await };
        care.amiss = renewed == Ok(false);
        let kept = if care.amiss { self.reclaim(held).await } else { renewed };
        let pause = care.backoff.pause(&self.runtime);
        let later = self.runtime.now() + pause;
        care.due = match kept {
            Ok(true) => {
                self.status.clear(Condition::Lease);
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
                self.status.raise(Condition::Lease, format!("the lease of {subnet} cannot be renewed: {error}"));
                later
            }
        };
    }

    /// When to extend the lease, or to write the key again, whichever comes first.
    fn next_renewal(&self, held: &OwnLease) -> Moment {
        let now = self.runtime.now();
        let keep_alive = now + self.runtime.jittered(self.times.ttl / 3);
        let write = held.write_at.max(now + Duration::from_secs(1));
        let renewal = if held.lease_id.is_some() { keep_alive.min(write) } else { keep_alive };
        renewal.min(self.probe.conflict_ends_at.unwrap_or(Moment::MAX))
    }

    /// Extends the lease; tells whether it is still ours.
    async fn renew(&mut self, held: &mut OwnLease) -> Result<bool, StoreError> {
        let Some(id) = held.lease_id else { return Ok(true) };
        if self.extend(id).await?.is_none() {
            tracing::warn!(subnet = %held.subnet, "our lease has expired or was revoked");
            return Ok(false);
        }
        if self.runtime.now() < held.write_at {
            return Ok(true);
        }
        let (precondition, was_unsure) =
            (Precondition::Unchanged(held.modified), std::mem::replace(&mut held.unsure, true));
        let written = self.store.write(SubnetKey::v4(held.subnet), &held.attrs, precondition, Expiry::Keep(id)).await?;
        held.unsure = was_unsure;
        match written {
            WriteOutcome::Committed(record) => {
                held.unsure = false;
                held.write_at = self.runtime.now() + self.times.until_write();
                held.modified = record.content.map_or(held.modified, |lease| lease.modified);
                Ok(true)
            }
            WriteOutcome::Conflict(_) => Ok(false),
        }
    }

    /// Gets the lease of the subnet in use back, or brings it in line with our address.
    async fn reclaim(&mut self, held: &mut OwnLease) -> Result<bool, StoreError> {
        let before = held.clone();
        held.unsure = true;
        let attempt = self.attempt(Some(&before)).await?;
        held.unsure = before.unsure;
        match attempt {
            Attempt::Owned(new) | Attempt::Probing(new) => {
                self.settle(&new);
                *held = new;
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

/// Whether an observation of our key shows anything else than what we hold, or that somebody else wrote the same. With a
/// lower revision than ours the store may have been restored, and what it has now is what others will change. To look
/// again at an old observation costs a list and no write.
fn is_news(held: &OwnLease, observation: &KeyObservation) -> bool {
    match &observation.record {
        Some(Record { content: Ok(lease), .. }) => {
            let other = lease.modified != held.modified && !held.unsure;
            lease.attrs != held.attrs || lease.lease_id != held.lease_id || other
        }
        _ => true,
    }
}

/// Sleeps until `end` on a clock that counts while the host is suspended.
async fn sleep_until(runtime: &Runtime, end: Moment) {
    loop {
        let left = end.saturating_sub(runtime.now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(5))).await;
    }
}
