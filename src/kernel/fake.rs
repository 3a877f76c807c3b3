//! A kernel in memory, for scenarios: it does what the real one does with our operations, counts them, and fails on
//! demand.

use super::{Event, Kernel, KernelError};
use crate::model::iface::{HostView, Interface, InterfaceAddress, WayOut};
use crate::model::kernel_state::{ExistingDevice, Have, Oif, Scope};
use crate::model::mirror::Observed;
use crate::model::plan::Op;
use ipnet::IpNet;
use nix::libc::{EEXIST, ENODEV};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// The port that the kernel gives a VXLAN device for which none was asked.
const DEFAULT_PORT: u16 = 8472;
/// The lowest index of devices made here, above those of the host's own interfaces.
const FIRST_INDEX: u32 = 100;

/// A kernel in memory. Clones are handles to the same one.
#[derive(Clone, Default)]
pub struct FakeKernel {
    inner: Rc<RefCell<Inner>>,
}

#[derive(Default)]
struct Inner {
    host: HostView,
    /// By the name of our device: a host with two overlays has two.
    have: BTreeMap<String, Have>,
    devices_made: u32,
    log: Vec<Op>,
    reads: usize,
    faults: Vec<Fault>,
    read_faults: Vec<i32>,
    events: Vec<Event>,
    bell: Rc<Notify>,
    reading_takes: Duration,
    latency: Duration,
    refuses_all: Option<i32>,
    refusals: BTreeMap<i32, usize>,
    answer: Option<Answer>,
}

/// What somebody does after each of our operations: changes the state, and has something reported.
type Answer = Box<dyn Fn(&Op, &mut Have) -> Vec<Event>>;

struct Fault {
    applies: Box<dyn Fn(&Op) -> bool>,
    errno: i32,
    left: usize,
    /// What the operation does although it fails.
    does: Box<dyn Fn(&mut Have)>,
}

impl FakeKernel {
    /// The kernel of a host with these interfaces and default routes, without anything of ours.
    pub fn new(host: HostView) -> Self {
        let fake = FakeKernel::default();
        fake.inner.borrow_mut().host = host;
        fake
    }

    /// From now on it takes this long to read our device's state.
    pub fn slow_down_reading(&self, time: Duration) {
        self.inner.borrow_mut().reading_takes = time;
    }

    /// Lets the next `times` operations for which `applies` fail with `errno`.
    pub fn fail_next(&self, applies: impl Fn(&Op) -> bool + 'static, errno: i32, times: usize) {
        self.fail_next_halfway(applies, errno, times, |_| {});
    }

    /// The same, but each of the operations does something before it fails, and nothing is reported of that. The kernel
    /// changes a device attribute by attribute, for example.
    pub fn fail_next_halfway(
        &self,
        applies: impl Fn(&Op) -> bool + 'static,
        errno: i32,
        times: usize,
        does: impl Fn(&mut Have) + 'static,
    ) {
        let fault = Fault { applies: Box::new(applies), errno, left: times, does: Box::new(does) };
        self.inner.borrow_mut().faults.push(fault);
    }

    /// From now on every operation fails so.
    pub fn refuse_all(&self, errno: Option<i32>) {
        self.inner.borrow_mut().refuses_all = errno;
    }

    /// From now on each operation and each read takes so long.
    pub fn set_latency(&self, latency: Duration) {
        self.inner.borrow_mut().latency = latency;
    }

    /// How many operations and reads failed on demand, by errno.
    pub fn refusals(&self) -> BTreeMap<i32, usize> {
        self.inner.borrow().refusals.clone()
    }

    /// From now on each operation that succeeds is followed by this: a change of the state and reports, whether they are true or
    /// not.
    pub fn answer_each(&self, answer: impl Fn(&Op, &mut Have) -> Vec<Event> + 'static) {
        self.inner.borrow_mut().answer = Some(Box::new(answer));
    }

    /// Fails no more, and answers nothing.
    pub fn mend(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.answer = None;
        (inner.latency, inner.refuses_all) = (Duration::ZERO, None);
        inner.faults.clear();
        inner.read_faults.clear();
    }

    /// Lets the next `times` reads fail with `errno`.
    pub fn fail_next_reads(&self, errno: i32, times: usize) {
        self.inner.borrow_mut().read_faults.extend(std::iter::repeat_n(errno, times));
    }

    /// What the kernel holds about the device with this name.
    pub fn have(&self, device: &str) -> Have {
        self.inner.borrow().have.get(device).cloned().unwrap_or_default()
    }

    /// Lets somebody else change what the kernel holds about the device with this name, and reports it.
    pub fn damage(&self, device: &str, change: impl FnOnce(&mut Have)) {
        self.damage_silently(device, change);
        self.report(Event::Device);
    }

