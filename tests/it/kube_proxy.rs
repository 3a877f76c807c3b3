//! Kubernetes services over the overlay, by the rules that kube-proxy writes in its mode for iptables.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::lab::{Answer, CONFIG, Container, Etcd, Host, Lab, NETWORK, PREFIX, Server, containers_on, eventually};

const CLUSTER_IP: &str = "10.254.0.10";
const NODE_PORT: u16 = 30080;

/// The rules for one service of type NodePort with two endpoints. kube-proxy puts its jumps first, as here; but for the
/// one from POSTROUTING, so that whatever we do there is done before it.
fn kube_proxy(endpoints: [Ipv4Addr; 2]) -> String {
    let [one, two] = endpoints;
    format!(
        r#"iptables-restore --noflush <<'END'
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-NGINX - [0:0]
:KUBE-EXT-NGINX - [0:0]
:KUBE-SEP-ONE - [0:0]
:KUBE-SEP-TWO - [0:0]
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES -d {CLUSTER_IP}/32 -p tcp -m comment --comment "default/nginx cluster IP" -m tcp --dport 80 -j KUBE-SVC-NGINX
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/nginx" -m tcp --dport {NODE_PORT} -j KUBE-EXT-NGINX
-A KUBE-EXT-NGINX -m comment --comment "masquerade traffic for default/nginx external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-NGINX -j KUBE-SVC-NGINX
-A KUBE-SVC-NGINX ! -s {NETWORK} -d {CLUSTER_IP}/32 -p tcp -m comment --comment "default/nginx cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-NGINX -m comment --comment "default/nginx" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-ONE
-A KUBE-SVC-NGINX -m comment --comment "default/nginx" -j KUBE-SEP-TWO
-A KUBE-SEP-ONE -s {one}/32 -m comment --comment "default/nginx" -j KUBE-MARK-MASQ
-A KUBE-SEP-ONE -p tcp -m comment --comment "default/nginx" -m tcp -j DNAT --to-destination {one}:80
-A KUBE-SEP-TWO -s {two}/32 -m comment --comment "default/nginx" -j KUBE-MARK-MASQ
-A KUBE-SEP-TWO -p tcp -m comment --comment "default/nginx" -m tcp -j DNAT --to-destination {two}:80
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I INPUT -j KUBE-FIREWALL
-I OUTPUT -j KUBE-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-FIREWALL -m comment --comment "kubernetes firewall for dropping marked packets" -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
END"#
    )
}

/// Counts the overlay's own packets that still bear the mark: they would be masqueraded as well.
const PROBE: &str = "nft -f - <<'END'
table ip probe {
    chain out {
        type filter hook output priority 0;
        udp dport 8472 meta mark & 0x4000 == 0x4000 counter
    }
}
END";

/// kube-proxy and a pod on the first host, an endpoint on each of the others.
struct Cluster {
    hosts: Vec<Host>,
    pods: Vec<Container>,
    _endpoints: Vec<Server>,
    lab: Lab,
    _etcd: Etcd,
}

impl Cluster {
    fn new(name: &str, config: &str) -> Cluster {
        let lab = Lab::new(name);
        let etcd = lab.etcd();
        etcd.put(&format!("{PREFIX}/config"), config);
        let mut hosts = lab.hosts(3);
        hosts.iter_mut().for_each(|host| host.start(&["--ip-masq"]));
        hosts.iter().for_each(Host::wait_ready);
        let pods = containers_on(&mut hosts);
        let endpoints = [1, 2].map(|index: usize| pods[index].serve(&format!("endpoint-{index}")));
        hosts[0].sh(&kube_proxy([pods[1].address(), pods[2].address()]));
        hosts[0].sh(PROBE);
        hosts.iter().for_each(|host| host.follows(&etcd));
        Cluster { hosts, pods, _endpoints: endpoints.into(), lab, _etcd: etcd }
    }

    /// Asks until both endpoints have answered; each of them must see this client. How many connections it took.
    #[track_caller]
    fn both_answer(&self, what: &str, client: &str, ask: impl Fn() -> Result<Answer, String>) -> u64 {
        let mut seen = BTreeSet::new();
        for count in 1..=60 {
            let answer = ask().unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(answer.client, client, "{what}: the client that {} sees", answer.server);
            seen.insert(answer.server);
            if seen.len() == 2 {
                return count;
            }
        }
        panic!("{what}: one endpoint never answered: {seen:?}");
    }

