//! Beside a real dockerd on two hosts, started with what flanneld wrote for it.

use std::net::Ipv4Addr;

use crate::lab::{Docker, Etcd, Host, Lab, Lease, eventually, eventually_eq};

/// Two hosts with a dockerd and a container each.
struct Site {
    dockers: Vec<Docker>,
    hosts: Vec<Host>,
    addresses: Vec<Ipv4Addr>,
    lab: Lab,
    etcd: Etcd,
}

impl Site {
    /// Their daemons have these flags too.
    fn new(name: &str, flags: &[&str]) -> Site {
        let lab = Lab::new(name);
        let etcd = lab.etcd_with_config();
        let mut hosts = lab.hosts(2);
        hosts.iter_mut().for_each(|host| host.start(&[&["--healthz-port=8123"], flags].concat()));
        hosts.iter().for_each(Host::wait_ready);
        // Then dockerd sets the FORWARD policy to DROP.
        hosts.iter().for_each(|host| drop(host.sh("echo 0 >/proc/sys/net/ipv4/ip_forward")));
        let dockers: Vec<Docker> = hosts.iter().map(Host::docker).collect();
        let addresses = dockers.iter().map(|docker| docker.run("web")).collect();
        Site { dockers, hosts, addresses, lab, etcd }
    }

    #[track_caller]
    fn containers_reach_each_other(&self) {
        for (docker, other) in [(0, 1), (1, 0)] {
            let ping = || self.dockers[docker].pings("web", self.addresses[other]);
            eventually("a container reaches that of the other host", ping);
        }
    }

    /// Who a server in the second host's container sees when the first host's asks.
    #[track_caller]
    fn seen_by_peer(&self) -> String {
        self.dockers[0].ask("web", self.addresses[1]).expect("an answer of the other container").client
    }

    /// How many connections a host has masqueraded by now, whoever's rule it was.
    fn masqueraded(&self, host: usize) -> u64 {
        let rules = self.hosts[host].sh("iptables-save -c -t nat | grep MASQUERADE || true");
        let counts = rules.lines().map(|line| line.trim_start_matches('[').split(':').next().unwrap_or_default());
        counts.map(|count| count.parse::<u64>().unwrap_or_else(|_| panic!("{rules}"))).sum()
    }

    /// A container's connection to outside comes from its host's own address, and one rule did it once.
    #[track_caller]
    fn outside_is_masqueraded_once(&self) {
        let _server = self.lab.serve("outside");
        let before = [0, 1].map(|host| self.masqueraded(host));
        let answer = self.dockers[0].ask("web", "172.31.0.254").expect("an answer from outside");
        assert_eq!((answer.server.as_str(), answer.client), ("outside", self.hosts[0].public_ip()));
        assert_eq!([0, 1].map(|host| self.masqueraded(host)), [before[0] + 1, before[1]]);
    }

    /// Jumps of the chain FORWARD, in their order.
    fn forward(&self, host: usize) -> Vec<String> {
        let rules = self.hosts[host].sh("iptables -S FORWARD");
        let jumps = rules.lines().filter_map(|line| line.strip_prefix("-A FORWARD "));
        jumps.map(|rule| rule.rsplit("-j ").next().unwrap_or_default().to_owned()).collect()
    }
}

#[test]
fn docker_that_drops_what_is_forwarded_and_starts_again_does_not_part_containers() {
    let mut site = Site::new("dockerd", &["--iptables-docker-user-rules"]);
    assert!(site.hosts[0].sh("iptables -S FORWARD").starts_with("-P FORWARD DROP"), "dockerd set no policy");
    site.containers_reach_each_other();
    let order = site.forward(0);
    assert_eq!((order[0].as_str(), order[order.len() - 1].as_str()), ("DOCKER-USER", "FLANNEL-FWD"), "{order:?}");
    // A rule of the user's own. Docker puts its chains first when it starts.
    site.hosts[0].sh("iptables -I DOCKER-USER -p tcp --dport 9 -j DROP");
    let users = site.hosts[0].sh("iptables -S DOCKER-USER");
    assert_eq!(users.matches("-j FLANNEL-DOCKER").count(), 1, "{users}");
    site.hosts[0].sh("iptables -D FORWARD -j DOCKER-USER; iptables -A FORWARD -j DOCKER-USER");
    site.dockers[0].restart();
    site.addresses[0] = site.dockers[0].start_container("web");
    site.containers_reach_each_other();
    eventually_eq("all stand in their order", &order, || site.forward(0));
    assert_eq!(site.hosts[0].sh("iptables -S DOCKER-USER"), users);
    assert_eq!(site.hosts[0].sh("iptables-save -t filter").matches("-A FLANNEL-FWD").count(), 2);
    // All rules go while both run.
    site.hosts[0]
        .sh("iptables -F FLANNEL-FWD; iptables -D FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD");
    eventually_eq("they are back in their order", &order, || site.forward(0));
    site.containers_reach_each_other();
    eventually("nothing to complain of", || site.hosts[0].http_get(8123, "/readyz").is_ok_and(|(code, _)| code == 200));
}

