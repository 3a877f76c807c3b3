//! What must be so: always, and once the faults are over. Worked out from what can be observed: the bytes in the store,
//! what the kernels were told to do, and what the daemons say of themselves.

use super::lab::{Cluster, Host, secs};
use flanneld::model::kernel_state::Entry;
use flanneld::model::lease::{Name, Record};
use flanneld::model::plan::Op;
use flanneld::store::{Change, Registry, Watch};
use flanneld_lab::store::MemoryWatch;
use futures_util::FutureExt;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use tokio::time::Instant;

/// How soon after the last mishap at it a host must know whether its subnet is its own: it looks again after a sixth of
/// its lease's time at the latest, which is at most 10 minutes.
const GRACE: Duration = secs(120);

/// More often than this no daemon has to wake.
const WAKES_AT_ONCE: u64 = 500;
const WAKES_A_SECOND: u64 = 200;

/// No more than this is told of one life.
const MOST_TOLD: usize = 20;

/// What is watched.
pub struct Laws {
    /// What was not as it must be.
    pub violations: Vec<String>,
    began: Instant,
    gentle: bool,
    digest: DefaultHasher,
    /// The subnets of the running daemons.
    subnets: BTreeMap<u8, Ipv4Net>,
    /// When the last mishap at a host began, and when it ends or ended.
    disturbed: BTreeMap<u8, (Instant, Instant)>,
    /// How often each daemon had woken, and when.
    wakes: BTreeMap<u8, (Instant, u64)>,
    watch: Option<MemoryWatch>,
    /// Whose keys there are: MAC and address.
    owners: BTreeMap<Name, (String, String)>,
}

impl Laws {
    /// Nothing seen yet. In a gentle life nothing may be removed from any kernel.
    pub fn new(hosts: u8, gentle: bool) -> Self {
        let began = Instant::now();
        Laws {
            violations: Vec::new(),
            began,
            gentle,
            digest: DefaultHasher::new(),
            subnets: BTreeMap::new(),
            disturbed: (1..=hosts).map(|number| (number, (began, began))).collect(),
            wakes: BTreeMap::new(),
            watch: None,
            owners: BTreeMap::new(),
        }
    }

    /// Something happens at a host, and for so long.
    pub fn disturbed(&mut self, number: u8, lasts: Duration) {
        let now = Instant::now();
        let (_, until) = self.disturbed[&number];
        self.disturbed.insert(number, (now, until.max(now + lasts)));
    }

    /// When the last mishap at a host began.
    pub fn cut_off_since(&self, number: u8) -> Option<Instant> {
        self.disturbed.get(&number).map(|(since, _)| *since)
    }

    /// A daemon is no more.
    pub fn stopped(&mut self, number: u8) {
        self.wakes.remove(&number);
        self.subnets.remove(&number);
    }

    /// The store is another one.
    pub fn store_went_back(&mut self) {
        self.watch = None;
        let until = Instant::now();
        self.disturbed.values_mut().for_each(|(_, end)| *end = until.max(*end));
    }

    /// What was done so far does not count.
    pub fn forget_logs(&mut self, cluster: &Cluster) {
        cluster.running().for_each(|host| drop(host.kernel.take_log()));
    }

    /// Stands for all that was observed.
    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// Looks at everything.
    pub fn observe(&mut self, cluster: &Cluster) {
        self.look_at_kernels(cluster);
        self.look_at_subnets(cluster);
        self.look_at_store(cluster);
        self.look_at_wakes(cluster);
        for host in cluster.running() {
            (host.number, host.status_line(), host.heard().len()).hash(&mut self.digest);
        }
        let snapshot = cluster.store.snapshot();
        (self.began.elapsed(), snapshot.revision, cluster.store.leases()).hash(&mut self.digest);
        snapshot.records.iter().for_each(|record| format!("{record:?}").hash(&mut self.digest));
    }

    /// What is wrong now that must be right once the faults are over.
    pub fn wrong_now(&self, cluster: &Cluster) -> Vec<String> {
        let mut wrong = cluster.differences();
        let told = |host: &Host| (!host.is_ready() || !host.reasons().is_empty()).then(|| host.status_line());
        wrong.extend(
            cluster.running().filter_map(|host| Some(format!("host {} is not well: {}", host.number, told(host)?))),
        );
        let hosts = cluster.numbers().len();
        let subnets: BTreeSet<_> = cluster.running().map(Host::subnet).collect();
        if subnets.len() < hosts {
            wrong.push(format!("{hosts} hosts have only {} subnets", subnets.len()));
        }
        for host in cluster.running() {
            let leases: Vec<_> = cluster.peers().into_iter().filter(|peer| peer.address == host.nic.address).collect();
            if leases.len() != 1 {
                wrong.push(format!("host {} has {} leases: {leases:?}", host.number, leases.len()));
            }
        }
        wrong
    }

