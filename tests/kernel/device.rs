//! The device itself.

use crate::lab::*;
use flanneld::kernel::Kernel;
use flanneld::model::device::{Device, ExistingDevice, Link};
use flanneld::model::entry::{Address, FdbEntry, Neighbor, Oif, Route};
use flanneld::model::plan::Op;
use nix::libc::{EEXIST, EINVAL, ENODEV, EOPNOTSUPP};
use serde_json::{Value, json};

/// What `ip` says about a device in the words of the model.
fn seen(name: &str) -> Value {
    let link = &ip_json(&format!("link show dev {name}"))[0];
    let data = &link["linkinfo"]["info_data"];
    let flags = link["flags"].as_array().expect("flags");
    json!({
        "kind": link["linkinfo"]["info_kind"], "mac": link["address"], "mtu": link["mtu"],
        "up": flags.contains(&json!("UP")), "queue": link["txqlen"], "vni": data["id"],
        "local": if data["local"].is_null() { &data["local6"] } else { &data["local"] },
        "link": data["link"], "port": data["port"], "learning": data["learning"], "gbp": data["gbp"],
        "ttl": data["ttl"], "ageing": data["ageing"], "checksum": data["udp_csum"],
        "link-local": link["inet6_addr_gen_mode"],
    })
}

/// What `ip` should say about it.
fn expected(device: &Device) -> Value {
    let Link::Vxlan(vxlan) = &device.link;
    json!({
        "kind": "vxlan", "mac": device.mac.expect("a MAC").to_string(), "mtu": device.mtu, "up": device.up, "queue": null,
        "vni": vxlan.vni, "local": vxlan.local, "link": "eth0", "port": vxlan.port, "learning": vxlan.learning,
        "gbp": if vxlan.gbp { json!(true) } else { Value::Null }, "ttl": vxlan.ttl, "ageing": vxlan.ageing,
        "checksum": true, "link-local": "none",
    })
}

fn accept_ra(device: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{device}/accept_ra")).expect("accept_ra")
}

#[test]
fn a_new_device_has_every_parameter_and_reads_back_as_it_was_made() {
    on_a_new_host(async |mut lab| {
        let usual = lab.device();
        let mut unusual = lab.device();
        vxlan(&mut unusual).gbp = true;
        vxlan(&mut unusual).learning = true;
        vxlan(&mut unusual).ttl = 64;
        vxlan(&mut unusual).ageing = 100;
        vxlan(&mut unusual).port = 4789;
        vxlan(&mut unusual).vni = 4242;
        unusual.mtu = 1300;
        let mut v6 = lab.device();
        vxlan(&mut v6).local = Some(addr("fd31::1"));
        v6.mtu = 1430;
        for device in [usual, unusual, v6] {
            lab.must(&[Op::CreateDevice(device.clone().into())]).await;
            assert_eq!(seen("flannel.1"), expected(&device));
            assert_eq!(accept_ra("flannel.1").trim(), "0");
            assert!(!ip("addr show dev flannel.1").contains("inet"), "an address that nobody asked for");
            let index = lab.index().await;
            let have = lab.have().await;
            assert_eq!(have.device, Some(ExistingDevice::Known(index, device)));
            assert!(have.addresses.is_empty() && have.neighbors.is_empty() && have.fdb.is_empty());
            lab.must(&[Op::DeleteDevice(index), Op::DeleteDevice(index)]).await;
            assert_eq!(lab.have().await.device, None);
        }
    });
}

#[test]
fn the_port_is_compared_although_the_config_names_none() {
    on_a_new_host(async |mut lab| {
        let make = "link add flannel.1 address 0e:01:02:03:04:05 mtu 1450 type vxlan id 1 local 172.31.0.1 dev eth0 \
                    nolearning";
        let up = "link set flannel.1 up";
        // The port that a Go flanneld leaves to the kernel.
        ip(make);
        ip("addr add 10.5.34.0/32 dev flannel.1");
        ip(up);
        let host = lab.kernel.host().await.expect("the host");
        assert_eq!(Some(seen("flannel.1")["port"].clone()), host.vxlan_port.map(Value::from));
        assert_eq!(lab.plan(&lab.want()).await, []);
        let index = lab.index().await;
        // The port of another make of VXLAN, with which no packet of the overlay passes.
        ip("link del flannel.1");
        ip(&format!("{make} dstport 4789"));
        ip(up);
        let want = lab.want();
        lab.reach(&want).await;
        assert_ne!(lab.index().await, index);
        assert_eq!(seen("flannel.1")["port"], 8472);
    });
}

