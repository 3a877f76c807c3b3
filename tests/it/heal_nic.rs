//! What happens to the NIC under the tunnel, to addresses beside it and to the files is followed.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::field::Field;
use crate::lab::{DEVICE, Lab, Lease, PREFIX, eventually, eventually_eq};

#[test]
fn a_nic_that_goes_down_and_up_or_is_replaced_heals() {
    let field = Field::new("nic");
    let host = &field.hosts[0];
    field.damage("ip link set eth0 down; sleep 0.2; ip link set eth0 up");
    host.configure_nic();
    field.is_well();

    field.damage("ip link del eth0");
    eventually("the device goes with its NIC", || host.device(DEVICE).is_none());
    eventually("STATUS= says so", || host.status().is_some_and(|status| status.contains("eth0 is gone")));
    host.plug_in_nic();
    sleep(Duration::from_millis(300));
    host.configure_nic();
    field.is_well();
    assert_ne!(host.device(DEVICE).map(|device| device.ifindex), field.before.device.as_ref().map(|d| d.ifindex));
}

#[test]
fn what_cannot_be_mended_is_complained_of_and_waited_for_in_peace() {
    let field = Field::new("stolen");
    let host = &field.hosts[0];
    // Nothing else can have its VNI now.
    field.damage("ip link set flannel.1 down; ip link set flannel.1 name stolen");
    let complains = |of: &str| host.status().is_some_and(|status| status.contains(of));
    eventually("STATUS= says why", || complains("A VXLAN device with the specified VNI already exists"));
    host.ip("addr flush dev eth0");
    eventually("STATUS= says so", || complains("eth0 is gone or has no IPv4 address"));
    let before = host.sleeps();
    sleep(Duration::from_millis(1000));
    let woken = host.sleeps() - before;
    assert!(woken < 100, "it woke up {woken} times in a second");
    host.configure_nic();
    host.ip("link del stolen");
    field.is_well();
}

#[test]
fn a_new_mtu_reaches_device_and_files() {
    let field = Field::new("mtu");
    let host = &field.hosts[0];
    for (nic, containers) in [(1400, 1350), (9000, 8950), (1500, 1450)] {
        host.ip(&format!("link set eth0 mtu {nic}"));
        let mtu = || host.device(DEVICE).map(|device| device.mtu);
        eventually_eq("the device's MTU follows", &Some(containers), mtu);
        let files = || ["subnet.env", "docker_opts.env"].map(|name| host.file(name).unwrap_or_default());
        eventually("the files follow", || {
            let [env, opts] = files();
            env.contains(&format!("FLANNEL_MTU={containers}\n")) && opts.contains(&format!("--mtu={containers}"))
        });
        let warning = format!("the MTU for containers is now {containers}");
        eventually("the log warns of it", || host.log().contains(&warning));
    }
    field.is_well();
}

