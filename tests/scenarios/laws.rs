//! Laws that hold for any facts and any kernel: tried with many small ones, in which everything collides.

mod desired;
mod plan;

use crate::lab::seed;
use flanneld::model::kernel_state::{Device, ExistingDevice, Have, Neighbor, Vxlan, Want};
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

/// The device as it should be.
fn device() -> Device {
    let vxlan = Vxlan {
        vni: 1,
        local: Some("192.168.0.1".parse().unwrap()),
        lower: 2,
        port: 8472,
        learning: false,
        gbp: false,
        group: None,
        ttl: 0,
        ageing: 300,
    };
    Device { name: "flannel.1".into(), mac: mac(1), mtu: 1450, up: true, tx_checksum_off: false, vxlan }
}

/// A kernel that holds exactly what is wanted.
fn as_wanted(want: &Want) -> Have {
    let permanent = |mac: &VtepMac| Neighbor { mac: Some(*mac), permanent: true };
    Have {
        device: want.device.clone().map(|device| ExistingDevice::Vxlan(5, device)),
        addresses: want.addresses.clone(),
        neighbors: want.neighbors.iter().map(|(ip, mac)| (*ip, permanent(mac))).collect(),
        fdb: want.fdb.iter().map(|(mac, dst)| (*mac, [*dst].into())).collect(),
        routes: want.routes.iter().map(|(dest, route)| (*dest, [*route].into())).collect(),
    }
}

/// What a plan does, whatever the order.
fn ops(plan: &Plan) -> Vec<String> {
    let mut ops: Vec<String> = plan.steps.iter().map(|step| format!("{:?}", step.op)).collect();
    ops.sort();
    ops
}
