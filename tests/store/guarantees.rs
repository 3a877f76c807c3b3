//! etcd breaks what it promises of watches and reads (Ordered, Unique, Reliable, Atomic, Resumable, Bookmarkable; no
//! stale reads): the follower ends with what etcd holds, and has cut off nobody meanwhile.

use crate::breaker::{Breaker, Event, WatchResponse};
use crate::etcd::Etcd;
use crate::follower::{Follower, audits, no_audits};
use crate::lab::{Lab, attrs, store, subnet};
use flanneld::agent::peers::Cadence;
use flanneld::model::lease::Revision;
use flanneld::store::etcd::EtcdStore;
use flanneld::store::{Expiry, Leases, Precondition, Registry, WriteOutcome};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use tokio::task::LocalSet;
use tokio::time::sleep;

/// Peers that live all the time: 10.5.1.0/24 to 10.5.3.0/24.
const LIVING: std::ops::RangeInclusive<u8> = 1..=3;

fn name(third: u8) -> String {
    subnet(third).to_string()
}

/// An etcd with the living peers, a breaker before it, and another way to it.
struct Scene {
    etcd: Etcd,
    breaker: Breaker,
    direct: EtcdStore,
}

impl Scene {
    /// Writes whatever stands there.
    async fn put(&self, third: u8, host: u8) -> Revision {
        let (mut precondition, attrs) = (Precondition::Absent, attrs(host));
        loop {
            match self.direct.write(subnet(third), &attrs, precondition, Expiry::Forever).await.expect("etcd works") {
                WriteOutcome::Committed(record) => return record.modified(),
                WriteOutcome::Conflict(there) => {
                    precondition = Precondition::Unchanged(there.expect("it is there").modified())
                }
            }
        }
    }

    async fn delete(&self, third: u8) {
        let there = self.direct.list().await.expect("etcd works").records;
        let there = there.iter().find(|record| *record.name == *name(third)).expect("it is there");
        assert!(self.direct.remove(subnet(third), there.modified()).await.expect("etcd works"));
    }

    fn through(&self) -> EtcdStore {
        store(&[&self.breaker.url()])
    }

    /// A follower behind the breaker that knows all there is.
    async fn follower(&self, cadence: Cadence) -> Follower {
        self.follower_of(self.through(), cadence).await
    }

    async fn follower_of(&self, store: EtcdStore, cadence: Cadence) -> Follower {
        let living: Vec<String> = LIVING.map(name).collect();
        let watches = self.breaker.watches();
        let follower = Follower::start(store, cadence, &living);
        follower.agrees_with(&self.direct).await;
        follower.until("it watches", |_| self.breaker.watches() > watches).await;
        sleep(Duration::from_millis(100)).await;
        follower
    }

    /// It ends with what etcd holds, and has made no mistake on the way.
    async fn assert_right(&self, follower: &Follower) {
        follower.agrees_with(&self.direct).await;
        follower.assert_flawless();
    }
}

async fn scene(test: impl AsyncFnOnce(&mut Scene)) {
    let work = async {
        let etcd = Etcd::start();
        let (breaker, direct) = (Breaker::before(&etcd.url()).await, store(&[&etcd.url()]));
        let mut scene = Scene { etcd, breaker, direct };
        for third in LIVING {
            scene.put(third, third).await;
        }
        test(&mut scene).await;
    };
    LocalSet::new().run_until(work).await;
}

/// A rule that lets the next message about changes, and only that, become something else.
fn next_event(mut rule: impl FnMut(WatchResponse) -> Vec<WatchResponse> + 'static) -> crate::breaker::Rule {
    let mut done = false;
    Box::new(move |response| match done || !response.has_events() {
        true => vec![response],
        false => {
            done = true;
            rule(response)
        }
    })
}

