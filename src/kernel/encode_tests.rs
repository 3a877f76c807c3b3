//! The bytes that the kernel gets, as `linux/rtnetlink.h`, `neighbour.h`, `if_addr.h` and `if_link.h` lay them out and
//! as `ip` and `bridge` send them.

use super::encode;
use crate::model::device::{Device, Link, Vxlan};
use crate::model::entry::{Address, FdbEntry, Neighbor, Oif, Route};
use crate::model::mac::VtepMac;
use crate::model::plan::Op;
use netlink_packet_core::NetlinkMessage;

const INDEX: u32 = 0x0102;
const MAC: VtepMac = VtepMac([0x0e, 1, 2, 3, 4, 5]);
/// `NLM_F_CREATE | NLM_F_EXCL` and `NLM_F_CREATE | NLM_F_REPLACE`.
const EXCL: u16 = 0x600;
const REPLACE: u16 = 0x500;

/// An attribute of this type, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn word(value: u32) -> [u8; 4] {
    value.to_ne_bytes()
}

/// The type, flags and body of a request.
fn sent(request: super::socket::Request) -> (u16, u16, Vec<u8>) {
    let mut message = NetlinkMessage::from(request.message);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    (message.header.message_type, request.flags, bytes.split_off(16))
}

fn change(op: Op) -> (u16, u16, Vec<u8>) {
    sent(encode::change(&op, INDEX).expect("an entry"))
}

fn route() -> Route {
    let dest: ipnet::IpNet = "10.5.1.0/24".parse().unwrap();
    Route { dest, gateway: Some(dest.addr()), oif: Oif::Ours, onlink: true, metric: 0, protocol: 123 }
}

#[test]
fn a_route() {
    let (dst, gateway) = (attribute(1, &[10, 5, 1, 0]), attribute(5, &[10, 5, 1, 0]));
    let body = |protocol, scope, onlink| {
        let header = [2, 24, 0, 0, 254, protocol, scope, 1];
        [&header[..], &word(onlink), &dst, &gateway, &attribute(4, &word(INDEX))].concat()
    };
    assert_eq!(change(Op::add(route())), (24, EXCL, body(123, 0, 4)));
    assert_eq!(change(Op::set(route())), (24, REPLACE, body(123, 0, 4)));
    assert_eq!(change(Op::delete(route())), (25, 0, body(0, 255, 0)));
}

