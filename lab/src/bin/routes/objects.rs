//! Nexthop objects, for which the netlink library has no messages.

use crate::shape::{object, subnet};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::net::IpAddr;

const NEW: u16 = 104;
const DELETE: u16 = 105;
/// `NLM_F_REQUEST`, with `NLM_F_CREATE` and `NLM_F_REPLACE`, and `NLM_F_ACK`.
const REQUEST: u16 = 0x1;
const SET: u16 = 0x500;
const ANSWER: u16 = 0x4;
/// `NHA_ID`, `NHA_OIF`, `NHA_GATEWAY`.
const ID: u16 = 1;
const OIF: u16 = 5;
const GATEWAY: u16 = 6;
const ONLINK: u32 = 4;
const PER_SEND: usize = 200;

/// Adds the nexthop objects of these peers on the device with this index.
pub fn make(peers: std::ops::Range<u32>, index: u32) {
    send(peers, |n| {
        let IpAddr::V4(gateway) = subnet(n).addr() else { unreachable!("IPv4") };
        let header = [[2, 0, 100, 0], ONLINK.to_ne_bytes()].concat();
        let attributes = [(ID, object(n).to_ne_bytes()), (OIF, index.to_ne_bytes()), (GATEWAY, gateway.octets())];
        message(NEW, SET, header, &attributes)
    });
}

/// Removes the nexthop objects, and with each one the route that uses it.
pub fn remove(peers: std::ops::Range<u32>) {
    send(peers, |n| message(DELETE, 0, vec![0; 8], &[(ID, object(n).to_ne_bytes())]));
}

fn message(kind: u16, flags: u16, mut body: Vec<u8>, attributes: &[(u16, [u8; 4])]) -> Vec<u8> {
    for (attribute, value) in attributes {
        body.extend([8u16.to_ne_bytes(), attribute.to_ne_bytes()].concat());
        body.extend(value);
    }
    let length = (16 + body.len()) as u32;
    let header = [length.to_ne_bytes().to_vec(), kind.to_ne_bytes().to_vec(), (REQUEST | flags).to_ne_bytes().to_vec()];
    [header.concat(), vec![0; 8], body].concat()
}

fn send(peers: std::ops::Range<u32>, message: impl Fn(u32) -> Vec<u8>) {
    let mut socket = Socket::new(NETLINK_ROUTE).expect("a socket");
    socket.bind_auto().expect("an address");
    socket.connect(&SocketAddr::new(0, 0)).expect("the kernel");
    let all: Vec<u32> = peers.collect();
    for part in all.chunks(PER_SEND) {
        let mut messages: Vec<Vec<u8>> = part.iter().map(|n| message(*n)).collect();
        let last = messages.last_mut().expect("a message");
        last[6] |= ANSWER as u8;
        socket.send(&messages.concat(), 0).expect("sent");
        let (answer, _) = socket.recv_from_full().expect("an answer");
        assert_eq!(answer[16..20], [0; 4], "a nexthop object was refused");
    }
}
