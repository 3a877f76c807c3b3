//! A host of the cluster: a network namespace with a NIC, a run directory, and a daemon that comes and goes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::monitor::Monitor;
use super::netns::{Netns, http_get};
use super::notify::{Notification, Notify};
use super::process::{Exit, Process, print_log_if_panicking};
use super::state::State;
use super::tables::{Device, FdbEntry, Neighbor, Route, Tables};
use super::wait::{eventually_eq, patience, wait_until};
use super::{Answer, Container, DEVICE, Docker, Etcd, PREFIX, Tools, Underlay};

/// The daemon under test.
pub const FLANNELD: &str = env!("CARGO_BIN_EXE_flanneld");

pub struct Host {
    daemon: Option<Daemon>,
    containers: u8,
    index: u8,
    /// The third byte of its NIC's address, by which it is on a link with others.
    link: u8,
    /// The last byte of its NIC's address.
    address: u8,
    dir: PathBuf,
    netns: Arc<Netns>,
    underlay: Arc<Underlay>,
}

struct Daemon {
    process: Process,
    notify: Notify,
}

impl Host {
    pub(super) fn create(underlay: Arc<Underlay>, link: u8, index: u8) -> Host {
        let netns = Arc::new(Netns::create(format!("{}-h{index}", underlay.prefix)));
        let dir = underlay.dir.path().join(format!("h{index}"));
        fs::create_dir(&dir).expect("the host's directory");
        netns.enter(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("ip_forward");
        let host = Host { daemon: None, containers: 0, index, link, address: index, dir, netns, underlay };
        host.plug_in_nic();
        host.configure_nic();
        host
    }

    /// The same host once more, for a second daemon on it: with a run directory of its own.
    pub fn again(&self) -> Host {
        let dir = self.dir.join("again");
        fs::create_dir(&dir).expect("the second daemon's directory");
        let (netns, underlay) = (self.netns.clone(), self.underlay.clone());
        let Host { index, link, address, .. } = *self;
        Host { daemon: None, containers: 0, index, link, address, dir, netns, underlay }
    }

    /// The address of its NIC.
    pub fn public_ip(&self) -> String {
        format!("172.31.{}.{}", self.link, self.address)
    }

    /// Puts a NIC in and connects it to the underlay: it has no address yet and is down.
    pub fn plug_in_nic(&self) {
        let (index, underlay) = (self.index, &self.underlay.netns);
        self.ip(&format!("link add eth0 type veth peer name p{index} netns {}", underlay.name()));
        underlay.ip(&format!("link set p{index} master br{} up", self.link));
    }

    /// What the host's network scripts do for the NIC.
    pub fn configure_nic(&self) {
        self.ip("link set eth0 up");
        self.ip(&format!("addr replace {}/24 dev eth0", self.public_ip()));
        self.ip(&format!("route replace default via 172.31.{}.254", self.link));
    }

    /// The NIC's address becomes 172.31.0.`last` (on the first link).
    pub fn readdress_nic(&mut self, last: u8) {
        self.ip(&format!("addr del {}/24 dev eth0", self.public_ip()));
        self.address = last;
        self.configure_nic();
    }

    // The daemon

    /// The flags that every daemon of a lab gets, and `extra` after them.
    pub fn flags(&self, extra: &[&str]) -> Vec<String> {
        let path = |name: &str| self.path(name).display().to_string();
        let mut flags = vec![
            "--etcd-endpoints=http://172.31.0.254:2379".to_owned(),
            format!("--etcd-prefix={PREFIX}"),
            "--iface=eth0".to_owned(),
            format!("--subnet-file={}", path("subnet.env")),
            format!("--docker-opts-file={}", path("docker_opts.env")),
            format!("--state-dir={}", path("state")),
        ];
        flags.extend(extra.iter().map(|&flag| flag.to_owned()));
        flags
    }

    /// Starts the daemon under test.
    pub fn start(&mut self, extra: &[&str]) {
        self.start_with(FLANNELD, &self.flags(extra));
    }

    /// Starts the daemon under test so that it finds programs in `tools` before the usual places.
    pub fn start_with_tools(&mut self, tools: &Tools, extra: &[&str]) {
        let words = tools.env().into_iter().chain([FLANNELD.to_owned()]).chain(self.flags(extra));
        self.start_with("env", &words.collect::<Vec<_>>());
    }

    /// Starts any daemon, with exactly these flags.
    pub fn start_with(&mut self, binary: &str, flags: &[String]) {
        assert!(self.daemon.is_none(), "host {} runs a daemon already", self.index);
        let notify = Notify::listen(&self.path("notify"));
        let mut command = self.netns.command(binary);
        command.args(flags).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("NOTIFY_SOCKET", notify.path()).env("RUST_BACKTRACE", "1");
        let process = Process::spawn(&mut command, &self.path("log"));
        self.daemon = Some(Daemon { process, notify });
    }

    /// Starts the daemon under test and waits until it is ready.
    pub fn join(&mut self) {
        self.start(&[]);
        self.wait_ready();
    }

    /// Waits for READY=1.
    #[track_caller]
    pub fn wait_ready(&self) {
        let status = || self.status().unwrap_or_default();
        assert!(
            self.ready_within(patience()),
            "host {} not ready within {:?}, STATUS={}",
            self.index,
            patience(),
            status()
        );
    }

    /// Whether READY=1 comes within `timeout`.
    pub fn ready_within(&self, timeout: Duration) -> bool {
        self.daemon().notify.wait_ready(timeout)
    }

    /// To be called right after the start: the daemon stops (SIGSTOP) at its READY=1, so that what it had done by then can
    /// be looked at in peace, until [`Host::thaw`].
    pub fn freeze_at_ready(&self) {
        let pid = self.daemon().process.pid();
        self.daemon().notify.at_ready(move || kill(pid, Signal::SIGSTOP).expect("SIGSTOP"));
    }

    /// SIGSTOP: it does nothing until [`Host::thaw`].
    pub fn freeze(&self) {
        self.daemon().process.pause();
    }

    pub fn thaw(&self) {
        self.daemon().process.resume();
    }

    /// When READY=1 came.
    pub fn ready_at(&self) -> Option<Instant> {
        let notified = self.notified();
        notified.iter().find(|notification| notification.text == "READY=1").map(|ready| ready.at)
    }

    /// Everything it told its service manager since its start.
    pub fn notified(&self) -> Vec<Notification> {
        self.daemon().notify.notifications()
    }

    /// Its last STATUS=.
    pub fn status(&self) -> Option<String> {
        let notified = self.notified();
        let last = notified.iter().rev().find_map(|notification| notification.text.strip_prefix("STATUS="));
        last.map(str::to_owned)
    }

    pub fn pid(&self) -> i32 {
        self.daemon().process.pid().as_raw()
    }

    /// How often the daemon has gone to sleep so far.
    pub fn sleeps(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|count| count.trim().parse().ok()).expect("a number")
    }

