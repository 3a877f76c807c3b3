//! The peers' leases: listed once, then followed by a watch for as long as the daemon runs. From time to time a
//! complete list audits what the watch has told (see [`crate::model::view`] for why, and for what it decides).

use super::runtime::{Backoff, Runtime};
use super::status::{Condition, StatusHandle};
use crate::malloc;
use crate::model::view::{Answer, View};
use crate::store::{Change, Changes, Registry, Snapshot, StoreError, Watch};
use std::convert::Infallible;
use std::future::pending;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// What there is to know of the keys in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// All of them.
    All(Snapshot),
    /// Some changed.
    Some(Changes),
    /// The next complete list is one of another history: who is absent from it need not be gone.
    OtherHistory,
}

/// When the follower doubts what it was told.
#[derive(Debug, Clone)]
pub struct Cadence {
    /// An audit comes at most so often.
    pub audit_at_least: Duration,
    /// What a list shows the watch may still tell for so long, before it counts as missed.
    pub grace: Duration,
    /// The pause before an answer that is too old is asked for again.
    pub ask_again: Duration,
}

impl Default for Cadence {
    fn default() -> Self {
        Cadence {
            audit_at_least: Duration::from_secs(60),
            grace: Duration::from_secs(5),
            ask_again: Duration::from_secs(1),
        }
    }
}

/// All hosts of a cluster together may read so many leases a second for their audits: about 7 MB/s, and a few percent
/// of one core of etcd.
const AUDITED_A_SECOND: f64 = 32_000.0;

/// How many names of missed changes are logged.
const NAMED: usize = 5;

impl Cadence {
    /// The period of audits among so many leases, each of which is a host that audits all of them: the cost of all
    /// audits grows with the square of the leases.
    ///
    /// | leases | period |
    /// |---|---|
    /// | up to 1,385 | 1 min |
    /// | 3,000 | 5 min |
    /// | 10,000 | 52 min |
    /// | 65,536 | 37 h |
    pub fn audit_every(&self, leases: usize) -> Duration {
        let leases = leases as f64;
        self.audit_at_least.max(Duration::from_secs_f64(leases * leases / AUDITED_A_SECOND))
    }
}

/// Lists, watches and audits for ever. A watch that breaks is taken up again where it ended; when the store no longer
/// knows what happened since, it is listed anew. Failures never say anything about peers.
///
/// `listed` is a list that was just read; without it the first thing to do is to read one.
pub async fn follow<S: Registry>(
    store: Rc<S>,
    runtime: Rc<Runtime>,
    status: StatusHandle,
    news: mpsc::Sender<News>,
    cadence: Cadence,
    listed: Option<Snapshot>,
) -> Infallible {
    let (view, audit_due) = (View::default(), Duration::ZERO);
    let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut follower = Follower { store, runtime, status, news, cadence, view, audit_due, backoff, just_listed: false };
    if let Some(snapshot) = listed {
        follower.begin(snapshot, Answer::Fresh).await;
    }
    loop {
        match follower.follow_watch().await {
            Ok(()) => {}
            Err(StoreError::Compacted(revision)) => {
                tracing::info!(
                    "what happened in etcd after revision {revision} is not known there any more: listing again"
                );
                follower.view.lose_track();
                if !std::mem::take(&mut follower.just_listed) {
                    continue;
                }
            }
            Err(error) => follower.status.raise(Condition::Peers, format!("peers cannot be followed: {error}")),
        }
        sleep(follower.backoff.pause(&follower.runtime)).await;
    }
}

struct Follower<S> {
    store: Rc<S>,
    runtime: Rc<Runtime>,
    status: StatusHandle,
    news: mpsc::Sender<News>,
    cadence: Cadence,
    view: View,
    /// When the next audit is due: whatever becomes of the watches meanwhile.
    audit_due: Duration,
    backoff: Backoff,
    /// Whether nothing was heard since the last complete list: if even that is lost track of, there is no hurry.
    just_listed: bool,
}

impl<S: Registry> Follower<S> {
    /// Follows one watch until it breaks, or an audit shows that it is not worth following.
    async fn follow_watch(&mut self) -> Result<(), StoreError> {
        let from = match self.view.resume() {
            Some(revision) => revision,
            None => self.list().await?,
        };
        let mut watch = self.store.watch(from).await?;
        if !self.view.is_continued_by(watch.history()) {
            return Err(StoreError::Compacted(from));
        }
        self.status.clear(Condition::Peers);
        loop {
            let rest = self.audit_due.saturating_sub(self.runtime.now());
            self.meanwhile(Some(&mut watch), sleep(rest)).await?;
            if !self.audit(&mut watch).await? {
                return Ok(());
            }
        }
    }

    /// A complete list, from nothing or after a gap; returns from where to watch.
    async fn list(&mut self) -> Result<i64, StoreError> {
        let (snapshot, answer) = self.read(None::<&mut S::Watch>).await??;
        let revision = snapshot.revision;
        self.begin(snapshot, answer).await;
        Ok(revision)
    }

    /// Takes in a list after which a watch begins.
    async fn begin(&mut self, snapshot: Snapshot, answer: Answer) {
        self.take_whole(snapshot, answer).await;
        self.plan_audit();
        self.just_listed = true;
    }

