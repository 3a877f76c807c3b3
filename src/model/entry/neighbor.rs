//! An ARP or NDP entry on our device: the inner address of a peer's tunnel endpoint and its MAC.

use crate::model::mac::VtepMac;
use crate::model::plan::{Context, Phase, Steps};
use crate::model::table::{EntryKind, Held, Noticed};
use std::fmt;
use std::net::IpAddr;

/// A permanent neighbour, as peers need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbor {
    /// The inner address of a peer's tunnel endpoint.
    pub ip: IpAddr,
    /// The MAC of that endpoint.
    pub mac: VtepMac,
}

/// A neighbour as the kernel holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeighborState {
    /// The MAC; `None` while unresolved.
    pub mac: Option<VtepMac>,
    /// Whether the neighbour is permanent, as ours are. The others come from the kernel itself.
    pub permanent: bool,
}

impl EntryKind for Neighbor {
    type Key = IpAddr;
    type Value = VtepMac;
    type Held = NeighborState;
    /// The kernel's entry for an address now, if there is one.
    type Report = (IpAddr, Option<NeighborState>);

    const NAME: &'static str = "neighbour";
    const NAMES: &'static str = "neighbours";
    const SET_VERB: &'static str = "set";
    const SET: Phase = Phase::NeighborSet;
    const DELETE: Phase = Phase::NeighborDelete;

    fn into_parts(self) -> (IpAddr, VtepMac) {
        (self.ip, self.mac)
    }

    fn compare(ip: IpAddr, want: Option<VtepMac>, have: Option<&NeighborState>, context: &Context, steps: &mut Steps) {
        match (want, have) {
            (Some(mac), None) => steps.set(Neighbor { ip, mac }, "missing"),
            (Some(mac), Some(have)) if !have.permanent || have.mac != Some(mac) => {
                let was = have.mac.map_or("unresolved".to_owned(), |mac| mac.to_string());
                steps.set(Neighbor { ip, mac }, format!("was {was}"));
            }
            (None, Some(NeighborState { mac: Some(mac), permanent: true })) if context.want.peers_complete => {
                steps.delete(Neighbor { ip, mac: *mac }, "no accepted lease has it");
            }
            _ => {}
        }
    }

    fn was_set(self, held: &mut Held<Self>) {
        held.insert(self.ip, NeighborState { mac: Some(self.mac), permanent: true });
    }

    fn was_deleted(self, held: &mut Held<Self>) {
        held.remove(&self.ip);
    }

    fn notice((ip, now): Self::Report, held: &mut Held<Self>) -> Noticed<IpAddr> {
        let before = match now {
            Some(state) => held.insert(ip, state),
            None => held.remove(&ip),
        };
        Noticed::key_if(before != now, ip)
    }

    /// The kernel flushes the neighbours of a device whose MAC changes.
    fn device_mac_was_changed(held: &mut Held<Self>) {
        held.clear();
    }

    fn identity(&self) -> String {
        self.ip.to_string()
    }
}

impl fmt::Display for Neighbor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.ip, self.mac)
    }
}
