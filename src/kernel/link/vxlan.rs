//! The parameters of a VXLAN device (`IFLA_VXLAN_*`).

use crate::model::device::Vxlan;
use netlink_packet_route::link::InfoVxlan;
use std::net::IpAddr;

/// All parameters, for a new device.
pub fn create(vxlan: &Vxlan) -> Vec<InfoVxlan> {
    let mut data = changeable(vxlan);
    if vxlan.lower != 0 {
        data.push(InfoVxlan::Link(vxlan.lower));
    }
    data.push(InfoVxlan::Port(vxlan.port));
    data.extend(vxlan.group.map(|group| match group {
        IpAddr::V4(ip) => InfoVxlan::Group(ip),
        IpAddr::V6(ip) => InfoVxlan::Group6(ip),
    }));
    if vxlan.gbp {
        data.push(InfoVxlan::Gbp);
    }
    if vxlan.ttl != 0 {
        data.push(InfoVxlan::Ttl(vxlan.ttl));
    }
    data
}

/// The parameters that can change in an existing device.
pub fn change(vxlan: &Vxlan) -> Vec<InfoVxlan> {
    let mut data = changeable(vxlan);
    data.push(InfoVxlan::Ttl(vxlan.ttl));
    data
}

fn changeable(vxlan: &Vxlan) -> Vec<InfoVxlan> {
    let local = vxlan.local.map(|local| match local {
        IpAddr::V4(ip) => InfoVxlan::Local(ip),
        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    });
    let mut data = vec![InfoVxlan::Id(vxlan.vni), InfoVxlan::Learning(vxlan.learning), InfoVxlan::Ageing(vxlan.ageing)];
    data.extend(local);
    data
}

/// Reads the parameters of an existing device.
pub fn decode(data: &[InfoVxlan]) -> Vxlan {
    let mut vxlan =
        Vxlan { vni: 0, local: None, lower: 0, port: 0, learning: false, gbp: false, group: None, ttl: 0, ageing: 0 };
    for part in data {
        match part {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Local(ip) => vxlan.local = Some(IpAddr::V4(*ip)),
            InfoVxlan::Local6(ip) => vxlan.local = Some(IpAddr::V6(*ip)),
            InfoVxlan::Link(index) => vxlan.lower = *index,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            InfoVxlan::Gbp => vxlan.gbp = true,
            InfoVxlan::Group(ip) => vxlan.group = Some(IpAddr::V4(*ip)),
            InfoVxlan::Group6(ip) => vxlan.group = Some(IpAddr::V6(*ip)),
            InfoVxlan::Ttl(ttl) => vxlan.ttl = *ttl,
            InfoVxlan::Ageing(seconds) => vxlan.ageing = *seconds,
            _ => {}
        }
    }
    vxlan
}
