//! The difference between what the kernel should hold and what it holds, as an ordered list of operations.
//!
//! [`Plan::between`] compares everything; [`Plan::at`] compares only some keys, so that one peer's event costs one
//! peer's work. Both ask the same per-key questions, so both come to the same answer for the same key.

use super::kernel_state::{Device, ExistingDevice, Few, Have, Oif, PROTOCOL_KERNEL, Route, Scope, Want};
use super::mac::VtepMac;
use ipnet::IpNet;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// One change to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Remove the device with this index that stands in our device's place.
    DeleteDevice(u32),
    /// Make our device and bring it up.
    CreateDevice(Box<Device>),
    /// Change the device with this index in place.
    ChangeDevice(u32, Box<Device>),
    /// Put an address on our device.
    AddAddress(IpNet),
    /// Take an address from our device.
    DeleteAddress(IpNet),
    /// Make or overwrite a permanent neighbour on our device.
    SetNeighbor(IpAddr, VtepMac),
    /// Remove a neighbour from our device.
    DeleteNeighbor(IpAddr),
    /// Make or move a permanent FDB entry of our device.
    SetFdb(VtepMac, IpAddr),
    /// Remove an FDB entry from our device.
    DeleteFdb(VtepMac, IpAddr),
    /// Remove whatever FDB entry of our device a MAC has. The kernel accepts an address for a MAC that has a nexthop group, but
    /// leaves it the group.
    ClearFdb(VtepMac),
    /// Add a route; fails when another one has its destination and metric.
    AddRoute(Route),
    /// Put a route in the place of ours with the same destination and metric.
    ReplaceRoute(Route),
    /// Remove exactly this route.
    DeleteRoute(Route),
}

/// An operation and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub op: Op,
    /// Why, for the log.
    pub why: Cow<'static, str>,
}

/// What a difference is about: one object of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Our device itself; a difference there may affect everything on it.
    Device,
    /// An address on our device.
    Address(IpNet),
    /// A neighbour on our device.
    Neighbor(IpAddr),
    /// The FDB entry of a MAC.
    Fdb(VtepMac),
    /// The route to a destination.
    Route(IpNet),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Device => f.write_str("device"),
            Key::Address(address) => write!(f, "address {address}"),
            Key::Neighbor(ip) => write!(f, "neighbour {ip}"),
            Key::Fdb(mac) => write!(f, "FDB entry {mac}"),
            Key::Route(dest) => write!(f, "route {dest}"),
        }
    }
}

/// Operations in the order in which they are to be applied: device, its address, then what peers need (neighbours, FDB
/// entries, routes), then what is no longer wanted. Other addresses go before that, but not before the routes are there:
/// until then their connected networks may be what leads to the peers, as with flannel 0.7.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The operations.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Everything that keeps `have` from being `want`, as far as it is ours (`scope`).
    ///
    /// While the device is unknown the plan is empty; while the peers are not all known nothing of theirs is removed.
    pub fn between(have: &Have, want: &Want, scope: &Scope) -> Plan {
        let mut differ = Differ::new(have, want, scope);
        if want.device.is_some() {
            differ.device();
            differ.everything();
        }
        differ.plan()
    }

    /// What keeps these keys from being as wanted. A difference in the device itself widens it to everything.
    pub fn at(keys: &[Key], have: &Have, want: &Want, scope: &Scope) -> Plan {
        let mut differ = Differ::new(have, want, scope);
        if want.device.is_none() {
            return Plan::default();
        }
        differ.device();
        if differ.has_device_steps() || keys.contains(&Key::Device) {
            differ.everything();
            return differ.plan();
        }
        for key in keys {
            match *key {
                Key::Device => {}
                Key::Address(address) => differ.address(address),
                Key::Neighbor(ip) => differ.neighbor(ip),
                Key::Fdb(mac) => differ.fdb(mac),
                Key::Route(dest) => differ.route(dest),
            }
        }
        differ.plan()
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

/// The order in which operations are applied: nothing is used before it exists or removed while it is used.
#[derive(Clone, Copy)]
enum Phase {
    Device,
    Address,
    NeighborSet,
    FdbSet,
    RouteSet,
    AddressDelete,
    RouteDelete,
    FdbDelete,
    NeighborDelete,
}

/// Asks key by key what differs, and sorts the answers by phase.
struct Differ<'a> {
    have: &'a Have,
    want: &'a Want,
    scope: &'a Scope,
    /// Nothing on the old device survives its replacement.
    replaced: bool,
    /// A new MAC flushes the permanent neighbours.
    flushed: bool,
    steps: [Vec<Step>; 9],
}

