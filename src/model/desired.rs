//! All facts of one host, and what the kernel should hold because of them. Pure; the loop feeds it facts and asks which
//! entries may differ now and what is worth a line of log.

use super::backend::Backend;
use super::docker;
use super::entry::Route;
use super::findings::{Finding, Findings};
use super::iface::{ExternalInterface, HostView};
use super::kernel_state::{Key, Scope, Want};
use super::lease::{Name, Record, Revision};
use super::lease_set::{Change, LeaseSet, Moment};
use super::links::Links;
use super::mac::VtepMac;
use super::peer_policy::{self, Endpoint, Facts, Peers, Tally, Verdict};
use super::subnet::SubnetKey;
use super::table;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// The blackhole route shows this protocol: the first of those of the backend's routes.
const BLACKHOLE_PROTOCOL: u8 = 100;

/// The facts that a host is sure of about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNode {
    /// The interface that carries tunnel packets.
    pub nic: ExternalInterface,
    /// Our subnet.
    pub subnet: Ipv4Net,
    /// The MAC of our tunnel endpoint.
    pub mac: VtepMac,
}

/// The entries that may differ from what is wanted.
pub type Dirty = table::Dirty<Key>;

/// How a peer is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PeerPath {
    endpoint: Endpoint,
    /// The link that it is on, if that matters.
    link: Option<u32>,
}

/// All facts of one host, and what follows from them.
pub struct DesiredState {
    backend: Rc<dyn Backend>,
    network: Ipv4Net,
    endpoints: Vec<IpAddr>,
    own: LocalNode,
    host: HostView,
    /// The addresses on the host's links, as far as they matter.
    links: Links,
    leases: LeaseSet,
    peers: Peers,
    /// The peers for which entries are wanted.
    wanted: BTreeMap<SubnetKey, PeerPath>,
    findings: Findings,
    want: Want,
    hold: Duration,
    blackhole: bool,
    tx_checksum_off: bool,
}

impl DesiredState {
    /// A host that knows itself and no peers. `endpoints` are the store's addresses; `hold` says how long the entries
    /// of a peer stay that vanished in a way that does not look like its own doing.
    pub fn new(
        backend: Rc<dyn Backend>,
        network: Ipv4Net,
        endpoints: Vec<IpAddr>,
        own: LocalNode,
        host: HostView,
        hold: Duration,
    ) -> Self {
        let mut desired = DesiredState {
            links: host.links.outside(network),
            backend,
            network,
            endpoints,
            own,
            host,
            leases: LeaseSet::default(),
            peers: Peers::default(),
            wanted: BTreeMap::new(),
            findings: Findings::default(),
            want: Want::default(),
            hold,
            blackhole: false,
            tx_checksum_off: false,
        };
        desired.rebuild();
        desired
    }

    /// From now on what is sent to addresses of our subnet that nobody has goes nowhere, instead of back and forth
    /// between this host and its gateway.
    pub fn add_blackhole(&mut self) {
        self.blackhole = true;
        self.rebuild();
    }

    /// From now on packets get their checksums before they reach the device.
    pub fn set_tx_checksum_off(&mut self) {
        self.tx_checksum_off = true;
        self.rebuild();
    }

    /// The state that the kernel should hold.
    pub fn want(&self) -> &Want {
        &self.want
    }

    /// The part of the kernel's state that is ours.
    pub fn scope(&self) -> Scope {
        Scope {
            device: self.backend.device_name(),
            networks: [self.network.into()].into_iter().collect(),
            nic: self.own.nic.index,
        }
    }

    /// Whether the host's other routes decide how peers are reached.
    pub fn routes_directly(&self) -> bool {
        self.backend.routes_directly()
    }

    /// The facts about this host itself.
    pub fn own(&self) -> &LocalNode {
        &self.own
    }

    /// The whole overlay.
    pub fn network(&self) -> Ipv4Net {
        self.network
    }

    /// The keys in the store.
    pub fn leases(&self) -> &LeaseSet {
        &self.leases
    }

    /// Largest packet that containers may send, in bytes.
    pub fn mtu(&self) -> u32 {
        self.backend.mtu(&self.own.nic)
    }

    /// The number of leases with each verdict.
    pub fn tally(&self) -> Tally {
        self.peers.tally()
    }

    /// The problem when another host has registered with our public IP. Nobody can tell the two apart.
    pub fn duplicate_ip(&self) -> Option<String> {
        self.findings.duplicate_ip()
    }

