//! The addresses on the host's links, which it reaches without a gateway, as its routes in table main say.

use ipnet::Ipv4Net;
use std::cmp::Reverse;
use std::net::Ipv4Addr;

/// A route of table main, as far as it tells who is on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkRoute {
    /// Its destination.
    pub dest: Ipv4Net,
    /// Priority; the lowest is used first.
    pub metric: u32,
    /// Index of the interface on whose link the destination is; `None` when it is behind a gateway or nowhere.
    pub link: Option<u32>,
}

/// The networks on the host's links, and the exceptions inside them. The default has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    /// Those that the kernel asks first come first.
    routes: Vec<LinkRoute>,
}

impl Links {
    /// Derives the links from these routes of table main. Of those that lead elsewhere than to a link only the ones
    /// into a network on a link are kept: a host may have very many others.
    pub fn from_routes(routes: &[LinkRoute]) -> Self {
        let on_links: Vec<Ipv4Net> =
            routes.iter().filter(|route| route.link.is_some()).map(|route| route.dest).collect();
        let matters = |route: &&LinkRoute| on_links.iter().any(|net| net.contains(&route.dest));
        let mut routes: Vec<LinkRoute> = routes.iter().filter(matters).copied().collect();
        routes.sort_by_key(|route| (Reverse(route.dest.prefix_len()), route.dest, route.metric, route.link));
        Links { routes }
    }

    /// The same without the routes into a network.
    pub fn outside(&self, network: Ipv4Net) -> Self {
        let routes = self.routes.iter().filter(|route| !network.contains(&route.dest));
        Links { routes: routes.copied().collect() }
    }

    /// Index of the interface on whose link this host is; `None` when it is not on a link, or no address of a host there.
    pub fn link_to(&self, host: Ipv4Addr) -> Option<u32> {
        let route = self.routes.iter().find(|route| route.dest.contains(&host))?;
        let (net, is_wide) = (route.dest, route.dest.prefix_len() < 31);
        route.link.filter(|_| !is_wide || host != net.network() && host != net.broadcast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(dest: &str, metric: u32, link: u32) -> LinkRoute {
        LinkRoute { dest: dest.parse().unwrap(), metric, link: Some(link).filter(|link| *link != 0) }
    }

    fn link(routes: &[LinkRoute], host: &str) -> Option<u32> {
        Links::from_routes(routes).link_to(host.parse().unwrap())
    }

    #[test]
    fn the_most_specific_route_decides_and_then_the_metric() {
        let routes = [
            route("0.0.0.0/0", 0, 0),
            route("192.168.0.0/24", 100, 2),
            route("192.168.0.0/24", 200, 3),
            route("192.168.0.64/26", 0, 0),
            route("192.168.0.80/32", 0, 4),
            route("10.7.0.2/32", 0, 5),
            route("10.8.0.0/31", 0, 6),
        ];
        for (host, expected) in [
            ("192.168.0.7", Some(2)),
            ("192.168.0.65", None),
            ("192.168.0.80", Some(4)),
            ("192.168.1.1", None),
            ("10.7.0.2", Some(5)),
            ("10.7.0.3", None),
            // No host has these, and the kernel takes no gateway there.
            ("192.168.0.0", None),
            ("192.168.0.255", None),
            ("10.8.0.0", Some(6)),
            ("10.8.0.1", Some(6)),
        ] {
            assert_eq!(link(&routes, host), expected, "{host}");
        }
    }

    #[test]
    fn what_is_outside_of_every_link_is_not_kept() {
        let few = [route("192.168.0.0/24", 0, 2), route("192.168.0.9/32", 0, 0)];
        let many: Vec<LinkRoute> = (0..=255).map(|n| route(&format!("10.{n}.0.0/16"), 0, 0)).chain(few).collect();
        assert_eq!(Links::from_routes(&many), Links::from_routes(&few));
    }

    #[test]
    fn the_overlays_own_routes_do_not_count() {
        let overlay = "10.5.0.0/16".parse().unwrap();
        let links = Links::from_routes(&[route("10.5.2.0/24", 0, 7), route("10.0.0.0/8", 0, 2)]).outside(overlay);
        assert_eq!(links.link_to("10.5.2.9".parse().unwrap()), Some(2));
        assert_eq!(links.outside("10.0.0.0/8".parse().unwrap()), Links::default());
    }

    #[test]
    fn a_link_to_everywhere_is_a_link() {
        assert_eq!(link(&[route("0.0.0.0/0", 0, 2)], "8.8.8.8"), Some(2));
    }
}
