//! Conflicts over our key, detected in the manner of RFC 5227. Another host may claim it: one with our public IP, which
//! adopts our lease as flannel does, or a copy of this host, which has our state file.
//!
//! A host that starts on a lease which may be another's writes it and waits for [`PROBE_WINDOW`]. The host that uses the
//! lease sees the write and defends the lease by a write of its own. Then the newcomer backs off. Defences are limited:
//! two hosts that are both sure would overwrite each other forever.

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

/// How long the host that uses a lease has to defend it. Its watch shows it the newcomer's write.
const PROBE_WINDOW: Duration = Duration::from_secs(2);

/// How many writes of copies of this host are answered within a TTL. A copy that is as sure as we are looks the same as
/// several that boot one after another, and it would answer each of our answers.
const MAX_DEFENCES: u32 = 5;

/// How long a conflict is reported after its last sign, if the TTL is not shorter. A rival that continues on a lease of
/// its own is reported for as long as that lease lives, but one that does not back off (Go's flanneld) has none.
const CONFLICT_REPORTED_FOR: Duration = Duration::from_secs(600);

/// A conflict over our key.
#[derive(Debug, Default)]
pub(super) struct OwnershipProbe {
    /// When the conflict counts as over, unless there is another sign of it before.
    pub(super) conflict_ends_at: Option<Moment>,
    /// How often our lease was defended against copies of this host lately.
    defences: u32,
    /// When those no longer count.
    defences_count_until: Moment,
    /// The lease with our public IP that we have tried to take over, and when it had last been written before that.
    wanted: Option<(SubnetKey, Revision)>,
    /// The lease that we have written to see whether a host defends it, and when. Survives a restart.
    probed: Option<(SubnetKey, Revision)>,
}

impl OwnershipProbe {
    /// `probed` is the lease that an earlier run was probing when it ended.
    pub(super) fn new(probed: Option<(SubnetKey, Revision)>) -> Self {
        OwnershipProbe { probed, ..OwnershipProbe::default() }
    }

    /// When this lease was written to probe it, if the probe has not ended.
    pub(super) fn probe_of(&self, subnet: Ipv4Net) -> Option<Revision> {
        self.probed.filter(|(key, _)| *key == SubnetKey::v4(subnet)).map(|(_, at)| at)
    }

    /// Forgets the probe before another write: if the answer to that is lost, the later write may be our own.
    pub(super) fn forget_probe(&mut self) {
        self.probed = None;
    }

    /// Whether the defences against copies are used up for now.
    fn is_silent(&self, now: Moment) -> bool {
        self.defences >= MAX_DEFENCES && now < self.defences_count_until
    }

    /// Whether our lease was written again of late, because it was not as we had written it.
    fn has_defended(&self, now: Moment) -> bool {
        self.defences > 0 && now < self.defences_count_until
    }

    fn record_defence(&mut self, now: Moment, until: Moment) {
        self.defences = if now < self.defences_count_until { self.defences + 1 } else { 1 };
        self.defences_count_until = until;
    }

    /// Ends the probe: no lease is left whose owner is unknown.
    pub(super) fn end_probe(&mut self) {
        (self.wanted, self.probed) = (None, None);
    }
}

/// Whether this lease has been written after that.
fn is_later(lease: &Lease, then: Option<(SubnetKey, Revision)>) -> bool {
    then.is_some_and(|(subnet, at)| subnet == lease.subnet && lease.modified > at)
}

impl<S: Leases> LeaseManager<S> {
    /// One attempt to own a lease, with a probe if it may be another host's.
    pub(super) async fn attempt_with_probe(&mut self) -> Result<Attempt, StoreError> {
        match self.attempt(None).await? {
            Attempt::Probing(own) => Ok(self.probe(own).await),
            other => Ok(other),
        }
    }

    /// Takes over a lease with our public IP that nothing else proves ours. If it has been written since our first
    /// attempt, another host uses it, whatever the outcome of the attempt: our own writes are recognised as ours.
    pub(super) async fn adopt(&mut self, lease: Lease, mac: VtepMac) -> Result<Attempt, StoreError> {
        let wanted = self.probe.wanted.replace((lease.subnet, lease.modified));
        let is_used = is_later(&lease, wanted) || self.is_defended(&lease);
        if is_used && lease.attrs.vtep_mac().is_some() {
            return Ok(self.back_off(&lease));
        }
        tracing::warn!(
            lease = %lease.subnet, "taking over the lease with our public IP {}: nothing else proves it ours",
            lease.attrs.public_ip
        );
        let expiry = lease.lease_id.map_or(Expiry::Forever, |_| Expiry::Grant(self.ttl()));
        let adopted = self.write(lease.subnet.v4, mac, Precondition::Unchanged(lease.modified), expiry).await?;
        Ok(self.start_probe(adopted))
    }

    /// Whether another host has written this lease since we wrote it to probe it.
    pub(super) fn is_defended(&self, lease: &Lease) -> bool {
        is_later(lease, self.probe.probed)
    }

    /// Begins the probe of a lease that we have written and that may be another host's. The state file remembers it at
    /// once: the other host defends its lease only once, perhaps while we are restarted.
    pub(super) fn start_probe(&mut self, written: Attempt) -> Attempt {
        let Attempt::Owned(own) = written else { return written };
        self.probe.probed = Some((SubnetKey::v4(own.subnet), own.modified));
        self.remember(own.subnet, own.mac, own.lease_id);
        Attempt::Probing(own)
    }

