//! Hosts join: alone, together, before there is anything to join, and what they leave for Docker and for their peers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::lab::{
    CONFIG, DEVICE, Host, Lab, Lease, NETWORK, PREFIX, Tables, Vxlan, containers_on, eventually, start_all,
};

const DAY: i64 = 24 * 60 * 60;

#[test]
fn a_joined_host_has_a_lease_a_device_and_its_files() {
    let lab = Lab::new("files");
    let etcd = lab.etcd_with_config();
    for host in lab.joined(3) {
        let lease = etcd.lease_of_host(&host);
        assert_eq!(etcd.get(&lease.key()), Some(lease.value()));
        let granted = etcd.lease_of(&lease.key()).map(|id| etcd.granted_ttl(id));
        assert_eq!(granted, Some(DAY));

        assert_eq!(host.subnet(), lease.subnet);
        let bridge = host.subnet_env("FLANNEL_SUBNET");
        let subnet_env =
            format!("FLANNEL_NETWORK={NETWORK}\nFLANNEL_SUBNET={bridge}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n");
        assert_eq!(host.file("subnet.env"), Some(subnet_env));
        let docker_opts = format!(
            "DOCKER_OPT_BIP=\"--bip={bridge}\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
             DOCKER_OPT_MTU=\"--mtu=1450\"\n\
             DOCKER_OPTS=\" --bip={bridge} --ip-masq=true --mtu=1450\"\n"
        );
        assert_eq!(host.file("docker_opts.env"), Some(docker_opts));

        let device = host.device(DEVICE).expect(DEVICE);
        assert!(device.up);
        assert_eq!(device.mtu, 1450);
        assert_eq!(device.mac, lease.mac);
        assert_eq!(device.addresses, [format!("{}/32", lease.gateway())]);
        let vxlan = Vxlan {
            id: 1,
            local: host.public_ip(),
            link: "eth0".into(),
            port: 8472,
            learning: false,
            ageing: 300,
            ttl: 0,
        };
        assert_eq!(device.vxlan, Some(vxlan));
    }
}

#[test]
fn every_host_holds_one_route_one_neighbor_and_one_fdb_entry_for_each_peer() {
    let lab = Lab::new("tables");
    let etcd = lab.etcd_with_config();
    let hosts = lab.joined(3);
    for host in &hosts {
        host.follows(&etcd);
        assert_eq!(host.tables().routes.len(), 2);
    }
}

#[test]
fn containers_reach_each_other_with_packets_of_full_size() {
    let lab = Lab::new("containers");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.joined(3);
    hosts.iter().for_each(|host| host.follows(&etcd));
    let containers = containers_on(&mut hosts);
    for (i, from) in containers.iter().enumerate() {
        for (_, to) in containers.iter().enumerate().filter(|(j, _)| *j != i) {
            from.ping(to.address(), 3).unwrap();
            from.ping_full_size(to.address(), 1450).unwrap();
            from.ping_full_size(to.address(), 1451).unwrap_err();
        }
    }
}

#[test]
fn containers_of_one_host_are_neighbors() {
    let lab = Lab::new("bridge");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.joined(1).remove(0);
    let (one, other) = (host.attach_container("c1"), host.attach_container("c2"));
    one.ping(other.address(), 1).unwrap();
}

#[test]
fn hosts_that_start_before_the_config_wait_for_it() {
    let lab = Lab::new("early");
    let etcd = lab.etcd();
    let mut hosts = lab.hosts(3);
    start_all(&mut hosts);
    for host in &mut hosts {
        assert!(!host.ready_within(Duration::from_millis(500)));
        assert!(host.running());
        assert_eq!(host.file("subnet.env"), None);
    }
    etcd.put(&format!("{PREFIX}/config"), CONFIG);
    hosts.iter().for_each(|host| host.wait_ready());
    hosts.iter().for_each(|host| host.follows(&etcd));
}

#[test]
fn a_waiting_host_says_what_it_waits_for() {
    let lab = Lab::new("status");
    let mut host = lab.host(1);
    let says = |host: &Host, word: &str| host.status().is_some_and(|status| status.contains(word));
    host.start(&[]);
    eventually("STATUS= names etcd while there is none", || says(&host, "etcd"));
    let etcd = lab.etcd();
    eventually("STATUS= names the config while there is none", || says(&host, "config"));
    etcd.put(&format!("{PREFIX}/config"), CONFIG);
    host.wait_ready();
    eventually("STATUS= names the subnet", || says(&host, &host.subnet()));
}

#[test]
fn twenty_five_hosts_that_start_together_get_a_subnet_each() {
    const HOSTS: u8 = 25;
    let lab = Lab::new("crowd");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.hosts(HOSTS);
    let start = Instant::now();
    start_all(&mut hosts);
    hosts.iter().for_each(|host| host.wait_ready());
    let last = hosts.iter().filter_map(Host::ready_at).max();
    println!("{HOSTS} hosts ready after {:?}", last.map(|last| last - start));
    let subnets: BTreeSet<String> = hosts.iter().map(Host::subnet).collect();
    assert_eq!(subnets.len(), usize::from(HOSTS));
    assert_eq!(etcd.leases().len(), usize::from(HOSTS));
    hosts.iter().for_each(|host| host.follows(&etcd));
}

#[test]
fn ready_means_that_files_device_and_known_peers_are_there() {
    let lab = Lab::new("ready");
    let etcd = lab.etcd_with_config();
    let peers: Vec<Lease> = (200..240).map(Lease::guest).collect();
    etcd.put_leases(&peers);

    let mut host = lab.host(1);
    host.start(&[]);
    host.freeze_at_ready();
    host.wait_ready();
    assert_eq!(host.tables(), Tables::to(&peers));
    let device = host.device(DEVICE).expect(DEVICE);
    let address = host.subnet().replace("/24", "/32");
    assert!(device.up);
    assert_eq!(device.addresses, [address]);
    assert!(host.file("docker_opts.env").is_some());
    host.thaw();
    let ready = host.notified().iter().filter(|notification| notification.text == "READY=1").count();
    assert_eq!(ready, 1);
}

#[test]
fn health_is_told_from_readiness() {
    let lab = Lab::new("health");
    let etcd = lab.etcd();
    let mut host = lab.host(1);
    host.start(&["--healthz-port=8123"]);
    let code = |path: &str| host.http_get(8123, path).map_or(0, |(code, _)| code);
    eventually("/healthz answers while the config is missing", || code("/healthz") == 200);
    assert_eq!(code("/readyz"), 503);
    etcd.put(&format!("{PREFIX}/config"), CONFIG);
    eventually("/readyz says yes", || code("/readyz") == 200);
    let body = |path: &str| host.http_get(8123, path).unwrap().1;
    assert_eq!(body("/healthz").trim_end(), "flanneld is running");
    assert_eq!(body("/readyz").trim_end(), "flanneld is ready");
}

#[test]
fn unusable_flags_end_it_with_a_failure() {
    let lab = Lab::new("flags");
    let mut host = lab.host(1);
    host.start(&["--subnet-lease-renew-margin=0"]);
    let exit = host.wait_exit();
    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert!(host.log().contains("subnet-lease-renew-margin"));
}
