//! What the device carries: addresses, neighbours, FDB entries and routes.

use crate::lab::*;
use flanneld::kernel::Kernel;
use flanneld::model::entry::{Address, FdbEntry, Neighbor, NeighborState, Oif, Route};
use flanneld::model::plan::Op;
use nix::libc::{EEXIST, EINVAL, ENETUNREACH};
use serde_json::{Value, json};
use std::process::Command;

/// The entries of a JSON list that have this value under this key.
fn with<'j>(list: &'j Value, key: &str, value: &str) -> Vec<&'j Value> {
    list.as_array().expect("a list").iter().filter(|entry| entry[key] == value).collect()
}

fn neighbors(ip: &str) -> Vec<Value> {
    with(&ip_json("neigh show dev flannel.1"), "dst", ip).into_iter().cloned().collect()
}

fn fdb(mac: &str) -> Vec<Value> {
    with(&fdb_json(), "mac", mac).into_iter().cloned().collect()
}

fn routes(dest: &str) -> Vec<Value> {
    let family = if dest.contains(':') { "-6" } else { "-4" };
    with(&ip_json(&format!("{family} route show")), "dst", dest).into_iter().cloned().collect()
}

#[test]
fn neighbours_are_set_overwritten_and_deleted() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        for text in ["10.5.1.0", "fd05:0:0:1::"] {
            let ip_addr = addr(text);
            for mac_text in ["0e:00:00:00:00:01", "0e:00:00:00:00:02", "0e:00:00:00:00:02"] {
                lab.must(&[Op::set(Neighbor { ip: ip_addr, mac: mac(mac_text) })]).await;
                let seen = neighbors(text);
                assert_eq!(seen.len(), 1);
                assert_eq!((&seen[0]["lladdr"], &seen[0]["state"]), (&json!(mac_text), &json!(["PERMANENT"])));
                let neighbor = NeighborState { mac: Some(mac(mac_text)), permanent: true };
                assert_eq!(lab.have().await.neighbors, [(ip_addr, neighbor)].into());
            }
            let delete = Op::delete(Neighbor { ip: ip_addr, mac: mac("0e:00:00:00:00:02") });
            lab.must(&[delete.clone(), delete]).await;
            assert_eq!(neighbors(text).len() + lab.have().await.neighbors.len(), 0);
        }
    });
}

#[test]
fn a_neighbour_that_the_kernel_learned_is_seen_and_becomes_ours() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        ip("neigh add 10.5.1.0 dev flannel.1 lladdr 0e:00:00:00:00:09 nud reachable");
        ip("neigh add 10.5.2.0 dev flannel.1 nud failed");
        ip("neigh add 10.5.3.0 dev flannel.1 lladdr 0e:00:00:00:00:03 nud noarp");
        let seen = lab.have().await.neighbors;
        let learned = NeighborState { mac: Some(mac("0e:00:00:00:00:09")), permanent: false };
        let failed = NeighborState { mac: None, permanent: false };
        assert_eq!(seen, [(addr("10.5.1.0"), learned), (addr("10.5.2.0"), failed)].into());
        let ours = mac("0e:00:00:00:00:01");
        lab.must(&["10.5.1.0", "10.5.2.0"].map(|ip| Op::set(Neighbor { ip: addr(ip), mac: ours }))).await;
        let all_ours = |neighbor: &NeighborState| neighbor.permanent && neighbor.mac == Some(ours);
        assert!(lab.have().await.neighbors.values().all(all_ours));
    });
}

