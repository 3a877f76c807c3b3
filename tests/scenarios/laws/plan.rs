//! Of the difference between what a kernel should hold and what it holds.

use super::{as_wanted, config, device, mac, ops};
use flanneld::kernel::Kernel;
use flanneld::model::device::{Device, DeviceWant, ExistingDevice, Link, Vxlan};
use flanneld::model::entry::{Address, FdbEntry, Neighbor, NeighborState, Oif, PROTOCOL_KERNEL, Route};
use flanneld::model::family::PerFamily;
use flanneld::model::kernel_state::{Entry, Have, Key, Scope, Want};
use flanneld::model::mac::VtepMac;
use flanneld::model::plan::{Op, Plan};
use flanneld::model::table::Few;
use flanneld_lab::kernel::FakeKernel;
use futures_util::FutureExt;
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Destinations inside the overlay, those of an earlier overlay, and others.
const NETS: [&str; 7] =
    ["10.5.2.0/24", "10.5.3.0/24", "10.5.4.0/24", "10.5.2.128/25", "10.5.0.0/16", "10.9.1.0/24", "192.168.7.0/24"];

/// Index of the external interface.
const NIC: u32 = 2;

fn scope() -> Scope {
    Scope { device: "flannel.1".into(), networks: PerFamily { v4: "10.5.0.0/16".parse().ok(), v6: None }, nic: NIC }
}

fn nets() -> Vec<IpNet> {
    NETS.iter().map(|net| net.parse().unwrap()).collect()
}

fn any_mac() -> impl Strategy<Value = VtepMac> {
    (2u8..6).prop_map(mac)
}

fn any_dst() -> impl Strategy<Value = IpAddr> {
    (2u8..5).prop_map(|last| IpAddr::from([192, 168, 0, last]))
}

fn any_inner() -> impl Strategy<Value = IpAddr> {
    let strays = ["10.5.7.7", "172.20.0.9"].map(|ip| ip.parse().unwrap());
    select(nets().iter().map(IpNet::addr).chain(strays).collect::<Vec<_>>())
}

/// The protocol number of our own route to a destination, as the README tells it.
fn our_protocol(dest: IpNet) -> u8 {
    let IpNet::V4(dest) = dest else { panic!("only IPv4 here") };
    let number = u32::from(dest.network()) >> (32 - dest.prefix_len());
    100 + (number % 86) as u8
}

fn any_route() -> impl Strategy<Value = Route> {
    let gateways = ["10.5.2.0", "192.168.0.9", "192.168.0.3"].map(|ip| ip.parse().ok());
    let gateways: Vec<Option<IpAddr>> = gateways.into_iter().chain([None]).collect();
    let others = select(vec![Oif::Other(7), Oif::Other(NIC), Oif::Other(NIC), Oif::Nexthop(3), Oif::Special(6)]);
    let oif = prop_oneof![3 => Just(Oif::Ours), 2 => others];
    let metric = prop_oneof![3 => Just(0u32), 1 => Just(100)];
    let protocol = select(vec![Some(PROTOCOL_KERNEL), Some(3), Some(4), Some(142), None, None]);
    (select(nets()), select(gateways), oif, any::<bool>(), metric, protocol, any::<bool>()).prop_map(
        |(dest, gateway, oif, onlink, metric, protocol, flannel)| {
            let protocol = protocol.unwrap_or(our_protocol(dest));
            let gateway = if flannel { Some(dest.network()) } else { gateway };
            let (oif, onlink) = if flannel { (Oif::Ours, true) } else { (oif, onlink && gateway.is_some()) };
            Route { dest, gateway, oif, onlink, metric, protocol }
        },
    )
}

fn vxlan(device: &mut Device) -> &mut Vxlan {
    let Link::Vxlan(vxlan) = &mut device.link;
    vxlan
}

/// What stands under our device's name: nothing, another kind, or a VXLAN device that differs in up to two ways.
fn any_found() -> impl Strategy<Value = Option<ExistingDevice>> {
    let changes: Vec<fn(&mut Device)> = vec![
        |d| d.mac = Some(mac(9)),
        |d| d.mtu = 1400,
        |d| d.up = false,
        |d| d.tx_checksum_off = true,
        |d| vxlan(d).local = None,
        |d| vxlan(d).learning = true,
        |d| vxlan(d).ttl = 5,
        |d| vxlan(d).ageing = 10,
        |d| vxlan(d).vni = 2,
        |d| vxlan(d).port = 4789,
        |d| vxlan(d).lower = 9,
        |d| vxlan(d).gbp = true,
        |d| vxlan(d).group = Some("239.1.1.1".parse().unwrap()),
    ];
    let vxlan = subsequence(changes, 0..3).prop_map(|changes| {
        let mut device = device();
        changes.iter().for_each(|change| change(&mut device));
        Some(ExistingDevice::Known(5, device))
    });
    prop_oneof![1 => Just(None), 1 => Just(Some(ExistingDevice::Other(7, "bridge".into()))), 8 => vxlan]
}

