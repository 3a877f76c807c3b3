//! What every store promises.

use crate::lab::{Lab, attrs, brief, done, lease, lost, next, subnet};
use flanneld::model::lease::LeaseId;
use flanneld::store::{Change, Expiry, Leases, Precondition, Registry, StoreError, Watch, WriteOutcome};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const HOUR: Expiry = Expiry::Grant(Duration::from_secs(3600));

pub async fn of_two_that_create_one_wins(lab: &impl Lab) {
    let (a, b) = (lab.client(), lab.client());
    let (attrs_a, attrs_b) = (attrs(1), attrs(2));
    let (a, b) = tokio::join!(
        a.write(subnet(1), &attrs_a, Precondition::Absent, HOUR),
        b.write(subnet(1), &attrs_b, Precondition::Absent, HOUR),
    );
    let (winner, other, attrs) = match (a.unwrap(), b.unwrap()) {
        (WriteOutcome::Committed(winner), lost) => (winner, lost, attrs_a),
        (lost, WriteOutcome::Committed(winner)) => (winner, lost, attrs_b),
        neither => panic!("{neither:?}"),
    };
    assert_eq!(lost(other), Some(winner.clone()));
    assert_eq!(lease(&winner).attrs, attrs);
    assert_eq!(lab.leases(), 1, "the loser's lease is given back");
    let snapshot = lab.client().list().await.unwrap();
    assert_eq!(snapshot.records, [winner]);
}

pub async fn an_overwrite_wants_the_revision_that_was_seen(lab: &impl Lab) {
    let store = lab.client();
    let first = done(store.write(subnet(1), &attrs(1), Precondition::Absent, HOUR).await.unwrap());
    let second = store.write(subnet(1), &attrs(2), Precondition::Unchanged(first.modified), HOUR).await.unwrap();
    let second = done(second);
    assert_eq!((second.created, &second.attrs), (first.created, &attrs(2)));
    assert!(second.modified > first.modified && second.lease_id != first.lease_id);
    let late = store.write(subnet(1), &attrs(3), Precondition::Unchanged(first.modified), HOUR).await.unwrap();
    assert_eq!(lost(late).map(|record| lease(&record).clone()), Some(second));
    let nowhere = store.write(subnet(2), &attrs(3), Precondition::Unchanged(first.modified), HOUR).await.unwrap();
    assert_eq!(lost(nowhere), None);
}

pub async fn a_kept_lease_stays_the_same(lab: &impl Lab) {
    let store = lab.client();
    let first = done(store.write(subnet(1), &attrs(1), Precondition::Absent, HOUR).await.unwrap());
    let id = first.lease_id.expect("it was granted");
    let again =
        store.write(subnet(1), &attrs(1), Precondition::Unchanged(first.modified), Expiry::Keep(id)).await.unwrap();
    let again = done(again);
    assert_eq!((again.lease_id, &again.attrs), (Some(id), &first.attrs));
    assert!(again.modified > first.modified);
    assert_eq!(lab.leases(), 1);

    let unknown = Expiry::Keep(LeaseId::new(0x7777).unwrap());
    let gone = store.write(subnet(1), &attrs(1), Precondition::Unchanged(again.modified), unknown).await.unwrap();
    assert_eq!(lost(gone).map(|record| lease(&record).clone()), Some(again));
    assert_eq!(lost(store.write(subnet(2), &attrs(1), Precondition::Absent, unknown).await.unwrap()), None);
}

pub async fn who_writes_the_same_too_late_has_not_written_it(lab: &impl Lab) {
    let (store, copy) = (lab.client(), lab.client());
    for expiry in [HOUR, Expiry::Forever] {
        let first = done(store.write(subnet(1), &attrs(1), Precondition::Absent, expiry).await.unwrap());
        let (precondition, expiry) =
            (Precondition::Unchanged(first.modified), first.lease_id.map_or(Expiry::Forever, Expiry::Keep));
        let second = done(copy.write(subnet(1), &attrs(1), precondition, expiry).await.unwrap());
        let late = store.write(subnet(1), &attrs(1), precondition, expiry).await.unwrap();
        assert_eq!(lost(late).map(|record| lease(&record).clone()), Some(second.clone()));
        assert!(store.remove(subnet(1), second.modified).await.unwrap());
    }
}

