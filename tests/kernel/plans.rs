//! Plans on the real kernel: what they reach, and what they leave alone.

use crate::lab::*;
use flanneld::model::entry::{Address, FdbEntry, Neighbor, Oif, Route};
use flanneld::model::kernel_state::Want;
use flanneld::model::mac::VtepMac;
use flanneld::model::plan::{Op, Plan};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What flannel 0.7 leaves on a host: a device with the subnet's first address and the prefix length of the whole
/// Network, its connected route, and neighbours that it had resolved on demand.
fn as_flannel_0_7() {
    ip("link add flannel.1 address 0e:01:02:03:04:05 mtu 1450 type vxlan id 1 local 172.31.0.1 dev eth0 \
        dstport 8472 nolearning");
    ip("addr add 10.5.34.0/16 dev flannel.1");
    ip("link set flannel.1 up");
    for n in 1..4 {
        ip(&format!("neigh add 10.5.{n}.7 dev flannel.1 lladdr 0e:fe:00:00:05:0{n} nud stale"));
        run("bridge", &format!("fdb add 0e:fe:00:00:05:0{n} dev flannel.1 dst 172.31.5.{n} self permanent"));
    }
    ip("neigh add 10.5.1.0 dev flannel.1 lladdr 0e:fe:00:00:05:01 nud reachable");
}

#[test]
fn an_upgrade_from_0_7_leaves_only_what_is_ours() {
    on_a_new_host(async |mut lab| {
        as_flannel_0_7();
        let index = lab.index().await;
        let mut want = lab.want();
        (0x0501..0x0505).for_each(|n| add_peer(&mut want, n));
        assert!(ip("route show").contains("10.5.0.0/16 dev flannel.1 proto kernel"));
        lab.reach(&want).await;
        assert_eq!(lab.index().await, index, "the device is the same");
        let have = lab.have().await;
        assert!(have.addresses.into_keys().eq(want.addresses.keys()));
        assert_eq!(
            have.routes.into_values().flatten().collect::<Vec<_>>(),
            want.routes.iter().map(|(_, route)| route).collect::<Vec<_>>()
        );
        assert_eq!(have.fdb.len(), 4);
        assert_eq!(have.neighbors.values().filter(|neighbor| neighbor.permanent).count(), 4);
    });
}

#[test]
fn what_a_go_flannel_left_is_adopted_without_a_write() {
    on_a_new_host(async |mut lab| {
        ip("link add flannel.1 address 0e:01:02:03:04:05 mtu 1450 type vxlan id 1 local 172.31.0.1 dev eth0 \
            dstport 8472 nolearning");
        ip("addr add 10.5.34.0/32 dev flannel.1");
        ip("link set flannel.1 up");
        ip("neigh add 10.5.1.0 dev flannel.1 lladdr 0e:fe:00:00:05:01 nud permanent");
        run("bridge", "fdb add 0e:fe:00:00:05:01 dev flannel.1 dst 172.31.5.1 self permanent");
        ip("route add 10.5.1.0/24 via 10.5.1.0 dev flannel.1 onlink");
        let mut want = lab.want();
        add_peer(&mut want, 0x0501);
        assert_eq!(lab.plan(&want).await, []);
    });
}

#[test]
fn what_is_not_ours_stays() {
    on_a_new_host(async |mut lab| {
        let mut want = lab.want();
        (0x0501..0x0504).for_each(|n| add_peer(&mut want, n));
        lab.reach(&want).await;
        ip("addr add 192.168.7.1/24 dev flannel.1");
        ip("addr add 10.5.0.1/32 dev eth0");
        ip("route add 10.77.0.0/16 dev flannel.1");
        ip("route add 10.5.200.0/24 via 172.31.0.9");
        ip("route add 10.5.1.0/24 via 172.31.0.9 metric 10");
        ip("route add 10.5.2.0/24 via 172.31.0.9 table 9");
        ip("route add default via 172.31.0.254");
        ip("-6 route add fd77::/64 via fd31::9");
        ip("neigh add 172.31.0.9 dev eth0 lladdr 0e:00:00:00:00:77 nud permanent");
        let state = || [ip("addr show"), ip("route show table all"), ip("-6 route show table all"), ip("neigh show")];
        let before = state();
        assert_eq!(lab.plan(&want).await, []);
        ip("route del 10.5.3.0/24 via 10.5.3.0");
        lab.reach(&want).await;
        // A link-local address and its routes come when the kernel has looked for duplicates, which may be now.
        let mut lines: [Vec<String>; 2] = [before, state()].map(|texts| {
            texts.iter().flat_map(|text| text.lines().map(str::to_owned)).filter(|l| !l.contains("fe80::")).collect()
        });
        lines.iter_mut().for_each(|lines| lines.sort());
        assert_eq!(lines[0], lines[1]);
    });
}