    /// The same with a report of each neighbour, FDB entry and route that changed, as the real kernel tells most changes.
    pub fn disturb(&self, device: &str, change: impl FnOnce(&mut Have)) {
        let before = self.have(device);
        self.damage_silently(device, change);
        let reports = differences(&before, &self.have(device));
        reports.into_iter().for_each(|entry| self.report(Event::Entry(entry)));
    }

    /// Loses the reports that were not taken yet, and says so.
    pub fn overrun(&self) {
        self.inner.borrow_mut().events.clear();
        self.report(Event::Overrun);
    }

    /// The same without a report, as some changes of the real kernel go.
    pub fn damage_silently(&self, device: &str, change: impl FnOnce(&mut Have)) {
        change(self.inner.borrow_mut().have.entry(device.to_owned()).or_default());
    }

    /// Reports something.
    pub fn report(&self, event: Event) {
        let mut inner = self.inner.borrow_mut();
        inner.events.push(event);
        inner.bell.notify_one();
    }

    /// Lets somebody else change the host's own interfaces and default routes.
    pub fn change_host(&self, change: impl FnOnce(&mut HostView)) {
        change(&mut self.inner.borrow_mut().host);
        self.report(Event::Host { index: 0, name: None });
    }

    /// Lets the device with this name vanish with all that is on it.
    pub fn lose_device(&self, device: &str) {
        self.damage(device, |have| have.apply(&Op::DeleteDevice(0), 0));
    }

    /// The operations that succeeded, in order, since this was last asked.
    pub fn take_log(&self) -> Vec<Op> {
        std::mem::take(&mut self.inner.borrow_mut().log)
    }

    /// How many operations succeeded since [`FakeKernel::take_log`].
    pub fn applied(&self) -> usize {
        self.inner.borrow().log.len()
    }

    /// How often the state was read in full.
    pub fn reads(&self) -> usize {
        self.inner.borrow().reads
    }

    async fn pause(&self) {
        let latency = self.inner.borrow().latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
    }
}

impl Inner {
    fn read(&mut self, what: &str) -> Result<(), KernelError> {
        self.reads += 1;
        let fault = if self.read_faults.is_empty() { None } else { Some(self.read_faults.remove(0)) };
        fault.iter().for_each(|errno| *self.refusals.entry(*errno).or_default() += 1);
        fault.map_or(Ok(()), |errno| Err(KernelError::from_errno(what, errno, "")))
    }

    fn apply(&mut self, device: &str, op: &Op) -> Result<(), KernelError> {
        let next_index = FIRST_INDEX + self.devices_made;
        let have = self.have.entry(device.to_owned()).or_default();
        let demanded = self.refuses_all.or_else(|| demanded(&mut self.faults, op, have));
        demanded.iter().for_each(|errno| *self.refusals.entry(*errno).or_default() += 1);
        if let Some(errno) = demanded.or_else(|| refusal(have, op)) {
            return Err(KernelError::from_errno(op.to_string(), errno, ""));
        }
        if !is_about_another_device(have, op) {
            have.apply(&as_made(op), next_index);
        }
        self.devices_made += u32::from(matches!(op, Op::CreateDevice(_)));
        if let Some(answer) = &self.answer {
            self.events.extend(answer(op, have));
            self.bell.notify_one();
        }
        self.log.push(op.clone());
        Ok(())
    }

    /// The host's interfaces, ours among them.
    fn host(&self) -> HostView {
        let mut host = self.host.clone();
        host.interfaces.extend(self.have.values().filter_map(our_interface));
        host
    }
}

/// The errno of a fault that was asked for, after it has done to `have` what it does.
fn demanded(faults: &mut Vec<Fault>, op: &Op, have: &mut Have) -> Option<i32> {
    let fault = faults.iter_mut().find(|fault| fault.left > 0 && (fault.applies)(op))?;
    fault.left -= 1;
    (fault.does)(have);
    let errno = fault.errno;
    faults.retain(|fault| fault.left > 0);
    Some(errno)
}

