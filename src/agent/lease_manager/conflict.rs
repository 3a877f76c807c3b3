//! Other hosts that claim our key: one with our public IP, which adopts our lease as flannel does, or a copy of this
//! host, which takes our lease for its own.
//!
//! Who starts on a lease that may be another's writes it and waits for a moment. Who lives on it sees the write and
//! answers with one of its own, and the newcomer yields. Nobody goes on answering: two that are both sure of themselves
//! would overwrite each other for ever.

use super::{Attempt, KeyObservation, LeaseManager, OwnLease};
use crate::agent::status::Condition;
use crate::model::identity::Decision;
use crate::model::lease::{Lease, Record, Revision};
use crate::model::lease_set::Moment;
use crate::model::mac::VtepMac;
use crate::model::subnet::SubnetKey;
use crate::store::{Expiry, Leases, Precondition, StoreError};
use ipnet::Ipv4Net;
use std::time::Duration;

/// How long the host that lives on a lease has to answer a newcomer's write. It is told by its watch.
const PROBE_WINDOW: Duration = Duration::from_secs(2);

/// So many copies of this host that boot within a TTL are answered. Another that is as sure of itself as we are cannot be
/// told from them, and would answer back for ever.
const MAX_DEFENCES: u32 = 5;

/// For how long a quarrel is spoken of after the last that was heard of it. A rival that goes on under a lease of its
/// own is complained of for as long as that lives, but one that does not yield (flannel's own) has none.
const CONFLICT_REPORTED_FOR: Duration = Duration::from_secs(600);

/// A quarrel over our key.
#[derive(Debug, Default)]
pub struct OwnershipProbe {
    /// While nothing more is heard of the other host until then, it counts as over.
    pub(super) conflict_ends_at: Option<Moment>,
    /// How often copies of this host were answered of late.
    defences: u32,
    /// When that no longer counts.
    defences_count_until: Moment,
    /// The lease with our public IP that we have tried to take over, and when it had last been written before that.
    wanted: Option<(SubnetKey, Revision)>,
    /// The lease that we have written to see whether somebody answers, and when. Survives a restart.
    probed: Option<(SubnetKey, Revision)>,
}

impl OwnershipProbe {
    /// With what an earlier run has written on trial, if it ended before the trial did.
    pub fn new(probed: Option<(SubnetKey, Revision)>) -> Self {
        OwnershipProbe { probed, ..OwnershipProbe::default() }
    }

    /// When our lease was written on trial, if the trial is not over.
    pub(super) fn probe_of(&self, subnet: Ipv4Net) -> Option<Revision> {
        self.probed.filter(|(key, _)| *key == SubnetKey::v4(subnet)).map(|(_, at)| at)
    }

    /// We are about to write again: if the answer to that is lost, the later write may be our own.
    pub(super) fn forget_probe(&mut self) {
        self.probed = None;
    }

    /// Whether copies have had all the answers that they get for now.
    fn is_silent(&self, now: Moment) -> bool {
        self.defences >= MAX_DEFENCES && now < self.defences_count_until
    }

    fn record_defence(&mut self, now: Moment, until: Moment) {
        self.defences = if now < self.defences_count_until { self.defences + 1 } else { 1 };
        self.defences_count_until = until;
    }

    /// There is no lease left of which it is not known whose it is.
    pub(super) fn end_probe(&mut self) {
        (self.wanted, self.probed) = (None, None);
    }
}

/// Whether somebody has written this lease after that.
fn is_later(lease: &Lease, then: Option<(SubnetKey, Revision)>) -> bool {
    then.is_some_and(|(subnet, at)| subnet == lease.subnet && lease.modified > at)
}

impl<S: Leases> LeaseManager<S> {
    /// One attempt, with a trial if the lease may be another host's.
    pub(super) async fn attempt_with_probe(&mut self) -> Result<Attempt, StoreError> {
        match self.attempt(None).await? {
            Attempt::Probing(held) => Ok(self.probe(held).await),
            other => Ok(other),
        }
    }

    /// Takes over a lease with our public IP that nothing else proves ours. One that somebody has written since we first
    /// tried to is lived on, whatever became of the attempt: what we write ourselves is ours beyond doubt.
    pub(super) async fn adopt(&mut self, lease: Lease, mac: VtepMac) -> Result<Attempt, StoreError> {
        let wanted = self.probe.wanted.replace((lease.subnet, lease.modified));
        let is_lived_on = is_later(&lease, wanted) || self.is_defended(&lease);
        if is_lived_on && lease.attrs.vtep_mac().is_some() {
            return Ok(self.back_off(&lease));
        }
        tracing::warn!(
            lease = %lease.subnet, "taking over the lease with our public IP {}: nothing else proves it ours",
            lease.attrs.public_ip
        );
        let expiry = lease.lease_id.map_or(Expiry::Forever, |_| Expiry::Grant(self.times.ttl));
        let adopted = self.write(lease.subnet.v4, mac, Precondition::Unchanged(lease.modified), expiry).await?;
        Ok(self.start_probe(adopted))
    }

    /// Whether somebody has written this lease since we have, on trial.
    pub(super) fn is_defended(&self, lease: &Lease) -> bool {
        is_later(lease, self.probe.probed)
    }

