//! Kinds of hostile or broken leases, each as many as wanted: what a cloned image, a faulty host or an intruder can put
//! into the store. All of them lie in 10.0.0.0/8 outside of 10.255.0.0/16, whose hosts have /24 subnets.

use std::net::Ipv4Addr;

/// A key below `subnets/` and its value.
pub type Pair = (String, String);

/// A kind of leases.
pub struct Kind {
    /// What they have in common.
    pub name: &'static str,
    /// The lease with this number. Number 0 is the oldest.
    pub lease: fn(u32) -> Pair,
}

/// All kinds. The first is of good ones, for comparison.
pub const KINDS: [Kind; 11] = [
    Kind { name: "good", lease: |n| (subnet(n, 24), value(address(n), mac(n))) },
    Kind { name: "one MAC", lease: |n| (subnet(n, 24), value(address(n), mac(0))) },
    Kind { name: "one MAC and address", lease: |n| (subnet(n, 24), value(address(0), mac(0))) },
    Kind { name: "one PublicIP", lease: |n| (subnet(n, 24), value(address(0), mac(n))) },
    Kind { name: "one subnet, many IPv6 parts", lease: |n| (dual(n), value(address(n), mac(n))) },
    Kind { name: "nested subnets", lease: |n| (nested(n), value(address(n), mac(n))) },
    Kind { name: "small subnets in one", lease: |n| (small(n), value(address(n), mac(n))) },
    Kind { name: "addresses in others' subnets", lease: |n| (subnet(n, 24), value(inside(n + 1), mac(n))) },
    Kind { name: "addresses in one subnet", lease: |n| (subnet(n, 24), value(inside(0), mac(n))) },
    Kind { name: "long values", lease: |n| (subnet(n, 24), format!("{{\"x\":\"{}\"}}", "a".repeat(1 << 16))) },
    Kind { name: "junk keys", lease: |n| (format!("{}-{n}", "junk".repeat(n as usize % 500)), String::new()) },
];

fn value(address: Ipv4Addr, mac: String) -> String {
    format!(
        r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    )
}

fn address(n: u32) -> Ipv4Addr {
    (0xac10_0001 + n).into()
}

fn mac(n: u32) -> String {
    let [_, a, b, c] = n.to_be_bytes();
    format!("0e:00:01:{a:02x}:{b:02x}:{c:02x}")
}

fn subnet(n: u32, len: u8) -> String {
    format!("{}-{len}", Ipv4Addr::from(0x0a00_0000 | n << 8))
}

/// An address in the subnet with this number.
fn inside(n: u32) -> Ipv4Addr {
    (0x0a00_0009 | n << 8).into()
}

fn dual(n: u32) -> String {
    format!("10.7.7.0-24&fd00:{:x}:{:x}::-64", n / 0xffff + 1, n % 0xffff + 1)
}

/// Subnets of all lengths, each inside most of those that are wider; number 0 is the widest.
fn nested(n: u32) -> String {
    let len = 10 + (n % 21) as u8;
    let net = (n / 21) << (32 - len) & 0x001f_ffff;
    format!("{}-{len}", Ipv4Addr::from(0x0a00_0000 | if len < 24 { 0 } else { net }))
}

/// Subnets of four addresses, all of them inside that with number 0.
fn small(n: u32) -> String {
    match n {
        0 => "10.64.0.0-12".into(),
        n => format!("{}-30", Ipv4Addr::from(0x0a40_0000 | n << 2)),
    }
}
