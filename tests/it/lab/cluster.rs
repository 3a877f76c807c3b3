//! An etcd of three members, each at an address of its own on the underlay, so that any of them can be cut off.

use std::fs;
use std::net::Ipv4Addr;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use serde_json::Value;

use super::etcd::Etcd;
use super::netns::Netns;
use super::wait::eventually;
use super::{Host, Underlay};

/// Members 0 to 2, at 172.31.0.251 to 172.31.0.253.
pub struct Cluster {
    members: Vec<Etcd>,
    underlay: Arc<Underlay>,
}

impl Cluster {
    pub(super) fn start(underlay: Arc<Underlay>) -> Cluster {
        let mut members: Vec<Etcd> = (0..3).map(|index| place(&underlay, index)).collect();
        let names: Vec<String> = members.iter().map(Etcd::named_peer_url).collect();
        members.iter_mut().for_each(|member| {
            member.set_cluster(&names.join(","));
            member.spawn(&[]);
        });
        assert!(members.iter_mut().all(Etcd::becomes_healthy), "an etcd of three members did not become healthy");
        Cluster { members, underlay }
    }

    /// The daemon's flag that names all members.
    pub fn flag(&self) -> String {
        let endpoints: Vec<String> = self.members.iter().map(Etcd::endpoint).collect();
        format!("--etcd-endpoints={}", endpoints.join(","))
    }

    /// Whether the members agree on a leader; which one it is.
    fn leader(&self) -> Option<usize> {
        let id = |index: usize, field: &str| self.status(index)["Status"][field].as_u64().filter(|id| *id != 0);
        let leader = id(0, "leader")?;
        let member = |index: usize| self.status(index)["Status"]["header"]["member_id"].as_u64();
        (0..3).find(|&index| member(index) == Some(leader))
    }

    fn status(&self, index: usize) -> Value {
        let answer = self.members[index].ctl(&["endpoint", "status", "-w", "json"]);
        serde_json::from_str::<Value>(&answer).expect("JSON")[0].take()
    }

    /// Makes a member the leader; all must run.
    pub fn lead(&self, index: usize) {
        let wanted = self.status(index)["Status"]["header"]["member_id"].as_u64().expect("an id");
        eventually("the member leads", || {
            let leader = self.leader();
            if let Some(leader) = leader.filter(|leader| *leader != index) {
                self.members[leader].ctl(&["move-leader", &format!("{wanted:x}")]);
            }
            leader == Some(index)
        });
    }

    /// The member that the daemon on `host` follows just now.
    pub fn followed_by(&self, host: &Host) -> usize {
        let mut found = None;
        eventually("the daemon has one member", || {
            let connections = host.sh("ss -Htn state established dport = :2379");
            let talks_to = |index: usize| connections.contains(&format!("{}:2379", address(index)));
            let members: Vec<usize> = (0..3).filter(|&index| talks_to(index)).collect();
            found = (members.len() == 1).then(|| members[0]);
            found.is_some()
        });
        found.expect("it was found")
    }

    /// From now on nothing that is sent to a member or by it arrives, and nobody is told so.
    pub fn cut_off(&self, index: usize) {
        let (table, port) = (format!("cut{index}"), port(index));
        let rules = format!(
            "table bridge {table} {{\nchain forward {{\ntype filter hook forward priority 0;\n\
             ether type ip iifname {port} drop\nether type ip oifname {port} drop\n}}\n}}"
        );
        self.underlay.netns.run(&["nft", &rules]).expect("nft");
    }

    /// After [`Cluster::cut_off`]: the member is back.
    pub fn connect(&self, index: usize) {
        self.underlay.netns.run(&["nft", "delete", "table", "bridge", &format!("cut{index}")]).expect("nft");
    }

    /// Pulls a member's cable out, as when its machine dies: it does not even answer ARP.
    pub fn unplug(&self, index: usize) {
        self.underlay.netns.ip(&format!("link set {} down", port(index)));
    }

    /// After [`Cluster::unplug`]: the member is back.
    pub fn plug_in(&self, index: usize) {
        self.underlay.netns.ip(&format!("link set {} up", port(index)));
    }

    /// Removes a member, which must not run, from the cluster, and adds it again without any of its data.
    pub fn replace(&mut self, index: usize) {
        let (id, other) = (self.member_id(index), (index + 1) % 3);
        self.members[other].ctl(&["member", "remove", &format!("{id:x}")]);
        let (name, url) = (format!("m{index}"), self.members[index].peer_url());
        eventually("a new member is let in", || {
            self.members[other].try_ctl(&["member", "add", &name, &format!("--peer-urls={url}")]).is_ok()
        });
        let member = &mut self.members[index];
        fs::remove_dir_all(member.data()).expect("its data");
        member.spawn(&["--initial-cluster-state", "existing"]);
        assert!(member.becomes_healthy(), "a member that was added again did not become healthy");
    }

    fn member_id(&self, index: usize) -> u64 {
        let answer = self.members[(index + 1) % 3].ctl(&["member", "list", "-w", "json"]);
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let members = answer["members"].as_array().expect("members");
        let found = members.iter().find(|member| member["name"] == format!("m{index}"));
        found.and_then(|member| member["ID"].as_u64()).expect("the member's id")
    }
}

impl Index<usize> for Cluster {
    type Output = Etcd;

    fn index(&self, index: usize) -> &Etcd {
        &self.members[index]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, index: usize) -> &mut Etcd {
        &mut self.members[index]
    }
}

/// A member's namespace, connected to the underlay.
fn place(underlay: &Arc<Underlay>, index: usize) -> Etcd {
    let (netns, port, address) = (Netns::create(format!("{}-e{index}", underlay.prefix)), port(index), address(index));
    netns.ip(&format!("link add eth0 type veth peer name {port} netns {}", underlay.netns.name()));
    underlay.netns.ip(&format!("link set {port} master br0 up"));
    netns.ip("link set eth0 up");
    netns.ip(&format!("addr add {address}/24 dev eth0"));
    Etcd::member(format!("m{index}"), address, netns, underlay.clone())
}

fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 31, 0, 251 + u8::try_from(index).expect("one of three"))
}

/// Its end of the cable at the underlay's bridge.
fn port(index: usize) -> String {
    format!("etcd{index}")
}
