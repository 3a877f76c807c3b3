//! Whole clusters that start in the same moment: each host gets a subnet of its own, however they race for them. The
//! agents run in one process on kernels in memory; etcd is real, and each has its own connections to it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use flanneld::agent::firewall::FirewallSettings;
use flanneld::agent::runtime::Runtime;
use flanneld::agent::settings::{DeviceSettings, FileSettings, LeaseSettings, LeaseTimes};
use flanneld::agent::status::StatusHandle;
use flanneld::agent::{self, Parts, Settings};
use flanneld::firewall::NoFirewall;
use flanneld::model::iface::{DefaultRoute, HostView, IfaceRules, Interface, InterfaceAddress};
use flanneld::store::etcd::EtcdStore;
use flanneld_lab::kernel::FakeKernel;
use ipnet::{IpNet, Ipv4Net};
use tempfile::TempDir;
use tokio::runtime::Builder;
use tokio::task::{JoinHandle, LocalSet};

use crate::lab::{DEVICE, Etcd, PREFIX};

const DAY: Duration = Duration::from_secs(86400);

/// How long a debug build on a busy machine may take for all of it.
const LIMIT: Duration = Duration::from_secs(300);

/// A host: its kernel, its disk, and the agent that runs on it.
struct Agent {
    kernel: FakeKernel,
    status: StatusHandle,
    task: JoinHandle<()>,
    _disk: TempDir,
}

impl Agent {
    /// Starts the agent of host `number` within a `LocalSet`.
    fn start(etcd: &Etcd, number: u32) -> Agent {
        let disk = TempDir::with_prefix("flannel-storm-").expect("a directory");
        let settings = Settings {
            prefix: PREFIX.into(),
            iface: IfaceRules::default(),
            leases: LeaseSettings {
                times: LeaseTimes { ttl: DAY, renew_margin: DAY / 24 },
                peer_hold: DAY,
                release_on_exit: false,
            },
            files: FileSettings {
                subnet_env: disk.path().join("subnet.env"),
                docker_opts: None,
                state_dir: disk.path().join("state"),
            },
            firewall: FirewallSettings::default(),
            device: DeviceSettings::default(),
        };
        let kernel = FakeKernel::new(view(Ipv4Addr::from(0xac10_0000 + number)));
        let runtime = Rc::new(Runtime::of_host(|_| {}));
        let status = StatusHandle::new(runtime.clone());
        let store = Rc::new(EtcdStore::new(vec![etcd.endpoint()], PREFIX).expect("an endpoint"));
        let (kernel_handle, status_handle) = (kernel.clone(), status.clone());
        let parts = Parts { store, kernel, firewall: NoFirewall, settings, runtime, status };
        let running = agent::run(parts);
        let task = tokio::task::spawn_local(async move { match running.await {} });
        Agent { kernel: kernel_handle, status: status_handle, task, _disk: disk }
    }

    fn subnet(&self) -> Option<Ipv4Net> {
        self.status.read().own.subnet
    }

    /// Whether it is ready and reaches this many others.
    fn reaches(&self, count: usize) -> bool {
        assert!(!self.task.is_finished(), "an agent ended");
        self.status.read().started && self.kernel.have(DEVICE).routes.len() == count
    }
}

/// The interfaces of a host with this address.
fn view(address: Ipv4Addr) -> HostView {
    let interface = |index, name: &str, net: String| {
        let net: IpNet = net.parse().expect("an address with its length");
        let scope = if net.addr().is_loopback() { 254 } else { 0 };
        let address = InterfaceAddress { net, scope, permanent: true, deprecated: false, temporary: false };
        Interface {
            index,
            name: name.into(),
            mtu: 1500,
            mac: None,
            up: true,
            controller: None,
            addresses: vec![address],
        }
    };
    HostView {
        interfaces: vec![interface(1, "lo", "127.0.0.1/8".to_owned()), interface(2, "eth0", format!("{address}/16"))],
        default_routes: vec![DefaultRoute { oif: 2, gateway: "172.16.255.254".parse().ok(), metric: 0, is_v6: false }],
        ..HostView::default()
    }
}

/// Starts `count` agents in the same moment on a network with this config, and does the rest while they run.
fn storm(config: &str, count: u32, rest: impl AsyncFnOnce(&Etcd, Vec<Agent>)) {
    let etcd = Etcd::on_loopback();
    etcd.put(&format!("{PREFIX}/config"), config);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let agents = (1..=count).map(|number| Agent::start(&etcd, number)).collect();
        rest(&etcd, agents).await;
    });
}

/// Lets the agents run until something is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until all have subnets of their own, which etcd confirms, and all reach each other.
async fn settle(etcd: &Etcd, agents: &[Agent]) {
    let began = Instant::now();
    until("all have subnets", || agents.iter().all(|agent| agent.subnet().is_some())).await;
    let served = began.elapsed();
    until("all reach all others", || agents.iter().all(|agent| agent.reaches(agents.len() - 1))).await;
    let races = agents.iter().map(|agent| agent.status.read().counters.lost_races);
    let (lost, most) = (races.clone().sum::<u64>(), races.max().unwrap_or(0));
    println!(
        "{} hosts: all served after {served:.1?}, all connected after {:.1?}; {lost} races lost, at most {most} by one",
        agents.len(),
        began.elapsed()
    );
    let subnets: BTreeSet<String> = agents.iter().filter_map(Agent::subnet).map(|net| net.to_string()).collect();
    let registered: BTreeSet<String> = etcd.leases().into_iter().map(|lease| lease.subnet).collect();
    assert_eq!((subnets.len(), registered), (agents.len(), subnets.clone()));
}

#[test]
fn two_hundred_and_fifty_six_hosts_that_start_at_once_are_all_served() {
    let config = r#"{"Network":"10.5.0.0/16","SubnetLen":25,"Backend":{"Type":"vxlan"}}"#;
    storm(config, 256, async |etcd, agents| settle(etcd, &agents).await);
}

#[test]
fn the_last_subnet_is_found_and_who_comes_too_late_waits_for_one_to_be_free() {
    const COUNT: u32 = 60;
    let config =
        r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.60.0","Backend":{"Type":"vxlan"}}"#;
    storm(config, COUNT, async |etcd, mut agents| {
        settle(etcd, &agents).await;
        assert!(agents.iter().any(|agent| agent.status.read().counters.lost_races > 0), "nobody raced");

        let late = Agent::start(etcd, COUNT + 1);
        let reasons = || late.status.read().reasons().join("; ");
        let full = "out of subnets: every /24 from 10.5.1.0 to 10.5.60.0 is taken";
        until("it says that there is none", || reasons() == full).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(reasons() == full && late.subnet().is_none() && !late.task.is_finished());

        let leaving = agents.remove(7);
        leaving.task.abort();
        let freed = leaving.subnet().expect("a subnet");
        etcd.del(&format!("{PREFIX}/subnets/{}", freed.to_string().replace('/', "-")));
        until("the freed one is taken", || late.subnet() == Some(freed)).await;
        agents.push(late);
        settle(etcd, &agents).await;
        assert_eq!(agents.last().map(|late| late.status.read().reasons()), Some(Vec::new()));
    });
}
