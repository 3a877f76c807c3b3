//! Joining: alone, together, in any order.

use crate::lab::{Cluster, Host, millis, secs};

#[tokio::test(start_paused = true)]
async fn a_host_alone_is_ready_at_once_and_has_a_subnet() {
    let mut cluster = Cluster::new(1);
    cluster.start(1);
    assert!(cluster.until_ready().await < secs(1));
    cluster.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn three_hosts_reach_each_other() {
    let cluster = Cluster::joined(3).await;
    assert_eq!(cluster.peers().len(), 3);
    assert_eq!(cluster.store.leases(), 3);
    assert!(cluster.running().all(|host| host.reasons().is_empty()));
}

#[tokio::test(start_paused = true)]
async fn hosts_come_in_any_order_and_each_learns_the_others_at_once() {
    for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
        let mut cluster = Cluster::new(3);
        for number in order {
            cluster.start(number);
            cluster.until_ready().await;
            assert!(cluster.settle().await < millis(50));
            cluster.pass(secs(7)).await;
            cluster.assert_settled();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn fifty_hosts_that_start_together_get_fifty_subnets() {
    let mut cluster = Cluster::new(50);
    cluster.start_all();
    cluster.until_ready().await;
    cluster.settle().await;
    assert_eq!((cluster.peers().len(), cluster.store.leases()), (50, 50));
    assert!(cluster.running().all(Host::is_ready));
}
