//! The kernel reports everybody's changes. However many there are, no repair is lost among them.

use std::fmt::Write;
use std::fs;

use crate::field::Field;
use crate::lab::{Host, Lease, eventually};

/// The daemon's socket has room for some 160,000 unread reports.
const REPORTS: u32 = 200_000;

fn batch(host: &Host, tool: &str, lines: impl Iterator<Item = String>) {
    let path = host.path("batch");
    let text = lines.fold(String::new(), |mut text, line| {
        writeln!(text, "{line}").expect("a line");
        text
    });
    fs::write(&path, text).expect("the batch");
    host.sh(&format!("{tool} -force -batch {} >/dev/null", path.display()));
}

fn overruns(host: &Host) -> usize {
    host.log().matches("reports of the kernel were lost because they came too fast: reading its state in full").count()
}

#[test]
fn hundreds_of_links_that_come_and_go_hide_no_damage() {
    let field = Field::new("links");
    let host = &field.hosts[0];
    batch(host, "ip", (0..400).map(|n| format!("link add v{n} group 7 type veth peer name w{n} group 7")));
    field.damage("ip route del $PEER; ip link set group 7 up; ip neigh del $GW dev flannel.1");
    field.etcd.del(&Lease::guest(200).key());
    field.damage("ip link del group 7; bridge fdb del $MAC dev flannel.1 dst $DST; ip link set flannel.1 down");
    field.etcd.put_lease(&Lease::guest(200));
    field.is_well();
}

#[test]
fn lost_reports_lead_to_a_full_read_and_lose_no_repair() {
    let field = Field::new("overrun");
    let host = &field.hosts[0];
    host.ip("link add storm type vxlan id 9 dstport 9999 local 172.31.0.1");
    host.freeze();
    field.damage("ip route prepend $PEER via 10.99.0.2");
    let (gone, came) = (Lease::guest(200), Lease::guest(205));
    field.etcd.del(&gone.key());
    let entry = |n: u32| {
        format!("fdb add 02:00:00:{:02x}:{:02x}:{:02x} dev storm dst 172.31.0.9", n >> 16, n >> 8 & 255, n & 255)
    };
    batch(host, "bridge", (0..REPORTS).map(entry));
    field.damage("ip route del $PEER via $GW dev flannel.1; ip neigh del $GW dev flannel.1");
    field.damage("bridge fdb replace $MAC dev flannel.1 dst 172.31.0.77 self permanent");
    field.etcd.put_lease(&came);
    assert_eq!(overruns(host), 0);
    host.thaw();
    eventually("the log tells of the overrun", || overruns(host) > 0);
    host.follows(&field.etcd);
    host.ip("link del storm");
    field.etcd.del(&came.key());
    field.etcd.put_lease(&gone);
    field.is_well();
    println!("{} overruns", overruns(host));
}
