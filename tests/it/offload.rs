//! `--vxlan-tx-checksum-off`: the device has the offload off for as long as the flag is given, whatever happens to it.

use crate::lab::{Container, DEVICE, Host, Lab, containers_on, eventually, eventually_eq};

const FLAG: &str = "--vxlan-tx-checksum-off";

/// Whether the device leaves checksums to what is below it, as ethtool shows.
fn offload(host: &Host) -> Option<bool> {
    let text = host.run(&["ethtool", "-k", DEVICE]).ok()?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("tx-checksum-ip-generic: "))?;
    Some(line.starts_with("on"))
}

fn switch(host: &Host, state: &str) {
    host.sh(&format!("ethtool -K {DEVICE} tx-checksum-ip-generic {state}"));
}

/// TCP, whose checksums are what this is about.
fn pages_pass(from: &Container, to: &Container) {
    let _server = to.serve("page");
    eventually("a page comes", || from.ask(&format!("{}:80", to.address())).is_ok());
}

#[test]
fn with_the_flag_checksums_are_not_left_to_hardware_and_without_it_nothing_is_touched() {
    let lab = Lab::new("offload");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.hosts(2);
    hosts[0].start(&[FLAG]);
    hosts[1].start(&[]);
    hosts.iter().for_each(Host::wait_ready);
    assert_eq!([offload(&hosts[0]), offload(&hosts[1])], [Some(false), Some(true)]);
    let containers = containers_on(&mut hosts);
    hosts.iter().for_each(|host| host.follows(&etcd));
    pages_pass(&containers[0], &containers[1]);
    pages_pass(&containers[1], &containers[0]);

    // Somebody switches it on again; the device is lost.
    let index = hosts[0].device(DEVICE).expect("the device").ifindex;
    switch(&hosts[0], "on");
    eventually_eq("it is off again", &Some(false), || offload(&hosts[0]));
    // As a repair, unless the containers' bridge is still news.
    let told = || hosts[0].log().contains("change device flannel.1 why=tx-checksum off false, not true");
    eventually("the log says so", told);
    assert_eq!(hosts[0].device(DEVICE).expect("the device").ifindex, index);
    hosts[0].ip(&format!("link del {DEVICE}"));
    eventually("the new device has it off", || hosts[0].device(DEVICE).is_some() && offload(&hosts[0]) == Some(false));
    hosts[0].follows(&etcd);

    // A start that finds it off writes nothing, with the flag or without.
    for flags in [&[FLAG][..], &[]] {
        hosts[0].stop();
        let (monitor, mark) = (hosts[0].monitor(), hosts[0].log().len());
        hosts[0].start(flags);
        hosts[0].wait_ready();
        assert_eq!(offload(&hosts[0]), Some(false), "{flags:?}");
        assert_eq!(monitor.about(DEVICE), Vec::<String>::new(), "{flags:?}");
        let told = hosts[0].log_since(mark).contains("run: ethtool -K flannel.1 tx-checksum-ip-generic on");
        assert_eq!(told, flags.is_empty(), "{}", hosts[0].log_since(mark));
    }

    // Without the flag it is the administrator's.
    for state in ["on", "off"] {
        switch(&hosts[1], state);
        hosts[1].ip(&format!("link set {DEVICE} mtu 1400"));
        eventually_eq("the device was looked at", &Some(1450), || hosts[1].device(DEVICE).map(|device| device.mtu));
        assert_eq!(offload(&hosts[1]), Some(state == "on"));
    }
}
