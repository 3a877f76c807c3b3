//! The host around the device.

use crate::lab::*;
use flanneld::kernel::Kernel;
use flanneld::kernel::netlink::NetlinkKernel;
use flanneld::model::iface::WayOut;
use flanneld::model::kernel_state::{Have, Scope};
use serde_json::json;

#[test]
fn an_empty_namespace_holds_nothing() {
    in_a_new_namespace(async || {
        let mut kernel = NetlinkKernel::new().expect("a netlink socket");
        let scope = Scope {
            device: "flannel.1".to_owned(),
            networks: [net("10.5.0.0/16"), net("fd05::/48")].into_iter().collect(),
            nic: 2,
        };
        assert_eq!(kernel.observe(&scope).await, Ok(Have::default()));
        let host = kernel.host().await.expect("host");
        assert_eq!((host.interfaces.len(), host.default_routes.len()), (1, 0));
        assert_eq!(kernel.route_to(addr("10.5.1.1")).await, Ok(None));
        assert_eq!(kernel.route_to(addr("fd05::1")).await, Ok(None));
    });
}

#[test]
fn the_host_is_seen_as_it_is() {
    on_a_new_host(async |mut lab| {
        ip("addr add 172.31.0.8/24 dev eth0");
        ip("addr add 172.31.9.1 peer 172.31.9.2/32 dev eth0 valid_lft 500 preferred_lft 0");
        ip("addr add 169.254.3.3/16 scope link dev eth0");
        ip("route add default via 172.31.0.253 metric 50");
        ip("route add default metric 10 nexthop via 172.31.0.251 nexthop via 172.31.0.252");
        ip("-6 route add default via fd31::fe dev eth0 metric 20");
        ip("route add default via 172.31.0.250 table 7");
        ip("route add blackhole default metric 5");
        let host = lab.kernel.host().await.expect("host");
        let eth0 = host.interfaces.iter().find(|interface| interface.name == "eth0").expect("eth0");
        assert_eq!((eth0.index, eth0.mtu, eth0.up), (lab.lower, 1500, true));
        assert_eq!(json!(eth0.mac.expect("a MAC").to_string()), ip_json("link show dev eth0")[0]["address"]);
        let lo = host.interfaces.iter().find(|interface| interface.name == "lo").expect("lo");
        assert_eq!((lo.mac, lo.addresses[0].net, lo.addresses[0].scope), (None, net("127.0.0.1/8"), 254));
        let find = |text: &str| *eth0.addresses.iter().find(|a| a.net == net(text)).expect(text);
        assert!(find("172.31.0.1/24").permanent && !find("172.31.0.1/24").temporary);
        assert!(find("172.31.0.8/24").temporary);
        let leased = find("172.31.9.1/32");
        assert!(!leased.permanent && leased.deprecated);
        assert_eq!((find("169.254.3.3/16").scope, find("fd31::1/64").scope), (253, 0));
        let defaults: Vec<_> = host.default_routes.iter().map(|r| (r.metric, r.gateway, r.oif, r.is_v6)).collect();
        let route = |metric, gateway, is_v6| (metric, Some(addr(gateway)), lab.lower, is_v6);
        assert_eq!(
            defaults,
            [
                route(10, "172.31.0.251", false),
                route(10, "172.31.0.252", false),
                route(20, "fd31::fe", true),
                route(50, "172.31.0.253", false),
            ]
        );
    });
}