    /// From a pod, the host and outside, by ClusterIP and NodePort. What kube-proxy marks it masquerades, and nobody else.
    #[track_caller]
    fn services_work(&self) {
        let (pod, host) = (&self.pods[0], &self.hosts[0]);
        let (service, node) = (format!("{CLUSTER_IP}:80"), format!("{}:{NODE_PORT}", host.public_ip()));
        let overlay = host.subnet().replace("/24", "");
        let masqueraded = || (self.masqueraded("KUBE-POSTROUTING"), self.masqueraded("FLANNEL-POSTRTG"));
        let (before, ours) = masqueraded();
        self.both_answer("pod to ClusterIP", &pod.address().to_string(), || pod.ask(&service));
        assert_eq!(masqueraded(), (before, ours), "a pod that asks another keeps its address");
        let marked = self.both_answer("pod to NodePort", &overlay, || pod.ask(&node))
            + self.both_answer("host to ClusterIP", &overlay, || host.ask(&service))
            + self.both_answer("host to NodePort", &overlay, || host.ask(&node))
            + self.both_answer("outside to NodePort", &overlay, || self.lab.ask(&node));
        assert_eq!(masqueraded(), (before + marked, ours), "what kube-proxy marked is left to it");
        let probe = host.sh("nft list table ip probe");
        assert!(probe.contains("packets 0 bytes 0"), "the overlay's own packets bear the mark: {probe}");
    }

    /// How many connections the rules of a chain of iptables have masqueraded on the first host.
    fn masqueraded(&self, chain: &str) -> u64 {
        let rules = self.hosts[0].sh(&format!("iptables-save -c -t nat | grep -e '-A {chain} .*MASQUERADE' || true"));
        let counts = rules.lines().map(|line| line.trim_start_matches('[').split(':').next().unwrap_or_default());
        counts.map(|count| count.parse::<u64>().unwrap_or_else(|_| panic!("{rules}"))).sum()
    }

    /// All of kube-proxy's rules, in their order.
    fn kube_rules(&self) -> Vec<String> {
        let rules = self.hosts[0].sh("iptables-save");
        rules.lines().filter(|line| line.contains("KUBE")).map(|line| line.replace(" [0:0]", "")).collect()
    }

    /// All daemons again, with other flags.
    fn restart(&mut self, flags: &[&str]) {
        for host in &mut self.hosts {
            host.stop();
            host.start(flags);
        }
        self.hosts.iter().for_each(Host::wait_ready);
    }
}

#[test]
fn services_work_with_and_without_ip_masq() {
    let mut cluster = Cluster::new("services", CONFIG);
    // As dockerd leaves it: only what is accepted gets through.
    cluster.hosts.iter().for_each(|host| drop(host.sh("iptables -P FORWARD DROP")));
    let rules = cluster.kube_rules();
    cluster.services_work();
    cluster.hosts[0].sh("iptables -F FLANNEL-FWD; iptables -t nat -F FLANNEL-POSTRTG");
    eventually("the rules are mended", || cluster.hosts[0].sh("iptables-save").matches("-A FLANNEL-").count() == 8);
    cluster.services_work();
    cluster.restart(&[]);
    cluster.services_work();
    assert_eq!(cluster.kube_rules(), rules, "kube-proxy's rules are its own");
}

#[test]
fn services_work_where_our_rules_are_in_nftables() {
    let mut cluster = Cluster::new("nftservices", &CONFIG.replacen('{', r#"{ "EnableNFTables": true,"#, 1));
    let rules = cluster.kube_rules();
    cluster.services_work();
    // Of two chains with one priority the younger is asked first.
    cluster.hosts[0].sh("nft delete table ip flannel-ipv4");
    eventually("our table is back", || cluster.hosts[0].run(&["nft", "list", "table", "ip", "flannel-ipv4"]).is_ok());
    cluster.services_work();
    cluster.restart(&[]);
    cluster.services_work();
    assert_eq!(cluster.kube_rules(), rules, "kube-proxy's rules are its own");
    assert!(!cluster.hosts[0].sh("iptables-save").contains("FLANNEL"));
}
