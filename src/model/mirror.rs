//! Keeping [`Have`] in step with the kernel without reading it anew: by our own operations that succeeded, and by what
//! the kernel reports of everybody's.

use super::kernel_state::{Device, ExistingDevice, Have, Neighbor, Oif, Route};
use super::mac::VtepMac;
use super::plan::{Key, Op};
use ipnet::IpNet;
use std::net::IpAddr;

/// A change to an entry that concerns us, as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// A neighbour on our device is now this, or gone.
    Neighbor(IpAddr, Option<Neighbor>),
    /// A MAC's FDB entry on our device points there now.
    FdbSet(VtepMac, IpAddr),
    /// A MAC's FDB entry on our device is gone.
    FdbGone(VtepMac, IpAddr),
    /// A MAC has an FDB entry of a kind that we never make.
    FdbForeign(VtepMac),
    /// A route stands beside those that were there.
    RouteAdded(Route),
    /// A route stands in the place of one with its destination and metric.
    RouteReplaced(Route),
    /// A route is gone.
    RouteGone(Route),
}

/// What a reported change means for [`Have`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noticed {
    /// It was known.
    Nothing,
    /// This object is not what it was.
    Key(Key),
    /// It cannot be told: read in full.
    Doubt,
}

impl Have {
    /// What the kernel holds after it has done `op`; `index` is what it would give a new device.
    pub fn apply(&mut self, op: &Op, index: u32) {
        match op {
            Op::DeleteDevice(_) => self.lose_device(),
            Op::CreateDevice(device) => self.device = Some(ExistingDevice::Vxlan(index, Device::clone(device))),
            Op::ChangeDevice(_, device) => self.change_device(device),
            Op::AddAddress(address) => drop(self.addresses.insert(*address)),
            Op::DeleteAddress(address) => drop(self.addresses.remove(address)),
            Op::SetNeighbor(ip, mac) => {
                let neighbor = Neighbor { mac: Some(*mac), permanent: true };
                self.neighbors.insert(*ip, neighbor);
            }
            Op::DeleteNeighbor(ip) => drop(self.neighbors.remove(ip)),
            Op::SetFdb(mac, dst) => drop(self.fdb.insert(*mac, [*dst].into())),
            Op::DeleteFdb(mac, dst) => self.remove_fdb(mac, dst),
            Op::ClearFdb(mac) => drop(self.fdb.remove(mac)),
            Op::AddRoute(route) => self.routes.entry(route.dest).or_default().push(*route),
            Op::ReplaceRoute(route) => self.replace_route(route),
            Op::DeleteRoute(route) => self.retain_routes(route.dest, |other| !other.same_path(route)),
        }
    }

    /// Takes as little memory as it can. What was put in one by one leaves half of a map's nodes empty.
    pub fn compact(&mut self) {
        self.neighbors = std::mem::take(&mut self.neighbors).into_iter().collect();
        self.fdb = std::mem::take(&mut self.fdb).into_iter().collect();
        self.routes = std::mem::take(&mut self.routes).into_iter().collect();
    }

    fn lose_device(&mut self) {
        self.device = None;
        self.addresses.clear();
        self.neighbors.clear();
        self.fdb.clear();
        self.routes.values_mut().for_each(|routes| routes.retain(|route| route.oif != Oif::Ours));
        self.routes.retain(|_, routes| !routes.is_empty());
    }

    fn change_device(&mut self, device: &Device) {
        if let Some(ExistingDevice::Vxlan(_, have)) = &mut self.device {
            if have.mac != device.mac {
                self.neighbors.clear();
            }
            let port = have.vxlan.port;
            *have = device.clone();
            have.vxlan.port = port;
        }
    }

    fn remove_fdb(&mut self, mac: &VtepMac, dst: &IpAddr) {
        if let Some(destinations) = self.fdb.get_mut(mac) {
            destinations.retain(|other| other != dst);
            if destinations.is_empty() {
                self.fdb.remove(mac);
            }
        }
    }

    fn replace_route(&mut self, route: &Route) {
        let routes = self.routes.entry(route.dest).or_default();
        match routes.iter_mut().find(|other| other.metric == route.metric) {
            Some(other) => *other = *route,
            None => routes.push(*route),
        }
    }

    fn retain_routes(&mut self, dest: IpNet, keep: impl Fn(&Route) -> bool) {
        if let Some(routes) = self.routes.get_mut(&dest) {
            routes.retain(|route| keep(route));
            if routes.is_empty() {
                self.routes.remove(&dest);
            }
        }
    }

