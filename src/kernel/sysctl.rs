//! The few kernel settings that matter. Those under `/proc/sys/net` belong to the network namespace of the calling thread.

use std::fs;
use std::io;

/// Whether the host forwards IPv4 packets between its interfaces; `None` if the setting cannot be read.
pub fn ip_forward() -> Option<bool> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").ok()?;
    Some(text.trim() != "0")
}

/// Whether bridged packets pass through iptables (`br_netfilter` is loaded).
pub fn bridge_netfilter_loaded() -> bool {
    fs::exists("/proc/sys/net/bridge/bridge-nf-call-iptables").unwrap_or(false)
}

/// The UDP port of VXLAN devices for which none is requested; `None` while the kernel's module `vxlan` is not loaded. The value
/// cannot change while the module is loaded.
pub fn vxlan_port() -> Option<u16> {
    fs::read_to_string("/sys/module/vxlan/parameters/udp_port").ok()?.trim().parse().ok()
}

/// Makes a device ignore IPv6 router advertisements.
///
/// # Errors
/// The error of the write, for example because the device is gone.
pub fn set_accept_ra_off(device: &str) -> io::Result<()> {
    fs::write(format!("/proc/sys/net/ipv6/conf/{device}/accept_ra"), "0")
}
