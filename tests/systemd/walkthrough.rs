//! The README's "From zero to two hosts with Docker", its commands run as they stand, and what holds then.

use crate::deb;
use crate::lab::{Host, Lab, eventually_eq};
use crate::machine::Machine;

const README: &str = include_str!("../../README.md");

/// What is to be run on which host, in the order of the README: for each block of code that begins with a comment
/// such as `# on both hosts`.
fn steps() -> Vec<(Vec<usize>, String)> {
    let section = README.split("\n## ").find(|section| section.starts_with("From zero to two hosts with Docker\n"));
    let blocks = section.expect("the section").split("\n\n").filter(|block| block.starts_with("    # on "));
    let step = |block: &str| {
        let script: Vec<&str> = block.lines().map(|line| line.strip_prefix("    ").expect("code")).collect();
        let hosts = match script[0] {
            "# on the first host" => vec![0],
            "# on the second host" => vec![1],
            "# on both hosts" => vec![0, 1],
            other => panic!("on which host is this to be run: {other}"),
        };
        (hosts, script.join("\n"))
    };
    blocks.map(step).collect()
}

/// A machine as Debian delivers it, with the package in the current directory and busybox where Docker finds it.
fn prepare(host: &Host, package: &std::path::Path) -> Machine {
    let machine = Machine::boot_with_docker(host, |root| {
        root.install("/root/flanneld_0.1.0-1_amd64.deb", std::fs::read(package).expect("the package"), 0o644);
        root.enable(&["docker"]);
    });
    machine.wait_running();
    machine.sh("cd $(mktemp -d); mkdir bin; cp /bin/busybox bin; cd bin
        for name in sh ping httpd wget sha256sum head mkdir wc ip; do ln -s busybox $name; done
        cd ..; tar -c . | docker import - busybox");
    machine
}

/// A container on each host that serves 100 MB over HTTP; their addresses and the checksums of what they serve.
fn serve_files(machines: &[Machine; 2]) -> [(String, String); 2] {
    let serve = "mkdir www; head -c 104857600 /dev/urandom >www/blob; exec httpd -f -h www";
    machines.each_ref().map(|machine| {
        machine.sh(&format!("docker run -d --name files busybox sh -c '{serve}'"));
        let address = machine.sh("docker inspect -f '{{.NetworkSettings.IPAddress}}' files").trim().to_owned();
        let size = || machine.run(&["docker", "exec", "files", "sh", "-c", "wc -c <www/blob"]).unwrap_or_default();
        eventually_eq("the file is there", &"104857600\n".to_owned(), size);
        (address, machine.sh("docker exec files sha256sum www/blob")[..64].to_owned())
    })
}

#[test]
fn the_walkthrough_of_the_readme_gives_two_hosts_whose_containers_reach_each_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let package = deb::build(dir.path(), "0.1.0-1");
    let lab = Lab::new("walk");
    let machines = [1, 2].map(|index| prepare(&lab.host(index), &package));
    let steps = steps();
    assert!(steps.len() >= 5, "{steps:?}");
    for (hosts, script) in steps {
        for host in hosts {
            let printed = machines[host].sh(&format!("cd /root\n{script}"));
            println!("---- on host {}\n{script}\n----\n{printed}", host + 1);
        }
    }
    for machine in &machines {
        let env = machine.live().read("/run/flannel/subnet.env").expect("subnet.env");
        let bridge = env.lines().find_map(|line| line.strip_prefix("FLANNEL_SUBNET=")).expect("a subnet");
        assert!(machine.sh("ip -4 -o addr show docker0").contains(&format!("inet {bridge} ")), "not {bridge}");
    }
    let served = serve_files(&machines);
    for (machine, (address, checksum)) in machines.iter().zip(served.iter().rev()) {
        assert!(machine.sh("docker exec files ip link show eth0").contains("mtu 1450 "));
        assert!(machine.sh("ip link show docker0").contains("mtu 1450 "), "with a container");
        machine.sh(&format!("docker exec files ping -c 1 -W 10 {address}"));
        let fetch = format!("docker exec files sh -c 'wget -q -O- http://{address}/blob | sha256sum'");
        assert_eq!(machine.sh(&fetch)[..64], *checksum);
        assert!(
            machine.show("flanneld", "StatusText").ends_with("1 peer"),
            "{}",
            machine.show("flanneld", "StatusText")
        );
    }
}
