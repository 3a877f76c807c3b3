//! One row of the table: all operations on the entries of n peers.

use crate::objects;
use crate::shape::{Shape, subnet};
use flanneld::backend::Backend;
use flanneld::backend::vxlan::Vxlan;
use flanneld::kernel::Kernel;
use flanneld::kernel::netlink::NetlinkKernel;
use flanneld::model::device::ExistingDevice;
use flanneld::model::family::PerFamily;
use flanneld::model::iface::{ExternalInterface, HostView};
use flanneld::model::kernel_state::Scope;
use flanneld::model::mac::VtepMac;
use flanneld::model::plan::Op;
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::process::Command;
use std::time::{Duration, Instant};

/// The number of further entries that are added and removed when all others exist.
const MORE: u32 = 100;

/// The measured times.
#[derive(Default)]
pub struct Row {
    add: Duration,
    read: Duration,
    one: Duration,
    delete: Duration,
    down: Option<Duration>,
    gone: Duration,
}

impl Row {
    pub const HEAD: &str = "shape                     peers   add all  read all  one more  del. all      down  dev. gone   (ms; one more: us)";

    /// The better of each number.
    pub fn best(self, other: Row) -> Row {
        Row {
            add: self.add.min(other.add),
            read: self.read.min(other.read),
            one: self.one.min(other.one),
            delete: self.delete.min(other.delete),
            down: self.down.min(other.down),
            gone: self.gone.min(other.gone),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(f, "{:>10.1}{:>10.1}{:>10.1}", ms(self.add), ms(self.read), ms(self.one) * 1e3)?;
        let down = self.down.map_or("-".to_owned(), |time| format!("{:.1}", ms(time)));
        write!(f, "{:>10.1}{down:>10}{:>11.1}", ms(self.delete), ms(self.gone))
    }
}

/// A host with our device.
struct Host {
    kernel: NetlinkKernel,
    scope: Scope,
    index: u32,
}

impl Host {
    async fn new() -> Host {
        let kernel = NetlinkKernel::new().expect("a netlink socket");
        let scope = Scope {
            device: "flannel.1".to_owned(),
            networks: PerFamily { v4: "10.0.0.0/8".parse().ok(), v6: None },
            nic: 0,
        };
        let mut host = Host { kernel, scope, index: 0 };
        let address = Ipv4Addr::LOCALHOST;
        let nic =
            ExternalInterface { index: 0, name: "lo".to_owned(), mtu: 1500, mac: None, address, public_ip: address };
        let subnet = "10.255.255.0/24".parse().expect("a subnet");
        let own = Vxlan::default().own_entries(&nic, &HostView::default(), subnet, VtepMac([0x0e, 1, 2, 3, 4, 5]));
        let device = own.device.get().expect("a device").clone();
        ip("link set lo up");
        let entries = own.entries.into_iter().map(Op::Set);
        host.must([Op::CreateDevice(device.into())].into_iter().chain(entries).collect()).await;
        let have = host.kernel.observe(&host.scope).await.expect("a device");
        if let Some(ExistingDevice::Known(index, _)) = have.device {
            host.index = index;
        }
        host
    }

    async fn must(&mut self, ops: Vec<Op>) -> Duration {
        let start = Instant::now();
        let results = self.kernel.apply(&self.scope, &ops).await;
        let took = start.elapsed();
        for (op, result) in ops.iter().zip(results) {
            assert!(result.is_ok(), "{op}: {result:?}");
        }
        drop(self.kernel.take_changes(&self.scope));
        took
    }

    async fn add(&mut self, shape: &Shape, peers: Range<u32>) -> Duration {
        let start = Instant::now();
        if shape.has_objects() {
            objects::make(peers.clone(), self.index);
        }
        let made = start.elapsed();
        made + self.must(peers.map(|n| shape.add(n)).collect()).await
    }

    async fn delete(&mut self, shape: &Shape, peers: Range<u32>) -> Duration {
        let took = self.must(peers.clone().map(|n| shape.delete(n)).collect()).await;
        let start = Instant::now();
        if shape.has_objects() {
            objects::remove(peers);
        }
        took + start.elapsed()
    }
}

/// Measures all operations on this many entries of a shape.
pub async fn measure(shape: &Shape, peers: u32) -> Row {
    let mut host = Host::new().await;
    let mut row = Row { add: host.add(shape, 0..peers).await, ..Row::default() };
    let start = Instant::now();
    host.kernel.observe(&host.scope).await.expect("all entries");
    row.read = start.elapsed();
    let more = peers..peers + MORE;
    row.one = (host.add(shape, more.clone()).await + host.delete(shape, more).await) / (2 * MORE);
    row.delete = host.delete(shape, 0..peers).await;
    if shape.is_of_routes() {
        host.add(shape, 0..peers).await;
        row.down = Some(timed(|| ip("link set flannel.1 down")));
        ip("link set flannel.1 up");
        if shape.has_objects() {
            // They go with the link, too.
            objects::make(0..peers, host.index);
        }
    }
    host.add_again(shape, peers).await;
    row.gone = timed(|| ip("link del flannel.1"));
    row
}

impl Host {
    /// Whatever went.
    async fn add_again(&mut self, shape: &Shape, peers: u32) {
        self.must((0..peers).map(|n| shape.add(n)).collect()).await;
    }
}

fn timed(work: impl FnOnce() -> String) -> Duration {
    let start = Instant::now();
    drop(work());
    start.elapsed()
}

/// Replaces and deletes a route of this shape as a Go flanneld does, and describes the result. The deletion names neither
/// protocol nor metric.
pub async fn beside_go(shape: &Shape) -> String {
    if !shape.is_of_routes() {
        return "-".to_owned();
    }
    let mut host = Host::new().await;
    host.add(shape, 0..1).await;
    let (dest, gateway) = (subnet(0), subnet(0).addr());
    let count = || ip(&format!("route show {dest}")).lines().count();
    ip(&format!("route replace {dest} via {gateway} dev flannel.1 onlink proto boot"));
    let replaced = count();
    ip("link del flannel.1");
    let mut host = Host::new().await;
    host.add(shape, 0..1).await;
    ip(&format!("route del {dest} via {gateway} dev flannel.1 onlink scope global"));
    let deleted = count();
    ip("link del flannel.1");
    format!("{replaced} after replace, {deleted} after delete")
}

/// Runs `ip` with these arguments and returns its output, whether it succeeds or not.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
