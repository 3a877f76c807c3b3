//! An etcd of a test's own, on loopback, gone with the test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A running etcd with one member; killed when dropped.
pub struct Etcd {
    child: Option<Child>,
    dir: TempDir,
    client: u16,
    peer: u16,
    options: Vec<&'static str>,
}

impl Etcd {
    /// Starts one and waits until it answers.
    pub fn start() -> Self {
        Etcd::start_with(&[])
    }

    /// The same with more command-line options.
    pub fn start_with(options: &[&'static str]) -> Self {
        for _ in 0..10 {
            let dir = TempDir::with_prefix("flanneld-etcd-").expect("a directory for etcd");
            let options = options.to_vec();
            let mut etcd = Etcd { child: None, dir, client: free_port(), peer: free_port(), options };
            if etcd.run() {
                return etcd;
            }
        }
        panic!("etcd does not start: each time it ended at once or did not answer within 10 s");
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    /// Kills it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on its old data and ports.
    pub fn restart(&mut self) {
        assert!(self.run(), "etcd does not start again");
    }

    /// Kills it, throws its data away and starts it again.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.dir.path().join("data")).expect("etcd's data goes");
        self.restart();
    }

    /// What etcdctl prints.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.url()]).args(arguments);
        let output = command.output().expect("these tests need the program etcdctl (Debian: etcd-client)");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "etcdctl {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Runs it; tells whether it answers. It does not if somebody else took a port meanwhile.
    fn run(&mut self) -> bool {
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer));
        let mut command = Command::new("etcd");
        command
            .args(["--name", "n1", "--data-dir"])
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("n1={peer}"), "--unsafe-no-fsync"])
            .args(["--heartbeat-interval", "10", "--election-timeout", "100"])
            .args(["--logger", "zap", "--log-level", "error"])
            .args(&self.options);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("these tests need the program etcd (Debian: etcd-server)");
        let child = self.child.insert(child);
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end && child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if is_healthy(self.client) {
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