    /// What was written may be another host's. Remembered at once: an answer that comes while we are restarted is the
    /// only one.
    pub(super) fn start_probe(&mut self, written: Attempt) -> Attempt {
        let Attempt::Owned(held) = written else { return written };
        self.probe.probed = Some((SubnetKey::v4(held.subnet), held.modified));
        self.remember(held.subnet, held.mac, held.lease_id);
        Attempt::Probing(held)
    }

    /// Waits for another host to show that the lease is its own. Whoever does so does it once, so an etcd that fails
    /// meanwhile is waited for: to begin anew would be to overwrite the answer.
    async fn probe(&mut self, held: OwnLease) -> Attempt {
        let name = SubnetKey::v4(held.subnet).to_string();
        let snapshot = loop {
            tokio::time::sleep(PROBE_WINDOW).await;
            match self.store.list().await {
                Ok(snapshot) => break snapshot,
                Err(error) => {
                    self.status.raise_starting(Condition::Lease, format!("no lease yet: {error}"), PROBE_WINDOW)
                }
            }
        };
        let content = snapshot.records.iter().find(|record| *record.name == name).map(|record| record.content.clone());
        self.listed = Some(snapshot);
        match content {
            Some(Ok(lease)) if lease.modified == held.modified => Attempt::Owned(held),
            Some(Ok(lease)) => self.back_off(&lease),
            _ => Attempt::Again,
        }
    }

    /// Leaves a lease to the host that lives on it, and remembers that at once: nobody answers twice, not after a
    /// restart either.
    pub(super) fn back_off(&mut self, lease: &Lease) -> Attempt {
        tracing::warn!(
            lease = %lease.subnet, "another host lives on this lease: {}; this one takes a subnet of its own", lease.attrs
        );
        self.identity.back_off(lease);
        self.probe.end_probe();
        let mac = self
            .identity
            .mac(&Decision::OutOfSubnets)
            .unwrap_or_else(|| VtepMac::from_random(self.runtime.random_bytes()));
        self.remember(lease.subnet.v4, mac, None);
        Attempt::Again
    }

    /// Whether our key shows a host that waits for our answer, and not for long: one that has not had it yet.
    pub(super) fn is_newcomer(&self, held: &OwnLease, observation: &KeyObservation) -> bool {
        let Some(Record { content: Ok(lease), .. }) = &observation.record else { return false };
        let Some(mac) = lease.attrs.vtep_mac().filter(|_| lease.attrs.public_ip == self.address.public_ip) else {
            return false;
        };
        match mac == held.mac {
            true => !held.unsure && lease.modified > held.modified && !self.probe.is_silent(self.runtime.now()),
            false => !self.identity.rivals.contains(&mac),
        }
    }

    /// Takes our lease back from a host with our public IP that has adopted it; what was `reserved` for us is so again.
    pub(super) async fn reclaim_lease(
        &mut self,
        lease: Lease,
        mac: VtepMac,
        reserved: bool,
    ) -> Result<Attempt, StoreError> {
        self.report_conflict(format!(
            "another host has our public IP {} and took our lease {} ({}): it was taken back; give one of the two \
             another address or --public-ip",
            self.address.public_ip, lease.subnet, lease.attrs
        ));
        let expiry = match self.identity.remembered_lease {
            _ if reserved || lease.lease_id.is_none() => Expiry::Forever,
            Some(id) if self.extend(id).await?.is_some() => Expiry::Keep(id),
            _ => Expiry::Grant(self.times.ttl),
        };
        let written = self.write(lease.subnet.v4, mac, Precondition::Unchanged(lease.modified), expiry).await?;
        if matches!(written, Attempt::Owned(_)) {
            // Only who has been answered has had the answer.
            self.identity.meet(&lease);
        }
        Ok(written)
    }

    /// A host that takes itself for us has written our lease. A few times we answer; if it goes on, this is why we do
    /// not.
    pub(super) fn defend_against_copy(&mut self, lease: &Lease) -> Option<String> {
        let text = format!(
            "another host takes itself for this one and writes its lease {} ({}): is it a copy of this host? Delete the \
             files in --state-dir of one of the two, delete its VXLAN device and restart its flanneld",
            lease.subnet, lease.attrs
        );
        if self.probe.is_silent(self.runtime.now()) {
            return Some(text);
        }
        self.report_conflict(text);
        None
    }

    /// A copy has been answered.
    pub(super) fn record_defence(&mut self) {
        let now = self.runtime.now();
        self.probe.record_defence(now, now + self.times.ttl);
    }

    fn report_conflict(&mut self, text: String) {
        self.probe.conflict_ends_at = Some(self.runtime.now() + CONFLICT_REPORTED_FOR.min(self.times.ttl));
        self.status.raise(Condition::Rival, text);
    }

    /// Ends a quarrel of which nothing more was heard.
    pub(super) fn clear_old_conflict(&mut self) {
        if self.probe.conflict_ends_at.is_some_and(|over| self.runtime.now() >= over) {
            self.probe.conflict_ends_at = None;
            self.status.clear(Condition::Rival);
        }
    }
}