#[tokio::test]
async fn reliable_a_put_a_change_and_a_deletion_that_are_not_told_are_made_good() {
    scene(async |scene| {
        scene.put(9, 9).await;
        let follower = scene.follower(audits()).await;
        for (missed, change) in [(1, 0), (2, 1), (3, 2)] {
            let watches = scene.breaker.watches();
            scene.breaker.rule(next_event(|_| vec![]));
            match change {
                0 => drop(scene.put(10, 10).await),
                1 => drop(scene.put(2, 22).await),
                _ => scene.delete(9).await,
            }
            scene.assert_right(&follower).await;
            assert_eq!((follower.missed(), follower.whole_lists()), (missed, 1));
            follower.until("another watch is begun", |_| scene.breaker.watches() > watches).await;
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn reliable_what_is_late_but_comes_is_not_counted_as_missed() {
    scene(async |scene| {
        let follower = scene.follower(Cadence { grace: Duration::from_secs(30), ..audits() }).await;
        // The second of two changes is told and the first comes with the third: audits in between find it missing.
        let kept: Rc<RefCell<Vec<Event>>> = Rc::default();
        let mut told = 0;
        scene.breaker.rule(move |mut response| {
            told += usize::from(response.has_events());
            match told {
                1 if response.has_events() => {
                    kept.borrow_mut().append(&mut response.events);
                    vec![]
                }
                3 if response.has_events() => {
                    response.events.append(&mut kept.borrow_mut());
                    vec![response]
                }
                _ => vec![response],
            }
        });
        let lists = scene.breaker.lists();
        scene.put(10, 10).await;
        scene.put(2, 22).await;
        follower.until("an audit has begun", |_| scene.breaker.lists() > lists).await;
        sleep(Duration::from_secs(2)).await;
        scene.put(3, 33).await;
        scene.assert_right(&follower).await;
        sleep(Duration::from_secs(2)).await;
        assert_eq!((follower.missed(), follower.applied(&name(10)), scene.breaker.watches()), (0, 1, 1));
    })
    .await;
}

#[tokio::test]
async fn unique_what_is_told_twice_or_again_much_later_is_applied_once() {
    scene(async |scene| {
        let follower = scene.follower(audits()).await;
        let mut all: Vec<WatchResponse> = Vec::new();
        scene.breaker.rule(move |response| {
            if !response.has_events() {
                return vec![response];
            }
            all.push(response);
            // The whole past with each message, the newest first and last.
            all.iter().rev().chain(&all).cloned().collect()
        });
        for round in 0..5 {
            scene.put(2, 50 + round).await;
            scene.put(10, 60 + round).await;
            scene.delete(10).await;
            sleep(Duration::from_millis(300)).await;
        }
        scene.assert_right(&follower).await;
        assert_eq!((follower.missed(), follower.applied(&name(2)), follower.applied(&name(10))), (0, 5, 10));
    })
    .await;
}

#[tokio::test]
async fn ordered_two_changes_that_come_in_the_wrong_order_end_in_the_right_one() {
    scene(async |scene| {
        scene.put(9, 9).await;
        let follower = scene.follower(no_audits()).await;
        let mut first: Option<WatchResponse> = None;
        scene.breaker.rule(move |response| match first.take() {
            _ if !response.has_events() => vec![response],
            None => {
                first = Some(response);
                vec![]
            }
            Some(first) => vec![response, first],
        });
        scene.put(2, 21).await;
        scene.put(2, 22).await;
        scene.put(9, 91).await;
        scene.delete(9).await;
        scene.put(10, 10).await;
        scene.put(3, 33).await;
        scene.assert_right(&follower).await;
        assert_eq!([2, 9, 10, 3].map(|third| follower.applied(&name(third))), [1, 1, 1, 1]);
    })
    .await;
}

#[tokio::test]
async fn atomic_half_a_revision_before_the_connection_breaks_is_completed_by_the_next_watch() {
    scene(async |scene| {
        for third in 100..=105 {
            scene.put(third, third).await;
        }
        let follower = scene.follower(no_audits()).await;
        scene.breaker.rule(next_event(|mut response| {
            response.events.truncate(2);
            vec![response]
        }));
        scene.etcd.delete_prefix("10.5.10");
        follower.until("the first half is in", |follower| follower.records().len() == 7).await;
        scene.breaker.cut(false);
        scene.assert_right(&follower).await;
        assert_eq!((follower.records().len(), follower.whole_lists(), follower.missed()), (3, 1, 0));
    })
    .await;
}

/// A part of an answer says that it is one, and that others follow.
#[tokio::test]
async fn atomic_the_parts_of_a_long_answer_are_applied_together() {
    scene(async |scene| {
        for third in 100..=105 {
            scene.put(third, third).await;
        }
        let follower = scene.follower(no_audits()).await;
        let withheld = Rc::new(Cell::new(false));
        let withholds = withheld.clone();
        scene.breaker.rule(move |response| {
            if !response.has_events() {
                return vec![response];
            }
            let part =
                |event: &Event| WatchResponse { events: vec![event.clone()], fragment: true, ..response.clone() };
            let mut parts: Vec<WatchResponse> = response.events.iter().map(part).collect();
            parts.pop();
            withholds.set(true);
            parts
        });
        scene.etcd.delete_prefix("10.5.10");
        follower.until("all parts but the last are there", |_| withheld.get()).await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!(follower.records().len(), 9, "half of a revision was applied");
        // Nothing is lost with a connection that breaks in the midst of it.
        scene.breaker.mend();
        scene.breaker.cut(false);
        scene.assert_right(&follower).await;
        assert_eq!((follower.records().len(), follower.whole_lists(), follower.missed()), (3, 1, 0));
    })
    .await;
}

#[tokio::test]
async fn atomic_a_revision_in_several_messages_is_as_good_as_in_one() {
    scene(async |scene| {
        for third in 100..=105 {
            scene.put(third, third).await;
        }
        let follower = scene.follower(audits()).await;
        scene.breaker.rule(|response| match response.has_events() {
            false => vec![response],
            true => {
                let part = |event: &Event| WatchResponse { events: vec![event.clone()], ..response.clone() };
                response.events.iter().map(part).collect()
            }
        });
        scene.etcd.delete_prefix("10.5.10");
        scene.assert_right(&follower).await;
        sleep(Duration::from_secs(2)).await;
        assert_eq!((follower.whole_lists(), follower.missed()), (1, 0));
    })
    .await;
}

#[tokio::test]
async fn resumable_a_watch_that_starts_too_late_is_made_good_by_an_audit() {
    scene(async |scene| {
        let follower = scene.follower(audits()).await;
        scene.breaker.shift_starts(3);
        scene.breaker.cut(true);
        scene.put(2, 22).await;
        scene.put(10, 10).await;
        scene.breaker.cut(false);
        scene.assert_right(&follower).await;
        assert!(follower.missed() > 0 && follower.whole_lists() == 1);
    })
    .await;
}

#[tokio::test]
async fn resumable_a_watch_that_goes_back_in_time_takes_nothing_back() {
    scene(async |scene| {
        scene.put(10, 10).await;
        scene.delete(10).await;
        scene.put(2, 22).await;
        let follower = scene.follower(audits()).await;
        scene.put(11, 11).await;
        scene.put(3, 33).await;
        scene.delete(11).await;
        scene.assert_right(&follower).await;
        for round in 0..3 {
            scene.breaker.shift_starts(-100);
            scene.breaker.cut(false);
            let watches = scene.breaker.watches();
            follower.until("another watch is begun", |_| scene.breaker.watches() > watches).await;
            scene.put(12, 120 + round).await;
            scene.assert_right(&follower).await;
        }
        assert_eq!([2, 3, 10, 11, 12].map(|third| follower.applied(&name(third))), [0, 1, 0, 2, 3]);
        assert_eq!((follower.missed(), follower.whole_lists()), (0, 1));
    })
    .await;
}

#[tokio::test]
async fn bookmarkable_a_claim_of_progress_without_the_changes_loses_none() {
    scene(async |scene| {
        let follower = scene.follower(no_audits()).await;
        // In place of each change comes the claim that all up to it, or far beyond, has been told.
        for ahead in [0, 1_000_000] {
            let claims = Rc::new(Cell::new(0));
            let claimed = claims.clone();
            scene.breaker.rule(move |mut response| {
                if response.has_events() {
                    response.events.clear();
                    response.header.as_mut().expect("a header").revision += ahead;
                    claimed.set(claimed.get() + 1);
                }
                vec![response]
            });
            scene.put(2, if ahead == 0 { 21 } else { 22 }).await;
            scene.put(10, if ahead == 0 { 10 } else { 11 }).await;
            follower.until("both claims were made", |_| claims.get() == 2).await;
            sleep(Duration::from_millis(200)).await;
            scene.breaker.mend();
            scene.breaker.cut(false);
            scene.assert_right(&follower).await;
            assert_eq!((follower.missed(), follower.whole_lists()), (0, 1));
        }
    })
    .await;
}

#[tokio::test]
async fn bookmarkable_a_claim_of_much_progress_makes_no_list_look_old() {
    scene(async |scene| {
        let follower = scene.follower(audits()).await;
        scene.breaker.rule(|mut response| {
            response.header.as_mut().expect("a header").revision += 1_000_000;
            vec![response]
        });
        scene.put(2, 22).await;
        let lists = scene.breaker.lists();
        follower.until("some audits are over", |_| scene.breaker.lists() > lists + 3).await;
        scene.assert_right(&follower).await;
        assert_eq!((follower.missed(), follower.whole_lists()), (0, 1));
    })
    .await;
}

#[tokio::test]
async fn a_watch_that_tells_no_changes_at_all_is_found_by_the_audit_and_begun_anew() {
    scene(async |scene| {
        let follower = scene.follower(audits()).await;
        scene.breaker.rule(|response| if response.has_events() { vec![] } else { vec![response] });
        for (third, host) in [(2, 22), (10, 10), (3, 33)] {
            scene.put(third, host).await;
            let watches = scene.breaker.watches();
            scene.assert_right(&follower).await;
            follower.until("another watch is begun", |_| scene.breaker.watches() > watches).await;
        }
        assert_eq!((follower.missed(), follower.whole_lists()), (3, 1));
    })
    .await;
}

#[tokio::test]
async fn a_watch_that_gives_no_sign_of_life_is_begun_anew_without_an_audit() {
    scene(async |scene| {
        let store = scene.through().with_patience(Duration::from_millis(500));
        let follower = scene.follower_of(store, no_audits()).await;
        let deaf = Rc::new(Cell::new(true));
        let is_deaf = deaf.clone();
        // The connection lives, its pings are answered, and the next watch is confirmed: this one says nothing more.
        scene.breaker.rule(move |response| {
            is_deaf.set(is_deaf.get() && !response.created);
            if is_deaf.get() { vec![] } else { vec![response] }
        });
        scene.put(2, 22).await;
        scene.assert_right(&follower).await;
        assert!(!deaf.get() && scene.breaker.watches() == 2 && scene.breaker.asked_for_progress() > 0);
        assert_eq!((follower.missed(), follower.whole_lists()), (0, 1));
    })
    .await;
}

#[tokio::test]
async fn a_quiet_watch_that_gives_signs_of_life_goes_on() {
    scene(async |scene| {
        let store = scene.through().with_patience(Duration::from_millis(500));
        let follower = scene.follower_of(store, no_audits()).await;
        follower.until("it was asked often", |_| scene.breaker.asked_for_progress() > 5).await;
        assert_eq!((scene.breaker.watches(), follower.troubles()), (1, vec!["starting".to_owned()]));
        scene.put(2, 22).await;
        scene.assert_right(&follower).await;
    })
    .await;
}

/// As `etcd grpc-proxy` does, and etcd before 3.4.
#[tokio::test]
async fn where_nobody_answers_for_watches_quiet_ones_are_begun_anew_less_and_less_often() {
    scene(async |scene| {
        let store = scene.through().with_patience(Duration::from_millis(100));
        scene.breaker.rule(|response| if response.created || response.has_events() { vec![response] } else { vec![] });
        let follower = scene.follower_of(store, no_audits()).await;
        follower.until("four watches are given up", |_| scene.breaker.watches() > 4).await;
        let watches = scene.breaker.watches();
        sleep(Duration::from_secs(2)).await;
        assert!(scene.breaker.watches() <= watches + 1);
        scene.put(2, 22).await;
        scene.assert_right(&follower).await;
        assert_eq!((follower.missed(), follower.whole_lists()), (0, 1));
    })
    .await;
}

#[tokio::test]
async fn a_read_from_the_past_is_asked_again_of_another_member_and_takes_nothing_back() {
    scene(async |scene| {
        let two = store(&[&scene.breaker.url(), &scene.etcd.url()]);
        let follower = scene.follower_of(two, audits()).await;
        scene.breaker.replay_lists(usize::MAX);
        let before = scene.breaker.lists();
        scene.put(2, 22).await;
        scene.put(11, 11).await;
        follower.until("the past was shown", |_| scene.breaker.lists() > before).await;
        sleep(Duration::from_secs(3)).await;
        scene.put(12, 12).await;
        scene.assert_right(&follower).await;
        assert_eq!((follower.held(), follower.missed()), (0, 0));
        assert_eq!(follower.whole_lists(), 1, "the other member's answers were good enough");
    })
    .await;
}

#[tokio::test]
async fn after_a_gap_a_list_from_the_past_is_not_taken_for_what_is() {
    scene(async |scene| {
        let follower = scene.follower(no_audits()).await;
        scene.put(10, 10).await;
        scene.put(2, 22).await;
        scene.assert_right(&follower).await;
        // The list that the breaker remembers is the first one.
        scene.breaker.replay_lists(2);
        scene.breaker.cut(true);
        let last = scene.put(3, 33).await;
        scene.put(3, 34).await;
        scene.etcd.compact(last + 1);
        scene.breaker.cut(false);
        scene.assert_right(&follower).await;
        assert_eq!((follower.whole_lists(), follower.held(), follower.missed()), (2, 0, 0));
    })
    .await;
}

#[tokio::test]
async fn reads_that_stay_in_the_past_hold_whom_they_do_not_know() {
    scene(async |scene| {
        let follower = scene.follower(no_audits()).await;
        scene.put(10, 10).await;
        scene.assert_right(&follower).await;
        scene.breaker.replay_lists(usize::MAX);
        scene.breaker.rule(|response| if response.has_events() { vec![] } else { vec![response] });
        scene.breaker.cut(true);
        let last = scene.put(3, 33).await;
        scene.put(3, 34).await;
        scene.etcd.compact(last + 1);
        scene.breaker.cut(false);
        follower.until("it believes", |follower| follower.whole_lists() == 2).await;
        assert_eq!((follower.held(), follower.records().len()), (1, 4));
        scene.breaker.replay_lists(0);
        scene.breaker.mend();
        scene.breaker.cut(false);
        scene.assert_right(&follower).await;
    })
    .await;
}

#[tokio::test]
async fn half_a_list_is_none() {
    scene(async |scene| {
        for third in 10..=20 {
            scene.put(third, third).await;
        }
        scene.breaker.halve_lists(2);
        let living: Vec<String> = (10..=20).chain(LIVING).map(name).collect();
        let follower = Follower::start(scene.through(), audits(), &living);
        follower.until("it was listed", |_| scene.breaker.lists() > 1).await;
        scene.assert_right(&follower).await;
        let lists = scene.breaker.lists();
        scene.breaker.halve_lists(3);
        follower.until("audits got half a list", |_| scene.breaker.lists() > lists + 3).await;
        scene.assert_right(&follower).await;
        assert_eq!((follower.missed(), follower.whole_lists()), (0, 1));
    })
    .await;
}

/// Debian's etcd 3.4.23 loses this deletion by itself (#18089; #19179 is the same in later versions): nothing is faked.
#[tokio::test]
async fn a_deletion_that_is_compacted_while_we_are_away_is_seen_in_the_end() {
    scene(async |scene| {
        scene.put(10, 10).await;
        let follower = scene.follower(audits()).await;
        scene.breaker.cut(true);
        scene.delete(10).await;
        let at = scene.direct.list().await.expect("etcd works").revision;
        scene.etcd.compact(at);
        scene.breaker.cut(false);
        scene.assert_right(&follower).await;
        eprintln!("missed by the watch: {}, lists: {}", follower.missed(), follower.whole_lists());
    })
    .await;
}

/// Its revision tells nothing then. Its elections do, which are counted from the start again.
#[tokio::test]
async fn an_etcd_that_lost_its_data_and_has_come_further_since_cuts_nobody_off() {
    scene(async |scene| {
        scene.etcd.kill();
        scene.etcd.restart();
        let follower = scene.follower(no_audits()).await;
        scene.breaker.cut(true);
        scene.etcd.wipe();
        for host in 20..40 {
            scene.put(1, host).await;
        }
        scene.breaker.cut(false);
        follower.until("it believes", |follower| follower.held() == 2).await;
        scene.put(2, 2).await;
        scene.put(3, 3).await;
        follower.agrees_with(&scene.direct).await;
        follower.assert_nobody_was_cut_off();
    })
    .await;
}

/// Neither does its revision, nor need its elections: but a key is older than we know it.
#[tokio::test]
async fn an_etcd_in_which_a_key_is_older_than_we_know_it_cuts_nobody_off() {
    scene(async |scene| {
        for host in 20..30 {
            scene.put(1, host).await;
        }
        let follower = scene.follower(audits()).await;
        scene.breaker.cut(true);
        scene.etcd.wipe();
        scene.put(1, 29).await;
        for host in 20..50 {
            scene.put(200, host).await;
        }
        scene.breaker.cut(false);
        follower.until("it believes", |follower| follower.held() == 2).await;
        scene.put(2, 2).await;
        scene.put(3, 3).await;
        follower.agrees_with(&scene.direct).await;
        follower.assert_nobody_was_cut_off();
    })
    .await;
}
