//! The real kernel.

use super::listener::Listener;
use super::socket::{NetlinkSocket, object};
use super::wire::{Frame, Refusal};
use super::{Event, Kernel, KernelError, decode, encode, ethtool, sysctl};
use crate::model::device::{Comparison, Device, ExistingDevice};
use crate::model::family::Family;
use crate::model::iface::{HostView, InterfaceAddress, WayOut};
use crate::model::kernel_state::{Have, Scope};
use crate::model::links::Links;
use crate::model::plan::Op;
use netlink_packet_route::RouteNetlinkMessage as Message;
use nix::libc::{EACCES, EADDRNOTAVAIL, EHOSTUNREACH, EINVAL, ENETUNREACH, ENODEV, ENOENT, ESRCH};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// How often the state is read again when the device comes, goes or changes meanwhile.
const OBSERVE_ATTEMPTS: u32 = 10;

/// The kernel of the network namespace of the thread that made this.
pub struct NetlinkKernel {
    socket: NetlinkSocket,
    listener: Listener,
    /// Index of our device when it was last seen: what is reported of it is told by that.
    index: Option<u32>,
}

impl NetlinkKernel {
    /// Opens a netlink socket. Needs a tokio runtime.
    pub fn new() -> Result<Self, KernelError> {
        Ok(NetlinkKernel { socket: NetlinkSocket::open()?, listener: Listener::open()?, index: None })
    }

