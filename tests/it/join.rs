//! Hosts join, leave, change and come back, and the overlay follows.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use rand::RngExt;

use crate::lab::{
    CONFIG, Container, Etcd, Host, Lab, Lease, NETWORK, PREFIX, Tables, Vxlan, eventually,
    eventually_eq,
};

const DEVICE: &str = "flannel.1";
const DAY: i64 = 24 * 60 * 60;

/// What etcd holds for `host`; exactly one lease.
#[track_caller]
fn lease_of(etcd: &Etcd, host: &Host) -> Lease {
    let mut own: Vec<Lease> = etcd
        .leases()
        .into_iter()
        .filter(|lease| lease.public_ip == host.public_ip())
        .collect();
    assert_eq!(own.len(), 1, "leases of {}: {own:?}", host.public_ip());
    own.pop().unwrap()
}

/// What `host` should hold by now: entries for every lease but its own.
fn wanted(etcd: &Etcd, host: &Host) -> Tables {
    let leases = etcd.leases();
    Tables::to(
        leases
            .iter()
            .filter(|lease| lease.public_ip != host.public_ip()),
    )
}

#[track_caller]
fn follows(etcd: &Etcd, host: &Host) {
    let what = format!("{} holds exactly its peers", host.public_ip());
    eventually_eq(&what, &wanted(etcd, host), || host.tables());
}

fn start_all(hosts: &mut [Host]) {
    hosts.iter_mut().for_each(|host| host.start(&[]));
}

fn joined(lab: &Lab, count: u8) -> Vec<Host> {
    let mut hosts = lab.hosts(count);
    start_all(&mut hosts);
    hosts.iter().for_each(|host| {
        host.wait_ready();
    });
    hosts
}

fn containers_of(hosts: &mut [Host]) -> Vec<Container> {
    hosts
        .iter_mut()
        .map(|host| host.attach_container("c1"))
        .collect()
}

#[test]
fn a_joined_host_has_a_lease_a_device_and_its_files() {
    let lab = Lab::new("files");
    let etcd = lab.etcd_with_config();
    for host in joined(&lab, 3) {
        let lease = lease_of(&etcd, &host);
        assert_eq!(etcd.get(&lease.key()), Some(lease.value()));
        let granted = etcd.lease_of(&lease.key()).map(|id| etcd.granted_ttl(id));
        assert_eq!(granted, Some(DAY));

        assert_eq!(host.subnet(), lease.subnet);
        let bridge = host.subnet_env("FLANNEL_SUBNET");
        let subnet_env = format!(
            "FLANNEL_NETWORK={NETWORK}\nFLANNEL_SUBNET={bridge}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
        );
        assert_eq!(host.file("subnet.env"), Some(subnet_env));
        let docker_opts = format!(
            "DOCKER_OPT_BIP=\"--bip={bridge}\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
             DOCKER_OPT_MTU=\"--mtu=1450\"\n\
             DOCKER_OPTS=\" --bip={bridge} --ip-masq=true --mtu=1450\"\n"
        );
        assert_eq!(host.file("docker_opts.env"), Some(docker_opts));

        let device = host.device(DEVICE).expect("flannel.1");
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
        };
        assert_eq!(device.vxlan, Some(vxlan));
    }
}

#[test]
fn every_host_holds_one_route_one_neighbor_and_one_fdb_entry_for_each_peer() {
    let lab = Lab::new("tables");
    let etcd = lab.etcd_with_config();
    let hosts = joined(&lab, 3);
    for host in &hosts {
        follows(&etcd, host);
        assert_eq!(host.tables().routes.len(), 2);
    }
}

#[test]
fn containers_reach_each_other_with_packets_of_full_size() {
    let lab = Lab::new("containers");
    let etcd = lab.etcd_with_config();
    let mut hosts = joined(&lab, 3);
    hosts.iter().for_each(|host| follows(&etcd, host));
    let containers = containers_of(&mut hosts);
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
    let mut host = joined(&lab, 1).remove(0);
    let (one, other) = (host.attach_container("c1"), host.attach_container("c2"));
    one.ping(other.address(), 1).unwrap();
}

