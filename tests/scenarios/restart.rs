//! Restarts and reboots: who a host is, and that nothing moves under its containers.

use crate::lab::{Cluster, DEVICE, Peer, TTL, millis, mins, secs};

/// The lease of host 1 before and after.
async fn lease_after(cluster: &mut Cluster, before: Option<Peer>) -> Peer {
    cluster.start(1);
    cluster.until_ready().await;
    cluster.settle().await;
    let (before, after) = (before.expect("it had a lease"), cluster.lease(1).expect("it has a lease"));
    assert_eq!(after.first, before.first, "the subnet must stay");
    assert_eq!(cluster.peers().len(), cluster.numbers().len(), "no second lease");
    after
}

#[tokio::test(start_paused = true)]
async fn a_restart_changes_nothing_in_kernel_and_store() {
    let mut cluster = Cluster::joined(3).await;
    let (lease, revision) = (cluster.lease(1), cluster.store.snapshot().revision);
    cluster.stop(1);
    cluster[1].kernel.take_log();
    let writes = cluster[1].store.calls().write;
    cluster.pass(mins(10)).await;
    assert_eq!(lease_after(&mut cluster, lease.clone()).await, lease.unwrap());
    cluster.pass(secs(60)).await;
    assert_eq!(cluster[1].kernel.take_log(), []);
    assert_eq!(cluster[1].store.calls().write, writes);
    assert_eq!((cluster.store.snapshot().revision, cluster.store.leases()), (revision, 3));
}

