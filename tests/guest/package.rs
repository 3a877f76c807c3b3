//! The Debian package on a machine that booted with systemd: installed, joined, at rest.

use std::env;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::lab::netns::output;
use crate::lab::{Lab, PREFIX, eventually};

/// A shell script on the machine itself, which must succeed.
#[track_caller]
fn sh(script: &str) -> String {
    output(Command::new("sh").args(["-ec", script])).unwrap_or_else(|error| panic!("{script}: {error}"))
}

/// The lines that flanneld has logged.
fn journal() -> String {
    sh("journalctl --unit=flanneld --output=cat --no-pager")
}

#[test]
fn the_package_installs_joins_and_stays_at_rest() {
    let package = env::var("FLANNELD_TEST_PACKAGE").expect("FLANNELD_TEST_PACKAGE");
    assert_eq!(sh("ps -o comm= -p 1").trim(), "systemd");
    let lab = Lab::new("package");
    let etcd = lab.etcd_with_config();
    // The machine itself is host 1.
    lab.underlay_ip("link add p1 type veth peer name eth0 netns 1");
    lab.underlay_ip("link set p1 master br0 up");
    sh("ip addr add 172.31.0.1/24 dev eth0; ip link set eth0 up; ip route replace default via 172.31.0.254");
    let mut peer = lab.host(2);
    peer.join();
    let container = peer.attach_container("c1");

    sh(&format!("DEBIAN_FRONTEND=noninteractive dpkg -i --force-depends {package} </dev/null"));
    let endpoints = "FLANNEL_ETCD_ENDPOINTS=\"http://172.31.0.254:2379\"";
    fs::write("/etc/default/flanneld", format!("{endpoints}\nFLANNEL_ETCD_PREFIX=\"{PREFIX}\"\n"))
        .expect("its settings");
    sh("systemctl restart flanneld");
    assert_eq!(sh("systemctl is-active flanneld"), "active\n");
    let own = sh(". /run/flannel/subnet.env; echo $FLANNEL_SUBNET");
    sh(&format!("ip link add docker0 type bridge; ip addr add {} dev docker0; ip link set docker0 up", own.trim()));
    peer.follows(&etcd);
    let address = own.split('/').next().and_then(|address| address.parse().ok()).expect("an address");
    eventually("a container of the other host reaches this one", || container.ping_full_size(address, 1450).is_ok());

    eventually("the log comes to rest", || {
        let before = journal();
        sleep(Duration::from_secs(3));
        journal() == before
    });
    let usage = || sh("systemctl show flanneld --property=CPUUsageNSec --value").trim().parse::<u64>().ok();
    let (before, used) = (journal(), usage());
    sleep(Duration::from_secs(5));
    assert_eq!(journal(), before, "it logs at rest");
    if let (Some(before), Some(after)) = (used, usage()) {
        println!("measured: at rest as a service: {} ms of CPU time in 5 s", (after - before) / 1_000_000);
    }
    sh("systemctl stop flanneld; dpkg --purge flanneld");
}
