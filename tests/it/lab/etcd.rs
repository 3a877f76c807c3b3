//! A real etcd, and etcdctl to look into it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;

use super::netns::{self, Netns, http_get};
use super::overlay::Lease;
use super::process::{Process, print_log_if_panicking};
use super::wait::{eventually, patience, wait_until};
use super::{Host, PREFIX, Underlay};

pub struct Etcd {
    process: Option<Process>,
    clients: SocketAddr,
    peers: SocketAddr,
    dir: TempDir,
    home: Home,
    name: String,
    /// All members and where they talk to each other, as `--initial-cluster` wants it.
    cluster: String,
    /// Milliseconds between heartbeats, and without one until an election.
    pace: [&'static str; 2],
    options: Vec<String>,
    /// As whom etcdctl works: `--user=NAME:PASSWORD`.
    user: Option<String>,
}

/// Where it runs.
enum Home {
    /// In the machine's own namespace, on loopback.
    Loopback,
    /// On the underlay's own address.
    Underlay(Arc<Underlay>),
    /// In a namespace of its own on the underlay.
    Own(Netns, #[allow(dead_code, reason = "it goes after its members")] Arc<Underlay>),
}

/// An election of one need not take a second.
const ALONE: [&str; 2] = ["10", "100"];
/// What etcd does by itself: a busy machine must not call for elections.
const AMONG_OTHERS: [&str; 2] = ["100", "1000"];

/// A key as etcd holds it.
#[derive(Debug, Clone)]
pub struct KeyValue {
    pub key: String,
    pub value: String,
    /// None: a key that never expires.
    pub lease: Option<i64>,
}

impl Etcd {
    pub(super) fn on_underlay(underlay: Arc<Underlay>, options: Vec<String>) -> Etcd {
        let dir = TempDir::with_prefix_in("etcd-", underlay.dir.path()).expect("a directory for etcd");
        let addresses = [2379, 2380].map(|port| SocketAddr::from(([172, 31, 0, 254], port)));
        let mut etcd = Etcd::new("n1".into(), addresses, dir, Home::Underlay(underlay), ALONE);
        etcd.options = options;
        assert!(etcd.try_start(), "etcd did not become healthy");
        etcd
    }

    /// On loopback of the machine itself, on free ports: for tests that need no hosts.
    pub fn on_loopback() -> Etcd {
        // A free port may be taken by someone else before etcd binds it.
        for _ in 0..5 {
            let dir = TempDir::with_prefix("flannel-etcd-").expect("a directory for etcd");
            let mut etcd = Etcd::new("n1".into(), free_ports(), dir, Home::Loopback, ALONE);
            if etcd.try_start() {
                return etcd;
            }
        }
        panic!("etcd did not become healthy on any of five pairs of ports");
    }

    /// A member of a cluster, in a namespace of its own at this address of the underlay. It does not run yet.
    pub(super) fn member(name: String, address: Ipv4Addr, netns: Netns, underlay: Arc<Underlay>) -> Etcd {
        let dir = TempDir::with_prefix_in(format!("etcd-{name}-"), underlay.dir.path()).expect("a directory for etcd");
        let addresses = [2379, 2380].map(|port| SocketAddr::from((address, port)));
        Etcd::new(name, addresses, dir, Home::Own(netns, underlay), AMONG_OTHERS)
    }

    fn new(name: String, [clients, peers]: [SocketAddr; 2], dir: TempDir, home: Home, pace: [&'static str; 2]) -> Etcd {
        let cluster = format!("{name}=http://{peers}");
        Etcd { process: None, clients, peers, dir, home, name, cluster, pace, options: Vec::new(), user: None }
    }

    /// What clients connect to.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.clients)
    }

    /// Makes the users root and flannel, to whom the tests' prefix belongs, both with this password, and wants users.
    pub fn enable_auth(&mut self, password: &str) {
        let (root, flannel) = (format!("root:{password}"), format!("flannel:{password}"));
        for words in [
            &["user", "add", &root][..],
            &["user", "grant-role", "root", "root"],
            &["user", "add", &flannel],
            &["role", "add", "flannel"],
            &["role", "grant-permission", "flannel", "readwrite", "--prefix", &format!("{PREFIX}/")],
            &["user", "grant-role", "flannel", "flannel"],
            &["auth", "enable"],
        ] {
            self.ctl(words);
        }
        self.user = Some(format!("--user={root}"));
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// After [`Etcd::kill`]: again, on the same data.
    pub fn start(&mut self) {
        assert!(self.try_start(), "etcd did not become healthy again");
    }

    /// SIGSTOP: connections stay, nothing is answered.
    pub fn pause(&self) {
        self.process.as_ref().expect("a running etcd").pause();
    }

    pub fn resume(&self) {
        self.process.as_ref().expect("a running etcd").resume();
    }

    pub fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", key, value]);
    }

