//! The Debian package on hosts that boot: installed, configured, upgraded, removed and purged, while packets go through
//! the overlay and Docker runs.

use std::fs;
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::deb;
use crate::lab::{Container, FLANNELD, Host, Lab, PREFIX, eventually};
use crate::machine::Machine;

const SUBNET_ENV: &str = "/run/flannel/subnet.env";

/// What the administrator sets.
fn configuration() -> String {
    format!("FLANNEL_ETCD_ENDPOINTS=\"http://172.31.0.254:2379\"\nFLANNEL_ETCD_PREFIX=\"{PREFIX}\"\n")
}

/// Makes a package and puts it where the machine's dpkg finds it.
fn deliver(lab: &Lab, machine: &Machine, version: &str) -> String {
    let package = deb::build(lab.dir(), version);
    let place = format!("/srv/flanneld_{version}.deb");
    machine.root().install(&place, fs::read(package).expect("the package"), 0o644);
    place
}

/// `dpkg WORDS`, which must succeed, come to an end and ask nothing: what it said.
#[track_caller]
fn dpkg(machine: &Machine, words: &str) -> String {
    machine.sh(&format!("DEBIAN_FRONTEND=noninteractive timeout 200 dpkg {words} 2>&1 </dev/null"))
}

fn pid_of(machine: &Machine, unit: &str) -> String {
    machine.show(unit, "MainPID")
}

/// Whether the daemon that runs is the program of this version.
fn runs_version(machine: &Machine, version: &str) -> bool {
    let exe = machine.sh(&format!("cat /proc/{}/exe | tail -c {}", pid_of(machine, "flanneld"), version.len()));
    exe == version
}

/// A value of the machine's `subnet.env`.
fn subnet_env(machine: &Machine, key: &str) -> String {
    machine.sh(&format!(". {SUBNET_ENV}; echo ${key}")).trim().to_owned()
}

/// The address of the host itself on its bridge.
fn gateway(machine: &Machine) -> Ipv4Addr {
    let subnet = subnet_env(machine, "FLANNEL_SUBNET");
    subnet.split('/').next().and_then(|address| address.parse().ok()).expect("an address")
}

/// A host beside the machine, and a container on it.
fn neighbour(lab: &Lab) -> (Host, Container) {
    let mut host = lab.host(2);
    host.join();
    let container = host.attach_container("c1");
    (host, container)
}

/// Panics if one of the files that containers and Docker depend on is missing for a moment while `inside` runs.
fn while_files_are_there(machine: &Machine, inside: impl FnOnce()) {
    let files = [SUBNET_ENV, "/run/docker_opts.env"].map(|path| machine.live().path(path));
    let (done, missing) = (AtomicBool::new(false), Mutex::new(None));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let empty = |file: &&PathBuf| fs::metadata(file).map_or(0, |metadata| metadata.len()) == 0;
                if let Some(file) = files.iter().find(empty) {
                    *missing.lock().expect("no panic") = Some(file);
                }
                thread::sleep(Duration::from_micros(200));
            }
        });
        let result = catch_unwind(AssertUnwindSafe(inside));
        done.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| resume_unwind(panic));
    });
    assert_eq!(missing.into_inner().expect("no panic"), None, "it was missing or empty for a moment");
}

/// Files of a package or a daemon of ours, anywhere on the machine.
fn traces(machine: &Machine) -> String {
    machine.sh("find /etc /usr /var/lib /var/cache /run -name '*flannel*' -o -name docker_opts.env | sort")
}

