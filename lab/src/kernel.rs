//! A kernel in memory for scenarios. It executes and refuses our operations as the real kernel does, counts them, and fails
//! on demand.

use flanneld::kernel::{Event, Kernel, KernelError};
use flanneld::model::device::ExistingDevice;
use flanneld::model::entry::{FdbEntry, FdbReport, Oif, RouteReport};
use flanneld::model::iface::{HostView, Interface, InterfaceAddress, WayOut};
use flanneld::model::kernel_state::{Entry, Have, Observed, Scope};
use flanneld::model::mac::VtepMac;
use flanneld::model::plan::Op;
use ipnet::IpNet;
use nix::libc::{EEXIST, ENODEV};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// The lowest index of devices that are created here, above the indexes of the host's own interfaces.
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

/// A stranger's answer to each of our operations: it changes the state, and something is reported.
type Answer = Box<dyn Fn(&Op, &mut Have) -> Vec<Event>>;

struct Fault {
    applies: Box<dyn Fn(&Op) -> bool>,
    errno: i32,
    left: usize,
    /// The part of the operation that is done although it fails.
    does: Box<dyn Fn(&mut Have)>,
}

impl FakeKernel {
    /// The kernel of a host with these interfaces and default routes, without anything of ours.
    pub fn new(host: HostView) -> Self {
        let fake = FakeKernel::default();
        fake.inner.borrow_mut().host = host;
        fake
    }

    /// Makes each read of our device's state take this long.
    pub fn slow_down_reading(&self, time: Duration) {
        self.inner.borrow_mut().reading_takes = time;
    }

    /// Makes the next `times` operations that match `applies` fail with `errno`.
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

    /// Makes every operation fail with this errno; `None` ends that.
    pub fn refuse_all(&self, errno: Option<i32>) {
        self.inner.borrow_mut().refuses_all = errno;
    }

    /// Makes each operation and each read take this long.
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

    /// Makes the next `times` reads fail with `errno`.
    pub fn fail_next_reads(&self, errno: i32, times: usize) {
        self.inner.borrow_mut().read_faults.extend(std::iter::repeat_n(errno, times));
    }

    /// The state of the device with this name.
    pub fn have(&self, device: &str) -> Have {
        self.inner.borrow().have.get(device).cloned().unwrap_or_default()
    }

    /// Changes the state of the device with this name as another program would, and reports the device.
    pub fn damage(&self, device: &str, change: impl FnOnce(&mut Have)) {
        self.damage_silently(device, change);
        self.report(Event::Device);
    }

    /// Changes the state, and reports each neighbour, FDB entry and route that changed, as the real kernel does for most
    /// changes.
    pub fn disturb(&self, device: &str, change: impl FnOnce(&mut Have)) {
        let before = self.have(device);
        self.damage_silently(device, change);
        let reports = differences(&before, &self.have(device));
        reports.into_iter().for_each(|entry| self.report(Event::Entry(entry)));
    }

    /// Drops the reports that were not taken yet, and reports an overrun.
    pub fn overrun(&self) {
        self.inner.borrow_mut().events.clear();
        self.report(Event::Overrun);
    }

    /// Changes the state without a report, as some changes of the real kernel happen.
    pub fn damage_silently(&self, device: &str, change: impl FnOnce(&mut Have)) {
        change(self.inner.borrow_mut().have.entry(device.to_owned()).or_default());
    }

    /// Reports an event.
    pub fn report(&self, event: Event) {
        let mut inner = self.inner.borrow_mut();
        inner.events.push(event);
        inner.bell.notify_one();
    }

    /// Changes the host's own interfaces and default routes as another program would.
    pub fn change_host(&self, change: impl FnOnce(&mut HostView)) {
        change(&mut self.inner.borrow_mut().host);
        self.report(Event::Host { index: 0, name: None });
    }

    /// Removes the device with this name and everything on it.
    pub fn lose_device(&self, device: &str) {
        self.damage(device, |have| have.apply(&Op::DeleteDevice(0), 0));
    }

    /// The operations that succeeded since the last call, in order.
    pub fn take_log(&self) -> Vec<Op> {
        std::mem::take(&mut self.inner.borrow_mut().log)
    }

    /// How many operations succeeded since [`FakeKernel::take_log`].
    pub fn applied(&self) -> usize {
        self.inner.borrow().log.len()
    }

    /// The number of full reads.
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
            have.apply(op, next_index);
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

/// The errno of a fault that was requested and applies to `op`, after the fault has done to `have` what it does.
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
    let missing = !matches!(have.device, Some(ExistingDevice::Known(..)));
    match op {
        Op::CreateDevice(_) => have.device.is_some().then_some(EEXIST),
        Op::ChangeDevice(index, _) => {
            let there = matches!(have.device, Some(ExistingDevice::Known(now, _)) if now == *index);
            (!there).then_some(ENODEV)
        }
        Op::Set(entry) | Op::Add(entry) if entry.is_on_device() && missing => Some(ENODEV),
        Op::Add(Entry::Route(route)) => {
            let rivals = have.routes.get(&route.dest).map_or(&[][..], |routes| routes);
            rivals.iter().any(|rival| rival.metric == route.metric).then_some(EEXIST)
        }
        Op::DeleteDevice(_) | Op::Set(_) | Op::Add(_) | Op::Delete(_) | Op::ClearFdb(_) => None,
    }
}