    /// Waits for another host to defend the lease. A host does so once, so an etcd that fails meanwhile is waited for:
    /// another attempt would overwrite the defence.
    async fn probe(&mut self, own: OwnLease) -> Attempt {
        let name = SubnetKey::v4(own.subnet).to_string();
        let snapshot = loop {
            tokio::time::sleep(PROBE_WINDOW).await;
            match self.store.list().await {
                Ok(snapshot) => break snapshot,
                Err(error) => self.status.raise(Condition::Lease, format!("no lease yet: {error}")),
            }
        };
        let content = snapshot.records.iter().find(|record| *record.name == name).map(|record| record.content.clone());
        self.listed = Some(snapshot);
        match content {
            Some(Ok(lease)) if lease.modified == own.modified => Attempt::Owned(own),
            Some(Ok(lease)) => self.back_off(&lease),
            _ => Attempt::Again,
        }
    }

    /// Leaves a lease to the host that uses it. The state file remembers that at once: the other host does not defend its
    /// lease again, not after our restart either.
    pub(super) fn back_off(&mut self, lease: &Lease) -> Attempt {
        tracing::warn!(
            lease = %lease.subnet, "another host uses this lease: {}; this host takes another subnet", lease.attrs
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

    /// Whether our key was written by a host that is probing it, so that our defence must come within
    /// [`PROBE_WINDOW`].
    pub(super) fn is_newcomer(&self, own: &OwnLease, observation: &KeyObservation) -> bool {
        let Some(Record { content: Ok(lease), .. }) = &observation.record else { return false };
        let Some(mac) = lease.attrs.vtep_mac().filter(|_| lease.attrs.public_ip == self.address.public_ip) else {
            return false;
        };
        match mac == own.mac {
            true => !own.unsure && lease.modified > own.modified && !self.probe.is_silent(self.runtime.now()),
            false => !self.identity.rivals.contains(&mac),
        }
    }

    /// Takes our lease back from a host with our public IP that has adopted it. `reserved` says that it was a
    /// reservation, which it then is again.
    pub(super) async fn reclaim_lease(
        &mut self,
        lease: Lease,
        mac: VtepMac,
        reserved: bool,
    ) -> Result<Attempt, StoreError> {
        self.report_conflict(format!(
            "another host has our public IP {} and took our lease {} ({}): this host took it back; give one of the two \
             another address or --public-ip",
            self.address.public_ip, lease.subnet, lease.attrs
        ));
        let expiry = match self.identity.remembered_lease {
            _ if reserved || lease.lease_id.is_none() => Expiry::Forever,
            Some(id) if self.extend(id).await?.is_some() => Expiry::Keep(id),
            _ => Expiry::Grant(self.ttl()),
        };
        let written = self.write(lease.subnet.v4, mac, Precondition::Unchanged(lease.modified), expiry).await?;
        if matches!(written, Attempt::Owned(_)) {
            // Only a rival that was answered counts as one that knows of us.
            self.identity.meet(&lease);
        }
        Ok(written)
    }

    /// Decides whether to write our lease again that is not as `own`, the last that we wrote. Once [`MAX_DEFENCES`]
    /// against a copy of this host are used up, returns the reason not to.
    pub(super) fn defend_against_copy(&mut self, lease: &Lease, own: &OwnLease) -> Option<String> {
        if !self.is_copy(lease, own) {
            tracing::warn!(
                lease = %lease.subnet,
                "etcd holds another version of our lease than the one that we wrote, as after the restore of a backup: \
                 writing it again"
            );
            return None;
        }
        let text = format!(
            "another host writes our lease {} ({}) as if it were this host: is it a copy of this machine? On one of the \
             two, delete the files in --state-dir and the VXLAN device, and restart flanneld",
            lease.subnet, lease.attrs
        );
        if self.probe.is_silent(self.runtime.now()) {
            return Some(text);
        }
        self.report_conflict(text);
        None
    }

    /// Returns whether a copy of this host has certainly written our lease. After the restore of a backup our key has an
    /// earlier etcd lease, and is found like this only once.
    fn is_copy(&self, lease: &Lease, own: &OwnLease) -> bool {
        let same_lease = lease.lease_id.is_some() && lease.lease_id == own.lease_id;
        same_lease || self.probe.has_defended(self.runtime.now())
    }

    /// Counts a defence of our lease against a copy of this host.
    pub(super) fn record_defence(&mut self) {
        let now = self.runtime.now();
        self.probe.record_defence(now, now + self.ttl());
    }

    fn report_conflict(&mut self, text: String) {
        self.probe.conflict_ends_at = Some(self.runtime.now() + CONFLICT_REPORTED_FOR.min(self.ttl()));
        self.status.raise(Condition::Rival, text);
    }

    /// Clears a conflict without a recent sign of it.
    pub(super) fn clear_old_conflict(&mut self) {
        if self.probe.conflict_ends_at.is_some_and(|over| self.runtime.now() >= over) {
            self.probe.conflict_ends_at = None;
            self.status.clear(Condition::Rival);
        }
    }
}