#[test]
fn a_package_installs_upgrades_and_goes_while_containers_talk() {
    let lab = Lab::new("package");
    let _etcd = lab.etcd_with_config();
    let (_peer, container) = neighbour(&lab);
    let host = lab.host(1);
    let machine = Machine::boot_with_docker(&host, |root| root.enable(&["docker"]));
    machine.wait_running();
    assert_eq!(traces(&machine), "");

    // Without a configuration it waits for an etcd that is not there; dpkg does not.
    let first = deliver(&lab, &machine, "0.1.0-1");
    let said = dpkg(&machine, &format!("-i {first}"));
    assert!(said.contains("systemctl status flanneld says for what"), "{said}");
    assert!(said.contains("Docker keeps its own addresses"), "{said}");
    assert_eq!(machine.show("flanneld", "ActiveState"), "activating");
    assert_eq!(machine.sh("systemctl is-enabled flanneld"), "enabled\n");
    machine.live().write("/etc/sysconfig/flanneld", &configuration());
    machine.systemctl(&["restart", "flanneld"]);
    assert_eq!(machine.sh("stat -c %U /var/lib/flannel"), "flannel\n");
    machine.sh(
        "install -D -m 644 /usr/share/flanneld/docker-flannel.conf /etc/systemd/system/docker.service.d/flannel.conf",
    );
    machine.sh("systemctl daemon-reload; systemctl restart docker");
    let docker0 = machine.sh("ip -4 -o addr show docker0");
    assert!(docker0.contains(&format!("inet {} ", subnet_env(&machine, "FLANNEL_SUBNET"))), "{docker0}");
    machine.sh("cd $(mktemp -d); mkdir bin; cp /bin/busybox bin; tar -c . | docker import - lab:1");
    let inside = machine.sh("docker run -d --name c1 lab:1 /bin/busybox sleep 1000000");
    let address = machine.sh("docker inspect -f '{{.NetworkSettings.IPAddress}}' c1");
    let address: Ipv4Addr = address.trim().parse().expect("an address");
    eventually("a container reaches one behind the real Docker", || container.ping(address, 1).is_ok());

    let second = upgrades(&lab, &machine, &container, address);
    machine.systemctl(&["disable", "--now", "flanneld"]);
    dpkg(&machine, &format!("-i {second}"));
    assert_eq!(machine.show("flanneld", "ActiveState"), "inactive", "the administrator has switched it off");
    machine.systemctl(&["start", "flanneld"]);
    goes(&machine, &container, address);
    let still = machine.sh("docker inspect -f '{{.State.Running}} {{.RestartCount}} {{.Id}}' c1");
    assert_eq!(still, format!("true 0 {inside}"));
}

/// A new version takes over between two packets. Gives its package.
fn upgrades(lab: &Lab, machine: &Machine, container: &Container, address: Ipv4Addr) -> String {
    let mine = format!("{}# mine\n", machine.live().read("/etc/default/flanneld").expect("a file"));
    machine.live().write("/etc/default/flanneld", &mine);
    let before =
        (pid_of(machine, "docker"), subnet_env(machine, "FLANNEL_SUBNET"), machine.sh("ip -o link show flannel.1"));
    let old = pid_of(machine, "flanneld");
    assert!(runs_version(machine, "0.1.0-1"));
    let second = deliver(lab, machine, "0.2.0-1");
    let pinging = container.ping_background(address);
    while_files_are_there(machine, || {
        dpkg(machine, &format!("-i {second}"));
    });
    machine.eventually_shows("flanneld", "ActiveState", "active");
    assert!(runs_version(machine, "0.2.0-1") && pid_of(machine, "flanneld") != old);
    assert_eq!(machine.show("flanneld", "NRestarts"), "0");
    assert!(pinging.stop().lost_nothing());
    let after =
        (pid_of(machine, "docker"), subnet_env(machine, "FLANNEL_SUBNET"), machine.sh("ip -o link show flannel.1"));
    assert_eq!(after, before);
    assert_eq!(machine.live().read("/etc/default/flanneld"), Some(mine));
    second
}

/// Removed, its containers keep their network, and its configuration stays; purged, no file of it is left.
fn goes(machine: &Machine, container: &Container, address: Ipv4Addr) {
    let docker = pid_of(machine, "docker");
    let pinging = container.ping_background(address);
    let said = dpkg(machine, "--remove flanneld");
    assert!(said.contains("/docker.service.d/flannel.conf Docker goes on to wait for flanneld"), "{said}");
    assert!(machine.run(&["systemctl", "is-active", "flanneld"]).is_err());
    let left = traces(machine);
    for path in ["/etc/default/flanneld\n", "/var/lib/flannel\n"] {
        assert!(left.contains(path), "{left}");
    }
    assert!(!left.contains("/usr/"), "{left}");
    dpkg(machine, "--purge flanneld");
    let written = "/etc/sysconfig/flanneld\n/etc/systemd/system/docker.service.d/flannel.conf\n";
    assert_eq!(traces(machine), written, "what the administrator wrote");
    assert_eq!(machine.sh("systemctl list-unit-files --no-legend '*flannel*' || true"), "");
    thread::sleep(Duration::from_millis(500));
    assert!(pinging.stop().lost_nothing());
    assert_eq!(pid_of(machine, "docker"), docker);
}

