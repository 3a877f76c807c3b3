//! Docker behind flanneld: a real dockerd, started by its real unit.

use crate::lab::{CONFIG, Etcd, Host, Lab, PREFIX};
use crate::machine::{Machine, in_time};
use crate::site::{self, pid_of, status, subnet_env};

/// Of nothing but busybox.
const IMAGE: &str = "cd $(mktemp -d); mkdir bin; cp /bin/busybox bin; tar -c . | docker import - lab:1";

/// A host that boots with flanneld and Docker, and an etcd without a network config.
fn boot() -> (Machine, Host, Etcd, Lab) {
    let lab = Lab::new("order");
    let etcd = lab.etcd();
    let host = lab.host(1);
    let machine = Machine::boot_with_docker(&host, |root| {
        site::install(root);
        root.unit("docker.service.d/flannel.conf", &site::shipped("docker-flannel.conf"));
        root.write("/etc/default/docker", "DOCKER_OPTS=\"--label=of=admin\"\n");
        root.write("/var/log/journal/README", "Directories for journals make them outlive a boot.\n");
        root.enable(&["flanneld", "docker"]);
    });
    (machine, host, etcd, lab)
}

#[track_caller]
fn docker_does_not_run(machine: &Machine) {
    assert_eq!(machine.sh("pgrep -x dockerd || true"), "");
    assert!(machine.run(&["ip", "link", "show", "docker0"]).is_err(), "it has made its bridge");
    assert_ne!(machine.show("docker", "ActiveState"), "failed");
}

/// Docker has our subnet and MTU, and what the administrator gave it.
#[track_caller]
fn docker_runs_as_flanneld_wants(machine: &Machine) {
    machine.eventually_shows("docker", "ActiveState", "active");
    let bridge = machine.sh("ip -4 -o addr show docker0");
    assert!(bridge.contains(&format!("inet {} ", subnet_env(machine, "FLANNEL_SUBNET"))), "{bridge}");
    let mtu = machine.sh("docker network inspect -f '{{index .Options \"com.docker.network.driver.mtu\"}}' bridge");
    assert_eq!(mtu.trim(), subnet_env(machine, "FLANNEL_MTU"));
    assert_eq!(machine.sh("docker info -f '{{.Labels}}'"), "[of=admin]\n");
}

/// What must not change: dockerd's process, and when the container was started.
fn docker_and_container(machine: &Machine) -> (String, String) {
    (pid_of(machine, "docker"), machine.sh("docker inspect -f '{{.State.Running}} {{.State.StartedAt}}' c1"))
}

fn docker_waits_until_flanneld_is_ready(machine: &Machine, etcd: &Etcd) {
    in_time("flanneld waits", || status(machine).contains("there is no key"));
    docker_does_not_run(machine);
    let jobs = machine.sh("systemctl list-jobs --no-pager");
    assert!(jobs.lines().any(|job| job.contains("docker.service") && job.contains("waiting")), "{jobs}");
    etcd.put(&format!("{PREFIX}/config"), CONFIG);
    docker_runs_as_flanneld_wants(machine);
    let started = |unit: &str| machine.show(unit, "ActiveEnterTimestampMonotonic").parse::<u64>().expect("a time");
    let docker = machine.show("docker", "ExecMainStartTimestampMonotonic").parse::<u64>().expect("a time");
    assert!(docker >= started("flanneld"), "dockerd was started before READY=1");
}

fn flanneld_comes_and_goes_without_docker(machine: &Machine) {
    machine.sh(IMAGE);
    machine.sh("docker run -d --restart=always --stop-signal=KILL --name c1 lab:1 /bin/busybox sleep 1000000");
    let before = docker_and_container(machine);
    machine.systemctl(&["restart", "flanneld"]);
    assert_eq!(docker_and_container(machine), before);
    let pid = pid_of(machine, "flanneld");
    machine.systemctl(&["kill", "-s", "KILL", "flanneld"]);
    in_time("it is started again", || ![pid.as_str(), "0"].contains(&pid_of(machine, "flanneld").as_str()));
    machine.eventually_shows("flanneld", "ActiveState", "active");
    assert_eq!(docker_and_container(machine), before);
    machine.systemctl(&["stop", "flanneld"]);
    assert_eq!(docker_and_container(machine), before);
    // Docker on its own has what it needs, and brings flanneld along.
    machine.systemctl(&["restart", "docker"]);
    docker_runs_as_flanneld_wants(machine);
    machine.eventually_shows("flanneld", "ActiveState", "active");
}

/// At the next boot flanneld cannot start. Docker waits, also for its socket's clients, until that is mended.
fn where_flanneld_fails_docker_waits_and_comes_by_itself(machine: &mut Machine, host: &Host) {
    let subnet = subnet_env(machine, "FLANNEL_SUBNET");
    site::configure(&machine.root(), "FLANNEL_OPTIONS=--bogus");
    machine.power_off();
    // A new kernel.
    host.sh("ip link del flannel.1; ip link del docker0");
    machine.power_on();
    in_time("flanneld fails", || machine.journal("flanneld").contains("unknown flag --bogus"));
    in_time("Docker says what it waits for", || {
        machine.journal("docker").contains("waiting until flanneld has written")
    });
    docker_does_not_run(machine);
    // That it is told to wait no longer is no failure of its own.
    machine.systemctl(&["stop", "docker"]);
    docker_does_not_run(machine);
    machine.systemctl(&["--no-block", "start", "docker"]);
    site::configure(&machine.root(), "");
    machine.wait_running();
    docker_runs_as_flanneld_wants(machine);
    assert_eq!(subnet_env(machine, "FLANNEL_SUBNET"), subnet);
    in_time("the container is back", || docker_and_container(machine).1.starts_with("true "));
}

/// As the journal of the boot before tells: containers had their network until they were gone.
fn docker_went_before_flanneld(machine: &Machine) {
    let told = machine.sh("journalctl -b -1 -o cat --no-pager");
    let at = |text: &str| told.rfind(text).unwrap_or_else(|| panic!("no {text:?} in the journal of the boot before"));
    assert!(at("Stopped docker.service") < at("Stopping flanneld.service"));
}

#[test]
fn docker_starts_after_flanneld_never_without_it_and_never_again_because_of_it() {
    let (mut machine, host, etcd, _lab) = boot();
    docker_waits_until_flanneld_is_ready(&machine, &etcd);
    flanneld_comes_and_goes_without_docker(&machine);
    where_flanneld_fails_docker_waits_and_comes_by_itself(&mut machine, &host);
    docker_went_before_flanneld(&machine);
}
