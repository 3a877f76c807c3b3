//! The measures, and the results of one session.

use std::collections::BTreeMap;

use serde::Serialize;

/// A measure. Only these appear in tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// Its key in the JSON.
    pub key: &'static str,
    /// Its name in the table, with the unit.
    pub title: &'static str,
    pub decimals: usize,
    /// Whether the ratio of two contestants is meaningful.
    pub is_compared: bool,
}

const fn measure(key: &'static str, title: &'static str, decimals: usize) -> Measure {
    Measure { key, title, decimals, is_compared: true }
}

const fn alone(key: &'static str, title: &'static str, decimals: usize) -> Measure {
    Measure { key, title, decimals, is_compared: false }
}

pub const JOIN_READY: Measure = measure("join_ready_ms", "cold join: exec to READY, ms", 1);
pub const JOIN_ROUTES: Measure = measure("join_routes_ms", "cold join: exec to last route, ms", 1);
pub const JOIN_CPU: Measure = measure("join_cpu_ms", "cold join: CPU, ms", 0);
pub const RSS: Measure = measure("rss_mib", "RSS after the join, MiB", 1);
pub const PEAK: Measure = measure("peak_rss_mib", "RSS at its peak, MiB", 1);
pub const JOIN_CALLS: Measure = measure("join_calls", "cold join: calls to etcd", 0);
pub const JOIN_BYTES: Measure = alone("join_bytes_kib", "cold join: from etcd, KiB", 0);
pub const SYSCALLS: Measure = alone("join_syscalls", "cold join: system calls", 0);
pub const SENT: Measure = alone("join_netlink_sent", "cold join: netlink messages sent", 0);
pub const SENDS: Measure = alone("join_netlink_sends", "cold join: in so many sends", 0);
pub const RESTART_READY: Measure = measure("restart_ready_ms", "warm restart: exec to READY, ms", 1);
pub const RESTART_LAST: Measure = alone("restart_last_ms", "warm restart: exec to last change, ms", 1);
pub const RESTART_CPU: Measure = measure("restart_cpu_ms", "warm restart: CPU, ms", 0);
pub const RESTART_CHANGES: Measure = alone("restart_changes", "warm restart: changes to the kernel", 0);
pub const RESTART_CALLS: Measure = alone("restart_calls", "warm restart: calls to etcd", 0);
pub const RESTART_WRITES: Measure = alone("restart_writes", "warm restart: of them writes of keys", 0);
pub const DELIVERY_50: Measure = alone("delivery_p50_ms", "etcd: put to its watch event, p50, ms", 2);
pub const EVENT_50: Measure = measure("event_p50_ms", "... from there to the route, p50, ms", 2);
pub const EVENT_99: Measure = measure("event_p99_ms", "... from there to the route, p99, ms", 2);
pub const LOADED_DELIVERY_50: Measure = alone("loaded_delivery_p50_ms", "under load: put to watch event, p50, ms", 2);
pub const LOADED_50: Measure = measure("loaded_event_p50_ms", "... from there to the route, p50, ms", 2);
pub const LOADED_99: Measure = measure("loaded_event_p99_ms", "... from there to the route, p99, ms", 2);
pub const LOADED_CPU: Measure = measure("loaded_cpu_percent", "under load: CPU, % of a core", 1);
pub const EVENT_CALLS: Measure = alone("loaded_calls_per_event", "under load: calls to etcd an event", 2);
pub const SUSTAINED: Measure = measure("sustained_per_s", "burst of new peers: routes/s", 0);
pub const SUSTAINED_ETCD: Measure = alone("sustained_etcd_per_s", "... as etcd delivers them: events/s", 0);
pub const RESYNC: Measure = measure("resync_ms", "resync after compaction: to the missed peer, ms", 1);
pub const RESYNC_CPU: Measure = measure("resync_cpu_ms", "resync: CPU, ms", 0);
pub const RESYNC_CALLS: Measure = alone("resync_calls", "resync: calls to etcd", 0);
pub const RESYNC_CHANGES: Measure = alone("resync_changes", "resync: changes to the kernel", 0);
pub const REPAIR: Measure = alone("repair_ms", "a deleted route: back after, p50, ms", 2);
pub const REMOVAL: Measure = measure("removal_ms", "removal of all peers, ms", 0);
pub const REMOVAL_ETCD: Measure = alone("removal_etcd_ms", "... of which etcd takes to delete them, ms", 0);
pub const ARRIVAL: Measure = measure("arrival_ms", "arrival of all peers at once, ms", 0);
pub const REMOVAL_CPU: Measure = measure("removal_cpu_ms", "removal of all peers: CPU, ms", 0);
pub const IDLE_CPU: Measure = alone("idle_cpu_ms_per_min", "idle: CPU a minute, ms", 1);
pub const IDLE_VOLUNTARY: Measure = alone("idle_voluntary_per_min", "idle: wake-ups a minute", 0);
pub const IDLE_INVOLUNTARY: Measure = alone("idle_involuntary_per_min", "idle: preemptions a minute", 0);
pub const RULES_CPU: Measure = alone("idle_rules_cpu_ms_per_min", "idle, with forward rules: CPU a minute, ms", 0);
pub const RULES_VOLUNTARY: Measure =
    alone("idle_rules_voluntary_per_min", "... wake-ups a minute, without children", 0);
