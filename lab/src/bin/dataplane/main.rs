//! Compares paths between containers: our daemon's device with a device made by hand and with the bare link, and each
//! setting that a control plane could choose with its default.
//!
//! The two sides of a contest are measured in turns, A B A B, and compared turn by turn. Other work on the machine shows in
//! the numbers but hardly in their ratio. Hosts are network namespaces, so a packet crosses no wire. In the contests called
//! "wire" the link does not carry packets larger than its MTU.

#[allow(dead_code, unused_imports, reason = "made for the tests; only a part is needed here")]
#[path = "../../../../tests/it/lab/mod.rs"]
mod lab;
mod measure;
mod pair;
#[allow(dead_code, reason = "made for repairs; only a part is needed here")]
#[path = "../repair/table.rs"]
mod table;

use std::time::Duration;

use clap::Parser;

use measure::{Metric, measure};
use pair::{Nic, Pair};

/// The least share of the throughput of a device made by hand that our device should reach. This contest is measured
/// more often, so that its median describes the device and not the machine.
const AIM: f64 = 0.9;
const JUDGED: usize = 3;

const ALL: &[Metric] = &[Metric::Tcp, Metric::Udp, Metric::Half];
const TCP: &[Metric] = &[Metric::Tcp];
const TCP_AND_PING: &[Metric] = &[Metric::Tcp, Metric::Half];

const VETH: Nic = Nic { mtu: 0, wire: false };
const WIRE: Nic = Nic { mtu: 0, wire: true };
const JUMBO: Nic = Nic { mtu: 9000, wire: false };
const JUMBO_WIRE: Nic = Nic { mtu: 9000, wire: true };
const MASQ: &[&str] = &["--ip-masq"];
const NO_RULES: &[&str] = &["--iptables-forward-rules=false"];
const CHECKSUM_OFF: &[&str] = &["--vxlan-tx-checksum-off"];

