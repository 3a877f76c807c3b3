//! The external interface: it comes late, goes, comes back, and changes its address and its MTU.

use crate::lab::{Cluster, DEVICE, Peer, TTL, mins, secs};

#[tokio::test(start_paused = true)]
async fn an_interface_that_comes_late_is_waited_for() {
    let mut cluster = Cluster::new(1);
    cluster[1].nic.present = false;
    cluster[1].replug();
    cluster.start(1);
    cluster.pass(mins(5)).await;
    assert!(cluster[1].reasons().contains("no external interface"), "{}", cluster[1].reasons());
    assert_eq!((cluster[1].kernel.applied(), cluster[1].store.calls().write, cluster[1].status_lines()), (0, 0, 1));
    cluster[1].nic.present = true;
    cluster[1].replug();
    cluster.until_ready().await;
    cluster.settle().await;
}

#[tokio::test(start_paused = true)]
async fn an_interface_that_goes_and_returns_with_another_index_carries_everything_again() {
    for takes_device_along in [true, false] {
        let mut cluster = Cluster::joined(3).await;
        let lease = cluster.lease(1);
        cluster[1].nic.present = false;
        cluster[1].replug();
        if takes_device_along {
            cluster[1].kernel.lose_device(DEVICE);
        }
        cluster[1].kernel.take_log();
        cluster.pass(mins(5)).await;
        assert!(cluster[1].reasons().contains("external interface eth0 is gone"), "{}", cluster[1].reasons());
        assert_eq!(cluster[1].kernel.take_log(), [], "nothing can be right, so nothing is touched");
        assert!(cluster[1].status().is_alive());
        cluster[1].nic.present = true;
        cluster[1].nic.index = 9;
        cluster[1].replug();
        assert!(cluster.settle().await < secs(1));
        assert_eq!((cluster.lease(1), cluster[1].reasons()), (lease, String::new()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_address_is_published_and_the_subnet_stays() {
    let mut cluster = Cluster::joined(3).await;
    let lease = cluster.lease(1).unwrap();
    cluster[1].nic.address = "192.168.0.111".into();
    cluster[1].replug();
    assert!(cluster.settle().await < secs(1));
    assert_eq!(cluster.lease(1), Some(Peer { address: "192.168.0.111".into(), ..lease.clone() }));
    cluster.restart(1);
    cluster.until_ready().await;
    cluster.settle().await;
    assert_eq!(cluster.lease(1).unwrap().first, lease.first);
    assert_eq!((cluster.peers().len(), cluster.store.leases()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_changes_while_the_store_is_away_is_published_afterwards() {
    let mut cluster = Cluster::joined(2).await;
    cluster[1].store.go_down();
    cluster[1].nic.address = "192.168.0.111".into();
    cluster[1].replug();
    cluster.pass(mins(10)).await;
    cluster[1].store.come_back();
    cluster.until(secs(80), "it is published", |cluster| cluster.lease(1).unwrap().address == "192.168.0.111").await;
    cluster.settle().await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_added_moves_nothing() {
    let mut cluster = Cluster::joined(2).await;
    let revision = cluster.store.snapshot().revision;
    cluster[1].kernel.take_log();
    cluster[1].nic.second = Some("192.168.0.200".into());
    cluster[1].replug();
    cluster.pass(secs(30)).await;
    cluster.assert_settled();
    assert_eq!((cluster[1].kernel.take_log(), cluster.store.snapshot().revision), (vec![], revision));
}

#[tokio::test(start_paused = true)]
async fn device_and_files_follow_the_mtu() {
    let mut cluster = Cluster::joined(2).await;
    cluster[1].kernel.take_log();
    for mtu in [9000, 1400, 1500] {
        cluster[1].nic.mtu = mtu;
        cluster[1].replug();
        assert!(cluster.settle().await < secs(1));
        assert_eq!(cluster[1].kernel.take_log().len(), 1, "changed in place");
        let line = format!("FLANNEL_MTU={}\n", mtu - 50);
        assert!(cluster[1].env_file("subnet.env").contains(&line));
        assert!(cluster[1].env_file("docker_opts.env").contains(&format!("--mtu={}", mtu - 50)));
    }
}

#[tokio::test(start_paused = true)]
async fn two_hosts_that_swap_their_addresses_keep_their_subnets() {
    let mut cluster = Cluster::joined(3).await;
    let before = [1, 2].map(|number| cluster.lease(number).unwrap());
    for (number, address) in [(1, "192.168.0.2"), (2, "192.168.0.1")] {
        cluster[number].nic.address = address.into();
        cluster[number].replug();
    }
    cluster.settle().await;
    cluster.pass(TTL).await;
    cluster.assert_settled();
    for (number, before) in [1, 2].into_iter().zip(before) {
        assert_eq!(cluster.lease(number).unwrap().first, before.first);
    }
}