impl<'a> Differ<'a> {
    fn new(have: &'a Have, want: &'a Want, scope: &'a Scope) -> Self {
        Differ { have, want, scope, replaced: false, flushed: false, steps: Default::default() }
    }

    fn plan(self) -> Plan {
        let mut steps = Vec::with_capacity(self.steps.iter().map(Vec::len).sum());
        self.steps.into_iter().for_each(|phase| steps.extend(phase));
        Plan { steps }
    }

    fn push(&mut self, phase: Phase, op: Op, why: impl Into<Cow<'static, str>>) {
        self.steps[phase as usize].push(Step { op, why: why.into() });
    }

    fn has_device_steps(&self) -> bool {
        !self.steps[Phase::Device as usize].is_empty()
    }

    fn everything(&mut self) {
        let (have, want) = (self.have, self.want);
        want.addresses.union(&have.addresses).for_each(|address| self.address(*address));
        want.neighbors.keys().for_each(|ip| self.neighbor(*ip));
        only_in(&have.neighbors, |ip| want.neighbors.contains_key(ip)).for_each(|ip| self.neighbor(*ip));
        want.fdb.keys().for_each(|mac| self.fdb(*mac));
        only_in(&have.fdb, |mac| want.fdb.contains_key(mac)).for_each(|mac| self.fdb(*mac));
        want.routes.keys().for_each(|dest| self.route(*dest));
        only_in(&have.routes, |dest| want.routes.contains_key(dest)).for_each(|dest| self.route(*dest));
    }

    fn device(&mut self) {
        let Some(want) = &self.want.device else { return };
        match &self.have.device {
            None => {
                self.replaced = true;
                self.push(Phase::Device, Op::CreateDevice(want.clone().into()), "missing");
            }
            Some(ExistingDevice::Other(index, kind)) => {
                self.replace_device(*index, format!("{} is a {kind} device, not VXLAN", want.name));
            }
            Some(ExistingDevice::Vxlan(index, have)) => match fixed_differences(have, want) {
                differences if !differences.is_empty() => self.replace_device(*index, differences),
                _ => {
                    let differences = changeable_differences(have, want);
                    if !differences.is_empty() {
                        self.flushed = have.mac != want.mac;
                        self.push(Phase::Device, Op::ChangeDevice(*index, want.clone().into()), differences);
                    }
                }
            },
        }
    }

    fn replace_device(&mut self, index: u32, why: String) {
        self.replaced = true;
        self.push(Phase::Device, Op::DeleteDevice(index), why);
        if let Some(device) = &self.want.device {
            self.push(Phase::Device, Op::CreateDevice(device.clone().into()), "replaced");
        }
    }

    fn address(&mut self, address: IpNet) {
        let wanted = self.want.addresses.contains(&address);
        let there = !self.replaced && self.have.addresses.contains(&address);
        match (wanted, there) {
            (true, false) => self.push(Phase::Address, Op::AddAddress(address), "missing"),
            (false, true) if self.scope.owns_address(&address) && self.want.peers_complete => {
                // The kernel takes no route via an address of the host itself.
                let is_peers = self.want.neighbors.contains_key(&address.addr());
                let phase = if is_peers { Phase::Address } else { Phase::AddressDelete };
                self.push(phase, Op::DeleteAddress(address), "foreign address inside the overlay");
            }
            _ => {}
        }
    }

    fn neighbor(&mut self, ip: IpAddr) {
        let have = self.have.neighbors.get(&ip).filter(|_| !self.replaced && !self.flushed);
        match (self.want.neighbors.get(&ip), have) {
            (Some(mac), None) => self.push(Phase::NeighborSet, Op::SetNeighbor(ip, *mac), "missing"),
            (Some(mac), Some(have)) if !have.permanent || have.mac != Some(*mac) => {
                let was = have.mac.map_or("unresolved".to_owned(), |mac| mac.to_string());
                self.push(Phase::NeighborSet, Op::SetNeighbor(ip, *mac), format!("was {was}"));
            }
            (None, Some(have)) if have.permanent && self.want.peers_complete => {
                self.push(Phase::NeighborDelete, Op::DeleteNeighbor(ip), "no accepted lease has it");
            }
            _ => {}
        }
    }

