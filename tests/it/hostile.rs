//! Keys that nobody should have put there: none of them reaches the kernel, and none keeps good peers from it.

use std::collections::BTreeSet;
use std::fs;

use ipnet::Ipv4Net;

use crate::lab::{Etcd, Host, Lab, Lease, PREFIX, Tables, eventually, eventually_eq};

/// A lease of subnet 172.30.`n`.0/24 with that public IP and VtepMAC.
fn lease(public_ip: &str, mac: &str) -> String {
    Lease { subnet: String::new(), public_ip: public_ip.into(), mac: mac.into() }.value()
}

/// A value that is fit for a peer.
fn fit(n: u8) -> String {
    Lease::guest(n).value()
}

/// Keys under the prefix, what is in them, and a part of the reason for which each is refused.
fn refused(own: &Lease) -> Vec<(String, String, &'static str)> {
    let own_subnet = own.subnet.replace('/', "-");
    let key = |key: &str| format!("subnets/{key}");
    let at = |n: u8| key(&format!("172.30.{n}.0-24"));
    let wide = own.subnet.replace("/24", "/23").parse::<Ipv4Net>().expect("a subnet").trunc();
    let wide = wide.to_string().replace('/', "-");
    vec![
        (key("hello"), fit(210), "key"),
        (key("172.30.210.0"), fit(210), "key"),
        (key("172.30.210.0-33"), fit(210), "key"),
        (key("172.30.999.0-24"), fit(210), "key"),
        (key("172.30.210.7-24"), fit(210), "key"),
        (key("x/172.30.210.0-24"), fit(210), "key"),
        (key("172.30.210.0-24/x"), fit(210), "key"),
        (at(211), "not JSON".into(), "JSON"),
        (at(212), String::new(), "JSON"),
        (at(213), "[]".into(), ""),
        (at(214), "null".into(), ""),
        (at(215), format!(r#"{{"PublicIP":"{}"}}"#, "x".repeat(1 << 20)), ""),
        (at(216), r#"{"PublicIP":null,"BackendType":"vxlan"}"#.into(), "PublicIP"),
        (at(217), fit(217).replace("172.31.0.217", "172.31.0.999"), "PublicIP"),
        (at(218), lease("172.31.0.218", "0e:00:00:00:00"), "VtepMAC"),
        (at(219), lease("172.31.0.219", "00:00:00:00:00:00"), "VtepMAC"),
        (at(220), lease("172.31.0.220", "01:00:5e:00:00:01"), "VtepMAC"),
        (at(221), lease("172.31.0.221", "ff:ff:ff:ff:ff:ff"), "VtepMAC"),
        (at(222), lease("172.31.0.222", &own.mac), "is ours"),
        (at(223), lease("0.0.0.0", "0e:00:00:00:00:df"), "not the address of a host"),
        (at(224), lease("127.0.0.1", "0e:00:00:00:00:e0"), "not the address of a host"),
        (at(225), lease("224.0.0.5", "0e:00:00:00:00:e1"), "not the address of a host"),
        (at(226), lease("255.255.255.255", "0e:00:00:00:00:e2"), "not the address of a host"),
        (at(227), lease(&own.public_ip, "0e:00:00:00:00:e3"), "is ours"),
        (at(228), fit(228).replace("\"VNI\":1", "\"VNI\":7"), "VNI 7"),
        (at(229), fit(229).replace("\"VNI\":1", "\"VNI\":\"x\""), ""),
        (key("172.30.0.0-16"), fit(230), "not inside the network"),
        (key("0.0.0.0-0"), fit(231), "not inside the network"),
        (key("128.0.0.0-1"), fit(232), "not inside the network"),
        (key("10.9.0.0-24"), fit(233), "not inside the network"),
        (key("172.31.0.0-24"), fit(234), "not inside the network"),
        (key(&wide), fit(235), "overlaps ours"),
        (key(&own_subnet.replace(".0-24", ".128-25")), fit(236), "overlaps ours"),
        (key("172.30.200.128-25"), fit(237), "overlaps"),
        (key("172.30.200.0-23"), fit(238), "overlaps"),
        (at(239), lease("172.31.0.99", "0e:00:00:00:00:c8"), "MAC"),
        (at(240), lease("172.30.201.5", "0e:00:00:00:00:f0"), "lies in the subnet of"),
        (at(250), fit(250), "on this host's other0"),
    ]
}

/// Keys that are none of flanneld's business, or that wait for their host.
fn ignored() -> Vec<(&'static str, String)> {
    let host_gw = r#"{"PublicIP":"172.31.0.245","BackendType":"host-gw"}"#.to_owned();
    let udp = r#"{"PublicIP":"172.31.0.246","BackendType":"udp","BackendData":null}"#.to_owned();
    vec![
        ("subnets-old/172.30.241.0-24", fit(241)),
        ("subnets6/172.30.242.0-24", "not JSON".into()),
        ("subnetsx", "not JSON".into()),
        ("other/subnets/172.30.243.0-24", fit(243)),
        ("subnets/172.30.245.0-24", host_gw),
        ("subnets/172.30.246.0-24", udp),
        ("subnets/172.30.247.0-24", r#"{"PublicIP":"172.31.0.247","BackendType":"vxlan"}"#.into()),
    ]
}

fn put(etcd: &Etcd, key: &str, value: &str) {
    let key = format!("{PREFIX}/{key}");
    // A value of a megabyte is no argument for a command.
    if value.len() < 100_000 { etcd.put(&key, value) } else { etcd.put_stdin(&key, value) }
}

fn refusals(host: &Host) -> Vec<String> {
    host.log().lines().filter(|line| line.contains(" refused: ")).map(str::to_owned).collect()
}

#[test]
fn hostile_keys_reach_nothing_and_hold_up_nobody() {
    let lab = Lab::new("hostile");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.joined(1);
    hosts[0].sh("ip link add other0 type bridge; ip link set other0 up; ip addr add 172.30.250.1/24 dev other0");
    let mut good = vec![Lease::guest(200), Lease::guest(201)];
    etcd.put_leases(&good);
    let own = etcd.lease_of_host(&hosts[0]);
    let hostile = refused(&own);
    hostile.iter().for_each(|(key, value, _)| put(&etcd, key, value));
    ignored().iter().for_each(|(key, value)| put(&etcd, key, value));
    good.push(Lease::guest(202));
    etcd.put_lease(&good[2]);
    eventually_eq("the good peers, and the last at once", &Tables::to(&good), || hosts[0].tables());
    assert!(hosts[0].sh("ip route show 172.30.250.0/24").contains("dev other0 proto kernel"));

    // A restart meets them all at once.
    for _ in 0..2 {
        eventually_eq("each is refused once", &hostile.len(), || refusals(&hosts[0]).len());
        for (key, _, reason) in &hostile {
            let name = key.strip_prefix("subnets/").expect("a lease");
            let lines = refusals(&hosts[0]);
            let told: Vec<&String> = lines.iter().filter(|line| line.contains(&format!("lease={name:?}"))).collect();
            assert!(told.len() == 1 && told[0].contains(reason), "{key} ({reason}): {told:?}");
        }
        assert_eq!(hosts[0].tables(), Tables::to(&good));
        eventually("STATUS= counts them", || {
            let count = format!("{} refused", hostile.len());
            hosts[0].status().is_some_and(|status| status.contains("3 peers") && status.contains(&count))
        });
        hosts[0].stop();
        fs::remove_file(hosts[0].path("log")).expect("the log");
        hosts[0].join();
    }
}

#[test]
fn refused_leases_count_as_taken() {
    let lab = Lab::new("taken");
    let etcd = lab.etcd();
    // Room for 172.30.1.0/24 to 172.30.7.0/24.
    let config = r#"{ "Network": "172.30.0.0/21", "SubnetLen": 24, "Backend": { "Type": "vxlan" } }"#;
    etcd.put(&format!("{PREFIX}/config"), config);
    let taken = [
        ("172.30.1.0-24", lease("172.31.0.99", "00:00:00:00:00:00")),
        ("172.30.2.0-24", "not JSON".to_owned()),
        ("172.30.3.128-25", fit(203)),
        ("172.30.4.0-23", lease("127.0.0.1", "0e:00:00:00:00:04")),
        ("172.30.6.0-24", r#"{"PublicIP":"172.31.0.6","BackendType":"host-gw"}"#.to_owned()),
    ];
    taken.iter().for_each(|(key, value)| put(&etcd, &format!("subnets/{key}"), value));
    let mut host = lab.host(1);
    host.join();
    assert_eq!(host.subnet(), "172.30.7.0/24");
    // A key wider than a host's subnet that belongs to no host gives way when nothing else is left.
    let mut others = [lab.host(2), lab.host(3)];
    others.iter_mut().for_each(Host::join);
    let subnets: BTreeSet<String> = others.iter().map(Host::subnet).collect();
    assert_eq!(subnets, ["172.30.4.0/24", "172.30.5.0/24"].map(str::to_owned).into());
    let mut late = lab.host(4);
    late.start(&[]);
    eventually("STATUS= says why it waits", || late.status().is_some_and(|status| status.contains("out of subnets")));
    etcd.del(&format!("{PREFIX}/subnets/172.30.1.0-24"));
    late.wait_ready();
    assert_eq!(late.subnet(), "172.30.1.0/24");
}
