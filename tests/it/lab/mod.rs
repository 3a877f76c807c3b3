//! A cluster on one machine: an underlay network, an etcd, and hosts, each in a network namespace of its own.
//!
//! ```text
//!   container ── docker0 ┐                                ┌ docker0 ── container
//!                   host 1 (flanneld)              host 2 (flanneld)
//!                  eth0 172.31.0.1                eth0 172.31.0.2
//!                        └────────── br0 ───────────┘
//!                       underlay 172.31.0.254: etcd, the hosts' default gateway
//!                       or 172.31.0.251 to .253: etcd's three members
//! ```
//!
//! Every value cleans up after itself when it is dropped, also when a test panics; the logs are printed then. Names carry
//! the process id and a counter, so tests run side by side. Nothing touches the network of the machine itself.

mod cluster;
mod container;
mod cost;
mod disk;
pub mod docker;
mod etcd;
mod forwarder;
mod host;
mod monitor;
pub mod netns;
mod notify;
mod overlay;
pub mod process;
pub mod program;
mod server;
mod state;
mod tables;
mod tools;
pub mod wait;

pub use cluster::Cluster;
pub use container::Container;
pub use cost::Calls;
pub use disk::Disk;
pub use docker::Docker;
pub use etcd::Etcd;
pub use forwarder::Forwarder;
pub use host::{FLANNELD, Host};
pub use overlay::{CONFIG, DEVICE, Lease, NETWORK, PREFIX, WIDE_CONFIG};
pub use server::{Answer, Server};
pub use state::State;
pub use tables::{Device, Tables, Vxlan};
pub use tools::Tools;
pub use wait::{eventually, eventually_eq, patience, wait_until};

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::{env, fs, process as std_process};

use netns::Netns;
use tempfile::TempDir;

/// One isolated network, empty but for its bridge.
pub struct Lab {
    underlay: Arc<Underlay>,
}

/// What everything in a lab stands on; it goes when the last of them has gone.
struct Underlay {
    prefix: String,
    netns: Netns,
    dir: TempDir,
}

impl Lab {
    /// Panics with a list of what the machine lacks, if it lacks anything.
    pub fn new(name: &str) -> Lab {
        require();
        sweep_once();
        let prefix = unique_prefix();
        let dir =
            tempfile::Builder::new().prefix(&format!("{prefix}-{name}-")).tempdir().expect("a temporary directory");
        let netns = Netns::create(format!("{prefix}-u"));
        // With a hardware address of its own, which does not change when hosts come and go.
        netns.ip("link add br0 address 02:00:00:00:fe:00 type bridge");
        netns.ip("addr add 172.31.0.254/24 dev br0");
        netns.ip("link set br0 up");
        Lab { underlay: Arc::new(Underlay { prefix, netns, dir }) }
    }

    /// Of the names of all that the lab makes.
    pub fn prefix(&self) -> &str {
        &self.underlay.prefix
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.underlay.dir.path()
    }

    /// A real etcd on the underlay's own address; one for each lab.
    pub fn etcd(&self) -> Etcd {
        self.etcd_with(&[])
    }

    /// One with more options.
    pub fn etcd_with(&self, options: &[String]) -> Etcd {
        Etcd::on_underlay(self.underlay.clone(), options.to_vec())
    }

    /// `ip ARGS` on the underlay, whose bridge is br0. The port of host N is pN.
    #[allow(dead_code, reason = "the tests of other kernels use it")]
    pub fn underlay_ip(&self, args: &str) {
        self.underlay.netns.ip(args);
    }

    /// A command that will run on the underlay.
    #[allow(dead_code, reason = "the tests of other kernels use it")]
    pub fn underlay_command(&self, program: &str) -> std_process::Command {
        self.underlay.netns.command(program)
    }

    /// Something that passes connections to 172.31.0.`last`, port 2379, on to [`Lab::etcd`].
    pub fn forwarder(&self, last: u8) -> Forwarder {
        Forwarder::start(self.underlay.clone(), last)
    }

    /// An etcd that already holds the usual network config.
    pub fn etcd_with_config(&self) -> Etcd {
        let etcd = self.etcd();
        etcd.put(&format!("{PREFIX}/config"), CONFIG);
        etcd
    }

    /// A real etcd of three members, each in a namespace of its own; it holds the usual network config.
    pub fn etcd_cluster(&self) -> Cluster {
        let cluster = Cluster::start(self.underlay.clone());
        cluster[0].put(&format!("{PREFIX}/config"), CONFIG);
        cluster
    }

