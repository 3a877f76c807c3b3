//! Our own lease, with times to live of seconds.

use crate::lab::{DEVICE, Lab, Lease, eventually, eventually_eq};
use std::thread::sleep;
use std::time::{Duration, Instant};

const SHORT: [&str; 2] = ["--subnet-lease-ttl=4s", "--subnet-lease-renew-margin=2s"];

#[test]
fn a_short_lease_is_kept_alive_and_written_again_on_the_same_etcd_lease() {
    let lab = Lab::new("renew");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.start(&SHORT);
    host.wait_ready();
    let lease = etcd.lease_of_host(&host);
    let id = etcd.lease_of(&lease.key()).expect("an etcd lease");
    assert_eq!(etcd.granted_ttl(id), 4);

    let first = etcd.modified(&lease.key());
    sleep(Duration::from_secs(9));
    assert_eq!(etcd.lease_of(&lease.key()), Some(id));
    assert_eq!(etcd.get(&lease.key()), Some(lease.value()));
    assert!(etcd.modified(&lease.key()) > first, "not written again");

    let killed = Instant::now();
    host.kill9();
    eventually("the lease of a dead host ends", || etcd.get(&lease.key()).is_none());
    assert!(killed.elapsed() > Duration::from_secs(1), "{:?}", killed.elapsed());
    host.start(&SHORT);
    host.wait_ready();
    assert_eq!(etcd.lease_of_host(&host).key(), lease.key(), "the same subnet, made anew");
}

#[test]
fn a_lease_that_is_deleted_or_revoked_is_made_again_and_peers_hardly_notice() {
    let lab = Lab::new("remade");
    let etcd = lab.etcd_with_config();
    let hosts = lab.joined(2);
    let lease = etcd.lease_of_host(&hosts[0]);
    etcd.del(&lease.key());
    eventually_eq("the deleted key is back", &Some(lease.value()), || etcd.get(&lease.key()));
    etcd.revoke(etcd.lease_of(&lease.key()).expect("an etcd lease"));
    eventually_eq("the revoked key is back", &Some(lease.value()), || etcd.get(&lease.key()));
    hosts.iter().for_each(|host| host.follows(&etcd));
}

#[test]
fn a_subnet_that_another_host_took_is_not_taken_back_by_force() {
    let lab = Lab::new("taken");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.start(&["--healthz-port=8123"]);
    host.wait_ready();
    let lease = etcd.lease_of_host(&host);
    let thief = Lease { mac: "0e:00:00:00:00:99".into(), public_ip: "172.31.0.99".into(), ..lease.clone() };
    etcd.put_lease(&thief);
    let ready = || host.http_get(8123, "/readyz").unwrap();
    eventually("/readyz says why not", || {
        let (code, body) = ready();
        code == 503 && body.contains("taken") && body.contains("172.31.0.99")
    });
    assert_eq!(etcd.get(&lease.key()), Some(thief.value()));
    assert_eq!(host.device(DEVICE).map(|device| device.mac), Some(lease.mac.clone()));
    etcd.del(&lease.key());
    eventually("it is registered again once the other has gone", || ready().0 == 200);
    assert_eq!(etcd.get(&lease.key()), Some(lease.value()));
}

#[test]
fn a_reservation_is_taken_and_stays_one() {
    let lab = Lab::new("reserved");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let key = "/kube-centos/network/subnets/172.30.77.0-24";
    etcd.put(key, &format!("{{\"PublicIP\":\"{}\"}}", host.public_ip()));
    host.start(&SHORT);
    host.wait_ready();
    assert_eq!(host.subnet(), "172.30.77.0/24");
    assert_eq!(etcd.lease_of(key), None);
    sleep(Duration::from_secs(5));
    assert_eq!((etcd.get(key), etcd.lease_of(key)), (Some(etcd.lease_of_host(&host).value()), None));
}

#[test]
fn an_own_lease_in_the_form_of_0_7_is_rewritten_in_place() {
    let lab = Lab::new("old");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    let key = "/kube-centos/network/subnets/172.30.78.0-24";
    let ip = host.public_ip();
    let old = format!(r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{{"VtepMAC":"56:27:7d:1c:08:22"}}}}"#);
    let id = etcd.put_with_ttl(key, &old, 86400);
    std::fs::write(host.path("subnet.env"), "FLANNEL_SUBNET=172.30.78.1/24\n").unwrap();
    host.join();
    assert_eq!((host.subnet().as_str(), etcd.lease_of(key)), ("172.30.78.0/24", Some(id)));
    let lease = etcd.lease_of_host(&host);
    assert_eq!(etcd.get(key), Some(lease.value()));
    assert_eq!(lease.mac, "56:27:7d:1c:08:22", "the MAC that peers know");
}

#[test]
fn a_lease_is_given_back_at_the_end_only_if_that_is_asked_for() {
    let lab = Lab::new("release");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.hosts(2);
    hosts[0].start(&["--release-lease-on-exit"]);
    hosts[1].start(&[]);
    hosts.iter().for_each(|host| host.wait_ready());
    hosts.iter().for_each(|host| host.follows(&etcd));
    let released = etcd.lease_of_host(&hosts[0]);
    let stays = etcd.lease_of_host(&hosts[1]);
    let exit = hosts[0].stop();
    assert!(exit.code == Some(0) && exit.took < Duration::from_secs(2), "{exit:?}");
    assert_eq!(etcd.leases(), std::slice::from_ref(&stays));
    hosts[1].follows(&etcd);
    assert_eq!(hosts[1].stop().code, Some(0));
    assert_eq!(etcd.leases(), [stays]);
    hosts[0].start(&["--release-lease-on-exit"]);
    hosts[0].wait_ready();
    assert_eq!(etcd.lease_of_host(&hosts[0]), released, "the same subnet and MAC again, since nobody took it");
    etcd.pause();
    let exit = hosts[0].stop();
    etcd.resume();
    assert!(
        exit.code == Some(0) && exit.took < Duration::from_secs(2),
        "an etcd that hangs is not waited for: {exit:?}"
    );
}
