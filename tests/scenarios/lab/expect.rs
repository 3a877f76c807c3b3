//! What every host should hold, worked out from the bytes in the store, beside what it does hold.

use super::{Cluster, DEVICE, Host};
use flanneld::model::device::{ExistingDevice, Link};
use flanneld::model::entry::{Oif, Route};
use flanneld::model::kernel_state::Have;
use serde_json::Value;

/// A lease as a person reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// `10.5.7.0`.
    pub first: String,
    /// `PublicIP`.
    pub address: String,
    /// `VtepMAC`.
    pub mac: String,
}

impl Peer {
    /// A lease of a host that is none of the cluster's: number `n` has 10.5.`n`.0/24.
    pub fn guest(n: u8) -> Self {
        Peer { first: format!("10.5.{n}.0"), address: format!("192.168.1.{n}"), mac: format!("0e:00:00:00:00:{n:02x}") }
    }

    /// The name of the key.
    pub fn key(&self) -> String {
        format!("{}-24", self.first)
    }

    /// The value, as flannel writes it today.
    pub fn json(&self) -> String {
        let Peer { address, mac, .. } = self;
        format!(
            r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    }

    fn read(key: &str, value: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(value).ok()?;
        let mac = value["BackendData"]["VtepMAC"].as_str()?.to_owned();
        let address = value["PublicIP"].as_str()?.to_owned();
        Some(Peer { first: key.strip_suffix("-24")?.to_owned(), address, mac })
    }

    /// What a host needs to reach it, by the interface with the index `link` if it is on that.
    fn lines(&self, link: Option<u32>) -> [String; 3] {
        let Peer { first, address, mac } = self;
        let route = match link {
            Some(index) => format!("route {first}/24 via {address} by Other({index})"),
            None => format!("route {first}/24 via {first} dev {DEVICE} onlink"),
        };
        [format!("neighbor {first} lladdr {mac} permanent"), format!("fdb {mac} dst {address}"), route]
    }
}

impl Cluster {
    /// All leases in the store but the hostile ones.
    pub fn peers(&self) -> Vec<Peer> {
        let names = self.store.snapshot().records.into_iter().map(|record| record.name.to_string());
        let read = |name: String| Peer::read(&name, &self.store.get(&name)?);
        names.filter(|name| !self.hostile.contains(name)).filter_map(read).collect()
    }

    /// The lease of a host's subnet.
    pub fn lease(&self, number: u8) -> Option<Peer> {
        let key = format!("{}-24", self[number].subnet()?);
        Peer::read(&key, &self.store.get(&key)?)
    }

    /// The bytes at the key of a host's subnet.
    pub fn lease_text(&self, number: u8) -> String {
        let key = format!("{}-24", self[number].subnet().expect("it has a subnet"));
        String::from_utf8(self.store.get(&key).expect("its key is there")).expect("text")
    }

    /// How the running hosts differ from what the leases say.
    pub fn differences(&self) -> Vec<String> {
        self.running().flat_map(|host| self.differences_of(host)).collect()
    }

    fn differences_of(&self, host: &Host) -> Vec<String> {
        let number = host.number;
        let Some(own) = self.lease(number) else { return vec![format!("host {number} has no lease")] };
        let (expected, mut found) = (self.expected(host, &own), host.lines());
        found.push(format!("lease {}", self.lease_text(number)));
        let missing = expected.iter().filter(|line| !found.contains(line));
        let surplus = found.iter().filter(|line| !expected.contains(line));
        let missing = missing.map(|line| format!("host {number} lacks: {line}"));
        missing.chain(surplus.map(|line| format!("host {number} has: {line}"))).collect()
    }

    /// The interface by which a host reaches a peer directly.
    fn link_to(&self, host: &Host, peer: &Peer) -> Option<u32> {
        let network = |address: &str| address.rsplit_once('.').map(|(network, _)| network.to_owned());
        let same = |own: &String| network(own) == network(&peer.address);
        let on_link = host.nic.prefix == 24 && host.nic.second.iter().chain([&host.nic.address]).any(same);
        (self.direct && on_link).then_some(host.nic.index)
    }