#[test]
fn fdb_entries_are_set_moved_and_deleted() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        let mac_text = "0e:00:00:00:00:01";
        for (first, second) in [("172.31.0.2", "172.31.0.3"), ("fd31::2", "fd31::3")] {
            if first.contains(':') {
                // The family of the underlay is the device's.
                let mut device = lab.device();
                vxlan(&mut device).local = Some(addr("fd31::1"));
                let index = lab.index().await;
                lab.must(&[Op::DeleteDevice(index), Op::CreateDevice(device.into())]).await;
            }
            for dst in [first, second, second] {
                lab.must(&[Op::set(FdbEntry { mac: mac(mac_text), dst: addr(dst) })]).await;
                let seen = fdb(mac_text);
                assert_eq!(seen.len(), 1);
                assert_eq!((&seen[0]["dst"], &seen[0]["state"]), (&json!(dst), &json!("permanent")));
                assert_eq!(seen[0]["flags"], json!(["self"]));
                assert_eq!(lab.have().await.fdb, [(mac(mac_text), [addr(dst)].into())].into());
            }
            lab.must(&[Op::delete(FdbEntry { mac: mac(mac_text), dst: addr(first) })]).await;
            assert_eq!(fdb(mac_text).len(), 1, "an entry that has moved on stays");
            lab.must(&[
                Op::delete(FdbEntry { mac: mac(mac_text), dst: addr(second) }),
                Op::delete(FdbEntry { mac: mac(mac_text), dst: addr(second) }),
            ])
            .await;
            assert_eq!(fdb(mac_text).len() + lab.have().await.fdb.len(), 0);
        }
    });
}

#[test]
fn odd_fdb_entries_are_seen_and_put_right() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        run("bridge", "fdb add 0e:00:00:00:00:01 dev flannel.1 dst 172.31.0.2 port 9 self permanent");
        run("bridge", "fdb add 0e:00:00:00:00:02 dev flannel.1 dst 172.31.0.2 self dynamic");
        run("bridge", "fdb append 00:00:00:00:00:00 dev flannel.1 dst 172.31.0.2 self permanent");
        run("bridge", "fdb append 00:00:00:00:00:00 dev flannel.1 dst 172.31.0.3 self permanent");
        let (odd, zero) = (mac("0e:00:00:00:00:01"), mac("00:00:00:00:00:00"));
        let both = [addr("172.31.0.2"), addr("172.31.0.3")];
        assert_eq!(lab.have().await.fdb, [(odd, Default::default()), (zero, both[..].into())].into());
        let dynamic = mac("0e:00:00:00:00:02");
        lab.must(&[
            Op::set(FdbEntry { mac: odd, dst: both[0] }),
            Op::set(FdbEntry { mac: dynamic, dst: both[1] }),
            Op::delete(FdbEntry { mac: zero, dst: both[0] }),
        ])
        .await;
        let right = [(odd, [both[0]].into()), (zero, [both[1]].into()), (dynamic, [both[1]].into())];
        assert_eq!(lab.have().await.fdb, right.into());
        lab.must(&[Op::delete(FdbEntry { mac: zero, dst: both[1] })]).await;
        assert_eq!(fdb("00:00:00:00:00:00").len(), 0);
    });
}

/// The kernel accepts an address for a MAC that has a nexthop group, reports success, and changes nothing.
#[test]
fn an_fdb_entry_with_a_nexthop_group_is_replaced() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        ip("nexthop add id 10 via 172.31.0.9 fdb");
        ip("nexthop add id 20 group 10 fdb");
        let (mac_text, dst) = ("0e:00:00:00:00:01", addr("172.31.0.2"));
        let mut want = lab.want();
        want.demand(FdbEntry { mac: mac(mac_text), dst });
        for kind in ["permanent", "dynamic"] {
            let words = format!("fdb add {mac_text} dev flannel.1 nhid 20 self {kind}");
            let made = Command::new("bridge").args(words.split(' ')).output().expect("bridge");
            if !made.status.success() {
                let error = String::from_utf8_lossy(&made.stderr);
                assert!(error.contains("A nexthop fdb cannot be dynamic"), "{error}");
                continue;
            }
            lab.must(&[Op::set(FdbEntry { mac: mac(mac_text), dst })]).await;
            assert_eq!(fdb(mac_text)[0]["dst"], Value::Null, "{kind}");
            lab.reach(&want).await;
            assert_eq!((fdb(mac_text).len(), &fdb(mac_text)[0]["dst"]), (1, &json!("172.31.0.2")));
            run("bridge", &format!("fdb del {mac_text} dev flannel.1 self"));
        }
    });
}

/// A bridge has an FDB of its own, and lists what it knows of a port under the port's index.
#[test]
fn entries_of_a_bridge_are_none_of_ours() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        ip("link add br0 type bridge");
        ip("link set flannel.1 master br0");
        run("bridge", "fdb add 0e:00:00:00:00:01 dev flannel.1 master permanent");
        assert_eq!(lab.have().await.fdb, Default::default());
    });
}

