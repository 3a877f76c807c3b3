//! Other hosts that claim our key: one with our public IP, which adopts our lease as flannel does, or a copy of this
//! host, which takes our lease for its own.
//!
//! Who starts on a lease that may be another's writes it and waits for a moment. Who lives on it sees the write and
//! answers with one of its own, and the newcomer yields. Nobody goes on answering: two that are both sure of themselves
//! would overwrite each other for ever.

use super::{Attempt, Held, Keeper, Sighting};
use crate::agent::status::Topic;
use crate::model::identity::Claim;
use crate::model::lease::{Lease, Record, Revision};
use crate::model::lease_set::Moment;
use crate::model::mac::VtepMac;
use crate::model::subnet::SubnetKey;
use crate::store::{Guard, Life, Store, StoreError};
use ipnet::Ipv4Net;
use std::time::Duration;

/// How long the host that lives on a lease has to answer a newcomer's write. It is told by its watch.
const TRIAL: Duration = Duration::from_secs(2);

/// So many copies of this host that boot within a TTL are answered. Another that is as sure of itself as we are cannot be
/// told from them, and would answer back for ever.
const ANSWERS: u32 = 5;

/// For how long a quarrel is spoken of after the last that was heard of it. A rival that goes on under a lease of its
/// own is complained of for as long as that lives, but one that does not yield (flannel's own) has none.
const QUARREL: Duration = Duration::from_secs(600);

/// A quarrel over our key.
#[derive(Debug, Default)]
pub struct Contest {
    /// While nothing more is heard of the other host until then, it counts as over.
    pub(super) over_at: Option<Moment>,
    /// How often copies of this host were answered of late.
    answers: u32,
    /// When that no longer counts.
    answers_count_until: Moment,
    /// The lease with our public IP that we have tried to take over, and when it had last been written before that.
    wanted: Option<(SubnetKey, Revision)>,
    /// The lease that we have written to see whether somebody answers, and when. Survives a restart.
    on_trial: Option<(SubnetKey, Revision)>,
}

impl Contest {
    /// With what an earlier run has written on trial, if it ended before the trial did.
    pub fn new(on_trial: Option<(SubnetKey, Revision)>) -> Self {
        Contest { on_trial, ..Contest::default() }
    }

    /// When our lease was written on trial, if the trial is not over.
    pub(super) fn trial_of(&self, subnet: Ipv4Net) -> Option<Revision> {
        self.on_trial.filter(|(key, _)| *key == SubnetKey::v4(subnet)).map(|(_, at)| at)
    }

    /// We are about to write again: if the answer to that is lost, the later write may be our own.
    pub(super) fn forget_trial(&mut self) {
        self.on_trial = None;
    }

    /// Whether copies have had all the answers that they get for now.
    fn is_silent(&self, now: Moment) -> bool {
        self.answers >= ANSWERS && now < self.answers_count_until
    }

    fn count_answer(&mut self, now: Moment, until: Moment) {
        self.answers = if now < self.answers_count_until { self.answers + 1 } else { 1 };
        self.answers_count_until = until;
    }

    /// There is no lease left of which it is not known whose it is.
    pub(super) fn end_trial(&mut self) {
        (self.wanted, self.on_trial) = (None, None);
    }
}

/// Whether somebody has written this lease after that.
fn is_later(lease: &Lease, then: Option<(SubnetKey, Revision)>) -> bool {
    then.is_some_and(|(subnet, at)| subnet == lease.subnet && lease.modified > at)
}

impl<S: Store> Keeper<S> {
    /// One attempt, with a trial if the lease may be another host's.
    pub(super) async fn attempt_on_trial(&mut self) -> Result<Attempt, StoreError> {
        match self.attempt(None).await? {
            Attempt::OnTrial(held) => Ok(self.trial(held).await),
            other => Ok(other),
        }
    }

    /// Takes over a lease with our public IP that nothing else proves ours. One that somebody has written since we first
    /// tried to is lived on, whatever became of the attempt: what we write ourselves is ours beyond doubt.
    pub(super) async fn adopt(&mut self, lease: Lease, mac: VtepMac) -> Result<Attempt, StoreError> {
        let wanted = self.contest.wanted.replace((lease.subnet, lease.modified));
        let is_lived_on = is_later(&lease, wanted) || self.is_answered(&lease);
        if is_lived_on && lease.attrs.vtep_mac().is_some() {
            return Ok(self.yield_to(&lease));
        }
        tracing::warn!(
            lease = %lease.subnet, "taking over the lease with our public IP {}: nothing else proves it ours",
            lease.attrs.public_ip
        );
        let life = lease.lease_id.map_or(Life::Forever, |_| Life::Grant(self.terms.ttl));
        let adopted = self.write(lease.subnet.v4, mac, Guard::Unchanged(lease.modified), life).await?;
        Ok(self.put_on_trial(adopted))
    }

