//! The part of a link message that describes the kind of a device: encoding and decoding, one file a kind.

mod vxlan;

use crate::model::device::Link;
use netlink_packet_route::link::{InfoData, InfoKind, LinkAttribute, LinkInfo};

/// The attribute that makes a new device a link of this kind.
pub fn create(link: &Link) -> LinkAttribute {
    match link {
        Link::Vxlan(vxlan) => info(InfoKind::Vxlan, InfoData::Vxlan(vxlan::create(vxlan))),
    }
}

/// The attribute that changes the parameters that can change in an existing device.
pub fn change(link: &Link) -> LinkAttribute {
    match link {
        Link::Vxlan(vxlan) => info(InfoKind::Vxlan, InfoData::Vxlan(vxlan::change(vxlan))),
    }
}

/// The link that these parameters describe; `None` for a kind that flanneld never makes.
pub fn decode(data: &InfoData) -> Option<Link> {
    match data {
        InfoData::Vxlan(data) => Some(Link::Vxlan(vxlan::decode(data))),
        _ => None,
    }
}

fn info(kind: InfoKind, data: InfoData) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)])
}
