//! At rest nothing happens: no write to the kernel, no line in the log, hardly a moment of CPU time.

use std::env;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use crate::lab::{DEVICE, Host, Lab, containers_on, patience, wait_until};

/// The part of its time, in per cent, that a daemon may need at rest. An emulated processor needs some of it for a timer.
const BUSY: u64 = 10;

/// How long a cluster is watched: `FLANNELD_TEST_REST` seconds, or a few.
fn watched() -> Duration {
    let seconds = env::var("FLANNELD_TEST_REST").map_or(5, |text| text.parse().expect("FLANNELD_TEST_REST: a number"));
    Duration::from_secs(seconds)
}

/// CPU time of a host's daemon so far, in hundredths of a second.
fn cpu(host: &Host) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", host.pid())).expect("its statistics");
    let (_, fields) = stat.rsplit_once(") ").expect("the program's name");
    fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

/// Panics unless the hosts come to rest and stay so.
#[track_caller]
pub fn stay_at_rest(hosts: &[&Host]) {
    let logs = || hosts.iter().map(|host| host.log().len()).collect::<Vec<_>>();
    let settled = wait_until(patience(), || {
        let before = logs();
        sleep(Duration::from_secs(2));
        logs() == before
    });
    let name = |host: &Host| host.public_ip();
    assert!(
        settled,
        "the logs grow without an end:\n{}",
        hosts.iter().map(|host| end(&host.log())).collect::<String>()
    );
    let monitors: Vec<_> = hosts.iter().map(|host| host.monitor()).collect();
    let before: Vec<_> = hosts.iter().map(|host| (host.log().len(), cpu(host))).collect();
    sleep(watched());
    let mut most = 0;
    for ((host, monitor), (log, used)) in hosts.iter().zip(&monitors).zip(before) {
        assert_eq!(host.log_since(log), "", "{} logs at rest", name(host));
        assert_eq!(monitor.about(DEVICE), [""; 0], "{} writes to the kernel at rest", name(host));
        most = most.max(cpu(host) - used);
    }
    let (count, seconds) = (hosts.len(), watched().as_secs());
    let hosts = if count == 1 { "1 host".to_owned() } else { format!("{count} hosts") };
    println!("measured: {hosts} at rest for {seconds} s: at most {} ms of CPU time each", most * 10);
    assert!(most <= seconds * BUSY, "{} ms of CPU time in {seconds} s", most * 10);
}

fn end(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n") + "\n"
}

#[test]
fn three_hosts_with_rules_stay_at_rest() {
    let lab = Lab::new("rest");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.hosts(3);
    hosts.iter_mut().for_each(|host| host.start(&["--ip-masq"]));
    hosts.iter().for_each(Host::wait_ready);
    hosts.iter().for_each(|host| host.follows(&etcd));
    let containers = containers_on(&mut hosts);
    containers[0].ping(containers[1].address(), 1).expect("the overlay works");
    stay_at_rest(&hosts.iter().collect::<Vec<_>>());
}

#[test]
fn neither_a_restart_nor_a_kill_leads_to_a_write() {
    let lab = Lab::new("restart");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.joined(2);
    hosts.iter().for_each(|host| host.follows(&etcd));
    let host = &mut hosts[0];
    let monitor = host.monitor();
    for kill in [false, true] {
        if kill {
            host.kill9();
        } else {
            host.stop();
        }
        host.join();
    }
    host.follows(&etcd);
    stay_at_rest(&[host]);
    assert_eq!(monitor.about(DEVICE), [""; 0]);
}
