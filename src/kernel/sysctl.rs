//! The few kernel settings under `/proc/sys/net` that matter to us. They belong to the network namespace of the thread
//! that asks.

use std::fs;
use std::io;

/// Whether the host forwards IPv4 packets between its interfaces; `None` when it cannot be told.
pub fn ip_forward() -> Option<bool> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").ok()?;
    Some(text.trim() != "0")
}

/// Whether bridged packets pass through iptables (`br_netfilter` is loaded).
pub fn bridge_netfilter_loaded() -> bool {
    fs::exists("/proc/sys/net/bridge/bridge-nf-call-iptables").unwrap_or(false)
}

/// Has a device ignore IPv6 router advertisements.
pub fn set_accept_ra_off(device: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv6/conf/{device}/accept_ra"), "0")
}
