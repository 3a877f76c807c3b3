//! Hosts that cannot be told apart: the same public IP, or copies of one machine. None may take another's subnet, and
//! an administrator must hear of it.

use crate::lab::{CONFIG, Cluster, DEVICE, Host, Peer, RENEW_MARGIN, TTL, millis, mins, secs};
use flanneld::agent::settings::LeaseTimes;
use std::time::Duration;

/// Host 2 gets the address of host 1.
fn share_address(cluster: &mut Cluster) {
    cluster[2].nic.address = "192.168.0.1".into();
    cluster[2].replug();
}

/// Two hosts with one address, the second of which has just started.
async fn twins(prepare: impl FnOnce(&mut Cluster)) -> (Cluster, Peer) {
    let mut cluster = Cluster::new(3);
    share_address(&mut cluster);
    cluster.start(1);
    cluster.start(3);
    cluster.until_ready().await;
    cluster.settle().await;
    cluster.pass(mins(1)).await;
    let first = cluster.lease(1).expect("it has a lease");
    prepare(&mut cluster);
    cluster[1].kernel.take_log();
    cluster.start(2);
    cluster.until_ready().await;
    cluster.settle().await;
    (cluster, first)
}

/// Both have subnets and MACs of their own, the first the one it had; nothing in its kernel was touched.
fn assert_told_apart(cluster: &Cluster, first: &Peer) -> Peer {
    assert_eq!(cluster.lease(1).as_ref(), Some(first));
    assert_eq!(cluster[1].kernel.take_log(), []);
    let second = cluster.lease(2).expect("it has a lease");
    assert!(second.first != first.first && second.mac != first.mac, "{second:?}");
    second
}

/// Each names the other by MAC, subnet and address.
fn assert_both_complain(cluster: &Cluster, first: &Peer, second: &Peer) {
    for (number, other) in [(1, second), (2, first)] {
        let (reasons, status) = (cluster[number].reasons(), cluster[number].status_line());
        for part in [&other.mac, &other.first, &other.address] {
            assert!(reasons.contains(part) && status.contains(part), "host {number} names no {part}: {reasons}");
        }
    }
}

async fn assert_quiet(cluster: &Cluster, limit: i64) {
    let before = cluster.store.snapshot().revision;
    cluster.pass(TTL).await;
    let writes = cluster.store.snapshot().revision - before;
    assert!(writes <= limit, "{writes} writes in a TTL");
}

#[tokio::test(start_paused = true)]
async fn two_hosts_with_one_public_ip_keep_subnets_of_their_own_and_both_say_so() {
    let (mut cluster, first) = twins(|_| {}).await;
    let second = assert_told_apart(&cluster, &first);
    assert_both_complain(&cluster, &first, &second);
    assert_eq!(cluster[3].reasons(), "");
    // One renewal of each host, no quarrel.
    assert_quiet(&cluster, 3 + 1).await;
    for _ in 0..3 {
        cluster.restart(2);
        cluster.until_ready().await;
        cluster.pass(mins(5)).await;
        assert_eq!((cluster.lease(1).as_ref(), cluster.lease(2).as_ref()), (Some(&first), Some(&second)));
    }
    cluster[2].nic.address = "192.168.0.2".into();
    cluster[2].replug();
    cluster.settle().await;
    cluster.pass(TTL * 2).await;
    assert!(cluster.running().all(|host| host.reasons().is_empty()), "{}", cluster[1].reasons());
}

