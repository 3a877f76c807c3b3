//! The part of a host's network state that flanneld looks after: what the kernel should hold ([`Want`]), what the kernel
//! does hold ([`Have`]), and which of that flanneld may change ([`Scope`]).
//!
//! The kinds of entries are listed here once. All types of the model that have a part for each kind follow from the list.

use super::device::{Device, DeviceWant, ExistingDevice};
use super::entry::{Address, FdbEntry, Neighbor, Oif, PROTOCOL_KERNEL, Route};
use super::family::{Family, PerFamily};
use super::mac::VtepMac;
use super::plan::{Context, Op, Phase, Steps};
use super::table::{EntryKind, Held, Noticed, Wanted, compact};
use ipnet::IpNet;
use std::fmt;

/// From the list of kinds: the sums [`Entry`], [`Key`] and [`Observed`], the tables of [`Want`] and [`Have`], and what is
/// done with each table alike.
macro_rules! tables {
    ($( $(#[$doc:meta])* $table:ident: $kind:ident, )+) => {
        /// One kernel entry of any kind.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Entry {
            $( $(#[$doc])* $kind($kind), )+
        }

        /// The entry that a difference is about.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Key {
            /// Our device itself; a difference there may affect everything on it.
            Device,
            $( $(#[$doc])* $kind(<$kind as EntryKind>::Key), )+
        }

        /// A change of an entry that concerns us, as the kernel reports it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Observed {
            $( $(#[$doc])* $kind(<$kind as EntryKind>::Report), )+
        }

        /// The state that the kernel should hold.
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct Want {
            /// Our device.
            pub device: DeviceWant,
            $( $(#[$doc])* pub $table: Wanted<$kind>, )+
            /// Whether these are all peers. Until then, what no known peer has may belong to an unknown one.
            pub peers_complete: bool,
        }

        /// The state that the kernel holds, as far as it concerns us.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Have {
            /// The device with our name.
            pub device: Option<ExistingDevice>,
            $( $(#[$doc])* pub $table: Held<$kind>, )+
        }

        $( impl From<$kind> for Entry {
            fn from(entry: $kind) -> Self {
                Entry::$kind(entry)
            }
        } )+

        impl Entry {
            /// The key of the entry.
            pub fn key(&self) -> Key {
                match self { $( Entry::$kind(entry) => Key::$kind(entry.into_parts().0), )+ }
            }

            /// The verb for making the entry or replacing the one with its key.
            pub fn set_verb(&self) -> &'static str {
                match self { $( Entry::$kind(_) => $kind::SET_VERB, )+ }
            }

            /// Names the entry as far as the kernel needs to know it in order to delete it.
            pub fn identity(&self) -> String {
                match self { $( Entry::$kind(entry) => format!("{} {}", $kind::NAME, entry.identity()), )+ }
            }

            /// Tells whether the entry can only exist on our device.
            pub fn is_on_device(&self) -> bool {
                match self { $( Entry::$kind(entry) => entry.is_on_device(), )+ }
            }
        }

        impl fmt::Display for Entry {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self { $( Entry::$kind(entry) => write!(f, "{} {entry}", $kind::NAME), )+ }
            }
        }

        impl Key {
            /// The place of the kind in the order of work, and its name in singular and plural.
            pub fn kind(&self) -> (Phase, &'static str, &'static str) {
                match self {
                    Key::Device => (Phase::Device, "device", "changes of the device"),
                    $( Key::$kind(_) => ($kind::SET, $kind::NAME, $kind::NAMES), )+
                }
            }
        }

        impl fmt::Display for Key {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    Key::Device => f.write_str("device"),
                    $( Key::$kind(key) => write!(f, "{} {key}", $kind::NAME), )+
                }
            }
        }

        impl Want {
            /// Adds a user of an entry, and gives the entry's key.
            pub fn demand(&mut self, entry: impl Into<Entry>) -> Key {
                match entry.into() { $( Entry::$kind(entry) => Key::$kind(self.$table.demand(entry)), )+ }
            }

            /// Removes a user of an entry, and gives the entry's key.
            pub fn withdraw(&mut self, entry: impl Into<Entry>) -> Key {
                match entry.into() { $( Entry::$kind(entry) => Key::$kind(self.$table.withdraw(entry)), )+ }
            }

            /// Takes as little memory as possible.
            pub fn compact(&mut self) {
                $( self.$table.compact(); )+
            }

            /// Compares one entry with what the kernel holds.
            pub(super) fn diff_at(&self, key: Key, have: &Have, context: &Context, steps: &mut Steps) {
                match key {
                    Key::Device => {}
                    $( Key::$kind(key) => self.$table.diff_at(key, &have.$table, context, steps), )+
                }
            }

            /// Compares all entries with what the kernel holds.
            pub(super) fn diff_all(&self, have: &Have, context: &Context, steps: &mut Steps) {
                $( self.$table.diff_all(&have.$table, context, steps); )+
            }
        }

        impl Have {
            /// Takes in a change that the kernel reports. If it is known already, nothing changes.
            pub fn notice(&mut self, change: Observed) -> Noticed<Key> {
                match change {
                    $( Observed::$kind(report) => $kind::notice(report, &mut self.$table).map(Key::$kind), )+
                }
            }

            /// Takes as little memory as possible.
            pub fn compact(&mut self) {
                $( compact(&mut self.$table); )+
            }

            fn was_set(&mut self, entry: Entry) {
                match entry { $( Entry::$kind(entry) => entry.was_set(&mut self.$table), )+ }
            }

            fn was_added(&mut self, entry: Entry) {
                match entry { $( Entry::$kind(entry) => entry.was_added(&mut self.$table), )+ }
            }

            fn was_deleted(&mut self, entry: Entry) {
                match entry { $( Entry::$kind(entry) => entry.was_deleted(&mut self.$table), )+ }
            }

            fn device_was_deleted(&mut self) {
                self.device = None;
                $( $kind::device_was_deleted(&mut self.$table); )+
            }

            fn device_mac_was_changed(&mut self) {
                $( $kind::device_mac_was_changed(&mut self.$table); )+
            }
        }
    };
}

tables! {
    /// An address on our device.
    addresses: Address,
    /// A neighbour on our device.
    neighbors: Neighbor,
    /// A permanent FDB entry of our device.
    fdb: FdbEntry,
    /// A route in table main that leaves by our device or leads into the overlay.
    routes: Route,
}

impl Have {
    /// The MAC of the device with our name, if there is such a device.
    pub fn device_mac(&self) -> Option<VtepMac> {
        self.device.as_ref()?.known()?.mac
    }

    /// Records that the kernel has done `op`; `index` is what the kernel would give a new device.
    pub fn apply(&mut self, op: &Op, index: u32) {
        match op {
            Op::DeleteDevice(_) => self.device_was_deleted(),
            Op::CreateDevice(device) => self.device = Some(ExistingDevice::Known(index, (**device).clone())),
            Op::ChangeDevice(_, device) => {
                let (before, after) = (self.device_mac(), device.mac.or(self.device_mac()));
                if before != after {
                    self.device_mac_was_changed();
                }
                if let Some(ExistingDevice::Known(_, have)) = &mut self.device {
                    *have = Device { mac: after, ..(**device).clone() };
                }
            }
            Op::Set(entry) => self.was_set(*entry),
            Op::Add(entry) => self.was_added(*entry),
            Op::Delete(entry) => self.was_deleted(*entry),
            Op::ClearFdb(mac) => drop(self.fdb.remove(mac)),
        }
    }
}

/// The part of the kernel's state that is ours to change or delete. Everything else stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Name of our device.
    pub device: String,
    /// The overlay's networks.
    pub networks: PerFamily<IpNet>,
    /// Index of the external interface; 0 for none.
    pub nic: u32,
}

impl Scope {
    /// An address on our device is ours when it lies inside the overlay.
    pub fn owns_address(&self, address: &IpNet) -> bool {
        self.covers(address.addr().into())
    }

    /// A route on our device is ours when it leads into the overlay or has flannel's own shape (which catches what
    /// an earlier Network left); a connected network never is. In the overlay a blackhole with our metric is ours, too,
    /// and a route on the external interface with our protocol number.
    pub fn owns_route(&self, route: &Route) -> bool {
        let on_device = route.oif == Oif::Ours && route.protocol != PROTOCOL_KERNEL;
        let blackhole = route.same_path(&Route::blackhole(route.dest, route.protocol));
        let beside = blackhole || route.is_direct_of_ours(self.nic);
        on_device && (self.covers(route.dest) || route.has_flannel_shape()) || beside && self.covers(route.dest)
    }

    /// Whether a destination lies inside the overlay.
    pub fn covers(&self, dest: IpNet) -> bool {
        self.networks.get(Family::of(dest.addr())).is_some_and(|network| network.contains(&dest))
    }
}

#[cfg(test)]
#[path = "kernel_state_tests.rs"]
mod tests;