#[test]
fn with_ip_masq_containers_keep_their_address_and_outside_sees_the_hosts() {
    let site = Site::new("masq", &["--ip-masq"]);
    site.containers_reach_each_other();
    assert_eq!(site.seen_by_peer(), site.addresses[0].to_string());
    assert_eq!([0, 1].map(|host| site.masqueraded(host)), [0, 0]);
    site.outside_is_masqueraded_once();
    let docker = site.hosts[0].sh("iptables-save -t nat");
    assert!(!docker.contains("! -o docker0 -j MASQUERADE"), "Docker was told not to masquerade: {docker}");
}

#[test]
fn without_ip_masq_docker_masquerades_all_that_leaves_its_bridge() {
    let site = Site::new("nomasq", &[]);
    site.containers_reach_each_other();
    // As with flannel: also what goes to other hosts' containers, which see the host's address on the overlay.
    let overlay = site.hosts[0].subnet().replace("/24", "");
    assert_eq!(site.seen_by_peer(), overlay);
    site.outside_is_masqueraded_once();
    assert!(!site.hosts[0].sh("iptables-save -t nat").contains("FLANNEL"));
}

#[test]
fn a_new_mtu_and_a_new_subnet_are_told_until_docker_has_started_again() {
    let mut site = Site::new("renewed", &[]);
    let complaint = |site: &Site| {
        let readiness = site.hosts[0].http_get(8123, "/readyz").map(|(_, body)| body).unwrap_or_default();
        let line = readiness.lines().find(|line| line.contains("docker0")).unwrap_or_default();
        // Behind the reason stands for how long it has held.
        line.rsplit_once(" (for ").map_or(line, |(reason, _)| reason).to_owned()
    };
    let says = |site: &Site, text: &str| {
        eventually(text, || complaint(site).starts_with(text) && complaint(site).contains("systemctl restart docker"));
        assert!(site.hosts[0].status().unwrap().contains(&complaint(site)));
    };
    let restart = |site: &mut Site| {
        site.dockers[0].restart();
        site.addresses[0] = site.dockers[0].start_container("web");
        eventually_eq("nothing to complain of", &String::new(), || complaint(site));
        site.containers_reach_each_other();
    };
    site.containers_reach_each_other();
    assert_eq!(complaint(&site), "");
    site.hosts[0].ip("link set eth0 mtu 1400");
    says(&site, "containers on docker0 have MTU 1450, but no more than 1350 passes");
    restart(&mut site);

    // Another host takes the subnet while this one is away.
    let (old, bridge) = (site.etcd.lease_of_host(&site.hosts[0]), site.hosts[0].subnet_env("FLANNEL_SUBNET"));
    site.hosts[0].stop();
    site.etcd.del(&old.key());
    site.etcd.put_lease(&Lease { subnet: old.subnet.clone(), ..Lease::guest(200) });
    site.hosts[0].start(&["--healthz-port=8123"]);
    site.hosts[0].wait_ready();
    let subnet = site.hosts[0].subnet();
    assert_ne!(subnet, old.subnet);
    says(&site, &format!("docker0 has {bridge}, but this host's subnet is {subnet}"));
    let now = site.hosts[0].subnet_env("FLANNEL_SUBNET");
    let line = format!("the address of Docker's bridge is now {now}, it was {bridge}: restart Docker");
    assert!(site.hosts[0].log().contains(&line), "{}", site.hosts[0].log());
    restart(&mut site);
}
