//! The store's watch leaves something out, or the store shows the past: what is known is made good, never made worse.

use crate::lab::{Cluster, Peer, TTL, hours, millis, mins, secs};
use flanneld::store::StoreError;

/// An audit comes after a minute or so, and takes some seconds to be sure.
const AUDITED: std::time::Duration = secs(85);

async fn with_guest() -> (Cluster, Peer) {
    let cluster = Cluster::joined(3).await;
    let guest = Peer::guest(201);
    cluster.store.put_for(&guest.key(), guest.json(), TTL * 10);
    cluster.settle().await;
    forget_logs(&cluster);
    (cluster, guest)
}

fn forget_logs(cluster: &Cluster) {
    cluster.running().for_each(|host| drop(host.kernel.take_log()));
}

/// Host 1 is in line again within an audit's time, and nothing but `ops` operations was needed.
async fn assert_made_good(cluster: &Cluster, ops: usize, missed: u64) {
    cluster.pass(secs(20)).await;
    assert!(!cluster.differences().is_empty(), "the watch told it after all");
    cluster.until(AUDITED, "host 1 is in line", |cluster| cluster.differences().is_empty()).await;
    let log = cluster[1].kernel.take_log();
    assert_eq!(log.len(), ops, "{log:?}");
    let counted: Vec<u64> = cluster.running().map(|host| host.status().read().counters.missed_events).collect();
    assert_eq!(counted, [missed, 0, 0]);
    assert_eq!(cluster[1].reasons(), "");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_the_watch_does_not_tell_of_is_found_by_the_audit() {
    let (cluster, _) = with_guest().await;
    cluster[1].store.swallow_next_change();
    let second = Peer::guest(202);
    cluster.store.put_for(&second.key(), second.json(), TTL);
    assert_made_good(&cluster, 3, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_and_a_deletion_that_the_watch_does_not_tell_are_made_good() {
    let (cluster, guest) = with_guest().await;
    cluster[1].store.swallow_next_change();
    let moved = Peer { address: "192.168.1.77".into(), ..guest.clone() };
    cluster.store.put_for(&moved.key(), moved.json(), TTL);
    assert_made_good(&cluster, 1, 1).await;
    cluster[1].store.swallow_next_change();
    cluster.store.delete(&guest.key());
    assert_made_good(&cluster, 3, 2).await;
}

#[tokio::test(start_paused = true)]
async fn after_an_audit_that_found_something_the_watch_tells_again() {
    let (cluster, guest) = with_guest().await;
    cluster[1].store.swallow_next_change();
    cluster.store.delete(&guest.key());
    assert_made_good(&cluster, 3, 1).await;
    cluster.pass(secs(5)).await;
    cluster.store.put_for(&guest.key(), guest.json(), TTL);
    assert!(cluster.settle().await < millis(50));
}

#[tokio::test(start_paused = true)]
async fn audits_of_what_is_right_do_and_say_nothing() {
    let (cluster, _) = with_guest().await;
    let before: Vec<usize> = cluster.running().map(|host| host.status_lines()).collect();
    let lists = cluster[1].store.calls().list;
    cluster.pass(hours(2)).await;
    assert!(cluster[1].store.calls().list > lists + 90);
    for (host, before) in cluster.running().zip(before) {
        assert_eq!((host.kernel.take_log(), host.status_lines()), (vec![], before));
        assert_eq!(host.status().read().counters.missed_events, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_from_the_past_is_asked_for_again() {
    let (cluster, guest) = with_guest().await;
    let past = cluster.store.snapshot();
    let second = Peer::guest(202);
    cluster.store.put_for(&second.key(), second.json(), TTL * 10);
    let moved = Peer { address: "192.168.1.77".into(), ..guest };
    cluster.store.put_for(&moved.key(), moved.json(), TTL * 10);
    cluster.settle().await;
    forget_logs(&cluster);
    let store = &cluster[1].store;
    for audits in [false, true] {
        let lists = store.calls().list;
        store.list_as_of(Some(past.clone()));
        if !audits {
            store.cut_watches(StoreError::Compacted(past.revision));
        }
        cluster.until(mins(2), "it has listed", |_| store.calls().list > lists + 1).await;
        store.list_as_of(None);
        cluster.pass(mins(5)).await;
        assert_eq!(cluster[1].kernel.take_log(), []);
        assert_eq!(cluster[1].status().read().counters.missed_events, 0);
        assert!(cluster[1].status_line().ends_with(", 4 peers"), "{}", cluster[1].status_line());
    }
}

#[tokio::test(start_paused = true)]
async fn lists_that_show_nothing_but_the_past_cut_nobody_off() {
    let (cluster, _) = with_guest().await;
    let past = cluster.store.snapshot();
    let second = Peer::guest(202);
    cluster.store.put_for(&second.key(), second.json(), TTL * 10);
    cluster.settle().await;
    forget_logs(&cluster);
    let store = &cluster[1].store;
    store.list_as_of(Some(past));
    let (lists, watches) = (store.calls().list, store.calls().watch);
    cluster.pass(mins(10)).await;
    assert!(store.calls().list > lists + 20 && store.calls().watch > watches + 5, "{:?}", store.calls());
    assert_eq!(cluster[1].kernel.take_log(), []);
    store.list_as_of(None);
    cluster.pass(mins(2)).await;
    assert_eq!(cluster[1].kernel.take_log(), []);
    assert!(cluster[1].status_line().ends_with(", 4 peers"), "{}", cluster[1].status_line());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_compacts_every_revision_at_once_is_not_listed_in_a_hot_loop() {
    let (cluster, _) = with_guest().await;
    cluster.store.compact(i64::MAX);
    cluster[1].store.cut_watches(StoreError::Compacted(1));
    let before = cluster[1].store.calls().list;
    cluster.pass(mins(10)).await;
    let lists = cluster[1].store.calls().list - before;
    // The pauses grow, and lists go on.
    assert!((5..=200).contains(&lists), "{lists} lists in ten minutes");
    cluster.assert_settled();
}
