//! A route in table main: a peer's subnet and the way there.

use crate::model::plan::{Context, Phase, Steps};
use crate::model::table::{EntryKind, Few, Held, Noticed};
use ipnet::{IpNet, Ipv4Net};
use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

/// Where a route leaves the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Oif {
    /// Our VXLAN device, whatever index it has now.
    Ours,
    /// Another interface, by index.
    Other(u32),
    /// As the nexthop object with this id says.
    Nexthop(u32),
    /// Not at all: a route of this type (`RTN_*`) other than unicast, such as blackhole.
    Special(u8),
}

/// A route in table main.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Destination, without host bits.
    pub dest: IpNet,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Outgoing interface.
    pub oif: Oif,
    /// Next hop is taken to be on the link, whatever the addresses say.
    pub onlink: bool,
    /// Priority; 0 is tried first (for IPv6 the kernel turns 0 into 1024).
    pub metric: u32,
    /// The program that installed it (`RTPROT_*`): 2 is the kernel itself, 3 `boot`.
    pub protocol: u8,
}

/// The routes of ours are spread over these protocol numbers, which nobody has been assigned
/// (`/etc/iproute2/rt_protos`): the kernel's hash of routes mixes the protocol but not the gateway, so without this each
/// further route would cost a walk over all that are there.
const PROTOCOLS: std::ops::Range<u32> = 100..186;

/// The kernel's number for routes that swallow packets (`RTN_BLACKHOLE`).
const BLACKHOLE: u8 = 6;

/// The metric of our blackhole route: the last to be tried, so that the bridge's connected network goes before it.
pub const BLACKHOLE_METRIC: u32 = u32::MAX;

/// `RTPROT_KERNEL`: connected networks; never touched.
pub const PROTOCOL_KERNEL: u8 = 2;

impl Route {
    /// Equal in all that decides where packets go: everything but who installed it.
    pub fn same_path(&self, other: &Route) -> bool {
        Route { protocol: 0, ..*self } == Route { protocol: 0, ..*other }
    }

    /// A route that drops packets to these addresses, unless another route leads there.
    pub fn blackhole(dest: IpNet, protocol: u8) -> Self {
        let oif = Oif::Special(BLACKHOLE);
        Route { dest, gateway: None, oif, onlink: false, metric: BLACKHOLE_METRIC, protocol }
    }

    /// The protocol number of our route to a subnet: neighbouring subnets have different ones.
    pub fn protocol_for(subnet: Ipv4Net) -> u8 {
        let index = u32::from(subnet.network()) >> (32 - subnet.prefix_len().max(1));
        (PROTOCOLS.start + index % (PROTOCOLS.end - PROTOCOLS.start)) as u8
    }

    /// Whether the route leads through a gateway on the link of this interface and has the protocol number of ours.
    pub fn is_direct_of_ours(&self, nic: u32) -> bool {
        let direct = self.oif == Oif::Other(nic) && self.gateway.is_some() && !self.onlink && self.metric == 0;
        direct && matches!(self.dest, IpNet::V4(dest) if self.protocol == Route::protocol_for(dest))
    }

    /// The shape of flannel's overlay routes: onlink over our device, via the destination's own first address.
    pub fn has_flannel_shape(&self) -> bool {
        self.oif == Oif::Ours && self.onlink && self.gateway == Some(self.dest.network())
    }
}

/// A change of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteReport {
    /// The route stands beside those that were there.
    Added(Route),
    /// The route took the place of one with its destination and metric.
    Replaced(Route),
    /// The route is gone.
    Gone(Route),
}

impl EntryKind for Route {
    type Key = IpNet;
    type Value = Route;
    /// All routes to one destination.
    type Held = Few<Route>;
    type Report = RouteReport;

    const NAME: &'static str = "route";
    const NAMES: &'static str = "routes";
    const SET_VERB: &'static str = "replace";
    const SET: Phase = Phase::RouteSet;
    const DELETE: Phase = Phase::RouteDelete;

    fn into_parts(self) -> (IpNet, Route) {
        (self.dest, self)
    }

    fn compare(_: IpNet, want: Option<Route>, have: Option<&Few<Route>>, context: &Context, steps: &mut Steps) {
        let have = have.map_or(&[][..], |routes| routes);
        match want {
            Some(want) => want.compare_with(have, context, steps),
            None if context.want.peers_complete => {
                for route in have.iter().filter(|route| context.scope.owns_route(route)) {
                    steps.delete(*route, "no accepted lease has it");
                }
            }
            None => {}
        }
    }

    /// Ours replaces the first route with its destination and metric.
    fn was_set(self, held: &mut Held<Self>) {
        let routes = held.entry(self.dest).or_default();
        match routes.iter_mut().find(|other| other.metric == self.metric) {
            Some(other) => *other = self,
            None => routes.push(self),
        }
    }

    fn was_added(self, held: &mut Held<Self>) {
        held.entry(self.dest).or_default().push(self);
    }

    fn was_deleted(self, held: &mut Held<Self>) {
        if let Some(routes) = held.get_mut(&self.dest) {
            routes.retain(|other| !other.same_path(&self));
            if routes.is_empty() {
                held.remove(&self.dest);
            }
        }
    }

