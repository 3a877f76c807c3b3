//! One host: its kernel, its files, its way to the store, and the daemon while it runs.

use super::{DEVICE, RENEW_MARGIN, TTL, millis};
use flanneld::agent::firewall::FirewallSettings;
use flanneld::agent::runtime::{Notice, Runtime};
use flanneld::agent::settings::{DeviceSettings, FileSettings, LeaseSettings, LeaseTimes};
use flanneld::agent::status::StatusHandle;
use flanneld::agent::{self, Parts, Settings};
use flanneld::firewall::NoFirewall;
use flanneld::kernel::Event;
use flanneld::model::entry::Oif;
use flanneld::model::iface::{DefaultRoute, HostView, IfaceRules, Interface, InterfaceAddress};
use flanneld::model::links::{LinkRoute, Links};
use flanneld_lab::kernel::FakeKernel;
use flanneld_lab::store::MemoryStore;
use ipnet::{IpNet, Ipv4Net};
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::Instant;

/// The external interface, as the host should know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Interface index.
    pub index: u32,
    /// Its address.
    pub address: String,
    /// Largest packet.
    pub mtu: u32,
    /// The last byte of its hardware address.
    pub mac: u8,
    /// Whether it is there at all.
    pub present: bool,
    /// A second address, which the kernel lists first.
    pub second: Option<String>,
    /// Length of the network that its addresses are in: with 32 nobody else is on the link.
    pub prefix: u8,
}

/// How a daemon is made from its store, its kernel, and what else it needs.
pub type Launch =
    fn(MemoryStore, FakeKernel, Settings, Rc<Runtime>, StatusHandle) -> Pin<Box<dyn Future<Output = Infallible>>>;

/// One host.
pub struct Host {
    /// It has this number, and the address 192.168.0.`number`.
    pub number: u8,
    /// Its kernel.
    pub kernel: FakeKernel,
    /// Its own way to the store.
    pub store: MemoryStore,
    /// What its daemon is started with.
    pub settings: Settings,
    /// The external interface as it is now.
    pub nic: Nic,
    /// What is started as its daemon.
    pub launch: Launch,
    disk: TempDir,
    starts: u64,
    daemon: Option<Daemon>,
    slept: Rc<Cell<Duration>>,
}

struct Daemon {
    task: JoinHandle<Infallible>,
    status: StatusHandle,
    heard: Rc<RefCell<Vec<Notice>>>,
    /// When it last told that it is alive.
    alive_at: Rc<Cell<Option<Instant>>>,
    gate: Rc<Gate>,
}

/// Whether a daemon is frozen, and how to wake it.
#[derive(Default)]
struct Gate {
    frozen: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    polls: Cell<u64>,
}

/// No daemon has to be polled so often in one moment: one that is would never let the time go on.
const SPINS: u32 = 5000;

/// A daemon that does nothing while its gate is shut.
struct Gated {
    gate: Rc<Gate>,
    /// How often it was polled at what moment.
    polls: (Instant, u32),
    daemon: Pin<Box<dyn Future<Output = Infallible>>>,
}

impl Future for Gated {
    type Output = Infallible;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Infallible> {
        if self.gate.frozen.get() {
            self.gate.waker.replace(Some(context.waker().clone()));
            return Poll::Pending;
        }
        self.gate.polls.set(self.gate.polls.get() + 1);
        let now = Instant::now();
        self.polls = if self.polls.0 == now { (now, self.polls.1 + 1) } else { (now, 0) };
        assert!(self.polls.1 < SPINS, "the daemon spins");
        self.daemon.as_mut().poll(context)
    }
}

