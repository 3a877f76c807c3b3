//! What a host needs before it can join: it is waited for, and said.

use crate::lab::{CONFIG, DEVICE, Host, Lab, PREFIX, eventually};
use std::time::Duration;

fn says(host: &Host, word: &str) {
    eventually(&format!("STATUS= names {word}"), || host.status().is_some_and(|status| status.contains(word)));
}

#[test]
fn a_config_that_is_wrong_is_named_and_waited_out() {
    let lab = Lab::new("wrong");
    let etcd = lab.etcd();
    let mut host = lab.host(1);
    let key = format!("{PREFIX}/config");
    host.start(&[]);
    for (config, word) in [
        ("{", "not a JSON object"),
        (r#"{"Network":"172.30.0.0/16","SubnetLen":12,"SubnetMin":"10.0.0.0"}"#, "SubnetLen is 12"),
        (r#"{"Network":"172.30.0.0/16","SubnetLen":12,"SubnetMin":"10.0.0.0"}"#, "SubnetMin is \"10.0.0.0\""),
        (r#"{"Network":"172.30.0.0/16","Backend":{"Type":"udp"}}"#, "\"udp\" is not one that this version has: vxlan"),
        (r#"{"Network":"172.30.0.0/16","Backend":{}}"#, "no Type"),
    ] {
        etcd.put(&key, config);
        says(&host, word);
    }
    assert!(host.running() && host.device(DEVICE).is_none());
    etcd.put(&key, CONFIG);
    host.wait_ready();
    let log = host.log();
    assert_eq!(log.matches("SubnetLen is 12").count(), 1, "one line a reason:\n{log}");
    assert_eq!(log.matches("no Type").count(), 1, "one line a reason:\n{log}");
    assert_eq!(log.matches("etcd holds a valid network config after").count(), 1, "its end:\n{log}");
}

#[test]
fn without_a_backend_it_is_vxlan_unless_others_think_otherwise() {
    let lab = Lab::new("backend");
    let etcd = lab.etcd();
    etcd.put(&format!("{PREFIX}/config"), r#"{"Network":"172.30.0.0/16"}"#);
    let other = format!("{PREFIX}/subnets/172.30.200.0-24");
    etcd.put_with_ttl(&other, r#"{"PublicIP":"172.31.0.200","PublicIPv6":null,"BackendType":"host-gw"}"#, 600);
    let mut host = lab.host(1);
    host.start(&[]);
    says(&host, "set Backend explicitly");
    assert!(host.device(DEVICE).is_none() && !host.ready_within(Duration::from_millis(300)));
    etcd.del(&other);
    host.wait_ready();
}

#[test]
fn an_interface_that_is_not_there_yet_is_waited_for() {
    let lab = Lab::new("nic");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let flags = host.flags(&[]);
    let flags: Vec<String> = flags.into_iter().map(|flag| flag.replace("--iface=eth0", "--iface=late0")).collect();
    host.start_with(env!("CARGO_BIN_EXE_flanneld"), &flags);
    says(&host, "--iface=late0 is not there");
    says(&host, "eth0 172.31.0.1");
    host.ip("link set eth0 down");
    host.ip("link set eth0 name late0");
    host.ip("link set late0 up");
    host.wait_ready();
    assert_eq!(host.device(DEVICE).and_then(|device| device.vxlan).map(|vxlan| vxlan.link), Some("late0".into()));
}

#[test]
fn a_public_ip_that_is_not_on_this_host_goes_to_etcd_only() {
    let lab = Lab::new("nat");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let flags: Vec<String> = host.flags(&["--public-ip=203.0.113.7"]);
    let flags: Vec<String> = flags.into_iter().filter(|flag| !flag.starts_with("--iface=")).collect();
    host.start_with(env!("CARGO_BIN_EXE_flanneld"), &flags);
    host.wait_ready();
    let leases = etcd.leases();
    assert_eq!(leases.iter().map(|lease| lease.public_ip.as_str()).collect::<Vec<_>>(), ["203.0.113.7"]);
    assert_eq!(host.device(DEVICE).and_then(|device| device.vxlan).map(|vxlan| vxlan.local), Some(host.public_ip()));
}

#[test]
fn dead_members_and_names_among_the_endpoints_do_no_harm() {
    let lab = Lab::new("endpoints");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let dead = "--etcd-endpoints=http://172.31.0.253:2379,http://localhost:4001,http://172.31.0.254:2379";
    host.start(&[dead]);
    host.wait_ready();
}

#[test]
fn a_device_of_another_kind_with_our_name_is_replaced() {
    let lab = Lab::new("impostor");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.ip("link add flannel.1 type bridge");
    host.join();
    assert!(host.device(DEVICE).is_some_and(|device| device.vxlan.is_some()));
    assert!(host.log().contains("flannel.1 is a bridge device, not VXLAN"), "{}", host.log());
}

#[test]
fn a_host_that_does_not_forward_is_warned_and_left_as_it_is() {
    const FORWARD: &str = "cat /proc/sys/net/ipv4/ip_forward";
    let lab = Lab::new("forward");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.join();
    assert!(!host.log().contains("ip_forward"), "{}", host.log());
    host.stop();
    host.sh("echo 0 >/proc/sys/net/ipv4/ip_forward");
    host.join();
    assert!(host.log().contains("net.ipv4.ip_forward is 0"), "{}", host.log());
    assert_eq!(host.sh(FORWARD).trim(), "0");
}

#[test]
fn help_and_version_succeed_and_a_wrong_flag_does_not() {
    for (flag, code) in [("--help", 0), ("-version", 0), ("--nonsense", 1), ("--healthz-port=x", 1), ("status", 1)] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_flanneld")).arg(flag).output().expect("it runs");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{flag}: {out}{err}");
        let name = flag.trim_start_matches('-').split('=').next().unwrap_or_default();
        assert!(if code == 0 { err.is_empty() } else { out.is_empty() && err.contains(name) }, "{flag}: {out}{err}");
    }
}

#[test]
fn a_log_that_nobody_takes_does_not_end_it() {
    let lab = Lab::new("full");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let binary = env!("CARGO_BIN_EXE_flanneld");
    let mut words: Vec<String> = ["-c", r#"exec "$0" "$@" 2>/dev/full"#, binary].map(str::to_owned).into();
    words.extend(host.flags(&[]));
    host.start_with("sh", &words);
    host.wait_ready();
    host.ip(&format!("link del {DEVICE}"));
    eventually("the device is back", || host.device(DEVICE).is_some());
    assert!(host.running());
    for (flag, code) in [("--help", 1), ("--nonsense", 1)] {
        let full = || std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
        let status = std::process::Command::new(binary).arg(flag).stdout(full()).stderr(full()).status();
        assert_eq!(status.expect("it runs").code(), Some(code), "{flag}");
    }
}