#[test]
fn the_way_to_an_address_is_the_kernels() {
    on_a_new_host(async |mut lab| {
        ip("route add 10.1.0.0/16 via 172.31.0.9");
        ip("route add 10.9.0.0/16 via 172.31.0.10");
        ip("route add blackhole 10.2.0.0/16");
        ip("route add unreachable 10.3.0.0/16");
        ip("route add prohibit 10.4.0.0/16");
        ip("-6 route add blackhole fd02::/16");
        ip("-6 route add unreachable fd03::/16");
        ip("addr add 172.31.0.8/24 dev eth0");
        ip("route add 10.8.0.0/16 via 172.31.0.9 src 172.31.0.8");
        let from = |index, source| Some(WayOut { index, source: Some(addr(source)) });
        let eth0 = from(lab.lower, "172.31.0.1");
        let ways = [
            ("172.31.0.77", eth0),
            ("10.1.2.3", eth0),
            ("10.9.2.3", eth0),
            ("10.8.2.3", from(lab.lower, "172.31.0.8")),
            ("fd31::9", from(lab.lower, "fd31::1")),
            ("127.0.0.1", from(1, "127.0.0.1")),
            ("172.31.0.1", from(1, "172.31.0.1")),
            ("::1", from(1, "::1")),
            ("10.2.0.1", None),
            ("10.3.0.1", None),
            ("10.4.0.1", None),
            ("8.8.8.8", None),
            ("fd02::1", None),
            ("fd03::1", None),
            ("2001:db8::1", None),
        ];
        for (ip, way) in ways {
            assert_eq!(lab.kernel.route_to(addr(ip)).await, Ok(way), "{ip}");
        }
    });
}

#[test]
fn who_is_on_a_link_is_as_the_kernel_routes() {
    on_a_new_host(async |mut lab| {
        ip("link add eth1 type veth peer name wire1");
        ip("link set wire1 up");
        ip("link set eth1 up");
        for args in [
            "addr add 172.31.9.1 peer 172.31.9.2/32 dev eth0",
            "addr add 10.20.0.1/16 dev eth1",
            "addr add 10.30.0.1/24 dev eth1 noprefixroute",
            "route add 172.31.0.64/26 via 172.31.0.9",
            "route add 172.31.0.80 dev eth1",
            "route add 10.20.3.0/24 dev eth0",
            "route add 10.40.0.0/16 dev eth0 metric 100",
            "route add 10.40.0.0/16 via 172.31.0.9 metric 50",
            "route add 10.41.0.0/16 via 172.31.0.9 metric 100",
            "route add 10.41.0.0/16 dev eth0 metric 50",
            "route add 10.42.0.0/16 dev eth1",
            "route add blackhole 10.42.1.0/24",
            "route add 10.42.2.0/24 nexthop via 172.31.0.9 nexthop via 172.31.0.8",
            "route add 10.42.3.0/24 dev eth0 table 77",
            "route add default via 172.31.0.254",
        ] {
            ip(args);
        }
        let links = lab.kernel.host().await.expect("host").links;
        for host in [
            "172.31.0.7",
            "172.31.0.65",
            "172.31.0.80",
            "172.31.9.2",
            "172.31.9.3",
            "10.20.1.1",
            "10.20.3.3",
            "10.30.0.7",
            "10.40.0.1",
            "10.41.0.1",
            "10.42.0.1",
            "10.42.1.1",
            "10.42.2.1",
            "10.42.3.1",
            "8.8.8.8",
        ] {
            let words = ["-j", "route", "get", host];
            let output = std::process::Command::new("ip").args(words).output().expect("ip");
            let route: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let direct = route[0]["dev"].as_str().filter(|_| route[0]["gateway"].is_null());
            let index = direct.map(|dev| ip_json(&format!("link show dev {dev}"))[0]["ifindex"].as_u64());
            let expected = index.flatten().map(|index| index as u32);
            assert_eq!(links.link_to(host.parse().expect("an address")), expected, "{host}: {route}");
        }
    });
}

#[test]
fn a_link_on_which_the_kernel_takes_no_gateway_is_none() {
    on_a_new_host(async |mut lab| {
        for args in [
            "route add 10.43.0.0/24 dev eth0 scope global",
            "route add 10.44.0.0/24 dev eth0 scope site",
            "route add 10.45.0.0/24 dev eth0 scope link",
        ] {
            ip(args);
        }
        let host = lab.kernel.host().await.expect("host");
        let nic = host.interfaces.iter().find(|interface| interface.name == "eth0").expect("eth0").index;
        for gateway in ["10.43.0.2", "10.44.0.2", "10.45.0.2"] {
            let words = ["route", "add", "10.5.9.0/24", "via", gateway, "dev", "eth0"];
            let taken = std::process::Command::new("ip").args(words).output().expect("ip").status.success();
            let link = host.links.link_to(gateway.parse().expect("an address"));
            assert_eq!(link, Some(nic).filter(|_| taken), "{gateway}");
        }
    });
}
