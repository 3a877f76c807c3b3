//! What the kernel sends.

use flanneld::backend::Backend;
use flanneld::backend::vxlan::Vxlan;
use flanneld::kernel::wire::{Kind, frames};
use flanneld::kernel::{Event, decode, listener};
use flanneld::model::device::{DeviceWant, ExistingDevice};
use flanneld::model::entry::RouteReport;
use flanneld::model::family::PerFamily;
use flanneld::model::iface::{ExternalInterface, HostView};
use flanneld::model::kernel_state::{Have, Observed, Scope, Want};
use flanneld::model::mac::VtepMac;
use flanneld::model::plan::Plan;
use flanneld::model::table::Noticed;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use std::net::Ipv4Addr;

/// The index of our device in one byte, then a datagram.
pub fn netlink(input: &[u8]) {
    let Some((index, datagram)) = input.split_first() else { return };
    let index = u32::from(*index);
    let scope = Scope {
        device: "flannel.1".to_owned(),
        networks: PerFamily { v4: "10.5.0.0/16".parse().ok(), v6: None },
        nic: 2,
    };
    as_answers(datagram, &scope, index);
    as_reports(datagram, &scope, index);
}

/// As what comes back to requests.
fn as_answers(datagram: &[u8], scope: &Scope, index: u32) {
    let mut read = 0;
    for frame in frames(datagram).flatten() {
        read += frame.bytes.len();
        match frame.kind() {
            Kind::Object => {
                if let Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) =
                    NetlinkMessage::<Message>::deserialize(frame.bytes)
                {
                    as_object(&message, scope, index);
                }
            }
            Kind::Answer(Err(refusal)) | Kind::Done(Err(refusal)) => assert_ne!(refusal.errno, 0),
            Kind::Answer(Ok(())) | Kind::Done(Ok(())) | Kind::Noop => {}
        }
    }
    assert!(read <= datagram.len());
}

fn as_object(message: &Message, scope: &Scope, index: u32) {
    match message {
        Message::NewLink(link) => {
            assert_eq!(decode::interface(link).index, link.header.index);
            let _ = decode::found(link);
        }
        Message::NewAddress(address) => {
            let on = decode::device_address(address, index).and(decode::interface_address(address));
            assert!(on.is_none_or(|(on, _)| on == index));
        }
        Message::NewNeighbour(neighbor) => {
            let _ = decode::neighbor(neighbor, index);
            let entry = decode::fdb_entry(neighbor, index).map(|(mac, _)| mac);
            assert!(entry.is_none() || entry == decode::fdb_mac(neighbor, index));
        }
        Message::NewRoute(route) => {
            let _ = decode::way_out(route);
            assert!(decode::link_route(route).is_none_or(|route| route.dest == route.dest.trunc()));
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                let found = decode::route(route, family, Some(index), scope);
                assert!(found.is_none_or(|route| route.dest == route.dest.trunc()));
                assert!(
                    decode::default_routes(route, family)
                        .iter()
                        .all(|found| found.is_v6 == (family == AddressFamily::Inet6))
                );
            }
        }
        _ => {}
    }
}

/// As what comes unasked. A report that comes twice says nothing new.
fn as_reports(datagram: &[u8], scope: &Scope, index: u32) {
    let (mut events, mut have) = (Vec::new(), Have::default());
    listener::read(datagram, scope, Some(index), &mut events);
    for event in events {
        if let Event::Entry(report) = event {
            have.notice(report);
            let again = have.notice(report);
            assert!(
                again == Noticed::Nothing || matches!(report, Observed::Route(RouteReport::Replaced(_))),
                "{report:?}: {again:?}"
            );
        }
    }
    what_is_ours_can_be_cleared(have, scope, index);
}

/// A plan for a device without peers leads there in one step, whatever the kernel was said to hold.
fn what_is_ours_can_be_cleared(mut have: Have, scope: &Scope, index: u32) {
    let address = Ipv4Addr::new(192, 168, 0, 1);
    let nic = ExternalInterface { index: 2, name: "eth0".into(), mtu: 1500, mac: None, address, public_ip: address };
    let own = Vxlan::default().own_entries(
        &nic,
        &HostView::default(),
        "10.5.1.0/24".parse().expect("a subnet"),
        VtepMac([0x0e; 6]),
    );
    let device = own.device.get().expect("a device").clone();
    have.device = Some(ExistingDevice::Known(index, device.clone()));
    let want = Want { device: DeviceWant::Is(device), peers_complete: true, ..Want::default() };
    for step in Plan::between(&have, &want, scope).steps {
        have.apply(&step.op, index);
    }
    let rest = Plan::between(&have, &want, scope);
    assert!(rest.is_empty(), "{rest:?}");
}
