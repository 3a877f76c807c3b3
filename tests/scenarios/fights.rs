//! Repairs that do not last: whatever the kernel reports and whoever undoes them, the daemon comes to rest or becomes slow, says so,
//! and is quick again when it is over.

use crate::lab::{Cluster, DEVICE, Peer, TTL, mins, secs};
use flanneld::kernel::Event;
use flanneld::model::entry::{FdbEntry, FdbReport, Neighbor, NeighborState, RouteReport};
use flanneld::model::kernel_state::{Entry, Have, Key, Observed};
use flanneld::model::plan::Op;
use std::cell::Cell;
use std::collections::BTreeMap;

/// Two hosts with three more peers.
async fn cluster() -> Cluster {
    let cluster = Cluster::joined(2).await;
    for guest in (201..=203).map(Peer::guest) {
        cluster.store.put_for(&guest.key(), guest.json(), TTL * 100);
    }
    cluster.settle().await;
    cluster[1].kernel.take_log();
    cluster
}

/// What the kernel reports of an operation when it reports what was asked for.
fn as_asked(op: &Op) -> Vec<Event> {
    let entry = match op {
        Op::Set(Entry::Neighbor(Neighbor { ip, mac })) => {
            Observed::Neighbor((*ip, Some(NeighborState { mac: Some(*mac), permanent: true })))
        }
        Op::Delete(Entry::Neighbor(Neighbor { ip, .. })) => Observed::Neighbor((*ip, None)),
        Op::Set(Entry::FdbEntry(entry)) => Observed::FdbEntry(FdbReport::Set(*entry)),
        Op::Delete(Entry::FdbEntry(entry)) => Observed::FdbEntry(FdbReport::Gone(*entry)),
        Op::Add(Entry::Route(route)) => Observed::Route(RouteReport::Added(*route)),
        Op::Set(Entry::Route(route)) => Observed::Route(RouteReport::Replaced(*route)),
        Op::Delete(Entry::Route(route)) => Observed::Route(RouteReport::Gone(*route)),
        Op::ClearFdb(_) => return vec![],
        _ => return vec![Event::Device],
    };
    vec![Event::Entry(entry)]
}

fn foreign(op: &Op) -> Vec<Event> {
    let mut events = as_asked(op);
    if let Op::Set(Entry::FdbEntry(FdbEntry { mac, .. })) = op {
        events.push(Event::Entry(Observed::FdbEntry(FdbReport::Foreign(*mac))));
    }
    events
}

/// How often each object was repaired since the log was last taken.
fn repairs(cluster: &Cluster) -> BTreeMap<Key, usize> {
    let mut counts = BTreeMap::new();
    for op in cluster[1].kernel.take_log().iter().filter(|op| !matches!(op, Op::ClearFdb(_))) {
        *counts.entry(op.key()).or_default() += 1;
    }
    counts
}

