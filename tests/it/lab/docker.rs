//! A real dockerd on a host of the lab, started with what flanneld wrote for it.

use std::fmt::Display;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns::output;
use super::process::{Process, print_log_if_panicking};
use super::wait::{patience, wait_until};
use super::{Answer, Host, Underlay, names_in};

/// Not whatever else the PATH has: its client must speak the daemon's API.
pub const DOCKER: &str = "/usr/bin/docker";

/// An image of nothing but busybox. Its wget needs files of the C library, so nc has to do.
const IMAGE: &str = r#"
    mkdir -p image/bin image/www/cgi-bin
    cp "$(command -v busybox)" image/bin/busybox
    for name in sh ping nc httpd cat; do ln -s busybox "image/bin/$name"; done
    cp who image/www/cgi-bin/who
    chmod +x image/www/cgi-bin/who
    tar -C image -c ."#;

/// What its web server says: the container's name, and the address of whoever asks.
const WHO: &str = r#"#!/bin/sh
address=${REMOTE_ADDR##*:}
printf '\r\n'
echo "$(cat /www/name) ${address%]}"
"#;

/// dockerd in mount and process namespaces of its own: nothing of it outlives its first process, which ends with the
/// thread that started it.
const START: &str =
    "mount -t tmpfs tmpfs /run; mkdir -p /etc/docker; mount -t tmpfs tmpfs /etc/docker; exec dockerd \"$@\"";

pub struct Docker {
    process: Option<Process>,
    dir: PathBuf,
    netns: String,
    /// What flanneld wrote for it.
    options: PathBuf,
    _underlay: Arc<Underlay>,
}

impl Docker {
    /// Starts it with the host's `DOCKER_OPTS`, which must have been written.
    pub(super) fn start_on(host: &Host, underlay: Arc<Underlay>) -> Docker {
        let options = host.path("docker_opts.env");
        let dir = host.path("docker");
        fs::create_dir(&dir).expect("Docker's directory");
        let netns = host.netns_name().to_owned();
        let mut docker = Docker { process: None, dir, netns, options, _underlay: underlay };
        docker.start();
        docker.build_image();
        docker
    }

    /// The options that flanneld wants of it now.
    fn options(&self) -> Vec<String> {
        let script = format!(". '{}'; echo $DOCKER_OPTS", self.options.display());
        let options = output(Command::new("sh").args(["-ec", &script])).expect("Docker's options");
        options.split_whitespace().map(str::to_owned).collect()
    }

    /// After [`Docker::stop`]: again, on the same data.
    pub fn start(&mut self) {
        let path = |name: &str| self.dir.join(name).display().to_string();
        // It is always process 1 of its namespace.
        let _ = fs::remove_file(self.dir.join("pid"));
        fs::write(self.dir.join("daemon.json"), "{}").expect("its configuration");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter", &format!("--net=/run/netns/{}", self.netns), "--"]);
        command.args([
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-ec",
            START,
            "sh",
        ]);
        command.args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")]);
        command.args(["--config-file", &path("daemon.json"), "-H", &self.socket()]);
        command.args(["--cgroup-parent", &format!("/{}", self.netns)]).args(self.options());
        self.process = Some(Process::spawn(&mut command, &self.log()));
        let answers = wait_until(patience(), || self.docker(&["version"]).is_ok());
        assert!(answers, "dockerd does not answer: {}", fs::read_to_string(self.log()).unwrap_or_default());
    }

    /// SIGTERM, as a service manager would.
    pub fn stop(&mut self) {
        self.end(Signal::SIGTERM);
    }

    /// Sends dockerd a signal, which it does not outlive, and waits for the end of everything that it started.
    fn end(&mut self, signal: Signal) {
        let Some(process) = self.process.take() else { return };
        let pid = process.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        if let Ok(dockerd) = children.trim().parse() {
            let _ = kill(Pid::from_raw(dockerd), signal);
            process.wait();
        }
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    fn build_image(&self) {
        fs::write(self.dir.join("who"), WHO).expect("a script");
        let docker = format!("{DOCKER} -H {} import - lab:1", self.socket());
        let script = format!("cd '{}'; {{ {IMAGE}; }} | {docker}", self.dir.display());
        output(Command::new("sh").args(["-ec", &script])).unwrap_or_else(|error| panic!("an image: {error}"));
    }

    /// Starts a container that serves HTTP: its name, and the address of whoever asks. Gives its address.
    #[track_caller]
    pub fn run(&self, name: &str) -> Ipv4Addr {
        let serve = format!("echo {name} >/www/name; exec httpd -f -p 0.0.0.0:80 -h /www");
        // Process 1 of a container ignores SIGTERM unless it asks for it.
        let run = ["run", "-d", "--name", name, "--stop-signal", "SIGKILL", "lab:1", "/bin/sh", "-c", &serve];
        self.docker(&run).unwrap_or_else(|error| panic!("docker run: {error}"));
        self.address(name)
    }

    /// After a restart of dockerd: the container again, perhaps at another address.
    #[track_caller]
    pub fn start_container(&self, name: &str) -> Ipv4Addr {
        self.docker(&["start", name]).unwrap_or_else(|error| panic!("docker start: {error}"));
        self.address(name)
    }

    #[track_caller]
    fn address(&self, name: &str) -> Ipv4Addr {
        let address = self.docker(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", name]).expect("docker inspect");
        let address = address.trim().parse().expect("an address");
        let mut answer = Err(String::new());
        let answers = wait_until(patience(), || {
            answer = self.ask(name, "127.0.0.1");
            answer.is_ok()
        });
        assert!(answers, "container {name} does not serve: {answer:?}");
        address
    }

    /// Runs a command inside a container.
    pub fn exec(&self, name: &str, words: &[&str]) -> Result<String, String> {
        self.docker(&[&["exec", name], words].concat())
    }

    /// Whether an address answers a ping out of a container within some seconds.
    pub fn pings(&self, name: &str, to: Ipv4Addr) -> bool {
        self.exec(name, &["ping", "-c", "1", "-W", "2", &to.to_string()]).is_ok()
    }

    /// Asks a server at this address, from a container.
    pub fn ask(&self, name: &str, address: impl Display) -> Result<Answer, String> {
        let script = format!("printf 'GET /cgi-bin/who HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {address} 80");
        let answer = self.exec(name, &["sh", "-c", &script])?;
        answer.split_once("\r\n\r\n").and_then(|(_, body)| Answer::parse(body)).ok_or(answer.clone())
    }

    fn docker(&self, words: &[&str]) -> Result<String, String> {
        output(Command::new(DOCKER).args(["-H", &self.socket()]).args(words))
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.dir.join("socket").display())
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.end(Signal::SIGKILL);
        print_log_if_panicking(&format!("dockerd in {}", self.netns), &self.log());
        remove_cgroups(|name| name == self.netns);
    }
}

/// Removes the control groups with such names in every hierarchy; they must be empty of processes.
pub fn remove_cgroups(wanted: impl Fn(&str) -> bool) {
    for hierarchy in cgroup_hierarchies() {
        for name in names_in(&hierarchy).into_iter().filter(|name| wanted(name)) {
            remove_cgroup(&hierarchy.join(name));
        }
    }
}

/// Where the hierarchies of control groups are mounted.
pub fn cgroup_hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").expect("the mounts");
    let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    mounts.filter(|mount| mount[2].starts_with("cgroup")).map(|mount| PathBuf::from(mount[1])).collect()
}

fn remove_cgroup(dir: &Path) {
    let children = names_in(dir).into_iter().map(|name| dir.join(name));
    children.filter(|child| child.is_dir()).for_each(|child| remove_cgroup(&child));
    // The last process may be on its way out.
    wait_until(std::time::Duration::from_secs(2), || fs::remove_dir(dir).is_ok() || !dir.exists());
}