    /// The device with this name, if there is one.
    async fn device(&mut self, name: &str) -> Result<Option<ExistingDevice>, KernelError> {
        match self.socket.get(&format!("get device {name}"), encode::get_link(name)).await {
            Ok(Some(Message::NewLink(link))) => Ok(Some(with_offloads(decode::found(&link)))),
            Ok(_) => {
                let reason = "the kernel's answer cannot be decoded".to_owned();
                Err(KernelError { what: format!("get device {name}"), errno: 0, reason })
            }
            Err(error) if error.errno == ENODEV => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What `pick` makes of table main of one family; nothing while there is no such table.
    async fn routes<T>(&mut self, family: Family, pick: impl Fn(Frame) -> Option<T>) -> Result<Vec<T>, KernelError> {
        match self.socket.dump("dump routes", encode::dump_routes(family), pick).await {
            Err(error) if error.errno == ENOENT => Ok(Vec::new()),
            result => result,
        }
    }

    /// The entries of the device.
    async fn read_device(&mut self, index: u32, have: &mut Have) -> Result<(), KernelError> {
        let address = |frame: Frame| match object(frame)? {
            Message::NewAddress(address) => decode::device_address(&address, index),
            _ => None,
        };
        let neighbor = |frame: Frame| match object(frame)? {
            Message::NewNeighbour(neighbor) => decode::neighbor(&neighbor, index),
            _ => None,
        };
        let entry = |frame: Frame| match object(frame)? {
            Message::NewNeighbour(entry) => decode::fdb_entry(&entry, index),
            _ => None,
        };
        let addresses = self.socket.dump("dump addresses", encode::dump_addresses(index), address).await?;
        have.addresses = addresses.into_iter().map(|net| (net, ())).collect();
        let neighbors = self.socket.dump("dump neighbours", encode::dump_neighbors(index), neighbor).await?;
        have.neighbors = neighbors.into_iter().filter_map(|(ip, neighbor)| Some((ip, neighbor?))).collect();
        for (mac, dst) in self.socket.dump("dump FDB", encode::dump_fdb(index), entry).await? {
            have.fdb.entry(mac).or_default().extend(dst);
        }
        Ok(())
    }

    /// Reads everything once, around `device`.
    async fn read(&mut self, scope: &Scope, device: Option<ExistingDevice>) -> Result<Have, KernelError> {
        let mut have = Have { device, ..Have::default() };
        let index = have.device.as_ref().map(ExistingDevice::index);
        if let Some(index) = index {
            self.read_device(index, &mut have).await?;
        }
        for family in Family::ALL {
            let pick = |frame: Frame| match object(frame)? {
                Message::NewRoute(message) => decode::route(&message, encode::address_family(family), index, scope),
                _ => None,
            };
            for route in self.routes(family, pick).await? {
                have.routes.entry(route.dest).or_default().push(route);
            }
        }
        have.compact();
        Ok(have)
    }

    /// Does one of the operations on the device itself.
    async fn apply_to_device(&mut self, op: &Op) -> Result<(), KernelError> {
        let result = match op {
            Op::DeleteDevice(index) => self.socket.change(encode::delete_device(*index)).await,
            Op::CreateDevice(device) => match self.socket.change(encode::create_device(device)).await {
                Ok(()) => match self.device(&device.name).await? {
                    Some(ExistingDevice::Known(index, have)) => {
                        let offloads = set_offloads(&have, device);
                        self.bring_up(index, device).await.and(offloads)
                    }
                    _ => Err(Refusal::new(ENODEV)),
                },
                refused => refused,
            },
            Op::ChangeDevice(index, device) => match self.device(&device.name).await? {
                Some(ExistingDevice::Known(now, have)) if now == *index => self.change_device(now, &have, device).await,
                _ => Err(Refusal::new(ENODEV)),
            },
            _ => Ok(()),
        };
        judge(op, result)
    }

    /// Changes what differs, each thing by itself, so that one refusal does not hide behind another.
    async fn change_device(&mut self, index: u32, have: &Device, want: &Device) -> Result<(), Refusal> {
        let mut first_refusal = Ok(());
        if want.link.compare(&have.link) != Comparison::Same {
            first_refusal = first_refusal.and(self.socket.change(encode::change_link(index, &want.link)).await);
        }
        if have.mtu != want.mtu {
            first_refusal = first_refusal.and(self.socket.change(encode::set_mtu(index, want.mtu)).await);
        }
        if let Some(mac) = want.mac.filter(|mac| have.mac != Some(*mac)) {
            first_refusal = first_refusal.and(self.socket.change(encode::set_mac(index, mac)).await);
        }
        first_refusal = first_refusal.and(set_offloads(have, want));
        if !have.up {
            first_refusal = first_refusal.and(self.bring_up(index, want).await);
        }
        first_refusal
    }

    /// Prepares a device that is down and brings it up. Where IPv6 is off, there is nothing to prepare.
    async fn bring_up(&mut self, index: u32, device: &Device) -> Result<(), Refusal> {
        if let Err(refusal) = self.socket.change(encode::no_link_local(index)).await {
            tracing::debug!("{} may get an IPv6 link-local address: errno {}", device.name, refusal.errno);
        }
        if let Err(error) = sysctl::set_accept_ra_off(&device.name) {
            tracing::debug!("{} may accept IPv6 router advertisements: {error}", device.name);
        }
        if device.up { self.socket.change(encode::set_up(index, true)).await } else { Ok(()) }
    }

    /// Does what the device carries, in batches.
    async fn apply_entries(&mut self, ops: &[&Op], index: u32) -> Vec<Result<(), KernelError>> {
        let requests = ops.iter().filter_map(|op| encode::change(op, index));
        let results = self.socket.batch(requests).await;
        ops.iter().zip(results).map(|(op, result)| judge(op, result)).collect()
    }

    /// Does what is possible while there is no device of ours: routes that leave elsewhere. On the device
    /// nothing can be made, and there is nothing to delete.
    async fn apply_without_device(&mut self, ops: &[&Op]) -> Vec<Result<(), KernelError>> {
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            let result = match op {
                Op::Set(entry) | Op::Add(entry) | Op::Delete(entry) if !entry.is_on_device() => {
                    self.apply_entries(&[op], 0).await.pop().unwrap_or(Ok(()))
                }
                op => judge(op, Err(Refusal::new(ENODEV))),
            };
            results.push(result);
        }
        results
    }
}

impl Kernel for NetlinkKernel {
    async fn host(&mut self) -> Result<HostView, KernelError> {
        let mut host = HostView::default();
        let interface = |frame: Frame| match object(frame)? {
            Message::NewLink(link) => Some(decode::interface(&link)),
            _ => None,
        };
        let address = |frame: Frame| match object(frame)? {
            Message::NewAddress(message) => decode::interface_address(&message),
            _ => None,
        };
        host.interfaces = self.socket.dump("dump interfaces", encode::dump_links(), interface).await?;
        let mut addresses: BTreeMap<u32, Vec<InterfaceAddress>> = BTreeMap::new();
        for (index, address) in self.socket.dump("dump addresses", encode::dump_addresses(0), address).await? {
            addresses.entry(index).or_default().push(address);
        }
        for interface in &mut host.interfaces {
            interface.addresses = addresses.remove(&interface.index).unwrap_or_default();
        }
        let mut link_routes = Vec::new();
        for family in Family::ALL {
            let looked_at = |frame: Frame| match object(frame)? {
                Message::NewRoute(route) => {
                    let default_routes = decode::default_routes(&route, encode::address_family(family));
                    Some((default_routes, decode::link_route(&route)))
                }
                _ => None,
            };
            for (default_routes, link_route) in self.routes(family, looked_at).await? {
                host.default_routes.extend(default_routes);
                link_routes.extend(link_route);
            }
        }
        host.default_routes.sort_by_key(|route| route.metric);
        host.links = Links::from_routes(&link_routes);
        host.vxlan_port = sysctl::vxlan_port();
        Ok(host)
    }