    /// Compares with a complete list; tells whether the watch is worth following.
    async fn audit(&mut self, watch: &mut S::Watch) -> Result<bool, StoreError> {
        let read = self.read(Some(&mut *watch)).await?;
        self.plan_audit();
        let (snapshot, answer) = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::debug!("no audit now: {error}");
                self.audit_due = self.runtime.now() + self.runtime.jittered(self.cadence.audit_at_least);
                return Ok(true);
            }
        };
        if answer == Answer::Rewritten {
            self.take_whole(snapshot, answer).await;
            return Ok(false);
        }
        let missed = self.late(watch, &snapshot).await?;
        self.view.settle(snapshot.revision, snapshot.history, &snapshot.records, answer);
        tracing::debug!(leases = snapshot.records.len(), missed = missed.len(), "audited");
        if missed.is_empty() {
            drop(snapshot);
            if self.view.len() >= malloc::MANY {
                malloc::trim();
            }
            return Ok(true);
        }
        self.report(&missed, snapshot.revision);
        let repair = Changes { revision: snapshot.revision, changes: missed };
        let _ = self.news.send(News::Some(repair)).await;
        self.store.ask_another();
        Ok(false)
    }

    fn plan_audit(&mut self) {
        let period = self.cadence.audit_every(self.view.len());
        self.audit_due = self.runtime.now() + self.runtime.jittered(period);
    }

    /// What the watch has not told of a list, after it had its time to do so.
    async fn late(&mut self, watch: &mut S::Watch, snapshot: &Snapshot) -> Result<Vec<Change>, StoreError> {
        const LOOKS: u32 = 10;
        let mut missed = self.view.missed(snapshot.revision, &snapshot.records);
        for _ in 0..LOOKS {
            if missed.is_empty() {
                break;
            }
            self.meanwhile(Some(&mut *watch), sleep(self.cadence.grace / LOOKS)).await?;
            missed = self.view.missed(snapshot.revision, &snapshot.records);
        }
        Ok(missed)
    }

    fn report(&self, missed: &[Change], revision: i64) {
        let mut names: Vec<&str> = missed.iter().take(NAMED).map(Change::name).collect();
        let more = format!("{} more", missed.len().saturating_sub(NAMED));
        names.extend((missed.len() > NAMED).then_some(more.as_str()));
        let (count, names) = (missed.len(), names.join(", "));
        tracing::warn!(
            "etcd's watch did not tell {count} changes up to revision {revision}, which are made good now: {names}"
        );
        self.status.update(|status| status.counters.missed_events += count as u64);
    }

    /// Reads a complete list that is a view of the store: answers from the past are asked for again. The outer error
    /// is the watch's.
    async fn read(
        &mut self,
        mut watch: Option<&mut S::Watch>,
    ) -> Result<Result<(Snapshot, Answer), StoreError>, StoreError> {
        let mut told = false;
        loop {
            let (store, floor) = (self.store.clone(), self.view.highest());
            let listing = async move { store.list().await };
            let snapshot = match self.meanwhile(watch.as_deref_mut(), listing).await? {
                Ok(snapshot) => snapshot,
                Err(error) => return Ok(Err(error)),
            };
            let revision = snapshot.revision;
            match self.view.weigh(floor, revision, snapshot.history, &snapshot.records) {
                Answer::Behind if std::mem::replace(&mut told, true) => {}
                Answer::Behind => tracing::warn!("etcd answers as of revision {revision}, but {floor} was seen before"),
                answer => return Ok(Ok((snapshot, answer))),
            }
            self.store.ask_another();
            let pause = self.runtime.jittered(self.cadence.ask_again);
            self.meanwhile(watch.as_deref_mut(), sleep(pause)).await?;
        }
    }

    /// Takes in a complete list in place of all that was known.
    async fn take_whole(&mut self, snapshot: Snapshot, answer: Answer) {
        if answer == Answer::Rewritten {
            let (before, revision) = (self.view.highest(), snapshot.revision);
            tracing::warn!(
                "etcd was wiped or restored: it is at revision {revision} of another history than the one of which \
                 {before} was seen; peers that it does not know are held"
            );
            let _ = self.news.send(News::OtherHistory).await;
        }
        self.view.settle(snapshot.revision, snapshot.history, &snapshot.records, answer);
        let _ = self.news.send(News::All(snapshot)).await;
    }

    /// Does some work while listening to the watch.
    async fn meanwhile<T>(
        &mut self,
        mut watch: Option<&mut S::Watch>,
        work: impl Future<Output = T>,
    ) -> Result<T, StoreError> {
        let mut work = pin!(work);
        loop {
            let told = async {
                match watch.as_deref_mut() {
                    Some(watch) => watch.next().await,
                    None => pending().await,
                }
            };
            let told = tokio::select! { biased; done = &mut work => return Ok(done), told = told => told? };
            self.backoff.reset();
            self.just_listed = false;
            let changes = self.view.hear(told.changes);
            if !changes.is_empty() {
                let _ = self.news.send(News::Some(Changes { revision: told.revision, changes })).await;
            }
        }
    }
}
