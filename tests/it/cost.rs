//! What the daemons cost etcd does not grow with the number of peers, as etcd's own metrics show.

use std::time::{Duration, Instant};

use flanneld::store::Registry;
use flanneld::store::etcd::EtcdStore;

use crate::lab::{Calls, DEVICE, Etcd, Host, Lab, Lease, WIDE_CONFIG, wait_until};

/// How long a debug build on a busy machine may take for thousands of peers.
const LIMIT: Duration = Duration::from_secs(60);

/// A periodic check of everything may fall into any stretch of time.
const CHECKS: u64 = 2;

fn peers(count: u32) -> Vec<Lease> {
    (0..count).map(Lease::numbered).collect()
}

/// Joins a network of so many peers; gives what that cost.
fn join(etcd: &Etcd, host: &mut Host, count: u32) -> Calls {
    let prefix = format!("/network-of-{count}");
    etcd.put(&format!("{prefix}/config"), WIDE_CONFIG);
    etcd.fill(&prefix, &peers(count));
    let calls = etcd.calls_during(|| {
        host.start(&[&format!("--etcd-prefix={prefix}")]);
        knows(host, count);
        assert!(host.ready_within(LIMIT));
    });
    println!("{count} peers: {calls:?}");
    calls
}

/// Waits until the host's kernel has a route to each of so many peers.
fn knows(host: &Host, count: u32) {
    let routes = || host.routes(DEVICE).len();
    assert!(wait_until(LIMIT, || routes() == count as usize), "{} routes within {LIMIT:?}", routes());
}

#[test]
fn joining_costs_the_same_few_calls_whatever_the_number_of_peers() {
    let lab = Lab::new("join-cost");
    let etcd = lab.etcd();
    let mut hosts = lab.hosts(2);
    let (mut few, mut many) = (join(&etcd, &mut hosts[0], 50), join(&etcd, &mut hosts[1], 2000));
    // A list begins with a short page, and the next ones grow.
    let lists = [&mut few, &mut many].map(|calls| calls.remove("Range").expect("a list"));
    assert!(lists[0] <= 3 && lists[1] <= lists[0] + 3, "{lists:?}");
    assert_eq!(few, many);
    assert!(!many.contains_key("LeaseTimeToLive"), "{many:?}");
}

#[test]
fn peers_that_come_and_go_cost_no_call() {
    let lab = Lab::new("event-cost");
    let etcd = lab.etcd();
    let mut host = lab.host(1);
    join(&etcd, &mut host, 50);
    let (all, prefix) = (peers(250), "/network-of-50");
    let mut calls = etcd.calls_during(|| {
        etcd.fill(prefix, &all[50..]);
        knows(&host, 250);
        etcd.empty(prefix, &all[50..]);
        knows(&host, 50);
    });
    println!("200 peers that came and went: {calls:?}");
    // Those of this test.
    assert!(calls.remove("Txn").is_some_and(|count| count >= 4) && calls.remove("LeaseGrant") == Some(1));
    assert!(!calls.contains_key("Watch") && !calls.contains_key("LeaseTimeToLive"), "{calls:?}");
    assert!(calls.values().sum::<u64>() <= CHECKS, "{calls:?}");
}

#[test]
fn a_hundred_thousand_leases_are_listed_completely_in_few_calls() {
    const COUNT: u32 = 100_000;
    let etcd = Etcd::on_loopback();
    // /24 would be too few.
    let lease = |n: u32| Lease {
        subnet: format!("10.{}.{}.{}/26", n >> 10, n >> 2 & 255, (n & 3) << 6),
        ..Lease::numbered(n % 50_000)
    };
    etcd.fill("/many", &(0..COUNT).map(lease).collect::<Vec<_>>());
    let store = EtcdStore::new(vec![etcd.endpoint()], "/many").expect("an endpoint");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let began = Instant::now();
    let mut listed = None;
    let mut calls = etcd.calls_during(|| listed = Some(runtime.block_on(store.list()).expect("all leases")));
    println!("{COUNT} leases listed in {:.1?}: {calls:?}", began.elapsed());

    let mut names: Vec<_> = listed.expect("a list").records.into_iter().map(|record| record.name).collect();
    assert!(names.is_sorted());
    names.dedup();
    assert_eq!(names.len(), COUNT as usize);
    let pages = calls.remove("Range").expect("pages");
    assert!(pages <= u64::from(COUNT / 5_000) && calls.is_empty(), "{pages} pages, {calls:?}");
}
