//! An etcd of a test's own, on loopback, gone with the test.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A running member of an etcd; killed when dropped.
pub struct Etcd {
    name: String,
    child: Option<Child>,
    dir: TempDir,
    client: u16,
    peer: u16,
    /// All members and where they talk to each other.
    cluster: String,
    options: Vec<String>,
    /// Where it says over plain HTTP whether it is well; another port than that of its clients when those use TLS.
    health: u16,
    ctl: Vec<String>,
}

impl Etcd {
    /// Starts one with one member and waits until it answers.
    pub fn start() -> Self {
        Etcd::start_with(&[])
    }

    /// The same with more command-line options.
    pub fn start_with(options: &[&str]) -> Self {
        Etcd::members(1, options).remove(0)
    }

    /// One that talks TLS, as told by `options`, and what etcdctl is to be told to talk to it.
    pub fn start_secure(options: &[&str], ctl: &[&str]) -> Self {
        let mut etcd = Etcd::start_with(options);
        etcd.ctl = ctl.iter().map(|word| word.to_string()).collect();
        etcd
    }

    /// Starts a cluster and waits until all members answer.
    pub fn cluster(count: usize) -> Vec<Self> {
        Etcd::members(count, &["--heartbeat-interval", "20", "--election-timeout", "200"])
    }

    /// Somebody else may take a port before etcd does: then others are tried.
    fn members(count: usize, options: &[&str]) -> Vec<Self> {
        for _ in 0..10 {
            let mut members: Vec<Etcd> = (1..=count).map(|n| Etcd::prepare(format!("n{n}"), options)).collect();
            let cluster: Vec<String> = members.iter().map(|m| format!("{}={}", m.name, m.peer_url())).collect();
            for member in &mut members {
                member.cluster = cluster.join(",");
                member.spawn();
            }
            if members.iter_mut().all(Etcd::answers) {
                return members;
            }
        }
        panic!("these tests need the program etcd (Debian: etcd-server), which does not start or not answer");
    }

    fn prepare(name: String, options: &[&str]) -> Self {
        let dir = TempDir::with_prefix("flanneld-etcd-").expect("a directory for etcd");
        let (client, peer) = (free_port(), free_port());
        let mut options: Vec<String> = options.iter().map(|option| option.to_string()).collect();
        let mut health = client;
        if is_tls(&options) {
            health = free_port();
            options.push(format!("--listen-metrics-urls=http://127.0.0.1:{health}"));
        }
        Etcd { name, child: None, dir, client, peer, cluster: String::new(), options, health, ctl: Vec::new() }
    }

    /// `http://127.0.0.1:port`, or `https`.
    pub fn url(&self) -> String {
        let scheme = if is_tls(&self.options) { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client)
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }

    /// Kills it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops it in the middle of whatever it does, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        let pid = self.child.as_ref().expect("it runs").id();
        kill(Pid::from_raw(pid as i32), signal).expect("it can be signalled");
    }

    /// Starts it again on its old data and ports.
    pub fn restart(&mut self) {
        self.spawn();
        assert!(self.answers(), "etcd does not start again");
    }

    /// Kills it, throws its data away and starts it again.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.dir.path().join("data")).expect("etcd's data goes");
        self.restart();
    }

    /// From now on etcdctl works as this `user:password`.
    pub fn as_user(&mut self, user: &str) {
        self.ctl.push(format!("--user={user}"));
    }

    /// What etcdctl prints.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.ctl_with(arguments, "")
    }

    /// The same when it is given a text to read.
    pub fn ctl_with(&self, arguments: &[&str], input: &str) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url()]).args(&self.ctl).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("these tests need the program etcdctl (Debian: etcd-client)");
        // Who reads nothing may be gone by now.
        let _ = child.stdin.take().expect("its input").write_all(input.as_bytes());
        let output = child.wait_with_output().expect("etcdctl ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "etcdctl {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    fn spawn(&mut self) {
        let (client, peer) = (self.url(), self.peer_url());
        // Drop does not run when this process is killed.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "etcd"])
            .args(["--name", &self.name, "--data-dir"])
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.cluster, "--unsafe-no-fsync"])
            .args(["--heartbeat-interval", "10", "--election-timeout", "100"])
            .args(["--logger", "zap", "--log-level", "error"])
            .args(&self.options);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("these tests need the program setpriv (Debian: util-linux)"));
    }

    /// Whether it does so before long.
    fn answers(&mut self) -> bool {
        let end = Instant::now() + Duration::from_secs(10);
        let mut runs = || self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|ended| ended.is_none()));
        while Instant::now() < end && runs() {
            if is_healthy(self.health) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        false
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_tls(options: &[String]) -> bool {
    options.iter().any(|option| option.starts_with("--cert-file"))
}

/// A port that nobody listens on, below the range from which connections get theirs: a client that dials a dead port
/// of that range may at last connect to itself.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let offset = std::process::id().wrapping_mul(131) as u16;
        let port = 12_000 + offset.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn is_healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"true\""))
}