pub async fn a_reservation_needs_no_lease(lab: &impl Lab) {
    let store = lab.client();
    let made = done(store.write(subnet(1), &attrs(1), Precondition::Absent, Expiry::Forever).await.unwrap());
    assert_eq!((made.lease_id, lab.leases()), (None, 0));
    let leased = store.write(subnet(1), &attrs(1), Precondition::Unchanged(made.modified), HOUR).await.unwrap();
    let leased = done(leased);
    assert!(leased.lease_id.is_some());
    let freed =
        store.write(subnet(1), &attrs(1), Precondition::Unchanged(leased.modified), Expiry::Forever).await.unwrap();
    assert_eq!(done(freed).lease_id, None);
}

pub async fn a_lease_lives_while_it_is_renewed_and_then_expires(lab: &impl Lab) {
    let store = lab.client();
    let ttl = Duration::from_millis(1900);
    let made = done(store.write(subnet(1), &attrs(1), Precondition::Absent, Expiry::Grant(ttl)).await.unwrap());
    let id = made.lease_id.expect("it was granted");
    let mut watch = store.watch(made.modified).await.unwrap();
    for _ in 0..4 {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(store.keep_alive(id).await.unwrap(), Some(Duration::from_secs(2)), "rounded up");
    }
    assert_eq!(store.list().await.unwrap().records.len(), 1);
    let began = Instant::now();
    let changes = next(&mut watch, 1).await;
    assert_eq!(brief(&changes), ["-10.5.1.0-24"]);
    let waited = began.elapsed();
    assert!((Duration::from_millis(1500)..Duration::from_secs(8)).contains(&waited), "{waited:?}");
    assert_eq!(store.keep_alive(id).await.unwrap(), None);
    assert_eq!(lab.leases(), 0);
}

pub async fn a_lease_that_is_given_back_takes_its_key_along(lab: &impl Lab) {
    let store = lab.client();
    let [mine, other] = [1, 2].map(|third| (subnet(third), attrs(third)));
    let made = done(store.write(mine.0, &mine.1, Precondition::Absent, HOUR).await.unwrap());
    done(store.write(other.0, &other.1, Precondition::Absent, HOUR).await.unwrap());
    let id = made.lease_id.expect("it was granted");
    store.release(id).await.unwrap();
    assert_eq!((store.list().await.unwrap().records.len(), lab.leases()), (1, 1));
    store.release(id).await.expect("that it is gone already is no error");
}

pub async fn a_removal_wants_the_revision_that_was_seen(lab: &impl Lab) {
    let store = lab.client();
    let first = done(store.write(subnet(1), &attrs(1), Precondition::Absent, Expiry::Forever).await.unwrap());
    let expiry = Expiry::Forever;
    let second =
        done(store.write(subnet(1), &attrs(2), Precondition::Unchanged(first.modified), expiry).await.unwrap());
    assert!(!store.remove(subnet(1), first.modified).await.unwrap());
    assert!(!store.remove(subnet(2), second.modified).await.unwrap());
    assert!(store.remove(subnet(1), second.modified).await.unwrap());
    assert!(!store.remove(subnet(1), second.modified).await.unwrap(), "it is gone already");
    assert_eq!(store.list().await.unwrap().records, []);
}

pub async fn a_watch_tells_all_that_happens_after_a_listing(lab: &impl Lab) {
    let store = lab.client();
    lab.put("10.5.9.0-24", "before");
    let snapshot = store.list().await.unwrap();
    lab.put("10.5.8.0-24", "between");
    let mut watch = store.watch(snapshot.revision).await.unwrap();
    let made = done(store.write(subnet(1), &attrs(1), Precondition::Absent, HOUR).await.unwrap());
    lab.set_config("{}");
    lab.put("10.5.8.0-24", "again");
    assert!(store.remove(subnet(1), made.modified).await.unwrap());
    let changes = next(&mut watch, 4).await;
    assert_eq!(brief(&changes), ["+10.5.8.0-24", "+10.5.1.0-24", "+10.5.8.0-24", "-10.5.1.0-24"]);
    let Change::Put(record) = &changes.changes[1] else { panic!("{changes:?}") };
    assert_eq!(lease(record), &made);
    let last = changes.revision;
    assert!(matches!(changes.changes[3], Change::Delete { revision, .. } if revision == last));
    assert_eq!(store.list().await.unwrap().revision, last);
}

