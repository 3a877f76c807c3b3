//! Writes our key, on the etcd lease that it has or on a new one.

use super::{Attempt, LeaseManager, OwnLease};
use crate::model::lease::{Lease, LeaseId, Record};
use crate::model::mac::VtepMac;
use crate::model::subnet::SubnetKey;
use crate::store::{Expiry, Leases, Precondition, StoreError, WriteOutcome};
use ipnet::Ipv4Net;
use std::time::Duration;

impl<S: Leases> LeaseManager<S> {
    /// Keeps a lease that is surely ours: as it is, or brought up to date on the same etcd lease.
    ///
    /// A copy of this host, with a copy of its state file, is as sure. A copy has been booted, so it has no device yet.
    /// Without a device the key is always written, so that the host which uses the lease notices.
    pub(super) async fn keep(
        &mut self,
        lease: Lease,
        mac: VtepMac,
        before: Option<&OwnLease>,
    ) -> Result<Attempt, StoreError> {
        let expiry = match lease.lease_id {
            None => Expiry::Forever,
            Some(id) => match self.extend(id).await? {
                None => return Ok(Attempt::Again),
                Some(ttl) if ttl != self.ttl() => Expiry::Grant(self.ttl()),
                Some(_) => Expiry::Keep(id),
            },
        };
        let attrs = self.network.backend.attrs(self.address.public_ip, mac);
        let booted = self.identity.in_use.is_none() && self.identity.device_mac != Some(mac);
        if booted && self.is_defended(&lease) {
            return Ok(self.back_off(&lease));
        }
        let rewritten = before.filter(|own| !own.unsure && lease.modified > own.modified);
        if let Some(own) = rewritten
            && let Some(reason) = self.defend_against_copy(&lease, own)
        {
            return Ok(Attempt::Wait(reason));
        }
        if lease.attrs == attrs && !matches!(expiry, Expiry::Grant(_)) && !booted && rewritten.is_none() {
            // Nobody knows when the key was last written, so it is written soon.
            let write_in = self.settings.times.until_write().min(self.ttl() / 3);
            return Ok(Attempt::Owned(self.own_lease(lease, mac, write_in)));
        }
        let kept = self.write(lease.subnet.v4, mac, Precondition::Unchanged(lease.modified), expiry).await?;
        if rewritten.is_some() && matches!(kept, Attempt::Owned(_)) {
            self.record_defence();
        }
        Ok(if booted { self.start_probe(kept) } else { kept })
    }

    /// Extends our etcd lease to its full time to live, which is returned. `None` if it no longer exists.
    pub(super) async fn extend(&self, id: LeaseId) -> Result<Option<Duration>, StoreError> {
        let asked = self.runtime.now();
        let ttl = self.store.keep_alive(id).await?;
        if let Some(ttl) = ttl {
            self.status.update(|status| status.own.lease_ends = Some(asked + ttl));
        }
        Ok(ttl)
    }

    /// Writes our key if the precondition holds.
    pub(super) async fn write(
        &mut self,
        subnet: Ipv4Net,
        mac: VtepMac,
        precondition: Precondition,
        expiry: Expiry,
    ) -> Result<Attempt, StoreError> {
        self.probe.forget_probe();
        // Remembered before the write, so that we recognise our lease after a crash right after the write.
        let lease_id = match expiry {
            Expiry::Keep(id) => Some(id),
            Expiry::Grant(_) | Expiry::Forever => None,
        };
        self.remember(subnet, mac, lease_id);
        self.state_file.settled().await;
        let attrs = self.network.backend.attrs(self.address.public_ip, mac);
        let asked = self.runtime.now();
        match self.store.write(SubnetKey::v4(subnet), &attrs, precondition, expiry).await? {
            WriteOutcome::Committed(Record { content: Ok(lease), name }) => {
                if let Some(listed) = &mut self.listed {
                    listed.put(Record { content: Ok(lease.clone()), name });
                }
                if !matches!(expiry, Expiry::Keep(_)) {
                    let ends = lease.lease_id.map(|_| asked + self.ttl());
                    self.status.update(|status| status.own.lease_ends = ends);
                }
                Ok(Attempt::Owned(self.own_lease(lease, mac, self.settings.times.until_write())))
            }
            WriteOutcome::Committed(_) => Ok(Attempt::Again),
            WriteOutcome::Conflict(_) => {
                self.status.update(|status| status.counters.lost_races += 1);
                Ok(Attempt::Again)
            }
        }
    }

    /// `write_in` is the time until the key is written again.
    fn own_lease(&self, lease: Lease, mac: VtepMac, write_in: Duration) -> OwnLease {
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
}