#[test]
fn a_route_of_ipv6_by_another_device_with_a_metric() {
    let dest: ipnet::IpNet = "fd05:0:0:1::/64".parse().unwrap();
    let gateway: std::net::Ipv6Addr = "fd31::9".parse().unwrap();
    let route =
        Route { dest, gateway: Some(gateway.into()), oif: Oif::Other(7), onlink: false, metric: 1024, protocol: 3 };
    let body = [
        &[10, 64, 0, 0, 254, 3, 0, 1][..],
        &word(0),
        &attribute(1, &[0xfd, 5, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        &attribute(5, &gateway.octets()),
        &attribute(4, &word(7)),
        &attribute(6, &word(1024)),
    ];
    assert_eq!(change(Op::add(route)), (24, EXCL, body.concat()));
}

#[test]
fn an_ipv4_route_by_an_ipv6_gateway() {
    let gateway: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
    let (_, _, bytes) = change(Op::delete(Route { gateway: Some(gateway.into()), ..route() }));
    let via = attribute(18, &[&10u16.to_ne_bytes()[..], &gateway.octets()].concat());
    assert_eq!(bytes[20..20 + via.len()], via);
}

#[test]
fn a_neighbour() {
    let header = [&[2, 0, 0, 0][..], &word(INDEX), &[0x80, 0, 0, 0]].concat();
    let (dst, lladdr) = (attribute(1, &[10, 5, 1, 0]), attribute(2, &MAC.0));
    let ip = "10.5.1.0".parse().unwrap();
    assert_eq!(change(Op::set(Neighbor { ip, mac: MAC })), (28, REPLACE, [&header[..], &dst, &lladdr].concat()));
    assert_eq!(change(Op::delete(Neighbor { ip, mac: MAC })), (29, 0, [&header[..], &dst].concat()));
}

#[test]
fn an_fdb_entry() {
    let header = [&[7, 0, 0, 0][..], &word(INDEX), &[0x80, 0, 2, 0]].concat();
    let body = [&header[..], &attribute(2, &MAC.0), &attribute(1, &[172, 31, 0, 2])].concat();
    let dst = "172.31.0.2".parse().unwrap();
    assert_eq!(change(Op::set(FdbEntry { mac: MAC, dst })), (28, REPLACE, body.clone()));
    assert_eq!(change(Op::delete(FdbEntry { mac: MAC, dst })), (29, 0, body));
    assert_eq!(change(Op::ClearFdb(MAC)), (29, 0, [&header[..], &attribute(2, &MAC.0)].concat()));
}

#[test]
fn an_address() {
    let both = |bytes: &[u8]| [attribute(2, bytes), attribute(1, bytes)].concat();
    let v4 = [&[2, 32, 0, 0][..], &word(INDEX), &both(&[10, 5, 34, 0])].concat();
    let net = "10.5.34.0/32".parse().unwrap();
    assert_eq!(change(Op::set(Address(net))), (20, REPLACE, v4.clone()));
    assert_eq!(change(Op::delete(Address(net))), (21, 0, v4));
    let octets = [0xfd, 5, 0, 0, 0, 0, 0, 0x22, 0, 0, 0, 0, 0, 0, 0, 0];
    let v6 = [&[10, 128, 2, 0][..], &word(INDEX), &both(&octets)].concat();
    assert_eq!(change(Op::set(Address("fd05:0:0:22::/128".parse().unwrap()))), (20, REPLACE, v6));
}

fn device() -> Device {
    let vxlan = Vxlan {
        vni: 1,
        local: Some("172.31.0.1".parse().unwrap()),
        lower: 3,
        port: 8472,
        learning: false,
        gbp: true,
        group: None,
        ttl: 0,
        ageing: 300,
    };
    let (name, link) = ("flannel.1".to_owned(), Link::Vxlan(vxlan));
    Device { name, mac: Some(MAC), mtu: 1450, up: true, tx_checksum_off: false, link }
}

/// `IFLA_LINKINFO` with what is common to a new and a changed VXLAN device, and `more`.
fn vxlan_info(more: &[Vec<u8>]) -> Vec<u8> {
    let id = attribute(1, &word(1));
    let learning = attribute(7, &[0]);
    let ageing = attribute(8, &word(300));
    let local = attribute(4, &[172, 31, 0, 1]);
    let data = [id, learning, ageing, local, more.concat()].concat();
    attribute(18, &[attribute(1, b"vxlan\0"), attribute(2, &data)].concat())
}

#[test]
fn a_new_device() {
    let more = [attribute(3, &word(3)), attribute(15, &8472u16.to_be_bytes()), attribute(23, &[])];
    let body = [
        vec![0; 16],
        attribute(3, b"flannel.1\0"),
        attribute(1, &MAC.0),
        attribute(4, &word(1450)),
        attribute(13, &word(0)),
        vxlan_info(&more),
    ];
    assert_eq!(sent(encode::create_device(&device())), (16, EXCL, body.concat()));
}

#[test]
fn changes_of_a_device() {
    let header = [&word(0)[..], &word(INDEX), &word(0), &word(0)].concat();
    let with = |attribute: Vec<u8>| [header.clone(), attribute].concat();
    let changed = vxlan_info(&[attribute(5, &[0])]);
    assert_eq!(sent(encode::change_link(INDEX, &device().link)), (16, 0, with(changed)));
    assert_eq!(sent(encode::set_mtu(INDEX, 1400)), (19, 0, with(attribute(4, &word(1400)))));
    assert_eq!(sent(encode::set_mac(INDEX, MAC)), (19, 0, with(attribute(1, &MAC.0))));
    let none = attribute(26, &attribute(10, &attribute(8, &[1])));
    assert_eq!(sent(encode::no_link_local(INDEX)), (19, 0, with(none)));
    assert_eq!(sent(encode::delete_device(INDEX)), (17, 0, header));
    let up = [word(0), word(INDEX), word(1), word(1)].concat();
    assert_eq!(sent(encode::set_up(INDEX, true)), (19, 0, up));
}
