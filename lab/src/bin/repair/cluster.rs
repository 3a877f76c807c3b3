//! Networks of peers that exist only as leases in a real etcd, and hosts that join them.

use std::fs::File;
use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use flanneld::backend::Backend;
use flanneld::backend::vxlan::Vxlan;
use flanneld::model::entry::{Oif, Route};
use flanneld::model::kernel_state::Scope;
use flanneld::model::mac::VtepMac;
use flanneld::model::subnet::SubnetKey;
use flanneld::store::etcd::EtcdStore;
use flanneld::store::{Expiry, Leases, Precondition, WriteOutcome};
use futures_util::{StreamExt, stream};
use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, setns};
use tokio::runtime::{Builder, Runtime};

use crate::lab::{DEVICE, Etcd, Host};

/// Hosts get their subnets from 10.224.0.0 upwards, peers have those below.
const CONFIG: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.224.0.0","Backend":{"Type":"vxlan"}}"#;
const LEASE: Duration = Duration::from_secs(24 * 60 * 60);
/// How many leases are written to etcd at the same time.
const IN_FLIGHT: usize = 32;
/// As many /24 as there are between 10.1.0.0 and 10.224.0.0.
pub const MOST_PEERS: u32 = 223 << 8;

/// A host that exists only as a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub subnet: Ipv4Net,
    pub mac: VtepMac,
    pub public_ip: Ipv4Addr,
}

impl Peer {
    /// One of [`MOST_PEERS`].
    pub fn number(n: u32) -> Peer {
        let [_, a, b, c] = (n + 1).to_be_bytes();
        let subnet = Ipv4Addr::from(0x0a01_0000 + (n << 8));
        Peer {
            subnet: Ipv4Net::new_assert(subnet, 24),
            mac: VtepMac([0x0e, 0, 0, a, b, c]),
            public_ip: Ipv4Addr::from(0xac10_0000 + n + 1),
        }
    }

    /// Its own address on the overlay, which is the next hop to its subnet.
    pub fn gateway(&self) -> Ipv4Addr {
        self.subnet.network()
    }

    /// The route to it, as far as that matters for deleting it.
    pub fn route(&self) -> Route {
        let gateway = Some(self.gateway().into());
        Route { dest: self.subnet.into(), gateway, oif: Oif::Ours, onlink: true, metric: 0, protocol: 0 }
    }
}

/// A network with its own prefix in etcd.
pub struct Network {
    pub peers: Vec<Peer>,
    pub prefix: String,
    endpoint: String,
}

impl Network {
    /// The network of `count` peers in `etcd`; it is filled by [`Network::publish`].
    pub fn new(etcd: &Etcd, count: u32) -> Network {
        let prefix = format!("/bench/{count}");
        etcd.put(&format!("{prefix}/config"), CONFIG);
        Network { peers: (0..count).map(Peer::number).collect(), prefix, endpoint: etcd.endpoint() }
    }

    /// Writes the peers' leases, each with an etcd lease of its own, as their daemons would. To be called in a namespace
    /// that reaches etcd.
    pub fn publish(&self) {
        let store = EtcdStore::new(vec![self.endpoint.clone()], &self.prefix).expect("an endpoint");
        let write = async |peer: &Peer| {
            let attrs = Vxlan::default().attrs(peer.public_ip, peer.mac);
            let written =
                store.write(SubnetKey::v4(peer.subnet), &attrs, Precondition::Absent, Expiry::Grant(LEASE)).await;
            assert!(matches!(written, Ok(WriteOutcome::Committed(_))), "{peer:?}: {written:?}");
        };
        runtime().block_on(stream::iter(&self.peers).for_each_concurrent(IN_FLIGHT, write));
    }

    /// Removes the registration of `host`, so that the next host does not find it.
    pub fn forget(&self, etcd: &Etcd, host: &Host) {
        let key = host.subnet().replace('/', "-");
        etcd.del(&format!("{}/subnets/{key}", self.prefix));
    }

    /// The scope of flanneld in a host of this network.
    pub fn scope(&self) -> Scope {
        let network: Ipv4Net = "10.0.0.0/8".parse().expect("a network");
        Scope { device: DEVICE.to_owned(), networks: [network.into()].into_iter().collect(), nic: 0 }
    }

    /// Flags that every flanneld knows.
    pub fn flags(&self, host: &Host) -> Vec<String> {
        vec![
            format!("--etcd-endpoints={}", self.endpoint),
            format!("--etcd-prefix={}", self.prefix),
            "--iface=eth0".to_owned(),
            format!("--subnet-file={}", host.path("subnet.env").display()),
            "--iptables-forward-rules=false".to_owned(),
        ]
    }

    /// Flags that keep the files of our flanneld in the directory of its host.
    pub fn own_flags(&self, host: &Host) -> Vec<String> {
        let path = |name: &str| host.path(name).display().to_string();
        let own = [format!("--docker-opts-file={}", path("docker_opts.env")), format!("--state-dir={}", path("state"))];
        [self.flags(host), own.to_vec()].concat()
    }
}

/// Runs `work` on a thread in the namespace of `host`.
pub fn inside<T: Send>(host: &mut Host, work: impl FnOnce(&mut Host) -> T + Send) -> T {
    let name = host.run(&["ip", "netns", "identify"]).expect("the name of the namespace");
    let namespace = File::open(format!("/run/netns/{}", name.trim())).expect("the namespace");
    let result = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
            work(host)
        });
        thread.join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}