#[test]
fn parameters_change_in_place_and_nothing_on_the_device_is_lost() {
    on_a_new_host(async |mut lab| {
        ip("addr add 172.31.0.9/24 dev eth0");
        let mut want = lab.want();
        (0x0501..0x0506).for_each(|n| add_peer(&mut want, n));
        lab.reach(&want).await;
        let (index, before) = (lab.index().await, lab.have().await);
        let changes: [fn(&mut Device); 6] = [
            |device| vxlan(device).local = Some(addr("172.31.0.9")),
            |device| vxlan(device).learning = true,
            |device| vxlan(device).ageing = 77,
            |device| vxlan(device).ttl = 9,
            |device| vxlan(device).ttl = 0,
            |device| device.mtu = 1400,
        ];
        for change in changes {
            let device = want.device.get_mut().expect("a device");
            change(device);
            let device = device.clone();
            assert_eq!(lab.plan(&want).await, [Op::ChangeDevice(index, device.clone().into())]);
            lab.reach(&want).await;
            assert_eq!(seen("flannel.1"), expected(&device));
            let have = lab.have().await;
            let same = (&have.neighbors, &have.fdb, &have.routes, &have.addresses)
                == (&before.neighbors, &before.fdb, &before.routes, &before.addresses);
            assert!(same && lab.index().await == index, "{have:?}");
        }
    });
}

#[test]
fn a_new_mac_flushes_the_neighbours_and_nothing_else() {
    on_a_new_host(async |mut lab| {
        let mut want = lab.want();
        add_peer(&mut want, 0x0501);
        lab.reach(&want).await;
        let (index, before) = (lab.index().await, lab.have().await);
        let device = want.device.get_mut().expect("a device");
        device.mac = Some(mac("0e:99:00:00:00:01"));
        let device = device.clone();
        lab.must(&[Op::ChangeDevice(index, device.clone().into())]).await;
        assert_eq!(seen("flannel.1"), expected(&device));
        let have = lab.have().await;
        assert!(have.neighbors.is_empty());
        assert_eq!((have.fdb, have.routes), (before.fdb, before.routes));
        lab.reach(&want).await;
    });
}

#[test]
fn a_device_that_went_down_comes_up_and_gets_its_routes_back() {
    on_a_new_host(async |mut lab| {
        let mut want = lab.want();
        add_peer(&mut want, 0x0501);
        lab.reach(&want).await;
        ip("link set flannel.1 down");
        assert_eq!(lab.have().await.routes.len(), 0);
        let index = lab.index().await;
        lab.must(&[Op::ChangeDevice(index, lab.device().into())]).await;
        lab.reach(&want).await;
        assert_eq!(seen("flannel.1")["up"], true);
    });
}

#[test]
fn what_cannot_change_makes_a_new_device() {
    on_a_new_host(async |mut lab| {
        let mut want = lab.want();
        lab.reach(&want).await;
        let changes: [fn(&mut Device); 4] = [
            |device| vxlan(device).port = 4789,
            |device| vxlan(device).gbp = true,
            |device| vxlan(device).vni = 2,
            |device| (vxlan(device).local, device.mtu) = (Some(addr("fd31::1")), 1430),
        ];
        for change in changes {
            let index = lab.index().await;
            change(want.device.get_mut().expect("a device"));
            lab.reach(&want).await;
            assert_ne!(lab.index().await, index);
            assert_eq!(seen("flannel.1"), expected(want.device.get().expect("a device")));
        }
        let index = lab.index().await;
        vxlan(want.device.get_mut().expect("a device")).lower =
            ip_json("link show dev wire")[0]["ifindex"].as_u64().expect("an index") as u32;
        lab.reach(&want).await;
        assert_ne!(lab.index().await, index);
    });
}

#[test]
fn another_kind_of_device_in_our_place_is_replaced() {
    on_a_new_host(async |mut lab| {
        for kind in ["bridge", "veth"] {
            ip(&format!("link add flannel.1 type {kind}"));
            ip("addr add 10.5.9.0/24 dev flannel.1");
            let Some(ExistingDevice::Other(_, found)) = lab.have().await.device else { panic!("{kind} not found") };
            assert_eq!(found, kind);
            let set = Op::set(Neighbor { ip: addr("10.5.1.0"), mac: mac("0e:00:00:00:00:01") });
            assert_eq!(lab.try_all(&[set]).await, [Err(ENODEV)], "nothing is put on somebody else's device");
            let mut want = lab.want();
            add_peer(&mut want, 0x0501);
            lab.reach(&want).await;
            ip("link del flannel.1");
        }
    });
}

