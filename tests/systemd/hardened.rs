//! What flanneld may do under its unit: all that it must, and little else.

use std::fs;

use crate::lab::{CONFIG, DEVICE, Etcd, Lab, PREFIX};
use crate::machine::{Machine, Root, in_time};
use crate::pki::{Authority, Role};
use crate::site::{self, pid_of, status};

const PASSWORD: &str = "s3cret-marker";
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_NET_RAW: u64 = 1 << 13;

/// All that has rules.
const FLAGS: &str = "FLANNEL_OPTIONS=\"--ip-masq --iptables-docker-user-rules --ip-blackhole-route\"";

/// An etcd that on port 2389 wants a certificate and a password; what its clients need, where only root may read it.
fn etcd(lab: &Lab) -> Etcd {
    let (ca, dir) = (Authority::new(), lab.dir().join("tls"));
    fs::create_dir(&dir).expect("a directory");
    fs::write(dir.join("ca.crt"), &ca.pem).expect("a certificate");
    fs::write(dir.join("etcd-password"), PASSWORD).expect("a password");
    ca.issue(Role::Server(&["172.31.0.254"])).write(&dir, "server");
    ca.issue(Role::Client("a client")).write(&dir, "client");
    let file = |flag: &str, name: &str| format!("--{flag}={}", dir.join(name).display());
    let mut etcd = lab.etcd_with(&[
        "--listen-client-urls=http://172.31.0.254:2379,https://172.31.0.254:2389".to_owned(),
        file("cert-file", "server.crt"),
        file("key-file", "server.key"),
        file("trusted-ca-file", "ca.crt"),
        "--client-cert-auth".to_owned(),
        "--bcrypt-cost=4".to_owned(),
    ]);
    etcd.put(&format!("{PREFIX}/config"), CONFIG);
    etcd.enable_auth(PASSWORD);
    etcd
}

fn install(lab: &Lab, root: &Root) {
    site::install(root);
    let endpoint = "FLANNEL_ETCD_ENDPOINTS=https://172.31.0.254:2389";
    site::configure(root, &format!("{endpoint}\n{FLAGS}"));
    for name in ["ca.crt", "client.crt", "client.key", "etcd-password"] {
        let content = fs::read(lab.dir().join("tls").join(name)).expect("a file");
        root.install(&format!("/etc/flannel/{name}"), content, 0o600);
    }
    root.unit("flanneld.service.d/credentials.conf", &site::shipped("flanneld-credentials.conf"));
    root.enable(&["flanneld"]);
}

/// Its user, and the sets of capabilities that it has, could get and hands on.
fn privileges(machine: &Machine) -> (String, Vec<u64>) {
    let pid = pid_of(machine, "flanneld");
    let sets = machine.sh(&format!("sed -n 's/^Cap\\(Eff\\|Bnd\\|Amb\\):\\t//p' /proc/{pid}/status"));
    let sets = sets.lines().map(|set| u64::from_str_radix(set, 16).expect("a set")).collect();
    (machine.sh(&format!("stat -c %U /proc/{pid}")).trim().to_owned(), sets)
}

#[track_caller]
fn is_content(machine: &Machine) {
    machine.eventually_shows("flanneld", "ActiveState", "active");
    let said = status(machine);
    assert!(said.contains("Status: \"subnet "), "{said}");
}

/// `list` shows the rules that forward and masquerade; what `flush` does is repaired.
#[track_caller]
fn keeps_its_rules(machine: &Machine, list: &str, flush: &str) {
    is_content(machine);
    let rules = machine.sh(list);
    assert!(rules.contains("172.30.0.0/16") && rules.to_lowercase().contains("masquerade"), "{rules}");
    // They may be back before anybody looks.
    let repairs = || machine.journal("flanneld").matches("firewall: ").count();
    let before = repairs();
    machine.sh(flush);
    in_time("the rules are back", || repairs() > before && machine.sh(list) == rules);
}

fn config_with(more: &str) -> String {
    CONFIG.replacen('{', &format!("{{ {more},"), 1)
}

/// Ours alone: what counts packets is not among it.
const SAVED: &str = "iptables-save | grep -i flannel";

