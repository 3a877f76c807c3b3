//! Hosts around one store.

mod expect;
mod host;

pub use expect::Peer;
pub use host::Host;
#[allow(unused_imports, reason = "the simulator starts other daemons")]
pub use host::Launch;

use flanneld_lab::store::MemoryStore;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Index, IndexMut};
use std::time::Duration;
use tokio::task::LocalSet;
use tokio::time::Instant;

/// The network config that clusters start with: hosts choose among 10.5.1.0 to 10.5.99.0, so that others are free.
pub const CONFIG: &str = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"vxlan"}}"#;

/// How long leases live, unless a scenario says otherwise: days cost seconds.
pub const TTL: Duration = hours(1);

/// How long before its end a lease is written again.
pub const RENEW_MARGIN: Duration = mins(5);

/// Name of the device of the overlay.
pub const DEVICE: &str = "flannel.1";

/// Milliseconds.
pub const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Seconds.
pub const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Minutes.
pub const fn mins(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

/// Hours.
pub const fn hours(count: u64) -> Duration {
    Duration::from_secs(count * 3600)
}

/// Days.
pub const fn days(count: u64) -> Duration {
    hours(24 * count)
}

/// What all chance in a run grows from.
pub fn seed() -> u64 {
    std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Hosts around one store. Host `n` is `cluster[n]`; nothing moves but in [`Cluster::pass`].
pub struct Cluster {
    /// The administrator's handle on the store.
    pub store: MemoryStore,
    /// Keys that must have no effect on any host.
    pub hostile: BTreeSet<String>,
    /// Whether the config says that peers on the same link are routed to directly.
    pub direct: bool,
    hosts: BTreeMap<u8, Host>,
    tasks: LocalSet,
    began: Instant,
    seed: u64,
}

impl Cluster {
    /// Hosts 1 to `count`, switched off, and a store with the network config.
    pub fn new(count: u8) -> Self {
        Cluster::with_seed(count, seed())
    }

    /// The same with this seed.
    pub fn with_seed(count: u8, seed: u64) -> Self {
        let store = MemoryStore::new();
        store.set_config(CONFIG);
        let hosts = (1..=count).map(|number| (number, Host::new(number, store.another_client()))).collect();
        let (tasks, began) = (LocalSet::new(), Instant::now());
        Cluster { store, hosts, tasks, began, seed, hostile: BTreeSet::new(), direct: false }
    }

    /// The config says from now on whether peers on the same link are routed to directly; daemons read it when they start.
    pub fn set_direct(&mut self, direct: bool) {
        self.direct = direct;
        let with = format!(r#""DirectRouting":{direct},"Type""#);
        self.store.set_config(&CONFIG.replace(r#""Type""#, &with));
    }

    /// Hosts 1 to `count`, all of them up, ready and connected.
    pub async fn joined(count: u8) -> Self {
        let mut cluster = Cluster::new(count);
        cluster.start_all();
        cluster.until_ready().await;
        cluster.settle().await;
        cluster
    }

    /// Numbers of all hosts.
    pub fn numbers(&self) -> Vec<u8> {
        self.hosts.keys().copied().collect()
    }

    /// The hosts whose daemon runs.
    pub fn running(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values().filter(|host| host.runs())
    }

    /// Starts the daemon of a host.
    pub fn start(&mut self, number: u8) {
        let host = self.hosts.get_mut(&number).expect("there is such a host");
        host.start(&self.tasks, self.began, self.seed);
    }

    /// Starts the daemons of all hosts in the same moment.
    pub fn start_all(&mut self) {
        self.numbers().into_iter().for_each(|number| self.start(number));
    }

    /// Stops the daemon of a host, as a crash does: in the middle of whatever it does. Kernel and files stay.
    pub fn stop(&mut self, number: u8) {
        self[number].stop();
    }

    /// Stops a daemon and starts it at once.
    pub fn restart(&mut self, number: u8) {
        self.stop(number);
        self.start(number);
    }

    /// Lets time pass.
    pub async fn pass(&self, time: Duration) {
        self.tasks.run_until(tokio::time::sleep(time)).await;
        let ended: Vec<u8> = self.hosts.values().filter(|host| host.has_ended()).map(|host| host.number).collect();
        assert!(ended.is_empty(), "the daemons of hosts {ended:?} ended by themselves");
    }

    /// Lets time pass until something is so; tells how long that took.
    pub async fn until(&self, limit: Duration, what: &str, is_so: impl Fn(&Self) -> bool) -> Duration {
        let from = Instant::now();
        while !is_so(self) {
            assert!(from.elapsed() < limit, "not within {limit:?}: {what}\n{}", self.describe());
            self.pass(millis(10)).await;
        }
        from.elapsed()
    }

    /// Lets time pass until all running daemons have said that they are ready.
    pub async fn until_ready(&self) -> Duration {
        self.until(secs(30), "all hosts are ready", |cluster| cluster.running().all(Host::is_ready)).await
    }

    /// Lets time pass until every running host holds what the leases say; tells how long that took.
    pub async fn settle(&self) -> Duration {
        let from = Instant::now();
        while !self.differences().is_empty() {
            if from.elapsed() > secs(30) {
                self.assert_settled();
            }
            self.pass(millis(10)).await;
        }
        from.elapsed()
    }

    /// Fails unless every running host holds now what the leases say.
    pub fn assert_settled(&self) {
        let differences = self.differences();
        assert!(differences.is_empty(), "{}\n{}", differences.join("\n"), self.describe());
    }

    /// How every host does, for messages.
    pub fn describe(&self) -> String {
        let keys = self.store.snapshot().records.into_iter().map(|record| format!("  {}\n", record.name));
        let hosts = self.hosts.values().map(|host| format!("  {}: {}\n", host.number, host.status_line()));
        format!("keys:\n{}hosts:\n{}", keys.collect::<String>(), hosts.collect::<String>())
    }
}

impl Index<u8> for Cluster {
    type Output = Host;

    fn index(&self, number: u8) -> &Host {
        &self.hosts[&number]
    }
}

impl IndexMut<u8> for Cluster {
    fn index_mut(&mut self, number: u8) -> &mut Host {
        self.hosts.get_mut(&number).expect("there is such a host")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was SEED={} after {:?}", self.seed, self.began.elapsed());
        }
    }
}