fn any_have() -> impl Strategy<Value = Have> {
    let addresses: Vec<IpNet> =
        ["10.5.1.0/32", "10.5.1.0/24", "10.5.9.1/24", "172.20.0.1/24"].iter().map(|net| net.parse().unwrap()).collect();
    let neighbor = (proptest::option::of(any_mac()), any::<bool>())
        .prop_map(|(mac, permanent)| NeighborState { mac, permanent: permanent && mac.is_some() });
    (
        any_found(),
        subsequence(addresses, 0..=4)
            .prop_map(|list| list.into_iter().map(|net| (net, ())).collect::<BTreeMap<_, _>>()),
        prop::collection::btree_map(any_inner(), neighbor, 0..5),
        prop::collection::btree_map(any_mac(), prop::collection::btree_set(any_dst(), 1..3), 0..4),
        prop::collection::vec(any_route(), 0..8),
    )
        .prop_map(|(device, addresses, neighbors, fdb, routes)| {
            let fdb = fdb.into_iter().map(|(mac, all)| (mac, all.into_iter().collect())).collect();
            let mut have = Have { device, addresses, neighbors, fdb, routes: by_dest(routes) };
            if !matches!(have.device, Some(ExistingDevice::Known(..))) {
                // Nothing can stand on a device that is not there.
                have.apply(&Op::DeleteDevice(0), 0);
            }
            have
        })
}

fn by_dest(routes: Vec<Route>) -> BTreeMap<IpNet, Few<Route>> {
    let mut by_dest: BTreeMap<IpNet, Few<Route>> = BTreeMap::new();
    for route in routes {
        let beside = by_dest.entry(route.dest).or_default();
        if beside.iter().all(|other| !other.same_path(&route)) {
            beside.push(route);
        }
    }
    by_dest
}

fn any_want() -> impl Strategy<Value = Want> {
    let peers = select(nets()[..5].to_vec());
    (
        prop::collection::btree_map(any_inner(), any_mac(), 0..4),
        prop::collection::btree_map(any_mac(), any_dst(), 0..4),
        prop::collection::btree_map(peers, prop::option::of(any_dst()), 0..4),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(neighbors, fdb, dests, peers_complete, tx_checksum_off)| {
            // Through the tunnel, or directly.
            let route = |dest: IpNet, address: Option<IpAddr>| {
                let gateway = Some(address.unwrap_or(dest.network()));
                let (oif, onlink) = address.map_or((Oif::Ours, true), |_| (Oif::Other(NIC), false));
                Route { dest, gateway, oif, onlink, metric: 0, protocol: our_protocol(dest) }
            };
            let device = DeviceWant::Is(Device { tx_checksum_off, ..device() });
            let mut want = Want { device, peers_complete, ..Want::default() };
            want.demand(Address("10.5.1.0/32".parse().unwrap()));
            let neighbors = neighbors.into_iter().map(|(ip, mac)| Entry::from(Neighbor { ip, mac }));
            let fdb = fdb.into_iter().map(|(mac, dst)| FdbEntry { mac, dst }.into());
            let routes = dests.into_iter().map(|(dest, address)| route(dest, address).into());
            for entry in neighbors.chain(fdb).chain(routes) {
                want.demand(entry);
            }
            want
        })
}

fn done(have: &Have, plan: &Plan) -> Have {
    let mut have = have.clone();
    plan.steps.iter().for_each(|step| have.apply(&step.op, 100));
    have
}

/// Every key that either side has.
fn all_keys(have: &Have, want: &Want) -> Vec<Key> {
    let mut keys = vec![Key::Device];
    keys.extend(have.addresses.keys().copied().chain(want.addresses.keys()).map(Key::Address));
    keys.extend(have.neighbors.keys().copied().chain(want.neighbors.keys()).map(Key::Neighbor));
    keys.extend(have.fdb.keys().copied().chain(want.fdb.keys()).map(Key::FdbEntry));
    keys.extend(have.routes.keys().copied().chain(want.routes.keys()).map(Key::Route));
    keys.sort();
    keys.dedup();
    keys
}

/// What is somebody else's, as the rules say, and must be the same before and after.
fn foreign(have: &Have, want: &Want, on_device: bool) -> Vec<String> {
    let network: IpNet = "10.5.0.0/16".parse().unwrap();
    let is_ours = |route: &Route| {
        let shape = route.onlink && route.gateway == Some(route.dest.network());
        let in_a_peers_place = route.metric == 0 && want.routes.contains_key(&route.dest);
        let on_our_device = route.oif == Oif::Ours && (network.contains(&route.dest) || shape);
        let direct = route.oif == Oif::Other(NIC) && route.gateway.is_some() && !route.onlink && route.metric == 0;
        let of_ours = direct && network.contains(&route.dest) && route.protocol == our_protocol(route.dest);
        route.protocol != PROTOCOL_KERNEL && (in_a_peers_place || on_our_device || of_ours)
    };
    let routes = have.routes.values().flatten().filter(|route| !is_ours(route));
    let mut lines: Vec<String> =
        routes.filter(|route| on_device || route.oif != Oif::Ours).map(|route| format!("{route:?}")).collect();
    if on_device {
        let outside = have.addresses.keys().filter(|address| !network.contains(&address.addr()));
        lines.extend(outside.map(|address| format!("{address}")));
        let learned = have.neighbors.iter().filter(|(ip, n)| !n.permanent && !want.neighbors.contains_key(*ip));
        lines.extend(learned.map(|neighbor| format!("{neighbor:?}")));
    }
    lines.sort();
    lines
}

