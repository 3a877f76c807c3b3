//! A forwarding entry of our device: the MAC of a peer's tunnel endpoint and the peer's underlay address.

use crate::model::mac::VtepMac;
use crate::model::plan::{Context, Op, Phase, Steps};
use crate::model::table::{EntryKind, Few, Held, Noticed};
use std::fmt;
use std::net::IpAddr;

/// A permanent FDB entry with one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbEntry {
    /// The MAC of a peer's tunnel endpoint.
    pub mac: VtepMac,
    /// The peer's underlay address.
    pub dst: IpAddr,
}

/// A change of an FDB entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FdbReport {
    /// The MAC's entry has this destination now.
    Set(FdbEntry),
    /// This destination of the MAC is gone.
    Gone(FdbEntry),
    /// The MAC has an entry of a kind that we never make.
    Foreign(VtepMac),
}

impl EntryKind for FdbEntry {
    type Key = VtepMac;
    type Value = IpAddr;
    /// All destinations; none for an entry that is more than an address, or not permanent.
    type Held = Few<IpAddr>;
    type Report = FdbReport;

    const NAME: &'static str = "FDB entry";
    const NAMES: &'static str = "FDB entries";
    const SET_VERB: &'static str = "set";
    const SET: Phase = Phase::FdbSet;
    const DELETE: Phase = Phase::FdbDelete;

    fn into_parts(self) -> (VtepMac, IpAddr) {
        (self.mac, self.dst)
    }

    fn compare(mac: VtepMac, want: Option<IpAddr>, have: Option<&Few<IpAddr>>, context: &Context, steps: &mut Steps) {
        match (want, have) {
            (Some(dst), None) => steps.set(FdbEntry { mac, dst }, "missing"),
            (Some(dst), Some(have)) if have[..] != [dst] => {
                if have.is_empty() {
                    steps.push(Self::SET, Op::ClearFdb(mac), "points to something else than an address");
                }
                steps.set(FdbEntry { mac, dst }, format!("pointed to {}", join(have)));
            }
            (None, Some(have)) if context.want.peers_complete => {
                for dst in have {
                    steps.delete(FdbEntry { mac, dst: *dst }, "no accepted lease has it");
                }
            }
            _ => {}
        }
    }

    fn was_set(self, held: &mut Held<Self>) {
        held.insert(self.mac, [self.dst].into());
    }

    fn was_deleted(self, held: &mut Held<Self>) {
        if let Some(destinations) = held.get_mut(&self.mac) {
            destinations.retain(|other| *other != self.dst);
            if destinations.is_empty() {
                held.remove(&self.mac);
            }
        }
    }

    fn notice(report: FdbReport, held: &mut Held<Self>) -> Noticed<VtepMac> {
        match report {
            FdbReport::Set(FdbEntry { mac, dst }) => {
                let before = held.insert(mac, [dst].into());
                Noticed::key_if(before != Some([dst].into()), mac)
            }
            FdbReport::Gone(entry) => {
                let there = held.get(&entry.mac).is_some_and(|all| all.contains(&entry.dst));
                entry.was_deleted(held);
                Noticed::key_if(there, entry.mac)
            }
            FdbReport::Foreign(mac) => {
                let known = held.get_mut(&mac).filter(|destinations| !destinations.is_empty());
                Noticed::key_if(known.map(|destinations| destinations.clear()).is_some(), mac)
            }
        }
    }
}

/// Lists where an entry points.
fn join(addresses: &[IpAddr]) -> String {
    if addresses.is_empty() {
        return "something else than an address".to_owned();
    }
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" and ")
}

impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dst {}", self.mac, self.dst)
    }
}