pub async fn keys_deleted_together_share_one_revision(lab: &impl Lab) {
    let store = lab.client();
    for name in ["10.5.1.0-24", "10.5.2.0-24", "10.6.1.0-24"] {
        lab.put(name, "x");
    }
    let before = store.list().await.unwrap().revision;
    let mut watch = store.watch(before).await.unwrap();
    lab.delete_prefix("10.5.");
    let changes = watch.next().await.unwrap();
    let deleted = |name: &str| Change::Delete { name: name.into(), revision: before + 1 };
    assert_eq!(changes.changes, [deleted("10.5.1.0-24"), deleted("10.5.2.0-24")]);
    assert_eq!(changes.revision, before + 1);
}

pub async fn what_is_no_lease_is_listed_all_the_same(lab: &impl Lab) {
    let store = lab.client();
    let names = ["", "10.5.3.0-24", "10.5.3.7-24", "a/10.5.1.0-24", "é"];
    for name in names {
        lab.put(name, "{");
    }
    let snapshot = store.list().await.unwrap();
    assert_eq!(snapshot.records.iter().map(|record| &*record.name).collect::<Vec<_>>(), names);
    assert!(snapshot.records.iter().all(|record| record.content.is_err()));
    assert_eq!(snapshot.records[1].occupies(), Some(subnet(3).v4));
    let mut watch = store.watch(snapshot.revision).await.unwrap();
    lab.delete_prefix("a/");
    assert_eq!(brief(&next(&mut watch, 1).await), ["-a/10.5.1.0-24"]);
}

pub async fn what_is_compacted_cannot_be_watched(lab: &impl Lab) {
    let store = lab.client();
    let old = store.list().await.unwrap().revision;
    for _ in 0..5 {
        lab.put("10.5.1.0-24", "x");
    }
    let mut running = store.watch(old).await.unwrap();
    assert_eq!(next(&mut running, 5).await.revision, old + 5);
    lab.compact(old + 4);
    let late = match store.watch(old).await {
        Ok(mut watch) => {
            let error = watch.next().await.unwrap_err();
            assert_eq!(watch.next().await.unwrap_err(), error, "it stays over");
            error
        }
        Err(error) => error,
    };
    assert_eq!(late, StoreError::Compacted(old + 4));
    assert_eq!(next(&mut store.watch(old + 3).await.unwrap(), 2).await.revision, old + 5);
    lab.put("10.5.1.0-24", "x");
    assert_eq!(next(&mut running, 1).await.revision, old + 6, "who is up to date does not care");
}

pub async fn a_watch_may_be_dropped_while_it_waits(lab: &impl Lab) {
    let store = lab.client();
    let mut watch = store.watch(store.list().await.unwrap().revision).await.unwrap();
    for n in 1..=20u8 {
        let waiting = tokio::time::timeout(Duration::from_millis(u64::from(n) % 4), watch.next()).await;
        assert!(waiting.is_err(), "{waiting:?}");
    }
    lab.put("10.5.1.0-24", "x");
    let changes = loop {
        if let Ok(changes) = tokio::time::timeout(Duration::from_millis(1), watch.next()).await {
            break changes.unwrap();
        }
    };
    assert_eq!(brief(&changes), ["+10.5.1.0-24"]);
}

pub async fn the_config_is_text_or_none(lab: &impl Lab) {
    let store = lab.client();
    assert_eq!(store.config().await.unwrap(), None);
    let text = r#"{"Network":"10.5.0.0/16"}"#;
    lab.set_config(text);
    assert_eq!(store.config().await.unwrap().as_deref(), Some(text.as_bytes()));
    lab.set_config("");
    assert_eq!(store.config().await.unwrap().as_deref(), Some(&b""[..]));
}
