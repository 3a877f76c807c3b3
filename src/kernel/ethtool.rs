//! The checksum offload of a device, as `ethtool -K DEVICE tx-checksum-ip-generic off` sets it.
//!
//! This uses the old ioctl, because the crates for ethtool's netlink family read features but cannot set them. The kernel
//! reports a change of the offload as a change of the link.

use nix::errno::Errno;
use nix::libc::{c_char, ifreq};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::AsRawFd;

/// `ETHTOOL_GTXCSUM` and `ETHTOOL_STXCSUM`.
const GET: u32 = 0x16;
const SET: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

nix::ioctl_readwrite_bad!(ethtool, nix::libc::SIOCETHTOOL, ifreq);

/// Whether this device leaves the checksums of the packets that it sends to the devices below it.
///
/// # Errors
/// `ENODEV` if there is no such device, `EOPNOTSUPP` if it has no such offload.
pub fn tx_checksum(device: &str) -> Result<bool, Errno> {
    ask(device, GET, 0).map(|data| data != 0)
}

/// Sets whether this device leaves the checksums of the packets that it sends to the devices below it.
///
/// # Errors
/// The kernel's, such as `ENODEV`, `EPERM`.
pub fn set_tx_checksum(device: &str, on: bool) -> Result<(), Errno> {
    ask(device, SET, on.into()).map(drop)
}

/// Sends a command about a device in the network namespace of the calling thread.
#[allow(unsafe_code, reason = "neither std nor nix wraps this ioctl")]
fn ask(device: &str, command: u32, data: u32) -> Result<u32, Errno> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = Value { command, data };
    // SAFETY: an interface request is plain data, for which all zeros are valid.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(Errno::ENODEV);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the name in the request ends in a zero. The value that the request points to outlives the call and has the
    // size that these two commands read and write.
    unsafe { ethtool(socket.as_raw_fd(), &raw mut request) }?;
    Ok(value.data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_reported_as_enodev() {
        for name in ["nothing-here", "a-name-that-is-too-long-for-a-device"] {
            assert_eq!(tx_checksum(name), Err(Errno::ENODEV));
        }
    }
}