    /// The refusals and wider networks that began or ended since the last call.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        self.findings.take()
    }

    /// The problem when Docker uses another subnet or MTU than the files give it.
    pub fn docker_complaint(&self) -> Option<String> {
        docker::complaint(&self.host, self.network, self.own.subnet, self.mtu())
    }

    /// The problem when our subnet holds an address that this host itself depends on.
    pub fn subnet_complaint(&self) -> Option<String> {
        let held = self.peers.facts().own_subnet_objection()?;
        Some(format!(
            "this host's subnet {} holds {held}: containers cut this host off as soon as they use the subnet; set Network, \
             or SubnetMin and SubnetMax, in the network config to addresses that nothing else uses, then restart flanneld and \
             Docker",
            self.own.subnet
        ))
    }

    /// The reason why the backend cannot use an external interface, if there is one.
    pub fn interface_complaint(&self, nic: &ExternalInterface) -> Option<String> {
        self.backend.interface_complaint(nic)
    }

    /// Holds peers that an earlier run knew, although they may be gone from the store.
    pub fn hold(&mut self, peers: Vec<Record>, until: Moment) {
        self.leases.hold_all(peers, until);
        self.rebuild();
    }

    /// Takes in the host's interfaces and the facts about this host. Returns the entries that may differ now.
    pub fn set_host(&mut self, own: LocalNode, mut host: HostView) -> Dirty {
        let links = std::mem::take(&mut host.links).outside(self.network);
        let same_self = own == self.own
            && host.vxlan_port == self.host.vxlan_port
            && (links == self.links || !self.routes_directly());
        (self.own, self.host, self.links) = (own, host, links);
        if same_self && self.facts() == *self.peers.facts() {
            return Dirty::default();
        }
        self.rebuild();
        Dirty::All
    }

    /// Takes in the addresses of the store's members. Returns the entries that may differ now.
    pub fn set_endpoints(&mut self, endpoints: Vec<IpAddr>) -> Dirty {
        self.endpoints = endpoints;
        if self.facts() == *self.peers.facts() {
            return Dirty::default();
        }
        self.rebuild();
        Dirty::All
    }

    /// Takes in a complete list of all keys. Returns the entries that may differ now.
    pub fn set_leases(&mut self, revision: Revision, records: Vec<Record>, now: Moment) -> Dirty {
        let first = !self.leases.is_known();
        let own = self.own_name();
        let changed = self.leases.replace(revision, records, Some(&own), now, self.hold);
        if first {
            self.rebuild();
            return Dirty::All;
        }
        self.update(changed)
    }

    /// The next complete list is one of another history of the store.
    pub fn doubt_next_list(&mut self) {
        self.leases.doubt_next_list();
    }

    /// Our own key has not been renewed for as long as it lives.
    pub fn expect_loss_of_own(&mut self, now: Moment) {
        self.leases.expect_loss_of(&self.own_name(), now);
    }

    /// Takes in changes of some keys. Returns the entries that may differ now.
    pub fn change_leases(&mut self, revision: Revision, changes: Vec<Change>, now: Moment) -> Dirty {
        let own = self.own_name();
        let changed = self.leases.apply(revision, changes, Some(&own), now, self.hold);
        self.update(changed)
    }

    /// Lets go of peers that were held for long enough.
    pub fn expire(&mut self, now: Moment) -> Dirty {
        let over = self.leases.expire(now);
        self.update(over)
    }

    fn own_name(&self) -> String {
        SubnetKey::v4(self.own.subnet).to_string()
    }

    fn update(&mut self, names: BTreeSet<Name>) -> Dirty {
        let mut keys = BTreeSet::new();
        for name in names {
            let backend = self.backend.clone();
            let touched = self.peers.update(&name, self.leases.get(&name), |lease| backend.read(lease));
            self.follow(touched, &mut keys);
        }
        Dirty::Keys(keys)
    }

    /// Judges everything anew and builds what is wanted from nothing.
    fn rebuild(&mut self) {
        let backend = self.backend.clone();
        let own = backend.own_entries(&self.own.nic, &self.host, self.own.subnet, self.own.mac);
        self.peers.revalidate(self.facts(), self.leases.records(), |lease| backend.read(lease));
        self.review_wider_networks();
        self.review_all();
        self.wanted = self.peers.peers().map(|(key, endpoint)| (key, self.path_to(endpoint))).collect();
        let mut device = own.device;
        if let Some(device) = device.get_mut() {
            device.tx_checksum_off = self.tx_checksum_off;
        }
        self.want = Want { device, peers_complete: self.leases.is_known(), ..Want::default() };
        let blackhole = self.blackhole.then(|| Route::blackhole(self.own.subnet.into(), BLACKHOLE_PROTOCOL).into());
        for entry in own.entries.into_iter().chain(blackhole) {
            self.want.demand(entry);
        }
        for (key, path) in &self.wanted {
            for entry in backend.entries(key.v4, path.endpoint, path.link) {
                self.want.demand(entry);
            }
        }
        self.want.compact();
    }

    /// Brings what is wanted for some keys in line with their verdicts; `keys` collects what that touches.
    fn follow(&mut self, names: BTreeSet<Name>, keys: &mut BTreeSet<Key>) {
        let mut demanded = Vec::new();
        for name in names {
            self.review(&name);
            let Ok(key) = SubnetKey::parse(&name) else { continue };
            let new = match self.peers.verdict(&name) {
                Some(Verdict::Peer(endpoint)) => Some(self.path_to(endpoint)),
                _ => None,
            };
            if self.wanted.get(&key) == new.as_ref() {
                continue;
            }
            if let Some(old) = self.wanted.remove(&key) {
                let entries = self.backend.entries(key.v4, old.endpoint, old.link);
                keys.extend(entries.into_iter().map(|entry| self.want.withdraw(entry)));
            }
            demanded.extend(new.map(|new| (key, new)));
        }
        // Only now: what one key gives up another may take over.
        for (key, new) in demanded {
            let entries = self.backend.entries(key.v4, new.endpoint, new.link);
            keys.extend(entries.into_iter().map(|entry| self.want.demand(entry)));
            self.wanted.insert(key, new);
        }
    }

    fn path_to(&self, endpoint: Endpoint) -> PeerPath {
        let link = match self.routes_directly() {
            true => self.links.link_to(endpoint.address).filter(|index| *index == self.own.nic.index),
            false => None,
        };
        PeerPath { endpoint, link }
    }

    fn review_wider_networks(&mut self) {
        let wider = self.peers.facts().wider_networks().map(|(name, net)| (name.to_owned(), net)).collect();
        self.findings.set_wider_networks(self.network, wider);
    }

    /// Reviews each lease that is or was refused, or that has or had our public IP.
    fn review_all(&mut self) {
        let ours = self.own.nic.public_ip;
        let has_our_ip = |record: &&Record| matches!(&record.content, Ok(lease) if lease.attrs.public_ip == ours);
        let duplicate_ips = self.leases.records().filter(has_our_ip).map(|record| record.name.clone());
        let known = self.findings.leases().cloned();
        let names: BTreeSet<Name> = known.chain(duplicate_ips).chain(self.peers.refused()).collect();
        names.iter().for_each(|name| self.review(name));
    }

    /// Finds out whether a lease is refused, and whether it is one of another host with our public IP.
    fn review(&mut self, name: &Name) {
        self.findings.set_duplicate_ip(name, self.duplicate_ip_of(name));
        let reason = match self.peers.verdict(name) {
            Some(Verdict::Refused(reason)) => Some(reason),
            _ => None,
        };
        self.findings.set_refusal(name, reason);
    }

    /// A sentence on this lease if it is a live one of another host with our public IP.
    fn duplicate_ip_of(&self, name: &str) -> Option<String> {
        let lease = self.leases.get(name)?.content.as_ref().ok()?;
        let (ip, subnet) = (self.own.nic.public_ip, self.own.subnet);
        if lease.attrs.public_ip != ip || lease.subnet.v4 == subnet {
            return None;
        }
        let mac = lease.attrs.vtep_mac().filter(|mac| *mac != self.own.mac)?;
        let lives = lease.lease_id.is_some() && !self.leases.is_held(name);
        lives.then(|| {
            let own = self.own.mac;
            format!(
                "another host has our public IP {ip}: its MAC is {mac}, its subnet {}; ours are {own} and {subnet}: give \
                 one of the two another address, --iface or --public-ip",
                lease.subnet.v4
            )
        })
    }

    fn facts(&self) -> Facts {
        let device = self.backend.device_name();
        let connected: Vec<(String, Ipv4Net)> =
            self.host.connected(&device).map(|(name, net)| (name.to_owned(), net)).collect();
        let own_addresses =
            connected.iter().map(|(_, net)| net.addr()).chain([self.own.nic.public_ip, self.own.nic.address]);
        Facts {
            network: Some(self.network.into()),
            own_subnet: Some(self.own.subnet),
            own_mac: Some(self.own.mac),
            own_addresses: own_addresses.collect(),
            connected,
            underlay: peer_policy::underlay(&self.own.nic, &self.host, &self.endpoints),
        }
    }
}