#[tokio::test(start_paused = true)]
async fn the_second_of_two_with_one_public_ip_comes_back_after_its_lease_has_ended_and_takes_nothing() {
    let (mut cluster, first) = twins(|_| {}).await;
    let second = cluster.lease(2).unwrap();
    cluster[2].lose_power();
    cluster.pass(TTL * 2).await;
    assert_eq!(cluster[1].reasons(), "", "the other one is gone");
    let writes = cluster[1].store.calls().write;
    cluster.start(2);
    cluster.until_ready().await;
    cluster.settle().await;
    assert_eq!((cluster.lease(1), cluster[1].store.calls().write), (Some(first), writes));
    assert_ne!(cluster.lease(2).unwrap().first, cluster.lease(1).unwrap().first);
    assert_eq!(cluster.lease(2).unwrap().mac, second.mac);
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_a_host_with_another_address_becomes_a_host_of_its_own() {
    let mut cluster = Cluster::joined(3).await;
    let (first, state) = (cluster.lease(1).unwrap(), cluster[1].state_file());
    cluster[2].lose_power();
    cluster[2].lose_state();
    cluster[2].set_state_file(&state);
    cluster.store.delete(&cluster.peers().iter().find(|peer| peer.address == "192.168.0.2").unwrap().key());
    cluster.settle().await;
    cluster[1].kernel.take_log();
    cluster.start(2);
    cluster.until_ready().await;
    cluster.settle().await;
    cluster[1].kernel.take_log();
    assert_told_apart(&cluster, &first);
    assert!(cluster[1].reasons().contains("as if it were this host"), "{}", cluster[1].reasons());
    cluster.pass(TTL * 2).await;
    cluster.assert_settled();
    assert!(cluster.running().all(|host| host.reasons().is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_perfect_copy_of_a_host_is_found_out_at_its_first_start() {
    let (cluster, first) = twins(|cluster| {
        let state = cluster[1].state_file();
        cluster[2].nic.mac = 1;
        cluster[2].replug();
        cluster[2].set_state_file(&state);
    })
    .await;
    let second = assert_told_apart(&cluster, &first);
    assert_both_complain(&cluster, &first, &second);
    assert_quiet(&cluster, 3 + 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_perfect_copy_that_started_while_the_other_was_cut_off_is_complained_of_without_end() {
    let mut cluster = Cluster::new(3);
    share_address(&mut cluster);
    cluster.start(1);
    cluster.until_ready().await;
    cluster[1].store.go_down();
    let state = cluster[1].state_file();
    cluster[2].nic.mac = 1;
    cluster[2].set_state_file(&state);
    cluster.start(2);
    cluster.pass(secs(30)).await;
    cluster[1].store.come_back();
    cluster.pass(mins(2)).await;
    for _ in 0..3 {
        let complaints = [1, 2].map(|number| cluster[number].reasons());
        assert!(complaints.iter().all(|text| text.contains("as if it were this host")), "{complaints:?}");
        // Five answers of each, and what each writes anyway.
        assert_quiet(&cluster, 2 * 5 + 4).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_was_booted_without_any_memory_is_nobodys_rival() {
    let mut cluster = Cluster::joined(2).await;
    let before = cluster.lease(1).unwrap();
    cluster[1].lose_power();
    cluster[1].lose_state();
    cluster.start(1);
    cluster.until_ready().await;
    cluster.settle().await;
    assert_eq!(cluster.lease(1).unwrap().first, before.first, "adopted by its public IP");
    assert!(cluster.running().all(|host| host.reasons().is_empty()));
    let again = cluster.lease(1);
    cluster[1].lose_power();
    cluster.start(1);
    cluster.until_ready().await;
    cluster.settle().await;
    assert_eq!(cluster.lease(1), again, "known by its state file");
    assert!(cluster.running().all(|host| host.reasons().is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_adopted_again_and_again_is_taken_back_once() {
    let mut cluster = Cluster::joined(2).await;
    let lease = cluster.lease(1).unwrap();
    cluster[1].kernel.take_log();
    let thief = Peer { mac: Peer::guest(201).mac, ..lease.clone() };
    cluster.store.put_for(&thief.key(), thief.json(), TTL * 9);
    cluster.until(secs(1), "it is taken back", |cluster| cluster.peers().contains(&lease)).await;
    assert!(cluster[1].reasons().contains(&thief.mac), "{}", cluster[1].reasons());
    cluster.store.put_for(&thief.key(), thief.json(), TTL * 9);
    for _ in 0..20 {
        cluster.pass(secs(30)).await;
        assert_eq!(cluster.store.get(&lease.key()).unwrap(), thief.json().as_bytes());
        assert!(cluster[1].reasons().contains("our subnet has been taken"), "{}", cluster[1].status_line());
    }
    assert_eq!(cluster[1].kernel.take_log(), [], "its containers keep the subnet");
    cluster.restart(1);
    cluster.until_ready().await;
    assert_ne!(cluster[1].subnet().unwrap(), lease.first, "a restart moves it away from a rival");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_not_taken_for_a_rival() {
    let cluster = Cluster::joined(2).await;
    let lease = cluster.lease(1);
    for _ in 0..12 {
        cluster[1].store.lose_next_answer();
        cluster.pass(TTL / 4).await;
        assert!(!cluster[1].reasons().contains("host"), "{}", cluster[1].reasons());
    }
    assert_eq!(cluster.lease(1), lease);
}

#[tokio::test(start_paused = true)]
async fn a_wiped_store_makes_no_rivals() {
    let cluster = Cluster::joined(3).await;
    cluster.store.wipe();
    cluster.store.set_config(CONFIG);
    cluster.pass(mins(5)).await;
    cluster.assert_settled();
    cluster.pass(millis(10)).await;
    assert!(cluster.running().all(|host| host.reasons().is_empty()), "{}", cluster[1].reasons());
    assert!(cluster[1].kernel.have(DEVICE).device.is_some());
}

/// Two copies of one machine with nothing but its state file, which start in the same moment.
#[tokio::test(start_paused = true)]
async fn two_copies_that_boot_in_the_same_moment_become_two_hosts() {
    for latencies in [[2, 2], [2, 3], [3, 2]] {
        let mut cluster = Cluster::new(3);
        share_address(&mut cluster);
        cluster.start(1);
        cluster.until_ready().await;
        let state = cluster[1].state_file();
        cluster[1].lose_power();
        cluster[2].nic.mac = 1;
        cluster[2].replug();
        cluster[2].set_state_file(&state);
        for (number, latency) in [1, 2].into_iter().zip(latencies) {
            cluster[number].store.set_latency(millis(latency));
        }
        cluster.start_all();
        cluster.until_ready().await;
        cluster.settle().await;
        let [first, second] = [1, 2].map(|number| cluster.lease(number).expect("it has a lease"));
        assert!(first.first != second.first && first.mac != second.mac, "{first:?} {second:?}");
    }
}

/// What is wrong between a newcomer and the store for ten seconds, beginning with its write to the lease of another.
async fn newcomer_suffers(is_copy: bool, harm: impl Fn(&Cluster), at: Duration) {
    let mut cluster = Cluster::new(3);
    share_address(&mut cluster);
    cluster.start(1);
    cluster.start(3);
    cluster.until_ready().await;
    cluster.settle().await;
    let (first, before) = (cluster.lease(1).expect("it has a lease"), cluster.store.snapshot().revision);
    if is_copy {
        let state = cluster[1].state_file();
        cluster[2].nic.mac = 1;
        cluster[2].replug();
        cluster[2].set_state_file(&state);
    }
    cluster[1].kernel.take_log();
    if at.is_zero() {
        harm(&cluster);
    }
    cluster.start(2);
    cluster.until(secs(5), "it writes", |cluster| cluster.store.snapshot().revision > before).await;
    cluster.pass(at).await;
    if !at.is_zero() {
        harm(&cluster);
    }
    cluster.pass(secs(10)).await;
    cluster[2].store.mend();
    cluster.until_ready().await;
    cluster.settle().await;
    assert_told_apart(&cluster, &first);
    cluster.pass(TTL * 2).await;
    assert_told_apart(&cluster, &first);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_that_is_cut_off_while_it_waits_for_an_answer_takes_nothing() {
    for is_copy in [false, true] {
        for at in [1, 500, 1500] {
            newcomer_suffers(is_copy, |cluster| cluster[2].store.go_down(), millis(at)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_that_does_not_hear_that_it_has_written_takes_nothing() {
    newcomer_suffers(false, |cluster| cluster[2].store.lose_next_answer(), Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_that_yields_and_finds_no_subnet_takes_nothing_after_a_restart_either() {
    let mut cluster = Cluster::new(2);
    share_address(&mut cluster);
    cluster.store.set_config(r#"{"Network":"10.5.0.0/22","Backend":{"Type":"vxlan"}}"#);
    cluster.start(1);
    cluster.until_ready().await;
    let first = cluster.lease(1).unwrap();
    for guest in (1..=3).map(|third| format!("10.5.{third}.0-24")).filter(|name| *name != first.key()) {
        cluster.store.put(&guest, r#"{"PublicIP":"192.168.0.9"}"#);
    }
    for is_copy in [false, true] {
        cluster[2].lose_state();
        if is_copy {
            cluster[2].set_state_file(&cluster[1].state_file());
        }
        cluster.start(2);
        for _ in 0..3 {
            cluster.pass(mins(1)).await;
            assert!(cluster[2].reasons().contains("out of subnets"), "{}", cluster[2].status_line());
            assert_eq!(cluster.lease(1).as_ref(), Some(&first));
            cluster.restart(2);
        }
        cluster.stop(2);
        cluster.pass(TTL * 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_left_in_the_kernel_under_the_address_that_is_ours_now_is_not_taken_over() {
    let mut cluster = Cluster::joined(3).await;
    let [first, second] = [1, 2].map(|number| cluster.lease(number).unwrap());
    cluster.stop(1);
    cluster[2].lose_power();
    cluster.store.wipe();
    cluster.store.set_config(CONFIG);
    cluster[1].nic.address = "192.168.0.2".into();
    cluster[1].replug();
    cluster.start(1);
    cluster.until(secs(10), "it has a lease", |cluster| cluster.lease(1).is_some()).await;
    let now = cluster.lease(1).unwrap();
    assert_eq!((now.first, now.mac), (first.first, first.mac));
    cluster[2].nic.address = "192.168.0.1".into();
    cluster[2].replug();
    cluster.start(2);
    cluster.until(secs(10), "it has a lease", |cluster| cluster.lease(2).is_some()).await;
    assert_eq!(cluster.lease(2).unwrap().first, second.first);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_that_is_restarted_before_it_hears_the_answer_takes_nothing() {
    for is_copy in [false, true] {
        let mut cluster = Cluster::new(3);
        share_address(&mut cluster);
        cluster.start(1);
        cluster.start(3);
        cluster.until_ready().await;
        cluster.settle().await;
        let first = cluster.lease(1).expect("it has a lease");
        if is_copy {
            cluster[2].set_state_file(&cluster[1].state_file());
        }
        cluster[1].kernel.take_log();
        cluster.start(2);
        cluster.pass(secs(1)).await;
        cluster.restart(2);
        cluster.pass(millis(1500)).await;
        cluster.restart(2);
        cluster.until_ready().await;
        cluster.settle().await;
        assert_told_apart(&cluster, &first);
        cluster.pass(TTL * 2).await;
        assert_told_apart(&cluster, &first);
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_restarted_in_its_trial_keeps_its_lease_if_nobody_answers() {
    let mut cluster = Cluster::joined(2).await;
    let lease = cluster.lease(1).unwrap();
    for loses_state in [false, true] {
        cluster[1].lose_power();
        if loses_state {
            cluster[1].lose_state();
        }
        for times in 0..6 {
            if times % 2 == 1 {
                cluster[1].store.lose_next_answer();
            }
            cluster.start(1);
            cluster.pass(millis(700)).await;
            cluster.stop(1);
        }
        cluster.start(1);
        cluster.until_ready().await;
        cluster.settle().await;
        assert_eq!(cluster.lease(1).unwrap().first, lease.first);
        assert!(cluster.running().all(|host| host.reasons().is_empty()));
    }
}

/// A perfect copy of host 1 starts.
async fn assert_copy_is_found_out(cluster: &mut Cluster) {
    let (first, state) = (cluster.lease(1).expect("it has a lease"), cluster[1].state_file());
    cluster[2].nic.mac = 1;
    cluster[2].replug();
    cluster[2].set_state_file(&state);
    cluster[1].kernel.take_log();
    cluster.start(2);
    cluster.until_ready().await;
    cluster.settle().await;
    assert_told_apart(cluster, &first);
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_found_out_also_after_renewals_have_failed() {
    let mut cluster = Cluster::new(3);
    share_address(&mut cluster);
    cluster.start(1);
    cluster.until_ready().await;
    cluster[1].store.go_down();
    cluster.until(TTL, "a renewal fails", |cluster| cluster[1].reasons().contains("cannot be renewed")).await;
    cluster[1].store.come_back();
    cluster.until(mins(3), "a renewal succeeds", |cluster| cluster[1].reasons().is_empty()).await;
    assert_copy_is_found_out(&mut cluster).await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_found_out_also_after_the_store_was_restored() {
    let mut cluster = Cluster::new(3);
    share_address(&mut cluster);
    cluster.start(1);
    cluster.until_ready().await;
    let backup = cluster.store.backup();
    for n in 0..100 {
        cluster.store.put("elsewhere", n.to_string());
    }
    cluster.store.delete("elsewhere");
    cluster.pass(TTL - RENEW_MARGIN + mins(1)).await;
    cluster.store.restore(backup);
    cluster.pass(mins(2)).await;
    assert_copy_is_found_out(&mut cluster).await;
}

/// Vagrant gives every machine the same address.
#[tokio::test(start_paused = true)]
async fn many_hosts_with_one_public_ip_get_a_subnet_each_and_take_nothing() {
    const HOSTS: u8 = 8;
    for (seed, step) in [0, 3, 50, 400, 700, 1100, 2500].into_iter().enumerate() {
        let mut cluster = Cluster::with_seed(HOSTS, 1 + seed as u64);
        for number in 2..=HOSTS {
            cluster[number].nic.address = "192.168.0.1".into();
            cluster[number].replug();
        }
        cluster.start(1);
        cluster.until_ready().await;
        let first = cluster.lease(1).expect("it has a lease");
        for number in 2..=HOSTS {
            cluster.start(number);
            cluster.pass(millis(step)).await;
        }
        cluster.until(mins(5), "all are ready", |cluster| cluster.running().all(Host::is_ready)).await;
        cluster.pass(mins(5)).await;
        assert_eq!(cluster.lease(1).as_ref(), Some(&first), "{step} ms");
        let mut subnets: Vec<_> = (1..=HOSTS).map(|number| cluster.lease(number).map(|lease| lease.first)).collect();
        subnets.sort();
        subnets.dedup();
        assert!(subnets.len() == usize::from(HOSTS) && subnets[0].is_some(), "{step} ms: {subnets:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn many_perfect_copies_of_a_host_become_hosts_of_their_own() {
    const HOSTS: u8 = 6;
    for (seed, step) in [0, 1, 3, 50, 700, 2500, 30_000].into_iter().enumerate() {
        let mut cluster = Cluster::with_seed(HOSTS, 1 + seed as u64);
        cluster.start(1);
        cluster.until_ready().await;
        let (first, state) = (cluster.lease(1).expect("it has a lease"), cluster[1].state_file());
        for number in 2..=HOSTS {
            cluster[number].nic = cluster[1].nic.clone();
            cluster[number].replug();
            cluster[number].set_state_file(&state);
        }
        for number in 2..=HOSTS {
            cluster.start(number);
            cluster.pass(millis(step)).await;
        }
        cluster.until(mins(5), "all are ready", |cluster| cluster.running().all(Host::is_ready)).await;
        cluster.pass(mins(5)).await;
        let mut leases: Vec<_> = (1..=HOSTS).map(|number| cluster.lease(number).expect("it has a lease")).collect();
        assert_eq!(leases[0], first, "{step} ms");
        for part in [|peer: &Peer| peer.first.clone(), |peer: &Peer| peer.mac.clone()] {
            leases.sort_by_key(part);
            leases.dedup_by_key(|peer| part(peer));
            assert_eq!(leases.len(), usize::from(HOSTS), "{step} ms: {leases:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_reported_no_longer_than_a_short_ttl() {
    let mut cluster = Cluster::new(1);
    let ttl = mins(2);
    cluster[1].settings.leases.times = LeaseTimes { ttl, renew_margin: secs(10) };
    cluster.start(1);
    cluster.until_ready().await;
    cluster.pass(secs(5)).await;
    let lease = cluster.lease(1).unwrap();
    let thief = Peer { mac: Peer::guest(201).mac, ..lease.clone() };
    cluster.store.put_for(&thief.key(), thief.json(), ttl);
    cluster.until(secs(1), "it is taken back", |cluster| cluster.peers().contains(&lease)).await;
    assert!(cluster[1].reasons().contains(&thief.mac), "{}", cluster[1].reasons());
    cluster.pass(ttl - secs(10)).await;
    assert!(cluster[1].reasons().contains(&thief.mac), "{}", cluster[1].reasons());
    cluster.pass(secs(20)).await;
    assert_eq!(cluster[1].reasons(), "");
}