    /// A web server on the underlay, outside of the overlay.
    pub fn serve(&self, name: &str) -> Server {
        Server::start(&self.underlay.netns, name)
    }

    /// Asks a server, from outside of the overlay.
    pub fn ask(&self, address: &str) -> Result<Answer, String> {
        server::ask(&self.underlay.netns, address)
    }

    /// Largest packet, in bytes, that the underlay carries between hosts that are plugged in.
    #[allow(dead_code, reason = "a bench uses it")]
    pub fn set_underlay_mtu(&self, mtu: u32) {
        let ports = self.underlay.netns.ip_json("link show");
        let names = ports.as_array().into_iter().flatten().filter_map(|port| port["ifname"].as_str());
        for port in names.filter(|name| *name != "lo") {
            self.underlay.netns.ip(&format!("link set {port} mtu {mtu}"));
        }
    }

    /// Packets from outside to the overlay go to this host.
    pub fn route_overlay_to(&self, host: &Host) {
        self.underlay.netns.ip(&format!("route replace {NETWORK} via {}", host.public_ip()));
    }

    /// Host number `index`: its address is 172.31.0.`index`.
    pub fn host(&self, index: u8) -> Host {
        Host::create(self.underlay.clone(), 0, index)
    }

    /// A host on another link, behind a router that both have: its address is 172.31.1.`index`.
    pub fn host_behind_router(&self, index: u8) -> Host {
        let router = &self.underlay.netns;
        router.enter(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("ip_forward");
        for args in [
            "link add br1 address 02:00:00:00:fe:01 type bridge",
            "addr add 172.31.1.254/24 dev br1",
            "link set br1 up",
        ] {
            router.ip(args);
        }
        Host::create(self.underlay.clone(), 1, index)
    }

    pub fn hosts(&self, count: u8) -> Vec<Host> {
        (1..=count).map(|index| self.host(index)).collect()
    }

    /// Hosts whose daemons were started at the same moment and are ready.
    pub fn joined(&self, count: u8) -> Vec<Host> {
        let mut hosts = self.hosts(count);
        start_all(&mut hosts);
        hosts.iter().for_each(|host| host.wait_ready());
        hosts
    }
}

pub fn start_all(hosts: &mut [Host]) {
    hosts.iter_mut().for_each(|host| host.start(&[]));
}

/// A container on each host.
pub fn containers_on(hosts: &mut [Host]) -> Vec<Container> {
    hosts.iter_mut().map(|host| host.attach_container("c1")).collect()
}

const TOOLS: [&str; 17] = [
    "ip",
    "bridge",
    "ethtool",
    "ss",
    "nsenter",
    "nft",
    "ping",
    "etcd",
    "etcdctl",
    "strace",
    "iptables",
    "busybox",
    "mkfs.ext4",
    "fsfreeze",
    "dockerd",
    "systemd-nspawn",
    docker::DOCKER,
];

fn require() {
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = |tool: &&str| env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    let mut missing: Vec<&str> = TOOLS.into_iter().filter(|tool| !installed(tool)).collect();
    if fs::metadata("/proc/self").is_ok_and(|me| me.uid() != 0) {
        missing.insert(0, "root");
    }
    assert!(
        missing.is_empty(),
        "these tests build network namespaces and run a real etcd, but this is missing: {}. Run them as root; `make \
         setup` installs the tools.",
        missing.join(", ")
    );
}

fn unique_prefix() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(1);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("fl{}-{number}", std_process::id())
}

/// Removes the namespaces and directories of earlier runs that were killed before they could do so themselves.
fn sweep_once() {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| {
        let temporary = env::temp_dir();
        for name in names_in(Path::new("/run/netns")).into_iter().filter(|name| is_orphan(name)) {
            netns::delete(&name);
        }
        docker::remove_cgroups(is_orphan);
        for name in names_in(&temporary).into_iter().filter(|name| is_orphan(name)) {
            let _ = fs::remove_dir_all(temporary.join(name));
        }
    });
}

/// What a directory holds.
pub fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Whether `name` starts as [`unique_prefix`] makes it, for a process that is no more.
fn is_orphan(name: &str) -> bool {
    let pid = name.strip_prefix("fl").and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid);
    pid.and_then(|pid| pid.parse::<u32>().ok()).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}
