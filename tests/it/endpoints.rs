//! The way to etcd: names that move, and members that are all away.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use crate::lab::{FLANNELD, Lab, Lease, eventually};

#[test]
fn a_name_that_moves_to_another_address_is_followed() {
    let lab = Lab::new("moves");
    let etcd = lab.etcd_with_config();
    let forwarder = lab.forwarder(253);
    let mut host = lab.host(1);
    let hosts = host.path("hosts");
    fs::write(&hosts, "172.31.0.253 etcd.moves\n").unwrap();
    let script = format!("mount --bind {} /etc/hosts && exec \"$0\" \"$@\"", hosts.display());
    let mut words: Vec<String> = ["--mount", "sh", "-c", &script, FLANNELD].map(str::to_owned).into();
    words.extend(host.flags(&["--etcd-endpoints=http://etcd.moves:2379"]));
    host.start_with("unshare", &words);
    host.wait_ready();
    assert!(forwarder.count() > 0);

    // Nothing at the old address answers any more, not even with a refusal.
    drop(forwarder);
    fs::write(&hosts, "172.31.0.254 etcd.moves\n").unwrap();
    etcd.put_lease(&Lease::guest(201));
    // Pings tell after 8 s at most, and then there is a pause.
    eventually("the peer is there", || !host.tables().routes.is_empty() || !host.running());
    host.follows(&etcd);
}

#[test]
fn members_that_are_all_away_are_dialled_now_and_then() {
    let lab = Lab::new("away");
    let etcd = lab.etcd_with_config();
    let members = [lab.forwarder(251), lab.forwarder(252), lab.forwarder(253)];
    let endpoints: Vec<String> = members.iter().map(|member| member.endpoint()).collect();
    let mut host = lab.host(1);
    host.start(&["--subnet-lease-ttl=30s", &format!("--etcd-endpoints={}", endpoints.join(","))]);
    host.wait_ready();
    let dialled = || members.iter().map(|member| member.count()).sum::<usize>();
    let mark = host.log().len();

    members.iter().for_each(|member| member.refuse());
    let (before, seconds) = (dialled(), 10);
    sleep(Duration::from_secs(seconds));
    let (often, lines) = (dialled() - before, host.log_since(mark).lines().count());
    println!(
        "{often} connections to three members in {seconds} s, {lines} lines in the log:\n{}",
        host.log_since(mark)
    );
    assert!(often >= 3, "it has given up");
    assert!(often <= 100, "{often} connections in {seconds} s");
    assert!(lines <= 6, "{}", host.log_since(mark));
    assert!(host.running());
    drop(etcd);
}

#[test]
fn idle_connections_are_probed_by_tcp() {
    let lab = Lab::new("probed");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.join();
    host.follows(&etcd);
    eventually("there is a timer for it", || host.sh("ss -tno dst 172.31.0.254").contains("timer:(keepalive"));
}