    fn fdb(&mut self, mac: VtepMac) {
        let have = self.have.fdb.get(&mac).filter(|_| !self.replaced);
        match (self.want.fdb.get(&mac), have) {
            (Some(dst), None) => self.push(Phase::FdbSet, Op::SetFdb(mac, *dst), "missing"),
            (Some(dst), Some(have)) if have.len() != 1 || !have.contains(dst) => {
                if have.is_empty() {
                    self.push(Phase::FdbSet, Op::ClearFdb(mac), "points to something else than an address");
                }
                self.push(Phase::FdbSet, Op::SetFdb(mac, *dst), format!("pointed to {}", join(have)));
            }
            (None, Some(have)) if self.want.peers_complete => {
                for dst in have {
                    self.push(Phase::FdbDelete, Op::DeleteFdb(mac, *dst), "no accepted lease has it");
                }
            }
            _ => {}
        }
    }

    fn route(&mut self, dest: IpNet) {
        let all = self.have.routes.get(&dest).map_or(&[][..], |routes| routes);
        let have: Few<&Route> = all.iter().filter(|route| !self.replaced || route.oif != Oif::Ours).collect();
        let Some(want) = self.want.routes.get(&dest) else {
            if self.want.peers_complete {
                for route in have.into_iter().filter(|route| self.scope.owns_route(route)) {
                    self.push(Phase::RouteDelete, Op::DeleteRoute(*route), "no accepted lease has it");
                }
            }
            return;
        };
        let in_its_place = |route: &Route| route.metric == want.metric && route.protocol != PROTOCOL_KERNEL;
        let present = have.iter().any(|route| is_as_wanted(route, want));
        let is_other = |route: &Route| !is_as_wanted(route, want) && (!present || !route.same_path(want));
        let is_stray = |route: &&Route| is_other(route) && (in_its_place(route) || self.scope.owns_route(route));
        let strays: Few<&Route> = have.iter().copied().filter(is_stray).collect();
        // To replace is to put ours in the place of the first with this metric, whosever it is.
        let mut in_the_way = have.iter().filter(|route| route.metric == want.metric);
        if let ([stray], Some(first), None) = (&strays[..], in_the_way.next(), in_the_way.next())
            && !present
            && stray == first
            && (self.scope.owns_route(stray) || self.leads_to_peer(stray))
            && can_be_replaced(stray)
        {
            let whose = if stray.same_path(want) { format!(" of protocol {}", stray.protocol) } else { String::new() };
            self.push(Phase::RouteSet, Op::ReplaceRoute(*want), format!("was {stray}{whose}"));
            return;
        }
        for stray in strays {
            let why = format!("stands in the place of the route to peer {dest}");
            self.push(Phase::RouteSet, Op::DeleteRoute(*stray), why);
        }
        if !present {
            self.push(Phase::RouteSet, Op::AddRoute(*want), "missing");
        }
    }

    /// Whether a route leads to a peer directly, at its underlay address, whoever made it.
    fn leads_to_peer(&self, route: &Route) -> bool {
        let mac = self.want.neighbors.get(&route.dest.network());
        let address = mac.and_then(|mac| self.want.fdb.get(mac));
        matches!(route.oif, Oif::Other(_)) && address.is_some() && route.gateway == address.copied()
    }
}

/// Whether a route is the one that is wanted. On our device it does not matter who installed it; elsewhere the protocol
/// number is what tells ours from those of others when its peer has gone.
fn is_as_wanted(route: &Route, want: &Route) -> bool {
    route.same_path(want) && (want.oif == Oif::Ours || [want.protocol, PROTOCOL_KERNEL].contains(&route.protocol))
}

/// The kernel takes no onlink gateway of IPv6 that another device leads to, and a peer's gateway lies in the peer's subnet.
fn can_be_replaced(stray: &Route) -> bool {
    stray.dest.addr().is_ipv4() || stray.oif == Oif::Ours
}

fn only_in<'m, K, V>(map: &'m BTreeMap<K, V>, other: impl Fn(&K) -> bool + 'm) -> impl Iterator<Item = &'m K> {
    map.keys().filter(move |key| !other(key))
}

