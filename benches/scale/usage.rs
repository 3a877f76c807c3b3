//! What a process has used, as the kernel counts it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// What a process has used since its start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and system time of all its threads, also of those that are no more.
    pub cpu: Duration,
    /// Context switches of its threads: of their own accord, and because their time was up.
    pub voluntary: u64,
    pub involuntary: u64,
}

impl Usage {
    pub fn of(pid: i32) -> Usage {
        let clock = clock_getcpuclockid(Pid::from_raw(pid)).and_then(clock_gettime);
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let status: Vec<_> = tasks.map(|task| task.path().join("status")).collect();
        let sum = |name: &str| status.iter().map(|path| field(path, name)).sum();
        Usage {
            cpu: clock.map_or(Duration::ZERO, Duration::from),
            voluntary: sum("voluntary_ctxt_switches"),
            involuntary: sum("nonvoluntary_ctxt_switches"),
        }
    }

    pub fn since(self, before: Usage) -> Usage {
        Usage {
            cpu: self.cpu.saturating_sub(before.cpu),
            voluntary: self.voluntary.saturating_sub(before.voluntary),
            involuntary: self.involuntary.saturating_sub(before.involuntary),
        }
    }
}

/// Memory in MiB: `VmRSS`, or `VmHWM` for the most that it ever was.
pub fn memory(pid: i32, name: &str) -> f64 {
    field(Path::new(&format!("/proc/{pid}/status")), name) as f64 / 1024.0
}

/// A number from one of proc's `status` files.
fn field(path: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
