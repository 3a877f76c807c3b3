//! The network device of an overlay. A new kind of device is a file here, a variant of [`Link`] and an arm in each of its
//! methods.

mod vxlan;

pub use vxlan::Vxlan;

use super::mac::VtepMac;
use std::fmt;

/// The device that an overlay needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DeviceWant {
    /// The device is not known yet, so nothing may be changed.
    #[default]
    Unknown,
    /// The overlay needs no device of its own.
    None,
    /// The overlay needs this device.
    Is(Device),
}

impl DeviceWant {
    /// Gives the device, if one is needed and known.
    pub fn get(&self) -> Option<&Device> {
        match self {
            DeviceWant::Is(device) => Some(device),
            DeviceWant::Unknown | DeviceWant::None => None,
        }
    }

    /// Gives the device to be changed, if one is needed and known.
    pub fn get_mut(&mut self) -> Option<&mut Device> {
        match self {
            DeviceWant::Is(device) => Some(device),
            DeviceWant::Unknown | DeviceWant::None => None,
        }
    }
}

/// A network device of a kind that flanneld makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `flannel.<VNI>`, or `flannel-v6.<VNI>` for an IPv6 overlay.
    pub name: String,
    /// The hardware address; `None` for a device without one, or if it does not matter.
    pub mac: Option<VtepMac>,
    /// The largest inner packet, in bytes.
    pub mtu: u32,
    /// Whether the device is administratively up.
    pub up: bool,
    /// Whether packets get their checksums before they reach the device (`tx-checksum-ip-generic off`). This is slow, but
    /// needed where an interface below spoils checksums. While it is not wanted, the device keeps the setting it has.
    pub tx_checksum_off: bool,
    /// The kind of device, with the parameters of that kind.
    pub link: Link,
}

/// A kind of device, with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// A VXLAN tunnel endpoint.
    Vxlan(Vxlan),
}

/// The way from a device as it is to the device that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// Nothing.
    Same,
    /// A change in place, which keeps what is on the device. The text says what differs.
    Change(String),
    /// A new device, because the kernel cannot change this one. The text says what differs.
    Recreate(String),
}

impl Link {
    /// Compares with the link of an existing device.
    pub fn compare(&self, have: &Link) -> Comparison {
        match (self, have) {
            (Link::Vxlan(want), Link::Vxlan(have)) => want.compare(have),
        }
    }
}

/// The kind of link, for people.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Link::Vxlan(_) => "VXLAN",
        })
    }
}

impl Device {
    /// Compares with an existing device of the same name.
    pub fn compare(&self, have: &Device) -> Comparison {
        let link = match self.link.compare(&have.link) {
            Comparison::Recreate(why) => return Comparison::Recreate(why),
            Comparison::Change(why) => why,
            Comparison::Same => String::new(),
        };
        let mut found = Differences::default();
        if let Some(mac) = self.mac {
            found.note("MAC", have.mac.map_or("none".to_owned(), |mac| mac.to_string()), mac.to_string());
        }
        found.note("MTU", have.mtu, self.mtu);
        found.note("up", have.up, self.up);
        found.add(link);
        if self.tx_checksum_off {
            found.note("tx-checksum off", have.tx_checksum_off, true);
        }
        if found.0.is_empty() { Comparison::Same } else { Comparison::Change(found.0) }
    }
}

/// A device that exists under the name of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExistingDevice {
    /// A device of a kind that flanneld makes, with its interface index.
    Known(u32, Device),
    /// A device of another kind, with its interface index and its kind.
    Other(u32, String),
}

impl ExistingDevice {
    /// The interface index.
    pub fn index(&self) -> u32 {
        match self {
            ExistingDevice::Known(index, _) | ExistingDevice::Other(index, _) => *index,
        }
    }

    /// Gives the device if it is of a kind that flanneld makes.
    pub fn known(&self) -> Option<&Device> {
        match self {
            ExistingDevice::Known(_, device) => Some(device),
            ExistingDevice::Other(..) => None,
        }
    }
}

/// A list such as `MTU 1400, not 1450; up false, not true`.
#[derive(Default)]
struct Differences(String);

impl Differences {
    fn note<T: PartialEq + fmt::Display>(&mut self, what: &str, have: T, want: T) {
        if have != want {
            self.add(format!("{what} {have}, not {want}"));
        }
    }

    fn add(&mut self, text: String) {
        if !(self.0.is_empty() || text.is_empty()) {
            self.0.push_str("; ");
        }
        self.0.push_str(&text);
    }
}