/// The errno with which the kernel would refuse `op`.
fn refusal(have: &Have, op: &Op) -> Option<i32> {
    let missing = !matches!(have.device, Some(ExistingDevice::Vxlan(..)));
    match op {
        Op::CreateDevice(_) => have.device.is_some().then_some(EEXIST),
        Op::ChangeDevice(index, _) => {
            let there = matches!(have.device, Some(ExistingDevice::Vxlan(now, _)) if now == *index);
            (!there).then_some(ENODEV)
        }
        Op::AddAddress(_) | Op::SetNeighbor(..) | Op::SetFdb(..) => missing.then_some(ENODEV),
        Op::AddRoute(route) | Op::ReplaceRoute(route) if route.oif == Oif::Ours && missing => Some(ENODEV),
        Op::AddRoute(route) => {
            let rivals = have.routes.get(&route.dest).map_or(&[][..], |routes| routes);
            rivals.iter().any(|rival| rival.metric == route.metric).then_some(EEXIST)
        }
        Op::DeleteDevice(_)
        | Op::DeleteAddress(_)
        | Op::DeleteNeighbor(_)
        | Op::DeleteFdb(..)
        | Op::ClearFdb(_)
        | Op::ReplaceRoute(_)
        | Op::DeleteRoute(_) => None,
    }
}

/// What of neighbours, FDB entries and routes is other than before, as the kernel reports it.
fn differences(before: &Have, after: &Have) -> Vec<Observed> {
    let mut found = Vec::new();
    let neighbors: BTreeSet<_> = before.neighbors.keys().chain(after.neighbors.keys()).copied().collect();
    for ip in neighbors.into_iter().filter(|ip| before.neighbors.get(ip) != after.neighbors.get(ip)) {
        found.push(Observed::Neighbor(ip, after.neighbors.get(&ip).copied()));
    }
    let fdb = |have: &Have| -> BTreeSet<_> {
        have.fdb.iter().flat_map(|(mac, all)| all.iter().map(|dst| (*mac, *dst))).collect()
    };
    found.extend(fdb(before).difference(&fdb(after)).map(|(mac, dst)| Observed::FdbGone(*mac, *dst)));
    found.extend(fdb(after).difference(&fdb(before)).map(|(mac, dst)| Observed::FdbSet(*mac, *dst)));
    let routes = |have: &Have| have.routes.values().flatten().copied().collect::<BTreeSet<_>>();
    found.extend(routes(before).difference(&routes(after)).copied().map(Observed::RouteGone));
    found.extend(routes(after).difference(&routes(before)).copied().map(Observed::RouteAdded));
    found
}

fn is_about_another_device(have: &Have, op: &Op) -> bool {
    match (op, &have.device) {
        (Op::DeleteDevice(index), Some(ExistingDevice::Vxlan(ours, _) | ExistingDevice::Other(ours, _))) => {
            index != ours
        }
        _ => false,
    }
}

/// The operation with what the kernel adds to it.
fn as_made(op: &Op) -> Op {
    match op {
        Op::CreateDevice(device) if device.vxlan.port == 0 => {
            let mut device = device.clone();
            device.vxlan.port = DEFAULT_PORT;
            Op::CreateDevice(device)
        }
        op => op.clone(),
    }
}

fn our_interface(have: &Have) -> Option<Interface> {
    let Some(ExistingDevice::Vxlan(index, device)) = &have.device else { return None };
    let address =
        |net: &IpNet| InterfaceAddress { net: *net, scope: 0, permanent: true, deprecated: false, temporary: false };
    Some(Interface {
        index: *index,
        name: device.name.clone(),
        mtu: device.mtu,
        mac: Some(device.mac),
        up: device.up,
        controller: None,
        addresses: have.addresses.iter().map(address).collect(),
    })
}

impl Kernel for FakeKernel {
    async fn host(&mut self) -> Result<HostView, KernelError> {
        self.pause().await;
        let mut inner = self.inner.borrow_mut();
        inner.read("dump interfaces")?;
        Ok(inner.host())
    }

    /// By the most specific connected network, else by the best default route.
    async fn route_to(&mut self, ip: IpAddr) -> Result<Option<WayOut>, KernelError> {
        let host = self.inner.borrow().host();
        let connected = host
            .interfaces
            .iter()
            .flat_map(|interface| interface.addresses.iter().map(|address| (address.net, interface.index)))
            .filter(|(net, _)| net.contains(&ip))
            .max_by_key(|(net, _)| net.prefix_len());
        let default = host.default_routes.iter().find(|route| route.is_v6 == ip.is_ipv6());
        let index = connected.map(|(_, index)| index).or(default.map(|route| route.oif));
        Ok(index.map(|index| WayOut { index, source: None }))
    }

    async fn observe(&mut self, scope: &Scope) -> Result<Have, KernelError> {
        self.pause().await;
        let time = self.inner.borrow().reading_takes;
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        let mut inner = self.inner.borrow_mut();
        inner.read("read device")?;
        let mut have = inner.have.get(&scope.device).cloned().unwrap_or_default();
        have.routes.values_mut().for_each(|routes| {
            routes.retain(|route| route.oif == Oif::Ours || scope.covers(route.dest));
        });
        have.routes.retain(|_, routes| !routes.is_empty());
        Ok(have)
    }

