//! Measures the choice of a subnet among 65,536, the decision about our own lease among as many leases, and a list of
//! 100,000 leases from a real etcd. Prints numbers without a verdict. Other work on the machine shows in them.

#[allow(dead_code, unused_imports, reason = "made for the tests; only a part is needed here")]
#[path = "../../../../tests/it/lab/mod.rs"]
mod lab;
#[allow(dead_code, reason = "made for another benchmark")]
#[path = "../repair/table.rs"]
mod table;

use std::fs;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Instant;

use clap::Parser;
use flanneld::model::config::{NetworkConfig, Overlay};
use flanneld::model::identity::{Identity, Surroundings};
use flanneld::model::lease::{LeaseId, Record};
use flanneld::store::Registry;
use flanneld::store::etcd::EtcdStore;
use ipnet::{IpNet, Ipv4Net};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use lab::{Etcd, Lease};
use table::Times;

/// A network of 65,536 subnets.
const CONFIG: &[u8] =
    br#"{"Network":"10.0.0.0/8","SubnetMin":"10.0.0.0","SubnetMax":"10.255.255.0","Backend":{"Type":"vxlan"}}"#;
const SUBNETS: u32 = 1 << 16;
/// How full the network is, in tenths of a percent.
const FILLS: [u32; 4] = [0, 500, 999, 1000];

/// Times the choice of a subnet, and large listings.
#[derive(Parser)]
struct Options {
    /// How often each choice is made.
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// How many leases are listed from a real etcd; 0: none.
    #[arg(long, default_value_t = 100_000)]
    list: u32,
}

fn main() {
    let options = Options::parse();
    let overlay = NetworkConfig::parse(CONFIG).expect("a config").ipv4.expect("a network");
    let mut subnets: Vec<u32> = (0..SUBNETS).collect();
    subnets.shuffle(&mut StdRng::seed_from_u64(1));
    let rows: Vec<Vec<String>> = FILLS
        .into_iter()
        .flat_map(|fill| {
            let taken = &subnets[..(u64::from(SUBNETS) * u64::from(fill) / 1000) as usize];
            [choices(&overlay, taken, options.rounds), claims(&overlay, taken, options.rounds)]
        })
        .collect();
    println!("\n{SUBNETS} subnets, in ms");
    table::print(&["what", "taken", "count", "min", "p50", "p90", "p99", "max"], &rows);
    if options.list > 0 {
        list(options.list);
    }
}

fn subnet(n: u32) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from(0x0a00_0000 | n << 8), 24)
}

/// The choice alone.
fn choices(overlay: &Overlay, taken: &[u32], rounds: usize) -> Vec<String> {
    let nets: Vec<IpNet> = taken.iter().map(|&n| subnet(n).into()).collect();
    row("choose a free one", nets.len(), rounds, |random| {
        black_box(overlay.subnets.choose_free(nets.iter().copied(), random));
    })
}

/// The whole decision of a host that returns and finds its lease gone and its subnet taken.
fn claims(overlay: &Overlay, taken: &[u32], rounds: usize) -> Vec<String> {
    let mut taken = taken.to_vec();
    taken.sort_unstable_by_key(|&n| subnet(n).to_string());
    let records: Vec<Record> = taken.iter().map(|&n| record(n)).collect();
    let identity = Identity {
        public_ip: Some(Ipv4Addr::new(192, 168, 0, 1)),
        remembered_mac: "0e:ff:ff:ff:ff:ff".parse().ok(),
        remembered_lease: LeaseId::new(i64::MAX),
        remembered_subnet: taken.first().map(|&n| subnet(n)),
        ..Identity::default()
    };
    let on_host = vec![Ipv4Net::new_assert(Ipv4Addr::new(10, 1, 2, 0), 24)];
    let around = Surroundings { on_host, needed: Vec::new() };
    row("decide what is ours", records.len(), rounds, |random| {
        black_box(identity.decide(&records, &around, overlay, random));
    })
}

fn record(n: u32) -> Record {
    let [_, a, b, c] = n.to_be_bytes();
    let value = format!(
        r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0e:00:00:{a:02x}:{b:02x}:{c:02x}"}}}}"#,
        Ipv4Addr::from(0xac10_0000 + n)
    );
    let name = subnet(n).to_string().replace('/', "-");
    Record::decode(&name, value.as_bytes(), LeaseId::new(i64::from(n) + 1), 1, 1)
}

fn row(what: &str, taken: usize, rounds: usize, mut work: impl FnMut(u128)) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(2);
    let mut times = Times::default();
    for _ in 0..rounds {
        let random = rng.random();
        let began = Instant::now();
        work(random);
        times.add(began.elapsed());
    }
    [vec![what.to_owned(), taken.to_string()], times.summary().to_vec()].concat()
}

/// Lists many leases from a real etcd; prints time, calls and memory.
fn list(count: u32) {
    let etcd = Etcd::on_loopback();
    // More than there are /24 among the numbered ones.
    let lease = |n: u32| Lease {
        subnet: format!("{}/28", Ipv4Addr::from(0x0a00_0000 | n << 4)),
        ..Lease::numbered(n % 50_000)
    };
    (0..count).collect::<Vec<_>>().chunks(1000).for_each(|some| {
        etcd.fill("/many", &some.iter().map(|&n| lease(n)).collect::<Vec<_>>());
    });
    let store = EtcdStore::new(vec![etcd.endpoint()], "/many").expect("an endpoint");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    fs::write("/proc/self/clear_refs", "5").expect("the peak is forgotten");
    let before = memory("VmRSS");
    let calls = etcd.calls_during(|| {
        let began = Instant::now();
        let snapshot = runtime.block_on(store.list()).expect("a list");
        assert_eq!(snapshot.records.len(), count as usize);
        println!("\n{count} leases listed in {} ms", table::millis(began.elapsed()));
        println!(
            "resident: {before} MiB before, {} MiB with the list, {} MiB at most",
            memory("VmRSS"),
            memory("VmHWM")
        );
    });
    println!("calls: {calls:?}");
}

/// A line of `/proc/self/status`, in MiB.
fn memory(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("our status");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).expect("a number") >> 10
}