#[test]
fn a_deleted_lease_removes_that_peer_and_no_other() {
    let lab = Lab::new("leave");
    let etcd = lab.etcd_with_config();
    let mut hosts = joined(&lab, 3);
    hosts.iter().for_each(|host| follows(&etcd, host));

    let mut leaving = hosts.pop().unwrap();
    leaving.stop();
    etcd.del(&lease_of(&etcd, &leaving).key());
    for host in &hosts {
        follows(&etcd, host);
        assert_eq!(host.tables().routes.len(), 1);
    }
}

#[test]
fn a_peer_whose_etcd_lease_ends_is_removed() {
    let lab = Lab::new("expire");
    let etcd = lab.etcd_with_config();
    let host = joined(&lab, 1).remove(0);
    let guest = Lease::guest(200);
    let id = etcd.put_with_ttl(&guest.key(), &guest.value(), 600);
    eventually_eq("the guest is a peer", &Tables::to([&guest]), || {
        host.tables()
    });
    etcd.revoke(id);
    eventually_eq("the guest is gone", &Tables::default(), || host.tables());
}

#[test]
fn a_peer_that_changes_its_mac_or_its_address_is_followed() {
    let lab = Lab::new("change");
    let etcd = lab.etcd_with_config();
    let host = joined(&lab, 1).remove(0);
    let (steady, original) = (Lease::guest(206), Lease::guest(207));
    let other_mac = Lease {
        mac: "0e:00:00:00:01:77".into(),
        ..original.clone()
    };
    let other_address = Lease {
        public_ip: "172.31.0.107".into(),
        ..other_mac.clone()
    };
    let both = Lease {
        public_ip: "172.31.0.108".into(),
        mac: "0e:00:00:00:02:77".into(),
        ..original.clone()
    };
    etcd.put_lease(&steady);
    // The old FDB entry goes too: the tables hold nothing but the two peers at every step.
    for peer in [&original, &other_mac, &other_address, &both, &original] {
        etcd.put_lease(peer);
        eventually_eq(
            "the change is followed",
            &Tables::to([&steady, peer]),
            || host.tables(),
        );
    }
}

#[test]
fn what_changed_while_the_daemon_was_down_is_made_good_at_its_start() {
    let lab = Lab::new("missed");
    let etcd = lab.etcd_with_config();
    let mut host = joined(&lab, 1).remove(0);
    let (leaves, moves, stays) = (Lease::guest(201), Lease::guest(202), Lease::guest(203));
    etcd.put_leases([&leaves, &moves, &stays]);
    eventually_eq(
        "three peers",
        &Tables::to([&leaves, &moves, &stays]),
        || host.tables(),
    );

    host.stop();
    let moved = Lease {
        public_ip: "172.31.0.102".into(),
        mac: "0e:00:00:00:01:72".into(),
        ..moves
    };
    let came = Lease::guest(204);
    etcd.del(&leaves.key());
    etcd.put_leases([&moved, &came]);
    host.join();
    eventually_eq(
        "the new three",
        &Tables::to([&moved, &stays, &came]),
        || host.tables(),
    );
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
    let device = host.device(DEVICE).expect("flannel.1");
    let address = host.subnet().replace("/24", "/32");
    assert!(device.up);
    assert_eq!(device.addresses, [address]);
    assert!(host.file("docker_opts.env").is_some());
    host.thaw();
    let ready = host
        .notified()
        .iter()
        .filter(|notification| notification.text == "READY=1")
        .count();
    assert_eq!(ready, 1);
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
    hosts.iter().for_each(|host| {
        host.wait_ready();
    });
    hosts.iter().for_each(|host| follows(&etcd, host));
}

#[test]
fn health_is_told_from_readiness() {
    let lab = Lab::new("health");
    let etcd = lab.etcd();
    let mut host = lab.host(1);
    host.start(&["--healthz-port=8123"]);
    let code = |path: &str| host.http_get(8123, path).map_or(0, |(code, _)| code);
    eventually("/healthz answers while the config is missing", || {
        code("/healthz") == 200
    });
    assert_eq!(code("/readyz"), 503);
    etcd.put(&format!("{PREFIX}/config"), CONFIG);
    eventually("/readyz says yes", || code("/readyz") == 200);
    let body = |path: &str| host.http_get(8123, path).unwrap().1;
    assert_eq!(body("/healthz").trim_end(), "flanneld is running");
    assert_eq!(body("/readyz").trim_end(), "flanneld is ready");
}