    /// Takes in a change that the kernel reports. It may be one of our own that is in here already, or one that an
    /// earlier reading in full has seen: then nothing changes.
    pub fn notice(&mut self, change: &Observed) -> Noticed {
        match change {
            Observed::Neighbor(ip, now) => {
                let before = match now {
                    Some(neighbor) => self.neighbors.insert(*ip, *neighbor),
                    None => self.neighbors.remove(ip),
                };
                if before == *now { Noticed::Nothing } else { Noticed::Key(Key::Neighbor(*ip)) }
            }
            Observed::FdbSet(mac, dst) => {
                let before = self.fdb.insert(*mac, [*dst].into());
                if before == Some([*dst].into()) { Noticed::Nothing } else { Noticed::Key(Key::Fdb(*mac)) }
            }
            Observed::FdbGone(mac, dst) => {
                let there = self.fdb.get(mac).is_some_and(|all| all.contains(dst));
                self.remove_fdb(mac, dst);
                if there { Noticed::Key(Key::Fdb(*mac)) } else { Noticed::Nothing }
            }
            Observed::FdbForeign(mac) => match self.fdb.get_mut(mac) {
                Some(destinations) if !destinations.is_empty() => {
                    destinations.clear();
                    Noticed::Key(Key::Fdb(*mac))
                }
                _ => Noticed::Nothing,
            },
            Observed::RouteAdded(route) => self.notice_route(route),
            Observed::RouteReplaced(route) => self.notice_replacement(route),
            Observed::RouteGone(route) => {
                let there = self.routes.get(&route.dest).is_some_and(|all| all.iter().any(|r| r.same_path(route)));
                self.retain_routes(route.dest, |other| !other.same_path(route));
                if there { Noticed::Key(Key::Route(route.dest)) } else { Noticed::Nothing }
            }
        }
    }

    fn notice_route(&mut self, route: &Route) -> Noticed {
        let routes = self.routes.entry(route.dest).or_default();
        match routes.iter_mut().find(|other| other.same_path(route)) {
            Some(other) if other == route => Noticed::Nothing,
            Some(other) => {
                *other = *route;
                Noticed::Key(Key::Route(route.dest))
            }
            None => {
                routes.push(*route);
                Noticed::Key(Key::Route(route.dest))
            }
        }
    }

    /// The kernel does not say which route was replaced; with one of that metric there is no doubt.
    fn notice_replacement(&mut self, route: &Route) -> Noticed {
        let routes = self.routes.entry(route.dest).or_default();
        let same_metric = routes.iter().filter(|other| other.metric == route.metric).count();
        if same_metric == 1 && routes.contains(route) {
            return Noticed::Nothing;
        }
        self.replace_route(route);
        if same_metric > 1 { Noticed::Doubt } else { Noticed::Key(Key::Route(route.dest)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(gateway: &str, metric: u32) -> Route {
        let (dest, gateway) = ("10.5.2.0/24".parse().unwrap(), gateway.parse().ok());
        Route { dest, gateway, oif: Oif::Ours, onlink: true, metric, protocol: 100 }
    }

    fn mac(last: u8) -> VtepMac {
        VtepMac([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn what_is_known_is_no_news() {
        let ip = "10.5.2.0".parse().unwrap();
        let neighbor = Neighbor { mac: Some(mac(2)), permanent: true };
        let mut have = Have::default();
        for op in [Op::SetNeighbor(ip, mac(2)), Op::SetFdb(mac(2), ip), Op::AddRoute(route("10.5.2.0", 0))] {
            have.apply(&op, 0);
        }
        let before = have.clone();
        for echo in [
            Observed::Neighbor(ip, Some(neighbor)),
            Observed::FdbSet(mac(2), ip),
            Observed::RouteAdded(route("10.5.2.0", 0)),
            Observed::RouteReplaced(route("10.5.2.0", 0)),
            Observed::RouteGone(route("10.5.2.9", 0)),
            Observed::FdbGone(mac(3), ip),
            Observed::FdbForeign(mac(3)),
            Observed::Neighbor("10.5.3.0".parse().unwrap(), None),
        ] {
            assert_eq!(have.notice(&echo), Noticed::Nothing, "{echo:?}");
        }
        assert_eq!(have, before);
    }

    #[test]
    fn what_is_not_is_told_by_its_key() {
        let ip = "10.5.2.0".parse().unwrap();
        let dest = route("10.5.2.0", 0).dest;
        let mut have = Have::default();
        for (change, expected) in [
            (Observed::Neighbor(ip, Some(Neighbor { mac: None, permanent: false })), Noticed::Key(Key::Neighbor(ip))),
            (Observed::Neighbor(ip, None), Noticed::Key(Key::Neighbor(ip))),
            (Observed::FdbSet(mac(2), ip), Noticed::Key(Key::Fdb(mac(2)))),
            (Observed::FdbForeign(mac(2)), Noticed::Key(Key::Fdb(mac(2)))),
            (Observed::RouteAdded(route("10.5.2.0", 0)), Noticed::Key(Key::Route(dest))),
            (Observed::RouteReplaced(route("10.5.2.9", 0)), Noticed::Key(Key::Route(dest))),
            (Observed::RouteAdded(route("10.5.2.8", 0)), Noticed::Key(Key::Route(dest))),
            (Observed::RouteReplaced(route("10.5.2.7", 0)), Noticed::Doubt),
            (Observed::RouteGone(route("10.5.2.8", 0)), Noticed::Key(Key::Route(dest))),
        ] {
            assert_eq!(have.notice(&change), expected, "{change:?}");
        }
    }

    #[test]
    fn replaying_old_reports_ends_where_the_kernel_is() {
        // Deleted by somebody, made again by us; then both reports arrive.
        let mut have = Have::default();
        have.apply(&Op::AddRoute(route("10.5.2.0", 0)), 0);
        have.notice(&Observed::RouteGone(route("10.5.2.0", 0)));
        have.notice(&Observed::RouteAdded(route("10.5.2.0", 0)));
        assert_eq!(have.routes[&route("10.5.2.0", 0).dest], [route("10.5.2.0", 0)].into());
    }
}
