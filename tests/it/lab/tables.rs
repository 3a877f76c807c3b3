//! What the kernel of a host holds, as far as an overlay is concerned.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use super::overlay::Lease;

/// The three entries of every peer, for all peers at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    pub routes: BTreeSet<Route>,
    pub neighbors: BTreeSet<Neighbor>,
    pub fdb: BTreeSet<FdbEntry>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub to: String,
    pub via: Option<String>,
    pub onlink: bool,
    pub metric: u64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbor {
    pub ip: String,
    pub mac: String,
    pub state: String,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    pub mac: String,
    pub dst: Option<String>,
    pub flags: String,
    pub state: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub ifindex: u64,
    pub mac: String,
    pub mtu: u64,
    pub up: bool,
    /// IPv4 only, as `172.30.46.0/32`.
    pub addresses: Vec<String>,
    pub vxlan: Option<Vxlan>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    pub id: u64,
    pub local: String,
    pub link: String,
    pub port: u64,
    pub learning: bool,
    pub ageing: u64,
    pub ttl: u64,
}

impl Tables {
    /// What a host should hold for these peers, and nothing else.
    pub fn to<'a>(peers: impl IntoIterator<Item = &'a Lease>) -> Tables {
        let mut tables = Tables::default();
        for peer in peers {
            let gateway = peer.gateway().to_owned();
            tables.routes.insert(Route {
                to: peer.subnet.clone(),
                via: Some(gateway.clone()),
                onlink: true,
                metric: 0,
            });
            tables.neighbors.insert(Neighbor { ip: gateway, mac: peer.mac.clone(), state: "PERMANENT".into() });
            tables.fdb.insert(FdbEntry {
                mac: peer.mac.clone(),
                dst: Some(peer.public_ip.clone()),
                flags: "self".into(),
                state: "permanent".into(),
            });
        }
        tables
    }
}

impl Route {
    pub(super) fn list(json: &Value) -> BTreeSet<Route> {
        let route = |entry: &Value| Route {
            to: text(&entry["dst"]),
            via: entry["gateway"].as_str().map(str::to_owned),
            onlink: words(&entry["flags"]).contains("onlink"),
            metric: entry["metric"].as_u64().unwrap_or(0),
        };
        list(json, "dst", route)
    }
}

impl Neighbor {
    pub(super) fn list(json: &Value) -> BTreeSet<Neighbor> {
        let neighbor = |entry: &Value| Neighbor {
            ip: text(&entry["dst"]),
            mac: text(&entry["lladdr"]),
            state: words(&entry["state"]),
        };
        list(json, "dst", neighbor)
    }
}

impl FdbEntry {
    pub(super) fn list(json: &Value) -> BTreeSet<FdbEntry> {
        let entry = |entry: &Value| FdbEntry {
            mac: text(&entry["mac"]),
            dst: entry["dst"].as_str().map(str::to_owned),
            flags: words(&entry["flags"]),
            state: text(&entry["state"]),
        };
        list(json, "mac", entry)
    }
}

impl Device {
    /// From `ip -j -d addr show`.
    pub(super) fn parse(json: &Value) -> Device {
        let addresses = json["addr_info"].as_array().into_iter().flatten();
        let addresses = addresses.filter(|address| address["family"] == "inet");
        let info = &json["linkinfo"];
        Device {
            ifindex: number(&json["ifindex"]),
            mac: text(&json["address"]),
            mtu: number(&json["mtu"]),
            up: words(&json["flags"]).split(' ').any(|flag| flag == "UP"),
            addresses: addresses.map(|a| format!("{}/{}", text(&a["local"]), a["prefixlen"])).collect(),
            vxlan: (info["info_kind"] == "vxlan").then(|| Vxlan::parse(&info["info_data"])),
        }
    }
}

impl Vxlan {
    fn parse(json: &Value) -> Vxlan {
        Vxlan {
            id: number(&json["id"]),
            local: text(&json["local"]),
            link: text(&json["link"]),
            port: number(&json["port"]),
            learning: json["learning"].as_bool().unwrap_or(true),
            ageing: number(&json["ageing"]),
            ttl: number(&json["ttl"]),
        }
    }
}

// One line each, much as `ip` and `bridge` print them: a failed test may show many.

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Route { to, via, onlink, metric } = self;
        let via = via.as_deref().unwrap_or("-");
        write!(f, "{to} via {via}{} metric {metric}", if *onlink { " onlink" } else { "" })
    }
}

impl fmt::Debug for Neighbor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lladdr {} {}", self.ip, self.mac, self.state)
    }
}

impl fmt::Debug for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dst = self.dst.as_deref().unwrap_or("-");
        write!(f, "{} dst {dst} {} {}", self.mac, self.flags, self.state)
    }
}

/// Some versions of `ip` print an empty object for what a filter left out.
fn list<T: Ord>(json: &Value, key: &str, parse: impl Fn(&Value) -> T) -> BTreeSet<T> {
    let entries = json.as_array().into_iter().flatten();
    entries.filter(|entry| entry.get(key).is_some()).map(parse).collect()
}

fn words(json: &Value) -> String {
    let words: Vec<&str> = json.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    words.join(" ")
}

fn text(json: &Value) -> String {
    json.as_str().unwrap_or_default().to_owned()
}

fn number(json: &Value) -> u64 {
    json.as_u64().unwrap_or_default()
}
