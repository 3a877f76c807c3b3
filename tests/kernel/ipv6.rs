//! VXLAN over IPv6, and IPv6 over VXLAN: the kernel's state for a peer that is known by IPv6 addresses only.

use crate::lab::*;
use flanneld::kernel::{Event, Kernel};
use flanneld::model::device::{Device, DeviceWant, ExistingDevice};
use flanneld::model::entry::{Address, FdbEntry, FdbReport, Neighbor, NeighborState, Oif, Route, RouteReport};
use flanneld::model::kernel_state::{Observed, Want};
use flanneld::model::plan::Op;
use serde_json::{Value, json};
use std::time::Duration;

const MAC: &str = "0e:00:00:00:00:01";
const SUBNET: &str = "fd05:0:0:1::/64";

/// The device of an underlay of IPv6.
fn device(lab: &Lab) -> Device {
    let mut device = lab.device();
    vxlan(&mut device).local = Some(addr("fd31::1"));
    device.mtu = 1430;
    device
}

/// The device, an address and one peer.
fn want(lab: &Lab) -> Want {
    let mut want = lab.want();
    want.device = DeviceWant::Is(device(lab));
    want.addresses = Default::default();
    want.demand(Address(net("fd05:0:0:22::/128")));
    want.demand(Neighbor { ip: net(SUBNET).addr(), mac: mac(MAC) });
    want.demand(FdbEntry { mac: mac(MAC), dst: addr("fd31::2") });
    want.demand(overlay_route(net(SUBNET)));
    want
}

fn shown() -> Value {
    ip_json(&format!("-6 route show {SUBNET}"))
}

#[test]
fn a_host_with_a_peer_is_made_read_back_and_emptied() {
    on_a_new_host(async |mut lab| {
        let mut want = want(&lab);
        lab.reach(&want).await;
        let have = lab.have().await;
        assert!(
            matches!(&have.device, Some(ExistingDevice::Known(_, made)) if *made == device(&lab)),
            "{:?}",
            have.device
        );
        assert!(have.addresses.into_keys().eq(want.addresses.keys()));
        let neighbor = NeighborState { mac: Some(mac(MAC)), permanent: true };
        assert_eq!(have.neighbors, [(net(SUBNET).addr(), neighbor)].into());
        assert_eq!(have.fdb, [(mac(MAC), [addr("fd31::2")].into())].into());
        let link = &ip_json("link show dev flannel.1")[0];
        assert_eq!((&link["linkinfo"]["info_data"]["local6"], &link["mtu"]), (&json!("fd31::1"), &json!(1430)));
        let address = &ip_json("-6 addr show dev flannel.1")[0]["addr_info"][0];
        assert_eq!((&address["nodad"], &address["tentative"]), (&json!(true), &Value::Null));
        assert_eq!(ip_json("-6 addr show dev flannel.1")[0]["addr_info"].as_array().map(Vec::len), Some(1));
        (want.neighbors, want.fdb, want.routes) = Default::default();
        lab.reach(&want).await;
        assert_eq!((fdb_json(), shown()), (json!([]), json!([])));
    });
}

#[test]
fn each_change_is_reported_as_it_is() {
    on_a_new_host(async |mut lab| {
        let want = want(&lab);
        lab.reach(&want).await;
        lab.have().await;
        lab.kernel.take_changes(&lab.scope);
        let route = want.routes.get(&net(SUBNET)).expect("a route");
        let neighbor = NeighborState { mac: Some(mac(MAC)), permanent: true };
        run("bridge", &format!("fdb del {MAC} dev flannel.1 dst fd31::2 self"));
        run("bridge", &format!("fdb add {MAC} dev flannel.1 dst fd31::2 self permanent"));
        ip(&format!("-6 route del {SUBNET} dev flannel.1"));
        lab.must(&[Op::add(route), Op::set(Neighbor { ip: addr("fd05:0:0:2::"), mac: mac(MAC) })]).await;
        let entry = FdbEntry { mac: mac(MAC), dst: addr("fd31::2") };
        let expected = [
            Observed::FdbEntry(FdbReport::Gone(entry)),
            Observed::FdbEntry(FdbReport::Set(entry)),
            Observed::Route(RouteReport::Gone(route)),
            Observed::Route(RouteReport::Added(route)),
            Observed::Neighbor((addr("fd05:0:0:2::"), Some(neighbor))),
        ];
        let events = lab.kernel.take_changes(&lab.scope);
        // The link comes up in its own time, with neighbours of the kernel's.
        let is_entry =
            |event: &Event| matches!(event, Event::Entry(entry) if !matches!(entry, Observed::Neighbor((_, None))));
        let events: Vec<Event> = events.into_iter().filter(is_entry).collect();
        assert_eq!(events, expected.map(Event::Entry));
    });
}

/// The kernel gives a route without a metric 1024, so that is what has to be wanted.
#[test]
fn a_metric_of_zero_becomes_1024() {
    on_a_new_host(async |mut lab| {
        lab.reach(&Want { routes: Default::default(), ..want(&lab) }).await;
        lab.must(&[Op::add(Route { metric: 0, ..overlay_route(net(SUBNET)) })]).await;
        assert_eq!(lab.have().await.routes[&net(SUBNET)], [overlay_route(net(SUBNET))].into());
        assert_eq!(lab.plan(&want(&lab)).await, []);
        lab.must(&[Op::delete(overlay_route(net(SUBNET)))]).await;
        assert_eq!(shown(), json!([]));
    });
}