#[test]
fn a_new_address_of_the_nic_is_published_and_peers_follow() {
    let lab = Lab::new("address");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.joined(2);
    let containers = crate::lab::containers_on(&mut hosts);
    hosts.iter().for_each(|host| host.follows(&etcd));
    let before = etcd.lease_of_host(&hosts[0]);
    let id = etcd.lease_of(&before.key());
    for last in [101, 1] {
        hosts[0].readdress_nic(last);
        let start = Instant::now();
        let moved = Lease { public_ip: hosts[0].public_ip(), ..before.clone() };
        eventually_eq("the lease follows", &Some(moved.value()), || etcd.get(&moved.key()));
        assert_eq!(etcd.lease_of(&before.key()), id, "on the same etcd lease");
        hosts.iter().for_each(|host| host.follows(&etcd));
        let local = || hosts[0].device(DEVICE).and_then(|device| device.vxlan).map(|vxlan| vxlan.local);
        eventually_eq("the tunnel's own end follows", &Some(hosts[0].public_ip()), local);
        println!("followed after {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(4), "waited for a connection from an address that is gone");
        containers[0].ping(containers[1].address(), 1).unwrap();
        assert_eq!(hosts[0].subnet(), before.subnet);
    }
    assert_eq!(etcd.leases().len(), 2);
}

#[test]
fn a_new_address_is_published_when_etcd_is_back() {
    let lab = Lab::new("renumbered");
    let mut etcd = lab.etcd_with_config();
    let mut host = lab.joined(1).remove(0);
    let before = etcd.lease_of_host(&host);
    etcd.kill();
    host.readdress_nic(101);
    eventually("the daemon has tried", || host.log().contains("cannot be renewed"));
    etcd.start();
    let moved = Lease { public_ip: host.public_ip(), ..before };
    eventually_eq("the lease follows", &Some(moved.value()), || etcd.get(&moved.key()));
}

#[test]
fn files_that_somebody_spoiled_are_right_after_the_next_full_read() {
    let field = Field::new("spoiled");
    let host = &field.hosts[0];
    let files = || ["subnet.env", "docker_opts.env"].map(|name| host.file(name));
    let before = files();
    for spoil in ["rm subnet.env docker_opts.env", "echo FLANNEL_SUBNET=10.0.0.1/24 >subnet.env", ": >docker_opts.env"]
    {
        host.sh(&format!("cd {}; {spoil}", host.path("").display()));
        // A change of the device is one of the things that call for a full read.
        field.damage("ip link set flannel.1 mtu 1400");
        eventually_eq("the files are as before", &before, files);
    }
    field.is_well();
}

#[test]
fn a_connected_network_is_left_alone_and_the_peer_in_it_refused() {
    let field = Field::new("connected");
    let host = &field.hosts[0];
    let guest = Lease::guest(200);
    let key = "172.30.200.0-24";
    let refused = || {
        host.log()
            .matches(&format!(
                "refused: its subnet holds 172.30.200.1/24, which is on this host's other0 lease=\"{key}\""
            ))
            .count()
    };
    let routes = || host.sh("ip route show 172.30.200.0/24");
    let neighbors = || host.neighbors(DEVICE).into_iter().filter(|neighbor| neighbor.ip == guest.gateway()).count();
    for round in 1..=2 {
        host.ip("addr add 172.30.200.1/24 dev other0");
        eventually("the peer is refused", || refused() == round && neighbors() == 0 && !routes().contains(DEVICE));
        assert!(routes().contains("dev other0 proto kernel scope link src 172.30.200.1"), "{}", routes());
        assert!(field.etcd.get(&format!("{PREFIX}/subnets/{key}")).is_some());
        field.containers_reach_each_other();
        host.ip("addr del 172.30.200.1/24 dev other0");
        host.returns_to(&field.before);
    }
    field.is_well();
}

#[test]
fn a_wider_network_beside_the_overlay_is_warned_of_and_changes_nothing() {
    let field = Field::new("wider");
    let host = &field.hosts[0];
    let warnings = || host.log().matches("other0 is in 172.30.128.0/17, which overlaps the overlay").count();
    assert_eq!(warnings(), 0);
    host.ip("addr add 172.30.249.1/17 dev other0");
    eventually("the log warns of it", || warnings() == 1);
    host.ip("addr add 10.97.0.1/24 dev other0");
    field.damage("ip link set flannel.1 mtu 1400");
    eventually("all was looked at again", || host.log().contains("MTU 1400, not 1450"));
    host.follows(&field.etcd);
    field.containers_reach_each_other();
    host.ip("addr del 172.30.249.1/17 dev other0");
    host.ip("addr del 10.97.0.1/24 dev other0");
    field.is_well();
    assert_eq!(warnings(), 1);
}

#[test]
fn what_strangers_put_on_the_device_or_beside_it_stays() {
    let field = Field::new("strangers");
    let host = &field.hosts[0];
    let strangers = "
        ip addr add 192.168.77.1/24 dev flannel.1
        ip route add 192.168.78.0/24 via 192.168.77.9
        ip route add $PEER via 10.99.0.2 metric 9
        ip route add $PEER via 10.99.0.2 tos 0x10
        ip route add ${PEER%0/24}8/29 via 10.99.0.2
        ip route add $PEER via 10.99.0.2 table 77
        ip rule add to $PEER lookup 78 pref 900";
    field.damage(strangers);
    let with_strangers = host.state();
    // A full read and repairs of the neighbourhood.
    for damage in ["ip link set flannel.1 mtu 1400", "ip route del $PEER", "ip route prepend $PEER via 10.99.0.2"] {
        field.damage(damage);
        host.returns_to(&with_strangers);
    }
    field.etcd.put_lease(&Lease::guest(204));
    field.etcd.del(&Lease::guest(204).key());
    eventually("the guest came and went", || host.log().contains("delete route 172.30.204.0/24"));
    host.returns_to(&with_strangers);
}