pub const SIZE: Measure = alone("binary_mib", "binary, MiB", 1);
pub const FLOOR: Measure = alone("floor_write_ms", "the kernel alone: batch writer, ms", 1);
pub const RANGE: Measure = alone("floor_range_ms", "etcd alone: range of all leases, ms", 1);

/// In the order of the table.
pub const ALL: &[Measure] = &[
    JOIN_READY,
    JOIN_ROUTES,
    JOIN_CPU,
    RSS,
    PEAK,
    JOIN_CALLS,
    JOIN_BYTES,
    SYSCALLS,
    SENT,
    SENDS,
    RESTART_READY,
    RESTART_LAST,
    RESTART_CPU,
    RESTART_CHANGES,
    RESTART_CALLS,
    RESTART_WRITES,
    DELIVERY_50,
    EVENT_50,
    EVENT_99,
    LOADED_DELIVERY_50,
    LOADED_50,
    LOADED_99,
    LOADED_CPU,
    EVENT_CALLS,
    SUSTAINED,
    SUSTAINED_ETCD,
    REPAIR,
    REMOVAL,
    REMOVAL_ETCD,
    REMOVAL_CPU,
    ARRIVAL,
    RESYNC,
    RESYNC_CPU,
    RESYNC_CALLS,
    RESYNC_CHANGES,
    IDLE_CPU,
    IDLE_VOLUNTARY,
    IDLE_INVOLUNTARY,
    RULES_CPU,
    RULES_VOLUNTARY,
    SIZE,
    FLOOR,
    RANGE,
];

/// One contestant in one network, once.
#[derive(Debug, Clone, Serialize)]
pub struct Session {
    pub round: usize,
    pub who: String,
    pub peers: u32,
    /// By the key of the measure; none for what did not happen within the patience of the bench.
    pub values: BTreeMap<&'static str, Option<f64>>,
    /// Calls to etcd by method: at the join, the restart, the resync.
    pub calls: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// System calls of the join by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub syscalls: BTreeMap<String, u64>,
}

impl Session {
    pub fn new(round: usize, who: &str, peers: u32) -> Session {
        let who = who.to_owned();
        Session { round, who, peers, values: BTreeMap::new(), calls: BTreeMap::new(), syscalls: BTreeMap::new() }
    }

    pub fn set(&mut self, measure: Measure, value: impl Into<Option<f64>>) {
        self.values.insert(measure.key, value.into());
    }

    pub fn get(&self, measure: Measure) -> Option<Option<f64>> {
        self.values.get(measure.key).copied()
    }
}

pub fn millis(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A percentile of unsorted values; `None` if there are none.
pub fn percentile(values: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    sorted.get((count * percent).div_ceil(100).clamp(1, count.max(1)) - 1).copied()
}