#[test]
fn a_stray_in_a_peers_place_goes() {
    on_a_new_host(async |mut lab| {
        let mut want = lab.want();
        (0x0501..0x0505).for_each(|n| add_peer(&mut want, n));
        lab.with_device().await;
        ip("addr add 10.5.34.0/32 dev flannel.1");
        ip("route add 10.5.1.0/24 via 172.31.0.9");
        ip("route add 10.5.2.0/24 dev flannel.1");
        ip("route add 10.5.3.0/24 via 10.5.3.9 dev flannel.1 onlink metric 7");
        ip("route add 10.5.4.0/24 nexthop via 172.31.0.9 nexthop via 172.31.0.8");
        ip("route add 10.5.9.0/24 via 10.5.9.0 dev flannel.1 onlink");
        ip("route add 10.66.9.0/24 via 10.66.9.0 dev flannel.1 onlink");
        lab.reach(&want).await;
        let have: Vec<Route> = lab.have().await.routes.into_values().flatten().collect();
        assert_eq!(have, want.routes.iter().map(|(_, route)| route).collect::<Vec<_>>());
    });
}

/// Something that may be wanted: some of 12 peers in two families, now here, now there.
fn random_want(lab: &Lab, random: &mut StdRng) -> Want {
    let mut want = lab.want();
    let device = want.device.get_mut().expect("a device");
    device.mtu = random.random_range(1300..=1450);
    vxlan(device).learning = random.random();
    vxlan(device).ttl = random.random_range(0..3);
    vxlan(device).ageing = random.random_range(298..302);
    device.mac = Some(VtepMac([0x0e, 1, 2, 3, 4, random.random_range(0..3)]));
    vxlan(device).port = if random.random_bool(0.1) { 4789 } else { 8472 };
    if random.random_bool(0.5) {
        want.demand(Address(net("fd05:0:0:22::/128")));
    }
    for n in 1..=12u8 {
        if random.random_bool(0.4) {
            continue;
        }
        let v6 = format!("fd05:0:0:{n:x}::/64");
        let subnet = if random.random() { net(&v6) } else { net(&format!("10.5.{n}.0/24")) };
        let mac = mac(&format!("0e:fe:00:00:00:{:02x}", random.random_range(1..20)));
        want.demand(Neighbor { ip: subnet.addr(), mac });
        want.demand(FdbEntry { mac, dst: addr(&format!("172.31.0.{}", random.random_range(2..9))) });
        let mut route = Route { protocol: random.random_range(100..186), ..overlay_route(subnet) };
        if random.random_bool(0.2) {
            let gateway = if subnet.addr().is_ipv6() { "fd31::9" } else { "172.31.0.9" };
            route = Route { gateway: Some(addr(gateway)), oif: Oif::Other(lab.lower), onlink: false, ..route };
        }
        want.demand(route);
    }
    want
}

/// What others may do meanwhile.
fn random_damage(random: &mut StdRng) {
    let n: u8 = random.random_range(1..=12);
    let damage = match random.random_range(0..10) {
        0 => "link del flannel.1".to_owned(),
        1 => "link set flannel.1 down".to_owned(),
        2 => "neigh flush dev flannel.1 nud permanent".to_owned(),
        3 => "route flush dev flannel.1".to_owned(),
        7 => format!("-6 route replace fd05:0:0:{n:x}::/64 via fd31::7"),
        8 => format!("addr add fd05:0:0:{n:x}::/64 dev flannel.1"),
        9 => "-6 route flush dev flannel.1".to_owned(),
        4 => format!("route replace 10.5.{n}.0/24 via 172.31.0.7"),
        5 => format!("neigh replace 10.5.{n}.0 dev flannel.1 lladdr 0e:00:00:00:00:0{} nud permanent", n % 10),
        _ => format!("addr add 10.5.{n}.0/24 dev flannel.1"),
    };
    // Some of it is impossible at times, such as routes by a device that is down.
    let _ = std::process::Command::new("ip").args(damage.split(' ')).output();
}

#[test]
fn every_want_is_reached_from_everywhere() {
    let seed = match std::env::var("SEED") {
        Ok(text) => text.parse().expect("SEED: a number"),
        Err(_) => 1_663_625_599_279_049_149,
    };
    println!("SEED={seed}");
    on_a_new_host(async move |mut lab| {
        let mut random = StdRng::seed_from_u64(seed);
        for round in 0..60 {
            let want = random_want(&lab, &mut random);
            let ops = lab.plan(&want).await;
            let results = lab.try_all(&ops).await;
            let failed: Vec<_> = ops.iter().zip(results).filter(|(_, result)| result.is_err()).collect();
            assert!(failed.is_empty(), "SEED={seed} round {round}: {failed:?}");
            let have = lab.have().await;
            let left: Vec<Op> = Plan::between(&have, &want, &lab.scope).steps.into_iter().map(|step| step.op).collect();
            assert_eq!(left, [], "SEED={seed} round {round}");
            if random.random() {
                random_damage(&mut random);
            }
        }
    });
}
