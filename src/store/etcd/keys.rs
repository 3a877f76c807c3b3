//! The keys below a prefix.

use crate::model::lease::{LeaseId, Record};
use crate::model::subnet::SubnetKey;
use crate::store::Precondition;
use etcd_client::{Compare, CompareOp, KeyValue};

/// The last segment of a network config's key.
pub(super) const CONFIG: &str = "config";

/// Where a network's config and leases stand.
pub(super) struct Keys {
    /// As the user gave it, cleaned: `/coreos.com/network`.
    pub(super) prefix: String,
    subnets: String,
}

impl Keys {
    /// The keys below `prefix`.
    pub(super) fn new(prefix: &str) -> Self {
        Keys { prefix: prefix.to_owned(), subnets: format!("{prefix}/subnets/") }
    }

    /// The network config.
    pub(super) fn config(&self) -> String {
        format!("{}/{CONFIG}", self.prefix)
    }

    /// Where the leases begin; with the slash, so that `subnets-old/...` is none of them.
    pub(super) fn subnets(&self) -> Vec<u8> {
        self.subnets.clone().into_bytes()
    }

    /// The first key behind the leases: '0' follows '/'.
    pub(super) fn subnets_end(&self) -> Vec<u8> {
        format!("{}/subnets0", self.prefix).into_bytes()
    }

    /// A lease's key.
    pub(super) fn subnet(&self, subnet: SubnetKey) -> Vec<u8> {
        format!("{}{subnet}", self.subnets).into_bytes()
    }

    /// What of a key stands behind `subnets/`.
    pub(super) fn name(&self, key: &[u8]) -> String {
        let name = key.strip_prefix(self.subnets.as_bytes()).unwrap_or(key);
        String::from_utf8_lossy(name).into_owned()
    }

    /// A key of the leases, read.
    pub(super) fn record(&self, kv: &KeyValue) -> Record {
        let name = self.name(kv.key());
        Record::decode(&name, kv.value(), LeaseId::new(kv.lease()), kv.create_revision(), kv.mod_revision())
    }
}

/// A guard in etcd's terms.
pub(super) fn precondition(key: &[u8], precondition: Precondition) -> Compare {
    match precondition {
        Precondition::Absent => Compare::create_revision(key, CompareOp::Equal, 0),
        Precondition::Unchanged(revision) => Compare::mod_revision(key, CompareOp::Equal, revision),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_flannels() {
        let keys = Keys::new("/coreos.com/network");
        assert_eq!(keys.config(), "/coreos.com/network/config");
        let subnet = SubnetKey::parse("10.5.34.0-24&fc00:5:22::-64").unwrap();
        assert_eq!(keys.subnet(subnet), b"/coreos.com/network/subnets/10.5.34.0-24&fc00:5:22::-64");
        assert_eq!(keys.name(&keys.subnet(subnet)), subnet.to_string());
    }

    #[test]
    fn names_are_all_that_stands_behind_the_slash() {
        let keys = Keys::new("/n");
        assert_eq!(keys.name(b"/n/subnets/a/b"), "a/b");
        assert_eq!(keys.name(b"/n/subnets/"), "");
        assert_eq!(keys.name(b"/n/subnets/\xff"), "\u{fffd}");
        assert!(keys.subnets() < keys.subnets_end());
    }
}