    async fn apply(&mut self, scope: &Scope, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            self.pause().await;
            results.push(self.inner.borrow_mut().apply(&scope.device, op));
        }
        results
    }

    async fn changed(&mut self) {
        loop {
            let bell = self.inner.borrow().bell.clone();
            if !self.inner.borrow().events.is_empty() {
                return;
            }
            bell.notified().await;
        }
    }

    fn take_changes(&mut self, _: &Scope) -> Vec<Event> {
        std::mem::take(&mut self.inner.borrow_mut().events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kernel_state::{Device, Few, Route, Vxlan};
    use crate::model::mac::VtepMac;

    fn scope() -> Scope {
        Scope { device: "flannel.1".to_owned(), networks: vec!["10.5.0.0/16".parse().unwrap()], nic: 2 }
    }

    fn device() -> Device {
        let vxlan = Vxlan {
            vni: 1,
            local: Some("172.31.0.1".parse().unwrap()),
            lower: 2,
            port: 0,
            learning: false,
            gbp: false,
            group: None,
            ttl: 0,
            ageing: 300,
        };
        let mac = VtepMac([2, 0, 0, 0, 0, 1]);
        Device { name: "flannel.1".to_owned(), mac, mtu: 1450, up: true, tx_checksum_off: false, vxlan }
    }

    fn route() -> Route {
        let dest: IpNet = "10.5.2.0/24".parse().unwrap();
        Route { dest, gateway: Some(dest.addr()), oif: Oif::Ours, onlink: true, metric: 0, protocol: 3 }
    }

    fn errnos(results: Vec<Result<(), KernelError>>) -> Vec<i32> {
        results.into_iter().map(|result| result.err().map_or(0, |error| error.errno)).collect()
    }

    #[tokio::test]
    async fn refuses_what_the_kernel_refuses() {
        let mut fake = FakeKernel::default();
        let stray = Route { gateway: None, oif: Oif::Other(7), onlink: false, ..route() };
        let ops = [
            Op::AddRoute(route()),
            Op::DeleteNeighbor("10.5.2.0".parse().unwrap()),
            Op::ChangeDevice(FIRST_INDEX, device().into()),
            Op::CreateDevice(device().into()),
            Op::CreateDevice(device().into()),
            Op::ChangeDevice(FIRST_INDEX, device().into()),
            Op::AddRoute(stray),
            Op::AddRoute(route()),
            Op::DeleteRoute(stray),
            Op::DeleteRoute(stray),
            Op::AddRoute(route()),
        ];
        let errnos = errnos(fake.apply(&scope(), &ops).await);
        assert_eq!(errnos, [ENODEV, 0, ENODEV, 0, EEXIST, 0, 0, EEXIST, 0, 0, 0]);
        assert_eq!(fake.applied(), 7);
        let have = fake.observe(&scope()).await.unwrap();
        assert_eq!(have.routes.into_values().collect::<Vec<_>>(), [Few::from([route()])]);
        assert!(matches!(have.device, Some(ExistingDevice::Vxlan(_, device)) if device.vxlan.port == DEFAULT_PORT));
    }

    #[tokio::test]
    async fn fails_on_demand() {
        let mut fake = FakeKernel::default();
        let handle = fake.clone();
        handle.fail_next(|op| matches!(op, Op::AddRoute(_)), 12, 1);
        handle.fail_next_reads(105, 1);
        let ops = [Op::CreateDevice(device().into()), Op::AddRoute(route()), Op::AddRoute(route())];
        assert_eq!(errnos(fake.apply(&scope(), &ops).await), [0, 12, 0]);
        assert_eq!(fake.observe(&scope()).await.unwrap_err().errno, 105);
        handle.lose_device("flannel.1");
        assert_eq!(fake.observe(&scope()).await, Ok(Have::default()));
        assert_eq!((handle.reads(), handle.take_log().len(), handle.applied()), (2, 2, 0));
    }

    #[tokio::test]
    async fn our_device_is_an_interface_of_the_host() {
        let mut fake = FakeKernel::default();
        let ops = [Op::CreateDevice(device().into()), Op::AddAddress("10.5.2.0/32".parse().unwrap())];
        assert_eq!(errnos(fake.apply(&scope(), &ops).await), [0, 0]);
        assert_eq!(fake.host().await.unwrap().interfaces.len(), 1);
        assert_eq!(
            fake.route_to("10.5.2.0".parse().unwrap()).await,
            Ok(Some(WayOut { index: FIRST_INDEX, source: None }))
        );
        assert_eq!(fake.route_to("10.6.0.0".parse().unwrap()).await, Ok(None));
    }
}
