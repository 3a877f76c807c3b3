//! The store is away, loses keys, or comes back with fewer: no peer that lives is ever cut off for it.

use crate::lab::{CONFIG, Cluster, Peer, TTL, days, mins, secs};

fn forget_logs(cluster: &Cluster) {
    cluster.running().for_each(|host| drop(host.kernel.take_log()));
}

/// Nothing in any kernel was touched.
fn assert_untouched(cluster: &Cluster) {
    for host in cluster.running() {
        assert_eq!(host.kernel.take_log(), [], "host {}", host.number);
    }
}

#[tokio::test(start_paused = true)]
async fn all_keys_deleted_at_once_come_back_and_no_peer_is_cut_off() {
    let cluster = Cluster::joined(4).await;
    let peers = cluster.peers();
    forget_logs(&cluster);
    assert_eq!(cluster.store.delete_prefix(""), 4);
    cluster.until(secs(1), "all keys are back", |cluster| cluster.peers() == peers).await;
    cluster.pass(TTL * 3).await;
    assert_untouched(&cluster);
    assert_eq!((cluster.peers(), cluster.store.leases()), (peers, 4));
    assert!(cluster.running().all(|host| !host.status_line().contains("held")));
}

#[tokio::test(start_paused = true)]
async fn of_all_keys_deleted_at_once_those_of_dead_hosts_are_let_go_in_the_end() {
    let mut cluster = Cluster::joined(3).await;
    cluster.stop(3);
    cluster.store.delete_prefix("");
    cluster.pass(secs(30)).await;
    assert!(cluster[1].status_line().contains("2 peers, 1 held"), "{}", cluster[1].status_line());
    cluster.pass(TTL).await;
    cluster.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn a_wiped_store_is_filled_again_and_no_peer_is_cut_off() {
    let cluster = Cluster::joined(4).await;
    let peers = cluster.peers();
    forget_logs(&cluster);
    cluster.store.wipe();
    cluster.until(secs(20), "all keys are back", |cluster| cluster.peers() == peers).await;
    cluster.store.set_config(CONFIG);
    cluster.pass(TTL * 3).await;
    assert_untouched(&cluster);
    assert_eq!((cluster.peers(), cluster.store.leases()), (peers, 4));
}

#[tokio::test(start_paused = true)]
async fn a_store_restored_from_a_backup_is_brought_up_to_date_and_no_peer_is_cut_off() {
    let mut cluster = Cluster::joined(3).await;
    let backup = cluster.store.backup();
    cluster.pass(mins(1)).await;
    cluster[1].nic.address = "192.168.0.111".into();
    cluster[1].replug();
    cluster.settle().await;
    let guest = Peer::guest(201);
    cluster.store.put_for(&guest.key(), guest.json(), TTL);
    cluster.settle().await;
    let peers = cluster.peers();
    forget_logs(&cluster);
    cluster.store.restore(backup);
    cluster
        .until(secs(20), "host 1 is there with its new address", |cluster| {
            cluster.lease(1).is_some_and(|lease| lease.address == "192.168.0.111")
        })
        .await;
    cluster.store.put_for(&guest.key(), guest.json(), TTL);
    cluster.pass(secs(20)).await;
    assert_eq!(cluster.peers(), peers);
    cluster.assert_settled();
    assert!(cluster[1].kernel.take_log().is_empty(), "the other hosts never changed");
}

#[tokio::test(start_paused = true)]
async fn three_days_without_the_store_change_nothing_and_say_little() {
    let cluster = Cluster::joined(1).await;
    for guest in (201..=209).map(Peer::guest) {
        cluster.store.put_for(&guest.key(), guest.json(), days(9));
    }
    cluster.settle().await;
    let (peers, host) = (cluster.peers(), &cluster[1]);
    let (lines, held) = (host.status_lines(), host.lines());
    forget_logs(&cluster);
    host.store.go_down();
    for _ in 0..3 {
        cluster.pass(days(1)).await;
        assert!(host.status().is_alive() && host.reasons().contains("peers cannot be followed"));
    }
    assert_untouched(&cluster);
    assert_eq!(host.lines(), held);
    assert!(host.status_lines() - lines <= 3, "{:?}", host.heard());
    let calls = host.store.calls();
    assert!(calls.keep_alive < 3 * 24 * 80 && calls.watch < 3 * 24 * 900, "{calls:?}");
    host.store.come_back();
    cluster.until(secs(10), "our key is back", |cluster| cluster.peers() == peers).await;
    cluster.settle().await;
    assert_untouched(&cluster);
    cluster.until(secs(80), "all is well", |cluster| cluster[1].reasons().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn hosts_that_were_all_cut_off_until_their_leases_ended_find_each_other_as_they_were() {
    let cluster = Cluster::joined(4).await;
    let peers = cluster.peers();
    forget_logs(&cluster);
    cluster.running().for_each(|host| host.store.go_down());
    cluster.pass(TTL * 2).await;
    assert!(cluster.peers().is_empty());
    cluster.running().for_each(|host| host.store.come_back());
    cluster.until(secs(20), "all keys are back", |cluster| cluster.peers() == peers).await;
    cluster.settle().await;
    cluster.pass(TTL * 2).await;
    assert_untouched(&cluster);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_loses_its_history_is_listed_anew_and_nothing_is_touched() {
    let cluster = Cluster::joined(3).await;
    forget_logs(&cluster);
    for _ in 0..5 {
        cluster.store.put("elsewhere", "");
        cluster.running().for_each(|host| host.store.go_down());
        cluster.store.put("elsewhere", "");
        cluster.store.compact(cluster.store.snapshot().revision);
        cluster.running().for_each(|host| host.store.come_back());
        cluster.pass(secs(10)).await;
    }
    assert_untouched(&cluster);
}

#[tokio::test(start_paused = true)]
async fn a_peer_whose_key_is_deleted_while_we_are_cut_off_is_removed_afterwards() {
    let mut cluster = Cluster::joined(3).await;
    let gone = cluster.lease(3).unwrap();
    cluster.stop(3);
    cluster[1].store.go_down();
    cluster.store.delete(&gone.key());
    cluster.pass(mins(10)).await;
    assert!(cluster[1].lines().iter().any(|line| line.contains(&gone.mac)));
    cluster[1].store.come_back();
    cluster.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_wiped_while_every_daemon_was_down_cuts_no_peer_off() {
    let mut cluster = Cluster::joined(3).await;
    // What has been seen of the store is remembered within a minute or so.
    cluster.pass(mins(3)).await;
    let peers = cluster.peers();
    cluster.numbers().into_iter().for_each(|number| cluster.stop(number));
    let kernels: Vec<_> = (1..=3).map(|number| cluster[number].kernel.clone()).collect();
    kernels.iter().for_each(|kernel| drop(kernel.take_log()));
    cluster.store.wipe();
    cluster.store.set_config(CONFIG);
    cluster.start(1);
    cluster.until_ready().await;
    cluster.pass(mins(5)).await;
    assert!(cluster[1].status_line().contains("2 peers, 2 held"), "{}", cluster[1].status_line());
    for number in [2, 3] {
        cluster.start(number);
        cluster.until_ready().await;
    }
    cluster.settle().await;
    assert_eq!(cluster.peers(), peers, "each has its subnet again");
    cluster.pass(TTL * 2).await;
    assert!(kernels.iter().all(|kernel| kernel.take_log().is_empty()));
    cluster.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn keys_that_were_deleted_while_the_daemon_was_down_cut_no_peer_off() {
    let mut cluster = Cluster::joined(3).await;
    let peers = cluster.peers();
    cluster.stop(1);
    cluster[1].kernel.take_log();
    cluster[3].store.go_down();
    cluster.store.delete_prefix("");
    cluster.pass(secs(5)).await;
    cluster.start(1);
    cluster.until_ready().await;
    cluster.pass(mins(1)).await;
    assert!(cluster[1].status_line().contains("2 peers, 1 held"), "{}", cluster[1].status_line());
    cluster[3].store.come_back();
    cluster.until(secs(90), "all keys are back", |cluster| cluster.peers() == peers).await;
    cluster.settle().await;
    assert_eq!(cluster[1].kernel.take_log(), []);
}

#[tokio::test(start_paused = true)]
async fn a_hold_survives_a_restart_and_ends_when_it_would_have_ended() {
    let mut cluster = Cluster::joined(3).await;
    let gone = cluster.lease(3).unwrap();
    cluster.stop(3);
    cluster.store.delete_prefix("");
    cluster.pass(mins(20)).await;
    for _ in 0..2 {
        cluster.restart(1);
        cluster.until_ready().await;
        assert!(cluster[1].status_line().contains("2 peers, 1 held"), "{}", cluster[1].status_line());
    }
    assert!(cluster[1].lines().iter().any(|line| line.contains(&gone.mac)));
    cluster.pass(mins(39)).await;
    assert!(cluster[1].lines().iter().any(|line| line.contains(&gone.mac)));
    cluster.pass(mins(2)).await;
    cluster.assert_settled();
    assert!(!cluster[1].state_file().contains("hold_until"), "{}", cluster[1].state_file());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_held_gives_way_to_its_host_under_another_key() {
    let mut cluster = Cluster::new(1);
    cluster.start(1);
    cluster.until_ready().await;
    let guest = Peer::guest(201);
    cluster.store.put_for(&guest.key(), guest.json(), TTL * 9);
    cluster.settle().await;
    cluster.store.delete_prefix("");
    cluster.pass(secs(20)).await;
    assert!(cluster[1].status_line().contains("1 peer, 1 held"), "{}", cluster[1].status_line());
    let moved = Peer { first: "10.5.202.0".into(), address: "192.168.1.99".into(), ..guest.clone() };
    cluster.store.put_for(&moved.key(), moved.json(), TTL * 9);
    cluster.pass(secs(1)).await;
    let lines = cluster[1].lines();
    assert!(lines.contains(&format!("fdb {} dst {}", moved.mac, moved.address)), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("10.5.201.0")), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_hold_whoever_is_gone_is_gone() {
    let mut cluster = Cluster::new(3);
    cluster.numbers().into_iter().for_each(|number| cluster[number].settings.leases.peer_hold = secs(0));
    cluster.start_all();
    cluster.until_ready().await;
    cluster.settle().await;
    cluster.stop(3);
    cluster.store.delete_prefix("");
    cluster.pass(secs(10)).await;
    cluster.assert_settled();
    assert!(cluster.running().all(|host| !host.status_line().contains("held")));
}

#[tokio::test(start_paused = true)]
async fn a_hold_survives_a_restart_also_when_the_state_file_had_just_been_written() {
    let mut cluster = Cluster::joined(3).await;
    let gone = cluster.lease(3).unwrap();
    cluster.stop(3);
    let before = cluster[1].state_file();
    cluster.store.put("elsewhere", "");
    cluster.until(mins(2), "the revision is remembered", |cluster| cluster[1].state_file() != before).await;
    cluster.store.delete(&cluster.lease(1).unwrap().key());
    cluster.pass(secs(1)).await;
    // Part of the same accident, but heard of when our own key is back already.
    cluster.store.delete(&gone.key());
    cluster.pass(secs(2)).await;
    cluster.restart(1);
    cluster.until_ready().await;
    cluster.pass(mins(1)).await;
    assert!(cluster[1].lines().iter().any(|line| line.contains(&gone.mac)), "{}", cluster[1].status_line());
}
