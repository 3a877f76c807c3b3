//! Everything about a host's network that could change, to tell that all is as it was.

use std::collections::BTreeSet;

use serde_json::Value;

use super::DEVICE;
use super::netns::Netns;
use super::tables::Device;

/// What `ip` and `bridge` show: the VXLAN device with all it holds, and the addresses, routes and rules of everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub device: Option<Device>,
    entries: BTreeSet<String>,
}

impl State {
    pub(super) fn of(netns: &Netns) -> State {
        let mut entries = BTreeSet::new();
        for args in ["-4 route show table all", "-4 rule show", &format!("-4 neigh show dev {DEVICE}")] {
            add(&mut entries, netns.ip_json(args), |entry| entry);
        }
        add(&mut entries, netns.bridge_json(&format!("fdb show dev {DEVICE}")), |entry| entry);
        add(
            &mut entries,
            netns.ip_json("-4 addr show"),
            |link| serde_json::json!({ "ifname": link["ifname"], "addr_info": link["addr_info"] }),
        );
        let device = netns.ip_json(&format!("-d addr show dev {DEVICE}"));
        State { device: device.get(0).map(Device::parse), entries }
    }

    pub fn same_but_index(&self, other: &State) -> bool {
        let no_index = |device: &Option<Device>| device.clone().map(|device| Device { ifindex: 0, ..device });
        self.entries == other.entries && no_index(&self.device) == no_index(&other.device)
    }

    /// For the reader of a failed test: what is here and not there, and the other way round.
    pub fn unlike(&self, before: &State) -> String {
        let only = |these: &State, those: &State| {
            let lines: Vec<&str> = these.entries.difference(&those.entries).map(String::as_str).collect();
            lines.join("\n  ")
        };
        let (new, gone) = (only(self, before), only(before, self));
        format!("\nnew:\n  {new}\ngone:\n  {gone}\ndevice {:?}\n  was {:?}", self.device, before.device)
    }
}

/// One line an entry. Some versions of `ip` print an empty object for what a filter left out.
fn add(entries: &mut BTreeSet<String>, list: Value, part: impl Fn(Value) -> Value) {
    let list = list.as_array().cloned().unwrap_or_default();
    entries.extend(list.into_iter().filter(|entry| *entry != serde_json::json!({})).map(|e| part(e).to_string()));
}
