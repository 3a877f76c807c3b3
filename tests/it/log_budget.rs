//! Somebody damages the host's tables again and again. The log says so, stays short, and has room for what is new.

use std::time::{Duration, Instant};

use crate::lab::{Lab, Lease, PREFIX, Tables, eventually, eventually_eq, wait_until};

/// Of these lines, which follow each other within a minute or two, each minute has its share.
const A_MINUTE: usize = 100;

#[test]
fn a_flood_of_repairs_is_some_lines_and_a_summary_and_what_is_new_is_logged() {
    let lab = Lab::new("flood");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.join();
    let guests: Vec<Lease> = (200..=249).map(Lease::guest).collect();
    etcd.put_leases(&guests);
    eventually_eq("all peers are wired", &Tables::to(&guests), || host.tables());
    let (mark, began) = (host.log().len(), Instant::now());
    for _ in 0..10 {
        host.sh("for n in $(seq 200 249); do ip route del 172.30.$n.0/24 2>/dev/null || true; sleep 0.005; done");
    }
    etcd.put(&format!("{PREFIX}/subnets/something-new"), "{}");
    eventually("what is new is logged", || host.log_since(mark).contains("lease=\"something-new\""));
    let minutes = began.elapsed().as_secs() as usize / 60 + 2;
    let log = host.log_since(mark);
    let lines = log.lines().count();
    assert!(log.contains("repaired: ") && lines <= minutes * A_MINUTE, "{lines} lines:\n{log}");
    let summary = || host.log_since(mark).lines().any(|line| line.contains("suppressed in the last minute: "));
    assert!(wait_until(Duration::from_secs(100), summary), "no summary:\n{}", host.log_since(mark));
}
