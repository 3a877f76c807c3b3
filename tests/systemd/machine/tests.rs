//! The machine itself.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::lab::docker::cgroup_hierarchies;
use crate::lab::{Lab, names_in};
use crate::machine::Machine;

#[test]
fn a_machine_boots_reboots_and_leaves_nothing_behind() {
    let mut seen = None;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::new("machine");
        let host = lab.host(1);
        let unit = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'echo hello; echo >>/var/lib/boots'\n\
                    [Install]\nWantedBy=multi-user.target\n";
        let mut machine = Machine::boot(&host, |root| {
            root.unit("hello.service", unit);
            root.enable(&["hello.service"]);
        });
        machine.wait_running();
        assert_eq!(machine.sh("systemctl is-system-running"), "running\n");
        assert_eq!(machine.show("hello", "ActiveState"), "active");
        assert!(machine.journal("hello").contains("hello\n"));
        assert!(machine.sh("ip -4 addr show eth0").contains("172.31.0.1/24"));
        machine.live().write("/run/mark", "");
        machine.reboot();
        machine.wait_running();
        assert_eq!(
            (machine.live().read("/run/mark"), machine.root().read("/var/lib/boots")),
            (None, Some("\n\n".into()))
        );
        assert!(!Path::new("/var/lib/boots").exists(), "it writes to this machine");
        seen = Some((machine.name().to_owned(), lab.dir().to_owned(), machine.pid()));
        panic!("as a failing test would");
    }));
    let text = |panic: Box<dyn std::any::Any + Send>| panic.downcast::<&str>().map(|text| text.to_string());
    assert_eq!(text(result.unwrap_err()).ok().as_deref(), Some("as a failing test would"));
    let (name, dir, pid) = seen.expect("the machine was booted");
    assert!(!dir.exists() && !Path::new(&format!("/proc/{pid}")).exists());
    assert!(!fs::read_to_string("/proc/mounts").expect("mounts").contains(&name));
    assert!(!cgroup_hierarchies().iter().any(|hierarchy| names_in(hierarchy).contains(&name)));
}

#[test]
fn dockers_own_units_run_containers_on_a_machine() {
    let lab = Lab::new("dockerunit");
    let host = lab.host(1);
    let machine = Machine::boot_with_docker(&host, |root| root.enable(&["docker"]));
    machine.wait_running();
    assert_eq!(machine.show("docker", "ActiveState"), "active");
    // Of nothing but busybox.
    machine.sh("cd $(mktemp -d); mkdir bin; cp /bin/busybox bin; tar -c . | docker import - lab:1");
    assert_eq!(machine.sh("docker run --rm --network none lab:1 /bin/busybox echo hello"), "hello\n");
}
