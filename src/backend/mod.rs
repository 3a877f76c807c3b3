//! How leases become kernel state. One file a backend; a new one is a file here and an arm in `from_config`.

pub mod vxlan;

use crate::model::config::{ConfigErrors, Draft, NetworkConfig};
use crate::model::device::DeviceWant;
use crate::model::foreign::{QUOTED, shown};
use crate::model::iface::{ExternalInterface, HostView};
use crate::model::kernel_state::{Entry, Have};
use crate::model::lease::{Lease, LeaseAttrs, Record};
use crate::model::mac::VtepMac;
use crate::model::peer_policy::{Endpoint, Reading};
use ipnet::Ipv4Net;
use smallvec::SmallVec;
use std::net::Ipv4Addr;

/// The backends that this version has, as the config names them.
pub const KINDS: &[&str] = &[vxlan::KIND];

/// The kernel entries for one host. Most backends need at most four for a peer.
pub type Entries = SmallVec<[Entry; 4]>;

/// What this host itself needs in the kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnEntries {
    /// The device of the overlay.
    pub device: DeviceWant,
    /// What stands on the device without any peer.
    pub entries: Entries,
}

/// A way to carry packets between hosts.
pub trait Backend {
    /// What the config and the leases call it.
    fn kind(&self) -> &'static str;

    /// Name of its device; its Linux name tells hosts' administrators which network it belongs to.
    fn device_name(&self) -> String;

    /// Whether peers on the same link are reached without a tunnel.
    fn routes_directly(&self) -> bool;

    /// The network identifier that tells several networks on one host apart.
    fn network_id(&self) -> u32;

    /// What a host with this address and MAC publishes of itself.
    fn attrs(&self, public_ip: Ipv4Addr, mac: VtepMac) -> LeaseAttrs;

    /// What a lease says to this backend.
    fn read(&self, lease: &Lease) -> Reading;

    /// The peers that the kernel holds complete entries for, as leases younger than any in the store.
    fn recover(&self, have: &Have) -> Vec<Record>;

    /// Largest packet, in bytes, that a container may send over this interface.
    fn mtu(&self, nic: &ExternalInterface) -> u32;

    /// What makes this interface useless as the external one, in words.
    fn interface_complaint(&self, nic: &ExternalInterface) -> Option<String>;

    /// What this host needs. `nic` is one of the interfaces of `host`.
    fn own_entries(&self, nic: &ExternalInterface, host: &HostView, subnet: Ipv4Net, mac: VtepMac) -> OwnEntries;

    /// What a peer with this subnet and endpoint needs. `link` is the index of the external interface if the peer is on its
    /// link. Several peers may need the same entry.
    fn entries(&self, subnet: Ipv4Net, endpoint: Endpoint, link: Option<u32>) -> Entries;
}

/// Reads the network config and makes the backend that it asks for.
///
/// # Errors
/// Every problem: of the config, of its Backend member, and what this version cannot do.
pub fn read_config(text: &[u8]) -> Result<(NetworkConfig, Box<dyn Backend>), ConfigErrors> {
    let Draft { config, enable_ipv4, enable_ipv6, mut problems, .. } = NetworkConfig::draft(text)?;
    if enable_ipv6 {
        let instead = if enable_ipv4 { "" } else { " and EnableIPv4 to true" };
        problems.push(format!("EnableIPv6 is not implemented by this version: set EnableIPv6 to false{instead}"));
    }
    match from_config(&config) {
        Ok(backend) if problems.is_empty() => Ok((config, backend)),
        Ok(_) => Err(ConfigErrors(problems)),
        Err(ConfigErrors(more)) => Err(ConfigErrors([problems, more].concat())),
    }
}

/// The backend that the config asks for. Without one it is VXLAN, as flannel's documentation says.
fn from_config(config: &NetworkConfig) -> Result<Box<dyn Backend>, ConfigErrors> {
    let Some(backend) = &config.backend else { return Ok(Box::new(vxlan::Vxlan::default())) };
    let problem = match backend.kind.as_str() {
        vxlan::KIND => return Ok(Box::new(vxlan::Vxlan::from_params(&backend.params)?)),
        "" => format!("Backend has no Type: set one of {}", KINDS.join(", ")),
        other => {
            format!("Backend Type \"{}\" is not one that this version has: {}", shown(other, QUOTED), KINDS.join(", "))
        }
    };
    Err(ConfigErrors(vec![problem]))
}