    /// A value of any size.
    pub fn put_stdin(&self, key: &str, value: &str) {
        let file = self.dir.path().join("value");
        std::fs::write(&file, value).expect("the value");
        let mut command = self.etcdctl(&["put", key]);
        command.stdin(std::fs::File::open(&file).expect("the value"));
        netns::output(&mut command).unwrap_or_else(|text| panic!("etcdctl put {key}: {text}"));
    }

    /// Puts the key with an etcd lease of its own, as a daemon would; gives the lease's id.
    pub fn put_with_ttl(&self, key: &str, value: &str, seconds: u32) -> i64 {
        let granted: Value =
            serde_json::from_str(&self.ctl(&["lease", "grant", &seconds.to_string(), "-w", "json"])).expect("JSON");
        let id = granted["ID"].as_i64().expect("a lease id");
        self.ctl(&["put", &format!("--lease={id:x}"), key, value]);
        id
    }

    /// Ends a lease as if its TTL had passed; its keys go.
    pub fn revoke(&self, lease: i64) {
        self.ctl(&["lease", "revoke", &format!("{lease:x}")]);
    }

    pub fn del(&self, key: &str) {
        self.ctl(&["del", key]);
    }

    /// All keys that start so, in one revision.
    pub fn del_prefix(&self, start: &str) {
        self.ctl(&["del", "--prefix", start]);
    }

    /// After [`Etcd::kill`]: throws the data away.
    pub fn wipe(&self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).expect("the data");
    }

    /// A copy of everything, in a file.
    pub fn backup(&self) -> PathBuf {
        let file = self.dir.path().join("backup");
        self.ctl(&["snapshot", "save", &file.display().to_string()]);
        file
    }

    /// After [`Etcd::kill`]: puts a backup in the place of the data.
    pub fn restore(&self, backup: &std::path::Path) {
        self.wipe();
        let (backup, data) = (backup.display().to_string(), self.dir.path().join("data").display().to_string());
        let peers = format!("http://{}", self.peers);
        let mut command = self.command("etcdctl");
        command.env("ETCDCTL_API", "3").args(["snapshot", "restore", &backup, "--name", "n1", "--data-dir", &data]);
        command.args(["--initial-cluster", &format!("n1={peers}"), "--initial-advertise-peer-urls", &peers]);
        netns::output(&mut command).unwrap_or_else(|text| panic!("etcdctl snapshot restore: {text}"));
    }

    pub fn get(&self, key: &str) -> Option<String> {
        self.entries(&[key]).pop().map(|entry| entry.value)
    }

    /// Keys and values under `prefix`, in order of their keys.
    pub fn get_prefix(&self, prefix: &str) -> Vec<(String, String)> {
        self.entries(&["--prefix", prefix]).into_iter().map(|entry| (entry.key, entry.value)).collect()
    }

    /// The id of the etcd lease that `key` hangs on.
    pub fn lease_of(&self, key: &str) -> Option<i64> {
        self.entries(&[key]).pop().and_then(|entry| entry.lease)
    }

    /// The revision at which `key` was last written.
    pub fn modified(&self, key: &str) -> i64 {
        let answer = self.ctl(&["get", key, "-w", "json"]);
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["kvs"][0]["mod_revision"].as_i64().unwrap_or(0)
    }

    /// The TTL that was granted to a lease, in seconds.
    pub fn granted_ttl(&self, lease: i64) -> i64 {
        let answer = self.ctl(&["lease", "timetolive", &format!("{lease:x}"), "-w", "json"]);
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["granted-ttl"].as_i64().unwrap_or(0)
    }

    /// How many seconds a lease has left.
    pub fn ttl(&self, lease: i64) -> i64 {
        let answer = self.ctl(&["lease", "timetolive", &format!("{lease:x}"), "-w", "json"]);
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["ttl"].as_i64().unwrap_or(0)
    }

    /// What flannel's hosts have registered under [`PREFIX`].
    pub fn leases(&self) -> Vec<Lease> {
        let entries = self.get_prefix(&format!("{PREFIX}/subnets/"));
        entries.iter().map(|(key, value)| Lease::parse(key, value)).collect()
    }

    /// The one lease of `host`; panics if there is none or more than one.
    #[track_caller]
    pub fn lease_of_host(&self, host: &Host) -> Lease {
        let (own, _) = self.leases_seen_from(host);
        assert_eq!(own.len(), 1, "leases of {}: {own:?}", host.public_ip());
        own.into_iter().next().unwrap()
    }

    /// All leases but those of `host`.
    pub fn peers_of(&self, host: &Host) -> Vec<Lease> {
        self.leases_seen_from(host).1
    }