#[test]
fn a_foreign_group_and_an_underlay_of_ipv6_are_seen() {
    on_a_new_host(async |mut lab| {
        ip("link add flannel.1 type vxlan id 1 group ff05::8 dev eth0 dstport 8472 ttl 3");
        let Some(ExistingDevice::Known(_, device)) = lab.have().await.device else { panic!("not found") };
        let Link::Vxlan(vxlan) = device.link;
        assert_eq!((vxlan.group, vxlan.local), (Some(addr("ff05::8")), None));
        assert_eq!((vxlan.ttl, vxlan.learning, device.up), (3, true, false));
        let fdb = lab.have().await.fdb;
        // Its entry names the device below, so it is none that an operation of ours could have made or could delete.
        assert!(fdb[&mac("00:00:00:00:00:00")].is_empty());
        let want = lab.want();
        lab.reach(&want).await;
        assert_eq!(seen("flannel.1"), expected(&lab.device()));
    });
}

#[test]
fn refusals_say_why() {
    on_a_new_host(async |mut lab| {
        let index = lab.with_device().await;
        let mut twin = lab.device();
        twin.name = "flannel.2".to_owned();
        let results = lab.kernel.apply(&lab.scope.clone(), &[Op::CreateDevice(twin.into())]).await;
        let text = results[0].as_ref().expect_err("a second device with one VNI").to_string();
        assert!(text.contains("create device flannel.2") && text.contains("specified VNI already exists"), "{text}");

        let too_much = Device { mtu: 1501, ..lab.device() };
        let mut other_vni = lab.device();
        vxlan(&mut other_vni).vni = 5;
        let ops = [
            Op::CreateDevice(lab.device().into()),
            Op::ChangeDevice(index, too_much.into()),
            Op::ChangeDevice(index, other_vni.into()),
            Op::ChangeDevice(index + 7, lab.device().into()),
        ];
        assert_eq!(lab.try_all(&ops).await, [Err(EEXIST), Err(EINVAL), Err(EOPNOTSUPP), Err(ENODEV)]);
        assert_eq!(seen("flannel.1"), expected(&lab.device()), "refused changes change nothing");
    });
}

#[test]
fn without_a_device_deleting_succeeds_and_adding_fails() {
    on_a_new_host(async |mut lab| {
        let (peer, mac) = (addr("10.5.1.0"), mac("0e:00:00:00:00:01"));
        let route = overlay_route(net("10.5.1.0/24"));
        let elsewhere = Route { gateway: Some(addr("172.31.0.7")), oif: Oif::Other(lab.lower), onlink: false, ..route };
        let ops = [
            Op::delete(Address(net("10.5.34.0/32"))),
            Op::delete(Neighbor { ip: peer, mac }),
            Op::delete(FdbEntry { mac, dst: addr("172.31.0.2") }),
            Op::delete(route),
            Op::add(elsewhere),
            Op::add(route),
            Op::set(FdbEntry { mac, dst: addr("172.31.0.2") }),
            Op::set(Neighbor { ip: peer, mac }),
            Op::set(Address(net("10.5.34.0/32"))),
        ];
        let (ok, no) = (Ok(()), Err(ENODEV));
        assert_eq!(lab.try_all(&ops).await, [ok, ok, ok, ok, ok, no, no, no, no]);
        assert!(ip("route show").contains("10.5.1.0/24 via 172.31.0.7 dev eth0"));
        let have = lab.have().await;
        assert_eq!((have.device, have.routes[&route.dest].as_slice()), (None, &[elsewhere][..]));
    });
}

#[test]
fn a_host_without_ipv6_gets_its_device_all_the_same() {
    on_a_new_host(async |mut lab| {
        for scope in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1").expect("disable_ipv6");
        }
        let mut want = lab.want();
        add_peer(&mut want, 0x0501);
        lab.reach(&want).await;
        let index = lab.index().await;
        ip("link set flannel.1 down mtu 1200");
        lab.reach(&want).await;
        assert_eq!(lab.index().await, index);
    });
}
