//! Measures the cost of joining a network and of being idle in it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cluster::{Network, inside, runtime};
use crate::damage::{Vandal, right_route};
use crate::lab::Host;
use crate::table::millis;
use crate::witness::Witness;

/// The time limit for a join.
const PATIENCE: Duration = Duration::from_secs(120);
/// The pause after the last route, so that the daemon comes to rest.
const SETTLE: Duration = Duration::from_secs(2);

/// The cost of one cold join.
pub struct Joined {
    ready: Option<Duration>,
    routes: Option<Duration>,
    /// Routes, neighbours and FDB entries that there are in the end.
    entries: [usize; 3],
    cpu: Duration,
    /// Most memory that was ever in use, in KiB.
    peak: u64,
    idle: Idle,
}

struct Idle {
    cpu: Duration,
    time: Duration,
    switches: u64,
}

impl Joined {
    pub const HEAD: [&'static str; 9] = [
        "peers",
        "READY ms",
        "last route ms",
        "join CPU s",
        "peak RSS MiB",
        "idle CPU %",
        "idle switches/s",
        "routes",
        "neigh+FDB",
    ];

    pub fn row(&self, peers: usize) -> Vec<String> {
        let time = |time: Option<Duration>| time.map_or("-".to_owned(), millis);
        let seconds = self.idle.time.as_secs_f64();
        let [routes, neighbors, fdb] = self.entries;
        vec![
            peers.to_string(),
            time(self.ready),
            time(self.routes),
            format!("{:.2}", self.cpu.as_secs_f64()),
            format!("{:.1}", self.peak as f64 / 1024.0),
            format!("{:.3}", self.idle.cpu.as_secs_f64() / seconds * 100.0),
            format!("{:.1}", self.idle.switches as f64 / seconds),
            routes.to_string(),
            format!("{neighbors}+{fdb}"),
        ]
    }
}

/// Starts `binary` on a host that was never in `network`.
pub fn measure(host: &mut Host, network: &Network, binary: &str, flags: &[String], idle: Duration) -> Joined {
    inside(host, |host| {
        let mut witness = Witness::start();
        let routes = network.peers.iter().map(|peer| right_route(peer, true)).collect();
        let start = Instant::now();
        host.start_with(binary, flags);
        let last_route = witness.all(start + PATIENCE, routes);
        if last_route.is_none() || !host.ready_within(PATIENCE) {
            eprintln!("{binary} did not join {} peers. Its log ends so:\n{}", network.peers.len(), end_of(&host.log()));
        }
        witness.settle(SETTLE);
        let pid = host.pid();
        let cpu = cpu(pid);
        let idle = idle_of(pid, idle);
        let entries = runtime().block_on(async { Vandal::new(network.scope()).entries().await });
        Joined {
            ready: host.ready_at().map(|at| at - start),
            routes: last_route.map(|at| at - start),
            entries,
            cpu,
            peak: status(Path::new(&format!("/proc/{pid}/status")), "VmHWM"),
            idle,
        }
    })
}

fn end_of(log: &str) -> &str {
    let lines = log.rmatch_indices('\n').nth(20).map_or(0, |(at, _)| at + 1);
    &log[lines..]
}

fn idle_of(pid: i32, time: Duration) -> Idle {
    let (cpu, switches) = running(pid);
    let start = Instant::now();
    std::thread::sleep(time);
    let (cpu_after, switches_after) = running(pid);
    Idle {
        cpu: cpu_after.saturating_sub(cpu),
        time: start.elapsed(),
        switches: switches_after.saturating_sub(switches),
    }
}

/// All CPU time of a process, in the kernel's ticks of 10 ms.
fn cpu(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

/// CPU time to the nanosecond and context switches of the threads that a process has now.
fn running(pid: i32) -> (Duration, u64) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let each = tasks.map(|task| {
        let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let nanos = schedstat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
        let path = task.path().join("status");
        (nanos, status(&path, "voluntary_ctxt_switches") + status(&path, "nonvoluntary_ctxt_switches"))
    });
    let (nanos, switches) = each.fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    (Duration::from_nanos(nanos), switches)
}

/// A number from one of proc's `status` files.
fn status(path: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
