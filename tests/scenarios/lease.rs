//! Our own lease: kept alive, brought back when it was lost, never taken from others.

use crate::lab::{Cluster, Host, Peer, TTL, days, hours, millis, mins, secs};
use flanneld::agent::settings::LeaseTimes;
use flanneld::model::lease::{LeaseId, Revision};
use std::time::Duration;

/// What keeps a host's key alive.
fn lease_id(cluster: &Cluster, number: u8) -> Option<LeaseId> {
    record(cluster, number)?.0
}

fn record(cluster: &Cluster, number: u8) -> Option<(Option<LeaseId>, Revision)> {
    let key = cluster.lease(number)?.key();
    let records = cluster.store.snapshot().records;
    let lease = records.into_iter().find(|record| *record.name == key)?.content.ok()?;
    Some((lease.lease_id, lease.modified))
}

/// A cluster of two that is about to lose host 1's key, with the logs of both kernels empty.
async fn two_hosts() -> (Cluster, Peer) {
    let cluster = Cluster::joined(2).await;
    cluster.pass(mins(1)).await;
    forget_logs(&cluster);
    let lease = cluster.lease(1).expect("it has a lease");
    (cluster, lease)
}

fn forget_logs(cluster: &Cluster) {
    cluster.running().for_each(|host| drop(host.kernel.take_log()));
}

/// The key is back as it was, and nothing in the host's own kernel was touched.
async fn assert_back(cluster: &Cluster, lease: &Peer, limit: Duration) {
    cluster.until(limit, "the key is back", |cluster| cluster.peers().contains(lease)).await;
    cluster.settle().await;
    assert_eq!(cluster.peers().len(), 2);
    assert_eq!(cluster[1].kernel.take_log(), []);
    cluster.pass(TTL * 2).await;
    cluster.assert_settled();
    assert_eq!(cluster[1].reasons(), "");
    assert_eq!(cluster.store.leases(), 2, "what was left of the old lease is over");
}

#[tokio::test(start_paused = true)]
async fn it_is_kept_alive_and_written_again_as_it_is() {
    let mut cluster = Cluster::new(1);
    cluster[1].settings.leases.times = LeaseTimes { ttl: hours(24), renew_margin: hours(1) };
    cluster.start(1);
    cluster.until_ready().await;
    let (text, id, before) = (cluster.lease_text(1), lease_id(&cluster, 1), cluster[1].store.calls());
    let mut written = Vec::new();
    let mut last = record(&cluster, 1).unwrap().1;
    for hour in 1..=72 {
        cluster.pass(hours(1)).await;
        assert_eq!((cluster.lease_text(1), lease_id(&cluster, 1)), (text.clone(), id));
        let modified = record(&cluster, 1).unwrap().1;
        if modified != last {
            written.push(hour);
        }
        last = modified;
    }
    assert!(matches!(written[..], [22..=24, 45..=48, 67..=72]), "{written:?}");
    let after = cluster[1].store.calls();
    let renewals = after.keep_alive - before.keep_alive;
    assert!((8..=14).contains(&renewals), "{renewals} renewals");
    assert_eq!((after.write - before.write, cluster.store.leases()), (3, 1));
    let audits = after.list - before.list;
    assert!((72 * 50..=72 * 75).contains(&audits), "{audits} lists: nothing but an audit a minute needs one");
}