    async fn route_to(&mut self, ip: IpAddr) -> Result<Option<WayOut>, KernelError> {
        match self.socket.get(&format!("get route to {ip}"), encode::get_route(ip)).await {
            Ok(Some(Message::NewRoute(route))) => Ok(decode::way_out(&route)),
            Ok(_) => Ok(None),
            // The last two are how prohibit and blackhole routes answer.
            Err(error) if [ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL].contains(&error.errno) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn observe(&mut self, scope: &Scope) -> Result<Have, KernelError> {
        for _ in 0..OBSERVE_ATTEMPTS {
            let before = self.device(&scope.device).await?;
            match self.read(scope, before.clone()).await {
                Err(error) if error.errno != ENODEV => return Err(error),
                result => {
                    let unchanged = self.device(&scope.device).await? == before;
                    if let (Ok(have), true) = (result, unchanged) {
                        self.index = have.device.as_ref().map(ExistingDevice::index);
                        return Ok(have);
                    }
                }
            }
        }
        let reason = format!("it changed {OBSERVE_ATTEMPTS} times while it was read");
        Err(KernelError { what: format!("read device {}", scope.device), errno: 0, reason })
    }

    async fn apply(&mut self, scope: &Scope, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        let mut results = vec![Ok(()); ops.len()];
        let (on_device, entries): (Vec<usize>, Vec<usize>) = (0..ops.len()).partition(|at| is_about_device(&ops[*at]));
        for at in on_device {
            results[at] = self.apply_to_device(&ops[at]).await;
        }
        if entries.is_empty() {
            return results;
        }
        let refs: Vec<&Op> = entries.iter().map(|at| &ops[*at]).collect();
        let outcomes = match self.device(&scope.device).await {
            Ok(Some(ExistingDevice::Known(index, _))) => self.apply_entries(&refs, index).await,
            Ok(_) => self.apply_without_device(&refs).await,
            Err(error) => refs.iter().map(|_| Err(error.clone())).collect(),
        };
        entries.into_iter().zip(outcomes).for_each(|(at, outcome)| results[at] = outcome);
        results
    }

    async fn changed(&mut self) {
        self.listener.readable().await
    }

    fn take_changes(&mut self, scope: &Scope) -> Vec<Event> {
        self.listener.take(scope, self.index)
    }
}

/// The device with what only ethtool tells of it.
fn with_offloads(found: ExistingDevice) -> ExistingDevice {
    match found {
        ExistingDevice::Known(index, mut device) => {
            device.tx_checksum_off = ethtool::tx_checksum(&device.name) == Ok(false);
            ExistingDevice::Known(index, device)
        }
        other => other,
    }
}

fn set_offloads(have: &Device, want: &Device) -> Result<(), Refusal> {
    if have.tx_checksum_off || !want.tx_checksum_off {
        return Ok(());
    }
    ethtool::set_tx_checksum(&want.name, false).map_err(|errno| Refusal::new(errno as i32))
}

fn is_about_device(op: &Op) -> bool {
    matches!(op, Op::DeleteDevice(_) | Op::CreateDevice(_) | Op::ChangeDevice(..))
}

/// Interprets the kernel's answer to `op`. To delete an entry that is not there is success.
fn judge(op: &Op, result: Result<(), Refusal>) -> Result<(), KernelError> {
    match result {
        Err(refusal) if is_delete(op) && [ESRCH, ENOENT, EADDRNOTAVAIL, ENODEV].contains(&refusal.errno) => Ok(()),
        result => {
            result.map_err(|refusal| KernelError::from_errno(op.to_string(), refusal.errno, &refusal.explanation))
        }
    }
}

fn is_delete(op: &Op) -> bool {
    matches!(op, Op::DeleteDevice(_) | Op::Delete(_) | Op::ClearFdb(_))
}
