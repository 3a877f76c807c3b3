//! Keeping the mirror of the kernel in step, by our own operations and by what the kernel reports.

use super::*;
use crate::model::entry::{FdbReport, NeighborState, RouteReport};

fn route(gateway: &str, metric: u32) -> Route {
    let (dest, gateway) = ("10.5.2.0/24".parse().unwrap(), gateway.parse().ok());
    Route { dest, gateway, oif: Oif::Ours, onlink: true, metric, protocol: 100 }
}

fn mac(last: u8) -> VtepMac {
    VtepMac([2, 0, 0, 0, 0, last])
}

#[test]
fn what_is_known_is_no_news() {
    let ip = "10.5.2.0".parse().unwrap();
    let neighbor = NeighborState { mac: Some(mac(2)), permanent: true };
    let mut have = Have::default();
    for op in [
        Op::set(Neighbor { ip, mac: mac(2) }),
        Op::set(FdbEntry { mac: mac(2), dst: ip }),
        Op::add(route("10.5.2.0", 0)),
    ] {
        have.apply(&op, 0);
    }
    let before = have.clone();
    for echo in [
        Observed::Neighbor((ip, Some(neighbor))),
        Observed::FdbEntry(FdbReport::Set(FdbEntry { mac: mac(2), dst: ip })),
        Observed::Route(RouteReport::Added(route("10.5.2.0", 0))),
        Observed::Route(RouteReport::Replaced(route("10.5.2.0", 0))),
        Observed::Route(RouteReport::Gone(route("10.5.2.9", 0))),
        Observed::FdbEntry(FdbReport::Gone(FdbEntry { mac: mac(3), dst: ip })),
        Observed::FdbEntry(FdbReport::Foreign(mac(3))),
        Observed::Neighbor(("10.5.3.0".parse().unwrap(), None)),
    ] {
        assert_eq!(have.notice(echo), Noticed::Nothing, "{echo:?}");
    }
    assert_eq!(have, before);
}

#[test]
fn what_is_not_is_told_by_its_key() {
    let ip = "10.5.2.0".parse().unwrap();
    let dest = route("10.5.2.0", 0).dest;
    let mut have = Have::default();
    for (change, expected) in [
        (
            Observed::Neighbor((ip, Some(NeighborState { mac: None, permanent: false }))),
            Noticed::Key(Key::Neighbor(ip)),
        ),
        (Observed::Neighbor((ip, None)), Noticed::Key(Key::Neighbor(ip))),
        (Observed::FdbEntry(FdbReport::Set(FdbEntry { mac: mac(2), dst: ip })), Noticed::Key(Key::FdbEntry(mac(2)))),
        (Observed::FdbEntry(FdbReport::Foreign(mac(2))), Noticed::Key(Key::FdbEntry(mac(2)))),
        (Observed::Route(RouteReport::Added(route("10.5.2.0", 0))), Noticed::Key(Key::Route(dest))),
        (Observed::Route(RouteReport::Replaced(route("10.5.2.9", 0))), Noticed::Key(Key::Route(dest))),
        (Observed::Route(RouteReport::Added(route("10.5.2.8", 0))), Noticed::Key(Key::Route(dest))),
        (Observed::Route(RouteReport::Replaced(route("10.5.2.7", 0))), Noticed::Doubt),
        (Observed::Route(RouteReport::Gone(route("10.5.2.8", 0))), Noticed::Key(Key::Route(dest))),
    ] {
        assert_eq!(have.notice(change), expected, "{change:?}");
    }
}

#[test]
fn replaying_old_reports_ends_where_the_kernel_is() {
    // Deleted by somebody, made again by us; then both reports arrive.
    let mut have = Have::default();
    have.apply(&Op::add(route("10.5.2.0", 0)), 0);
    have.notice(Observed::Route(RouteReport::Gone(route("10.5.2.0", 0))));
    have.notice(Observed::Route(RouteReport::Added(route("10.5.2.0", 0))));
    assert_eq!(have.routes[&route("10.5.2.0", 0).dest], [route("10.5.2.0", 0)].into());
}
