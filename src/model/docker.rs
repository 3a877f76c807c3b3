//! Docker's bridge as the kernel shows it: whether Docker uses the subnet and the MTU that were written for it.
//!
//! Docker takes both when it starts, so a host that moves to another subnet, or whose underlay gets another MTU, needs
//! more than new files.

use super::iface::{HostView, Interface};
use ipnet::{IpNet, Ipv4Net};

/// The bridge that gets the address of Docker's `--bip`; that option and a bridge of another name exclude each other.
const BRIDGE: &str = "docker0";

/// The remedy.
const REMEDY: &str = "restart Docker: systemctl restart docker";

/// The problem of Docker's bridge, with a remedy. `None` also where Docker uses addresses outside of the overlay's
/// `network`: then it was never told of ours. `mtu` is the largest packet that containers may send, in bytes.
pub fn complaint(host: &HostView, network: Ipv4Net, subnet: Ipv4Net, mtu: u32) -> Option<String> {
    let bridge = host.interfaces.iter().find(|interface| interface.name == BRIDGE)?;
    let addresses = bridge.addresses.iter().filter_map(|address| match address.net {
        IpNet::V4(net) => Some(net),
        IpNet::V6(_) => None,
    });
    let nets: Vec<Ipv4Net> = addresses.filter(|net| network.contains(&net.addr())).collect();
    if let Some(other) = nets.iter().find(|net| net.trunc() != subnet) {
        return Some(format!(
            "{BRIDGE} has {other}, but this host's subnet is {subnet}: no other host reaches its containers; {REMEDY}"
        ));
    }
    // The bridge's own MTU says nothing while it has no container.
    let largest =
        ports(host, bridge).map(|port| port.mtu).max().filter(|largest| *largest > mtu && !nets.is_empty())?;
    Some(format!(
        "containers on {BRIDGE} have MTU {largest}, but no more than {mtu} passes: large packets may be lost; {REMEDY}"
    ))
}

fn ports<'h>(host: &'h HostView, bridge: &Interface) -> impl Iterator<Item = &'h Interface> {
    let index = bridge.index;
    host.interfaces.iter().filter(move |port| port.controller == Some(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::iface::InterfaceAddress;

    fn interface(index: u32, name: &str, mtu: u32, controller: Option<u32>, nets: &[&str]) -> Interface {
        let address = |net: &&str| InterfaceAddress {
            net: net.parse().unwrap(),
            scope: 0,
            permanent: true,
            deprecated: false,
            temporary: false,
        };
        let addresses = nets.iter().map(address).collect();
        Interface { index, name: name.into(), mtu, mac: None, up: true, controller, addresses }
    }

    /// The complaint about these in 10.5.0.0/16, of which we have 10.5.7.0/24, with an MTU of 1450.
    fn said(interfaces: &[Interface]) -> Option<String> {
        let host = HostView { interfaces: interfaces.to_vec(), ..HostView::default() };
        complaint(&host, "10.5.0.0/16".parse().unwrap(), "10.5.7.0/24".parse().unwrap(), 1450)
    }

    #[test]
    fn a_bridge_in_another_subnet_of_the_overlay_is_told_and_no_other_interface() {
        let text = said(&[interface(3, "docker0", 1500, None, &["fe80::1/64", "10.5.3.1/24"])]).unwrap();
        assert!(text.starts_with("docker0 has 10.5.3.1/24, but this host's subnet is 10.5.7.0/24"), "{text}");
        assert!(text.ends_with("systemctl restart docker"), "{text}");
        for fine in [
            interface(3, "docker0", 1500, None, &["10.5.7.1/24"]),
            interface(3, "docker0", 1500, None, &["172.17.0.1/16"]),
            interface(3, "docker0", 1500, None, &[]),
            interface(3, "lxcbr0", 1500, None, &["10.5.3.1/24"]),
        ] {
            assert_eq!(said(&[fine]), None);
        }
    }

    #[test]
    fn containers_that_send_too_much_are_told() {
        let docker0 = interface(3, "docker0", 1500, None, &["10.5.7.1/24"]);
        let text = said(&[docker0.clone(), interface(5, "veth1", 1450, Some(3), &[])]);
        assert_eq!(text, None);
        let ports = [(5, 1450, 3), (6, 8950, 3), (7, 9000, 4)]
            .map(|(index, mtu, of)| interface(index, &format!("veth{index}"), mtu, Some(of), &[]));
        let text = said(&[&[docker0], &ports[..]].concat()).unwrap();
        assert!(text.starts_with("containers on docker0 have MTU 8950, but no more than 1450 passes"), "{text}");
        let elsewhere = interface(3, "docker0", 1500, None, &["172.17.0.1/16"]);
        assert_eq!(said(&[&[elsewhere], &ports[..]].concat()), None);
    }
}
