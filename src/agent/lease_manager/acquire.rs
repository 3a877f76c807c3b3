//! Finds our lease or creates one. Which lease is ours, and which subnet is free, is decided in
//! [`crate::model::identity`].

use super::{Acquired, Attempt, LeaseManager, OwnLease};
use crate::agent::runtime::Backoff;
use crate::agent::status::Condition;
use crate::model::foreign::{QUOTED, shown};
use crate::model::identity::Decision;
use crate::model::lease::Record;
use crate::model::lease_set::Moment;
use crate::model::mac::VtepMac;
use crate::store::{Expiry, Leases, Precondition, Snapshot, StoreError};
use std::time::Duration;

/// Only after more lost races in a row than this are they reported.
const LOST_RACES: u32 = 10;

impl<S: Leases> LeaseManager<S> {
    /// Finds our lease or creates one, and waits for as long as that takes. `None` if the network config has changed
    /// meanwhile.
    pub(in crate::agent) async fn acquire(&mut self) -> Option<Acquired> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
        let mut lost = 0;
        loop {
            let reason = match self.attempt_with_probe().await {
                Ok(Attempt::Owned(own) | Attempt::Probing(own)) => return Some(self.acquired(own)),
                Ok(Attempt::Again) => {
                    lost += 1;
                    (lost > LOST_RACES).then(|| "no lease yet: other hosts keep changing the leases in etcd".to_owned())
                }
                Ok(Attempt::Wait(reason)) => Some(reason),
                Err(error) => Some(format!("no lease yet: {error}")),
            };
            let pause = backoff.pause(&self.runtime);
            if let Some(reason) = reason {
                self.status.raise(Condition::Lease, reason);
            }
            tokio::time::sleep(pause).await;
            if self.network.has_changed(&*self.store).await {
                return None;
            }
        }
    }

    fn acquired(&mut self, lease: OwnLease) -> Acquired {
        self.settle(&lease);
        let left_behind = std::mem::take(&mut self.left_behind);
        let held_peers = self.hold_until().map(|until| (left_behind, until));
        Acquired { lease, listed: self.listed.take(), held_peers }
    }

    /// Until when the peers that an earlier run left in the kernel are held although they are not in the store.
    fn hold_until(&self) -> Option<Moment> {
        let now = self.runtime.now();
        let longest = now + self.settings.peer_hold;
        match self.set_back {
            Some(true) => Some(longest),
            _ => self.store_progress.hold_until.filter(|until| *until > now).map(|until| until.min(longest)),
        }
    }

    /// One attempt to own a lease. `before` is our lease as this process last had it.
    pub(super) async fn attempt(&mut self, before: Option<&OwnLease>) -> Result<Attempt, StoreError> {
        let snapshot = self.store.list().await?;
        if let Some(reason) = self.unclear_backend(&snapshot) {
            return Ok(Attempt::Wait(reason));
        }
        if self.set_back.is_none() {
            self.set_back = Some(self.is_set_back(&snapshot));
        }
        let decision = self.decide(snapshot);
        self.act(decision, before).await
    }

    /// Decides which lease to take. The peers that an earlier run left in the kernel count as taken while they are held.
    fn decide(&mut self, mut snapshot: Snapshot) -> Decision {
        let listed = snapshot.records.len();
        if self.identity.in_use.is_none() && self.hold_until().is_some() {
            snapshot.records.extend(self.left_behind.iter().map(Record::taken));
        }
        let (overlay, random) = (&self.network.overlay, self.runtime.random());
        let decision = self.identity.decide(&snapshot.records, &self.surroundings, overlay, random);
        if self.identity.in_use.is_none() {
            snapshot.records.truncate(listed);
            self.listed = Some(snapshot);
        }
        decision
    }

    async fn act(&mut self, decision: Decision, before: Option<&OwnLease>) -> Result<Attempt, StoreError> {
        let mac = self.identity.mac(&decision).unwrap_or_else(|| VtepMac::from_random(self.runtime.random_bytes()));
        let reserved = before.is_some_and(|own| own.lease_id.is_none());
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
                tracing::warn!(%subnet, "writing our lease again: the value at its key is not a lease");
                let expiry = if reserved { Expiry::Forever } else { Expiry::Grant(self.ttl()) };
                self.write(subnet, mac, Precondition::Unchanged(modified), expiry).await
            }
            Decision::Create(subnet) => self.write(subnet, mac, Precondition::Absent, Expiry::Grant(self.ttl())).await,
            Decision::Taken(record) => Ok(Attempt::Wait(taken(&record))),
            Decision::OutOfSubnets => Ok(Attempt::Wait(self.out_of_subnets())),
            Decision::Unusable(subnet, what) => Ok(Attempt::Wait(format!(
                "no subnet to use: all are taken or hold what this host needs ({subnet} holds {what}): set Network, or \
                 SubnetMin and SubnetMax, in the network config to addresses that nothing else uses"
            ))),
        }
    }

    /// Without a Backend in the config it is VXLAN, unless the leases of other hosts are of another type. Once
    /// containers use a subnet the question is settled.
    fn unclear_backend(&self, snapshot: &Snapshot) -> Option<String> {
        if self.network.backend_is_explicit || self.identity.in_use.is_some() {
            return None;
        }
        let ours = self.network.backend.kind();
        let leases = snapshot.records.iter().filter_map(|record| record.content.as_ref().ok());
        let kinds = leases.filter(|lease| lease.lease_id.is_some()).map(|lease| &*lease.attrs.backend_type);
        let other = kinds.filter(|kind| !kind.is_empty()).find(|kind| !kind.eq_ignore_ascii_case(ours))?;
        Some(format!(
            "the network config names no Backend, which means {ours}, but there are leases of type \"{}\": set Backend \
             explicitly, such as \"Backend\":{{\"Type\":\"{ours}\"}}",
            shown(other, QUOTED)
        ))
    }

    /// Whether the store is older than an earlier run saw it, or has lost our lease. Then leases of peers may be missing
    /// although the peers are there.
    fn is_set_back(&self, snapshot: &Snapshot) -> bool {
        let mut leases = snapshot.records.iter().filter_map(|record| record.content.as_ref().ok());
        let should_be_there = self.identity.remembered_lease.is_some() && !self.settings.release_on_exit;
        snapshot.revision < self.store_progress.revision
            || (should_be_there && !leases.any(|lease| self.identity.surely_owns(lease)))
    }

    fn out_of_subnets(&self) -> String {
        let subnets = &self.network.overlay.subnets;
        let (len, min, max) = (subnets.subnet_len(), subnets.min(), subnets.max());
        format!("out of subnets: every /{len} from {min} to {max} is taken")
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