impl Host {
    /// A host that is switched off.
    pub fn new(number: u8, store: MemoryStore) -> Self {
        store.set_latency(millis(2));
        // In memory where that can be: the daemon waits for the disk after each write.
        let fast = Some(Path::new("/dev/shm")).filter(|path| path.is_dir());
        let disk = fast.map_or_else(tempfile::tempdir, tempfile::tempdir_in).expect("a temporary directory");
        let nic = Nic {
            index: 2,
            address: format!("192.168.0.{number}"),
            mtu: 1500,
            mac: number,
            present: true,
            second: None,
            prefix: 24,
        };
        let settings = Settings {
            prefix: "/coreos.com/network".into(),
            iface: IfaceRules::default(),
            leases: LeaseSettings {
                times: LeaseTimes { ttl: TTL, renew_margin: RENEW_MARGIN },
                peer_hold: TTL,
                release_on_exit: false,
            },
            files: FileSettings {
                subnet_env: disk.path().join("run/subnet.env"),
                docker_opts: Some(disk.path().join("run/docker_opts.env")),
                state_dir: disk.path().join("state"),
            },
            firewall: FirewallSettings::default(),
            device: DeviceSettings::default(),
        };
        let (kernel, slept) = (FakeKernel::default(), Rc::default());
        let launch: Launch = |store, kernel, settings, runtime, status| {
            Box::pin(agent::run(Parts {
                store: Rc::new(store),
                kernel,
                firewall: NoFirewall,
                settings,
                runtime,
                status,
            }))
        };
        let host = Host { number, kernel, store, settings, nic, launch, disk, starts: 0, daemon: None, slept };
        host.kernel.change_host(|view| *view = host.view());
        host
    }

    pub(super) fn start(&mut self, tasks: &LocalSet, began: Instant, seed: u64) {
        assert!(!self.runs(), "the daemon runs already");
        self.starts += 1;
        let heard: Rc<RefCell<Vec<Notice>>> = Rc::default();
        let alive_at: Rc<Cell<Option<Instant>>> = Rc::default();
        let (ear, pulse, slept) = (heard.clone(), alive_at.clone(), self.slept.clone());
        let hear = move |notice| match notice {
            Notice::Alive => pulse.set(Some(Instant::now())),
            notice => ear.borrow_mut().push(notice),
        };
        let seed = seed.wrapping_mul(1_000_003) + u64::from(self.number) * 1009 + self.starts;
        let env = Rc::new(Runtime::new(move || began.elapsed() + slept.get(), seed, hear));
        let status = StatusHandle::new(env.clone());
        let (store, kernel, gate) = (self.store.clone(), self.kernel.clone(), Rc::<Gate>::default());
        let daemon = (self.launch)(store, kernel, self.settings.clone(), env, status.clone());
        let task = tasks.spawn_local(Gated { gate: gate.clone(), polls: (began, 0), daemon });
        self.daemon = Some(Daemon { task, status, heard, alive_at, gate });
    }

    pub(super) fn stop(&mut self) {
        self.daemon.take().expect("the daemon runs").task.abort();
    }

    /// Switches the host off: the daemon, the kernel's state and what is under /run are gone, the disk stays.
    pub fn lose_power(&mut self) {
        if self.runs() {
            self.stop();
        }
        self.kernel.lose_device(DEVICE);
        self.lose_env_files();
        self.kernel.take_log();
    }

    /// Removes what is under /run.
    pub fn lose_env_files(&self) {
        let _ = fs::remove_dir_all(self.disk.path().join("run"));
    }

    /// Removes the state directory.
    pub fn lose_state(&self) {
        let _ = fs::remove_dir_all(self.disk.path().join("state"));
    }

    /// Suspends the host: its clock goes on and nothing else does.
    pub fn sleep_for(&self, time: Duration) {
        self.slept.set(self.slept.get() + time);
    }

    /// Freezes the daemon, as SIGSTOP does, or lets it go on. Its timers run out meanwhile.
    #[allow(dead_code, reason = "the simulator uses it")]
    pub fn freeze(&self, frozen: bool) {
        let Some(Daemon { gate, .. }) = &self.daemon else { return };
        gate.frozen.set(frozen);
        if !frozen && let Some(waker) = gate.waker.take() {
            waker.wake();
        }
    }

    /// How often the daemon woke since its start.
    pub fn wakes(&self) -> u64 {
        self.daemon.as_ref().map_or(0, |daemon| daemon.gate.polls.get())
    }

    /// Lets the kernel have the external interface as it stands in `nic`. Routes by it may go with that, without a word.
    pub fn replug(&self) {
        self.kernel.damage_silently(DEVICE, |have| {
            have.routes.values_mut().for_each(|routes| routes.retain(|route| route.oif == Oif::Ours));
            have.routes.retain(|_, routes| !routes.is_empty());
        });
        self.kernel.change_host(|view| *view = self.view());
        self.kernel.report(Event::Host { index: self.nic.index, name: Some("eth0".into()) });
    }

    /// Lets the kernel have routes that tell differently who is on the link, as `nic` says.
    pub fn reroute(&self) {
        self.kernel.change_host(|view| view.links = self.links());
    }