/// A route of several next hops goes as a whole only if none of them is named.
#[test]
fn what_stands_in_the_place_of_a_peers_route_goes() {
    let strays = [
        "fd05:0:0:1::/64 via fd31::9",
        "fd05:0:0:1::/64 via fd31::2",
        "fd05:0:0:1::/64 via fd31::2 proto 100",
        "fd05:0:0:1::/64 nexthop via fd31::8 nexthop via fd31::9",
        "fd05:0:0:1::/64 nexthop via fd05:0:0:1::7 dev flannel.1 onlink nexthop via fd05:0:0:1::8 dev flannel.1 onlink",
        "fd05:0:0:1::/64 via fd05:0:0:1::9 dev flannel.1 onlink",
        "fd05:0:0:1::/64 dev flannel.1",
        "fd05:0:0:1::/64 via fd05:0:0:1:: dev flannel.1 onlink metric 7",
        "blackhole fd05:0:0:1::/64",
        "blackhole fd05:0:0:1::/64 metric 1024",
        "unreachable fd05:0:0:1::/64 metric 1024 proto 17",
    ];
    on_a_new_host(async move |mut lab| {
        let want = want(&lab);
        lab.reach(&want).await;
        for stray in strays {
            ip("-6 route flush fd05:0:0:1::/64");
            ip(&format!("-6 route add {stray}"));
            lab.reach(&want).await;
            let now = shown();
            assert_eq!(now.as_array().map(Vec::len), Some(1), "{stray}: {now}");
            assert_eq!((&now[0]["gateway"], &now[0]["metric"]), (&json!("fd05:0:0:1::"), &json!(1024)), "{stray}");
        }
    });
}

#[test]
fn a_route_of_many_next_hops_is_replaced_as_a_whole() {
    on_a_new_host(async |mut lab| {
        let want = want(&lab);
        lab.reach(&want).await;
        ip(&format!("-6 route flush {SUBNET}"));
        let hops: String = (7..10).map(|n| format!(" nexthop via fd05:0:0:1::{n} dev flannel.1 onlink")).collect();
        ip(&format!("-6 route add {SUBNET} metric 1024{hops}"));
        lab.must(&[Op::set(want.routes.get(&net(SUBNET)).expect("a route"))]).await;
        assert_eq!(lab.have().await.routes[&net(SUBNET)], [want.routes.get(&net(SUBNET)).expect("a route")].into());
        assert_eq!(shown().as_array().map(Vec::len), Some(1));
    });
}

/// A blackhole has a metric like any other route, and the protocol of who made it.
#[test]
fn a_blackhole_is_seen_with_metric_and_protocol() {
    on_a_new_host(async |mut lab| {
        lab.with_device().await;
        for (words, metric, protocol) in [("", 1024, 3), ("metric 5 proto 17", 5, 17)] {
            ip(&format!("-6 route add blackhole {SUBNET} {words}"));
            let seen = lab.have().await.routes[&net(SUBNET)][0];
            assert!(matches!(seen.oif, Oif::Special(6)), "{seen:?}");
            assert_eq!((seen.metric, seen.protocol, seen.gateway), (metric, protocol, None), "{words}");
            lab.must(&[Op::delete(seen)]).await;
            assert_eq!(shown(), json!([]), "{words}");
        }
    });
}

#[test]
fn packets_of_both_families_pass() {
    on_a_new_host(async |mut lab| {
        ip("link set wire down");
        ip("netns add peer");
        let _gone = Namespace("peer");
        ip("link set wire up netns peer");
        ip("-n peer addr add fd31::2/64 dev wire nodad");
        let mut want = want(&lab);
        lab.reach(&want).await;
        let ours = lab.device().mac.expect("a MAC");
        ip(&format!(
            "-n peer link add flannel.1 address {MAC} type vxlan id 1 local fd31::2 dev wire dstport 8472 nolearning"
        ));
        ip("-n peer addr add fd05:0:0:1::/128 dev flannel.1 nodad");
        ip("-n peer link set flannel.1 up");
        ip(&format!("-n peer neigh add fd05:0:0:22:: lladdr {ours} dev flannel.1 nud permanent"));
        run("bridge", &format!("-n peer fdb add {ours} dev flannel.1 dst fd31::1 self permanent"));
        ip("-n peer -6 route add fd05:0:0:22::/64 via fd05:0:0:22:: dev flannel.1 onlink");
        // IPv4 over the same device.
        want.demand(Address(net("10.5.34.0/32")));
        want.demand(Neighbor { ip: addr("10.5.1.0"), mac: mac(MAC) });
        want.demand(overlay_route(net("10.5.1.0/24")));
        lab.reach(&want).await;
        ip("-n peer addr add 10.5.1.0/32 dev flannel.1");
        ip(&format!("-n peer neigh add 10.5.34.0 lladdr {ours} dev flannel.1 nud permanent"));
        ip("-n peer route add 10.5.34.0/24 via 10.5.34.0 dev flannel.1 onlink");
        for to in ["-6 -s 1382 -M do fd05:0:0:1::", "-4 -s 1402 -M do 10.5.1.0"] {
            reaches(to);
        }
    });
}

/// A full-size packet comes back, once the underlay has found its neighbours.
fn reaches(to: &str) {
    let words: Vec<&str> = ["-c", "1", "-W", "1"].into_iter().chain(to.split(' ')).collect();
    for _ in 0..30 {
        if std::process::Command::new("ping").args(&words).output().expect("ping").status.success() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no answer: ping {to}");
}

/// A named network namespace, which goes with this.
struct Namespace(&'static str);

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.0));
    }
}
