//! The view of a backend that the rest of the model has: the kernel entries that it wants for this host and its peers.

use super::device::DeviceWant;
use super::iface::{ExternalInterface, HostView};
use super::kernel_state::{Entry, Have};
use super::lease::{Lease, LeaseAttrs, Record};
use super::mac::VtepMac;
use super::peer_policy::{Endpoint, Reading};
use ipnet::Ipv4Net;
use smallvec::SmallVec;
use std::net::Ipv4Addr;

/// The kernel entries for one host. Most backends need at most four for a peer.
pub type Entries = SmallVec<[Entry; 4]>;

/// The kernel state that this host itself needs.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnEntries {
    /// The device of the overlay.
    pub device: DeviceWant,
    /// The entries that the device has without any peer.
    pub entries: Entries,
}

/// A way to carry packets between hosts.
pub trait Backend {
    /// The name of the backend in the config and in leases.
    fn kind(&self) -> &'static str;

    /// Linux's name of its device.
    fn device_name(&self) -> String;

    /// Whether peers on the same link are reached without a tunnel.
    fn routes_directly(&self) -> bool;

    /// The network identifier that tells several networks on one host apart.
    fn network_id(&self) -> u32;

    /// The lease attributes of a host with this address and MAC.
    fn attrs(&self, public_ip: Ipv4Addr, mac: VtepMac) -> LeaseAttrs;

    /// Reads a lease.
    fn read(&self, lease: &Lease) -> Reading;

    /// The peers that the kernel holds complete entries for, as leases younger than any in the store.
    fn recover(&self, have: &Have) -> Vec<Record>;

    /// Largest packet, in bytes, that a container may send over this interface.
    fn mtu(&self, nic: &ExternalInterface) -> u32;

    /// The reason why this interface cannot be the external one, if there is one.
    fn interface_complaint(&self, nic: &ExternalInterface) -> Option<String>;

    /// The state that this host needs. `nic` is one of the interfaces of `host`.
    fn own_entries(&self, nic: &ExternalInterface, host: &HostView, subnet: Ipv4Net, mac: VtepMac) -> OwnEntries;

    /// The entries that a peer with this subnet and endpoint needs. `link` is the index of the external interface if
    /// the peer is on its link. Several peers may need the same entry.
    fn entries(&self, subnet: Ipv4Net, endpoint: Endpoint, link: Option<u32>) -> Entries;
}
