//! Ethernet addresses of VXLAN tunnel endpoints.

use std::fmt;
use std::str::FromStr;

/// The MAC of a VXLAN tunnel endpoint: what flannel publishes as `VtepMAC`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VtepMac(pub [u8; 6]);

impl VtepMac {
    /// Makes a locally administered unicast address of six random bytes.
    pub fn from_random(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & 0xfc) | 0x02;
        VtepMac(bytes)
    }

    /// Whether a host can own this address: not a group address, not all zero.
    pub fn is_usable(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// The address in a netlink attribute, if it is six bytes long.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(VtepMac)
    }
}

impl fmt::Display for VtepMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for VtepMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not a 6-byte MAC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address such as \"c6:d2:32:6f:8f:44\"")]
pub struct BadMac(String);

impl FromStr for VtepMac {
    type Err = BadMac;

    /// Reads `c6:d2:32:6f:8f:44` and, as Go's `net.ParseMAC` does, `c6-d2-…` and `c6d2.326f.8f44`.
    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.chars().take(40).collect());
        let (separator, digits) = match text.as_bytes().get(4) {
            Some(b'.') => ('.', 4),
            _ if text.contains('-') => ('-', 2),
            _ => (':', 2),
        };
        let mut bytes = [0u8; 6];
        let mut filled = 0;
        for group in text.split(separator) {
            if group.len() != digits || !group.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            for at in (0..digits).step_by(2) {
                let slot = bytes.get_mut(filled).ok_or_else(bad)?;
                *slot = u8::from_str_radix(&group[at..at + 2], 16).map_err(|_| bad())?;
                filled += 1;
            }
        }
        if filled == 6 { Ok(VtepMac(bytes)) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_forms_that_go_reads() {
        let mac = VtepMac([0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44]);
        for text in ["c6:d2:32:6f:8f:44", "C6:D2:32:6F:8F:44", "c6-d2-32-6f-8f-44", "c6d2.326f.8f44"] {
            assert_eq!(text.parse(), Ok(mac), "{text}");
        }
        assert_eq!(mac.to_string(), "c6:d2:32:6f:8f:44");
    }

    #[test]
    fn refuses_everything_else() {
        for text in
            ["", ":", "c6:d2:32:6f:8f", "c6:d2:32:6f:8f:44:00:11", "c6:d2:32:6f:8f:4", "+6:d2:32:6f:8f:44", "é6:d2"]
        {
            assert!(text.parse::<VtepMac>().is_err(), "{text}");
        }
    }

    #[test]
    fn random_addresses_are_local_unicast() {
        for first in 0..=255 {
            let mac = VtepMac::from_random([first, 0, 0, 0, 0, 1]);
            assert!(mac.is_usable() && mac.0[0] & 2 == 2, "{mac}");
        }
    }
}
