//! The difference between what the kernel should hold and what it holds, as an ordered list of operations.
//!
//! [`Plan::between`] compares everything; [`Plan::at`] compares only some keys, so that one peer's event costs one
//! peer's work. Both ask the same question of each key, so both come to the same answer for the same key.

use super::device::{Comparison, Device, DeviceWant, ExistingDevice};
use super::kernel_state::{Entry, Have, Key, Scope, Want};
use super::mac::VtepMac;
use std::borrow::Cow;
use std::fmt;

/// One change to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Remove the device with this index that stands in our device's place.
    DeleteDevice(u32),
    /// Make our device and bring it up.
    CreateDevice(Box<Device>),
    /// Change the device with this index in place.
    ChangeDevice(u32, Box<Device>),
    /// Make an entry, or put it in the place of the one with its key (for a route: with its destination and metric).
    Set(Entry),
    /// Make an entry; fails when another one has its key.
    Add(Entry),
    /// Remove exactly this entry.
    Delete(Entry),
    /// Remove whatever FDB entry of our device a MAC has. The kernel accepts an address for a MAC that has a nexthop group, but
    /// leaves it the group.
    ClearFdb(VtepMac),
}

impl Op {
    /// Makes an entry, or puts it in the place of the one with its key.
    pub fn set(entry: impl Into<Entry>) -> Self {
        Op::Set(entry.into())
    }

    /// Makes an entry where none is.
    pub fn add(entry: impl Into<Entry>) -> Self {
        Op::Add(entry.into())
    }

    /// Removes an entry.
    pub fn delete(entry: impl Into<Entry>) -> Self {
        Op::Delete(entry.into())
    }

    /// Tells whether it makes or changes the device or gives it an address, on which everything else stands.
    pub fn is_on_device(&self) -> bool {
        self.key() == Key::Device || matches!(self, Op::Set(Entry::Address(_)))
    }

    /// The entry that it changes.
    pub fn key(&self) -> Key {
        match self {
            Op::DeleteDevice(_) | Op::CreateDevice(_) | Op::ChangeDevice(..) => Key::Device,
            Op::Set(entry) | Op::Add(entry) | Op::Delete(entry) => entry.key(),
            Op::ClearFdb(mac) => Key::FdbEntry(*mac),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::DeleteDevice(index) => write!(f, "delete device #{index}"),
            Op::CreateDevice(device) => {
                write!(f, "create device {}", device.name)?;
                device.mac.map_or(Ok(()), |mac| write!(f, " mac {mac}"))?;
                write!(f, " mtu {}", device.mtu)
            }
            Op::ChangeDevice(_, device) => write!(f, "change device {}", device.name),
            Op::Set(entry) => write!(f, "{} {entry}", entry.set_verb()),
            Op::Add(entry) => write!(f, "add {entry}"),
            Op::Delete(entry) => write!(f, "delete {}", entry.identity()),
            Op::ClearFdb(mac) => write!(f, "delete {}", Key::FdbEntry(*mac)),
        }
    }
}

/// An operation and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The operation.
    pub op: Op,
    /// Why, for the log.
    pub why: Cow<'static, str>,
}

/// The order in which operations are applied: nothing is used before it exists or removed while it is used.
///
/// The device comes first, then its address, then what peers need (neighbours, FDB entries, routes), then what is no longer
/// wanted. Other addresses go before that, but not before the routes are there: until then their connected networks may be
/// what leads to the peers, as with flannel 0.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The device is deleted, made, changed.
    Device,
    /// Addresses are put on it, and an address that a peer should have is taken from it.
    Address,
    /// Neighbours are made.
    NeighborSet,
    /// FDB entries are made.
    FdbSet,
    /// Routes are made, and strays in their place removed.
    RouteSet,
    /// Other addresses are removed.
    AddressDelete,
    /// Routes are removed.
    RouteDelete,
    /// FDB entries are removed.
    FdbDelete,
    /// Neighbours are removed.
    NeighborDelete,
}

impl Phase {
    /// The number of phases, so the last one stands here.
    const COUNT: usize = Phase::NeighborDelete as usize + 1;
}

/// The context on which the comparison of one entry may depend.
pub struct Context<'a> {
    /// The whole state that is wanted.
    pub want: &'a Want,
    /// The part that is ours to change.
    pub scope: &'a Scope,
}

/// Collects steps by phase.
#[derive(Default)]
pub struct Steps {
    phases: [Vec<Step>; Phase::COUNT],
    /// How many keys were compared.
    pub(super) compared: usize,
}

