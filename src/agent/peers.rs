//! The peers' leases: listed once, then followed by a watch for as long as the daemon runs. From time to time a
//! complete list audits what the watch has told (see [`crate::model::view`] for why, and for what it decides).

use super::runtime::{Backoff, Runtime};
use super::status::{Condition, StatusHandle};
use crate::malloc;
use crate::model::foreign::{QUOTED, shown};
use crate::model::view::{Answer, View};
use crate::store::{Change, Changes, Registry, Snapshot, StoreError, Watch};
use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// News about the keys in the store.
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
    /// How long the watch may take to report a change that a list shows, before the change counts as missed.
    pub grace: Duration,
    /// The pause before an answer that is too old is asked for again.
    pub ask_again: Duration,
    /// A watch that breaks within this time and without a change has achieved nothing.
    pub quick_break: Duration,
}

impl Default for Cadence {
    fn default() -> Self {
        Cadence {
            audit_at_least: Duration::from_secs(60),
            grace: Duration::from_secs(5),
            ask_again: Duration::from_secs(1),
            quick_break: Duration::from_secs(10),
        }
    }
}

/// All hosts of a cluster together may read so many keys a second for their audits: about 7 MB/s, and a few percent
/// of one core of etcd.
const AUDITED_A_SECOND: f64 = 32_000.0;

/// Junk keys lengthen the period of audits to this at most.
const JUNK_STRETCHES_TO: Duration = Duration::from_secs(3600);

/// How many names of missed changes are logged.
const NAMED: usize = 5;

/// After so many watches in a row that broke and achieved nothing a complete list answers instead.
const BREAKS: u32 = 3;

/// The pauses before a complete list that is needed soon after another one. The longest is the period of audits, if
/// that is not longer than ten minutes.
const LIST_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

impl Cadence {
    /// The period of audits among so many keys, of which so many are leases. Each lease is a host that reads all keys,
    /// so the cost of all audits grows with the product of the two.
    ///
    /// | leases, no other keys | period |
    /// |---|---|
    /// | up to 1,385 | 1 min |
    /// | 3,000 | 5 min |
    /// | 10,000 | 52 min |
    /// | 65,536 | 37 h |
    ///
    /// Keys that are no leases lengthen it to an hour at most, so nobody can end the audits by junk.
    pub fn audit_every(&self, leases: usize, keys: usize) -> Duration {
        let period = |keys: usize| Duration::from_secs_f64(leases as f64 * keys as f64 / AUDITED_A_SECOND);
        let longest = period(leases).max(JUNK_STRETCHES_TO);
        self.audit_at_least.max(period(keys).min(longest))
    }
}

