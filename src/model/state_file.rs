//! The state of a host that survives restarts and reboots. If it is lost, the host finds its lease by its public IP alone.

use super::foreign::{MESSAGE, QUOTED, shown};
use super::lease::{LeaseId, Revision};
use super::lease_set::Moment;
use super::mac::VtepMac;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

/// How much of the store's history has been seen, and until when peers are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreProgress {
    /// The newest revision. If the store is at an older one, it was wiped or restored.
    pub revision: Revision,
    /// When the hold of the last held peer ends, in time since the host was booted (`CLOCK_BOOTTIME`). Whole seconds are
    /// stored.
    pub hold_until: Option<Moment>,
}

/// The state of one host in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// MAC of our tunnel endpoint.
    pub mac: VtepMac,
    /// The etcd lease of our key when it was last written. `None` for a reservation.
    pub lease_id: Option<LeaseId>,
    /// Our subnet.
    pub subnet: Ipv4Net,
    /// The address that we had published.
    pub public_ip: Ipv4Addr,
    /// Hardware address of the external interface, to know the host by when its address has changed.
    pub nic_mac: Option<VtepMac>,
    /// How much of the store's history was seen.
    pub store_progress: StoreProgress,
    /// The MACs of other hosts that use our public IP.
    pub rivals: BTreeSet<VtepMac>,
    /// When we wrote the lease of our subnet to probe it, if the probe has not ended.
    pub trial: Option<Revision>,
}

/// The file's form. All text but the version, so that a person can read and mend it.
#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    vtep_mac: String,
    #[serde(default)]
    etcd_lease: Option<String>,
    subnet: Ipv4Net,
    public_ip: Ipv4Addr,
    #[serde(default)]
    nic_mac: Option<String>,
    #[serde(default)]
    revision: Revision,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hold_until_uptime_s: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rivals: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trial: Option<Revision>,
}

const VERSION: u32 = 1;

impl Remembered {
    /// The file's text.
    pub fn render(&self) -> String {
        let file = File {
            version: VERSION,
            vtep_mac: self.mac.to_string(),
            etcd_lease: self.lease_id.map(|id| id.to_string()),
            subnet: self.subnet,
            public_ip: self.public_ip,
            nic_mac: self.nic_mac.map(|mac| mac.to_string()),
            revision: self.store_progress.revision,
            hold_until_uptime_s: self.store_progress.hold_until.map(|until| until.as_secs()),
            rivals: self.rivals.iter().map(VtepMac::to_string).collect(),
            trial: self.trial,
        };
        serde_json::to_string_pretty(&file).unwrap_or_default() + "\n"
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_json::from_str(text).map_err(|error| shown(&error.to_string(), MESSAGE))?;
        if file.version != VERSION {
            return Err(format!("version {} is not {VERSION}", file.version));
        }
        let mac = |text: &str| text.parse::<VtepMac>().map_err(|e| e.to_string());
        let id = |text: String| {
            // Written as the bits they are, so that no id, not even a negative one, is read back as another.
            let id = u64::from_str_radix(&text, 16).ok().and_then(|bits| LeaseId::new(bits.cast_signed()));
            id.ok_or_else(|| format!("etcd_lease \"{}\" is not a lease id such as \"694d81e7\"", shown(&text, QUOTED)))
        };
        Ok(Remembered {
            mac: mac(&file.vtep_mac)?,
            lease_id: file.etcd_lease.map(id).transpose()?,
            subnet: file.subnet.trunc(),
            public_ip: file.public_ip,
            nic_mac: file.nic_mac.as_deref().map(mac).transpose()?,
            store_progress: StoreProgress {
                revision: file.revision,
                hold_until: file.hold_until_uptime_s.map(Duration::from_secs),
            },
            rivals: file.rivals.iter().map(|text| mac(text)).collect::<Result<_, _>>()?,
            trial: file.trial,
        })
    }
}

/// The name of the file: one for each prefix, VNI and public IP, since hosts may share a disk.
pub fn file_name(prefix: &str, vni: u32, public_ip: Ipv4Addr) -> String {
    format!("{}{public_ip}.json", file_name_start(prefix, vni))
}

/// The beginning of the names of all files of one prefix and VNI.
pub fn file_name_start(prefix: &str, vni: u32) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '_' { c } else { '-' };
    let prefix: String = prefix.trim_matches('/').chars().map(plain).collect();
    format!("{prefix}.{vni}.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn remembered() -> Remembered {
        Remembered {
            mac: "0e:00:00:00:00:01".parse().unwrap(),
            lease_id: LeaseId::new(0x694d_81e7),
            subnet: "10.5.34.0/24".parse().unwrap(),
            public_ip: "192.168.0.1".parse().unwrap(),
            nic_mac: None,
            store_progress: StoreProgress { revision: 12, hold_until: None },
            rivals: BTreeSet::new(),
            trial: None,
        }
    }

    #[test]
    fn what_is_rendered_is_read_back() {
        for lease_id in [None, LeaseId::new(1), LeaseId::new(i64::MAX), LeaseId::new(-2)] {
            let mac = lease_id.map(|_| remembered().mac);
            let (hold_until, trial) = (mac.map(|_| Duration::from_secs(90)), mac.map(|_| 12));
            let (rivals, store_progress) = (mac.into_iter().collect(), StoreProgress { revision: 12, hold_until });
            let state = Remembered { lease_id, nic_mac: mac, store_progress, rivals, trial, ..remembered() };
            assert_eq!(Remembered::parse(&state.render()), Ok(state));
        }
    }

    #[test]
    fn a_file_without_the_later_fields_is_read() {
        let text = r#"{"version":1,"vtep_mac":"0e:00:00:00:00:01","etcd_lease":"694d81e7","subnet":"10.5.34.0/24","public_ip":"192.168.0.1"}"#;
        assert_eq!(
            Remembered::parse(text),
            Ok(Remembered { store_progress: StoreProgress::default(), ..remembered() })
        );
    }

    #[test]
    fn broken_files_are_errors() {
        let good = remembered().render();
        for (from, to) in
            [("0e:00", "xx"), ("694d81e7", "0"), ("10.5.34.0/24", "10.5"), ("version\": 1", "version\": 2"), ("{", "")]
        {
            assert!(Remembered::parse(&good.replace(from, to)).is_err(), "{from}");
        }
    }

    #[test]
    fn files_are_named_after_network_and_host() {
        let name = file_name("/kube-centos/network", 1, "10.0.0.1".parse().unwrap());
        assert_eq!(name, "kube-centos-network.1.10.0.0.1.json");
        assert!(!file_name("/../x/..", 1, "10.0.0.1".parse().unwrap()).contains('/'));
    }

    proptest! {
        #[test]
        fn any_text_is_a_state_or_an_error(text: String) {
            let _ = Remembered::parse(&text);
        }
    }
}
