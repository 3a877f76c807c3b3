//! `DirectRouting`: hosts on one link route to each other without the tunnel.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::lab::{
    CONFIG, Container, DEVICE, Etcd, Host, Lab, Lease, NETWORK, PREFIX, Tables, containers_on, eventually,
    eventually_eq,
};

fn set_direct(etcd: &Etcd, direct: bool) {
    let with = format!(r#""DirectRouting": {direct}, "Type""#);
    etcd.put(&format!("{PREFIX}/config"), &CONFIG.replace(r#""Type""#, &with));
}

/// Two hosts on one link and one behind a router, each with a container; all reach each other.
fn joined(name: &str) -> (Lab, Etcd, Vec<Host>, Vec<Container>) {
    let lab = Lab::new(name);
    let etcd = lab.etcd();
    set_direct(&etcd, true);
    let mut hosts = vec![lab.host(1), lab.host(2), lab.host_behind_router(3)];
    hosts.iter_mut().for_each(Host::join);
    let containers = containers_on(&mut hosts);
    (lab, etcd, hosts, containers)
}

/// At last: who has a new NIC has another hardware address, too, which its neighbours have to learn.
fn reach_each_other(containers: &[Container]) {
    for from in containers {
        for to in containers.iter().filter(|to| to.address() != from.address()) {
            eventually("containers reach each other", || from.ping(to.address(), 1).is_ok());
        }
    }
}

/// All routes into the overlay that leave by the NIC, by destination, as `ip -j` shows them.
fn direct_routes(host: &Host) -> BTreeMap<String, Value> {
    let routes = host.ip_json(&format!("-4 route show root {NETWORK}"));
    let mut found = BTreeMap::new();
    for route in routes.as_array().into_iter().flatten().filter(|route| route["dev"] == "eth0") {
        let again = found.insert(route["dst"].as_str().expect("text").to_owned(), route.clone());
        assert!(again.is_none(), "{routes}");
    }
    found
}

/// Waits until a host holds exactly its peers, of whom those with these public IPs are reached directly.
#[track_caller]
fn settles(host: &Host, etcd: &Etcd, direct: &[&str]) {
    let peers = etcd.peers_of(host);
    let is_direct = |peer: &&Lease| direct.contains(&peer.public_ip.as_str());
    let mut tables = Tables::to(&peers);
    tables.routes.retain(|route| !peers.iter().any(|peer| is_direct(&peer) && peer.subnet == route.to));
    let by_nic: BTreeMap<String, String> =
        peers.iter().filter(is_direct).map(|peer| (peer.subnet.clone(), peer.public_ip.clone())).collect();
    let found = || {
        let gateway = |route: &Value| route["gateway"].as_str().unwrap_or_default().to_owned();
        let direct = direct_routes(host).into_iter().map(|(dest, route)| (dest, gateway(&route)));
        (direct.collect::<BTreeMap<_, _>>(), host.tables())
    };
    eventually_eq("each peer is reached as it should be", &(by_nic, tables), found);
}

/// Packets that a host has sent through the tunnel.
fn tunnelled(host: &Host) -> u64 {
    host.ip_json(&format!("-s link show dev {DEVICE}"))[0]["stats64"]["tx"]["packets"].as_u64().expect("a number")
}

#[test]
fn hosts_on_one_link_route_directly_and_those_behind_a_router_use_the_tunnel() {
    let (_lab, etcd, hosts, containers) = joined("direct");
    settles(&hosts[0], &etcd, &["172.31.0.2"]);
    settles(&hosts[1], &etcd, &["172.31.0.1"]);
    settles(&hosts[2], &etcd, &[]);
    reach_each_other(&containers);

    // As if `ip`, or flannel, had made it, but for the protocol, which is one of ours.
    let (dest, mut route) = direct_routes(&hosts[0]).pop_first().expect("a route");
    let protocol = route["protocol"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
    assert!((100..186).contains(&protocol), "{route}");
    hosts[0].ip("route add 192.168.77.0/24 via 172.31.0.2");
    let mut plain = hosts[0].ip_json("-4 route show 192.168.77.0/24")[0].clone();
    for field in ["dst", "protocol"] {
        route.as_object_mut().expect("a route").remove(field);
        plain.as_object_mut().expect("a route").remove(field);
    }
    assert_eq!(route, plain, "{dest}");
    assert_eq!(hosts[0].subnet_env("FLANNEL_MTU"), "1450", "as flannel: the tunnel's");

    let before = tunnelled(&hosts[0]);
    containers[0].ping(containers[1].address(), 5).unwrap();
    assert_eq!(tunnelled(&hosts[0]), before, "no packet to a neighbour takes the tunnel");
    containers[0].ping(containers[2].address(), 5).unwrap();
    assert!(tunnelled(&hosts[0]) >= before + 5);
}

#[test]
fn whoever_leaves_the_link_is_reached_through_the_tunnel_without_a_gap() {
    let (_lab, etcd, hosts, containers) = joined("leaves");
    let guest = Lease { public_ip: "172.31.5.77".into(), ..Lease::guest(200) };
    etcd.put_lease(&guest);
    settles(&hosts[0], &etcd, &["172.31.0.2"]);
    // A second network on the NIC, and a route to a network that is said to be on its link.
    for (add, remove) in [
        ("addr add 172.31.5.1/24 dev eth0", "addr del 172.31.5.1/24 dev eth0"),
        ("route add 172.31.5.0/26 dev eth0", "route add 172.31.5.77 via 172.31.0.254"),
    ] {
        settles(&hosts[0], &etcd, &["172.31.0.2"]);
        hosts[0].ip("route flush root 172.31.5.0/24 proto boot");
        hosts[0].ip(add);
        if add.contains("/26") {
            // The guest is 77: outside.
            settles(&hosts[0], &etcd, &["172.31.0.2"]);
            hosts[0].ip("route add 172.31.5.64/26 dev eth0");
        }
        settles(&hosts[0], &etcd, &["172.31.0.2", "172.31.5.77"]);
        hosts[0].ip(remove);
        settles(&hosts[0], &etcd, &["172.31.0.2"]);
    }
    etcd.del(&guest.key());
    let pinging = containers[0].ping_background(containers[1].address());
    let monitor = hosts[0].monitor();
    for _ in 0..3 {
        hosts[0].ip("route add 172.31.0.2 via 172.31.0.254");
        settles(&hosts[0], &etcd, &[]);
        hosts[0].ip("route del 172.31.0.2 via 172.31.0.254");
        settles(&hosts[0], &etcd, &["172.31.0.2"]);
    }
    assert!(pinging.stop().lost_nothing());
    let subnet = &etcd.lease_of_host(&hosts[1]).subnet;
    let told = monitor.about(subnet);
    assert!(told.len() >= 6 && !told.iter().any(|line| line.starts_with("Deleted")), "{told:#?}");
}

#[test]
fn a_nic_that_goes_down_or_is_replaced_gets_its_direct_routes_again() {
    let (_lab, etcd, hosts, containers) = joined("flap");
    let host = &hosts[0];
    settles(host, &etcd, &["172.31.0.2"]);
    let before = host.state();
    host.ip("link set eth0 down");
    settles(host, &etcd, &[]);
    host.configure_nic();
    host.returns_to(&before);
    host.sh("ip link set eth0 down; ip link set eth0 up");
    host.configure_nic();
    host.returns_to(&before);
    host.ip("link del eth0");
    eventually("the device goes with its NIC", || host.device(DEVICE).is_none());
    host.plug_in_nic();
    host.configure_nic();
    settles(host, &etcd, &["172.31.0.2"]);
    reach_each_other(&containers);
}

#[test]
fn damage_to_direct_routes_heals_and_nothing_of_others_goes() {
    let (_lab, etcd, hosts, containers) = joined("damage");
    let (host, peer) = (&hosts[0], etcd.lease_of_host(&hosts[1]));
    // Of others: what is no peer's, even with a protocol number like ours, and another metric.
    let number = |subnet: &str| {
        let ip: std::net::Ipv4Addr = subnet.split('/').next().unwrap().parse().unwrap();
        100 + (u32::from(ip) >> 8) % 86
    };
    let mut strangers = String::new();
    writeln!(strangers, "ip route add 172.30.251.0/24 via 172.31.0.254 proto {}", number("172.30.250.0")).unwrap();
    writeln!(strangers, "ip route add 172.30.252.0/24 dev eth0 proto {}", number("172.30.252.0")).unwrap();
    writeln!(strangers, "ip route add {} via 172.31.0.2 metric 50 proto {}", peer.subnet, number(&peer.subnet))
        .unwrap();
    host.sh(&strangers);
    settles_beside_strangers(host, &peer);
    let before = host.state();
    for (damage, repairs) in [
        ("ip route del $PEER metric 0", 1),
        ("ip route replace $PEER via 172.31.0.254", 2),
        ("ip route replace $PEER via 172.31.0.2", 1),
        ("ip route replace $PEER via $GW dev flannel.1 onlink", 1),
        ("ip route prepend $PEER via 172.31.0.254", 1),
        ("ip route replace blackhole $PEER", 2),
        ("ip route add 172.30.250.0/24 via 172.31.0.77 proto $OURS", 1),
        ("ip route flush $PEER via 172.31.0.2 metric 0; ip neigh flush dev flannel.1 nud permanent", 3),
    ] {
        let mark = host.log().len();
        let variables = format!("PEER={}; GW={}; OURS={}; ", peer.subnet, peer.gateway(), number("172.30.250.0"));
        host.freeze();
        host.sh(&format!("{variables}{damage}"));
        host.thaw();
        host.returns_to(&before);
        // A repair is logged as a change if it comes together with one, such as that of the containers' bridge.
        let repaired = || host.log_since(mark).matches(" why=").count();
        eventually_eq(damage, &repairs, repaired);
    }
    reach_each_other(&containers);
}

/// A direct route to a peer beside a stranger's with another metric.
fn settles_beside_strangers(host: &Host, peer: &Lease) {
    let mains = || {
        let routes = host.ip_json(&format!("-4 route show {} dev eth0", peer.subnet));
        routes.as_array().into_iter().flatten().filter(|route| route["metric"].is_null()).count()
    };
    eventually_eq("one route to the peer with metric 0", &1, mains);
}

#[test]
fn a_change_of_the_config_holds_after_a_restart_and_no_packet_is_lost() {
    let (_lab, etcd, mut hosts, containers) = joined("change");
    let gone = Lease { public_ip: "172.31.0.201".into(), ..Lease::guest(201) };
    etcd.put_lease(&gone);
    settles(&hosts[0], &etcd, &["172.31.0.2", "172.31.0.201"]);
    let pinging = containers[0].ping_background(containers[1].address());
    for (on, direct) in [(false, &[][..]), (true, &["172.31.0.2"])] {
        hosts[0].stop();
        set_direct(&etcd, on);
        etcd.del(&gone.key());
        hosts[0].join();
        settles(&hosts[0], &etcd, direct);
    }
    // Nothing is left to do for one more.
    hosts[0].stop();
    let monitor = hosts[0].monitor();
    hosts[0].join();
    settles(&hosts[0], &etcd, &["172.31.0.2"]);
    let told: Vec<String> = monitor.about("172.30.").into_iter().filter(|line| line.contains("via 172.31")).collect();
    assert_eq!(told, Vec::<String>::new());
    assert!(pinging.stop().lost_nothing());
}

#[test]
fn direct_routes_that_flannel_made_are_taken_over_without_a_gap() {
    let (_lab, etcd, mut hosts, containers) = joined("taken");
    let peer = etcd.lease_of_host(&hosts[1]);
    for on in [true, false] {
        hosts[0].stop();
        set_direct(&etcd, on);
        // What flannel has for a peer on the link: this route, and neither ARP nor FDB entry.
        hosts[0].ip(&format!("route replace {} via 172.31.0.2", peer.subnet));
        hosts[0].ip(&format!("neigh del {} dev {DEVICE}", peer.gateway()));
        hosts[0].sh(&format!("bridge fdb del {} dev {DEVICE} dst 172.31.0.2 self", peer.mac));
        let pinging = containers[0].ping_background(containers[1].address());
        let monitor = hosts[0].monitor();
        hosts[0].join();
        settles(&hosts[0], &etcd, if on { &["172.31.0.2"] } else { &[] });
        assert_ne!(direct_routes(&hosts[0]).get(&peer.subnet).map(|route| &route["protocol"]), Some(&json!("boot")));
        let told = monitor.about(&peer.subnet);
        assert!(!told.iter().any(|line| line.starts_with("Deleted")), "{told:#?}");
        assert!(pinging.stop().lost_nothing());
    }
    // It goes with its peer, whoever made it.
    set_direct(&etcd, true);
    hosts[0].stop();
    hosts[0].ip(&format!("route replace {} via 172.31.0.2", peer.subnet));
    hosts[0].join();
    hosts[1].stop();
    etcd.del(&peer.key());
    settles(&hosts[0], &etcd, &[]);
}