/// Where an FDB entry points; one that is more than an address, or not permanent, has no addresses here.
fn join(addresses: &[IpAddr]) -> String {
    if addresses.is_empty() {
        return "something else than an address".to_owned();
    }
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" and ")
}

/// What the kernel cannot change in a living VXLAN device.
fn fixed_differences(have: &Device, want: &Device) -> String {
    let (h, w) = (&have.vxlan, &want.vxlan);
    let mut found = Differences::default();
    found.note("VNI", h.vni, w.vni);
    if w.port != 0 {
        found.note("port", h.port, w.port);
    }
    found.note("lower device", h.lower, w.lower);
    found.note("GBP", h.gbp, w.gbp);
    let text = |group: Option<IpAddr>| group.map_or("none".to_owned(), |ip| ip.to_string());
    found.note("group", text(h.group), text(w.group));
    let family = |local: Option<IpAddr>| if local.is_some_and(|ip| ip.is_ipv6()) { "IPv6" } else { "IPv4" };
    found.note("underlay", family(h.local), family(w.local));
    found.0
}

/// What it can.
fn changeable_differences(have: &Device, want: &Device) -> String {
    let (h, w) = (&have.vxlan, &want.vxlan);
    let text = |local: Option<IpAddr>| local.map_or("none".to_owned(), |ip| ip.to_string());
    let mut found = Differences::default();
    found.note("MAC", have.mac, want.mac);
    found.note("MTU", have.mtu, want.mtu);
    found.note("up", have.up, want.up);
    found.note("local", text(h.local), text(w.local));
    found.note("learning", h.learning, w.learning);
    found.note("ttl", h.ttl, w.ttl);
    found.note("ageing", h.ageing, w.ageing);
    if want.tx_checksum_off {
        found.note("tx-checksum off", have.tx_checksum_off, true);
    }
    found.0
}

/// `MTU 1400, not 1450; ...`
#[derive(Default)]
struct Differences(String);

impl Differences {
    fn note<T: PartialEq + fmt::Display>(&mut self, what: &str, have: T, want: T) {
        if have != want {
            let separator = if self.0.is_empty() { "" } else { "; " };
            self.0.push_str(&format!("{separator}{what} {have}, not {want}"));
        }
    }
}

impl Op {
    /// Whether it makes or changes the device or gives it an address, on which everything else stands.
    pub fn is_on_device(&self) -> bool {
        self.key() == Key::Device || matches!(self, Op::AddAddress(_))
    }

    /// What it is about.
    pub fn key(&self) -> Key {
        match self {
            Op::DeleteDevice(_) | Op::CreateDevice(_) | Op::ChangeDevice(..) => Key::Device,
            Op::AddAddress(address) | Op::DeleteAddress(address) => Key::Address(*address),
            Op::SetNeighbor(ip, _) | Op::DeleteNeighbor(ip) => Key::Neighbor(*ip),
            Op::SetFdb(mac, _) | Op::DeleteFdb(mac, _) | Op::ClearFdb(mac) => Key::Fdb(*mac),
            Op::AddRoute(route) | Op::ReplaceRoute(route) | Op::DeleteRoute(route) => Key::Route(route.dest),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::DeleteDevice(index) => write!(f, "delete device #{index}"),
            Op::CreateDevice(device) => {
                write!(f, "create device {} mac {} mtu {}", device.name, device.mac, device.mtu)
            }
            Op::ChangeDevice(_, device) => write!(f, "change device {}", device.name),
            Op::AddAddress(address) => write!(f, "add address {address}"),
            Op::DeleteAddress(address) => write!(f, "delete address {address}"),
            Op::SetNeighbor(ip, mac) => write!(f, "set neighbour {ip} {mac}"),
            Op::DeleteNeighbor(ip) => write!(f, "delete neighbour {ip}"),
            Op::SetFdb(mac, dst) => write!(f, "set FDB entry {mac} dst {dst}"),
            Op::DeleteFdb(mac, dst) => write!(f, "delete FDB entry {mac} dst {dst}"),
            Op::ClearFdb(mac) => write!(f, "delete FDB entry {mac}"),
            Op::AddRoute(route) => write!(f, "add route {route}"),
            Op::ReplaceRoute(route) => write!(f, "replace route {route}"),
            Op::DeleteRoute(route) => write!(f, "delete route {route}"),
        }
    }
}
