//! Laws that hold for any facts and any kernel: tried with many small ones, in which everything collides.

mod desired;
mod plan;

use crate::lab::seed;
use flanneld::backend::Backend;
use flanneld::backend::vxlan::Vxlan;
use flanneld::model::device::{Device, ExistingDevice};
use flanneld::model::entry::NeighborState;
use flanneld::model::iface::{ExternalInterface, HostView};
use flanneld::model::kernel_state::{Have, Want};
use flanneld::model::mac::VtepMac;
use flanneld::model::plan::Plan;
use proptest::test_runner::{Config, RngSeed};

/// The same cases in every run with the same `SEED`.
fn config(cases: u32) -> Config {
    Config { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(seed()), ..Config::default() }
}

fn mac(last: u8) -> VtepMac {
    VtepMac([0x0e, 0, 0, 0, 0, last])
}

/// The device as production code makes it by default.
fn device() -> Device {
    let address = "192.168.0.1".parse().unwrap();
    let nic = ExternalInterface { index: 2, name: "eth0".into(), mtu: 1500, mac: None, address, public_ip: address };
    let own = Vxlan::default().own_entries(&nic, &HostView::default(), "10.5.1.0/24".parse().unwrap(), mac(1));
    own.device.get().unwrap().clone()
}

/// A kernel that holds exactly what is wanted.
fn as_wanted(want: &Want) -> Have {
    let permanent = |mac| NeighborState { mac: Some(mac), permanent: true };
    Have {
        device: want.device.get().cloned().map(|device| ExistingDevice::Known(5, device)),
        addresses: want.addresses.iter().collect(),
        neighbors: want.neighbors.iter().map(|(ip, mac)| (ip, permanent(mac))).collect(),
        fdb: want.fdb.iter().map(|(mac, dst)| (mac, [dst].into())).collect(),
        routes: want.routes.iter().map(|(dest, route)| (dest, [route].into())).collect(),
    }
}

/// What a plan does, whatever the order.
fn ops(plan: &Plan) -> Vec<String> {
    let mut ops: Vec<String> = plan.steps.iter().map(|step| format!("{:?}", step.op)).collect();
    ops.sort();
    ops
}