#[test]
fn addresses_are_added_and_deleted_each_with_its_own_prefix() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        let all = ["10.5.34.0/32", "10.5.34.0/16", "10.5.35.0/32", "fd05:0:0:22::/128", "fd05:0:0:23::/64"].map(net);
        lab.must(&all.map(|net| Op::set(Address(net)))).await;
        lab.must(&all.map(|net| Op::set(Address(net)))).await;
        assert_eq!(lab.have().await.addresses, all.map(|net| (net, ())).into());
        let seen = &ip_json("addr show dev flannel.1")[0]["addr_info"];
        assert_eq!(seen.as_array().expect("a list").len(), all.len());
        assert!(seen.as_array().expect("a list").iter().all(|address| address["scope"] == "global"));
        let v6 = with(seen, "family", "inet6");
        assert!(v6.iter().all(|address| address["nodad"] == true && address["tentative"].is_null()), "{v6:?}");
        for gone in [all[1], all[4], all[0], all[0]] {
            lab.must(&[Op::delete(Address(gone))]).await;
        }
        assert_eq!(lab.have().await.addresses, [(all[2], ()), (all[3], ())].into());
    });
}

#[test]
fn ipv6_link_local_addresses_are_nobodys_business() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        ip("addr add fe80::7/64 dev flannel.1");
        ip("addr add 169.254.7.7/32 scope link dev flannel.1");
        assert_eq!(lab.have().await.addresses, [(net("169.254.7.7/32"), ())].into());
        assert!(lab.have().await.routes.is_empty());
    });
}

#[test]
fn routes_are_added_replaced_and_deleted() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        for dest in ["10.5.1.0/24", "fd05:0:0:1::/64"] {
            let ours = Route { protocol: 123, ..overlay_route(net(dest)) };
            lab.must(&[Op::add(ours)]).await;
            let seen = routes(dest);
            assert_eq!(seen.len(), 1);
            assert_eq!((&seen[0]["dev"], &seen[0]["flags"]), (&json!("flannel.1"), &json!(["onlink"])));
            assert_eq!(seen[0]["gateway"], json!(ours.gateway));
            assert_eq!((&seen[0]["protocol"], &seen[0]["type"]), (&json!("123"), &json!("unicast")));
            assert_eq!(lab.have().await.routes, [(ours.dest, [ours].into())].into());
            assert_eq!(lab.try_all(&[Op::add(ours)]).await, [Err(EEXIST)]);

            let other = Route { gateway: Some(net(dest).hosts().nth(4).expect("a host")), protocol: 124, ..ours };
            lab.must(&[Op::set(other)]).await;
            assert_eq!(lab.have().await.routes, [(ours.dest, [other].into())].into());
            lab.must(&[Op::delete(ours)]).await;
            assert_eq!(routes(dest).len(), 1, "another way to the same place is another route");
            lab.must(&[Op::delete(other), Op::delete(other), Op::set(ours)]).await;
            assert_eq!(lab.have().await.routes, [(ours.dest, [ours].into())].into());
            lab.must(&[Op::delete(Route { protocol: 7, ..ours })]).await;
            assert_eq!(routes(dest).len(), 0, "who installed it does not matter");
        }
    });
}

#[test]
fn exactly_the_stray_is_deleted() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        ip("addr add 10.5.34.0/32 dev flannel.1");
        ip("route add 10.5.1.0/24 via 172.31.0.9");
        ip("route add 10.5.1.0/24 via 172.31.0.9 metric 5");
        ip("route add 10.5.1.0/24 dev flannel.1 scope link metric 6");
        ip("route add 10.5.1.0/24 via 172.31.0.8 metric 7");
        ip("route add 10.5.1.0/24 metric 8 nexthop via 172.31.0.6 nexthop via 172.31.0.7");
        ip("route add 10.5.1.0/24 via 172.31.0.5 table 77");
        ip("route add 10.5.1.0/24 via 172.31.0.5 tos 4");
        ip("route add 10.5.1.0/24 via inet6 fe80::1 dev flannel.1 metric 9");
        ip("route add blackhole 10.5.1.0/24 metric 10");
        ip("nexthop add id 9 via 172.31.0.4 dev eth0");
        ip("route add 10.5.1.0/24 nhid 9 metric 11");
        let mut left = lab.have().await.routes.remove(&net("10.5.1.0/24")).expect("routes");
        assert_eq!(left.len(), 8, "{left:?}");
        assert_eq!(left[4].oif, Oif::Other(lab.lower), "several next hops are shown by the first");
        assert_eq!((left[5].gateway, left[5].oif), (Some(addr("fe80::1")), Oif::Ours));
        assert_eq!(left[6].to_string(), "blackhole 10.5.1.0/24 metric 10");
        assert_eq!(left[7].to_string(), "10.5.1.0/24 nhid 9 metric 11");
        for at in [1, 3, 3, 2, 3, 2, 0, 0] {
            let stray = left.remove(at);
            lab.must(&[Op::delete(stray)]).await;
            let now = lab.have().await.routes.remove(&net("10.5.1.0/24")).unwrap_or_default();
            assert_eq!(now, left, "after deleting {stray}");
        }
        assert_eq!(ip("route show table 77").lines().count(), 1);
        assert_eq!(ip("route show 10.5.1.0/24").lines().count(), 1, "that with a tos is nobody's stray");
    });
}

