//! A child process that never outlives its value, and its log.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::patience;

pub struct Process {
    child: Child,
}

/// How a process ended, and how long that took.
#[derive(Debug)]
pub struct Exit {
    /// None if a signal ended it.
    pub code: Option<i32>,
    pub took: Duration,
}

impl Process {
    /// Starts `command`; what it writes is appended to `log`.
    pub fn spawn(command: &mut Command, log: &Path) -> Process {
        let file = OpenOptions::new().create(true).append(true).open(log).expect("the log file");
        let both = file.try_clone().expect("the log file");
        command.stdin(Stdio::null()).stdout(file).stderr(both);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Process { child }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn running(&mut self) -> bool {
        self.child.try_wait().expect("waiting for a child").is_none()
    }

    /// SIGSTOP: it keeps its sockets but answers nothing.
    pub fn pause(&self) {
        kill(self.pid(), Signal::SIGSTOP).expect("SIGSTOP");
    }

    pub fn resume(&self) {
        kill(self.pid(), Signal::SIGCONT).expect("SIGCONT");
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(self) -> Exit {
        kill(self.pid(), Signal::SIGTERM).expect("SIGTERM");
        self.wait()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the end.
    pub fn wait(self) -> Exit {
        self.wait_for(patience())
    }

    /// Waits for the end, which must come within this time.
    pub fn wait_for(mut self, patience: Duration) -> Exit {
        let start = Instant::now();
        while self.running() {
            assert!(start.elapsed() < patience, "still running after {patience:?}");
            thread::sleep(Duration::from_millis(1));
        }
        let took = start.elapsed();
        let status = self.child.wait().expect("waiting for a child");
        Exit { code: status.code(), took }
    }
}

/// SIGKILL, whatever state it is in.
impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// For the reader of a failed test: the last lines of a log, if the test is failing just now.
pub fn print_log_if_panicking(whose: &str, log: &Path) {
    const LINES: usize = 200;
    if !thread::panicking() {
        return;
    }
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    eprintln!("---- the log of {whose}, at most {LINES} lines");
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        eprintln!("{line}");
    }
}