/// Compares data paths. Needs root and iperf3.
#[derive(Parser)]
struct Options {
    /// How often the two sides of a contest are measured in turns.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How long each measurement of throughput takes, in seconds.
    #[arg(long, default_value_t = 1)]
    seconds: u64,
    /// Only the contests whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

/// Two paths. The second is the yardstick of the first.
struct Contest {
    name: &'static str,
    metrics: &'static [Metric],
    sides: fn() -> [Side; 2],
}

/// A path from container to container, or from host to host.
struct Side {
    pair: Pair,
    bare: bool,
}

fn ours(nic: Nic, backend: &str, flags: &[&str]) -> Side {
    Side { pair: Pair::by_daemon(nic, backend, flags), bare: false }
}

fn by_hand(nic: Nic, options: &str) -> Side {
    Side { pair: Pair::by_hand(nic, options), bare: false }
}

fn changed(nic: Nic, script: &str) -> Side {
    Side { pair: Pair::by_daemon(nic, "", &[]).on_both(script), bare: false }
}

fn plain(nic: Nic) -> Side {
    ours(nic, "", &[])
}

/// A setting of our device under `/sys`, which shows the namespace that mounted it.
fn in_sys(file: &str, value: &str) -> String {
    let path = format!("/sys/class/net/flannel.1/{file}");
    format!("unshare -m sh -ec 'mount -t sysfs sysfs /sys; echo {value} >{path}'")
}

const OURS: &str = "ours / by hand";

const CONTESTS: &[Contest] = &[
    Contest { name: OURS, metrics: ALL, sides: || [plain(VETH), by_hand(VETH, "")] },
    Contest { name: "ours / by hand, wire", metrics: TCP, sides: || [plain(WIRE), by_hand(WIRE, "")] },
    Contest {
        name: "ours / bare link, host to host",
        metrics: ALL,
        sides: || [plain(VETH), Side { bare: true, ..by_hand(VETH, "") }],
    },
    Contest {
        name: "DirectRouting / tunnel",
        metrics: ALL,
        sides: || [ours(VETH, r#","DirectRouting":true"#, &[]), plain(VETH)],
    },
    Contest {
        name: "DirectRouting / tunnel, wire",
        metrics: TCP,
        sides: || [ours(WIRE, r#","DirectRouting":true"#, &[]), plain(WIRE)],
    },
    Contest { name: "MTU 9000 / 1500", metrics: TCP, sides: || [plain(JUMBO), plain(VETH)] },
    Contest { name: "MTU 9000 / 1500, wire", metrics: TCP, sides: || [plain(JUMBO_WIRE), plain(WIRE)] },
    Contest {
        name: "--vxlan-tx-checksum-off / without",
        metrics: TCP,
        sides: || [ours(VETH, "", CHECKSUM_OFF), plain(VETH)],
    },
    Contest {
        name: "--vxlan-tx-checksum-off / without, wire",
        metrics: TCP,
        sides: || [ours(WIRE, "", CHECKSUM_OFF), plain(WIRE)],
    },
    Contest {
        name: "rules: forward (default) / none",
        metrics: TCP_AND_PING,
        sides: || [plain(VETH), ours(VETH, "", NO_RULES)],
    },
    Contest {
        name: "rules: --ip-masq / forward",
        metrics: TCP_AND_PING,
        sides: || [ours(VETH, "", MASQ), plain(VETH)],
    },
    Contest { name: "noudpcsum / udpcsum", metrics: TCP, sides: || [by_hand(VETH, "noudpcsum"), by_hand(VETH, "")] },
    Contest {
        name: "noudpcsum / udpcsum, wire",
        metrics: TCP,
        sides: || [by_hand(WIRE, "noudpcsum"), by_hand(WIRE, "")],
    },
    Contest {
        name: "GRO off on flannel.1 / on",
        metrics: TCP,
        sides: || [changed(VETH, "ethtool -K flannel.1 gro off"), plain(VETH)],
    },
    Contest {
        name: "GRO off on flannel.1 / on, wire",
        metrics: TCP,
        sides: || [changed(WIRE, "ethtool -K flannel.1 gro off"), plain(WIRE)],
    },
    Contest {
        name: "GRO by fraglist on flannel.1 / plain, wire",
        metrics: TCP,
        sides: || [changed(WIRE, "ethtool -K flannel.1 rx-gro-list on"), plain(WIRE)],
    },
    Contest {
        name: "RPS to all CPUs on flannel.1 / none, wire",
        metrics: TCP_AND_PING,
        sides: || {
            [changed(WIRE, &in_sys("queues/rx-0/rps_cpus", "$(printf %x $(((1 << $(nproc)) - 1)))")), plain(WIRE)]
        },
    },
    Contest {
        name: "a queue on flannel.1 (pfifo_fast) / none",
        metrics: TCP_AND_PING,
        sides: || {
            [
                changed(VETH, "ip link set flannel.1 txqueuelen 1000; tc qdisc replace dev flannel.1 root pfifo_fast"),
                plain(VETH),
            ]
        },
    },
];

fn main() {
    let options = Options::parse();
    let mut rows = Vec::new();
    for contest in CONTESTS.iter().filter(|contest| contest.name.contains(&options.only)) {
        let found = contest.run(&options);
        found.iter().for_each(|row| eprintln!("{}", row.join("  ")));
        rows.extend(found);
    }
    let (rounds, seconds, judged) = (options.rounds, options.seconds, options.rounds * JUDGED);
    println!(
        "\n{rounds} rounds of {seconds} s, where there is an aim {judged}; a ratio is the median of the rounds' ratios\n"
    );
    table::print(&["A / B", "", "A", "B", "A / B", "min", "max", "aim"], &rows);
}

impl Contest {
    fn run(&self, options: &Options) -> Vec<Vec<String>> {
        let sides = (self.sides)();
        let paths = sides.each_ref().map(|side| if side.bare { side.pair.hosts() } else { side.pair.containers() });
        let time = Duration::from_secs(options.seconds);
        let mut rounds: Vec<[Vec<(Metric, f64)>; 2]> = Vec::new();
        let times = if self.is_judged() { JUDGED } else { 1 };
        for _ in 0..options.rounds * times {
            rounds.push(paths.each_ref().map(|path| measure(path, self.metrics, time)));
        }
        let Some([first, _]) = rounds.first() else { return Vec::new() };
        let metrics: Vec<Metric> = first.iter().map(|(metric, _)| *metric).collect();
        let of = |side: usize, at: usize| rounds.iter().map(move |round| round[side][at].1).collect::<Vec<f64>>();
        metrics.iter().enumerate().map(|(at, metric)| self.row(*metric, &of(0, at), &of(1, at))).collect()
    }

    /// Whether there is an aim for it.
    fn is_judged(&self) -> bool {
        self.name.starts_with(OURS)
    }

    fn row(&self, metric: Metric, a: &[f64], b: &[f64]) -> Vec<String> {
        let ratios: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / b).collect();
        let digits = |value: f64| if metric.is_rate() { format!("{value:.2}") } else { format!("{value:.0}") };
        let ratio = median(&ratios);
        let reached = ratio >= AIM;
        let aim = match self.is_judged() {
            true if [Metric::Tcp, Metric::Udp].contains(&metric) => {
                format!(">= {AIM} {}", if reached { "reached" } else { "MISSED" })
            }
            _ => String::new(),
        };
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        let mut row = vec![self.name.to_owned(), metric.name().to_owned(), digits(median(a)), digits(median(b))];
        row.extend([ratio, least, most].map(|ratio| format!("{ratio:.2}")));
        row.push(aim);
        row
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 0 => (values[count / 2 - 1] + values[count / 2]) / 2.0,
        count => values[count / 2],
    }
}