    fn leases_seen_from(&self, host: &Host) -> (Vec<Lease>, Vec<Lease>) {
        self.leases().into_iter().partition(|lease| lease.public_ip == host.public_ip())
    }

    pub fn put_lease(&self, lease: &Lease) {
        self.put(&lease.key(), &lease.value());
    }

    /// Also while the cluster elects a leader.
    pub fn put_lease_patiently(&self, lease: &Lease) {
        let (key, value) = (lease.key(), lease.value());
        eventually("the lease is written", || self.try_ctl(&["--command-timeout=1s", "put", &key, &value]).is_ok());
    }

    pub fn put_leases<'a>(&self, leases: impl IntoIterator<Item = &'a Lease>) {
        leases.into_iter().for_each(|lease| self.put_lease(lease));
    }

    /// `-w fields` prints one `"Field" : VALUE` a line, strings quoted.
    fn entries(&self, words: &[&str]) -> Vec<KeyValue> {
        let text = self.ctl(&[&["get", "-w", "fields"], words].concat());
        let mut entries: Vec<KeyValue> = Vec::new();
        for (field, value) in text.lines().filter_map(|line| line.split_once(" : ")) {
            let string = || serde_json::from_str::<String>(value).expect("a quoted string");
            match (field, entries.last_mut()) {
                ("\"Key\"", _) => entries.push(KeyValue { key: string(), value: String::new(), lease: None }),
                ("\"Value\"", Some(entry)) => entry.value = string(),
                ("\"Lease\"", Some(entry)) => entry.lease = value.parse().ok().filter(|id| *id != 0),
                _ => {}
            }
        }
        entries
    }

    pub(super) fn ctl(&self, words: &[&str]) -> String {
        self.try_ctl(words).unwrap_or_else(|text| panic!("etcdctl {}: {text}", words.join(" ")))
    }

    pub(super) fn try_ctl(&self, words: &[&str]) -> Result<String, String> {
        netns::output(&mut self.etcdctl(words))
    }

    fn etcdctl(&self, words: &[&str]) -> Command {
        let mut command = self.command("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.endpoint())).args(&self.user).args(words);
        command
    }

    fn netns(&self) -> Option<&Netns> {
        match &self.home {
            Home::Loopback => None,
            Home::Underlay(underlay) => Some(&underlay.netns),
            Home::Own(netns, _) => Some(netns),
        }
    }

    fn command(&self, program: &str) -> Command {
        match self.netns() {
            Some(netns) => netns.command(program),
            None => Command::new(program),
        }
    }

    /// Runs `inside` where etcd's address is known.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        match self.netns() {
            Some(netns) => netns.enter(inside),
            None => inside(),
        }
    }

    fn try_start(&mut self) -> bool {
        self.spawn(&[]);
        self.becomes_healthy()
    }

    /// Starts it without waiting for anything.
    pub(super) fn spawn(&mut self, more: &[&str]) {
        let (clients, peers) = (self.endpoint(), self.peer_url());
        let mut command = self.command("etcd");
        command.args(["--name", &self.name, "--data-dir"]).arg(self.data());
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &self.cluster]);
        // Nothing here survives a power cut anyway.
        let [heartbeat, election] = self.pace;
        command.args(["--unsafe-no-fsync", "--heartbeat-interval", heartbeat, "--election-timeout", election]);
        command.args(["--logger", "zap", "--log-outputs", "stderr", "--log-level", "warn"]);
        command.args(&self.options).args(more);
        self.process = Some(Process::spawn(&mut command, &self.log()));
    }

    /// Whether it comes to answer, as part of a quorum.
    pub(super) fn becomes_healthy(&mut self) -> bool {
        let mut alive = true;
        wait_until(patience(), || {
            alive = self.process.as_mut().is_some_and(Process::running);
            !alive || self.healthy()
        });
        alive && self.healthy()
    }

    fn healthy(&self) -> bool {
        let answer = self.enter(|| http_get(self.clients, "/health"));
        answer.is_ok_and(|(code, body)| code == 200 && body.contains("true"))
    }

    pub(super) fn clients(&self) -> SocketAddr {
        self.clients
    }

    pub(super) fn peer_url(&self) -> String {
        format!("http://{}", self.peers)
    }

    pub(super) fn named_peer_url(&self) -> String {
        format!("{}={}", self.name, self.peer_url())
    }

    /// To be called before the first start.
    pub(super) fn set_cluster(&mut self, cluster: &str) {
        self.cluster = cluster.to_owned();
    }

    pub(super) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
        print_log_if_panicking(&format!("etcd {}", self.name), &self.log());
    }
}

fn free_ports() -> [SocketAddr; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("its address"))
}
