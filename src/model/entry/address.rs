//! An IP address on our device.

use crate::model::plan::{Context, Phase, Steps};
use crate::model::table::{EntryKind, Held, Noticed};
use ipnet::IpNet;
use std::convert::Infallible;
use std::fmt;

/// An IP address on our device, with its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address(pub IpNet);

impl EntryKind for Address {
    type Key = IpNet;
    type Value = ();
    type Held = ();
    /// A changed address may take routes along that are not reported, so the kernel is read in full.
    type Report = Infallible;

    const NAME: &'static str = "address";
    const NAMES: &'static str = "addresses";
    const SET_VERB: &'static str = "add";
    const SET: Phase = Phase::Address;
    const DELETE: Phase = Phase::AddressDelete;

    fn into_parts(self) -> (IpNet, ()) {
        (self.0, ())
    }

    fn compare(key: IpNet, want: Option<()>, have: Option<&()>, context: &Context, steps: &mut Steps) {
        match (want, have) {
            (Some(()), None) => steps.set(Address(key), "missing"),
            (None, Some(())) if context.scope.owns_address(&key) && context.want.peers_complete => {
                // The kernel takes no route via an address of the host itself.
                let is_peers = context.want.neighbors.contains_key(&key.addr());
                let phase = if is_peers { Phase::Address } else { Self::DELETE };
                steps.delete_in(phase, Address(key), "foreign address inside the overlay");
            }
            _ => {}
        }
    }

    fn was_set(self, held: &mut Held<Self>) {
        held.insert(self.0, ());
    }

    fn was_deleted(self, held: &mut Held<Self>) {
        held.remove(&self.0);
    }

    fn notice(report: Infallible, _held: &mut Held<Self>) -> Noticed<IpNet> {
        match report {}
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
