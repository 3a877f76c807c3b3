//! What the store writes into etcd and reads from it, byte for byte, and in bulk.

use crate::etcd::Etcd;
use crate::lab::{Lab, PREFIX, attrs, brief, done, next, store, subnet};
use etcd_client::{Client, Txn, TxnOp};
use flanneld::model::subnet::SubnetKey;
use flanneld::store::{Expiry, Leases, Precondition, Registry, Watch};
use std::time::Duration;

const DAY: Expiry = Expiry::Grant(Duration::from_secs(86400));

fn key(name: &str) -> String {
    format!("{PREFIX}/subnets/{name}")
}

#[tokio::test]
async fn keys_and_values_are_flannels() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let dual = SubnetKey::parse("10.5.35.0-24&fc00:5:23::-64").unwrap();
    let made = done(store.write(subnet(34), &attrs(0x44), Precondition::Absent, DAY).await.unwrap());
    done(store.write(dual, &attrs(0x45), Precondition::Absent, Expiry::Forever).await.unwrap());
    let all = etcd.ctl(&["get", "--prefix", "/"]);
    let expected = "\
/coreos.com/network/subnets/10.5.34.0-24
{\"PublicIP\":\"192.168.64.68\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\"BackendData\":{\"VNI\":1,\"VtepMAC\":\"0e:00:00:00:00:44\"}}
/coreos.com/network/subnets/10.5.35.0-24&fc00:5:23::-64
{\"PublicIP\":\"192.168.64.69\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\"BackendData\":{\"VNI\":1,\"VtepMAC\":\"0e:00:00:00:00:45\"}}
";
    assert_eq!(all, expected);
    let id = made.lease_id.expect("it was granted");
    let lease = etcd.ctl(&["lease", "timetolive", "--keys", &id.to_string()]);
    assert!(lease.contains("granted with TTL(86400s)") && lease.contains(&key("10.5.34.0-24")), "{lease}");
}

#[tokio::test]
async fn siblings_of_the_leases_are_neither_listed_nor_watched() {
    let etcd = Etcd::start();
    let store = store(&[&etcd.url()]);
    let siblings = ["subnets", "subnets-old/10.5.1.0-24", "subnets0", "subnets6/10.5.1.0-24", "config"];
    let put = |value| siblings.iter().for_each(|name| drop(etcd.ctl(&["put", &format!("{PREFIX}/{name}"), value])));
    put("before");
    let snapshot = store.list().await.unwrap();
    assert_eq!(snapshot.records, []);
    let mut watch = store.watch(snapshot.revision).await.unwrap();
    put("after");
    etcd.put("10.5.1.0-24", "x");
    assert_eq!(brief(&next(&mut watch, 1).await), ["+10.5.1.0-24"]);
}

#[tokio::test]
async fn a_big_network_is_listed_at_one_revision() {
    let etcd = Etcd::start_with(&["--max-txn-ops", "1000"]);
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    for part in 0..12u32 {
        let put = |n| TxnOp::put(key(&format!("10.{part}.{}.{}-30", n >> 6, (n & 63) << 2)), "{}", None);
        client.txn(Txn::new().and_then((0..1000).map(put).collect::<Vec<_>>())).await.unwrap();
    }
    // One key moves to and fro between the first page and the last.
    let (first, last) = ("0-here", "z-here");
    let mut mover = client.clone();
    let moving = async {
        for (from, to) in [(first, last), (last, first)].into_iter().cycle() {
            let ops = [TxnOp::delete(key(from), None), TxnOp::put(key(to), "", None)];
            mover.txn(Txn::new().and_then(ops)).await.unwrap();
        }
    };
    let store = store(&[&etcd.url()]);
    client.put(key(first), "", None).await.unwrap();
    let listing = async {
        for _ in 0..5 {
            let snapshot = store.list().await.unwrap();
            let names: Vec<&str> = snapshot.records.iter().map(|record| &*record.name).collect();
            assert_eq!(names.len(), 12_001);
            assert!(names.is_sorted() && names.contains(&first) != names.contains(&last));
        }
    };
    tokio::select! { () = listing => {}, () = moving => unreachable!("it never ends") }
}

#[tokio::test]
async fn a_watch_that_catches_up_claims_no_more_than_it_tells() {
    let etcd = Etcd::start();
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    let store = store(&[&etcd.url()]);
    let start = store.list().await.unwrap().revision;
    for _ in 0..2500 {
        client.put(key("10.5.1.0-24"), "{}", None).await.unwrap();
    }
    let mut watch = store.watch(start).await.unwrap();
    let mut told = start;
    while told < start + 2500 {
        let changes = watch.next().await.unwrap();
        told += changes.changes.len() as i64;
        assert_eq!(changes.revision, told);
    }
}

#[tokio::test]
async fn values_of_any_size_are_listed_and_watched() {
    let etcd = Etcd::start();
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    let store = store(&[&etcd.url()]);
    let put = async |client: &mut Client, third| {
        client.put(key(&format!("10.5.{third}.0-24")), vec![b'x'; 1 << 20], None).await.unwrap();
    };
    for third in 0..8 {
        put(&mut client, third).await;
    }
    assert_eq!(next(&mut store.watch(1).await.unwrap(), 8).await.changes.len(), 8);
    // More than is read at once: the list comes in pages, what a watch has to catch up with in parts.
    for third in 8..70 {
        put(&mut client, third).await;
    }
    let snapshot = store.list().await.unwrap();
    assert_eq!(snapshot.records.len(), 70);
    assert_eq!(next(&mut store.watch(1).await.unwrap(), 70).await.changes.len(), 70);
    let mut watch = store.watch(snapshot.revision).await.unwrap();
    put(&mut client, 0).await;
    assert_eq!(brief(&next(&mut watch, 1).await), ["+10.5.0.0-24"]);
}

#[tokio::test]
async fn names_that_are_no_text_are_listed_and_watched() {
    let etcd = Etcd::start();
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    let store = store(&[&etcd.url()]);
    let mut name = key("").into_bytes();
    name.push(0xff);
    client.put(name, "x", None).await.unwrap();
    assert_eq!(store.list().await.unwrap().records[0].name, "\u{fffd}".into());
    assert_eq!(brief(&next(&mut store.watch(1).await.unwrap(), 1).await), ["+\u{fffd}"]);
}