/// As the unit was before there was a package, and as administrators keep it.
const UNIT_BY_HAND: &str = "[Unit]\nDescription=flanneld\n[Service]\nType=notify\nEnvironmentFile=-/etc/sysconfig/flanneld\n\
    ExecStart=/usr/bin/flanneld $FLANNEL_OPTIONS\nRestart=always\n[Install]\nWantedBy=multi-user.target\n";

#[test]
fn what_was_installed_by_hand_is_taken_over_without_an_outage() {
    let lab = Lab::new("byhand");
    let etcd = lab.etcd_with_config();
    let (_peer, container) = neighbour(&lab);
    let host = lab.host(1);
    let machine = Machine::boot(&host, |root| {
        root.install("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755);
        root.install_program("/usr/bin/flanneld", FLANNELD);
        root.unit("flanneld.service", UNIT_BY_HAND);
        root.write("/etc/sysconfig/flanneld", &configuration());
        root.enable(&["flanneld"]);
    });
    eventually("it is ready", || machine.show("flanneld", "ActiveState") == "active");
    let lease = etcd.lease_of_host(&host);
    machine.sh(&format!(". {SUBNET_ENV}; ip link add docker0 type bridge; ip addr add $FLANNEL_SUBNET dev docker0; ip link set docker0 up"));
    let address = gateway(&machine);
    eventually("a container reaches the host", || container.ping(address, 1).is_ok());
    let package = deliver(&lab, &machine, "0.2.0-1");
    let by_hand = pid_of(&machine, "flanneld");

    let pinging = container.ping_background(address);
    while_files_are_there(&machine, || {
        dpkg(&machine, &format!("-i {package}"));
        assert_eq!(pid_of(&machine, "flanneld"), by_hand, "the machine's policy is that packages start nothing");
        machine.live().remove("/usr/sbin/policy-rc.d");
        // The package's file is there as well; what it does not set, the older one still does.
        let said = dpkg(&machine, &format!("-i {package}"));
        assert!(said.contains("/etc/systemd/system/flanneld.service is used instead of this package's"), "{said}");
        assert!(runs_version(&machine, "0.2.0-1"));
        machine.sh("rm /etc/systemd/system/flanneld.service; systemctl daemon-reload; systemctl restart flanneld");
    });
    assert_eq!(machine.sh(&format!("stat -c %U /proc/{}", pid_of(&machine, "flanneld"))), "flannel\n");
    assert!(machine.sh("cat /run/docker_opts.env").contains(&format!("--bip={address}/24")));
    assert!(pinging.stop().lost_nothing());
    assert_eq!(etcd.lease_of_host(&host), lease);
    dpkg(&machine, "--purge flanneld");
    machine.sh("userdel flannel");
    made_from_source(&machine);
    assert_eq!(etcd.lease_of_host(&host).subnet, lease.subnet);
}

/// `make install` on the machine itself, and `make uninstall`.
fn made_from_source(machine: &Machine) {
    let mut tar = Command::new("tar");
    tar.args(["-C", env!("CARGO_MANIFEST_DIR"), "-c", "Makefile", "packaging", "systemd", "examples"]);
    machine.root().install("/srv/source.tar", tar.output().expect("tar").stdout, 0o644);
    machine.root().install_program("/srv/flanneld", FLANNELD);
    machine.sh("mkdir /srv/source; tar -C /srv/source -xf /srv/source.tar");
    let said = machine.sh("make -C /srv/source install BINARY=/srv/flanneld");
    assert!(said.contains("next: ") && machine.run(&["systemctl", "is-active", "flanneld"]).is_err(), "{said}");
    machine.systemctl(&["enable", "flanneld"]);
    machine.systemctl(&["restart", "flanneld"]);
    let pid = pid_of(machine, "flanneld");
    assert_eq!(
        machine.sh(&format!("readlink /proc/{pid}/exe; stat -c %U /proc/{pid}")),
        "/usr/local/bin/flanneld\nflannel\n"
    );
    assert_eq!(machine.sh("readlink /run/docker_opts.env"), "flannel/docker_opts.env\n");
    assert_eq!(machine.sh("/usr/local/libexec/flannel/mk-docker-opts.sh -d /dev/stdout | wc -l"), "4\n");
    machine.sh("systemctl disable --now flanneld; make -C /srv/source uninstall");
    let left = traces(machine);
    assert!(!left.contains("/usr/") && left.contains("/etc/default/flanneld\n"), "{left}");
}
