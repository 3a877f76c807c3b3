//! Many peers.

use crate::lab::*;
use flanneld::model::entry::Address;
use flanneld::model::plan::{Op, Plan};
use std::time::Instant;

/// Joins `peers` peers, leaves them again, and prints how long each step took.
async fn join_and_leave(mut lab: Lab, peers: u32) {
    lab.scope.networks = [net("10.0.0.0/8")].into_iter().collect();
    let mut want = lab.want();
    want.addresses = Default::default();
    want.demand(Address(net("10.255.255.0/32")));
    lab.reach(&want).await;
    (0..peers).for_each(|n| add_peer(&mut want, n));
    let have = lab.have().await;
    let ops: Vec<Op> = Plan::between(&have, &want, &lab.scope).steps.into_iter().map(|step| step.op).collect();
    assert_eq!(ops.len() as u32, 3 * peers);

    let start = Instant::now();
    lab.must(&ops).await;
    let applied = start.elapsed();
    let start = Instant::now();
    let have = lab.have().await;
    let observed = start.elapsed();
    let start = Instant::now();
    let left = Plan::between(&have, &want, &lab.scope);
    let planned = start.elapsed();
    assert!(left.is_empty(), "{} steps left", left.steps.len());

    (want.neighbors, want.fdb, want.routes) = Default::default();
    let ops = lab.plan(&want).await;
    assert_eq!(ops.len() as u32, 3 * peers);
    let start = Instant::now();
    lab.must(&ops).await;
    let deleted = start.elapsed();
    assert_eq!(lab.plan(&want).await, []);
    println!(
        "{peers} peers: applied in {applied:?}, observed in {observed:?}, compared in {planned:?}, gone in {deleted:?}"
    );
}

#[test]
fn ten_thousand_peers_are_programmed_and_read_back() {
    on_a_new_host(async |lab| join_and_leave(lab, 10_000).await);
}
