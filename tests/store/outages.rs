//! Members of a real cluster stand still, die, change the leader, forget: the follower misses nothing of what is
//! written meanwhile, applies nothing twice, and cuts off nobody.

use crate::breaker::Breaker;
use crate::etcd::Etcd;
use crate::follower::{Follower, audits, no_audits};
use crate::lab::{attrs, store, subnet};
use flanneld::store::etcd::EtcdStore;
use flanneld::store::{Expiry, Leases, Precondition, Registry, StoreError, WriteOutcome};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::sleep;

/// Peers that live all the time, and change.
const LIVING: std::ops::RangeInclusive<u8> = 1..=3;

fn urls(members: &[Etcd]) -> Vec<String> {
    members.iter().map(Etcd::url).collect()
}

fn client(urls: &[String]) -> EtcdStore {
    store(&urls.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Writes or deletes whatever stands there.
async fn change(store: &EtcdStore, third: u8, host: Option<u8>) -> Result<(), StoreError> {
    let there = store.list().await?.records;
    let there = there.iter().find(|record| *record.name == *subnet(third).to_string());
    let precondition = there.map_or(Precondition::Absent, |record| Precondition::Unchanged(record.modified()));
    match (host, there) {
        (Some(host), _) => match store.write(subnet(third), &attrs(host), precondition, Expiry::Forever).await? {
            WriteOutcome::Committed(_) | WriteOutcome::Conflict(_) => Ok(()),
        },
        (None, Some(record)) => store.remove(subnet(third), record.modified()).await.map(drop),
        (None, None) => Ok(()),
    }
}

/// Living peers change all the time, and others come and go.
struct Churn {
    changes: Rc<Cell<usize>>,
    task: JoinHandle<()>,
}

impl Churn {
    fn start(urls: &[String]) -> Self {
        let (store, changes) = (client(urls), Rc::new(Cell::new(0)));
        let count = changes.clone();
        let task = spawn_local(async move {
            for n in 0usize.. {
                let host = (n % 200) as u8 + 1;
                let (third, host) = match n % 4 {
                    0 | 2 => ((n / 2 % 3) as u8 + 1, Some(host)),
                    1 => (50 + (n / 4 % 7) as u8, Some(host)),
                    _ => (50 + ((n / 4 + 3) % 7) as u8, None),
                };
                let done = change(&store, third, host).await.is_ok();
                count.set(count.get() + usize::from(done));
                sleep(Duration::from_millis(20)).await;
            }
        });
        Churn { changes, task }
    }

    /// Waits until so many more changes are done.
    async fn goes_on(&self, changes: usize) {
        let before = self.changes.get();
        for _ in 0..6000 {
            if self.changes.get() >= before + changes {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("the cluster takes no writes for a minute");
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn three_members_freeze_die_and_elect_while_peers_change_and_nothing_is_lost() {
    let work = async {
        let mut members = Etcd::cluster(3);
        let urls = urls(&members);
        let direct = client(&urls);
        for third in LIVING {
            change(&direct, third, Some(third)).await.expect("a fresh cluster works");
        }
        let living: Vec<String> = LIVING.map(|third| subnet(third).to_string()).collect();
        let follower = Follower::start(client(&urls), no_audits(), &living);
        follower.agrees_with(&direct).await;
        let churn = Churn::start(&urls);
        churn.goes_on(20).await;
        // The follower watches at the first member that works: each comes to be that one.
        for member in &mut members {
            member.freeze(true);
            churn.goes_on(30).await;
            sleep(Duration::from_secs(10)).await;
            member.freeze(false);
            churn.goes_on(10).await;
            member.kill();
            churn.goes_on(30).await;
            member.restart();
            churn.goes_on(10).await;
        }
        drop(churn);
        follower.agrees_with(&direct).await;
        follower.assert_flawless();
        assert_eq!((follower.missed(), follower.held()), (0, 0));
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_client_that_was_cut_off_makes_up_for_all_it_missed_compacted_or_not() {
    let work = async {
        let etcd = Etcd::start();
        let (breaker, direct) = (Breaker::before(&etcd.url()).await, client(&[etcd.url()]));
        for third in LIVING {
            change(&direct, third, Some(third)).await.expect("etcd works");
        }
        let living: Vec<String> = LIVING.map(|third| subnet(third).to_string()).collect();
        let follower = Follower::start(store(&[&breaker.url()]), audits(), &living);
        follower.agrees_with(&direct).await;
        let churn = Churn::start(&[etcd.url()]);
        for round in 0..6 {
            breaker.cut(true);
            churn.goes_on(100).await;
            if round % 2 == 1 {
                let revision = direct.list().await.expect("etcd works").revision;
                etcd.ctl(&["compact", &revision.to_string()]);
            }
            churn.goes_on(20).await;
            breaker.cut(false);
            churn.goes_on(50).await;
        }
        drop(churn);
        follower.agrees_with(&direct).await;
        follower.assert_flawless();
        // Lists that follow each other have pauses between them, so one may answer for several compactions.
        assert!(follower.whole_lists() >= 1 && follower.missed() == 0, "{}", follower.whole_lists());
    };
    LocalSet::new().run_until(work).await;
}

/// Other keys of the same etcd change and are compacted: audits have moved on the point from which a watch resumes.
#[tokio::test]
async fn a_quiet_network_in_a_busy_etcd_is_not_listed_anew_after_each_compaction() {
    let work = async {
        let etcd = Etcd::start();
        let (breaker, direct) = (Breaker::before(&etcd.url()).await, client(&[etcd.url()]));
        change(&direct, 1, Some(1)).await.expect("etcd works");
        let follower = Follower::start(store(&[&breaker.url()]), audits(), &[]);
        follower.agrees_with(&direct).await;
        for _ in 0..3 {
            for n in 0..5 {
                etcd.ctl(&["put", "elsewhere", &n.to_string()]);
            }
            let revision = direct.list().await.expect("etcd works").revision;
            let lists = breaker.lists();
            follower.until("two audits", |_| breaker.lists() >= lists + 2).await;
            sleep(Duration::from_millis(200)).await;
            etcd.ctl(&["compact", &revision.to_string()]);
            let watches = breaker.watches();
            breaker.cut(false);
            follower.until("another watch", |_| breaker.watches() > watches).await;
        }
        change(&direct, 1, Some(2)).await.expect("etcd works");
        follower.agrees_with(&direct).await;
        assert_eq!((follower.whole_lists(), follower.missed()), (1, 0));
    };
    LocalSet::new().run_until(work).await;
}
