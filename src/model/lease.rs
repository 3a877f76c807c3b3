//! A lease: one host's subnet and how to reach it, as it stands in etcd.

use super::backend_data::BackendData;
use super::foreign::{QUOTED, shown};
use super::go_json::GoObject;
use super::mac::VtepMac;
use super::subnet::{BadKey, SubnetKey};
use ipnet::Ipv4Net;
use std::borrow::Cow;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroI64;
use std::sync::Arc;

/// A store's revision: grows with each change (etcd's `mod_revision` and `create_revision`).
pub type Revision = i64;

/// The etcd lease that keeps a key alive in the store. A key without one is a reservation and never expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub NonZeroI64);

impl LeaseId {
    /// The id etcd gives; its 0 means that there is none.
    pub fn new(id: i64) -> Option<Self> {
        NonZeroI64::new(id).map(LeaseId)
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A host's subnet and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The subnet, from the key.
    pub subnet: SubnetKey,
    /// How to reach the host, from the value.
    pub attrs: LeaseAttrs,
    /// `None` for a reservation.
    pub lease_id: Option<LeaseId>,
    /// When the key was made: in a conflict the older one wins.
    pub created: Revision,
    /// When the key was last written: guards our own writes.
    pub modified: Revision,
}

/// The last segment of a key under `subnets/`, shared by all who know it. See [`bounded_name`].
pub type Name = Arc<str>;

/// The longest name, in bytes, that is kept as it is. The longest that names a subnet has 62.
const LONGEST_NAME: usize = 128;

/// The longest value, in bytes, that is read. What flannel writes has some 200; a store may hold values of a megabyte under
/// each of ten thousand keys, and all of them stay in memory.
pub const LONGEST_VALUE: usize = 4096;

/// How a key segment is known here: as it is, or if it is too long to name a subnet, as its beginning, a hash and its
/// length. So each key keeps a name of its own, and none costs much memory.
pub fn bounded_name(segment: &str) -> Name {
    if segment.len() <= LONGEST_NAME {
        return segment.into();
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(segment.as_bytes());
    let beginning: String = segment.chars().take(20).collect();
    format!("{beginning}...{:016x} ({} bytes)", hasher.finish(), segment.len()).into()
}

/// A key under `subnets/` as it was read: a lease, or something that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The last segment of the key.
    pub name: Name,
    /// The lease, or why it is none.
    pub content: Result<Lease, Malformed>,
}

/// Why a key or its value is no lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// The problem, for log and status.
    pub reason: String,
    /// The subnet that nobody else may be given, as far as the key tells.
    pub occupies: Option<Ipv4Net>,
    /// When the key was last written.
    pub modified: Revision,
}

impl Record {
    /// Reads a key segment and its value. Never fails: what is no lease is a record that says why. Of a value that is
    /// longer than [`LONGEST_VALUE`] nothing is read or kept.
    pub fn decode(name: &str, value: &[u8], lease_id: Option<LeaseId>, created: Revision, modified: Revision) -> Self {
        let malformed = |reason, occupies| Malformed { reason, occupies, modified };
        let no_subnet = |bad: BadKey| malformed(format!("the key names no subnet: {}", bad.reason), bad.occupies);
        let content = SubnetKey::parse(name).map_err(no_subnet).and_then(|subnet| {
            let attrs = match value.len() {
                ..=LONGEST_VALUE => LeaseAttrs::from_json(value),
                long => Err(format!("the value has {long} bytes, a lease has {LONGEST_VALUE} at most")),
            };
            let attrs = attrs.map_err(|reason| malformed(reason, Some(subnet.v4)))?;
            Ok(Lease { subnet, attrs, lease_id, created, modified })
        });
        Record { name: bounded_name(name), content }
    }

    /// A record of which only the subnet counts: nobody else may have it.
    pub fn taken(&self) -> Record {
        let reason = "it is held for a peer that has gone".to_owned();
        let malformed = Malformed { reason, occupies: self.occupies(), modified: self.modified() };
        Record { name: self.name.clone(), content: Err(malformed) }
    }

    /// When the key was last written.
    pub fn modified(&self) -> Revision {
        match &self.content {
            Ok(lease) => lease.modified,
            Err(malformed) => malformed.modified,
        }
    }

    /// The IPv4 addresses that are taken by this key, whether or not it is a proper lease.
    pub fn occupies(&self) -> Option<Ipv4Net> {
        match &self.content {
            Ok(lease) => Some(lease.subnet.v4),
            Err(malformed) => malformed.occupies,
        }
    }
}

