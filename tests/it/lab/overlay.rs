//! What the hosts of an overlay keep in etcd, read and written here without the daemon's own code.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// Where the lab's network lives in etcd.
pub const PREFIX: &str = "/kube-centos/network";
/// The VXLAN device of every host.
pub const DEVICE: &str = "flannel.1";
pub const NETWORK: &str = "172.30.0.0/16";
/// The upper half of the network is left to guests ([`Lease::guest`]), so that no host is ever given a guest's subnet.
pub const CONFIG: &str =
    r#"{ "Network": "172.30.0.0/16", "SubnetLen": 24, "SubnetMax": "172.30.127.0", "Backend": { "Type": "vxlan" } }"#;
/// For many peers: hosts get their subnets from 10.224.0.0 upwards, numbered peers ([`Lease::numbered`]) have those below.
pub const WIDE_CONFIG: &str = r#"{"Network":"10.0.0.0/8","SubnetMin":"10.224.0.0","Backend":{"Type":"vxlan"}}"#;

/// One host's registration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lease {
    /// As `172.30.46.0/24`.
    pub subnet: String,
    pub public_ip: String,
    pub mac: String,
}

impl Lease {
    /// A host that nobody runs: subnet 172.30.`n`.0/24 behind 172.31.0.`n`.
    pub fn guest(n: u8) -> Lease {
        assert!(n >= 128, "the lower half of the network belongs to hosts");
        Lease {
            subnet: format!("172.30.{n}.0/24"),
            public_ip: format!("172.31.0.{n}"),
            mac: format!("0e:00:00:00:00:{n:02x}"),
        }
    }

    /// One of many hosts that nobody runs, for a network of all 10.0.0.0/8: the `n`th /24 from 10.1.0.0 on.
    pub fn numbered(n: u32) -> Lease {
        assert!(n < 223 << 8, "from 10.224.0.0 on the network belongs to hosts");
        let [_, a, b, c] = (n + 1).to_be_bytes();
        Lease {
            subnet: format!("{}/24", Ipv4Addr::from(0x0a01_0000 + (n << 8))),
            public_ip: Ipv4Addr::from(0xac10_0000 + n + 1).to_string(),
            mac: format!("0e:00:00:{a:02x}:{b:02x}:{c:02x}"),
        }
    }

    pub fn parse(key: &str, value: &str) -> Lease {
        let subnet = key.rsplit('/').next().unwrap().replacen('-', "/", 1);
        let attributes: Value = serde_json::from_str(value).unwrap_or_else(|e| panic!("{key}: {e}: {value}"));
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{key}: {attributes}")).to_owned();
        Lease { subnet, public_ip: text(&attributes["PublicIP"]), mac: text(&attributes["BackendData"]["VtepMAC"]) }
    }

    pub fn key(&self) -> String {
        self.key_under(PREFIX)
    }

    pub fn key_under(&self, prefix: &str) -> String {
        format!("{prefix}/subnets/{}", self.subnet.replace('/', "-"))
    }

    /// As flannel writes it, byte by byte.
    pub fn value(&self) -> String {
        let (ip, mac) = (json!(self.public_ip), json!(self.mac));
        format!(
            r#"{{"PublicIP":{ip},"PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":{mac}}}}}"#
        )
    }

    /// The subnet's first address, which is the host's own on the overlay.
    pub fn gateway(&self) -> &str {
        self.subnet.split('/').next().unwrap()
    }
}