    fn notice(report: RouteReport, held: &mut Held<Self>) -> Noticed<IpNet> {
        match report {
            RouteReport::Added(route) => route.notice_added(held),
            RouteReport::Replaced(route) => route.notice_replaced(held),
            RouteReport::Gone(route) => {
                let there = held.get(&route.dest).is_some_and(|all| all.iter().any(|other| other.same_path(&route)));
                route.was_deleted(held);
                Noticed::key_if(there, route.dest)
            }
        }
    }

    /// Routes by other interfaces stay.
    fn device_was_deleted(held: &mut Held<Self>) {
        held.values_mut().for_each(|routes| routes.retain(|route| !route.is_on_device()));
        held.retain(|_, routes| !routes.is_empty());
    }

    fn is_on_device(&self) -> bool {
        self.oif == Oif::Ours
    }
}

impl Route {
    /// Adds the steps that leave this route at its destination and metric, and no stray beside it. No moment is without a
    /// route: a single stray is replaced.
    fn compare_with(&self, have: &[Route], context: &Context, steps: &mut Steps) {
        let in_its_place = |route: &Route| route.metric == self.metric && route.protocol != PROTOCOL_KERNEL;
        let present = have.iter().any(|route| self.is_satisfied_by(route));
        let is_other = |route: &Route| !self.is_satisfied_by(route) && (!present || !route.same_path(self));
        let is_stray = |route: &&Route| is_other(route) && (in_its_place(route) || context.scope.owns_route(route));
        let strays: Few<&Route> = have.iter().filter(is_stray).collect();
        // The kernel puts ours in the place of the first with this metric, whoever made that one.
        let mut in_the_way = have.iter().filter(|route| route.metric == self.metric);
        if let ([stray], Some(first), None) = (&strays[..], in_the_way.next(), in_the_way.next())
            && !present
            && *stray == first
            && (context.scope.owns_route(stray) || leads_to_peer(stray, context))
            && stray.can_be_replaced()
        {
            let whose = if stray.same_path(self) { format!(" of protocol {}", stray.protocol) } else { String::new() };
            steps.set(*self, format!("was {stray}{whose}"));
            return;
        }
        for stray in strays {
            steps.delete_in(Phase::RouteSet, *stray, format!("stands in the place of the route to peer {}", self.dest));
        }
        if !present {
            steps.add(*self, "missing");
        }
    }

    /// Whether `route` is as good as this wanted one. On our device it does not matter who installed it; elsewhere the
    /// protocol number is what tells ours from those of others when its peer has gone.
    fn is_satisfied_by(&self, route: &Route) -> bool {
        let is_ours = self.is_on_device() || [self.protocol, PROTOCOL_KERNEL].contains(&route.protocol);
        route.same_path(self) && is_ours
    }

    /// The kernel takes no onlink gateway of IPv6 that another device leads to, and a peer's gateway lies in the peer's subnet.
    fn can_be_replaced(&self) -> bool {
        self.dest.addr().is_ipv4() || self.is_on_device()
    }

    fn notice_added(self, held: &mut Held<Self>) -> Noticed<IpNet> {
        let routes = held.entry(self.dest).or_default();
        match routes.iter_mut().find(|other| other.same_path(&self)) {
            Some(other) if *other == self => return Noticed::Nothing,
            Some(other) => *other = self,
            None => routes.push(self),
        }
        Noticed::Key(self.dest)
    }

    /// The kernel does not say which route was replaced; with one of that metric there is no doubt.
    fn notice_replaced(self, held: &mut Held<Self>) -> Noticed<IpNet> {
        let routes = held.get(&self.dest).map_or(&[][..], |routes| routes);
        let same_metric = routes.iter().filter(|other| other.metric == self.metric).count();
        if same_metric == 1 && routes.contains(&self) {
            return Noticed::Nothing;
        }
        self.was_set(held);
        if same_metric > 1 { Noticed::Doubt } else { Noticed::Key(self.dest) }
    }
}

/// Whether a route leads to a peer directly, at its underlay address, whoever made it.
fn leads_to_peer(route: &Route, context: &Context) -> bool {
    let mac = context.want.neighbors.get(&route.dest.network());
    let address = mac.and_then(|mac| context.want.fdb.get(&mac));
    matches!(route.oif, Oif::Other(_)) && address.is_some() && route.gateway == address
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Oif::Special(kind) = self.oif {
            write!(f, "{} ", type_name(kind))?;
        }
        write!(f, "{}", self.dest)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        match self.oif {
            Oif::Other(index) => write!(f, " dev #{index}")?,
            Oif::Nexthop(id) => write!(f, " nhid {id}")?,
            Oif::Ours | Oif::Special(_) => {}
        }
        if self.onlink {
            f.write_str(" onlink")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

/// As `ip route` names a type of route.
fn type_name(kind: u8) -> Cow<'static, str> {
    match kind {
        2 => "local".into(),
        BLACKHOLE => "blackhole".into(),
        7 => "unreachable".into(),
        8 => "prohibit".into(),
        9 => "throw".into(),
        other => format!("type {other}").into(),
    }
}