/// Everything is as it should be within some minutes, and nothing is reported any more.
async fn is_over(cluster: &Cluster) {
    cluster[1].kernel.mend();
    cluster.pass(mins(5)).await;
    cluster.assert_settled();
    assert_eq!(cluster[1].reasons(), "");
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_is_reported_as_it_was_asked_for_is_not_repeated() {
    let cluster = cluster().await;
    cluster[1].kernel.answer_each(|op, _| [as_asked(op), as_asked(op), as_asked(op)].concat());
    cluster[1].kernel.disturb(DEVICE, |have| {
        have.fdb.clear();
        have.neighbors.clear();
        have.routes.clear();
    });
    cluster.settle().await;
    assert!(repairs(&cluster).values().all(|times| *times == 1));
    cluster.pass(mins(30)).await;
    assert_eq!(cluster[1].kernel.applied(), 0);
}

#[tokio::test(start_paused = true)]
async fn reports_that_say_nothing_lead_to_readings_and_to_no_repair() {
    let cluster = cluster().await;
    cluster[1].kernel.answer_each(|_, _| vec![Event::Unclear; 100]);
    let reads = cluster[1].kernel.reads();
    cluster[1].kernel.disturb(DEVICE, |have| have.fdb.clear());
    for _ in 0..600 {
        cluster[1].kernel.report(Event::Unclear);
        cluster.pass(secs(1)).await;
    }
    assert_eq!(cluster[1].kernel.applied(), 4);
    // A reading is of the host's interfaces and of the device.
    let reads = (cluster[1].kernel.reads() - reads) / 2;
    assert!(reads < 1300, "{reads} in ten minutes");
}

/// So report kernels up to 6.12, if the second report of a change is taken for one.
#[tokio::test(start_paused = true)]
async fn an_entry_that_is_always_reported_as_another_is_left_alone_after_a_reading() {
    let cluster = cluster().await;
    cluster[1].kernel.answer_each(|op, _| foreign(op));
    cluster[1].kernel.disturb(DEVICE, |have| have.fdb.clear());
    cluster.pass(secs(10)).await;
    assert!(cluster[1].reasons().contains("do not last"), "{}", cluster[1].reasons());
    cluster.pass(mins(10)).await;
    let first = repairs(&cluster);
    assert!(first.len() == 4 && first.values().all(|times| (40..70).contains(times)), "{first:?}");
    cluster.pass(mins(60)).await;
    assert_eq!(repairs(&cluster), BTreeMap::new());
    is_over(&cluster).await;
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_always_moved_is_put_back_once_a_minute() {
    let cluster = cluster().await;
    cluster[1].kernel.answer_each(|op, have| {
        if let Op::Set(Entry::FdbEntry(FdbEntry { mac, .. })) = op {
            have.fdb.insert(*mac, Default::default());
        }
        foreign(op)
    });
    cluster[1].kernel.disturb(DEVICE, |have| have.fdb.clear());
    cluster.pass(mins(10)).await;
    let first = repairs(&cluster);
    assert!(first.len() == 4 && first.values().all(|times| (40..70).contains(times)), "{first:?}");
    cluster.pass(mins(60)).await;
    let later = repairs(&cluster);
    assert!(later.len() == 4 && later.values().all(|times| (50..70).contains(times)), "{later:?}");
    assert!(cluster[1].reasons().contains("FDB entry"), "{}", cluster[1].reasons());
    assert!(cluster[1].status_lines() < 10, "{:?}", cluster[1].heard());
    is_over(&cluster).await;
}

/// A new peer comes and goes at once while others are fought over.
#[tokio::test(start_paused = true)]
async fn a_fight_holds_up_nothing_that_the_store_asks_for() {
    let cluster = cluster().await;
    cluster[1].kernel.answer_each(|op, _| foreign(op));
    cluster[1].kernel.disturb(DEVICE, |have| have.fdb.clear());
    cluster.pass(mins(10)).await;
    let guest = Peer { address: "192.168.1.77".into(), ..Peer::guest(201) };
    cluster.store.put_for(&guest.key(), guest.json(), TTL * 100);
    cluster.pass(secs(1)).await;
    assert!(cluster[1].lines().iter().any(|line| line.contains("dst 192.168.1.77")), "{:?}", cluster[1].lines());
    is_over(&cluster).await;
}

/// Each change is answered by damage to another object, which only a reading in full shows.
#[tokio::test(start_paused = true)]
async fn damage_to_ever_other_objects_slows_down_too() {
    let cluster = cluster().await;
    let turn = Cell::new(0);
    cluster[1].kernel.answer_each(move |_, have: &mut Have| {
        turn.set(turn.get() + 1);
        let all = [have.neighbors.len(), have.fdb.len(), have.routes.len()];
        match turn.get() % 3 {
            0 => drop(
                have.neighbors.keys().copied().nth(turn.get() / 3 % all[0].max(1)).map(|ip| have.neighbors.remove(&ip)),
            ),
            1 => drop(have.fdb.keys().copied().nth(turn.get() / 3 % all[1].max(1)).map(|mac| have.fdb.remove(&mac))),
            _ => drop(
                have.routes.keys().copied().nth(turn.get() / 3 % all[2].max(1)).map(|net| have.routes.remove(&net)),
            ),
        }
        vec![Event::Device]
    });
    cluster[1].kernel.disturb(DEVICE, |have| have.fdb.clear());
    cluster.pass(mins(180)).await;
    repairs(&cluster);
    assert!(cluster[1].reasons().contains("do not last"), "{}", cluster[1].reasons());
    cluster.pass(mins(60)).await;
    let later: usize = repairs(&cluster).values().sum();
    // There are twelve objects.
    assert!(later < 12 * 70, "{later} repairs in an hour");
    assert!(cluster[1].status_lines() < 10, "{:?}", cluster[1].heard());
    is_over(&cluster).await;
}
