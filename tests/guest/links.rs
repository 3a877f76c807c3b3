//! External interfaces that are more than a NIC: a VLAN, a bond, one in a VRF; and a public IP on a dummy interface.

use crate::lab::{Container, DEVICE, Etcd, FLANNELD, Host, Lab, containers_on, eventually};

/// Two hosts, after `prepare`, whose daemons use `interface` and these flags.
fn joined(
    lab: &Lab,
    interface: &str,
    flags: &[&str],
    prepare: impl Fn(&Lab, &Host, u8),
) -> (Vec<Host>, Vec<Container>) {
    let mut hosts = lab.hosts(2);
    for (host, n) in hosts.iter_mut().zip(1..) {
        prepare(lab, host, n);
        let mut all = host.flags(flags);
        all.retain(|flag| !flag.starts_with("--iface="));
        all.extend([format!("--iface={interface}")].into_iter().map(|flag| flag.replace("$N", &n.to_string())));
        host.start_with(FLANNELD, &all);
    }
    hosts.iter().for_each(Host::wait_ready);
    let containers = containers_on(&mut hosts);
    (hosts, containers)
}

/// Packets of every size go both ways, as large as the device's MTU says and no larger.
fn carries(containers: &[Container], mtu: u32) {
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (&containers[from], containers[to].address());
        eventually("containers reach each other", || from.ping(to, 1).is_ok());
        from.ping_full_size(to, mtu).expect("a packet of full size");
        from.ping_full_size(to, mtu + 1).expect_err("a packet that is too large");
    }
}

/// The device was made on `lower`, and etcd knows this public IP of the first host.
fn stands_on(host: &Host, etcd: &Etcd, lower: &str, public_ip: &str) {
    let device = host.device(DEVICE).expect(DEVICE);
    let vxlan = device.vxlan.expect("a VXLAN device");
    assert_eq!(vxlan.link, lower);
    assert!(etcd.leases().iter().any(|lease| lease.public_ip == public_ip), "{:?}", etcd.leases());
}

#[test]
fn a_vlan_carries_the_overlay() {
    let lab = Lab::new("vlan");
    let etcd = lab.etcd_with_config();
    let (hosts, containers) = joined(&lab, "eth0.7", &[], |_, host, n| {
        host.sh(&format!(
            "ip link add link eth0 name eth0.7 type vlan id 7; ip addr add 10.7.0.{n}/24 dev eth0.7; ip link set eth0.7 up"
        ));
    });
    stands_on(&hosts[0], &etcd, "eth0.7", "10.7.0.1");
    carries(&containers, 1450);
    // A VLAN device goes when it is removed, and with it the overlay's device.
    hosts[0].sh("ip link del eth0.7");
    hosts[0].sh(
        "ip link add link eth0 name eth0.7 type vlan id 7; ip addr add 10.7.0.1/24 dev eth0.7; ip link set eth0.7 up",
    );
    carries(&containers, 1450);
}

#[test]
fn a_bond_carries_the_overlay_and_fails_over() {
    let lab = Lab::new("bond");
    let etcd = lab.etcd_with_config();
    let (hosts, containers) = joined(&lab, "bond0", &[], |lab, host, n| {
        host.sh("ip link set eth0 down; ip link add bond0 type bond mode active-backup miimon 100");
        lab.underlay_ip(&format!("link add q{n} type veth peer name eth1 netns {}", host.netns_name()));
        lab.underlay_ip(&format!("link set q{n} master br0 up"));
        host.sh(&format!(
            "ip addr flush dev eth0; ip link set eth0 master bond0; ip link set eth1 master bond0; ip link set bond0 up
             ip addr add 172.31.0.{n}/24 dev bond0; ip route replace default via 172.31.0.254"
        ));
    });
    stands_on(&hosts[0], &etcd, "bond0", "172.31.0.1");
    carries(&containers, 1450);
    let index = hosts[0].device(DEVICE).map(|device| device.ifindex);
    hosts[0].sh("ip link set eth0 down");
    carries(&containers, 1450);
    hosts[0].sh("ip link set eth0 up; ip link set eth1 down");
    carries(&containers, 1450);
    assert_eq!(hosts[0].device(DEVICE).map(|device| device.ifindex), index, "the device stays");
}

#[test]
fn an_interface_in_a_vrf_carries_the_overlay() {
    let lab = Lab::new("vrf");
    let etcd = lab.etcd_with_config();
    let (hosts, containers) = joined(&lab, "eth1", &[], |lab, host, n| {
        lab.underlay_ip(&format!("link add q{n} type veth peer name eth1 netns {}", host.netns_name()));
        lab.underlay_ip(&format!("link set q{n} master br0 up"));
        host.sh(&format!(
            "ip link add blue type vrf table 10; ip link set blue up
             ip link set eth1 master blue; ip link set eth1 up; ip addr add 10.8.0.{n}/24 dev eth1"
        ));
    });
    stands_on(&hosts[0], &etcd, "eth1", "10.8.0.1");
    carries(&containers, 1450);
}

#[test]
fn a_public_ip_on_a_dummy_interface_is_where_peers_send() {
    let lab = Lab::new("dummy");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.hosts(2);
    for (host, n) in hosts.iter_mut().zip(1..) {
        let other = 3 - n;
        host.sh(&format!(
            "ip link add dummy0 type dummy; ip addr add 192.0.2.{n}/32 dev dummy0; ip link set dummy0 up
             ip route add 192.0.2.{other}/32 via 172.31.0.{other} src 192.0.2.{n}"
        ));
        host.start(&[&format!("--public-ip=192.0.2.{n}")]);
    }
    hosts.iter().for_each(Host::wait_ready);
    let containers = containers_on(&mut hosts);
    stands_on(&hosts[0], &etcd, "eth0", "192.0.2.1");
    carries(&containers, 1450);
}
