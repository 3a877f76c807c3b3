//! A host of its own for each test: a network namespace that one thread has to itself. It goes with the thread.

use flanneld::backend::{self, Backend};
use flanneld::kernel::Kernel;
use flanneld::kernel::netlink::NetlinkKernel;
use flanneld::model::device::{Device, DeviceWant, ExistingDevice, Link, Vxlan};
use flanneld::model::entry::{Address, FdbEntry, Neighbor, Oif, Route};
use flanneld::model::iface::{ExternalInterface, HostView};
use flanneld::model::kernel_state::{Have, Scope, Want};
use flanneld::model::mac::VtepMac;
use flanneld::model::plan::{Op, Plan};
use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

/// A host with loopback and `eth0` (172.31.0.1/24, fd31::1/64), without our device.
pub struct Lab {
    pub kernel: NetlinkKernel,
    pub scope: Scope,
    /// Index of `eth0`.
    pub lower: u32,
}

/// Runs a test on a host of its own.
pub fn on_a_new_host(test: impl AsyncFnOnce(Lab) + Send + 'static) {
    in_a_new_namespace(async || test(Lab::new()).await);
}

/// Runs a test in a network namespace with nothing but a loopback device that is down.
pub fn in_a_new_namespace(test: impl AsyncFnOnce() + Send + 'static) {
    let namespace = std::thread::spawn(|| {
        assert!(nix::unistd::geteuid().is_root(), "these tests make network namespaces: run them as root");
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
    if let Err(panic) = namespace.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Lab {
    fn new() -> Self {
        ip("link set lo up");
        ip("link add eth0 mtu 1500 type veth peer name wire");
        ip("link set wire up");
        ip("link set eth0 up");
        ip("addr add 172.31.0.1/24 dev eth0");
        ip("addr add fd31::1/64 dev eth0 nodad");
        let networks = [net("10.5.0.0/16"), net("fd05::/48")].into_iter().collect();
        let lower = ip_json("link show dev eth0")[0]["ifindex"].as_u64().expect("an index") as u32;
        let scope = Scope { device: "flannel.1".to_owned(), networks, nic: lower };
        Lab { kernel: NetlinkKernel::new().expect("a netlink socket"), scope, lower }
    }

    /// The device as production code makes it by default.
    pub fn device(&self) -> Device {
        let (address, index) = (Ipv4Addr::new(172, 31, 0, 1), self.lower);
        let nic =
            ExternalInterface { index, name: "eth0".to_owned(), mtu: 1500, mac: None, address, public_ip: address };
        let subnet = "10.5.34.0/24".parse().expect("a subnet");
        let own = backend::vxlan::Vxlan::default().own_entries(
            &nic,
            &HostView::default(),
            subnet,
            VtepMac([0x0e, 1, 2, 3, 4, 5]),
        );
        own.device.get().expect("a device").clone()
    }

    /// Makes that device and gives its index.
    pub async fn with_device(&mut self) -> u32 {
        let device = self.device();
        self.must(&[Op::CreateDevice(device.into())]).await;
        self.index().await
    }

    /// The index of our device, which there must be.
    pub async fn index(&mut self) -> u32 {
        match self.have().await.device {
            Some(ExistingDevice::Known(index, _)) => index,
            other => panic!("not our device: {other:?}"),
        }
    }

    pub async fn have(&mut self) -> Have {
        self.kernel.observe(&self.scope).await.expect("observe")
    }

    /// Applies operations that must all succeed.
    pub async fn must(&mut self, ops: &[Op]) {
        for (op, result) in ops.iter().zip(self.try_all(ops).await) {
            assert_eq!(result, Ok(()), "{op}");
        }
    }

    /// Applies operations and gives their results as errnos.
    pub async fn try_all(&mut self, ops: &[Op]) -> Vec<Result<(), i32>> {
        let results = self.kernel.apply(&self.scope, ops).await;
        assert_eq!(results.len(), ops.len());
        results.into_iter().map(|result| result.map_err(|error| error.errno)).collect()
    }

    /// What would have to be done.
    pub async fn plan(&mut self, want: &Want) -> Vec<Op> {
        let have = self.have().await;
        Plan::between(&have, want, &self.scope).steps.into_iter().map(|step| step.op).collect()
    }

    /// Does all that has to be done, after which nothing is left to do.
    pub async fn reach(&mut self, want: &Want) {
        let ops = self.plan(want).await;
        self.must(&ops).await;
        assert_eq!(self.plan(want).await, [], "still to be done after {ops:?}");
    }

    /// The whole of the device, the peers none yet.
    pub fn want(&self) -> Want {
        let mut want = Want { device: DeviceWant::Is(self.device()), peers_complete: true, ..Want::default() };
        want.demand(Address(net("10.5.34.0/32")));
        want
    }
}

/// Adds an IPv4 peer to what is wanted: the `n`th of 65,536 in 10.0.0.0/8.
pub fn add_peer(want: &mut Want, n: u32) {
    let subnet = IpNet::new(IpAddr::from((0x0a00_0000 | n << 8).to_be_bytes()), 24).expect("a subnet");
    let [_, b, c, d] = n.to_be_bytes();
    let mac = VtepMac([0x0e, 0xfe, 0, b, c, d]);
    want.demand(Neighbor { ip: subnet.addr(), mac });
    want.demand(FdbEntry { mac, dst: IpAddr::from([172, 31, c, d]) });
    want.demand(Route { protocol: 100 + (n % 86) as u8, ..overlay_route(subnet) });
}

/// The parameters of a device's tunnel.
pub fn vxlan(device: &mut Device) -> &mut Vxlan {
    let Link::Vxlan(vxlan) = &mut device.link;
    vxlan
}

/// The route to a peer's subnet as flannel makes it.
pub fn overlay_route(dest: IpNet) -> Route {
    let metric = if dest.addr().is_ipv6() { 1024 } else { 0 };
    Route { dest, gateway: Some(dest.addr()), oif: Oif::Ours, onlink: true, metric, protocol: 3 }
}

pub fn net(text: &str) -> IpNet {
    text.parse().expect(text)
}

pub fn addr(text: &str) -> IpAddr {
    text.parse().expect(text)
}

pub fn mac(text: &str) -> VtepMac {
    text.parse().expect(text)
}

/// `ip` with these arguments, which must succeed.
pub fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

/// What `ip -j` prints.
pub fn ip_json(arguments: &str) -> Value {
    json(&run("ip", &format!("-j -d {arguments}")))
}

/// What `bridge -j fdb show dev flannel.1` prints.
pub fn fdb_json() -> Value {
    json(&run("bridge", "-j fdb show dev flannel.1"))
}

fn json(text: &str) -> Value {
    if text.trim().is_empty() { Value::Array(vec![]) } else { serde_json::from_str(text).expect("JSON") }
}

pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().expect(program);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}