#[test]
fn twenty_five_hosts_that_start_together_get_a_subnet_each() {
    const HOSTS: u8 = 25;
    let lab = Lab::new("crowd");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.hosts(HOSTS);
    start_all(&mut hosts);
    hosts.iter().for_each(|host| {
        host.wait_ready();
    });
    let subnets: BTreeSet<String> = hosts.iter().map(Host::subnet).collect();
    assert_eq!(subnets.len(), usize::from(HOSTS));
    assert_eq!(etcd.leases().len(), usize::from(HOSTS));
    hosts.iter().for_each(|host| follows(&etcd, host));
}

#[test]
fn sigterm_ends_it_at_once_and_leaves_the_overlay_standing() {
    let lab = Lab::new("sigterm");
    let etcd = lab.etcd_with_config();
    let mut hosts = joined(&lab, 2);
    hosts.iter().for_each(|host| follows(&etcd, host));
    let containers = containers_of(&mut hosts);
    containers[0].ping(containers[1].address(), 1).unwrap();
    let before = hosts
        .iter()
        .map(|host| (host.device(DEVICE), host.tables()))
        .collect::<Vec<_>>();
    let leases = etcd.leases();

    let pinging = containers[0].ping_background(containers[1].address());
    for host in &mut hosts {
        let exit = host.stop();
        assert_eq!(exit.code, Some(0), "{exit:?}");
        assert!(exit.took < Duration::from_secs(1), "{exit:?}");
    }
    sleep(Duration::from_millis(500));
    let pinged = pinging.stop();
    // The last packet may be on its way when ping is stopped.
    assert!(
        pinged.received > 0 && pinged.received + 1 >= pinged.sent,
        "{pinged:?}"
    );
    let after = hosts
        .iter()
        .map(|host| (host.device(DEVICE), host.tables()))
        .collect::<Vec<_>>();
    assert_eq!(after, before);
    assert_eq!(etcd.leases(), leases);
    assert!(hosts.iter().all(|host| host.file("subnet.env").is_some() && host.file("docker_opts.env").is_some()));
}

#[test]
fn a_restart_keeps_subnet_mac_and_device_and_loses_no_packet() {
    let lab = Lab::new("restart");
    let etcd = lab.etcd_with_config();
    let mut hosts = joined(&lab, 2);
    hosts.iter().for_each(|host| follows(&etcd, host));
    let containers = containers_of(&mut hosts);
    containers[0].ping(containers[1].address(), 1).unwrap();
    let (lease, device, files) = (
        lease_of(&etcd, &hosts[0]),
        hosts[0].device(DEVICE),
        hosts[0].file("subnet.env"),
    );

    let pinging = containers[0].ping_background(containers[1].address());
    hosts[0].stop();
    hosts[0].join();
    hosts[0].kill9();
    hosts[0].join();
    let pinged = pinging.stop();
    assert!(
        pinged.received > 0 && pinged.received + 1 >= pinged.sent,
        "{pinged:?}"
    );
    assert_eq!(lease_of(&etcd, &hosts[0]), lease);
    assert_eq!(hosts[0].device(DEVICE), device);
    assert_eq!(hosts[0].file("subnet.env"), files);
    hosts.iter().for_each(|host| follows(&etcd, host));
}

#[test]
fn fifty_kills_at_random_moments_leave_nothing_wrong() {
    let lab = Lab::new("kills");
    let etcd = lab.etcd_with_config();
    let mut hosts = joined(&lab, 2);
    let lease = lease_of(&etcd, &hosts[0]);
    hosts[0].kill9();

    let mut random = rand::rng();
    for _ in 0..50 {
        hosts[0].start(&[]);
        let guest = Lease::guest(random.random_range(200..210));
        match random.random_bool(0.5) {
            true => etcd.put_lease(&guest),
            false => etcd.del(&guest.key()),
        }
        let life = Duration::from_millis(random.random_range(0..200));
        println!("guest {}, killed after {life:?}", guest.subnet);
        sleep(life);
        hosts[0].kill9();
    }
    hosts[0].join();
    hosts.iter().for_each(|host| follows(&etcd, host));
    assert_eq!(lease_of(&etcd, &hosts[0]).subnet, lease.subnet);
    assert_eq!(hosts[0].subnet(), lease.subnet);
    assert_eq!(
        hosts[0].device(DEVICE).map(|device| device.mac),
        Some(lease_of(&etcd, &hosts[0]).mac)
    );
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
