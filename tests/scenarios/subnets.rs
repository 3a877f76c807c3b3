//! Which subnet a host takes, and what it does about one that cannot work.

use crate::lab::{CONFIG, Cluster, Peer, TTL, millis, mins, secs};

/// The quarter of the network that holds a host's subnet, as a key.
fn quarter_around(cluster: &Cluster, number: u8) -> String {
    let first = cluster.lease(number).expect("it has a lease").first;
    let third: u8 = first.split('.').nth(2).and_then(|third| third.parse().ok()).expect("an address");
    format!("10.5.{}.0-18", third / 64 * 64)
}

#[tokio::test(start_paused = true)]
async fn a_host_waits_rather_than_lease_the_subnet_of_its_own_address() {
    let mut cluster = Cluster::new(1);
    cluster.store.set_config(
        r#"{"Network":"192.168.0.0/16","SubnetMin":"192.168.0.0","SubnetMax":"192.168.0.0","Backend":{"Type":"vxlan"}}"#,
    );
    cluster.start(1);
    cluster.pass(mins(1)).await;
    let reasons = cluster[1].reasons();
    assert!(reasons.contains("192.168.0.0/24 holds 192.168.0.1, the address of eth0"), "{reasons}");
    assert_eq!((cluster[1].store.calls().write, cluster[1].env_file("subnet.env")), (0, String::new()));
    cluster.store.set_config(CONFIG);
    cluster.until(secs(10), "the host is ready", |cluster| cluster[1].is_ready()).await;
    cluster.settle().await;
}

#[tokio::test(start_paused = true)]
async fn the_subnet_of_etcd_is_never_leased() {
    for seed in 1..6 {
        let mut cluster = Cluster::with_seed(1, seed);
        let range = r#""SubnetMin":"10.5.229.0","SubnetMax":"10.5.231.0""#;
        cluster.store.set_config(&CONFIG.replace(r#""SubnetMax":"10.5.99.0""#, range));
        let guest = Peer::guest(229);
        cluster.store.put_for(&guest.key(), guest.json(), TTL * 9);
        cluster[1].store.set_endpoints(vec!["10.5.230.9".parse().unwrap()]);
        cluster.start(1);
        cluster.until_ready().await;
        assert_eq!(cluster.lease(1).unwrap().first, "10.5.231.0");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_comes_to_hold_the_hosts_address_is_reported() {
    let mut cluster = Cluster::joined(1).await;
    let (first, address) = (cluster.lease(1).unwrap().first, cluster[1].nic.address.clone());
    let inside = first.strip_suffix('0').unwrap().to_owned() + "9";
    cluster[1].nic.address = inside.clone();
    cluster[1].replug();
    let says = format!("this host's subnet {first}/24 holds {inside}, the address of eth0");
    cluster.until(secs(10), "it is reported", |cluster| cluster[1].reasons().contains(&says)).await;
    assert!(cluster[1].env_file("subnet.env").contains(&inside.replace(".9", ".1")), "containers keep it");
    cluster[1].nic.address = address;
    cluster[1].replug();
    cluster.until(secs(10), "it is over", |cluster| cluster[1].reasons().is_empty()).await;
    cluster.settle().await;
}

#[tokio::test(start_paused = true)]
async fn an_older_wide_key_keeps_no_host_from_its_subnet() {
    let stray = |cluster: &mut Cluster, key: &str| {
        let value = Peer { address: "192.168.1.9".into(), ..Peer::guest(9) }.json();
        cluster.hostile.insert(key.to_owned());
        cluster.store.put_for(key, &value, TTL * 9);
    };
    let mut cluster = Cluster::joined(3).await;
    let wide = quarter_around(&cluster, 1);
    stray(&mut cluster, &wide);
    cluster.settle().await;
    cluster.running().for_each(|host| drop(host.kernel.take_log()));
    let lease = cluster.lease(1).unwrap();
    cluster.store.delete(&lease.key());
    cluster.until(millis(100), "the key is back", |cluster| cluster.peers().contains(&lease)).await;
    cluster.settle().await;
    assert!(cluster.running().all(|host| host.reasons().is_empty()), "{}", cluster.describe());
    // A host that is new stays outside. What goes right after a host's own key would be held.
    cluster.pass(secs(10)).await;
    cluster.stop(3);
    let old = cluster.lease(3).unwrap();
    cluster.store.delete(&old.key());
    cluster[3].lose_power();
    cluster[3].lose_state();
    cluster.start(3);
    cluster.until_ready().await;
    cluster.settle().await;
    assert_ne!(quarter_around(&cluster, 3), wide, "{:?}", cluster.lease(3));
}

#[tokio::test(start_paused = true)]
async fn an_interface_with_a_tiny_mtu_is_reported_and_waited_for() {
    let mut cluster = Cluster::joined(2).await;
    cluster[1].kernel.take_log();
    let files = cluster[1].env_file("subnet.env");
    cluster[1].nic.mtu = 100;
    cluster[1].replug();
    let says = "the external interface eth0 has MTU 100, VXLAN needs 118";
    cluster.until(secs(10), "it is reported", |cluster| cluster[1].reasons().contains(says)).await;
    cluster.pass(mins(5)).await;
    assert_eq!((cluster[1].kernel.take_log(), cluster[1].env_file("subnet.env")), (vec![], files));
    cluster.restart(1);
    cluster.pass(mins(1)).await;
    assert!(cluster[1].reasons().contains(says) && !cluster[1].is_ready(), "{}", cluster[1].reasons());
    cluster[1].nic.mtu = 1500;
    cluster[1].replug();
    cluster.until(secs(10), "all is well", |cluster| cluster[1].reasons().is_empty()).await;
    cluster.settle().await;
}
