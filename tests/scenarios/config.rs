//! The network config is missing, wrong, or not clear: a host waits, says for what, and joins when it is mended.

use crate::lab::{CONFIG, Cluster, Peer, TTL, mins, secs};
use flanneld::store::StoreError;

/// A host that waits, says this of it, and has touched nothing.
async fn assert_waits(cluster: &Cluster, says: &str) {
    cluster.pass(mins(10)).await;
    let host = &cluster[1];
    assert!(host.reasons().contains(says), "{says:?} is not in: {}", host.reasons());
    assert!(!host.is_ready() && host.status().is_alive() && host.status_lines() <= 2, "{:?}", host.heard());
    assert_eq!((host.kernel.applied(), host.env_file("subnet.env")), (0, String::new()));
    assert_eq!(host.store.calls().write, 0);
}

async fn assert_joins(cluster: &Cluster) {
    cluster.until(secs(5), "the host is ready", |cluster| cluster[1].is_ready()).await;
    cluster.settle().await;
    assert_eq!(cluster[1].reasons(), "");
}

#[tokio::test(start_paused = true)]
async fn a_missing_or_wrong_config_is_waited_for() {
    for (config, says) in [
        (None, "there is no key /coreos.com/network/config; check --etcd-prefix (no config was found"),
        (Some(""), "not a JSON object"),
        (Some("{"), "not a JSON object"),
        (Some("{}"), "Network is missing"),
        (Some(r#"{"Network":"10.5.0.0"}"#), "Network is \"10.5.0.0\""),
        (Some(r#"{"Network":"10.5.0.0/29","Backend":{"Type":"vxlan"}}"#), "Network is 10.5.0.0/29"),
        (Some(r#"{"Network":"10.5.0.0/16","Backend":{}}"#), "Backend has no Type"),
        (Some(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#), "Backend Type \"udp\""),
        (Some(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":-1}}"#), "Backend.VNI"),
        (Some(r#"{"Network":"10.5.0.0/16","SubnetLen":40,"Backend":{"Type":"vxlan"}}"#), "SubnetLen is 40"),
    ] {
        let mut cluster = Cluster::new(1);
        match config {
            Some(text) => cluster.store.set_config(text),
            None => cluster.store.remove_config(),
        }
        cluster.start(1);
        assert_waits(&cluster, says).await;
        cluster.store.set_config(CONFIG);
        assert_joins(&cluster).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_or_refuses_is_waited_for() {
    for error in [StoreError::Unavailable("connection refused".into()), StoreError::Refused("permission denied".into())]
    {
        let mut cluster = Cluster::new(1);
        cluster[1].store.fail_with(error.clone());
        cluster.start(1);
        assert_waits(&cluster, &format!("waiting for etcd: {error}")).await;
        cluster[1].store.come_back();
        assert_joins(&cluster).await;
    }
}

/// A config without Backend beside a lease of another backend.
fn unclear() -> (Cluster, Peer) {
    let mut cluster = Cluster::new(1);
    cluster.store.set_config(r#"{"Network":"10.5.0.0/16"}"#);
    let guest = Peer::guest(201);
    cluster.store.put_for(&guest.key(), r#"{"PublicIP":"192.168.1.201","BackendType":"host-gw"}"#, TTL);
    cluster.start(1);
    (cluster, guest)
}

#[tokio::test(start_paused = true)]
async fn without_a_backend_it_is_vxlan() {
    let mut cluster = Cluster::new(2);
    cluster.store.set_config(r#"{"Network":"10.5.0.0/16"}"#);
    cluster.start_all();
    cluster.until_ready().await;
    cluster.settle().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_backend_leases_of_another_one_are_waited_out() {
    let (cluster, guest) = unclear();
    assert_waits(&cluster, "names no Backend").await;
    cluster.store.delete(&guest.key());
    assert_joins(&cluster).await;
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_is_named_later_is_taken_up() {
    let (mut cluster, guest) = unclear();
    cluster.hostile.insert(guest.key());
    assert_waits(&cluster, "set Backend explicitly").await;
    cluster.store.set_config(CONFIG);
    assert_joins(&cluster).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_another_backend_does_not_keep_a_running_host_from_its_own() {
    let mut cluster = Cluster::new(1);
    cluster.store.set_config(r#"{"Network":"10.5.0.0/16"}"#);
    cluster.start(1);
    cluster.until_ready().await;
    cluster.settle().await;
    let lease = cluster.lease(1).unwrap();
    cluster.store.put_for("10.5.250.0-24", r#"{"PublicIP":"192.168.1.250","BackendType":"host-gw"}"#, TTL);
    cluster.hostile.insert("10.5.250.0-24".into());
    cluster.store.delete(&lease.key());
    cluster.settle().await;
    assert_eq!(cluster.lease(1), Some(lease));
}

#[tokio::test(start_paused = true)]
async fn a_wider_network_ends_the_wait_of_a_host_without_subnet() {
    let mut cluster = Cluster::new(1);
    cluster.store.set_config(r#"{"Network":"10.5.0.0/22","Backend":{"Type":"vxlan"}}"#);
    for guest in (1..=3).map(Peer::guest) {
        cluster.store.put_for(&guest.key(), guest.json(), TTL);
    }
    cluster.start(1);
    assert_waits(&cluster, "out of subnets").await;
    cluster.store.set_config(CONFIG);
    assert_joins(&cluster).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_does_not_fit_the_config_any_more_is_given_up_for_one_that_does() {
    let mut cluster = Cluster::joined(1).await;
    let old = cluster.lease(1).unwrap();
    cluster.stop(1);
    cluster.store.set_config(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.250.0","Backend":{"Type":"vxlan"}}"#);
    cluster.start(1);
    cluster.until_ready().await;
    cluster.settle().await;
    let new = cluster.lease(1).unwrap();
    assert!(new.first.starts_with("10.5.25") && new.mac == old.mac && cluster.peers().len() == 1, "{new:?}");
}
