//! The operator's settings, as far as the daemon needs them.

use super::firewall::FirewallSettings;
use crate::model::iface::IfaceRules;
use std::path::PathBuf;
use std::time::Duration;

/// The operator's settings, beyond the network config in the store.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where in the store everything is (`--etcd-prefix`), for messages and for the state file's name.
    pub prefix: String,
    /// How to find the external interface.
    pub iface: IfaceRules,
    /// How our own lease and those of the peers are kept.
    pub leases: LeaseSettings,
    /// The files that the daemon writes.
    pub files: FileSettings,
    /// The rules that the firewall should hold.
    pub firewall: FirewallSettings,
    /// Extras of the device and its routes.
    pub device: DeviceSettings,
}

/// How our own lease and those of the peers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseSettings {
    /// Time to live and renewal of our own lease.
    pub times: LeaseTimes,
    /// How long to keep routes to peers whose leases disappeared although the peers did not leave, for example because etcd
    /// was wiped (`--peer-hold`).
    pub peer_hold: Duration,
    /// Whether our lease is released when the daemon stops. The caller of the daemon releases it.
    pub release_on_exit: bool,
}

/// How long our key lives without us, and how long before its end it is written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// Time to live of the etcd lease.
    pub ttl: Duration,
    /// The key is written again when no more than this is left since the last write (`--subnet-lease-renew-margin`).
    pub renew_margin: Duration,
}

impl LeaseTimes {
    /// How long a key that was just written is left as it is.
    pub(super) fn until_write(&self) -> Duration {
        self.ttl.saturating_sub(self.renew_margin)
    }
}

/// The files that the daemon writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSettings {
    /// `subnet.env`.
    pub subnet_env: PathBuf,
    /// `docker_opts.env`; `None` if it is not written.
    pub docker_opts: Option<PathBuf>,
    /// The directory of the state file.
    pub state_dir: PathBuf,
}

/// Extras of the device and its routes, both off by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceSettings {
    /// Whether a blackhole route drops packets to addresses of our subnet that no container has.
    pub blackhole_route: bool,
    /// Whether packets get their checksums before they reach our device, because hardware below it spoils them.
    pub tx_checksum_off: bool,
}