/// The value of a lease's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// The underlay address of the host.
    pub public_ip: Ipv4Addr,
    /// The underlay IPv6 address of a dual-stack host.
    pub public_ipv6: Option<Ipv6Addr>,
    /// `vxlan`, `host-gw`, ...; empty for `alloc`.
    pub backend_type: Cow<'static, str>,
    /// The backend's own JSON for IPv4.
    pub backend_data: Option<BackendData>,
    /// The backend's own JSON for IPv6.
    pub backend_v6_data: Option<BackendData>,
}

impl LeaseAttrs {
    /// Reads the JSON of flannel, today's and 0.7's form alike. An absent PublicIP is 0.0.0.0, as in Go.
    ///
    /// # Errors
    /// Says which member is wrong, and how.
    pub fn from_json(text: &[u8]) -> Result<Self, String> {
        let object = GoObject::parse(text).map_err(|e| format!("the value is not a JSON object: {e}"))?;
        if object.has("PublicIP") && object.raw("PublicIP").is_none() {
            return Err("PublicIP is null, not an IPv4 address".into());
        }
        let kind: Option<String> = object.get("BackendType", "text")?;
        let data = |name| object.raw(name).map(BackendData::from);
        Ok(LeaseAttrs {
            public_ip: object.get("PublicIP", "an IPv4 address")?.unwrap_or(Ipv4Addr::UNSPECIFIED),
            public_ipv6: object.get("PublicIPv6", "an IPv6 address")?,
            // All have the same, as a rule.
            backend_type: kind.map_or("".into(), |kind| if kind == "vxlan" { "vxlan".into() } else { kind.into() }),
            backend_data: data("BackendData"),
            backend_v6_data: data("BackendV6Data"),
        })
    }

    /// The JSON that today's flannel writes, byte for byte: field order, no spaces, `PublicIPv6` always there, what
    /// is empty left out behind it.
    pub fn to_json(&self) -> String {
        let mut text = format!("{{\"PublicIP\":\"{}\",\"PublicIPv6\":", self.public_ip);
        match self.public_ipv6 {
            Some(v6) => text.push_str(&format!("\"{v6}\"")),
            None => text.push_str("null"),
        }
        if !self.backend_type.is_empty() {
            text.push_str(&format!(",\"BackendType\":{}", serde_json::Value::from(&*self.backend_type)));
        }
        for (name, data) in [("BackendData", &self.backend_data), ("BackendV6Data", &self.backend_v6_data)] {
            if let Some(data) = data {
                text.push_str(&format!(",\"{name}\":{}", data.text()));
            }
        }
        text.push('}');
        text
    }
}

impl LeaseAttrs {
    /// The MAC of the host's VXLAN tunnel endpoint, if the lease has a readable one.
    pub fn vtep_mac(&self) -> Option<VtepMac> {
        self.backend_data.as_ref()?.vxlan().ok().map(|data| data.mac)
    }
}