    /// Notes what is wrong once the faults are over.
    pub fn check_end(&mut self, cluster: &Cluster) {
        for wrong in self.wrong_now(cluster) {
            self.violation(format!("after recovery: {wrong}"));
        }
        self.violation(cluster.describe());
    }

    fn violation(&mut self, what: String) {
        if self.violations.len() < MOST_TOLD {
            self.violations.push(format!("{:.3} s: {what}", self.began.elapsed().as_secs_f64()));
        }
    }

    /// While only the store fails, and no key of one host alone goes, nothing is removed from any kernel.
    fn look_at_kernels(&mut self, cluster: &Cluster) {
        for number in cluster.numbers() {
            for op in cluster[number].kernel.take_log() {
                format!("{op:?}").hash(&mut self.digest);
                let removes = matches!(
                    op,
                    Op::Delete(Entry::Neighbor(_))
                        | Op::Delete(Entry::FdbEntry(_))
                        | Op::ClearFdb(_)
                        | Op::Delete(Entry::Route(_))
                        | Op::Delete(Entry::Address(_))
                        | Op::DeleteDevice(_)
                );
                if removes && self.gentle {
                    self.violation(format!("host {number} removed without need: {op}"));
                }
            }
        }
    }

    /// A daemon never changes its subnet, and no two that are connected and ready have the same.
    fn look_at_subnets(&mut self, cluster: &Cluster) {
        let now = Instant::now();
        let mut ready: BTreeMap<Ipv4Net, u8> = BTreeMap::new();
        for host in cluster.running() {
            let (number, status) = (host.number, host.status());
            let Some(subnet) = status.read().own.subnet else { continue };
            let before = *self.subnets.entry(number).or_insert(subnet);
            if before != subnet {
                self.violation(format!("host {number} changed its subnet from {before} to {subnet}"));
                self.subnets.insert(number, subnet);
            }
            let is_calm = self.disturbed[&number].1 + GRACE < now;
            if is_calm
                && status.read().reasons().is_empty()
                && let Some(other) = ready.insert(subnet, number)
            {
                self.violation(format!("hosts {other} and {number} are connected and ready, and both have {subnet}"));
            }
        }
    }

    /// Nobody spins.
    fn look_at_wakes(&mut self, cluster: &Cluster) {
        let now = Instant::now();
        for host in cluster.running() {
            let (since, before) = self.wakes.insert(host.number, (now, host.wakes())).unwrap_or((now, 0));
            let wakes = host.wakes() - before;
            if wakes > WAKES_AT_ONCE + WAKES_A_SECOND * (now - since).as_secs() {
                self.violation(format!("host {} woke {wakes} times in {:?}", host.number, now - since));
            }
        }
    }

    /// Nobody overwrites the key of another host.
    fn look_at_store(&mut self, cluster: &Cluster) {
        let Some(mut watch) = self.watch.take() else { return self.begin(cluster) };
        while let Some(news) = watch.next().now_or_never() {
            let Ok(news) = news else { return self.begin(cluster) };
            for change in news.changes {
                let (Change::Put(Record { name, .. }) | Change::Delete { name, .. }) = &change;
                let before = self.owners.remove(name);
                let Change::Put(record) = &change else { continue };
                let Some(owner) = owner(record) else { continue };
                if before.as_ref().is_some_and(|(mac, ip)| *mac != owner.0 && *ip != owner.1) && !is_guest(&owner) {
                    self.violation(format!("the key {name} of {before:?} was overwritten by {owner:?}"));
                }
                self.owners.insert(name.clone(), owner);
            }
        }
        self.watch = Some(watch);
    }

    fn begin(&mut self, cluster: &Cluster) {
        let snapshot = cluster.store.snapshot();
        self.owners = snapshot.records.iter().filter_map(|r| Some((r.name.clone(), owner(r)?))).collect();
        self.watch = cluster.store.watch(snapshot.revision).now_or_never().and_then(Result::ok);
    }
}

fn owner(record: &Record) -> Option<(String, String)> {
    let lease = record.content.as_ref().ok()?;
    Some((lease.attrs.vtep_mac()?.to_string(), lease.attrs.public_ip.to_string()))
}

fn is_guest((mac, _): &(String, String)) -> bool {
    mac.starts_with("0e:00:00:00:0")
}