    /// Whether the daemon runs.
    pub fn runs(&self) -> bool {
        self.daemon.is_some()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.daemon.as_ref().is_some_and(|daemon| daemon.task.is_finished())
    }

    /// Whether the daemon has told the service manager that it is ready.
    pub fn is_ready(&self) -> bool {
        self.heard().contains(&Notice::Ready)
    }

    /// What `/readyz` says: why the host is not ready now.
    pub fn reasons(&self) -> String {
        self.status().read().reasons().join("; ")
    }

    /// What the daemon has told the service manager since its start.
    pub fn heard(&self) -> Vec<Notice> {
        self.daemon.as_ref().map(|daemon| daemon.heard.borrow().clone()).unwrap_or_default()
    }

    /// For how long the daemon has not told the service manager that it is alive.
    pub fn silent_for(&self) -> Duration {
        let alive_at = self.daemon.as_ref().and_then(|daemon| daemon.alive_at.get());
        alive_at.map_or(Duration::MAX, |at| at.elapsed())
    }

    /// How many status lines the daemon has told since its start.
    pub fn status_lines(&self) -> usize {
        self.heard().iter().filter(|notice| matches!(notice, Notice::Status(_))).count()
    }

    /// The status line.
    pub fn status_line(&self) -> String {
        self.daemon.as_ref().map_or("off".into(), |daemon| daemon.status.read().line())
    }

    /// The daemon's status.
    pub fn status(&self) -> StatusHandle {
        self.daemon.as_ref().expect("the daemon runs").status.clone()
    }

    /// A file under /run.
    pub fn env_file(&self, name: &str) -> String {
        fs::read_to_string(self.disk.path().join("run").join(name)).unwrap_or_default()
    }

    /// The text of the state file.
    pub fn state_file(&self) -> String {
        fs::read_to_string(self.state_path()).expect("there is a state file")
    }

    /// Writes the state file.
    pub fn set_state_file(&self, text: &str) {
        fs::create_dir_all(self.state_path().parent().expect("a directory")).expect("it can be made");
        fs::write(self.state_path(), text).expect("it can be written");
    }

    fn state_path(&self) -> PathBuf {
        self.disk.path().join(format!("state/coreos.com-network.1.{}.json", self.nic.address))
    }

    fn view(&self) -> HostView {
        let mut interfaces = vec![
            interface(1, "lo", 65536, &["127.0.0.1/8".into()]),
            interface(9999, "br0", 1500, &["10.5.240.1/24".into()]),
        ];
        let nic = &self.nic;
        let route = DefaultRoute { oif: nic.index, gateway: "192.168.0.254".parse().ok(), metric: 0, is_v6: false };
        let mut default_routes = Vec::new();
        if nic.present {
            let addresses = nic.second.iter().chain([&nic.address]).map(|address| format!("{address}/{}", nic.prefix));
            let mut eth0 = interface(nic.index, "eth0", nic.mtu, &addresses.collect::<Vec<_>>());
            eth0.mac = format!("02:00:00:00:00:{:02x}", nic.mac).parse().ok();
            interfaces.push(eth0);
            default_routes.push(route);
        }
        HostView { interfaces, default_routes, links: self.links(), vxlan_port: None }
    }

    /// The network that the NIC's addresses are in, and the default route.
    fn links(&self) -> Links {
        let nic = &self.nic;
        let route = |dest: String, link| LinkRoute { dest: dest.parse().expect("a network"), metric: 0, link };
        let networks = nic.second.iter().chain([&nic.address]).map(|address| {
            let address: Ipv4Net = format!("{address}/{}", nic.prefix).parse().expect("an address");
            route(address.trunc().to_string(), Some(nic.index))
        });
        let routes: Vec<LinkRoute> = networks.chain([route("0.0.0.0/0".into(), None)]).collect();
        if nic.present { Links::from_routes(&routes) } else { Links::default() }
    }
}

fn interface(index: u32, name: &str, mtu: u32, nets: &[String]) -> Interface {
    let address = |net: &String| {
        let net: IpNet = net.parse().expect("an address with its length");
        let scope = if net.addr().is_loopback() { 254 } else { 0 };
        InterfaceAddress { net, scope, permanent: true, deprecated: false, temporary: false }
    };
    let addresses = nets.iter().map(address).collect();
    Interface { index, name: name.into(), mtu, mac: None, up: true, controller: None, addresses }
}
