//! The kernel refuses, fails, forgets: what can be done is done at once, and the rest as soon as it can be.

use crate::lab::{Cluster, DEVICE, Host, Peer, TTL, millis, mins, secs};
use flanneld::kernel::Event;
use flanneld::model::device::ExistingDevice;
use flanneld::model::entry::{Oif, Route};
use flanneld::model::kernel_state::Entry;
use flanneld::model::plan::Op;
use nix::libc::{EBUSY, EEXIST, ENETDOWN, ENOBUFS, ENODEV, ENOMEM, EPERM};
use std::net::IpAddr;

/// Whether an operation is about this guest.
fn is_about(guest: &Peer) -> impl Fn(&Op) -> bool + 'static {
    let words = [guest.first.clone() + " ", guest.first.clone() + "/", guest.mac.clone()];
    move |op| words.iter().any(|word| format!("{op} ").contains(word))
}

fn lines_about<'l>(lines: &'l [String], guest: &Peer) -> Vec<&'l String> {
    lines.iter().filter(|line| line.contains(&guest.first) || line.contains(&guest.mac)).collect()
}

fn put(cluster: &Cluster, guest: &Peer) {
    cluster.store.put_for(&guest.key(), guest.json(), TTL);
}

#[tokio::test(start_paused = true)]
async fn one_failing_peer_delays_no_other_and_comes_later() {
    for errno in [EBUSY, EPERM, ENOBUFS, ENOMEM] {
        let cluster = Cluster::joined(1).await;
        let bad = Peer::guest(205);
        cluster[1].kernel.fail_next(is_about(&bad), errno, 7);
        (201..=210).map(Peer::guest).for_each(|guest| put(&cluster, &guest));
        cluster.pass(millis(20)).await;
        let lines = cluster[1].lines();
        for good in (201..=210).map(Peer::guest).filter(|guest| *guest != bad) {
            assert_eq!(lines_about(&lines, &good).len(), 3, "{errno} {good:?}");
        }
        assert_eq!(lines_about(&lines, &bad).len(), 0);
        cluster.pass(millis(130)).await;
        assert!(cluster[1].reasons().contains("10.5.205.0"), "{}", cluster[1].reasons());
        cluster.settle().await;
        cluster.pass(secs(2)).await;
        assert_eq!(cluster[1].reasons(), "");
    }
}

/// A batch that fails in the middle may have done more than it acknowledged.
#[tokio::test(start_paused = true)]
async fn the_kernel_is_read_again_before_a_refused_operation_is_retried() {
    for errno in [EBUSY, ENOBUFS] {
        let cluster = Cluster::joined(3).await;
        let bad = Peer::guest(205);
        cluster[1].kernel.fail_next_halfway(is_about(&bad), errno, 1, |have| {
            have.routes.clear();
            have.fdb.clear();
        });
        put(&cluster, &bad);
        // Long before the next periodic reading.
        cluster.pass(secs(1)).await;
        cluster.assert_settled();
    }
}

