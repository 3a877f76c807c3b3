//! DirectRouting: who is on the link of the external interface is reached without the tunnel, and nobody else.

use crate::lab::{Cluster, DEVICE, Peer, TTL, millis, mins, secs};
use flanneld::model::entry::Oif;
use flanneld::model::kernel_state::Entry;
use flanneld::model::plan::Op;

/// Three hosts on one link and a guest behind the router, all as the config says.
async fn joined() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.set_direct(true);
    cluster.store.put_for(&Peer::guest(201).key(), Peer::guest(201).json(), TTL * 100);
    cluster.start_all();
    cluster.until_ready().await;
    cluster.settle().await;
    cluster.running().for_each(|host| drop(host.kernel.take_log()));
    cluster
}

/// How many routes of a host lead to peers directly.
fn direct(cluster: &Cluster, number: u8) -> usize {
    let have = cluster[number].kernel.have(DEVICE);
    have.routes.values().flatten().filter(|route| matches!(route.oif, Oif::Other(_))).count()
}

#[tokio::test(start_paused = true)]
async fn who_is_on_the_link_is_reached_directly_and_the_others_through_the_tunnel() {
    let cluster = joined().await;
    assert_eq!([1, 2, 3].map(|number| direct(&cluster, number)), [2, 2, 2]);
    cluster.pass(TTL * 3).await;
    cluster.assert_settled();
    for host in cluster.running() {
        assert_eq!((host.kernel.take_log(), host.reasons()), (vec![], String::new()));
    }
}

#[tokio::test(start_paused = true)]
async fn there_is_a_route_all_the_time_while_neighbours_leave_the_link_and_come_back() {
    let mut cluster = joined().await;
    for (prefix, count) in [(32, 0), (24, 2), (32, 0), (24, 2)] {
        cluster[1].nic.prefix = prefix;
        cluster[1].reroute();
        assert!(cluster.settle().await < secs(1));
        assert_eq!(direct(&cluster, 1), count);
        let log = cluster[1].kernel.take_log();
        assert!(log.len() == 2 && log.iter().all(|op| matches!(op, Op::Set(Entry::Route(_)))), "{log:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn routes_that_go_with_their_interface_are_made_again() {
    let mut cluster = joined().await;
    for index in [2, 2, 9] {
        cluster[1].nic.present = false;
        cluster[1].replug();
        cluster.pass(mins(1)).await;
        (cluster[1].nic.present, cluster[1].nic.index) = (true, index);
        cluster[1].replug();
        assert!(cluster.settle().await < secs(1));
        assert_eq!(direct(&cluster, 1), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_moves_to_the_link_or_away_is_followed_at_once() {
    let cluster = joined().await;
    let guest = Peer::guest(201);
    for (address, count) in [("192.168.0.201", 3), ("192.168.7.201", 2), ("192.168.0.202", 3)] {
        let moved = Peer { address: address.into(), ..guest.clone() };
        cluster.store.put_for(&moved.key(), moved.json(), TTL);
        assert!(cluster.settle().await < millis(50));
        assert_eq!(direct(&cluster, 1), count, "{address}");
    }
    cluster.store.delete(&guest.key());
    assert!(cluster.settle().await < millis(50));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_config_holds_after_a_restart_also_for_who_left_meanwhile() {
    let mut cluster = joined().await;
    cluster.store.put_for(
        &Peer::guest(202).key(),
        Peer { address: "192.168.0.202".into(), ..Peer::guest(202) }.json(),
        TTL,
    );
    cluster.settle().await;
    cluster.running().for_each(|host| drop(host.kernel.take_log()));
    cluster.numbers().into_iter().for_each(|number| cluster.stop(number));
    cluster.store.delete(&Peer::guest(202).key());
    for (on, count) in [(false, 0), (true, 2)] {
        cluster.set_direct(on);
        cluster.start_all();
        cluster.until_ready().await;
        cluster.settle().await;
        assert_eq!(direct(&cluster, 1), count);
        let log = cluster[1].kernel.take_log();
        let added = log.iter().filter(|op| matches!(op, Op::Add(Entry::Route(_)))).count();
        let replaced = log.iter().filter(|op| matches!(op, Op::Set(Entry::Route(_)))).count();
        assert_eq!((added, replaced), (0, 2), "{log:?}");
        cluster.numbers().into_iter().for_each(|number| cluster.stop(number));
    }
}

#[tokio::test(start_paused = true)]
async fn damage_to_a_direct_route_is_repaired_and_a_strangers_route_stays() {
    let cluster = joined().await;
    let route = |have: &flanneld::model::kernel_state::Have| {
        *have.routes.values().flatten().find(|route| matches!(route.oif, Oif::Other(_))).expect("a direct route")
    };
    let kernel = &cluster[1].kernel;
    let before = route(&kernel.have(DEVICE));
    let dest = before.dest;
    kernel.disturb(DEVICE, |have| drop(have.routes.remove(&dest)));
    assert!(cluster.settle().await < millis(50));
    for (what, op) in [("another gateway", "replace"), ("another program's", "replace")] {
        kernel.disturb(DEVICE, |have| {
            let route = &mut have.routes.get_mut(&dest).expect("it is there")[0];
            match what {
                "another gateway" => route.gateway = "192.168.0.77".parse().ok(),
                _ => route.protocol = 3,
            }
        });
        cluster.pass(secs(1)).await;
        cluster.assert_settled();
        let log = kernel.take_log();
        assert!(log.last().is_some_and(|last| last.to_string().contains(dest.to_string().as_str())), "{op}: {log:?}");
        assert_eq!(kernel.have(DEVICE).routes[&dest][..], [before], "{what}");
    }
    // One with the same path that another program has beside ours is its own.
    let mut beside = before;
    (beside.protocol, beside.metric) = (3, 50);
    kernel.disturb(DEVICE, |have| have.routes.get_mut(&dest).expect("it is there").push(beside));
    cluster.pass(mins(2)).await;
    assert_eq!(kernel.have(DEVICE).routes[&dest][..], [before, beside]);
}

#[tokio::test(start_paused = true)]
async fn who_is_on_the_link_is_held_like_others_when_the_store_was_wiped_meanwhile() {
    let mut cluster = joined().await;
    cluster.numbers().into_iter().for_each(|number| cluster.stop(number));
    cluster.store.wipe();
    cluster.set_direct(true);
    cluster.start(1);
    cluster.until_ready().await;
    cluster.pass(mins(5)).await;
    assert_eq!(direct(&cluster, 1), 2, "{}", cluster[1].status_line());
    let log = cluster[1].kernel.take_log();
    assert!(
        !log.iter().any(|op| matches!(op, Op::Delete(Entry::Route(_)) | Op::Delete(Entry::FdbEntry(_)))),
        "{log:?}"
    );
    cluster.pass(TTL * 2).await;
    assert_eq!(direct(&cluster, 1), 0, "{}", cluster[1].status_line());
}
