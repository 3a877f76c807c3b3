//! A host of the lab that boots: a real systemd as process 1, with this machine's own programs and nothing of its
//! configuration.
//!
//! ```text
//!   test ── unshare ── sleep                      holds a mount and a process namespace, and in them
//!                        /machine/root            an overlay: / of this machine, and above it a tmpfs
//!        ── nsenter ── systemd-nspawn ── systemd  process 1 of the host, in the network namespace of the lab's host
//! ```
//!
//! All that a machine changes lies in the tmpfs; when the holder ends, everything of it has gone, also when a test
//! panics or is killed (its control groups are then swept by the next test). To be booted on a thread that lives as
//! long as the machine.
//!
//! A test program that wants machines declares this module and the lab:
//! `#[path = "../it/lab/mod.rs"] mod lab; #[path = "../systemd/machine/mod.rs"] mod machine;`

mod boot;
mod root;

pub use root::Root;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::unistd::Pid;

use crate::lab::docker::remove_cgroups;
use crate::lab::netns::output;
use crate::lab::process::Process;
use crate::lab::{Host, wait_until};

/// What boots: systemd's own target, but nothing is enabled that a test did not enable.
const TARGET: &str = "multi-user.target";

/// How long what takes a machine seconds may take when it is busy with others.
const MINUTE: Duration = Duration::from_secs(60);

/// Panics unless `condition` becomes true within a minute.
#[track_caller]
pub fn in_time(what: &str, condition: impl FnMut() -> bool) {
    assert!(wait_until(MINUTE, condition), "not within {MINUTE:?}: {what}");
}

pub struct Machine {
    name: String,
    /// Of the tmpfs, as the holder sees it.
    dir: PathBuf,
    log: PathBuf,
    /// More options for systemd-nspawn.
    options: Vec<String>,
    nspawn: Option<Process>,
    holder: Process,
    /// systemd, while the machine runs.
    pid: Option<Pid>,
}

impl Machine {
    /// Boots the host. `prepare` may put files into it before: units, programs, configuration; see [`Root`].
    ///
    /// Returns once systemd starts what is enabled; that may never come to an end, see [`Machine::wait_running`].
    pub fn boot(host: &Host, prepare: impl FnOnce(&Root)) -> Machine {
        let mut machine = Machine::assemble(host);
        prepare(&machine.root());
        machine.power_on();
        machine
    }

    /// One in which Docker's own units work. Its data are on the disk, where overlay2 can be.
    pub fn boot_with_docker(host: &Host, prepare: impl FnOnce(&Root)) -> Machine {
        let mut machine = Machine::assemble(host);
        machine.allow_docker(&host.path("docker-data"));
        prepare(&machine.root());
        machine.power_on();
        machine
    }

    /// Its file system but for what is mounted at run time (`/run`, `/tmp`): there whether it runs or not.
    pub fn root(&self) -> Root {
        Root::at(
            PathBuf::from(format!("/proc/{}/root", self.holder_pid()))
                .join(self.dir.strip_prefix("/").unwrap())
                .join("root"),
        )
    }

    /// Its file system as its processes see it; there while it runs.
    pub fn live(&self) -> Root {
        Root::at(PathBuf::from(format!("/proc/{}/root", self.pid())))
    }

    /// Runs a command inside to its end: what it printed, and whether it succeeded.
    pub fn run(&self, words: &[&str]) -> Result<String, String> {
        output(Command::new("nsenter").args(["--all", "-t", &self.pid().to_string(), "--"]).args(words))
    }

    /// A shell script that must succeed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.run(&["sh", "-ec", script]).unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// `systemctl WORDS`, which must succeed. A service that does not come to start is not waited for longer than a minute.
    #[track_caller]
    pub fn systemctl(&self, words: &[&str]) -> String {
        self.run(&[&["timeout", "60", "systemctl"], words].concat())
            .unwrap_or_else(|error| panic!("systemctl {words:?}: {error}"))
    }

    /// A property of a unit, such as `ActiveState`.
    pub fn show(&self, unit: &str, property: &str) -> String {
        self.systemctl(&["show", "--value", "-p", property, unit]).trim().to_owned()
    }

    /// Panics unless the property comes to have this value.
    #[track_caller]
    pub fn eventually_shows(&self, unit: &str, property: &str, value: &str) {
        let mut last = String::new();
        let shows = wait_until(MINUTE, || {
            last = self.show(unit, property);
            last == value
        });
        assert!(shows, "{unit}: {property} is {last}, not {value}, after {MINUTE:?}");
    }

    /// What a unit has logged since the machine was booted.
    pub fn journal(&self, unit: &str) -> String {
        self.run(&["journalctl", "-b", "-o", "cat", "--no-pager", "-u", unit]).unwrap_or_default()
    }

    /// Waits until all that is enabled has started.
    #[track_caller]
    pub fn wait_running(&self) {
        // It fails where a unit has failed: the state tells.
        let state = || self.run(&["sh", "-c", "systemctl is-system-running || true"]).unwrap_or_default();
        let mut last = String::new();
        let up = wait_until(MINUTE, || {
            last = state();
            ["running", "degraded"].contains(&last.trim())
        });
        let jobs = self.run(&["systemctl", "--no-pager", "list-jobs"]);
        assert!(up, "the machine {} is {last}: {jobs:?}", self.name);
    }

    /// The administrator reboots it. `/var` and `/etc` stay, `/run` is empty. Returns as [`Machine::boot`] does.
    pub fn reboot(&mut self) {
        self.power_off();
        self.power_on();
    }

    /// An orderly shutdown; [`Machine::root`] is still there.
    #[track_caller]
    pub fn power_off(&mut self) {
        self.systemctl(&["poweroff"]);
        self.nspawn.take().expect("a machine that runs").wait_for(MINUTE);
        self.pid = None;
    }

    /// Also of its directory in every hierarchy of control groups.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process 1, as this machine counts.
    pub fn pid(&self) -> Pid {
        self.pid.expect("a machine that runs")
    }

    /// The first process of the holder's namespace.
    fn holder_pid(&self) -> Pid {
        children(self.holder.pid()).into_iter().next().expect("the machine's holder")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() && self.pid.is_some() {
            let journal = self.run(&["journalctl", "-b", "-n", "200", "-o", "short-monotonic", "--no-pager"]);
            eprintln!(
                "---- the journal of {}, at most 200 lines\n{}",
                self.name,
                journal.unwrap_or_else(|error| error)
            );
            eprintln!("---- systemd-nspawn\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
        self.holder.kill();
        self.nspawn = None;
        remove_cgroups(|name| name == self.name);
    }
}

fn children(pid: Pid) -> Vec<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()
}