/// The changes of neighbours, FDB entries and routes, as the kernel reports them.
fn differences(before: &Have, after: &Have) -> Vec<Observed> {
    let mut found = Vec::new();
    let neighbors: BTreeSet<_> = before.neighbors.keys().chain(after.neighbors.keys()).copied().collect();
    for ip in neighbors.into_iter().filter(|ip| before.neighbors.get(ip) != after.neighbors.get(ip)) {
        found.push(Observed::Neighbor((ip, after.neighbors.get(&ip).copied())));
    }
    let fdb = |have: &Have| -> BTreeSet<_> {
        have.fdb.iter().flat_map(|(mac, all)| all.iter().map(|dst| (*mac, *dst))).collect()
    };
    let entry = |(mac, dst): &(VtepMac, IpAddr)| FdbEntry { mac: *mac, dst: *dst };
    let (old, new) = (fdb(before), fdb(after));
    found.extend(old.difference(&new).map(|pair| Observed::FdbEntry(FdbReport::Gone(entry(pair)))));
    found.extend(new.difference(&old).map(|pair| Observed::FdbEntry(FdbReport::Set(entry(pair)))));
    let routes = |have: &Have| have.routes.values().flatten().copied().collect::<BTreeSet<_>>();
    let (old, new) = (routes(before), routes(after));
    found.extend(old.difference(&new).map(|route| Observed::Route(RouteReport::Gone(*route))));
    found.extend(new.difference(&old).map(|route| Observed::Route(RouteReport::Added(*route))));
    found
}

fn is_about_another_device(have: &Have, op: &Op) -> bool {
    match (op, &have.device) {
        (Op::DeleteDevice(index), Some(device)) => *index != device.index(),
        _ => false,
    }
}

fn our_interface(have: &Have) -> Option<Interface> {
    let Some(ExistingDevice::Known(index, device)) = &have.device else { return None };
    let address =
        |net: &IpNet| InterfaceAddress { net: *net, scope: 0, permanent: true, deprecated: false, temporary: false };
    Some(Interface {
        index: *index,
        name: device.name.clone(),
        mtu: device.mtu,
        mac: device.mac,
        up: device.up,
        controller: None,
        addresses: have.addresses.keys().map(address).collect(),
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
    use flanneld::backend::Backend;
    use flanneld::backend::vxlan::Vxlan;
    use flanneld::model::device::{Device, Link};
    use flanneld::model::entry::{Address, Neighbor, Route};
    use flanneld::model::family::PerFamily;
    use flanneld::model::iface::ExternalInterface;
    use flanneld::model::table::Few;

    fn scope() -> Scope {
        let networks = PerFamily { v4: "10.5.0.0/16".parse().ok(), v6: None };
        Scope { device: "flannel.1".to_owned(), networks, nic: 2 }
    }

    /// The device as production code makes it by default.
    fn device() -> Device {
        let address = "172.31.0.1".parse().unwrap();
        let nic =
            ExternalInterface { index: 2, name: "eth0".into(), mtu: 1500, mac: None, address, public_ip: address };
        let mac = VtepMac([2, 0, 0, 0, 0, 1]);
        let own = Vxlan::default().own_entries(&nic, &HostView::default(), "10.5.1.0/24".parse().unwrap(), mac);
        own.device.get().unwrap().clone()
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
            Op::add(route()),
            Op::delete(Neighbor { ip: "10.5.2.0".parse().unwrap(), mac: VtepMac([2, 0, 0, 0, 0, 2]) }),
            Op::ChangeDevice(FIRST_INDEX, device().into()),
            Op::CreateDevice(device().into()),
            Op::CreateDevice(device().into()),
            Op::ChangeDevice(FIRST_INDEX, device().into()),
            Op::add(stray),
            Op::add(route()),
            Op::delete(stray),
            Op::delete(stray),
            Op::add(route()),
        ];
        let errnos = errnos(fake.apply(&scope(), &ops).await);
        assert_eq!(errnos, [ENODEV, 0, ENODEV, 0, EEXIST, 0, 0, EEXIST, 0, 0, 0]);
        assert_eq!(fake.applied(), 7);
        let have = fake.observe(&scope()).await.unwrap();
        assert_eq!(have.routes.into_values().collect::<Vec<_>>(), [Few::from([route()])]);
        assert!(
            matches!(have.device, Some(ExistingDevice::Known(_, Device { link: Link::Vxlan(vxlan), .. })) if vxlan.port == 8472)
        );
    }

    #[tokio::test]
    async fn fails_on_demand() {
        let mut fake = FakeKernel::default();
        let handle = fake.clone();
        handle.fail_next(|op| matches!(op, Op::Add(Entry::Route(_))), 12, 1);
        handle.fail_next_reads(105, 1);
        let ops = [Op::CreateDevice(device().into()), Op::add(route()), Op::add(route())];
        assert_eq!(errnos(fake.apply(&scope(), &ops).await), [0, 12, 0]);
        assert_eq!(fake.observe(&scope()).await.unwrap_err().errno, 105);
        handle.lose_device("flannel.1");
        assert_eq!(fake.observe(&scope()).await, Ok(Have::default()));
        assert_eq!((handle.reads(), handle.take_log().len(), handle.applied()), (2, 2, 0));
    }

    #[tokio::test]
    async fn our_device_is_an_interface_of_the_host() {
        let mut fake = FakeKernel::default();
        let ops = [Op::CreateDevice(device().into()), Op::set(Address("10.5.2.0/32".parse().unwrap()))];
        assert_eq!(errnos(fake.apply(&scope(), &ops).await), [0, 0]);
        assert_eq!(fake.host().await.unwrap().interfaces.len(), 1);
        assert_eq!(
            fake.route_to("10.5.2.0".parse().unwrap()).await,
            Ok(Some(WayOut { index: FIRST_INDEX, source: None }))
        );
        assert_eq!(fake.route_to("10.6.0.0".parse().unwrap()).await, Ok(None));
    }
}
