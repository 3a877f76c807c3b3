//! Two hosts on one link with a container each, connected by our daemon, by hand, or not at all.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use crate::lab::{Container, DEVICE, Etcd, Host, Lab, PREFIX, containers_on, eventually};

/// The setup of the NICs of both hosts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nic {
    /// Largest packet; 0 leaves it at 1500.
    pub mtu: u32,
    /// Whether the NICs have no offloads, so that packets on the link are no larger than the MTU.
    pub wire: bool,
}

pub struct Pair {
    hosts: Vec<Host>,
    containers: Vec<Container>,
    _etcd: Option<Etcd>,
    _lab: Lab,
}

/// Where a flow begins or ends.
pub enum End<'p> {
    Container(&'p Container),
    Host(&'p Host),
}

impl End<'_> {
    pub fn command(&self, program: &str) -> Command {
        match self {
            End::Container(container) => container.command(program),
            End::Host(host) => host.command(program),
        }
    }

    pub fn address(&self) -> Ipv4Addr {
        match self {
            End::Container(container) => container.address(),
            End::Host(host) => host.public_ip().parse().expect("an address"),
        }
    }
}

impl Pair {
    /// Wired by our daemon, with these members of `Backend` in the network config and these flags.
    pub fn by_daemon(nic: Nic, backend: &str, flags: &[&str]) -> Pair {
        let lab = Lab::new("daemon");
        let etcd = lab.etcd();
        let config = format!(r#"{{"Network":"172.30.0.0/16","Backend":{{"Type":"vxlan"{backend}}}}}"#);
        etcd.put(&format!("{PREFIX}/config"), &config);
        let mut hosts = prepared(&lab, nic);
        hosts.iter_mut().for_each(|host| host.start(flags));
        hosts.iter().for_each(Host::wait_ready);
        let containers = containers_on(&mut hosts);
        let pair = Pair { hosts, containers, _etcd: Some(etcd), _lab: lab };
        pair.wait_for_traffic();
        pair
    }

    /// Wired by a person, with these options of the device.
    pub fn by_hand(nic: Nic, options: &str) -> Pair {
        let lab = Lab::new("hand");
        let mut hosts = prepared(&lab, nic);
        let mtu = if nic.mtu == 0 { 1450 } else { nic.mtu - 50 };
        for (own, other, host) in [(1, 2, &hosts[0]), (2, 1, &hosts[1])] {
            host.sh(&format!(
                "ip link add {DEVICE} address 0e:00:00:00:00:0{own} mtu {mtu} txqueuelen 0 type vxlan id 1 dstport 8472 \
                 nolearning local 172.31.0.{own} dev eth0 {options}
                 ip addr add 172.30.{own}.0/32 dev {DEVICE}
                 ip link set {DEVICE} up
                 ip route add 172.30.{other}.0/24 via 172.30.{other}.0 dev {DEVICE} onlink
                 ip neigh add 172.30.{other}.0 lladdr 0e:00:00:00:00:0{other} dev {DEVICE} nud permanent
                 bridge fdb add 0e:00:00:00:00:0{other} dev {DEVICE} dst 172.31.0.{other} self permanent"
            ));
            let env = format!("FLANNEL_SUBNET=172.30.{own}.1/24\nFLANNEL_MTU={mtu}\n");
            fs::write(host.path("subnet.env"), env).expect("what a container is made from");
        }
        let containers = containers_on(&mut hosts);
        let pair = Pair { hosts, containers, _etcd: None, _lab: lab };
        pair.wait_for_traffic();
        pair
    }

    /// Runs a command on both hosts.
    pub fn on_both(self, script: &str) -> Pair {
        self.hosts.iter().for_each(|host| drop(host.sh(script)));
        self
    }

    /// From container to container.
    pub fn containers(&self) -> [End<'_>; 2] {
        [End::Container(&self.containers[0]), End::Container(&self.containers[1])]
    }

    /// From host to host, by the link itself.
    pub fn hosts(&self) -> [End<'_>; 2] {
        [End::Host(&self.hosts[0]), End::Host(&self.hosts[1])]
    }

    fn wait_for_traffic(&self) {
        let (one, other) = (&self.containers[0], &self.containers[1]);
        eventually("containers reach each other", || one.ping(other.address(), 1).is_ok());
    }
}

fn prepared(lab: &Lab, nic: Nic) -> Vec<Host> {
    let hosts = lab.hosts(2);
    for host in &hosts {
        if nic.mtu != 0 {
            lab.set_underlay_mtu(nic.mtu);
            host.ip(&format!("link set eth0 mtu {}", nic.mtu));
        }
        if nic.wire {
            host.sh("ethtool -K eth0 tso off gso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off \
                 tx-udp-segmentation off gro on");
        }
    }
    hosts
}
