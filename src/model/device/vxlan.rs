//! The parameters of a VXLAN device, and which of them the kernel can change.

use super::{Comparison, Differences};
use crate::model::family::Family;
use std::net::IpAddr;

/// The parameters of a VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// The VXLAN network identifier, 0 to 16777215.
    pub vni: u32,
    /// The source address of tunnel packets.
    pub local: Option<IpAddr>,
    /// The interface index of the device below.
    pub lower: u32,
    /// The UDP destination port, 1 to 65535.
    pub port: u16,
    /// Whether the kernel learns FDB entries from received packets.
    pub learning: bool,
    /// Whether the group based policy extension is on.
    pub gbp: bool,
    /// The multicast group or default remote; ours has none.
    pub group: Option<IpAddr>,
    /// The TTL of tunnel packets; 0 lets the kernel choose.
    pub ttl: u8,
    /// The age in seconds at which learned FDB entries expire; the kernel's default is 300.
    pub ageing: u32,
}

impl Vxlan {
    /// Compares with the parameters of an existing device.
    pub fn compare(&self, have: &Vxlan) -> Comparison {
        let fixed = self.fixed_differences(have);
        if !fixed.0.is_empty() {
            return Comparison::Recreate(fixed.0);
        }
        let changeable = self.changeable_differences(have);
        if changeable.0.is_empty() { Comparison::Same } else { Comparison::Change(changeable.0) }
    }

    /// Lists the differences that the kernel cannot change in an existing device.
    fn fixed_differences(&self, have: &Vxlan) -> Differences {
        let text = |group: Option<IpAddr>| group.map_or("none".to_owned(), |ip| ip.to_string());
        let underlay = |local: Option<IpAddr>| local.map_or(Family::V4, Family::of);
        let mut found = Differences::default();
        found.note("VNI", have.vni, self.vni);
        found.note("port", have.port, self.port);
        found.note("lower device", have.lower, self.lower);
        found.note("GBP", have.gbp, self.gbp);
        found.note("group", text(have.group), text(self.group));
        found.note("underlay", underlay(have.local), underlay(self.local));
        found
    }

    /// Lists the differences that it can change.
    fn changeable_differences(&self, have: &Vxlan) -> Differences {
        let text = |local: Option<IpAddr>| local.map_or("none".to_owned(), |ip| ip.to_string());
        let mut found = Differences::default();
        found.note("local", text(have.local), text(self.local));
        found.note("learning", have.learning, self.learning);
        found.note("ttl", have.ttl, self.ttl);
        found.note("ageing", have.ageing, self.ageing);
        found
    }
}
