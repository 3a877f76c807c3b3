//! The cost of hostile and broken leases: the CPU that one more event takes, with very many of them in the store.
//!
//! Everything from the bytes of a key to the plan for the kernel is run as in the daemon: decode, judge, desired state,
//! difference. An event is a key that comes, goes, turns bad or turns good again, the oldest one included; and
//! `ip addr add` on this host. CPU time of this thread, so other work on the machine hardly shows.

#[path = "../../../../tests/hostile/kinds.rs"]
mod kinds;
#[allow(dead_code, reason = "made for another benchmark")]
#[path = "../repair/table.rs"]
mod table;

use std::fs;
use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;

use clap::Parser;
use flanneld::backend::vxlan::Vxlan;
use flanneld::model::desired::{DesiredState, Dirty, LocalNode};
use flanneld::model::device::{DeviceWant, ExistingDevice};
use flanneld::model::iface::{ExternalInterface, HostView, Interface, InterfaceAddress};
use flanneld::model::kernel_state::{Have, Key};
use flanneld::model::lease::{LeaseId, Record};
use flanneld::model::lease_set::Change;
use flanneld::model::plan::Plan;
use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};

use kinds::{KINDS, Kind};

/// Prints the CPU of one more event among many hostile leases of each kind.
#[derive(Parser)]
struct Options {
    /// How many leases there are.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 50_000])]
    leases: Vec<u32>,
    /// Only kinds with this in their name.
    #[arg(long, default_value = "")]
    only: String,
}

fn main() {
    let options = Options::parse();
    let kinds = || KINDS.iter().filter(|kind| kind.name.contains(&options.only));
    let rows = options.leases.iter().flat_map(|count| kinds().map(|kind| row(kind, *count)));
    let rows: Vec<Vec<String>> = rows.collect();
    println!("\nCPU in ms; memory in MiB");
    let heads =
        ["leases", "kind", "peers", "refused", "first list", "event p50", "event max", "ip addr add", "resident"];
    table::print(&heads, &rows);
}

/// A host, and the leases that it knows.
struct Bed {
    kind: &'static Kind,
    desired: DesiredState,
    revision: i64,
}

fn row(kind: &'static Kind, count: u32) -> Vec<String> {
    let mut bed = Bed { kind, desired: desired(), revision: i64::from(count) + 1 };
    let records: Vec<Record> = (0..count).map(|number| record(kind, number, true, i64::from(number) + 1)).collect();
    let (list, _) = cpu(|| bed.desired.set_leases(bed.revision, records, Duration::ZERO));
    bed.desired.take_findings();
    // The allocator puts in order what the list left behind, once: that is no part of an event.
    bed.event(count / 3, 4);
    let mut times: Vec<Duration> = Vec::new();
    for number in [0, 1, count / 2, count - 2, count - 1, count] {
        times.extend((0..5).map(|step| bed.event(number, step)));
    }
    times.sort_unstable();
    let (address, _) = cpu(|| {
        let changed = bed.desired.set_host(own(), host(&["192.168.0.1/24", "192.168.7.7/24"]));
        plan(&bed.desired, changed);
        bed.desired.take_findings()
    });
    let tally = bed.desired.tally();
    let (middle, worst) = (times[times.len() / 2], times[times.len() - 1]);
    let mut cells = vec![count.to_string(), kind.name.to_owned(), tally.peers.to_string(), tally.refused.to_string()];
    cells.extend([list, middle, worst, address].map(table::millis));
    cells.push(resident());
    cells
}

impl Bed {
    /// One event of a lease: it turns bad, good, goes, comes back, is written again as it is.
    fn event(&mut self, number: u32, step: u32) -> Duration {
        self.revision += 1;
        let (revision, created) = (self.revision, i64::from(number) + 1);
        let (kind, desired) = (self.kind, &mut self.desired);
        let (name, _) = (kind.lease)(number);
        let (time, ()) = cpu(|| {
            let change = match step {
                2 => Change::delete(&name, revision),
                step => Change::Put(record(kind, number, step != 0, created)),
            };
            let changed = desired.change_leases(revision, vec![change], Duration::ZERO);
            plan(desired, changed);
            black_box(desired.take_findings());
        });
        time
    }
}

fn plan(desired: &DesiredState, changed: Dirty) {
    let (want, scope) = (desired.want(), desired.scope());
    let DeviceWant::Is(device) = &want.device else { panic!("a device is wanted") };
    let have = Have { device: Some(ExistingDevice::Known(9, device.clone())), ..Have::default() };
    black_box(match changed {
        Dirty::Keys(keys) => Plan::at(&keys.into_iter().collect::<Vec<Key>>(), &have, want, &scope),
        Dirty::All => Plan::between(&have, want, &scope),
    });
}

fn record(kind: &Kind, number: u32, good: bool, created: i64) -> Record {
    let (name, value) = (kind.lease)(number);
    let value = if good { value } else { value.replace("VtepMAC", "NoMAC") };
    Record::decode(&name, value.as_bytes(), LeaseId::new(1), created, created)
}

fn desired() -> DesiredState {
    let network = "10.0.0.0/8".parse().expect("a network");
    // So the underlay is in the overlay, too: otherwise many of the leases would be refused at first sight.
    let endpoints = vec!["10.255.9.1".parse().expect("an address")];
    let hold = Duration::from_secs(60);
    DesiredState::new(Rc::new(Vxlan::default()), network, endpoints, own(), host(&["192.168.0.1/24"]), hold)
}

fn own() -> LocalNode {
    let address = "192.168.0.1".parse().expect("an address");
    LocalNode {
        nic: ExternalInterface { index: 2, name: "eth0".into(), mtu: 1500, mac: None, address, public_ip: address },
        subnet: "10.255.0.0/24".parse().expect("a subnet"),
        mac: "0e:00:00:00:00:01".parse().expect("a MAC"),
    }
}

fn host(nets: &[&str]) -> HostView {
    let address = |net: IpNet| InterfaceAddress { net, scope: 0, permanent: true, deprecated: false, temporary: false };
    let interface = |index, name: &str, nets: &[&str]| Interface {
        index,
        name: name.into(),
        mtu: 1500,
        mac: None,
        up: true,
        controller: None,
        addresses: nets.iter().map(|net| address(net.parse().expect("a network"))).collect(),
    };
    HostView { interfaces: vec![interface(2, "eth0", nets)], ..HostView::default() }
}

/// The CPU time that this thread needs for some work.
fn cpu<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let now = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock"));
    let before = now();
    let result = work();
    (now() - before, result)
}

fn resident() -> String {
    let status = fs::read_to_string("/proc/self/status").expect("our status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    (kib >> 10).to_string()
}
