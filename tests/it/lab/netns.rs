//! A network namespace that exists as long as its value does.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

pub struct Netns {
    name: String,
}

impl Netns {
    pub fn create(name: String) -> Netns {
        must(Command::new("ip").args(["netns", "add", &name]));
        let netns = Netns { name };
        netns.ip("link set lo up");
        netns
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside; the process keeps the id it is spawned with.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command
    }

    /// Runs a command inside to its end: what it printed, and whether it succeeded.
    pub fn run(&self, words: &[&str]) -> Result<String, String> {
        output(self.command(words[0]).args(&words[1..]))
    }

    /// `ip -n NAME ARGS`; failing is a bug of the test.
    pub fn ip(&self, args: &str) {
        must(Command::new("ip").args(["-n", &self.name]).args(args.split_whitespace()));
    }

    /// `ip -j -n NAME ARGS`, or null where `ip` says that there is no such thing.
    pub fn ip_json(&self, args: &str) -> Value {
        self.json("ip", args)
    }

    /// `bridge -j -n NAME ARGS`, or null where `bridge` says that there is no such thing.
    pub fn bridge_json(&self, args: &str) -> Value {
        self.json("bridge", args)
    }

    fn json(&self, tool: &str, args: &str) -> Value {
        let words = args.split_whitespace();
        match output(Command::new(tool).args(["-j", "-n", &self.name]).args(words)) {
            Ok(text) if text.trim().is_empty() => Value::Array(Vec::new()),
            Ok(text) => serde_json::from_str(&text).unwrap_or_else(|e| panic!("{tool} {args}: {e}: {text}")),
            Err(_) => Value::Null,
        }
    }

    /// Runs `inside` on a thread of its own that has entered the namespace.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).expect("the namespace");
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                inside()
            });
            thread.join().expect("the thread inside the namespace")
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

pub fn delete(name: &str) {
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// Status code and body of a GET.
pub fn http_get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    code.map(|code| (code, body.to_owned())).ok_or_else(|| io::Error::other(answer.clone()))
}

fn must(command: &mut Command) {
    if let Err(text) = output(command) {
        panic!("{command:?}: {text}");
    }
}

/// What the command printed on both streams, as an error if it failed.
pub fn output(command: &mut Command) -> Result<String, String> {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    match status.success() {
        true => Ok(stdout),
        false => Err(format!("{status}: {stdout}{}", String::from_utf8_lossy(&stderr))),
    }
}
