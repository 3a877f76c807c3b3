//! Looking after our lease while the daemon runs. It is kept alive on one etcd lease by KeepAlive; now and then the key
//! is written again as it is, since a Go flanneld that lost sight of us learns of us only from a write.

use super::{Address, Attempt, Held, Horizon, Keeper, Sighting};
use crate::agent::env::{Backoff, Env};
use crate::agent::status::Topic;
use crate::model::lease::Record;
use crate::model::lease_set::Moment;
use crate::model::subnet::SubnetKey;
use crate::store::{Guard, Life, Store, StoreError, Written};
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

impl<S: Store> Keeper<S> {
    /// Keeps the lease for ever; gets it back when it was lost. `sightings` are what the watch sees of our key,
    /// `addresses` what we are to be known by, `horizons` what is to be remembered of the store.
    pub async fn maintain(
        mut self,
        mut held: Held,
        mut sightings: watch::Receiver<Option<Sighting>>,
        mut addresses: watch::Receiver<Address>,
        mut horizons: watch::Receiver<Horizon>,
    ) -> Infallible {
        let mut care = Care {
            remember_at: None,
            remembered_at: None,
            amiss: false,
            earliest: Moment::ZERO,
            due: self.next_renewal(&held),
            backoff: Backoff::new(Duration::from_secs(1), LONGEST_PAUSE.min(self.terms.ttl / 6)),
        };
        loop {
            tokio::select! {
                biased;
                () = sleep_until(&self.env, care.due) => self.attend(&mut held, &mut care).await,
                () = sleep_until(&self.env, care.remember_at.unwrap_or(Moment::MAX)), if care.remember_at.is_some() => {
                    (care.remember_at, care.remembered_at) = (None, Some(self.env.now()));
                    self.remember(held.subnet, held.mac, held.lease_id);
                }
                Ok(()) = horizons.changed() => {
                    let old = std::mem::replace(&mut self.horizon, *horizons.borrow_and_update());
                    let at = match (old.hold_until, self.horizon.hold_until) {
                        (before, now) if before == now => self.env.now() + REMEMBER_EVERY,
                        (None, _) => Moment::ZERO,
                        _ => care.remembered_at.map_or(Moment::ZERO, |last| last + REMEMBER_HOLDS_EVERY),
                    };
                    care.remember_at = Some(care.remember_at.map_or(at, |known| known.min(at)));
                }
                Ok(()) = sightings.changed() => {
                    let sighting = sightings.borrow_and_update().clone();
                    match sighting {
                        Some(sighting) if self.is_newcomer(&held, &sighting) => (care.amiss, care.due) = (true, Moment::ZERO),
                        Some(sighting) if is_news(&held, &sighting) => care.doubt(),
                        _ => {}
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
        self.let_quarrel_rest();
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
        let renewal = if held.lease_id.is_some() { keep_alive.min(write) } else { keep_alive };
        renewal.min(self.contest.over_at.unwrap_or(Moment::MAX))
    }

    /// Extends the lease; tells whether it is still ours.
    async fn renew(&mut self, held: &mut Held) -> Result<bool, StoreError> {
        let Some(id) = held.lease_id else { return Ok(true) };
        if self.extend(id).await?.is_none() {
            tracing::warn!(subnet = %held.subnet, "our lease has expired or was revoked");
            return Ok(false);
        }
        if self.env.now() < held.write_at {
            return Ok(true);
        }
        let (guard, was_unsure) = (Guard::Unchanged(held.modified), std::mem::replace(&mut held.unsure, true));
        let written = self.store.write(SubnetKey::v4(held.subnet), &held.attrs, guard, Life::Keep(id)).await?;
        held.unsure = was_unsure;
        match written {
            Written::Done(record) => {
                held.unsure = false;
                held.write_at = self.env.now() + self.terms.until_write();
                held.modified = record.content.map_or(held.modified, |lease| lease.modified);
                Ok(true)
            }
            Written::Lost(_) => Ok(false),
        }
    }

    /// Gets the lease of the subnet in use back, or brings it in line with our address.
    async fn reclaim(&mut self, held: &mut Held) -> Result<bool, StoreError> {
        let before = held.clone();
        held.unsure = true;
        let attempt = self.attempt(Some(&before)).await?;
        held.unsure = before.unsure;
        match attempt {
            Attempt::Held(new) | Attempt::OnTrial(new) => {
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
}

/// Whether a sighting of our key shows anything else than what we hold, or that somebody else wrote the same. With a
/// lower revision than ours the store may have been restored, and what it has now is what others will change. To look
/// again at an old sighting costs a list and no write.
fn is_news(held: &Held, sighting: &Sighting) -> bool {
    match &sighting.record {
        Some(Record { content: Ok(lease), .. }) => {
            let other = lease.modified != held.modified && !held.unsure;
            lease.attrs != held.attrs || lease.lease_id != held.lease_id || other
        }
        _ => true,
    }
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