/// The report of a lost device follows those of its entries, and an operation may come in between.
#[tokio::test(start_paused = true)]
async fn the_kernel_is_read_at_once_when_an_operation_finds_the_device_gone_or_down() {
    for (errno, is_down) in [(ENODEV, false), (ENETDOWN, true)] {
        let cluster = Cluster::joined(3).await;
        let guest = Peer::guest(205);
        cluster[1].kernel.fail_next_halfway(is_about(&guest), errno, 1, move |have| {
            have.routes.clear();
            match &mut have.device {
                Some(ExistingDevice::Known(_, device)) if is_down => device.up = false,
                device => *device = None,
            }
        });
        put(&cluster, &guest);
        // Before the first retry, which comes after some 100 ms.
        cluster.pass(millis(60)).await;
        let lines = cluster[1].lines();
        assert!(lines.iter().any(|line| line.starts_with("device") && line.contains(" up ")), "{errno}: {lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("route")), "{errno}: {lines:?}");
        cluster.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_device_events_causes_some_readings_a_second() {
    let cluster = Cluster::joined(2).await;
    let (nic, seconds) = (cluster[1].nic.index, 20);
    for event in [Event::Device, Event::Host { index: nic, name: None }] {
        let before = cluster[1].kernel.reads();
        for _ in 0..seconds * 500 {
            cluster[1].kernel.report(event.clone());
            cluster.pass(millis(2)).await;
        }
        // A full reading is one of the host's interfaces and one of the device. At first 40 come at once.
        let (reads, most) = (cluster[1].kernel.reads() - before, 2 * (40 + seconds * 1000 / 50));
        assert!((100..=most).contains(&reads), "{reads} readings in {seconds} s of {event:?}");
        cluster.pass(mins(1)).await;
    }
    cluster.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn a_failing_change_or_removal_delays_no_other_and_comes_later() {
    let cluster = Cluster::joined(1).await;
    (201..=205).map(Peer::guest).for_each(|guest| put(&cluster, &guest));
    cluster.settle().await;
    cluster[1].kernel.fail_next(is_about(&Peer::guest(201)), ENOBUFS, 4);
    cluster[1].kernel.fail_next(is_about(&Peer::guest(202)), EBUSY, 4);
    cluster.store.delete(&Peer::guest(201).key());
    put(&cluster, &Peer { address: "192.168.1.77".into(), ..Peer::guest(202) });
    cluster.store.delete(&Peer::guest(203).key());
    put(&cluster, &Peer { mac: "0e:00:00:00:00:77".into(), ..Peer::guest(204) });
    cluster.pass(millis(20)).await;
    let lines = cluster[1].lines();
    assert!(lines_about(&lines, &Peer::guest(203)).is_empty());
    assert!(lines.iter().any(|line| line.contains("10.5.204.0 lladdr 0e:00:00:00:00:77")), "{lines:?}");
    cluster.settle().await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_fails_for_ever_keeps_nobody_from_getting_ready() {
    let mut cluster = Cluster::new(2);
    let bad = Peer::guest(205);
    put(&cluster, &bad);
    cluster.hostile.insert(bad.key());
    for host in [1, 2] {
        cluster[host].kernel.fail_next(is_about(&bad), EPERM, usize::MAX);
    }
    cluster.start_all();
    assert!(cluster.until_ready().await < secs(1));
    cluster.settle().await;
    let tried = cluster[1].status().read().counters.kernel_failures;
    cluster.pass(mins(30)).await;
    cluster.assert_settled();
    assert!(cluster[1].reasons().contains("10.5.205.0"));
    assert!(cluster[1].status_lines() < 10, "{:?}", cluster[1].heard());
    let tried = cluster[1].status().read().counters.kernel_failures - tried;
    assert!((30..2000).contains(&tried), "tried {tried} times in half an hour");
}

#[tokio::test(start_paused = true)]
async fn without_device_or_address_a_host_is_not_ready() {
    let fails_at: [fn(&Op) -> bool; 2] =
        [|op| matches!(op, Op::CreateDevice(_)), |op| matches!(op, Op::Set(Entry::Address(_)))];
    for applies in fails_at {
        let mut cluster = Cluster::new(1);
        cluster[1].kernel.fail_next(applies, EBUSY, 6);
        cluster.start(1);
        cluster.pass(secs(1)).await;
        assert!(!cluster[1].is_ready() && cluster[1].reasons().contains("fails"), "{}", cluster[1].status_line());
        cluster.until(secs(90), "it is ready", |cluster| cluster[1].is_ready()).await;
        cluster.assert_settled();
    }
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_cannot_be_read_is_read_again() {
    let mut cluster = Cluster::new(1);
    cluster[1].kernel.fail_next_reads(ENOBUFS, 3);
    cluster.start(1);
    cluster.until_ready().await;
    cluster.settle().await;
    cluster[1].kernel.fail_next_reads(ENOBUFS, 5);
    cluster[1].kernel.lose_device(DEVICE);
    cluster.settle().await;
    cluster.pass(secs(1)).await;
    assert_eq!(cluster[1].reasons(), "");
}

#[tokio::test(start_paused = true)]
async fn a_lost_device_is_back_with_the_same_mac_and_all_peers() {
    let cluster = Cluster::joined(3).await;
    let counts = || (cluster[1].status().read().counters.kernel_changes, cluster[1].status().read().counters.repairs);
    let (changes, repairs) = counts();
    assert_eq!(repairs, 0, "what the leases ask for is no repair");
    cluster[1].kernel.lose_device(DEVICE);
    assert!(cluster.settle().await < secs(1));
    // The device, its address, and three entries for each of two peers.
    assert_eq!(counts(), (changes, 8));
    put(&cluster, &Peer::guest(201));
    cluster.settle().await;
    assert_eq!(counts(), (changes + 3, 8));
}

/// A host that is paused, suspended or short of processors in the midst of a reading sees it take long.
#[tokio::test(start_paused = true)]
async fn a_reading_that_took_long_holds_up_no_later_repair() {
    let cluster = Cluster::joined(2).await;
    for time in [secs(1), mins(5)] {
        cluster[1].kernel.slow_down_reading(time);
        cluster[1].kernel.lose_device(DEVICE);
        cluster.pass(time * 4 + secs(1)).await;
        cluster[1].kernel.slow_down_reading(secs(0));
        cluster[1].kernel.damage_silently(DEVICE, |have| have.routes.clear());
        cluster.pass(mins(13)).await;
        cluster.assert_settled();
        for _ in 0..10 {
            cluster[1].kernel.lose_device(DEVICE);
            let took = cluster.settle().await;
            assert!(took < secs(2), "{took:?} after a reading of {time:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_without_a_word_is_back_after_a_while() {
    let cluster = Cluster::joined(3).await;
    cluster[1].kernel.damage_silently(DEVICE, |have| {
        have.routes.clear();
        have.neighbors.clear();
        have.fdb.clear();
        have.addresses.clear();
    });
    cluster.pass(secs(80)).await;
    cluster.assert_settled();
    assert!(cluster[1].status().read().counters.repairs > 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ours_stays() {
    let cluster = Cluster::joined(2).await;
    let foreign = |dest: &str, oif, protocol| Route {
        dest: dest.parse().unwrap(),
        gateway: None,
        oif,
        onlink: false,
        metric: 0,
        protocol,
    };
    let routes = [
        foreign("10.5.240.0/24", Oif::Other(5), 2),
        foreign("10.5.241.0/24", Oif::Other(5), 4),
        foreign("192.168.77.0/24", Oif::Ours, 4),
        foreign("10.5.242.0/24", Oif::Special(6), 4),
    ];
    cluster[1].kernel.damage(DEVICE, |have| {
        routes.iter().for_each(|route| have.routes.entry(route.dest).or_default().push(*route));
        have.addresses.insert("172.20.0.1/24".parse().unwrap(), ());
    });
    cluster[1].kernel.take_log();
    cluster.pass(mins(5)).await;
    assert_eq!(cluster[1].kernel.take_log(), []);
    let have = cluster[1].kernel.have(DEVICE);
    assert!(routes.iter().all(|route| have.routes[&route.dest].contains(route)));
}

#[tokio::test(start_paused = true)]
async fn a_connected_network_in_a_peers_place_stays_and_is_reported() {
    let cluster = Cluster::joined(1).await;
    let guest = Peer::guest(201);
    let connected = Route {
        dest: "10.5.201.0/24".parse().unwrap(),
        gateway: None,
        oif: Oif::Other(7),
        onlink: false,
        metric: 0,
        protocol: 2,
    };
    cluster[1].kernel.damage(DEVICE, |have| drop(have.routes.insert(connected.dest, [connected].into())));
    cluster[1].kernel.fail_next(|op| matches!(op, Op::Set(Entry::Route(_))), EEXIST, usize::MAX);
    put(&cluster, &guest);
    put(&cluster, &Peer::guest(202));
    cluster.pass(mins(2)).await;
    let host: &Host = &cluster[1];
    assert!(host.kernel.have(DEVICE).routes[&connected.dest].contains(&connected));
    assert!(host.reasons().contains("10.5.201.0/24"), "{}", host.status_line());
    assert_eq!(lines_about(&host.lines(), &Peer::guest(202)).len(), 3);
    assert!(host.kernel.have(DEVICE).neighbors.contains_key(&IpAddr::from([10, 5, 202, 0])));
}

#[tokio::test(start_paused = true)]
async fn while_the_device_cannot_be_made_nobody_spins_over_the_entries_that_need_it() {
    let cluster = Cluster::joined(3).await;
    let host = &cluster[1];
    host.kernel.refuse_all(Some(EPERM));
    host.kernel.damage(DEVICE, |have| have.routes.clear());
    cluster.pass(secs(10)).await;
    host.kernel.lose_device(DEVICE);
    cluster.pass(secs(10)).await;
    let wakes = host.wakes();
    cluster.pass(secs(120)).await;
    assert!(host.wakes() - wakes < 600, "{} wakes in two minutes", host.wakes() - wakes);
    host.kernel.refuse_all(None);
    cluster.pass(secs(40)).await;
    cluster.assert_settled();
}
