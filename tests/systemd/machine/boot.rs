//! How a machine is built and booted.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Pid;

use super::{MINUTE, Machine, Root, TARGET, children, in_time};
use crate::lab::docker::cgroup_hierarchies;
use crate::lab::process::Process;
use crate::lab::{Host, wait_until};

/// Makes the file system in namespaces of its own, and stays. `/run` is hidden, where systemd-nspawn leaves things.
const HOLD: &str = r#"
    mount -t tmpfs tmpfs "$1"
    cd "$1"
    mkdir upper work root
    touch net
    mount --bind "/run/netns/$2" net
    mount -t tmpfs tmpfs /run
    mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
    touch ready
    exec sleep infinity"#;

/// In the machine's control groups and the holder's namespaces: systemd-nspawn.
const BOOT: &str = r#"
    holder=$1
    shift
    while [ "$1" != -- ]; do
        echo $$ >"$1/cgroup.procs"
        shift
    done
    shift
    exec nsenter -t "$holder" --mount --pid -- "$@""#;

/// What this machine has and the new one should not: its configuration of services, and what an earlier or another
/// flanneld may have left.
const NOT_OURS: [&str; 15] = [
    "/etc/systemd/system",
    "/etc/systemd/network",
    "/etc/sysconfig/flanneld",
    "/etc/default/flanneld",
    "/etc/default/docker",
    "/etc/docker",
    "/etc/flannel",
    "/usr/bin/flanneld",
    "/usr/libexec/flannel",
    "/usr/lib/systemd/system/flanneld.service",
    "/usr/lib/systemd/system/docker.service.d",
    "/usr/lib/sysusers.d/flannel.conf",
    "/usr/lib/tmpfiles.d/flannel.conf",
    "/var/lib/flannel",
    "/var/log/journal",
];

/// Units that would reach through to the kernel of this machine, or wait for a terminal.
const MASKED: [&str; 4] =
    ["systemd-modules-load.service", "systemd-sysctl.service", "systemd-udevd.service", "getty.target"];

impl Machine {
    /// The machine as it is delivered: switched off.
    pub(super) fn assemble(host: &Host) -> Machine {
        let name = format!("{}-sd", host.netns_name());
        let (dir, log) = (host.path("machine"), host.path("nspawn.log"));
        fs::create_dir(&dir).expect("a directory for the machine");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", "-ec", HOLD, "sh"]).arg(&dir).arg(host.netns_name());
        let holder = Process::spawn(&mut command, &log);
        let machine = Machine { name, dir, log, options: Vec::new(), nspawn: None, holder, pid: None };
        let made = wait_until(MINUTE, || {
            !children(machine.holder.pid()).is_empty() && machine.root().path("../ready").exists()
        });
        assert!(made, "no file system for a machine: {}", fs::read_to_string(&machine.log).unwrap_or_default());
        machine.furnish(&machine.root());
        machine
    }

    fn furnish(&self, root: &Root) {
        NOT_OURS.iter().for_each(|path| root.remove(path));
        MASKED.iter().for_each(|unit| root.link(&format!("/etc/systemd/system/{unit}"), "/dev/null"));
        // Not empty, which would be a first boot; no two of them the same.
        let id: String = self.name.bytes().map(|byte| format!("{byte:02x}")).rev().collect();
        root.write("/etc/machine-id", &format!("{:0<32.32}\n", id));
        root.write("/etc/hostname", &format!("{}\n", self.name));
    }

    pub(super) fn allow_docker(&mut self, data: &Path) {
        fs::DirBuilder::new().mode(0o710).create(data).expect("a directory for Docker");
        self.options.push(format!("--bind={}:/var/lib/docker", data.display()));
        let root = self.root();
        root.remove("/usr/sbin/policy-rc.d");
        // systemd-nspawn makes the hierarchies of cgroup v1 read-only; containers need theirs.
        root.unit(
            "lab-cgroups.service",
            "[Unit]\nDefaultDependencies=no\nBefore=sysinit.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
             ExecStart=/bin/sh -c 'for c in /sys/fs/cgroup/*/; do mount -o remount,bind,rw $c; done'\n\
             [Install]\nWantedBy=sysinit.target\n",
        );
        root.enable(&["lab-cgroups.service"]);
    }

    /// Boots it, until systemd has come as far as the services.
    pub fn power_on(&mut self) {
        assert!(self.nspawn.is_none(), "the machine {} runs", self.name);
        let root = self.dir.join("root");
        let mut command = Command::new("sh");
        command.args(["-ec", BOOT, "sh", &self.holder_pid().to_string()]).args(self.control_groups()).arg("--");
        // dockerd writes /proc/sys/net, and runc makes a session's key ring.
        command.args(["env", "SYSTEMD_NSPAWN_API_VFS_WRITABLE=network", "systemd-nspawn", "--boot", "--quiet"]);
        command.args(["--register=no", "--keep-unit", "--console=pipe", "--capability=all"]);
        command.args(["--system-call-filter=@keyring", &format!("--machine={}", self.name), "--directory"]).arg(root);
        command.arg(format!("--network-namespace-path={}", self.dir.join("net").display())).args(&self.options);
        command.arg(format!("systemd.unit={TARGET}"));
        self.nspawn = Some(Process::spawn(&mut command, &self.log));
        let log = || fs::read_to_string(&self.log).unwrap_or_default();
        let mut pid = None;
        let boots = wait_until(MINUTE, || {
            pid = self.nspawn.as_ref().and_then(|nspawn| find_systemd(nspawn.pid()));
            pid.is_some()
        });
        assert!(boots, "systemd does not boot: {}", log());
        self.pid = pid;
        in_time("the machine starts its services", || self.run(&["systemctl", "is-active", "basic.target"]).is_ok());
    }

    /// Groups of its own in every hierarchy: the systemds of two machines would use the same names.
    fn control_groups(&self) -> Vec<PathBuf> {
        let groups = cgroup_hierarchies().into_iter().map(|hierarchy| {
            let group = hierarchy.join(&self.name);
            let _ = fs::create_dir(&group);
            // In cpuset of cgroup v1 a new group has neither, and takes no process then.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(inherited) = fs::read(hierarchy.join(file)) {
                    fs::write(group.join(file), inherited).expect("the group's processors and memory");
                }
            }
            group
        });
        groups.collect()
    }
}

/// The process that is the first of its namespace, among the descendants of another.
fn find_systemd(pid: Pid) -> Option<Pid> {
    children(pid).into_iter().find_map(|child| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        let is_first = status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"));
        let is_systemd = status.starts_with("Name:\tsystemd\n");
        if is_first && is_systemd { Some(child) } else { find_systemd(child) }
    })
}