fn with_each_firewall(machine: &Machine, etcd: &Etcd) {
    let flush = "iptables -F FLANNEL-FWD; iptables -t nat -F POSTROUTING";
    assert!(machine.sh("iptables --version").contains("nf_tables"));
    keeps_its_rules(machine, SAVED, flush);

    etcd.put(&format!("{PREFIX}/config"), &config_with("\"EnableNFTables\": true"));
    machine.systemctl(&["restart", "flanneld"]);
    keeps_its_rules(machine, "nft list ruleset", "nft flush table ip flannel-ipv4");

    etcd.put(&format!("{PREFIX}/config"), CONFIG);
    let programs = "iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore";
    machine.sh(&format!("for name in {programs}; do ln -sf /usr/sbin/xtables-legacy-multi /usr/sbin/$name; done"));
    machine.systemctl(&["restart", "--no-block", "flanneld"]);
    in_time("it says that it may not", || status(machine).contains("the firewall's rules cannot be kept: "));
    machine.root().unit("flanneld.service.d/legacy.conf", &site::shipped("flanneld-iptables-legacy.conf"));
    machine.sh("systemctl daemon-reload; timeout 60 systemctl restart flanneld");
    keeps_its_rules(machine, SAVED, flush);
    assert_eq!(privileges(machine), ("flannel".into(), vec![CAP_NET_ADMIN | CAP_NET_RAW; 3]));
}

/// systemd's own judgement of the unit.
fn is_sound(machine: &Machine) {
    assert_eq!(machine.show("flanneld", "WatchdogUSec"), "1min");
    assert_eq!(machine.sh("systemd-analyze verify flanneld.service 2>&1"), "");
    let security = "systemd-analyze security --no-pager --offline=true --threshold=20 flanneld.service";
    let judgement = machine.sh(security);
    println!("{}", judgement.lines().last().unwrap_or_default());
}

/// One that an administrator has made master of every interface.
fn networkd_leaves_the_device_alone(machine: &Machine) {
    let link = "ip -o link show flannel.1; ip -o addr show flannel.1; ip route show dev flannel.1";
    let before = machine.sh(link);
    machine.root().write(
        "/etc/systemd/network/50-all.network",
        "[Match]\nName=*\n[Network]\nAddress=192.0.2.7/24\nKeepConfiguration=yes\n",
    );
    machine.systemctl(&["start", "systemd-networkd"]);
    let state = |device: &str| machine.sh(&format!("networkctl --no-pager --no-legend list {device}"));
    in_time("it knows the others", || state("eth0").contains("configured"));
    assert!(state(DEVICE).contains("unmanaged"), "{}", state(DEVICE));
    assert_eq!(machine.sh(link), before);
}

/// As after an upgrade from a flanneld that ran as root: the message tells what to mend.
fn a_key_that_only_root_may_read_is_named(machine: &Machine) {
    site::configure(
        &machine.root(),
        "FLANNEL_ETCD_ENDPOINTS=https://172.31.0.254:2389\n\
         FLANNELD_ETCD_CERTFILE=/etc/flannel/client.crt\nFLANNELD_ETCD_KEYFILE=/etc/flannel/client.key",
    );
    machine.root().remove("/etc/systemd/system/flanneld.service.d/credentials.conf");
    machine.sh("chmod 644 /etc/flannel/client.crt; systemctl daemon-reload; ! timeout 60 systemctl restart flanneld");
    let told = "--etcd-keyfile=/etc/flannel/client.key: it cannot be read by the user that flanneld runs as (id ";
    assert!(machine.journal("flanneld").contains(told), "{}", machine.journal("flanneld"));
    machine.systemctl(&["stop", "flanneld"]);
}

#[test]
fn under_its_unit_it_may_do_what_it_must_and_little_else() {
    let lab = Lab::new("hardened");
    let etcd = etcd(&lab);
    let host = lab.host(1);
    let machine = Machine::boot(&host, |root| install(&lab, root));
    machine.wait_running();
    is_content(&machine);
    assert_eq!(privileges(&machine), ("flannel".into(), vec![CAP_NET_ADMIN; 3]));
    assert!(!machine.journal("flanneld").contains("WARN"), "{}", machine.journal("flanneld"));
    assert!(!machine.sh("journalctl -b").contains(PASSWORD));
    assert_eq!(machine.sh(&format!("cat /proc/sys/net/ipv6/conf/{DEVICE}/accept_ra")), "0\n");
    is_sound(&machine);
    networkd_leaves_the_device_alone(&machine);
    with_each_firewall(&machine, &etcd);
    site::configure(
        &machine.root(),
        "FLANNEL_ETCD_ENDPOINTS=https://172.31.0.254:2389\nFLANNEL_OPTIONS=--release-lease-on-exit",
    );
    machine.systemctl(&["restart", "flanneld"]);
    machine.systemctl(&["stop", "flanneld"]);
    assert_eq!(etcd.leases(), [], "{}", machine.journal("flanneld"));
    a_key_that_only_root_may_read_is_named(&machine);
}
