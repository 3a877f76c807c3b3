//! Other hosts that claim our key: one with our public IP, which adopts our lease as flannel does, or a copy of this
//! host, which takes our lease for its own.
//!
//! Who starts on a lease that may be another's writes it and waits for a moment. Who lives on it sees the write and
//! answers with one of its own, and the newcomer yields. Nobody answers twice: two that are both sure of themselves
//! would overwrite each other for ever.

use super::{Attempt, Held, Keeper};
use crate::agent::status::Topic;
use crate::model::lease::Lease;
use crate::model::lease_set::Moment;
use crate::model::mac::VtepMac;
use crate::model::subnet::SubnetKey;
use crate::store::{Guard, Life, Store, StoreError};
use std::time::Duration;

/// How long the host that lives on a lease has to answer a newcomer's write. It is told by its watch.
const TRIAL: Duration = Duration::from_secs(2);

/// For how long a quarrel is spoken of after the last that was heard of it. A rival that goes on under a lease of its
/// own is complained of for as long as that lives, but one that does not yield (flannel's own) has none.
const QUARREL: Duration = Duration::from_secs(600);

/// A quarrel over our key.
#[derive(Debug, Default)]
pub struct Contest {
    /// While nothing more is heard of the other host until then, it counts as over.
    pub(super) over_at: Option<Moment>,
    /// A copy of this host is not answered again before this moment.
    silent_until: Moment,
}

impl<S: Store> Keeper<S> {
    /// One attempt, with a trial if the lease may be another host's.
    pub(super) async fn attempt_on_trial(&mut self) -> Result<Attempt, StoreError> {
        match self.attempt(None).await? {
            Attempt::OnTrial(held) => self.trial(held).await,
            other => Ok(other),
        }
    }

    /// Waits for another host to show that the lease is its own.
    async fn trial(&mut self, held: Held) -> Result<Attempt, StoreError> {
        tokio::time::sleep(TRIAL).await;
        let name = SubnetKey::v4(held.subnet).to_string();
        let records = self.store.list().await?.records;
        match records.into_iter().find(|record| record.name == name).map(|record| record.content) {
            Some(Ok(lease)) if lease.modified == held.modified => Ok(Attempt::Held(held)),
            Some(Ok(lease)) => {
                tracing::warn!(
                    lease = name,
                    "another host lives on this lease: {}; this one takes a subnet of its own",
                    lease.attrs
                );
                self.me.yield_to(&lease);
                Ok(Attempt::Again)
            }
            _ => Ok(Attempt::Again),
        }
    }

    /// Takes our lease back from a host with our public IP that has adopted it.
    pub(super) async fn take_back(&mut self, lease: Lease, mac: VtepMac) -> Result<Attempt, StoreError> {
        self.me.rivals.extend(lease.attrs.vtep_mac());
        self.quarrel(format!(
            "another host has our public IP {} and took our lease {} ({}): it was taken back; give one of the two \
             another address or --public-ip",
            self.address.public_ip, lease.subnet, lease.attrs
        ));
        let life = match (lease.lease_id, self.me.remembered_lease) {
            (None, _) => Life::Forever,
            (Some(_), Some(id)) if self.extend(id).await?.is_some() => Life::Keep(id),
            _ => Life::Grant(self.terms.ttl),
        };
        self.write(lease.subnet.v4, mac, Guard::Unchanged(lease.modified), life).await
    }

    /// A host that takes itself for us has written our lease. Once we answer; if it goes on, this is why we do not.
    pub(super) fn contest_copy(&mut self, lease: &Lease) -> Option<String> {
        let text = format!(
            "another host takes itself for this one and writes its lease {} ({}): is it a copy of this host? Delete the \
             files in --state-dir of one of the two, delete its VXLAN device and restart its flanneld",
            lease.subnet, lease.attrs
        );
        let now = self.env.now();
        if now < self.contest.silent_until {
            return Some(text);
        }
        self.contest.silent_until = now + self.terms.ttl;
        self.quarrel(text);
        None
    }

    fn quarrel(&mut self, text: String) {
        self.contest.over_at = Some(self.env.now() + QUARREL.min(self.terms.ttl));
        self.board.trouble(Topic::Rival, text);
    }

    /// Ends a quarrel of which nothing more was heard.
    pub(super) fn let_quarrel_rest(&mut self) {
        if self.contest.over_at.is_some_and(|over| self.env.now() >= over) {
            self.contest.over_at = None;
            self.board.over(Topic::Rival);
        }
    }
}
