//! What a contract needs beside the store: another host's hands.

use crate::etcd::Etcd;
use flanneld::model::lease::{Lease, LeaseAttrs, Record, Revision};
use flanneld::model::subnet::SubnetKey;
use flanneld::store::etcd::EtcdStore;
use flanneld::store::{Change, Changes, Leases, Watch, WriteOutcome};
use flanneld_lab::store::MemoryStore;
use std::net::Ipv4Addr;

/// Where the tests' network lives.
pub const PREFIX: &str = "/coreos.com/network";

/// A store and what others do to it.
pub trait Lab {
    /// The kind of store.
    type Store: Leases;
    /// A client of its own.
    fn client(&self) -> Self::Store;
    /// Writes the network config.
    fn set_config(&self, text: &str);
    /// Writes any value under any name.
    fn put(&self, name: &str, value: &str);
    /// Deletes all names that start so, at once.
    fn delete_prefix(&self, start: &str);
    /// Forgets what was before a revision.
    fn compact(&self, revision: Revision);
    /// How many etcd leases there are.
    fn leases(&self) -> usize;
}

impl Lab for MemoryStore {
    type Store = MemoryStore;

    fn client(&self) -> MemoryStore {
        self.another_client()
    }

    fn set_config(&self, text: &str) {
        MemoryStore::set_config(self, text);
    }

    fn put(&self, name: &str, value: &str) {
        MemoryStore::put(self, name, value);
    }

    fn delete_prefix(&self, start: &str) {
        MemoryStore::delete_prefix(self, start);
    }

    fn compact(&self, revision: Revision) {
        MemoryStore::compact(self, revision);
    }

    fn leases(&self) -> usize {
        MemoryStore::leases(self)
    }
}

impl Lab for Etcd {
    type Store = EtcdStore;

    fn client(&self) -> EtcdStore {
        store(&[&self.url()])
    }

    fn set_config(&self, text: &str) {
        self.ctl(&["put", &format!("{PREFIX}/config"), text]);
    }

    fn put(&self, name: &str, value: &str) {
        self.ctl(&["put", &format!("{PREFIX}/subnets/{name}"), value]);
    }

    fn delete_prefix(&self, start: &str) {
        self.ctl(&["del", "--prefix", &format!("{PREFIX}/subnets/{start}")]);
    }

    fn compact(&self, revision: Revision) {
        self.ctl(&["compact", &revision.to_string()]);
    }

    fn leases(&self) -> usize {
        // "found 2 leases", then one a line.
        self.ctl(&["lease", "list"]).lines().count() - 1
    }
}

/// A store at these members.
pub fn store(urls: &[&str]) -> EtcdStore {
    EtcdStore::new(urls.iter().map(|url| url.to_string()).collect(), PREFIX).expect("proper endpoints")
}

/// 10.5.`third`.0/24.
pub fn subnet(third: u8) -> SubnetKey {
    SubnetKey::parse(&format!("10.5.{third}.0-24")).expect("a subnet")
}

/// A host's attributes as the VXLAN backend writes them.
pub fn attrs(host: u8) -> LeaseAttrs {
    LeaseAttrs {
        public_ip: Ipv4Addr::new(192, 168, 64, host),
        public_ipv6: None,
        backend_type: "vxlan".into(),
        backend_data: Some(format!(r#"{{"VNI":1,"VtepMAC":"0e:00:00:00:00:{host:02x}"}}"#).into()),
        backend_v6_data: None,
    }
}

/// The lease in a record that has one.
pub fn lease(record: &Record) -> &Lease {
    record.content.as_ref().unwrap_or_else(|malformed| panic!("{}: {}", record.name, malformed.reason))
}

/// The lease that a write has made.
pub fn done(written: WriteOutcome) -> Lease {
    match written {
        WriteOutcome::Committed(record) => lease(&record).clone(),
        WriteOutcome::Conflict(other) => panic!("the guard did not hold: {other:?}"),
    }
}

/// What stands where a write was to go.
pub fn lost(written: WriteOutcome) -> Option<Record> {
    match written {
        WriteOutcome::Conflict(other) => other,
        WriteOutcome::Committed(record) => panic!("it was written: {record:?}"),
    }
}

/// The next `count` changes, however they are put together, and the revision after them.
pub async fn next(watch: &mut impl Watch, count: usize) -> Changes {
    let mut all = Changes::default();
    while all.changes.len() < count {
        let more = watch.next().await.expect("the watch goes on");
        assert!(more.revision >= all.revision, "{more:?} after {all:?}");
        all.revision = more.revision;
        all.changes.extend(more.changes);
    }
    all
}

/// `+name` for a key that was written, `-name` for one that was deleted.
pub fn brief(changes: &Changes) -> Vec<String> {
    let brief = |change: &Change| match change {
        Change::Put(record) => format!("+{}", record.name),
        Change::Delete { name, .. } => format!("-{name}"),
    };
    changes.changes.iter().map(brief).collect()
}