    fn expected(&self, host: &Host, own: &Peer) -> Vec<String> {
        let (nic, mac, first) = (&host.nic, &own.mac, &own.first);
        let (mtu, gateway) = (nic.mtu - 50, first.strip_suffix('0').unwrap_or_default().to_owned() + "1");
        let published = Peer { address: nic.address.clone(), ..own.clone() }.json();
        let mut lines = vec![
            format!("lease {published}"),
            format!("device {mac} mtu {mtu} up local {} lower {} port 8472 vni 1", nic.address, nic.index),
            format!("address {first}/32"),
            format!(
                "file FLANNEL_NETWORK=10.5.0.0/16 FLANNEL_SUBNET={gateway}/24 FLANNEL_MTU={mtu} FLANNEL_IPMASQ=false"
            ),
            format!("file DOCKER_OPTS=\" --bip={gateway}/24 --ip-masq=true --mtu={mtu}\""),
        ];
        // Whoever has our address cannot be reached by it.
        let others = self.peers().into_iter().filter(|peer| peer.first != own.first && peer.address != nic.address);
        lines.extend(others.flat_map(|peer| peer.lines(self.link_to(host, &peer))));
        lines
    }
}

impl Host {
    /// First address of the subnet that `subnet.env` names.
    pub fn subnet(&self) -> Option<String> {
        let text = self.env_file("subnet.env");
        let subnet = text.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))?;
        Some(subnet.strip_suffix("1/24")?.to_owned() + "0")
    }

    /// What the host holds, as lines in the manner of `ip`.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = kernel_lines(&self.kernel.have(DEVICE));
        let env = self.env_file("subnet.env");
        lines.push(format!("file {}", env.lines().collect::<Vec<_>>().join(" ")));
        let docker = self.env_file("docker_opts.env");
        lines.push(format!("file {}", docker.lines().last().unwrap_or_default()));
        lines
    }
}

/// What the kernel holds, as lines in the manner of `ip`.
pub fn kernel_lines(have: &Have) -> Vec<String> {
    let mut lines: Vec<String> = have.device.iter().map(device_line).collect();
    lines.extend(have.addresses.keys().map(|address| format!("address {address}")));
    for (ip, neighbor) in &have.neighbors {
        let mac = neighbor.mac.map_or("?".into(), |mac| mac.to_string());
        let state = if neighbor.permanent { "permanent" } else { "learned" };
        lines.push(format!("neighbor {ip} lladdr {mac} {state}"));
    }
    for (mac, destinations) in &have.fdb {
        lines.extend(destinations.iter().map(|dst| format!("fdb {mac} dst {dst}")));
    }
    lines.extend(have.routes.values().flatten().map(route_line));
    lines
}

fn device_line(found: &ExistingDevice) -> String {
    let ExistingDevice::Known(_, device) = found else { return format!("{found:?}") };
    let Link::Vxlan(vxlan) = &device.link;
    let (mac, state) = (device.mac.expect("a MAC"), if device.up { "up" } else { "down" });
    let local = vxlan.local.map_or("none".into(), |ip| ip.to_string());
    format!(
        "device {} mtu {} {state} local {local} lower {} port {} vni {}",
        mac, device.mtu, vxlan.lower, vxlan.port, vxlan.vni
    )
}

fn route_line(route: &Route) -> String {
    let mut line = format!("route {}", route.dest);
    if let Some(gateway) = route.gateway {
        line += &format!(" via {gateway}");
    }
    line += &match route.oif {
        Oif::Ours => format!(" dev {DEVICE}"),
        other => format!(" by {other:?}"),
    };
    if route.onlink {
        line += " onlink";
    }
    if route.metric != 0 {
        line += &format!(" metric {}", route.metric);
    }
    line
}
