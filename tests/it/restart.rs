//! The daemon stops, restarts and is killed; the overlay stands all the while.

use std::thread::sleep;
use std::time::Duration;

use rand::RngExt;

use crate::lab::{DEVICE, Host, Lab, Lease, containers_on};

#[test]
fn sigterm_ends_it_at_once_and_leaves_the_overlay_standing() {
    let lab = Lab::new("sigterm");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.joined(2);
    hosts.iter().for_each(|host| host.follows(&etcd));
    let containers = containers_on(&mut hosts);
    let (from, to) = (&containers[0], containers[1].address());
    from.ping(to, 1).unwrap();
    let left_behind = |host: &Host| {
        let files = ["subnet.env", "docker_opts.env"].map(|name| host.file(name).expect(name));
        (host.device(DEVICE), host.tables(), files)
    };
    let before: Vec<_> = hosts.iter().map(left_behind).collect();
    let leases = etcd.leases();

    let pinging = from.ping_background(to);
    for host in &mut hosts {
        let exit = host.stop();
        assert_eq!(exit.code, Some(0), "{exit:?}");
        assert!(exit.took < Duration::from_secs(1), "{exit:?}");
    }
    sleep(Duration::from_millis(500));
    assert!(pinging.stop().lost_nothing());
    assert_eq!(hosts.iter().map(left_behind).collect::<Vec<_>>(), before);
    assert_eq!(etcd.leases(), leases);
}

#[test]
fn a_restart_keeps_subnet_mac_and_device_and_loses_no_packet() {
    let lab = Lab::new("restart");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.joined(2);
    hosts.iter().for_each(|host| host.follows(&etcd));
    let containers = containers_on(&mut hosts);
    let (from, to) = (&containers[0], containers[1].address());
    from.ping(to, 1).unwrap();
    let kept = |host: &Host| (etcd.lease_of_host(host), host.device(DEVICE), host.file("subnet.env"));
    let before = kept(&hosts[0]);

    let pinging = from.ping_background(to);
    hosts[0].stop();
    hosts[0].join();
    hosts[0].kill9();
    hosts[0].join();
    assert!(pinging.stop().lost_nothing());
    assert_eq!(kept(&hosts[0]), before);
    hosts.iter().for_each(|host| host.follows(&etcd));
}

#[test]
fn fifty_kills_at_random_moments_leave_nothing_wrong() {
    let lab = Lab::new("kills");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.joined(2);
    let lease = etcd.lease_of_host(&hosts[0]);
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
    hosts.iter().for_each(|host| host.follows(&etcd));
    assert_eq!(etcd.lease_of_host(&hosts[0]).subnet, lease.subnet);
    assert_eq!(hosts[0].subnet(), lease.subnet);
    assert_eq!(hosts[0].device(DEVICE).map(|device| device.mac), Some(etcd.lease_of_host(&hosts[0]).mac));
}