    /// Whether somebody has written this lease since we have, on trial.
    pub(super) fn is_answered(&self, lease: &Lease) -> bool {
        is_later(lease, self.contest.on_trial)
    }

    /// What was written may be another host's. Remembered at once: an answer that comes while we are restarted is the
    /// only one.
    pub(super) fn put_on_trial(&mut self, written: Attempt) -> Attempt {
        let Attempt::Held(held) = written else { return written };
        self.contest.on_trial = Some((SubnetKey::v4(held.subnet), held.modified));
        self.remember(held.subnet, held.mac, held.lease_id);
        Attempt::OnTrial(held)
    }

    /// Waits for another host to show that the lease is its own. Whoever does so does it once, so an etcd that fails
    /// meanwhile is waited for: to begin anew would be to overwrite the answer.
    async fn trial(&mut self, held: Held) -> Attempt {
        let name = SubnetKey::v4(held.subnet).to_string();
        let snapshot = loop {
            tokio::time::sleep(TRIAL).await;
            match self.store.list().await {
                Ok(snapshot) => break snapshot,
                Err(error) => self.board.waiting(Topic::Lease, format!("no lease yet: {error}"), TRIAL),
            }
        };
        let content = snapshot.records.iter().find(|record| *record.name == name).map(|record| record.content.clone());
        self.listed = Some(snapshot);
        match content {
            Some(Ok(lease)) if lease.modified == held.modified => Attempt::Held(held),
            Some(Ok(lease)) => self.yield_to(&lease),
            _ => Attempt::Again,
        }
    }

    /// Leaves a lease to the host that lives on it, and remembers that at once: nobody answers twice, not after a
    /// restart either.
    pub(super) fn yield_to(&mut self, lease: &Lease) -> Attempt {
        tracing::warn!(
            lease = %lease.subnet, "another host lives on this lease: {}; this one takes a subnet of its own", lease.attrs
        );
        self.me.yield_to(lease);
        self.contest.end_trial();
        let mac = self.me.mac(&Claim::OutOfSubnets).unwrap_or_else(|| VtepMac::from_random(self.env.random_bytes()));
        self.remember(lease.subnet.v4, mac, None);
        Attempt::Again
    }

    /// Whether our key shows a host that waits for our answer, and not for long: one that has not had it yet.
    pub(super) fn is_newcomer(&self, held: &Held, sighting: &Sighting) -> bool {
        let Some(Record { content: Ok(lease), .. }) = &sighting.record else { return false };
        let Some(mac) = lease.attrs.vtep_mac().filter(|_| lease.attrs.public_ip == self.address.public_ip) else {
            return false;
        };
        match mac == held.mac {
            true => !held.unsure && lease.modified > held.modified && !self.contest.is_silent(self.env.now()),
            false => !self.me.rivals.contains(&mac),
        }
    }

    /// Takes our lease back from a host with our public IP that has adopted it; what was `reserved` for us is so again.
    pub(super) async fn take_back(
        &mut self,
        lease: Lease,
        mac: VtepMac,
        reserved: bool,
    ) -> Result<Attempt, StoreError> {
        self.quarrel(format!(
            "another host has our public IP {} and took our lease {} ({}): it was taken back; give one of the two \
             another address or --public-ip",
            self.address.public_ip, lease.subnet, lease.attrs
        ));
        let life = match self.me.remembered_lease {
            _ if reserved || lease.lease_id.is_none() => Life::Forever,
            Some(id) if self.extend(id).await?.is_some() => Life::Keep(id),
            _ => Life::Grant(self.terms.ttl),
        };
        let written = self.write(lease.subnet.v4, mac, Guard::Unchanged(lease.modified), life).await?;
        if matches!(written, Attempt::Held(_)) {
            // Only who has been answered has had the answer.
            self.me.meet(&lease);
        }
        Ok(written)
    }

    /// A host that takes itself for us has written our lease. A few times we answer; if it goes on, this is why we do
    /// not.
    pub(super) fn contest_copy(&mut self, lease: &Lease) -> Option<String> {
        let text = format!(
            "another host takes itself for this one and writes its lease {} ({}): is it a copy of this host? Delete the \
             files in --state-dir of one of the two, delete its VXLAN device and restart its flanneld",
            lease.subnet, lease.attrs
        );
        if self.contest.is_silent(self.env.now()) {
            return Some(text);
        }
        self.quarrel(text);
        None
    }

    /// A copy has been answered.
    pub(super) fn count_answer(&mut self) {
        let now = self.env.now();
        self.contest.count_answer(now, now + self.terms.ttl);
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
