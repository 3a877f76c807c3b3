//! The lab itself: what it builds is real, and nothing of it stays.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::lab::{CONFIG, Etcd, Lab, Lease, PREFIX, names_in};

#[test]
fn nothing_stays_after_a_panic() {
    let mut seen = None;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::new("panic");
        let _etcd = lab.etcd_with_config();
        let mut host = lab.host(1);
        host.start_with("sleep", &["60".to_owned()]);
        let dir = lab.dir().to_owned();
        let of_the_lab = names_in(Path::new("/run/netns")).into_iter().filter(|name| name.starts_with(lab.prefix()));
        assert_eq!(of_the_lab.count(), 2);
        seen = Some((lab.prefix().to_owned() + "-", dir, host.pid()));
        panic!("as a failing test would");
    }));
    assert!(result.is_err());
    let (prefix, dir, pid) = seen.expect("the lab was built");
    assert!(!names_in(Path::new("/run/netns")).iter().any(|name| name.starts_with(&prefix)));
    assert!(!dir.exists());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn nothing_of_docker_stays_after_a_panic() {
    let mut seen = None;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::new("dockerpanic");
        let host = lab.host(1);
        fs::write(host.path("docker_opts.env"), "DOCKER_OPTS=\" --bip=172.30.1.1/24\"\n").expect("the file");
        let docker = host.docker();
        docker.run("web");
        seen = Some((lab.prefix().to_owned(), lab.dir().to_owned()));
        panic!("as a failing test would");
    }));
    assert!(result.is_err());
    let (prefix, dir) = seen.expect("the lab was built");
    assert!(!dir.exists(), "{dir:?}");
    let named = |text: &str| text.contains(&format!("{prefix}-"));
    let groups = names_in(Path::new("/sys/fs/cgroup/devices")).into_iter().chain(names_in(Path::new("/sys/fs/cgroup")));
    assert_eq!(groups.filter(|name| named(name)).collect::<Vec<_>>(), [""; 0]);
    let command = |pid: &String| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let processes = names_in(Path::new("/proc")).into_iter().filter(|pid| named(&command(pid)));
    assert_eq!(processes.collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn hosts_reach_each_other_and_etcd() {
    let lab = Lab::new("underlay");
    let etcd = lab.etcd();
    let hosts = lab.hosts(2);
    hosts[0].run(&["ping", "-c", "1", "-W", "2", &hosts[1].public_ip()]).unwrap();
    let endpoint = format!("--endpoints={}", etcd.endpoint());
    hosts[0].run(&["env", "ETCDCTL_API=3", "etcdctl", &endpoint, "put", "from", "host"]).unwrap();
    assert_eq!(etcd.get("from").as_deref(), Some("host"));
}

#[test]
fn etcd_keeps_its_data_when_killed() {
    let mut etcd = Etcd::on_loopback();
    let lease = Lease::guest(207);
    let id = etcd.put_with_ttl(&lease.key(), &lease.value(), 60);
    etcd.put(&format!("{PREFIX}/config"), CONFIG);
    etcd.kill();
    etcd.start();
    assert_eq!(etcd.lease_of(&lease.key()), Some(id));
    assert_eq!(etcd.granted_ttl(id), 60);
    assert_eq!(etcd.leases(), [lease]);
    assert_eq!(etcd.get(&format!("{PREFIX}/config")).as_deref(), Some(CONFIG));
    assert_eq!(etcd.get_prefix("/nowhere"), []);
}