#[tokio::test(start_paused = true)]
async fn hosts_that_started_together_do_not_renew_together() {
    let cluster = Cluster::joined(8).await;
    let renewals =
        |cluster: &Cluster| -> Vec<usize> { cluster.running().map(|host| host.store.calls().keep_alive).collect() };
    let mut most = 0;
    for _ in 0..30 {
        let before = renewals(&cluster);
        cluster.pass(mins(1)).await;
        most = most.max(renewals(&cluster).iter().zip(&before).filter(|(after, before)| after > before).count());
    }
    assert!((1..=5).contains(&most), "{most} of 8 hosts in one minute");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_was_suspended_renews_when_it_wakes() {
    let (cluster, _) = two_hosts().await;
    let renewals = cluster[1].store.calls().keep_alive;
    cluster[1].sleep_for(mins(30));
    cluster.pass(secs(10)).await;
    assert_eq!(cluster[1].store.calls().keep_alive, renewals + 1);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_key_is_made_again() {
    let (cluster, lease) = two_hosts().await;
    cluster.store.delete(&lease.key());
    assert_back(&cluster, &lease, millis(100)).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_deleted_while_the_store_fails_is_made_again() {
    let (cluster, lease) = two_hosts().await;
    cluster.store.delete(&lease.key());
    cluster.pass(millis(1)).await;
    cluster[1].store.go_down();
    cluster.pass(secs(1)).await;
    assert!(!cluster.peers().contains(&lease), "the host had no time to make it again");
    cluster[1].store.come_back();
    assert_back(&cluster, &lease, secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn a_revoked_lease_is_made_again() {
    let (cluster, lease) = two_hosts().await;
    cluster.store.revoke(lease_id(&cluster, 1).unwrap());
    assert!(!cluster.peers().contains(&lease));
    assert_back(&cluster, &lease, millis(100)).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_expired_while_the_host_was_cut_off_is_made_again() {
    let (cluster, lease) = two_hosts().await;
    cluster[1].store.go_down();
    cluster.pass(TTL + mins(10)).await;
    assert!(!cluster.peers().contains(&lease));
    assert!(cluster[1].reasons().contains("cannot be renewed"), "{}", cluster[1].reasons());
    cluster[1].store.come_back();
    assert_back(&cluster, &lease, secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_the_lease_lives_costs_nothing() {
    for outage in [mins(10), mins(20), mins(25), mins(30)] {
        let (cluster, lease) = two_hosts().await;
        cluster[1].store.go_down();
        cluster.pass(outage).await;
        cluster[1].store.come_back();
        cluster.pass(TTL * 2).await;
        assert!(cluster.running().all(|host| host.kernel.applied() == 0), "{outage:?}");
        assert_eq!(cluster.lease(1), Some(lease));
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_cut_again_and_again_does_not_keep_the_lease_from_being_renewed() {
    let (cluster, lease) = two_hosts().await;
    for _ in 0..60 {
        cluster.store.put("elsewhere", "");
        cluster.store.compact(cluster.store.snapshot().revision);
        cluster[1].store.cut_watches(flanneld::store::StoreError::Compacted(1));
        cluster.pass(mins(2)).await;
    }
    assert_eq!(cluster.lease(1), Some(lease));
    assert!(cluster.running().all(|host| host.kernel.applied() == 0));
}

/// Somebody else has written host 1's key.
async fn assert_given_up_for_now(cluster: &Cluster, lease: &Peer, thief: &str) {
    for _ in 0..20 {
        cluster.pass(secs(30)).await;
        assert_eq!(cluster.store.get(&lease.key()).unwrap(), thief.as_bytes());
        assert!(cluster[1].reasons().contains("our subnet has been taken"), "{}", cluster[1].status_line());
    }
    assert_eq!(cluster[1].kernel.take_log(), []);
    assert_eq!(cluster[1].subnet().as_ref(), Some(&lease.first));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_another_host_wrote_is_left_and_the_status_says_so() {
    let (cluster, lease) = two_hosts().await;
    let thief = Peer { first: lease.first.clone(), ..Peer::guest(201) };
    cluster.store.put_for(&thief.key(), thief.json(), TTL);
    assert_given_up_for_now(&cluster, &lease, &thief.json()).await;
    cluster.store.delete(&thief.key());
    assert_back(&cluster, &lease, mins(2)).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_another_host_took_in_a_partition_is_left_until_a_restart() {
    let (mut cluster, lease) = two_hosts().await;
    cluster[1].store.go_down();
    cluster.pass(TTL + mins(1)).await;
    let thief = Peer { first: lease.first.clone(), ..Peer::guest(201) };
    cluster.store.put_for(&thief.key(), thief.json(), TTL);
    cluster[1].store.come_back();
    cluster.pass(secs(10)).await;
    assert_given_up_for_now(&cluster, &lease, &thief.json()).await;
    cluster.restart(1);
    cluster.until_ready().await;
    cluster.settle().await;
    assert_ne!(cluster.lease(1).unwrap().first, lease.first);
    assert_eq!(cluster.lease(1).unwrap().mac, lease.mac);
}

#[tokio::test(start_paused = true)]
async fn our_key_with_somebody_elses_value_on_our_lease_is_mended() {
    let (cluster, lease) = two_hosts().await;
    let broken = Peer { mac: "0e:00:00:00:00:99".into(), ..lease.clone() };
    cluster.store.put_on(&lease.key(), broken.json(), lease_id(&cluster, 1).unwrap());
    assert_back(&cluster, &lease, millis(100)).await;
}

#[tokio::test(start_paused = true)]
async fn a_reservation_stays_one() {
    let mut cluster = Cluster::new(1);
    cluster.store.put("10.5.77.0-24", r#"{"PublicIP":"192.168.0.1"}"#);
    cluster.start(1);
    cluster.until_ready().await;
    cluster.settle().await;
    assert_eq!((cluster.lease(1).unwrap().first, lease_id(&cluster, 1)), ("10.5.77.0".into(), None));
    let writes = cluster[1].store.calls().write;
    for _ in 0..3 {
        cluster.pass(hours(8)).await;
        cluster.restart(1);
    }
    cluster.until_ready().await;
    cluster.settle().await;
    assert_eq!((lease_id(&cluster, 1), cluster.store.leases()), (None, 0));
    assert_eq!(cluster[1].store.calls().write, writes);
}

#[tokio::test(start_paused = true)]
async fn a_reservation_that_somebody_overwrote_is_one_again() {
    let mut cluster = Cluster::new(1);
    cluster.store.put("10.5.77.0-24", r#"{"PublicIP":"192.168.0.1"}"#);
    cluster.start(1);
    cluster.until_ready().await;
    cluster.settle().await;
    let lease = cluster.lease(1).unwrap();
    let adopted = Peer { mac: "0e:00:00:00:00:99".into(), ..lease.clone() };
    cluster.store.put_for(&lease.key(), adopted.json(), TTL * 9);
    cluster.pass(mins(2)).await;
    assert_eq!((cluster.lease(1), lease_id(&cluster, 1)), (Some(lease.clone()), None), "taken back");
    cluster.store.put(&lease.key(), "garbage");
    cluster.pass(mins(2)).await;
    assert_eq!((cluster.lease(1), lease_id(&cluster, 1)), (Some(lease.clone()), None), "mended");
    cluster.pass(TTL * 10).await;
    assert_eq!(cluster.store.leases(), 0);
    cluster.store.delete(&lease.key());
    cluster.pass(mins(2)).await;
    assert_eq!(cluster.lease(1), Some(lease));
    assert!(lease_id(&cluster, 1).is_some(), "who deletes a reservation ends it");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_costs_neither_a_second_subnet_nor_a_lease() {
    let mut cluster = Cluster::new(1);
    cluster[1].store.lose_next_answer();
    cluster.start(1);
    cluster.until_ready().await;
    cluster.settle().await;
    assert_eq!((cluster.peers().len(), cluster.store.leases()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_a_renewal_costs_nothing() {
    let (cluster, lease) = two_hosts().await;
    cluster[1].store.lose_next_answer();
    cluster.pass(TTL * 2).await;
    assert_eq!((cluster.lease(1), cluster.store.leases(), cluster[1].reasons()), (Some(lease), 2, String::new()));
}

#[tokio::test(start_paused = true)]
async fn out_of_subnets_a_host_waits_until_one_is_free() {
    let mut cluster = Cluster::new(4);
    cluster.store.set_config(r#"{"Network":"10.5.0.0/22","Backend":{"Type":"vxlan"}}"#);
    for number in 1..=3 {
        cluster.start(number);
    }
    cluster.until_ready().await;
    cluster.start(4);
    cluster.pass(days(1) / 24).await;
    let host: &Host = &cluster[4];
    assert!(host.reasons().contains("out of subnets") && !host.is_ready(), "{}", host.status_line());
    assert!(host.status_lines() < 5 && host.kernel.applied() == 0);
    let left = cluster.lease(2).unwrap();
    cluster.stop(2);
    cluster.store.delete(&left.key());
    cluster.until_ready().await;
    assert_eq!(cluster[4].subnet(), Some(left.first));
    assert_eq!(cluster[4].reasons(), "");
}

#[tokio::test(start_paused = true)]
async fn a_short_lease_outlives_outages_that_end_before_it_does() {
    let mut cluster = Cluster::new(1);
    cluster[1].settings.leases.times = LeaseTimes { ttl: secs(30), renew_margin: secs(5) };
    cluster.start(1);
    cluster.until_ready().await;
    let lease = lease_id(&cluster, 1);
    for _ in 0..50 {
        let renewals = cluster[1].store.calls().keep_alive;
        cluster.until(secs(15), "it is renewed", |cluster| cluster[1].store.calls().keep_alive > renewals).await;
        cluster.pass(millis(100)).await;
        cluster[1].store.go_down();
        cluster.pass(millis(23_500)).await;
        cluster[1].store.come_back();
        cluster.pass(secs(7)).await;
        assert_eq!(lease_id(&cluster, 1), lease, "it ended though there was time to renew it");
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_lease_is_known_from_the_write_that_granted_it() {
    let mut cluster = Cluster::new(1);
    cluster.start(1);
    cluster.until_ready().await;
    let status = cluster[1].status();
    let end = status.read().own.lease_ends.expect("it has a lease");
    assert!((TTL - secs(1)..=TTL + secs(1)).contains(&end), "{end:?}");
    assert_eq!(cluster[1].store.calls().keep_alive, 0, "only the write can have set it");
    // The same when the lease was revoked and a new one is granted.
    cluster.pass(mins(5)).await;
    cluster.store.revoke(lease_id(&cluster, 1).expect("it has a lease"));
    cluster.until(secs(10), "the key is back", |cluster| cluster.lease(1).is_some()).await;
    cluster.pass(secs(1)).await;
    let later = status.read().own.lease_ends.expect("it has a lease");
    assert!(later >= end + mins(5) - secs(1), "{end:?}, then {later:?}");
}

/// Two hosts that each believe a key theirs would otherwise write it as fast as their watches show it.
#[tokio::test(start_paused = true)]
async fn a_key_that_others_keep_deleting_is_written_again_later_and_later() {
    let (cluster, lease) = two_hosts().await;
    let mut writes = 0;
    for _ in 0..60 * 100 {
        if cluster.store.delete(&lease.key()) {
            writes += 1;
        }
        cluster.pass(millis(10)).await;
    }
    // At once, then after 1, 2, 4, 8, 16 and 32 seconds, give or take a fifth.
    assert!((5..=8).contains(&writes), "{writes} writes in a minute");
    cluster.until(mins(2), "the key is back", |cluster| cluster.peers().contains(&lease)).await;
    cluster.settle().await;
}