/// Whether the device, and so all that is on it, is what it was.
fn keeps_device(have: &Have, plan: &Plan) -> bool {
    let same_mac = matches!(&have.device, Some(ExistingDevice::Known(_, found)) if found.mac == device().mac);
    same_mac && !plan.steps.iter().any(|step| matches!(step.op, Op::CreateDevice(_) | Op::DeleteDevice(_)))
}

/// Whether somebody's route is where ours should be, so that the kernel refuses ours.
fn is_obstructed(have: &Have, want: &Want) -> bool {
    let obstructs = |route: &Route| route.metric == 0 && route.protocol == PROTOCOL_KERNEL;
    want.routes.keys().any(|dest| have.routes.get(&dest).is_some_and(|routes| routes.iter().any(obstructs)))
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn after_a_plan_nothing_is_left_to_do(have in any_have(), want in any_want()) {
        let after = done(&have, &Plan::between(&have, &want, &scope()));
        prop_assert_eq!(ops(&Plan::between(&after, &want, &scope())), Vec::<String>::new(), "{:?}", after);
    }

    #[test]
    fn what_is_as_wanted_is_left_alone(want in any_want()) {
        let plan = Plan::between(&as_wanted(&want), &want, &scope());
        prop_assert_eq!(plan.steps, []);
    }

    #[test]
    fn what_is_not_ours_stays(have in any_have(), want in any_want()) {
        let plan = Plan::between(&have, &want, &scope());
        let on_device = keeps_device(&have, &plan);
        let after = done(&have, &plan);
        prop_assert_eq!(foreign(&have, &want, on_device), foreign(&after, &want, on_device), "{:?}", ops(&plan));
    }

    #[test]
    fn from_one_want_to_another_nothing_is_left_over_and_no_route_is_missing_meanwhile(one in any_want(), other in any_want()) {
        let other = Want { peers_complete: true, ..other };
        let mut have = as_wanted(&one);
        for step in Plan::between(&have, &other, &scope()).steps {
            have.apply(&step.op, 100);
            let missing = one.routes.keys().find(|dest| other.routes.contains_key(dest) && !have.routes.contains_key(dest));
            prop_assert_eq!(missing, None, "after {}", step.op);
        }
        let expected = as_wanted(&other);
        prop_assert_eq!((have.routes, have.neighbors, have.fdb), (expected.routes, expected.neighbors, expected.fdb));
    }

    #[test]
    fn unknown_peers_lose_nothing(have in any_have(), want in any_want()) {
        let want = Want { peers_complete: false, ..want };
        for step in Plan::between(&have, &want, &scope()).steps {
            let removes = match step.op {
                Op::Delete(Entry::Neighbor(_) | Entry::FdbEntry(_)) | Op::ClearFdb(_) => true,
                Op::Delete(Entry::Route(route)) => !want.routes.contains_key(&route.dest),
                _ => false,
            };
            prop_assert!(!removes, "{}", step.op);
        }
    }

    #[test]
    fn key_by_key_it_is_the_same_as_everything(have in any_have(), want in any_want()) {
        let keys = all_keys(&have, &want);
        let (all, between) = (Plan::at(&keys, &have, &want, &scope()), Plan::between(&have, &want, &scope()));
        prop_assert_eq!(ops(&all), ops(&between));
        let mut device_and_rest = keys.clone();
        device_and_rest.retain(|key| *key != Key::Device);
        prop_assert_eq!(ops(&Plan::at(&device_and_rest, &have, &want, &scope())), ops(&between));
    }

    #[test]
    fn while_the_device_is_unknown_nothing_is_done(have in any_have(), want in any_want()) {
        let want = Want { device: DeviceWant::Unknown, ..want };
        prop_assert!(Plan::between(&have, &want, &scope()).is_empty());
        prop_assert!(Plan::at(&all_keys(&have, &want), &have, &want, &scope()).is_empty());
    }

    #[test]
    fn a_kernel_refuses_nothing_of_a_plan(have in any_have(), want in any_want()) {
        prop_assume!(!is_obstructed(&have, &want));
        let mut kernel = FakeKernel::default();
        kernel.damage("flannel.1", |there| *there = have.clone());
        let plan = Plan::between(&have, &want, &scope());
        let list: Vec<Op> = plan.steps.iter().map(|step| step.op.clone()).collect();
        let results = kernel.apply(&scope(), &list).now_or_never().expect("at once");
        for (result, op) in results.iter().zip(&list) {
            prop_assert!(result.is_ok(), "{:?} to {:?}", result, op);
        }
        let after = kernel.observe(&scope()).now_or_never().expect("at once").expect("it can be read");
        prop_assert_eq!(ops(&Plan::between(&after, &want, &scope())), Vec::<String>::new());
    }
}
