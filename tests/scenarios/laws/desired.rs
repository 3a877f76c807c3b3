//! Of what follows from the facts: it does not matter in which order and portions they came.

use super::{as_wanted, config, mac, ops};
use flanneld::backend::vxlan::Vxlan;
use flanneld::model::desired::{DesiredState, Dirty, LocalNode};
use flanneld::model::entry::Oif;
use flanneld::model::go_json::GoObject;
use flanneld::model::iface::{ExternalInterface, HostView, Interface, InterfaceAddress};
use flanneld::model::kernel_state::{Key, Want};
use flanneld::model::lease::{LeaseId, Record, Revision};
use flanneld::model::lease_set::{Change, Moment};
use flanneld::model::links::{LinkRoute, Links};
use flanneld::model::plan::Plan;
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Keys that are in each other's way, 10.5.1.0-24 being our own.
const NAMES: [&str; 10] = [
    "10.5.1.0-24",
    "10.5.2.0-24",
    "10.5.2.0-24&fc00::-64",
    "10.5.2.128-25",
    "10.5.3.0-24",
    "10.5.4.0-24",
    "10.5.2.0-23",
    "10.5.1.128-25",
    "10.6.0.0-24",
    "foo",
];

const HOLD: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
enum Event {
    /// Some keys are written (with this value) or deleted, in one revision each.
    Changes(Vec<(&'static str, Option<String>)>),
    /// A complete list, with keys that were deleted and written unseen.
    List(Vec<(&'static str, Option<String>)>),
    /// The host looks like this now.
    Host(u8),
    /// So many seconds pass.
    Pass(u64),
}

fn any_value() -> impl Strategy<Value = String> {
    let addresses = ["192.168.0.1", "192.168.0.2", "192.168.0.3", "172.20.0.9", "10.5.2.9", "10.5.1.9", "127.0.0.1"];
    let address = select(addresses.to_vec());
    let kind = prop_oneof![8 => Just("vxlan"), 1 => Just("host-gw")];
    let vni = prop_oneof![4 => Just("\"VNI\":1,"), 2 => Just(""), 1 => Just("\"VNI\":2,")];
    let good = (address, kind, vni, 1u8..5).prop_map(|(address, kind, vni, last)| {
        format!(r#"{{"PublicIP":"{address}","BackendType":"{kind}","BackendData":{{{vni}"VtepMAC":"{}"}}}}"#, mac(last))
    });
    prop_oneof![8 => good, 1 => Just("garbage".into()), 1 => Just(r#"{"PublicIP":"192.168.0.4"}"#.into())]
}

fn any_events() -> impl Strategy<Value = Vec<Event>> {
    let change = (select(NAMES.to_vec()), prop::option::weighted(0.7, any_value()));
    let changes = prop::collection::vec(change, 1..4).boxed();
    let event = prop_oneof![
        8 => changes.clone().prop_map(Event::Changes),
        2 => changes.prop_map(Event::List),
        2 => (0u8..7).prop_map(Event::Host),
        2 => (1u64..90).prop_map(Event::Pass),
    ];
    prop::collection::vec(event, 1..20)
}

fn interface(index: u32, name: &str, mtu: u32, nets: &[&str]) -> Interface {
    let address = |net: &&str| InterfaceAddress {
        net: net.parse().unwrap(),
        scope: 0,
        permanent: true,
        deprecated: false,
        temporary: false,
    };
    let addresses = nets.iter().map(address).collect();
    Interface { index, name: name.into(), mtu, mac: None, up: true, controller: None, addresses }
}

/// A host with another address, another MTU, a bridge in a peer's place, or an address in one; or one whose neighbours are
/// not on its link, or some behind a router and others on another link.
fn host(variant: u8) -> (LocalNode, HostView) {
    let (address, mtu) = match variant {
        1 => ("192.168.0.3", 1500),
        2 => ("192.168.0.1", 9000),
        _ => ("192.168.0.1", 1500),
    };
    let mut interfaces = vec![interface(2, "eth0", mtu, &[&format!("{address}/24")])];
    match variant {
        3 => interfaces.push(interface(5, "br0", 1500, &["10.5.3.1/24"])),
        4 => interfaces.push(interface(5, "br0", 1500, &["10.5.2.200/32", "10.5.4.1/17"])),
        _ => {}
    }
    let address = address.parse().unwrap();
    let nic = ExternalInterface { index: 2, name: "eth0".into(), mtu, mac: None, address, public_ip: address };
    let own = LocalNode { nic, subnet: "10.5.1.0/24".parse().unwrap(), mac: mac(1) };
    let route = |dest: &str, link| LinkRoute { dest: dest.parse().unwrap(), metric: 0, link };
    let links = match variant {
        5 => vec![],
        6 => vec![route("192.168.0.0/24", Some(2)), route("192.168.0.3/32", None), route("172.20.0.0/24", Some(5))],
        _ => vec![route("192.168.0.0/24", Some(2))],
    };
    (own, HostView { interfaces, links: Links::from_routes(&links), ..HostView::default() })
}

fn new_world(variant: u8) -> DesiredState {
    let (own, host) = host(variant);
    let endpoints = vec!["10.5.4.77".parse().unwrap()];
    let params = GoObject::parse(br#"{"DirectRouting":true}"#).unwrap();
    let backend = Rc::new(Vxlan::from_params(&params).unwrap());
    DesiredState::new(backend, "10.5.0.0/16".parse().unwrap(), endpoints, own, host, HOLD)
}

/// The store, one host that follows it, and how that host looks.
struct Run {
    world: DesiredState,
    keys: BTreeMap<&'static str, Record>,
    revision: Revision,
    now: Moment,
    variant: u8,
}

impl Run {
    fn new() -> Self {
        let mut world = new_world(0);
        world.set_leases(1, Vec::new(), Moment::ZERO);
        Run { world, keys: BTreeMap::new(), revision: 1, now: Moment::ZERO, variant: 0 }
    }

    fn change(&mut self, name: &'static str, value: &Option<String>) -> Option<Change> {
        let Some(value) = value else {
            self.keys.remove(name)?;
            self.revision += 1;
            return Some(Change::Delete { name: name.into(), revision: self.revision });
        };
        self.revision += 1;
        let created = |record: &Record| record.content.as_ref().ok().map(|lease| lease.created);
        let created = self.keys.get(name).and_then(created).unwrap_or(self.revision);
        let record = Record::decode(name, value.as_bytes(), LeaseId::new(7), created, self.revision);
        self.keys.insert(name, record.clone());
        Some(Change::Put(record))
    }

    fn take(&mut self, event: &Event) -> Dirty {
        match event {
            Event::Changes(changes) => {
                let changes = changes.iter().filter_map(|(name, value)| self.change(name, value)).collect();
                self.world.change_leases(self.revision, changes, self.now)
            }
            Event::List(changes) => {
                changes.iter().for_each(|(name, value)| drop(self.change(name, value)));
                self.world.set_leases(self.revision, self.keys.values().cloned().collect(), self.now)
            }
            Event::Host(variant) => {
                self.variant = *variant;
                let (own, host) = host(*variant);
                self.world.set_host(own, host)
            }
            Event::Pass(seconds) => {
                self.now += Duration::from_secs(*seconds);
                self.world.expire(self.now)
            }
        }
    }

    /// A host that knows the same and has just been told so.
    fn fresh(&self) -> DesiredState {
        let mut world = new_world(self.variant);
        world.set_leases(self.revision, self.world.leases().records().cloned().collect(), self.now);
        world
    }
}

/// What changes from one want to another is all among the keys that were reported.
fn reported_enough(world: &DesiredState, before: &Want, dirty: &Dirty) -> (Vec<String>, Vec<String>) {
    let (have, scope) = (as_wanted(before), world.scope());
    let between = Plan::between(&have, world.want(), &scope);
    let at = match dirty {
        Dirty::All => between.clone(),
        Dirty::Keys(keys) => Plan::at(&keys.iter().copied().collect::<Vec<Key>>(), &have, world.want(), &scope),
    };
    (ops(&at), ops(&between))
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn step_by_step_is_the_same_as_all_at_once(events in any_events()) {
        let mut run = Run::new();
        for event in &events {
            let before = run.world.want().clone();
            let dirty = run.take(event);
            let fresh = run.fresh();
            prop_assert_eq!(run.world.want(), fresh.want(), "after {:?}", event);
            prop_assert_eq!(run.world.tally(), fresh.tally(), "after {:?}", event);
            let (at, between) = reported_enough(&run.world, &before, &dirty);
            prop_assert_eq!(at, between, "after {:?}, reported {:?}", event, dirty);
        }
    }

    #[test]
    fn in_the_end_a_host_knows_what_is_in_the_store(events in any_events()) {
        let mut run = Run::new();
        for event in &events {
            run.take(event);
        }
        run.now += HOLD * 2;
        run.world.expire(run.now);
        let known: Vec<&Record> = run.world.leases().records().collect();
        let mut stored: Vec<&Record> = run.keys.values().collect();
        stored.sort_by(|a, b| a.name.cmp(&b.name));
        prop_assert_eq!(known, stored);
        prop_assert_eq!(run.world.leases().held().count(), 0);
    }

    #[test]
    fn who_is_on_the_link_is_reached_directly_and_nobody_else(events in any_events()) {
        let mut run = Run::new();
        for event in &events {
            run.take(event);
            let want = run.world.want();
            for (dest, route) in want.routes.iter() {
                let mac = want.neighbors.get(&dest.addr()).expect("a neighbour");
                let address = want.fdb.get(&mac).expect("an FDB entry");
                let hidden = run.variant == 5 || run.variant == 6 && address.to_string() == "192.168.0.3";
                let on_link = address.to_string().starts_with("192.168.0.") && !hidden;
                let expected = if on_link { (Oif::Other(2), address) } else { (Oif::Ours, dest.addr()) };
                prop_assert_eq!((route.oif, route.gateway), (expected.0, Some(expected.1)), "{}", route);
            }
        }
    }

    #[test]
    fn no_two_peers_are_in_each_others_way(events in any_events()) {
        let mut run = Run::new();
        for event in &events {
            run.take(event);
            let want = run.world.want();
            let dests: Vec<_> = want.routes.keys().collect();
            for (at, dest) in dests.iter().enumerate() {
                prop_assert!(dests[at + 1..].iter().all(|other| !other.contains(dest) && !dest.contains(other)));
                prop_assert!(want.neighbors.contains_key(&dest.addr()));
            }
            prop_assert!(want.neighbors.iter().all(|(_, mac)| want.fdb.contains_key(&mac)));
            prop_assert_eq!(want.neighbors.len(), want.routes.len());
        }
    }
}
