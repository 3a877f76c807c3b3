//! `ip monitor` in a host, for as long as the value lives.

use std::fs;
use std::path::PathBuf;

use super::netns::Netns;
use super::process::Process;
use super::wait::eventually;

pub struct Monitor {
    _process: Process,
    log: PathBuf,
}

impl Monitor {
    /// Returns when it listens.
    pub(super) fn start(netns: &Netns, log: PathBuf) -> Monitor {
        let _ = fs::remove_file(&log);
        let mut command = netns.command("ip");
        command.args(["monitor", "link", "address", "route", "neigh"]);
        let monitor = Monitor { _process: Process::spawn(&mut command, &log), log };
        let mut number = 0;
        eventually("the monitor listens", || {
            number += 1;
            netns.ip(&format!("neigh replace 172.31.0.253 lladdr 02:00:00:00:fe:{number:02x} dev eth0 nud permanent"));
            monitor.text().contains("172.31.0.253 ")
        });
        monitor
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What was said of `device`; FDB entries are shown as neighbours.
    pub fn about(&self, device: &str) -> Vec<String> {
        let text = self.text();
        text.lines().filter(|line| line.contains(device)).map(str::to_owned).collect()
    }

    /// What of `device`, or on it, went.
    pub fn deleted(&self, device: &str) -> Vec<String> {
        self.about(device).into_iter().filter(|line| line.starts_with("Deleted")).collect()
    }
}