    pub fn running(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|daemon| daemon.process.running())
    }

    /// Waits for the daemon to end by itself.
    pub fn wait_exit(&mut self) -> Exit {
        self.daemon.take().expect("a daemon").process.wait()
    }

    /// SIGTERM.
    pub fn stop(&mut self) -> Exit {
        self.daemon.take().expect("a daemon").process.stop()
    }

    /// SIGTERM; tells whether it says this to its service manager before it ends.
    pub fn stop_heard(&mut self, text: &str) -> bool {
        let Daemon { process, notify } = self.daemon.take().expect("a daemon");
        process.stop();
        wait_until(patience(), || notify.notifications().iter().any(|notification| notification.text == text))
    }

    pub fn kill9(&mut self) {
        self.daemon = None;
    }

    /// All that its daemons have written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// What they have written since the log was `mark` bytes long.
    pub fn log_since(&self, mark: usize) -> String {
        self.log().split_off(mark)
    }

    /// Status code and body of a GET to the daemon, from inside the host.
    pub fn http_get(&self, port: u16, path: &str) -> io::Result<(u16, String)> {
        self.netns.enter(|| http_get(SocketAddr::from(([127, 0, 0, 1], port)), path))
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap_or_else(|| panic!("host {} runs no daemon", self.index))
    }

    // Its files

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The content of one of the daemon's files: `subnet.env`, `docker_opts.env`.
    pub fn file(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    /// A value from subnet.env.
    #[track_caller]
    pub fn subnet_env(&self, key: &str) -> String {
        let text = self.file("subnet.env").expect("subnet.env");
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {key} in subnet.env: {text}")).to_owned()
    }

    /// Its own subnet, as `172.30.46.0/24`.
    #[track_caller]
    pub fn subnet(&self) -> String {
        let bridge: Ipv4Net = self.subnet_env("FLANNEL_SUBNET").parse().expect("a subnet");
        bridge.trunc().to_string()
    }

    // Its kernel

    pub fn run(&self, words: &[&str]) -> Result<String, String> {
        self.netns.run(words)
    }

    /// A command that will run inside.
    #[allow(dead_code, reason = "a bench uses it")]
    pub fn command(&self, program: &str) -> Command {
        self.netns.command(program)
    }

    /// A shell script that must succeed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.run(&["sh", "-ec", script]).unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    pub fn ip(&self, args: &str) {
        self.netns.ip(args);
    }

    pub fn ip_json(&self, args: &str) -> Value {
        self.netns.ip_json(args)
    }

    pub fn bridge_json(&self, args: &str) -> Value {
        self.netns.bridge_json(args)
    }

    pub fn device(&self, name: &str) -> Option<Device> {
        let json = self.ip_json(&format!("-d addr show dev {name}"));
        json.get(0).map(Device::parse)
    }

    pub fn routes(&self, device: &str) -> BTreeSet<Route> {
        Route::list(&self.ip_json(&format!("-4 route show dev {device}")))
    }

    pub fn neighbors(&self, device: &str) -> BTreeSet<Neighbor> {
        Neighbor::list(&self.ip_json(&format!("-4 neigh show dev {device}")))
    }

    pub fn fdb(&self, device: &str) -> BTreeSet<FdbEntry> {
        FdbEntry::list(&self.bridge_json(&format!("fdb show dev {device}")))
    }

    /// All three tables of its VXLAN device.
    pub fn tables(&self) -> Tables {
        Tables { routes: self.routes(DEVICE), neighbors: self.neighbors(DEVICE), fdb: self.fdb(DEVICE) }
    }

    /// Panics unless the tables come to hold exactly the peers that etcd knows just now.
    #[track_caller]
    pub fn follows(&self, etcd: &Etcd) {
        let what = format!("host {} holds exactly its peers", self.index);
        eventually_eq(&what, &Tables::to(&etcd.peers_of(self)), || self.tables());
    }

    /// Everything about its network that could change.
    pub fn state(&self) -> State {
        State::of(&self.netns)
    }

    /// Panics unless everything comes to be as in `before`, but for the device's index.
    #[track_caller]
    pub fn returns_to(&self, before: &State) {
        let mut now = None;
        let same = wait_until(patience(), || now.insert(self.state()).same_but_index(before));
        assert!(same, "host {} not as before within {:?}: {}", self.index, patience(), now.unwrap().unlike(before));
    }

    /// Hears of all changes from now on.
    pub fn monitor(&self) -> Monitor {
        Monitor::start(&self.netns, self.path("monitor"))
    }

    /// Asks a server at `address:port`, from the host itself.
    pub fn ask(&self, address: &str) -> Result<Answer, String> {
        super::server::ask(&self.netns, address)
    }

    pub fn netns_name(&self) -> &str {
        self.netns.name()
    }

    // Its containers

    /// A real dockerd, started with what flanneld wrote for it. It makes docker0; the other containers here do not go
    /// with it.
    pub fn docker(&self) -> Docker {
        Docker::start_on(self, self.underlay.clone())
    }

    /// A container on docker0 as Docker would build it from subnet.env.
    pub fn attach_container(&mut self, name: &str) -> Container {
        let gateway: Ipv4Net = self.subnet_env("FLANNEL_SUBNET").parse().expect("a subnet");
        let mtu = self.subnet_env("FLANNEL_MTU");
        if self.containers == 0 {
            self.ip("link add docker0 type bridge");
            self.ip(&format!("addr add {gateway} dev docker0"));
            self.ip(&format!("link set docker0 mtu {mtu} up"));
        }
        self.containers += 1;
        let netns = format!("{}-{name}", self.netns.name());
        let veth = format!("veth{}", self.containers);
        Container::create(netns, &self.netns, &veth, gateway, 1 + self.containers, &mtu)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.daemon = None;
        print_log_if_panicking(&format!("flanneld on host {}", self.index), &self.path("log"));
    }
}