impl Steps {
    /// Makes an entry or puts it in the place of the one with its key.
    pub fn set<E: super::table::EntryKind + Into<Entry>>(&mut self, entry: E, why: impl Into<Cow<'static, str>>) {
        self.push(E::SET, Op::Set(entry.into()), why);
    }

    /// Makes an entry where none is.
    pub fn add<E: super::table::EntryKind + Into<Entry>>(&mut self, entry: E, why: impl Into<Cow<'static, str>>) {
        self.push(E::SET, Op::Add(entry.into()), why);
    }

    /// Removes an entry.
    pub fn delete<E: super::table::EntryKind + Into<Entry>>(&mut self, entry: E, why: impl Into<Cow<'static, str>>) {
        self.push(E::DELETE, Op::Delete(entry.into()), why);
    }

    /// Removes an entry at another time than others of its kind.
    pub fn delete_in(&mut self, phase: Phase, entry: impl Into<Entry>, why: impl Into<Cow<'static, str>>) {
        self.push(phase, Op::Delete(entry.into()), why);
    }

    /// Does any operation in a phase.
    pub fn push(&mut self, phase: Phase, op: Op, why: impl Into<Cow<'static, str>>) {
        self.phases[phase as usize].push(Step { op, why: why.into() });
    }

    fn into_plan(self) -> Plan {
        let mut steps = Vec::with_capacity(self.phases.iter().map(Vec::len).sum());
        self.phases.into_iter().for_each(|phase| steps.extend(phase));
        Plan { steps, compared: self.compared }
    }

    /// The differences of the device.
    fn compare_device(&mut self, have: &Have, want: &Device) {
        let create = Op::CreateDevice(want.clone().into());
        let replace = |steps: &mut Steps, index: u32, why: String| {
            steps.push(Phase::Device, Op::DeleteDevice(index), why);
            steps.push(Phase::Device, Op::CreateDevice(want.clone().into()), "replaced");
        };
        match &have.device {
            None => self.push(Phase::Device, create, "missing"),
            Some(ExistingDevice::Other(index, kind)) => {
                replace(self, *index, format!("{} is a {kind} device, not {}", want.name, want.link));
            }
            Some(ExistingDevice::Known(index, found)) => match want.compare(found) {
                Comparison::Same => {}
                Comparison::Change(why) => {
                    self.push(Phase::Device, Op::ChangeDevice(*index, want.clone().into()), why);
                }
                Comparison::Recreate(why) => replace(self, *index, why),
            },
        }
    }
}

/// Operations in the order in which they are to be applied (see [`Phase`]).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The operations.
    pub steps: Vec<Step>,
    /// How many keys were compared to find them.
    pub compared: usize,
}

impl Plan {
    /// Everything that keeps `have` from being `want`, as far as it is ours (`scope`).
    ///
    /// While the device is unknown the plan is empty; while the peers are not all known nothing of theirs is removed.
    pub fn between(have: &Have, want: &Want, scope: &Scope) -> Plan {
        Plan::compare(None, have, want, scope)
    }

    /// The differences of these keys. A difference in the device itself widens it to everything.
    pub fn at(keys: &[Key], have: &Have, want: &Want, scope: &Scope) -> Plan {
        let all = keys.contains(&Key::Device);
        Plan::compare(Some(keys).filter(|_| !all), have, want, scope)
    }

    /// Compares some keys, or all.
    fn compare(keys: Option<&[Key]>, have: &Have, want: &Want, scope: &Scope) -> Plan {
        let (context, mut steps) = (Context { want, scope }, Steps::default());
        match &want.device {
            DeviceWant::Unknown => return Plan::default(),
            DeviceWant::None => {}
            DeviceWant::Is(device) => steps.compare_device(have, device),
        }
        let on_device = &steps.phases[Phase::Device as usize];
        match keys {
            _ if !on_device.is_empty() => {
                // Entries that go with the old device, or with its MAC, are missing afterwards.
                let mut after = have.clone();
                on_device.iter().for_each(|step| after.apply(&step.op, 0));
                want.diff_all(&after, &context, &mut steps);
            }
            Some(keys) => keys.iter().for_each(|key| want.diff_at(*key, have, &context, &mut steps)),
            None => want.diff_all(have, &context, &mut steps),
        }
        steps.into_plan()
    }

    /// Whether it makes or changes the device or gives it an address, on which everything else stands.
    pub fn touches_device(&self) -> bool {
        self.steps.iter().any(|step| step.op.is_on_device())
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}
