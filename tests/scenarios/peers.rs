//! Peers change, move, leave: every other host follows at once.

use crate::lab::{Cluster, DEVICE, Peer, TTL, millis, mins, secs};

/// A cluster of three with a guest, whose next change all hosts must follow at once.
async fn with_guest() -> (Cluster, Peer) {
    let cluster = Cluster::joined(3).await;
    let guest = Peer::guest(201);
    cluster.store.put_for(&guest.key(), guest.json(), TTL);
    assert!(cluster.settle().await < millis(50));
    cluster.running().for_each(|host| drop(host.kernel.take_log()));
    (cluster, guest)
}

/// All hosts follow at once, and touch nothing but this peer.
async fn assert_followed(cluster: &Cluster, most_ops: usize) {
    assert!(cluster.settle().await < millis(50));
    for host in cluster.running() {
        let log = host.kernel.take_log();
        assert!((1..=most_ops).contains(&log.len()), "{log:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_gets_another_mac() {
    let (cluster, guest) = with_guest().await;
    let changed = Peer { mac: "0e:00:00:00:00:77".into(), ..guest };
    cluster.store.put_for(&changed.key(), changed.json(), TTL);
    assert_followed(&cluster, 3).await;
}

#[tokio::test(start_paused = true)]
async fn one_peers_change_and_one_repair_compare_one_peers_entries() {
    let cluster = Cluster::joined(2).await;
    let guests: Vec<Peer> = (100..200).map(Peer::guest).collect();
    for guest in &guests {
        cluster.store.put_for(&guest.key(), guest.json(), TTL);
    }
    cluster.settle().await;
    cluster.pass(secs(1)).await;
    let compared = || cluster[1].status().read().counters.compared;
    let before = compared();
    let changed = Peer { mac: "0e:00:00:00:01:77".into(), ..guests[50].clone() };
    cluster.store.put_for(&changed.key(), changed.json(), TTL);
    assert!(cluster.settle().await < millis(50));
    cluster.pass(secs(1)).await;
    // Two FDB entries, a neighbour and a route; each once more when the kernel reports its change.
    let after = compared();
    assert!((before + 4..=before + 8).contains(&after), "{before}, then {after}");
    cluster[1].kernel.disturb(DEVICE, |have| drop(have.routes.pop_last()));
    assert!(cluster.settle().await < millis(50));
    cluster.pass(secs(1)).await;
    assert!((after + 1..=after + 2).contains(&compared()), "{after}, then {}", compared());
}

#[tokio::test(start_paused = true)]
async fn a_peer_gets_another_address() {
    let (cluster, guest) = with_guest().await;
    let changed = Peer { address: "192.168.1.77".into(), ..guest };
    cluster.store.put_for(&changed.key(), changed.json(), TTL);
    assert_followed(&cluster, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_moves_to_another_subnet() {
    let (cluster, guest) = with_guest().await;
    let moved = Peer { first: "10.5.222.0".into(), ..guest.clone() };
    cluster.store.put_for(&moved.key(), moved.json(), TTL);
    cluster.store.delete(&guest.key());
    assert_followed(&cluster, 6).await;
}

#[tokio::test(start_paused = true)]
async fn two_peers_swap_their_subnets() {
    let (cluster, guest) = with_guest().await;
    let other = Peer::guest(202);
    cluster.store.put_for(&other.key(), other.json(), TTL);
    cluster.settle().await;
    let [a, b] =
        [(&guest, &other), (&other, &guest)].map(|(at, host)| Peer { first: at.first.clone(), ..host.clone() });
    cluster.store.put_for(&a.key(), a.json(), TTL);
    cluster.store.put_for(&b.key(), b.json(), TTL);
    assert!(cluster.settle().await < millis(50));
    cluster.pass(secs(30)).await;
    cluster.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_leaves_is_gone_at_once() {
    let (cluster, guest) = with_guest().await;
    cluster.store.delete(&guest.key());
    assert_followed(&cluster, 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_whose_lease_ends_is_gone_from_the_others() {
    let mut cluster = Cluster::joined(3).await;
    cluster.stop(3);
    cluster.pass(TTL + mins(1)).await;
    cluster.assert_settled();
    assert_eq!(cluster.peers().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_changes_while_a_watch_is_broken_is_made_good() {
    let (cluster, guest) = with_guest().await;
    for compacted in [false, true] {
        cluster[1].store.go_down();
        let changed = Peer { mac: format!("0e:00:00:00:01:{:02x}", u8::from(compacted)), ..guest.clone() };
        cluster.store.put_for(&changed.key(), changed.json(), TTL);
        cluster.store.put_for(&Peer::guest(202).key(), Peer::guest(202).json(), TTL);
        cluster.store.delete(&Peer::guest(202).key());
        cluster.pass(secs(60)).await;
        if compacted {
            cluster.store.compact(cluster.store.snapshot().revision);
        }
        cluster[1].store.come_back();
        assert!(cluster.settle().await < secs(7));
        cluster.until(secs(7), "all is well", |cluster| cluster[1].reasons().is_empty()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reservation_is_no_peer_until_its_host_comes() {
    let (cluster, _) = with_guest().await;
    cluster.store.put("10.5.210.0-24", r#"{"PublicIP":"192.168.1.210"}"#);
    cluster.pass(secs(20)).await;
    cluster.assert_settled();
    assert!(cluster.running().all(|host| host.status_line().contains("1 pending") && host.reasons().is_empty()));
    let guest = Peer::guest(210);
    cluster.store.put(&guest.key(), guest.json());
    assert_followed(&cluster, 3).await;
}

#[tokio::test(start_paused = true)]
async fn one_endpoint_may_have_two_subnets() {
    let (cluster, guest) = with_guest().await;
    let second = Peer { first: "10.5.222.0".into(), ..guest.clone() };
    cluster.store.put_for(&second.key(), second.json(), TTL);
    assert_followed(&cluster, 2).await;
    cluster.store.delete(&guest.key());
    assert_followed(&cluster, 2).await;
}