/// Lists, watches and audits for ever. A watch that breaks is taken up again where it ended; when the store no longer
/// knows what happened since, or the watch breaks again at once, everything is listed anew. Failures never say anything
/// about peers.
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
    let mut follower = Follower {
        store,
        runtime,
        status,
        news,
        cadence,
        view: View::default(),
        audit_due: Duration::ZERO,
        backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(5)),
        breaks: 0,
        list_pauses: None,
        list_from: Duration::ZERO,
    };
    if let Some(snapshot) = listed {
        follower.begin(snapshot, Answer::Fresh).await;
    }
    loop {
        match follower.follow_watch().await {
            Ok(()) => {}
            Err(StoreError::Compacted(revision)) => {
                tracing::info!("etcd no longer has the changes since revision {revision}: listing all leases again");
                follower.view.lose_track();
                sleep(follower.list_from.saturating_sub(follower.runtime.now())).await;
                continue;
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
    /// How many watches in a row broke and achieved nothing.
    breaks: u32,
    /// The pauses between complete lists, since the last audit that found all well.
    list_pauses: Option<Backoff>,
    /// From when on the next complete list may be read.
    list_from: Duration,
}

/// A watch that is listened to while something else is done, until it breaks.
struct Feed<'w, W> {
    watch: Option<&'w mut W>,
    broke: Option<StoreError>,
}

impl<S: Registry> Follower<S> {
    /// Follows one watch until it breaks, or an audit shows that it is not worth following.
    async fn follow_watch(&mut self) -> Result<(), StoreError> {
        let breaks_at_once = self.breaks >= BREAKS;
        let from = match self.view.resume() {
            Some(revision) if !breaks_at_once || self.runtime.now() < self.list_from => revision,
            _ => self.list().await?,
        };
        let mut watch = self.store.watch(from).await?;
        if !self.view.is_continued_by(watch.history()) {
            return Err(StoreError::Compacted(from));
        }
        if !breaks_at_once {
            self.status.clear(Condition::Peers);
        }
        let end = self.follow_until_break(&mut watch).await;
        self.breaks += u32::from(end.is_err());
        end
    }

    async fn follow_until_break(&mut self, watch: &mut S::Watch) -> Result<(), StoreError> {
        let mut trusted_at = Some(self.runtime.now() + self.cadence.quick_break);
        loop {
            let due = trusted_at.unwrap_or(self.audit_due).min(self.audit_due);
            self.meanwhile(watch, sleep(due.saturating_sub(self.runtime.now()))).await?;
            if trusted_at.take_if(|at| *at <= self.runtime.now()).is_some() {
                self.works();
            }
            if self.audit_due <= self.runtime.now() && !self.audit(watch).await? {
                return Ok(());
            }
        }
    }

    /// A complete list, from nothing or after a gap; returns from where to watch.
    async fn list(&mut self) -> Result<i64, StoreError> {
        let longest = self.audit_period().min(LIST_AGAIN.1);
        let pauses = self.list_pauses.get_or_insert_with(|| Backoff::new(LIST_AGAIN.0, longest));
        self.list_from = self.runtime.now() + pauses.pause(&self.runtime);
        let (snapshot, answer) = self.read(&mut Feed { watch: None, broke: None }).await?;
        let revision = snapshot.revision;
        self.begin(snapshot, answer).await;
        Ok(revision)
    }

    /// Takes in a list after which a watch begins.
    async fn begin(&mut self, snapshot: Snapshot, answer: Answer) {
        self.take_whole(snapshot, answer).await;
        self.plan_audit();
    }

    /// Compares with a complete list; returns whether the watch is worth following. What the list shows counts even if
    /// the watch breaks meanwhile.
    async fn audit(&mut self, watch: &mut S::Watch) -> Result<bool, StoreError> {
        let mut feed = Feed { watch: Some(watch), broke: None };
        let read = self.read(&mut feed).await;
        self.plan_audit();
        let is_good = match read {
            Ok((snapshot, answer)) => self.compare(&mut feed, snapshot, answer).await,
            Err(error) => {
                tracing::debug!("no audit now: {error}");
                self.audit_due = self.runtime.now() + self.runtime.jittered(self.cadence.audit_at_least);
                true
            }
        };
        feed.broke.map_or(Ok(is_good), Err)
    }

    async fn compare(&mut self, feed: &mut Feed<'_, S::Watch>, snapshot: Snapshot, answer: Answer) -> bool {
        if answer == Answer::Rewritten {
            self.take_whole(snapshot, answer).await;
            return false;
        }
        let missed = self.late(feed, &snapshot).await;
        self.view.settle(snapshot.revision, snapshot.history, &snapshot.records, answer);
        tracing::debug!(leases = snapshot.records.len(), missed = missed.len(), "audited");
        let is_whole = feed.broke.is_none();
        if missed.is_empty() {
            drop(snapshot);
            if self.view.len() >= malloc::MANY {
                malloc::trim();
            }
            if is_whole {
                self.works();
                self.list_pauses = None;
            }
            return true;
        }
        // A watch that broke had no time to report them.
        if is_whole {
            self.report(&missed, snapshot.revision);
            self.store.ask_another();
        }
        let repair = Changes { revision: snapshot.revision, changes: missed };
        let _ = self.news.send(News::Some(repair)).await;
        false
    }

    /// The watch does what it should.
    fn works(&mut self) {
        self.breaks = 0;
        self.backoff.reset();
        self.status.clear(Condition::Peers);
    }

    fn audit_period(&self) -> Duration {
        self.cadence.audit_every(self.view.leases(), self.view.len())
    }

    fn plan_audit(&mut self) {
        self.audit_due = self.runtime.now() + self.runtime.jittered(self.audit_period());
    }

    /// The changes in a list that the watch has not reported, after it had its time to do so.
    async fn late(&mut self, feed: &mut Feed<'_, S::Watch>, snapshot: &Snapshot) -> Vec<Change> {
        const LOOKS: u32 = 10;
        let mut missed = self.view.missed(snapshot.revision, &snapshot.records);
        for _ in 0..LOOKS {
            if missed.is_empty() || feed.watch.is_none() {
                break;
            }
            self.at_any_rate(feed, sleep(self.cadence.grace / LOOKS)).await;
            missed = self.view.missed(snapshot.revision, &snapshot.records);
        }
        missed
    }

    fn report(&self, missed: &[Change], revision: i64) {
        let mut names: Vec<String> = missed.iter().take(NAMED).map(|change| shown(change.name(), QUOTED)).collect();
        names.extend((missed.len() > NAMED).then(|| format!("{} more", missed.len() - NAMED)));
        let (count, names) = (missed.len(), names.join(", "));
        tracing::warn!(
            "etcd's watch did not report {count} changes up to revision {revision}; a list showed them: {names}"
        );
        self.status.update(|status| status.counters.missed_events += count as u64);
    }

    /// Reads a complete list that is a view of the store: answers from the past are asked for again.
    async fn read(&mut self, feed: &mut Feed<'_, S::Watch>) -> Result<(Snapshot, Answer), StoreError> {
        let mut is_logged = false;
        loop {
            let (store, floor) = (self.store.clone(), self.view.highest());
            let listing = async move { store.list().await };
            let snapshot = self.at_any_rate(feed, listing).await?;
            let revision = snapshot.revision;
            match self.view.weigh(floor, revision, snapshot.history, &snapshot.records) {
                Answer::Behind if std::mem::replace(&mut is_logged, true) => {}
                Answer::Behind => tracing::warn!("etcd answers as of revision {revision}, but {floor} was seen before"),
                answer => return Ok((snapshot, answer)),
            }
            self.store.ask_another();
            let pause = self.runtime.jittered(self.cadence.ask_again);
            self.at_any_rate(feed, sleep(pause)).await;
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

    /// Does some work while listening to the watch, and goes on with the work if the watch breaks.
    async fn at_any_rate<T>(&mut self, feed: &mut Feed<'_, S::Watch>, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if let Some(watch) = feed.watch.as_deref_mut() {
            match self.meanwhile(watch, &mut work).await {
                Ok(done) => return done,
                Err(error) => (feed.watch, feed.broke) = (None, Some(error)),
            }
        }
        work.await
    }

    /// Does some work while listening to the watch, until that breaks.
    async fn meanwhile<T>(&mut self, watch: &mut S::Watch, work: impl Future<Output = T>) -> Result<T, StoreError> {
        let mut work = pin!(work);
        loop {
            let told = tokio::select! { biased; done = &mut work => return Ok(done), told = watch.next() => told? };
            let changes = self.view.hear(told.changes);
            if !changes.is_empty() {
                self.works();
                let _ = self.news.send(News::Some(Changes { revision: told.revision, changes })).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn junk_keys_do_not_put_audits_off_for_days() {
        let period = |leases, keys| Cadence::default().audit_every(leases, keys).as_secs();
        assert_eq!([period(100, 100), period(1385, 1385), period(3000, 3000)], [60, 60, 281]);
        assert_eq!([period(10_000, 10_000), period(65_536, 65_536)], [3125, 134_217]);
        assert_eq!([period(3, 200_000), period(100, 200_000)], [60, 625]);
        assert_eq!([period(10_000, 200_000), period(10, 1 << 40)], [3600, 3600]);
        assert_eq!(period(65_536, 200_000), 134_217);
    }
}