impl fmt::Display for LeaseAttrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = self.backend_data.as_ref().map(BackendData::text).unwrap_or_default();
        write!(f, "{} {} {}", self.public_ip, shown(&*self.backend_type, QUOTED), shown(&*data, QUOTED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::backend_data::VxlanData;
    use proptest::prelude::*;

    const TODAY: &str = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
    const DUAL: &str = r#"{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}}"#;
    const HOST_GW: &str = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}"#;
    const ALLOC: &str = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null}"#;
    const OF_0_7: &str =
        r#"{"PublicIP":"172.20.0.114","BackendType":"vxlan","BackendData":{"VtepMAC":"56:27:7d:1c:08:22"}}"#;

    #[test]
    fn todays_forms_are_written_as_they_were_read() {
        for text in [TODAY, DUAL, HOST_GW, ALLOC] {
            assert_eq!(LeaseAttrs::from_json(text.as_bytes()).unwrap().to_json(), text);
        }
    }

    #[test]
    fn the_form_of_0_7_is_read_and_written_in_todays() {
        let attrs = LeaseAttrs::from_json(OF_0_7.as_bytes()).unwrap();
        assert_eq!(attrs.public_ip, Ipv4Addr::new(172, 20, 0, 114));
        assert_eq!(attrs.backend_data, Some(r#"{"VtepMAC":"56:27:7d:1c:08:22"}"#.into()));
        assert!(attrs.to_json().contains(r#""PublicIPv6":null"#));
    }

    #[test]
    fn the_vtep_is_read_from_both_forms_and_written_in_todays() {
        let attrs = LeaseAttrs::from_json(TODAY.as_bytes()).unwrap();
        let data = attrs.backend_data.as_ref().unwrap().vxlan().unwrap();
        assert_eq!((data.vni, data.mac.to_string()), (Some(1), "c6:d2:32:6f:8f:44".into()));
        assert_eq!(Some(data.to_json().into()), attrs.backend_data);
        let old = LeaseAttrs::from_json(OF_0_7.as_bytes()).unwrap();
        assert_eq!(old.vtep_mac(), Some("56:27:7d:1c:08:22".parse().unwrap()));
        for text in ["1", "{}", r#"{"VtepMAC":"x"}"#, r#"{"VNI":-1,"VtepMAC":"56:27:7d:1c:08:22"}"#] {
            assert!(VxlanData::from_json(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_go_cannot_decode_is_an_error_that_names_the_member() {
        for (text, names) in [
            ("", "not a JSON object"),
            ("[]", "not a JSON object"),
            (r#"{"PublicIP":null}"#, "PublicIP is null"),
            (r#"{"PublicIP":"300.1.1.1"}"#, "PublicIP is \"300.1.1.1\""),
            (r#"{"PublicIP":7}"#, "PublicIP is 7"),
            (r#"{"PublicIP":"10.0.0.1","BackendType":{}}"#, "BackendType is {}"),
        ] {
            let error = LeaseAttrs::from_json(text.as_bytes()).unwrap_err();
            assert!(error.contains(names), "{text}: {error}");
        }
    }

    #[test]
    fn a_bad_value_still_occupies_its_subnet() {
        let record = Record::decode("10.5.34.0-24", b"garbage", None, 1, 1);
        assert!(record.content.is_err());
        assert_eq!(record.occupies(), Some("10.5.34.0/24".parse().unwrap()));
        assert_eq!(Record::decode("foo", TODAY.as_bytes(), None, 1, 1).occupies(), None);
    }

    #[test]
    fn a_long_value_is_no_lease_and_is_not_kept() {
        let lease = |pad: usize| {
            let data = format!(r#"{{"x":"{}"}}"#, "a".repeat(pad));
            let value = format!(r#"{{"PublicIP":"192.168.64.3","BackendType":"vxlan","BackendData":{data}}}"#);
            (value.len(), Record::decode("10.5.34.0-24", value.as_bytes(), None, 1, 1))
        };
        let short = lease(0).0;
        assert!(lease(LONGEST_VALUE - short).1.content.is_ok());
        let (len, record) = lease(LONGEST_VALUE - short + 1);
        let malformed = record.content.clone().unwrap_err();
        assert_eq!(malformed.reason, format!("the value has {len} bytes, a lease has 4096 at most"));
        assert_eq!(record.occupies(), Some("10.5.34.0/24".parse().unwrap()));
    }

    #[test]
    fn a_long_name_is_shortened_and_stays_different_from_others() {
        let names: Vec<String> = ["", "x"].map(|end| "\u{10348}".repeat(1 << 18) + end).into();
        let short: Vec<Name> = names.iter().map(|name| bounded_name(name)).collect();
        assert!(
            short[0] != short[1] && short[0].starts_with("\u{10348}\u{10348}") && short[0].ends_with("(1048576 bytes)")
        );
        assert!(short.iter().all(|name| name.len() <= LONGEST_NAME), "{short:?}");
        assert_eq!(bounded_name(&short[0]), short[0]);
        let record = Record::decode(&(names[0].clone() + "10.5.34.0-24"), b"{}", None, 1, 1);
        assert_eq!(record.occupies(), Some("10.5.34.0/24".parse().unwrap()), "flannel takes it for a lease");
        assert!(record.name.len() <= LONGEST_NAME);
    }

    proptest! {
        #[test]
        fn any_bytes_are_attributes_or_an_error(bytes: Vec<u8>) {
            let _ = LeaseAttrs::from_json(&bytes);
        }

        #[test]
        fn what_is_written_is_read_back(ip: u32, v6: Option<u128>, kind in "[a-z\"\\\\é-]{0,8}", data: Option<u32>) {
            let attrs = LeaseAttrs {
                public_ip: ip.into(),
                public_ipv6: v6.map(Ipv6Addr::from),
                backend_type: kind.into(),
                backend_data: data.map(|n| format!("{{\"VNI\":{n}}}").into()),
                backend_v6_data: None,
            };
            prop_assert_eq!(LeaseAttrs::from_json(attrs.to_json().as_bytes()), Ok(attrs));
        }
    }
}
