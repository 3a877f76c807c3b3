//! A host that was set up for flannel 0.7 from CentOS's package: its unit and drop-in work as they are, and from there to
//! the unit of this project and back.

use crate::lab::{FLANNELD, Host, Lab, PREFIX, Tables};
use crate::machine::{Machine, Root};
use crate::site::{self, pid_of, subnet_env};

const UNIT: &str = "[Unit]
Description=Flanneld overlay address etcd agent
After=network.target
After=network-online.target
Wants=network-online.target
After=etcd.service
Before=docker.service

[Service]
Type=notify
EnvironmentFile=/etc/sysconfig/flanneld
EnvironmentFile=-/etc/sysconfig/docker-network
ExecStart=/usr/bin/flanneld-start $FLANNEL_OPTIONS
ExecStartPost=/usr/libexec/flannel/mk-docker-opts.sh -k DOCKER_NETWORK_OPTIONS -d /run/flannel/docker
Restart=on-failure

[Install]
WantedBy=multi-user.target
RequiredBy=docker.service
";

const DOCKER: &str = "[Service]\nEnvironmentFile=-/run/flannel/docker\n";

/// As CentOS's docker.service starts it.
const DOCKERD: &str = "[Service]\nExecStart=\nExecStart=dockerd -H fd:// $OPTIONS $DOCKER_NETWORK_OPTIONS\n";

/// The script makes flags of it; they count before the variables that the daemon reads itself.
fn sysconfig() -> String {
    format!(
        "FLANNEL_ETCD_ENDPOINTS=\"http://172.31.0.254:2379\"\nFLANNEL_ETCD_KEY=\"{PREFIX}\"\n\
         FLANNEL_OPTIONS=\"--logtostderr=false --log_dir=/var/log/k8s/flannel/ --iface=eth0 --ip-masq\"\n\
         FLANNELD_ETCD_ENDPOINTS=\"http://127.0.0.1:1\"\nFLANNELD_ETCD_PREFIX=\"/elsewhere\"\n"
    )
}

fn install(root: &Root) {
    root.install_program("/usr/bin/flanneld", FLANNELD);
    root.link("/usr/libexec/flannel/mk-docker-opts.sh", "/usr/bin/flanneld");
    root.install("/usr/bin/flanneld-start", site::shipped("flanneld-start"), 0o755);
    root.write("/etc/sysconfig/flanneld", &sysconfig());
    root.write("/usr/lib/systemd/system/flanneld.service", UNIT);
    root.write("/usr/lib/systemd/system/docker.service.d/flannel.conf", DOCKER);
    root.unit("docker.service.d/centos.conf", DOCKERD);
}

fn owner(machine: &Machine, path: &str) -> String {
    machine.sh(&format!("stat -c %U {path}")).trim().to_owned()
}

/// Who runs the daemon.
fn user(machine: &Machine) -> String {
    owner(machine, &format!("/proc/{}", pid_of(machine, "flanneld")))
}

#[track_caller]
fn docker0_is_ours(machine: &Machine) {
    let bridge = machine.sh("ip -4 -o addr show docker0");
    assert!(bridge.contains(&format!("inet {} ", subnet_env(machine, "FLANNEL_SUBNET"))), "{bridge}");
}

fn upgrade(machine: &Machine) {
    let root = machine.root();
    site::install(&root);
    root.write("/usr/lib/systemd/system/docker.service.d/flannel.conf", &site::shipped("docker-flannel.conf"));
    root.remove("/etc/systemd/system/docker.service.d/centos.conf");
    // Its links, such as that which has Docker require flanneld.
    machine.systemctl(&["disable", "flanneld"]);
    root.remove("/etc/systemd/system/docker.service.requires");
    machine.sh("systemd-sysusers; systemd-tmpfiles --create flannel.conf; systemctl daemon-reload");
    machine.systemctl(&["enable", "flanneld"]);
    machine.systemctl(&["restart", "flanneld"]);
}

/// With another owner of the files: the host is still the same, and nothing of its network was touched.
#[track_caller]
fn unchanged(host: &Host, machine: &Machine, before: &(Tables, String, String)) {
    let device = machine.sh("ip -o link show flannel.1");
    assert_eq!(&(host.tables(), device, subnet_env(machine, "FLANNEL_SUBNET")), before);
    assert_eq!(machine.show("flanneld", "ActiveState"), "active");
}

#[test]
fn centos_units_work_as_they_are_and_ours_takes_over_from_them_and_gives_back() {
    let lab = Lab::new("centos");
    let _etcd = lab.etcd_with_config();
    let host = lab.host(1);
    let machine = Machine::boot_with_docker(&host, |root| {
        install(root);
        root.enable(&["flanneld", "docker"]);
    });
    machine.wait_running();
    docker0_is_ours(&machine);
    let written = machine.live().read("/run/flannel/docker").expect("a file");
    assert!(written.contains("\nDOCKER_NETWORK_OPTIONS=\" --bip="), "{written}");
    assert!(written.contains(" --ip-masq=false "), "flanneld does, as it is told: {written}");
    let before = (host.tables(), machine.sh("ip -o link show flannel.1"), subnet_env(&machine, "FLANNEL_SUBNET"));
    assert_eq!((user(&machine), owner(&machine, "/run/docker_opts.env")), ("root".into(), "root".into()));

    upgrade(&machine);
    unchanged(&host, &machine, &before);
    assert_eq!(user(&machine), "flannel");
    for path in ["/var/lib/flannel/*.json", "/run/flannel/subnet.env"] {
        assert_eq!(owner(&machine, path), "flannel", "{path}");
    }
    let docker = pid_of(&machine, "docker");
    machine.systemctl(&["restart", "flanneld"]);
    assert_eq!(pid_of(&machine, "docker"), docker);
    machine.systemctl(&["restart", "docker"]);
    docker0_is_ours(&machine);
    // Whoever reads the file at its old place.
    assert_eq!(machine.sh("readlink /run/docker_opts.env"), "flannel/docker_opts.env\n");
    assert!(machine.sh("cat /run/docker_opts.env").contains("--bip="));

    machine.systemctl(&["disable", "flanneld"]);
    install(&machine.root());
    machine.sh("systemctl daemon-reload; systemctl enable flanneld; timeout 60 systemctl restart flanneld docker");
    unchanged(&host, &machine, &before);
    assert_eq!(user(&machine), "root");
    docker0_is_ours(&machine);
}
