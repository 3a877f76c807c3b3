//! What a daemon makes of a store's watch: the follower with the set of leases that it feeds, and a witness of what
//! happens to that set.

use flanneld::agent::peers::{Cadence, News, follow};
use flanneld::agent::runtime::Runtime;
use flanneld::agent::status::StatusHandle;
use flanneld::model::lease::Record;
use flanneld::model::lease_set::LeaseSet;
use flanneld::store::{Change, Registry};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};

/// How long anything may take at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// What has come of the news so far.
#[derive(Default)]
struct Witness {
    set: LeaseSet,
    /// Every change that was applied, `+name@revision` or `-name@revision`.
    applied: Vec<String>,
    whole_lists: usize,
    /// Whoever of the living was not in the set after some news, though it had been.
    cut_off: BTreeSet<String>,
    met: BTreeSet<String>,
}

/// A running follower.
pub struct Follower {
    witness: Rc<RefCell<Witness>>,
    status: StatusHandle,
    tasks: Vec<JoinHandle<()>>,
}

/// An audit soon and often.
pub fn audits() -> Cadence {
    cadence(Duration::from_secs(1))
}

/// No audits: what comes out comes from the watch.
pub fn no_audits() -> Cadence {
    cadence(Duration::from_secs(36_000))
}

fn cadence(audit_at_least: Duration) -> Cadence {
    let [grace, ask_again, quick_break] = [500, 200, 50].map(Duration::from_millis);
    Cadence { audit_at_least, grace, ask_again, quick_break }
}

impl Follower {
    /// Starts one; the keys in `living` must never go again once they have come. Needs a `LocalSet`.
    pub fn start<S: Registry + 'static>(store: S, cadence: Cadence, living: &[String]) -> Self {
        let began = Instant::now();
        let env = Rc::new(Runtime::new(move || began.elapsed(), 1, |_| {}));
        let status = StatusHandle::new(env.clone());
        let (tell, mut news) = mpsc::channel(64);
        let following = follow(Rc::new(store), env, status.clone(), tell, cadence, None);
        let witness: Rc<RefCell<Witness>> = Rc::default();
        let (witnessing, living) = (witness.clone(), living.to_vec());
        let tasks = vec![
            spawn_local(async move { match following.await {} }),
            spawn_local(async move {
                while let Some(news) = news.recv().await {
                    witnessing.borrow_mut().take(news, began.elapsed(), &living);
                }
            }),
        ];
        Follower { witness, status, tasks }
    }

    /// The keys as the follower knows them, held ones included.
    pub fn records(&self) -> Vec<Record> {
        self.witness.borrow().set.records().cloned().collect()
    }

    /// How many keys are held.
    pub fn held(&self) -> usize {
        self.witness.borrow().set.held().count()
    }

    /// How many changes the watch had missed.
    pub fn missed(&self) -> u64 {
        self.status.read().counters.missed_events
    }

    /// How often everything was listed anew.
    pub fn whole_lists(&self) -> usize {
        self.witness.borrow().whole_lists
    }

    /// Why it cannot follow.
    pub fn troubles(&self) -> Vec<String> {
        self.status.read().reasons()
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is_so(self) {
            let keys: Vec<String> = self.records().into_iter().map(|record| record.name.to_string()).collect();
            assert!(began.elapsed() < PATIENCE, "not in time: {what}; it knows {keys:?}, {:?}", self.troubles());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until it knows exactly what the store holds; `store` is another way to it.
    pub async fn agrees_with(&self, store: &impl Registry) {
        let began = Instant::now();
        loop {
            let (there, here) = (store.list().await.map(|snapshot| snapshot.records), self.records());
            if there.as_ref() == Ok(&here) && self.held() == 0 {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "the store holds {there:#?}, the follower knows {here:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Fails if a living peer was ever cut off.
    pub fn assert_nobody_was_cut_off(&self) {
        let witness = self.witness.borrow();
        assert_eq!(witness.cut_off, BTreeSet::new(), "applied: {:#?}", witness.applied);
    }

    /// Fails if a living peer was ever cut off, or a change was applied twice or after a later one of its key.
    pub fn assert_flawless(&self) {
        self.assert_nobody_was_cut_off();
        let witness = self.witness.borrow();
        let mut last = std::collections::HashMap::new();
        for change in &witness.applied {
            let (name, revision) = change[1..].rsplit_once('@').expect("a name and a revision");
            let revision: i64 = revision.parse().expect("a revision");
            let before = last.insert(name, revision).unwrap_or(0);
            assert!(before < revision, "{change} after revision {before}: {:#?}", witness.applied);
        }
    }

    /// How often changes of this key were applied.
    pub fn applied(&self, name: &str) -> usize {
        let (put, delete) = (format!("+{name}@"), format!("-{name}@"));
        let witness = self.witness.borrow();
        witness.applied.iter().filter(|change| change.starts_with(&put) || change.starts_with(&delete)).count()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Witness {
    fn take(&mut self, news: News, now: Duration, living: &[String]) {
        const HOLD: Duration = Duration::from_secs(3600);
        match news {
            News::OtherHistory => self.set.doubt_next_list(),
            News::All(snapshot) => {
                self.whole_lists += 1;
                self.set.replace(snapshot.revision, snapshot.records, None, now, HOLD);
            }
            News::Some(changes) => {
                self.applied.extend(changes.changes.iter().map(|change| {
                    let sign = if matches!(change, Change::Put(_)) { '+' } else { '-' };
                    format!("{sign}{}@{}", change.name(), change.revision())
                }));
                self.set.apply(changes.revision, changes.changes, None, now, HOLD);
            }
        }
        for name in living {
            if self.set.get(name).is_some() {
                self.met.insert(name.clone());
            } else if self.met.contains(name) {
                self.cut_off.insert(name.clone());
            }
        }
    }
}