#[test]
fn exactly_the_ipv6_stray_is_deleted() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        ip("-6 route add fd05:0:0:1::/64 via fd31::9");
        ip("-6 route add fd05:0:0:1::/64 via fd31::9 metric 5");
        ip("-6 route add fd05:0:0:1::/64 dev flannel.1 metric 6");
        ip("-6 route add unreachable fd05:0:0:1::/64 metric 7");
        ip("-6 route add fd05:0:0:1::/64 from fd77::/64 via fd31::9");
        ip("-6 route add fd99::/64 via fd31::9");
        let mut left = lab.have().await.routes.remove(&net("fd05:0:0:1::/64")).expect("routes");
        assert_eq!(left.iter().map(|route| route.metric).collect::<Vec<_>>(), [5, 6, 7, 1024]);
        for at in [3, 2, 0, 0] {
            let stray = left.remove(at);
            lab.must(&[Op::delete(stray)]).await;
            let now = lab.have().await.routes.remove(&net("fd05:0:0:1::/64")).unwrap_or_default();
            assert_eq!(now, left, "after deleting {stray}");
        }
        assert_eq!(ip("-6 route show fd05:0:0:1::/64").lines().count(), 1);
    });
}

#[test]
fn a_connected_network_is_not_destroyed() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        ip("link add docker0 type bridge");
        ip("link set docker0 up");
        ip("addr add 10.5.1.1/24 dev docker0");
        ip("addr add fd05:0:0:1::1/64 dev docker0");
        let before = (ip("route show"), ip("-6 route show"));
        let v4 = Op::add(overlay_route(net("10.5.1.0/24")));
        let v6 = Op::add(Route { metric: 256, ..overlay_route(net("fd05:0:0:1::/64")) });
        // Some kernels take no onlink gateway that another device leads to: 5.10 none at all, up to 6.18 none of IPv6.
        for refused in lab.try_all(&[v4, v6]).await {
            assert!([Err(EEXIST), Err(EINVAL)].contains(&refused), "{refused:?}");
        }
        assert_eq!((ip("route show"), ip("-6 route show")), before);
    });
}

#[test]
fn a_failing_operation_in_a_batch_keeps_nothing_else_from_being_done() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        let good = |n: u8| overlay_route(format!("10.5.{n}.0/24").parse().expect("a subnet"));
        let mut ops: Vec<Op> = (0..250).map(|n| Op::add(good(n))).collect();
        ops[100] = Op::add(Route { onlink: false, ..good(100) });
        ops[201] = Op::add(Route { dest: net("10.5.1.0/24"), ..good(1) });
        let results = lab.kernel.apply(&lab.scope.clone(), &ops).await;
        for (at, result) in results.iter().enumerate() {
            assert_eq!(result.is_err(), [100, 201].contains(&at), "{at}: {result:?}");
        }
        let error = results[100].as_ref().expect_err("no way to the gateway");
        assert_eq!((error.what.as_str(), error.errno), ("add route 10.5.100.0/24 via 10.5.100.0", ENETUNREACH));
        assert!(error.reason.contains("Nexthop has invalid gateway"), "{error}");
        assert_eq!(results[201].as_ref().expect_err("twice").errno, EEXIST);
        assert_eq!(lab.have().await.routes.len(), 248);
    });
}
