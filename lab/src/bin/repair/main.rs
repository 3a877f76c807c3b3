//! Measures how fast flanneld repairs damage to the overlay, and the cost of joining and of being idle. The daemon, etcd and
//! the kernel are real, the host is a network namespace, and the peers are only leases.
//!
//! A repair lasts from the kernel's report of the damage to its report of the repair. A listener that is no part of the
//! daemon receives both. Prints numbers beside the aims, without a verdict. Other work on the machine shows in them.

mod cluster;
mod damage;
mod join;
#[allow(dead_code, unused_imports, reason = "made for the tests; only a part is needed here")]
#[path = "../../../../tests/it/lab/mod.rs"]
mod lab;
mod rounds;
mod table;
mod witness;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use cluster::{MOST_PEERS, Network, inside};
use damage::Damage;
use join::Joined;
use lab::{Etcd, Host, Lab};
use rounds::Measured;

/// The aims, as medians.
const SINGLE: Duration = Duration::from_millis(5);
const WHOLE_DEVICE: Duration = Duration::from_millis(50);
/// The size of network for which the aim for the whole device is set.
const WHOLE_DEVICE_PEERS: usize = 100;

/// Times flanneld's repairs, and its cold join. Needs root.
#[derive(Parser)]
struct Options {
    /// Sizes of network in which repairs are timed; 0: none.
    #[arg(long, value_delimiter = ',', default_value = "10,100,5000", value_parser = peers)]
    peers: Vec<u32>,
    /// How often each kind of damage is done; that which takes everything, a tenth as often; never more than 20 times to
    /// the same object.
    #[arg(long, default_value_t = 200)]
    rounds: usize,
    /// Only the kinds of damage whose name contains this.
    #[arg(long, default_value = "")]
    damage: String,
    /// Sizes of network that are joined; 0: none.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000", value_parser = peers)]
    join: Vec<u32>,
    /// For how many seconds the joined daemon is watched doing nothing.
    #[arg(long, default_value_t = 10)]
    idle: u64,
    /// Another flanneld to join the same networks; may be given several times.
    #[arg(long, value_name = "PATH")]
    flanneld: Vec<PathBuf>,
}

fn peers(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count) if count <= MOST_PEERS => Ok(count),
        _ => Err(format!("not a number up to {MOST_PEERS}")),
    }
}

fn main() {
    let mut options = Options::parse();
    for sizes in [&mut options.peers, &mut options.join] {
        sizes.retain(|count| *count > 0);
    }
    let mut bench = Bench { lab: Lab::new("bench"), hosts: 0 };
    let etcd = bench.lab.etcd();
    let published = bench.publish(&etcd, &options);
    bench.joins(&etcd, &published, &options);
    bench.repairs(&etcd, &published, &options);
}

struct Bench {
    lab: Lab,
    hosts: u8,
}

impl Bench {
    /// A host that has never run a daemon.
    fn host(&mut self) -> Host {
        self.hosts += 1;
        self.lab.host(self.hosts)
    }

    fn publish(&mut self, etcd: &Etcd, options: &Options) -> Vec<Network> {
        let mut sizes = [options.peers.clone(), options.join.clone()].concat();
        sizes.sort();
        sizes.dedup();
        let networks: Vec<Network> = sizes.into_iter().map(|count| Network::new(etcd, count)).collect();
        inside(&mut self.host(), |_| networks.iter().for_each(Network::publish));
        networks
    }

    fn joins(&mut self, etcd: &Etcd, networks: &[Network], options: &Options) {
        let others: Vec<String> = options.flanneld.iter().map(|path| path.display().to_string()).collect();
        let ours = env!("CARGO_BIN_EXE_flanneld");
        for binary in [ours].into_iter().chain(others.iter().map(String::as_str)) {
            let mut rows = Vec::new();
            for network in of_sizes(networks, &options.join) {
                let mut host = self.host();
                let flags = if binary == ours { network.own_flags(&host) } else { network.flags(&host) };
                let joined = join::measure(&mut host, network, binary, &flags, Duration::from_secs(options.idle));
                host.stop();
                network.forget(etcd, &host);
                rows.push(joined.row(network.peers.len()));
            }
            if !rows.is_empty() {
                println!(
                    "\nCold join and {} s of rest: {}",
                    options.idle,
                    if binary == ours { "flanneld" } else { binary }
                );
                table::print(&Joined::HEAD, &rows);
            }
        }
    }

    fn repairs(&mut self, etcd: &Etcd, networks: &[Network], options: &Options) {
        let mut rows = Vec::new();
        for network in of_sizes(networks, &options.peers) {
            let mut host = self.host();
            let measured = rounds::measure(&mut host, network, &options.damage, options.rounds);
            network.forget(etcd, &host);
            rows.extend(measured.iter().map(|measured| repair_row(measured, network.peers.len())));
        }
        if !rows.is_empty() {
            println!(
                "\nRepairs, in ms from the report of the damage to the report of the repair (of the last entry of all peers)"
            );
            table::print(
                &["damage", "peers", "count", "min", "p50", "p90", "p99", "max", "lost", "aim for p50"],
                &rows,
            );
        }
    }
}

fn of_sizes<'n>(networks: &'n [Network], sizes: &'n [u32]) -> impl Iterator<Item = &'n Network> {
    sizes.iter().filter_map(|size| networks.iter().find(|network| network.peers.len() == *size as usize))
}

fn repair_row(measured: &Measured, peers: usize) -> Vec<String> {
    let Measured { damage, times, lost } = measured;
    let aim = match damage {
        Damage::DeviceDown | Damage::DeviceDeleted if peers == WHOLE_DEVICE_PEERS => Some(WHOLE_DEVICE),
        Damage::DeviceDown | Damage::DeviceDeleted => None,
        _ => Some(SINGLE),
    };
    let verdict = aim.map(|aim| {
        let met = times.median().is_some_and(|median| median < aim);
        format!("< {} {}", aim.as_millis(), if met { "met" } else { "MISSED" })
    });
    let mut row = vec![damage.name().to_owned(), peers.to_string()];
    row.extend(times.summary());
    row.extend([lost.to_string(), verdict.unwrap_or_default()]);
    row
}