#[tokio::test(start_paused = true)]
async fn what_changed_while_the_daemon_was_away_is_made_good_and_nothing_else_touched() {
    let mut cluster = Cluster::joined(2).await;
    let (stays, moves, leaves) = (Peer::guest(201), Peer::guest(202), Peer::guest(203));
    for guest in [&stays, &moves, &leaves] {
        cluster.store.put_for(&guest.key(), guest.json(), TTL);
    }
    cluster.settle().await;
    cluster.stop(1);
    cluster[1].kernel.take_log();
    let moved = Peer { address: "192.168.1.77".into(), mac: "0e:00:00:00:00:77".into(), ..moves };
    cluster.store.put_for(&moved.key(), moved.json(), TTL);
    cluster.store.delete(&leaves.key());
    cluster.store.put_for(&Peer::guest(204).key(), Peer::guest(204).json(), TTL);
    cluster.start(1);
    cluster.settle().await;
    let log: Vec<String> = cluster[1].kernel.take_log().iter().map(ToString::to_string).collect();
    assert!(log.iter().all(|op| !op.contains("10.5.201.0") && !op.contains("device")), "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn without_the_state_directory_subnet_env_proves_it() {
    let mut cluster = Cluster::joined(2).await;
    let lease = cluster.lease(1);
    cluster.stop(1);
    cluster[1].lose_state();
    cluster[1].kernel.lose_device(DEVICE);
    assert_eq!(lease_after(&mut cluster, lease.clone()).await, lease.unwrap(), "the MAC stays too");
}

#[tokio::test(start_paused = true)]
async fn without_subnet_env_the_state_directory_proves_it() {
    let mut cluster = Cluster::joined(2).await;
    let lease = cluster.lease(1);
    cluster.stop(1);
    cluster[1].lose_power();
    assert_eq!(lease_after(&mut cluster, lease.clone()).await, lease.unwrap());
}

#[tokio::test(start_paused = true)]
async fn without_both_the_device_proves_it() {
    let mut cluster = Cluster::joined(2).await;
    let lease = cluster.lease(1);
    cluster.stop(1);
    cluster[1].lose_state();
    cluster[1].lose_env_files();
    cluster[1].kernel.take_log();
    assert_eq!(lease_after(&mut cluster, lease.clone()).await, lease.unwrap());
    assert_eq!(cluster[1].kernel.take_log(), []);
}

#[tokio::test(start_paused = true)]
async fn without_any_proof_a_lease_with_our_public_ip_is_adopted_as_flannel_does() {
    let mut cluster = Cluster::joined(2).await;
    let lease = cluster.lease(1);
    cluster[1].lose_power();
    cluster[1].lose_state();
    let new = lease_after(&mut cluster, lease.clone()).await;
    assert_ne!(new.mac, lease.unwrap().mac);
    cluster.pass(TTL).await;
    assert_eq!(cluster.store.leases(), 2, "the etcd lease that was left ends");
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_longer_than_the_lease_lives_subnet_and_mac_are_the_same() {
    let mut cluster = Cluster::joined(3).await;
    let lease = cluster.lease(1);
    cluster[1].lose_power();
    cluster.pass(TTL + mins(10)).await;
    assert_eq!(cluster.peers().len(), 2);
    cluster.assert_settled();
    assert_eq!(lease_after(&mut cluster, lease.clone()).await, lease.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_somebody_took_meanwhile_stays_with_them() {
    let mut cluster = Cluster::joined(2).await;
    let lease = cluster.lease(1).unwrap();
    cluster[1].lose_power();
    cluster.pass(TTL + mins(10)).await;
    let thief = Peer { first: lease.first.clone(), ..Peer::guest(201) };
    cluster.store.put_for(&thief.key(), thief.json(), TTL);
    cluster.start(1);
    cluster.until_ready().await;
    cluster.settle().await;
    assert_ne!(cluster.lease(1).unwrap().first, lease.first);
    assert!(cluster.peers().contains(&thief));
}

#[tokio::test(start_paused = true)]
async fn a_changed_address_is_the_same_host_even_if_it_changed_while_it_was_off() {
    let mut cluster = Cluster::joined(2).await;
    let lease = cluster.lease(1).unwrap();
    cluster[1].lose_power();
    cluster[1].nic.address = "192.168.0.111".into();
    cluster[1].replug();
    let new = lease_after(&mut cluster, Some(lease.clone())).await;
    assert_eq!(new, Peer { address: "192.168.0.111".into(), ..lease });
}

#[tokio::test(start_paused = true)]
async fn a_host_that_crashes_at_any_moment_of_joining_comes_back_to_one_subnet() {
    for crash in (0..40).map(millis) {
        let mut cluster = Cluster::new(1);
        cluster.start(1);
        cluster.pass(crash).await;
        cluster.restart(1);
        cluster.until_ready().await;
        cluster.settle().await;
        assert_eq!((cluster.peers().len(), cluster.store.leases()), (1, 1), "{crash:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_in_the_form_of_0_7_is_rewritten_once() {
    let mut cluster = Cluster::joined(2).await;
    let lease = cluster.lease(1);
    let Peer { address, mac, .. } = lease.clone().unwrap();
    cluster.stop(1);
    cluster[1].lose_state();
    let old = format!(r#"{{"PublicIP":"{address}","BackendType":"vxlan","BackendData":{{"VtepMAC":"{mac}"}}}}"#);
    cluster.store.put_for(&lease.clone().unwrap().key(), old, TTL);
    let (revision, writes) = (cluster.store.snapshot().revision, cluster[1].store.calls().write);
    assert_eq!(lease_after(&mut cluster, lease.clone()).await, lease.unwrap());
    cluster.pass(mins(10)).await;
    cluster.restart(1);
    cluster.until_ready().await;
    assert_eq!((cluster.store.snapshot().revision, cluster[1].store.calls().write), (revision + 1, writes + 1));
}

#[tokio::test(start_paused = true)]
async fn the_lease_that_a_go_daemon_left_is_taken_up_without_a_write() {
    let mut cluster = Cluster::joined(2).await;
    let lease = cluster.lease(1).unwrap();
    cluster.stop(1);
    cluster[1].lose_state();
    cluster.store.put_for(&lease.key(), lease.json(), TTL);
    let writes = cluster[1].store.calls().write;
    lease_after(&mut cluster, Some(lease.clone())).await;
    assert_eq!(cluster[1].store.calls().write, writes);
    cluster.pass(TTL * 2).await;
    assert_eq!(cluster.lease(1), Some(lease), "its etcd lease is kept alive");
}

#[tokio::test(start_paused = true)]
async fn the_state_file_is_written_a_few_times_a_minute_whatever_happens() {
    let cluster = Cluster::joined(2).await;
    let guests: Vec<Peer> = (100..=220).map(Peer::guest).collect();
    for guest in &guests {
        cluster.store.put(&guest.key(), guest.json());
    }
    cluster.settle().await;
    cluster.pass(mins(2)).await;
    cluster.store.delete(&cluster.lease(1).unwrap().key());
    let (mut writes, mut last) = (0, cluster[1].state_file());
    for tick in 0..600 {
        if tick % 4 == 0
            && let Some(guest) = guests.get(tick / 4)
        {
            cluster.store.delete(&guest.key());
        }
        cluster.pass(millis(100)).await;
        let now = cluster[1].state_file();
        writes += usize::from(now != last);
        last = now;
    }
    assert!(cluster[1].status_line().contains("held"), "{}", cluster[1].status_line());
    assert!(cluster[1].state_file().contains("hold_until"), "a restart keeps the hold");
    assert!(writes <= 6, "{writes} times in a minute");
}

#[tokio::test(start_paused = true)]
async fn numbers_in_the_state_file_that_cannot_be_true_do_no_harm_and_are_put_right() {
    for (revision, hold_until) in [("9223372036854775807", "18446744073709551615"), ("-9223372036854775808", "0")] {
        let mut cluster = Cluster::joined(2).await;
        let lease = cluster.lease(1);
        cluster.stop(1);
        let mut state: serde_json::Value = serde_json::from_str(&cluster[1].state_file()).unwrap();
        state["revision"] = serde_json::from_str(revision).unwrap();
        state["hold_until_uptime_s"] = serde_json::from_str(hold_until).unwrap();
        cluster[1].set_state_file(&state.to_string());
        for _ in 0..3 {
            cluster.start(1);
            cluster.until_ready().await;
            cluster.settle().await;
            cluster.pass(TTL + mins(2)).await;
            assert_eq!((cluster.lease(1), cluster[1].reasons()), (lease.clone(), String::new()));
            cluster.assert_settled();
            let state: serde_json::Value = serde_json::from_str(&cluster[1].state_file()).unwrap();
            assert!((1..1000).contains(&state["revision"].as_i64().unwrap()), "{state}");
            assert!(state.get("hold_until_uptime_s").is_none_or(serde_json::Value::is_null), "{state}");
            cluster.stop(1);
        }
    }
}
