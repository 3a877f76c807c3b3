//! A host on which flanneld was installed, with the files of the folder `systemd` as they are.

use std::fs;
use std::path::Path;

use crate::lab::{FLANNELD, PREFIX};
use crate::machine::{Machine, Root};

pub const SUBNET_ENV: &str = "/run/flannel/subnet.env";

/// A file of the folder `systemd`.
pub fn shipped(name: &str) -> String {
    repository(&format!("systemd/{name}"))
}

fn repository(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Puts the unit in its place, and what belongs to it. Nothing is enabled.
pub fn install(root: &Root) {
    root.install_program("/usr/bin/flanneld", FLANNELD);
    root.write("/usr/lib/systemd/system/flanneld.service", &shipped("flanneld.service"));
    root.write("/usr/lib/sysusers.d/flannel.conf", &shipped("flannel.sysusers.conf"));
    root.write("/usr/lib/tmpfiles.d/flannel.conf", &shipped("flannel.tmpfiles.conf"));
    root.write("/usr/lib/systemd/network/10-flannel.network", &shipped("flannel.network"));
    root.write("/usr/share/man/man8/flanneld.8", &repository("packaging/man/flanneld.8"));
    configure(root, "");
}

/// What the administrator writes, part of it in each of the two files: the lab's etcd, and `more` lines.
pub fn configure(root: &Root, more: &str) {
    let endpoints = "FLANNEL_ETCD_ENDPOINTS=\"http://172.31.0.254:2379\"";
    root.write("/etc/sysconfig/flanneld", &format!("{endpoints}\n{more}\n"));
    root.write("/etc/default/flanneld", &format!("FLANNEL_ETCD_PREFIX=\"{PREFIX}\"\n"));
}

/// A value of the machine's `subnet.env`.
#[track_caller]
pub fn subnet_env(machine: &Machine, key: &str) -> String {
    machine.sh(&format!(". {SUBNET_ENV}; echo ${key}")).trim().to_owned()
}

pub fn pid_of(machine: &Machine, unit: &str) -> String {
    machine.show(unit, "MainPID")
}

/// What `systemctl status` prints of flanneld.
pub fn status(machine: &Machine) -> String {
    machine.sh("systemctl status --no-pager --full --lines=0 flanneld || true")
}
