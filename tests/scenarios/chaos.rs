//! Everything goes wrong at random, for a while. Afterwards every host must hold what the leases say, and at no time
//! may two hosts that are connected to the store keep one subnet.

use crate::lab::{CONFIG, Cluster, DEVICE, Peer, TTL, millis, mins, secs, seed};
use flanneld::store::StoreError;
use nix::libc::{EBUSY, ENOBUFS};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;

const HOSTS: u8 = 5;

/// What can go wrong: its name, for the message when it leads to a failure, and the deed, at a host and with a number
/// that are both chosen at random.
type Mishap = (&'static str, fn(&mut Cluster, u8, u64));

const MISHAPS: &[Mishap] = &[
    ("a daemon stops or starts", stop_or_start),
    ("a daemon stops or starts", stop_or_start),
    ("a host loses its power", |cluster, at, _| cluster[at].lose_power()),
    ("subnet.env is lost", |cluster, at, _| cluster[at].lose_env_files()),
    ("a host is cut off", |cluster, at, _| cluster[at].store.go_down()),
    ("a host is cut off", |cluster, at, _| cluster[at].store.go_down()),
    ("a host is connected again", |cluster, at, _| cluster[at].store.come_back()),
    ("an answer is lost", |cluster, at, _| cluster[at].store.lose_next_answer()),
    ("the store is slow", |cluster, at, number| cluster[at].store.set_latency(millis(number % 500))),
    ("a key is deleted", |cluster, at, _| {
        cluster.lease(at).map(|lease| cluster.store.delete(&lease.key()));
    }),
    ("all keys are deleted", |cluster, _, _| assert!(cluster.store.delete_prefix("") < 100)),
    ("history is lost", |cluster, at, _| {
        cluster.store.compact(cluster.store.snapshot().revision);
        cluster[at].store.cut_watches(StoreError::Unavailable("no leader".into()));
    }),
    ("a device is lost", |cluster, at, _| cluster[at].kernel.lose_device(DEVICE)),
    ("a kernel refuses", |cluster, at, number| {
        let errno = if number % 2 == 0 { EBUSY } else { ENOBUFS };
        cluster[at].kernel.fail_next(|_| true, errno, (number % 9) as usize);
    }),
    ("a kernel cannot be read", |cluster, at, _| cluster[at].kernel.fail_next_reads(ENOBUFS, 3)),
    ("an MTU changes", |cluster, at, number| {
        cluster[at].nic.mtu = 1400 + (number % 7000) as u32;
        cluster[at].replug();
    }),
    ("an interface goes or comes", |cluster, at, _| {
        cluster[at].nic.present = !cluster[at].nic.present;
        cluster[at].nic.index += 1;
        cluster[at].replug();
    }),
    ("an address changes", |cluster, at, number| {
        cluster[at].nic.address = format!("192.168.{}.{at}", number % 200 + 2);
        cluster[at].replug();
    }),
    ("a guest comes", |cluster, _, number| {
        let guest = Peer::guest(201 + (number % 4) as u8);
        cluster.store.put_for(&guest.key(), guest.json(), TTL * 2);
    }),
];

fn stop_or_start(cluster: &mut Cluster, at: u8, _: u64) {
    if cluster[at].runs() { cluster.stop(at) } else { cluster.start(at) }
}

fn mend(cluster: &mut Cluster) {
    for number in cluster.numbers() {
        cluster[number].store.come_back();
        cluster[number].store.set_latency(millis(2));
        cluster[number].nic.present = true;
        cluster[number].replug();
        if !cluster[number].runs() {
            cluster.start(number);
        }
    }
}

async fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::with_seed(HOSTS, seed);
    cluster.store.set_config(CONFIG);
    cluster.start_all();
    for _ in 0..3 {
        let mut mishaps = Vec::new();
        for _ in 0..rng.random_range(1..25) {
            let (name, happen) = MISHAPS[rng.random_range(0..MISHAPS.len())];
            let at = rng.random_range(1..=HOSTS);
            mishaps.push((name, at));
            happen(&mut cluster, at, rng.random());
            cluster.pass(millis(rng.random_range(0..20_000))).await;
        }
        if rng.random_range(0..4) == 0 {
            cluster.pass(TTL + mins(5)).await;
        }
        mend(&mut cluster);
        // Longer than any pause of a daemon, and than peers are held that are gone for good.
        cluster.pass(secs(180)).await;
        cluster.pass(TTL * 2 + mins(5)).await;
        let why = || format!("{seed}: {mishaps:?}: {:?}", cluster.running().map(|h| h.status()).collect::<Vec<_>>());
        assert!(cluster.differences().is_empty(), "{}\n{}", why(), cluster.differences().join("\n"));
        assert!(cluster.running().all(|host| host.is_ready() && host.reasons().is_empty()), "{}", why());
        let subnets: BTreeSet<_> = cluster.running().map(|host| host.subnet()).collect();
        assert_eq!(subnets.len(), usize::from(HOSTS), "{}", why());
    }
}

#[tokio::test(start_paused = true)]
async fn after_any_mishaps_every_host_holds_what_the_leases_say() {
    for round in 0..2 {
        run(seed() * 1000 + round).await;
    }
}
