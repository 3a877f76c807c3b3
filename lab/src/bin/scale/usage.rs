//! The resources that a process has used, as the kernel counts them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// The resources that a process has used since its start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and system time of all its threads, including those that have ended.
    pub cpu: Duration,
    /// Voluntary and involuntary context switches of its threads.
    pub voluntary: u64,
    pub involuntary: u64,
    /// Time of the children that it has waited for, in the kernel's ticks of 10 ms.
    pub children: Duration,
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
            children: children(pid),
        }
    }

    pub fn since(self, before: Usage) -> Usage {
        Usage {
            cpu: self.cpu.saturating_sub(before.cpu),
            voluntary: self.voluntary.saturating_sub(before.voluntary),
            involuntary: self.involuntary.saturating_sub(before.involuntary),
            children: self.children.saturating_sub(before.children),
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

fn children(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(13) + ticks(14)) * 10)
}
