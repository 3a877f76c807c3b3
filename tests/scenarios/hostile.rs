//! Keys that no host would write: none of them reaches a kernel or delays a good peer.

use crate::lab::{Cluster, Peer, TTL, millis, mins, secs};

/// A value with these members.
fn value(address: &str, kind: &str, data: &str) -> String {
    format!(r#"{{"PublicIP":{address},"PublicIPv6":null,"BackendType":"{kind}","BackendData":{data}}}"#)
}

fn with_mac(mac: &str) -> String {
    value("\"192.168.1.9\"", "vxlan", &format!(r#"{{"VNI":1,"VtepMAC":{mac}}}"#))
}

fn with_address(address: &str) -> String {
    value(address, "vxlan", r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:09"}"#)
}

/// A value that would be fine under another key.
fn fine() -> String {
    with_mac("\"0e:00:00:00:00:09\"")
}

/// Values that are wrong under a key that is right.
fn bad_values(cluster: &Cluster) -> Vec<String> {
    let own = cluster.lease(1).expect("it has a lease");
    let mut values: Vec<String> =
        ["", "garbage", "{", "[]", "null", "7", "\"x\"", "{}", "\u{0}", "{\"PublicIP\":7}"].map(String::from).to_vec();
    values.extend(["a".repeat(2 << 20), "[".repeat(100_000), format!("{{\"PublicIP\":\"{}\"}}", "9".repeat(1 << 20))]);
    for mac in [
        "\"00:00:00:00:00:00\"",
        "\"ff:ff:ff:ff:ff:ff\"",
        "\"01:00:5e:00:00:01\"",
        "\"33:33:00:00:00:01\"",
        "\"0e:00:00:00:00\"",
        "\"0e:00:00:00:00:00:00:09\"",
        "\"xyz\"",
        "\"\"",
        "7",
        "null",
        "[]",
    ] {
        values.push(with_mac(mac));
    }
    values.push(with_mac(&format!("\"{}\"", own.mac)));
    for address in
        ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "0.1.2.3", "192.168.0.1", "x", "", "::1", "1.2.3"]
    {
        values.push(with_address(&format!("\"{address}\"")));
    }
    let in_own_subnet = own.first.strip_suffix('0').expect("a /24").to_owned() + "9";
    values.push(with_address(&format!("\"{in_own_subnet}\"")));
    values.extend(["null", "7", "[]", "{}"].map(with_address));
    for data in ["null", "7", "\"x\"", "[]", "{}", r#"{"VNI":1}"#] {
        values.push(value("\"192.168.1.9\"", "vxlan", data));
    }
    for vni in ["2", "-1", "16777217", "\"1\"", "1.5"] {
        let data = format!(r#"{{"VNI":{vni},"VtepMAC":"0e:00:00:00:00:09"}}"#);
        values.push(value("\"192.168.1.9\"", "vxlan", &data));
    }
    for kind in ["host-gw", "udp", "ipip", "wireguard", "extension", "", "vxlan2"] {
        values.push(value("\"192.168.1.9\"", kind, r#"{"VNI":1,"VtepMAC":"0e:00:00:00:00:09"}"#));
    }
    values
}

/// Keys that are wrong whatever their value: by their form, outside of the network, on this host's br0, holding etcd.
const BAD_KEYS: [&str; 32] = [
    "foo",
    "",
    " ",
    "10.5.200.0",
    "10.5.200.0-",
    "10.5.200.0-24x",
    "10.5.200.0-24/x",
    "x/10.5.200.0-24",
    "10.5.200.0-24 ",
    "10.5.200.0-24\n",
    "10.5.200.0-24&",
    "10.5.200.0-24&fc00::1-64",
    "10.5.200.1-24",
    "10.5.200.0-33",
    "10.5.200.0-32",
    "10.5.200.0-024",
    "010.5.200.0-24",
    "10.5.200.0-99999999999999999999",
    "fc00::-64",
    "0.0.0.0-0",
    "128.0.0.0-1",
    "10.4.0.0-15",
    "10.5.0.0-16",
    "10.6.0.0-24",
    "172.17.0.0-16",
    "192.168.0.0-24",
    "127.0.0.0-8",
    "10.5.240.0-24",
    "10.5.240.0-23",
    "10.5.240.0-25",
    "10.5.240.0-30",
    "10.5.230.0-24",
];

/// Those, and keys that are wrong because of the leases that are there.
fn bad_keys(cluster: &Cluster) -> Vec<String> {
    let own = cluster.lease(1).expect("it has a lease").first;
    let mut keys = BAD_KEYS.map(String::from).to_vec();
    let own_half = own.strip_suffix('0').expect("a /24").to_owned() + "128-25";
    keys.extend([own_half, format!("{own}-25"), format!("{own}-30")]);
    // What overlaps, or takes the MAC of, the guest with 10.5.201.0/24 comes after it.
    keys.extend(["10.5.201.128-25", "10.5.200.0-23", "10.5.201.0-30", "10.5.192.0-18"].map(String::from));
    keys
}

/// A host with three guests; etcd is at 10.5.230.9.
async fn with_guests() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster[1].store.set_endpoints(vec!["10.5.230.9".parse().unwrap()]);
    cluster.start(1);
    cluster.until_ready().await;
    for guest in (201..=203).map(Peer::guest) {
        cluster.store.put_for(&guest.key(), guest.json(), TTL * 9);
    }
    cluster.settle().await;
    cluster[1].kernel.take_log();
    cluster
}

fn put_hostile(cluster: &mut Cluster, key: &str, value: &str, leased: bool) {
    cluster.hostile.insert(key.to_owned());
    match leased {
        true => drop(cluster.store.put_for(key, value, TTL * 9)),
        false => drop(cluster.store.put(key, value)),
    }
}

/// Neither was anything done, nor does a good peer wait.
async fn assert_harmless(cluster: &mut Cluster, what: &str) {
    cluster.pass(millis(20)).await;
    assert_eq!(cluster[1].kernel.take_log(), [], "{what}");
    // Who has our own address is no peer either, but somebody should know.
    let reasons = cluster[1].reasons();
    assert!(
        reasons.is_empty() || reasons.starts_with("another host has our public IP 192.168.0.1"),
        "{what}: {reasons}"
    );
    let good = Peer::guest(220);
    cluster.store.put_for(&good.key(), good.json(), TTL);
    assert!(cluster.settle().await <= millis(10), "{what}");
    cluster.store.delete(&good.key());
    assert!(cluster.settle().await <= millis(10), "{what}");
    cluster[1].kernel.take_log();
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_wrong_has_no_effect() {
    let mut cluster = with_guests().await;
    let values = bad_values(&cluster);
    assert!(values.len() > 50);
    for value in values {
        for leased in [true, false] {
            put_hostile(&mut cluster, "10.5.200.0-24", &value, leased);
            let shown: String = value.chars().take(120).collect();
            assert_harmless(&mut cluster, &shown).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_wrong_has_no_effect() {
    let mut cluster = with_guests().await;
    let keys = bad_keys(&cluster);
    assert!(keys.len() > 30);
    for key in &keys {
        put_hostile(&mut cluster, key, &fine(), true);
        assert_harmless(&mut cluster, key).await;
        cluster.store.delete(key);
        assert_harmless(&mut cluster, key).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_contradicts_an_older_one_has_no_effect() {
    let mut cluster = with_guests().await;
    for (key, value) in [
        ("10.5.200.0-24", with_mac("\"0e:00:00:00:00:c9\"")),
        ("10.5.200.0-24", with_address("\"10.5.201.9\"")),
        ("10.5.200.0-24", with_address("\"10.5.203.255\"")),
    ] {
        put_hostile(&mut cluster, key, &value, true);
        assert_harmless(&mut cluster, &value).await;
        assert!(cluster[1].status_line().contains("1 refused"), "{}", cluster[1].status_line());
        cluster.store.delete(key);
    }
}

/// Every hostile key at once, values and keys. To other hosts than 1 the address of host 1 is one like any other.
fn put_all(cluster: &mut Cluster) {
    let mut values = bad_values(cluster);
    values.retain(|value| value.len() < 1000 && !value.contains("\"192.168.0.1\""));
    for (n, value) in values.into_iter().enumerate() {
        put_hostile(cluster, &format!("10.5.{}.0-24", n % 100 + 100), &value, n % 2 == 0);
    }
    for key in bad_keys(cluster) {
        put_hostile(cluster, &key, &fine(), true);
    }
}

#[tokio::test(start_paused = true)]
async fn all_of_them_together_keep_no_host_from_joining_or_restarting() {
    let mut cluster = with_guests().await;
    put_all(&mut cluster);
    assert_harmless(&mut cluster, "all").await;
    let log = cluster[1].heard().len();
    cluster.pass(mins(30)).await;
    cluster.assert_settled();
    assert_eq!(cluster[1].heard().len(), log, "nothing is told again");
    cluster[1].kernel.take_log();
    cluster.restart(1);
    cluster.until_ready().await;
    assert_eq!(cluster[1].kernel.take_log(), []);
    for number in [2, 3] {
        cluster[number].store.set_endpoints(vec!["10.5.230.9".parse().unwrap()]);
        cluster.start(number);
        assert!(cluster.until_ready().await < secs(2));
        cluster.settle().await;
        assert!(!cluster.hostile.contains(&cluster.lease(number).unwrap().key()), "their keys are not given out");
    }
}

/// A member of etcd that is given by its name, and looked up late or moved, is as protected as one given by its address.
#[tokio::test(start_paused = true)]
async fn a_lease_that_holds_etcd_is_refused_as_soon_as_the_address_of_etcd_is_known() {
    let mut cluster = Cluster::new(1);
    cluster.start(1);
    cluster.until_ready().await;
    let guest = Peer::guest(230);
    cluster.store.put_for(&guest.key(), guest.json(), TTL);
    cluster.settle().await;
    assert!(cluster[1].status_line().contains("1 peer"), "{}", cluster[1].status_line());

    cluster[1].store.set_endpoints(vec!["192.0.2.1".parse().unwrap(), "10.5.230.9".parse().unwrap()]);
    cluster.hostile.insert(guest.key());
    cluster.settle().await;
    assert!(cluster[1].status_line().contains("1 refused"), "{}", cluster[1].status_line());

    cluster[1].store.set_endpoints(vec!["192.0.2.1".parse().unwrap()]);
    cluster.hostile.remove(&guest.key());
    cluster.settle().await;
    assert!(cluster[1].status_line().contains("1 peer"), "{}", cluster[1].status_line());
    cluster[1].kernel.take_log();
    cluster[1].store.set_endpoints(vec!["192.0.2.2".parse().unwrap()]);
    cluster.pass(secs(1)).await;
    assert_eq!(cluster[1].kernel.take_log(), [], "no peer has that address");
}

#[tokio::test(start_paused = true)]
async fn a_watch_and_a_list_make_the_same_of_them() {
    let mut cluster = with_guests().await;
    put_all(&mut cluster);
    cluster.pass(secs(1)).await;
    let (status, lines) = (cluster[1].status_line(), cluster[1].lines());
    cluster[1].kernel.take_log();
    cluster.store.compact(cluster.store.snapshot().revision);
    cluster[1].store.cut_watches(flanneld::store::StoreError::Compacted(1));
    cluster.pass(secs(10)).await;
    assert_eq!((cluster[1].status_line(), cluster[1].lines()), (status.clone(), lines.clone()));
    cluster.restart(1);
    cluster.pass(secs(10)).await;
    assert_eq!((cluster[1].status_line(), cluster[1].lines()), (status, lines));
    assert_eq!(cluster[1].kernel.take_log(), []);
}
