//! The daemon's rules in the firewalls of its hosts: what stands there, for whom, and what has gone.

use crate::lab::{CONFIG, Container, Etcd, Host, Lab, NETWORK, PREFIX, containers_on, eventually};
use std::collections::BTreeSet;

/// `iptables-save`, or a table of it, without what changes by itself.
pub fn saved(host: &Host, args: &str) -> Vec<String> {
    let text = host.sh(&format!("iptables-save {args}"));
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

/// Everything that any firewall of the host holds.
pub fn everything(host: &Host) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = saved(host, "").into_iter().collect();
    all.extend(host.sh("ip6tables-save; nft -s list ruleset").lines().map(|line| line.trim().to_owned()));
    all.retain(|line| !line.starts_with('#'));
    all
}

/// The usual network config, with nftables.
pub fn with_nftables() -> String {
    CONFIG.replacen('{', r#"{ "EnableNFTables": true,"#, 1)
}

/// What flannel's chain for masquerading holds, and who jumps there.
fn masquerade(subnet: &str, random: &str, suffix: &str, network: &str) -> Vec<String> {
    let rule = |what: &str| {
        format!("-A FLANNEL-POSTRTG{suffix} {what}").replace(" -j", " -m comment --comment \"flanneld masq\" -j")
    };
    vec![
        format!("-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG{suffix}"),
        rule("-m mark --mark 0x4000/0x4000 -j RETURN"),
        rule(&format!("-s {subnet} -d {network} -j RETURN")),
        rule(&format!("-s {network} -d {subnet} -j RETURN")),
        rule(&format!("! -s {network} -d {subnet} -j RETURN")),
        rule(&format!("-s {network} ! -d 224.0.0.0/4 -j MASQUERADE{random}")),
        rule(&format!("! -s {network} -d {network} -j MASQUERADE{random}")),
    ]
}

fn forward(suffix: &str, network: &str) -> Vec<String> {
    let rule = |side: &str| {
        format!("-A FLANNEL-FWD{suffix} {side} {network} -m comment --comment \"flanneld forward\" -j ACCEPT")
    };
    let jump = format!("-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD{suffix}");
    vec![jump, rule("-s"), rule("-d")]
}

/// The rules of a chain's table that speak of flannel, in order.
fn ours(host: &Host, table: &str) -> Vec<String> {
    saved(host, &format!("-t {table}"))
        .into_iter()
        .filter(|line| line.starts_with("-A") && line.contains("FLANNEL"))
        .collect()
}

/// The daemon is stopped and started again with other flags.
fn again(host: &mut Host, flags: &[&str]) {
    host.stop();
    host.start(flags);
    host.wait_ready();
}

/// Two hosts that drop what they forward, as Docker has it, with a container each.
fn behind_a_drop_policy(lab: &Lab, flags: &[&str]) -> (Vec<Host>, Vec<Container>) {
    let mut hosts = lab.hosts(2);
    for host in &mut hosts {
        host.sh("iptables -P FORWARD DROP");
        host.start(flags);
    }
    hosts.iter().for_each(Host::wait_ready);
    let containers = containers_on(&mut hosts);
    (hosts, containers)
}

#[test]
fn containers_reach_each_other_through_a_forward_chain_that_drops() {
    let lab = Lab::new("forward");
    let etcd = lab.etcd_with_config();
    let (mut hosts, containers) = behind_a_drop_policy(&lab, &[]);
    hosts.iter().for_each(|host| host.follows(&etcd));
    containers[0].ping(containers[1].address(), 3).expect("the overlay works");
    assert_eq!(ours(&hosts[0], "filter"), forward("", NETWORK));
    assert_eq!(ours(&hosts[0], "nat"), [""; 0]);
    let env = hosts[0].file("subnet.env").unwrap() + &hosts[0].file("docker_opts.env").unwrap();
    assert!(env.contains("FLANNEL_IPMASQ=false\n") && env.contains("--ip-masq=true"), "{env}");

    again(&mut hosts[1], &["--iptables-forward-rules=false"]);
    assert_eq!(ours(&hosts[1], "filter"), [""; 0]);
    containers[0].ping(containers[1].address(), 1).expect_err("nobody accepts it on the other host");
}

#[test]
fn the_forward_rules_stand_when_it_says_that_it_is_ready_and_after_it_has_gone() {
    let lab = Lab::new("before-ready");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.start(&["--ip-masq"]);
    host.freeze_at_ready();
    host.wait_ready();
    let mut expected = forward("", NETWORK);
    assert_eq!(ours(&host, "filter"), expected);
    expected.extend(masquerade(&host.subnet(), " --random-fully", "", NETWORK));
    host.thaw();
    host.stop();
    let left: Vec<String> = [ours(&host, "filter"), ours(&host, "nat")].concat();
    assert_eq!(left, expected);
}

#[test]
fn masquerading_is_flannels_to_the_letter_and_docker_is_told() {
    let lab = Lab::new("masq");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.start(&["--ip-masq"]);
    host.wait_ready();
    let subnet = host.subnet();
    assert_eq!(ours(&host, "nat"), masquerade(&subnet, " --random-fully", "", NETWORK));
    let env = host.file("subnet.env").unwrap() + &host.file("docker_opts.env").unwrap();
    assert!(env.contains("FLANNEL_IPMASQ=true\n") && env.contains("--ip-masq=false"), "{env}");

    again(&mut host, &["--ip-masq", "--ip-masq-fully-random-disable"]);
    eventually("ports are the first free ones", || ours(&host, "nat") == masquerade(&subnet, "", "", NETWORK));
}

#[test]
fn with_nftables_the_rules_are_in_flannels_tables_and_nowhere_else() {
    let lab = Lab::new("nft");
    let etcd = lab.etcd();
    etcd.put(&format!("{PREFIX}/config"), &with_nftables());
    let mut host = lab.host(1);
    host.start(&["--ip-masq"]);
    host.wait_ready();
    let (subnet, tables) = (host.subnet(), host.sh("nft list tables"));
    assert_eq!(tables.trim(), "table ip flannel-ipv4");
    let listed = host.sh("nft -s list table ip flannel-ipv4");
    let rules: Vec<&str> = listed
        .lines()
        .map(str::trim)
        .filter(|line| line.ends_with(" return") || line.contains("masquerade") || line.ends_with(" accept"))
        .collect();
    assert_eq!(
        rules,
        [
            "meta mark & 0x00004000 == 0x00004000 return".to_owned(),
            format!("ip saddr {subnet} ip daddr {NETWORK} return"),
            format!("ip saddr {NETWORK} ip daddr {subnet} return"),
            format!("ip saddr != {NETWORK} ip daddr {subnet} return"),
            format!("ip saddr {NETWORK} ip daddr != 224.0.0.0/4 masquerade fully-random"),
            format!("ip saddr != {NETWORK} ip daddr {NETWORK} masquerade fully-random"),
            format!("ip saddr {NETWORK} accept"),
            format!("ip daddr {NETWORK} accept"),
        ]
    );
    host.sh("iptables -P FORWARD DROP");
    eventually("it says what no rule in a table of its own can change", || {
        host.log().contains("the chain ip filter FORWARD drops what is forwarded")
    });
    host.sh("nft delete table ip filter");
    again(&mut host, &["--iptables-forward-rules=false"]);
    eventually("nothing is wanted, nothing is left", || host.sh("nft list tables").is_empty());
}

/// Packets of the overlay that the host sends out to its gateway.
fn lost_to_the_gateway(host: &Host) -> u64 {
    let listed = host.sh("iptables -t mangle -nvxL POSTROUTING");
    let rule = listed.lines().find(|line| line.contains("eth0")).expect("the counting rule");
    rule.split_whitespace().next().and_then(|count| count.parse().ok()).expect("a count")
}

fn blackholes(host: &Host) -> Vec<String> {
    let routes = host.ip_json("-4 route show type blackhole");
    routes.as_array().into_iter().flatten().filter_map(|route| route["dst"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_blackhole_takes_what_is_sent_to_addresses_that_nobody_has() {
    let lab = Lab::new("blackhole");
    let etcd = lab.etcd_with_config();
    let mut hosts = lab.joined(2);
    let sender = hosts[0].attach_container("c1");
    hosts.iter().for_each(|host| host.follows(&etcd));
    let host = &mut hosts[1];
    let subnet = host.subnet();
    let nobody = subnet.replace(".0/24", ".77").parse().unwrap();
    host.sh(&format!("iptables -t mangle -A POSTROUTING -o eth0 -d {subnet}"));
    sender.ping(nobody, 1).expect_err("nobody has the address");
    let lost = lost_to_the_gateway(host);
    assert!(lost > 0, "without the blackhole it goes to the gateway");

    let others = ["172.30.99.0/24", "172.30.98.0/24"];
    host.ip(&format!("route add blackhole {} metric 4294967295", others[0]));
    host.ip(&format!("route add blackhole {} metric 7", others[1]));
    again(host, &["--ip-blackhole-route"]);
    let expected: BTreeSet<&str> = [subnet.as_str(), others[1]].into();
    let right = |host: &Host| blackholes(host).iter().map(String::as_str).collect::<BTreeSet<_>>() == expected;
    eventually("ours stands, an old one of ours has gone, a stranger's stays", || right(host));
    host.sh("iptables -t mangle -Z POSTROUTING");
    sender.ping(nobody, 1).expect_err("nobody has the address");
    assert_eq!(lost_to_the_gateway(host), 0);
    host.ip(&format!("route del blackhole {subnet} metric 4294967295"));
    eventually("it is back", || right(host));

    let container = host.attach_container("c2");
    sender.ping(container.address(), 3).expect("the bridge goes before the blackhole");
    again(host, &[]);
    eventually("it goes with its flag", || blackholes(host) == [others[1]]);
}

/// A second network, for a second daemon.
const OTHER_NETWORK: &str = "10.99.0.0/16";

fn second_network(etcd: &Etcd) {
    etcd.put("/other/config", r#"{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#);
}

/// The rules of all daemons on a host, whatever their order.
fn all_of_ours(host: &Host) -> BTreeSet<String> {
    [ours(host, "nat"), ours(host, "filter")].concat().into_iter().collect()
}

const OF_FIRST: [&str; 2] = ["--ip-masq", "--healthz-port=8124"];
const OF_SECOND: [&str; 3] = ["--ip-masq", "--healthz-port=8125", "--etcd-prefix=/other"];

#[test]
fn two_daemons_on_a_host_have_rules_of_their_own() {
    let lab = Lab::new("two");
    let etcd = lab.etcd_with_config();
    second_network(&etcd);
    let mut first = lab.host(1);
    let mut second = first.again();
    first.start(&OF_FIRST);
    second.start(&OF_SECOND);
    first.wait_ready();
    second.wait_ready();
    let rules = |host: &Host, suffix: &str, network: &str| {
        [masquerade(&host.subnet(), " --random-fully", suffix, network), forward(suffix, network)].concat()
    };
    let [mut expected, of_second] =
        [rules(&first, "", NETWORK), rules(&second, "-7", OTHER_NETWORK)].map(BTreeSet::from_iter);
    expected.extend(of_second);
    assert_eq!(all_of_ours(&first), expected);
    again(&mut first, &OF_FIRST);
    assert_eq!(all_of_ours(&first), expected);
    again(&mut second, &OF_SECOND);
    assert_eq!(all_of_ours(&first), expected);
    // The proof that a daemon removes what is its own.
    again(&mut second, &OF_SECOND[1..]);
    expected.retain(|rule| !rule.contains("POSTRTG-7"));
    eventually("one set has gone", || all_of_ours(&first) == expected);
    let logs = first.log() + &second.log();
    assert!(!logs.contains("repaired: firewall"), "they disturb each other: {logs}");
}

#[test]
fn the_rules_of_another_flanneld_are_left_alone() {
    let lab = Lab::new("other-daemon");
    let etcd = lab.etcd();
    second_network(&etcd);
    let mut host = lab.host(1);
    let theirs = [masquerade("172.30.46.0/24", " --random-fully", "", NETWORK), forward("", NETWORK)].concat();
    host.sh("iptables -t nat -N FLANNEL-POSTRTG; iptables -N FLANNEL-FWD; nft add table ip flannel-ipv4");
    for rule in &theirs {
        let table = if rule.contains("POSTRTG") { "nat" } else { "filter" };
        host.sh(&format!("iptables -t {table} {rule}"));
    }
    let before = everything(&host);
    for flags in [&OF_SECOND[..], &OF_SECOND[1..], &["--etcd-prefix=/other", "--iptables-forward-rules=false"]] {
        host.start(flags);
        host.wait_ready();
        eventually("a daemon of VNI 7 does what it was asked", || {
            all_of_ours(&host).iter().any(|rule| rule.contains("POSTRTG-7")) == (flags[0] == "--ip-masq")
        });
        let missing: Vec<String> = before.difference(&everything(&host)).cloned().collect();
        assert_eq!(missing, [""; 0]);
        host.stop();
    }
}

#[test]
fn what_earlier_daemons_left_goes_and_nothing_else() {
    let lab = Lab::new("leftovers");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.sh("iptables -N MINE; iptables -A MINE -p tcp --dport 7 -j DROP; iptables -A FORWARD -j MINE
        iptables -A FORWARD -s 172.30.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT
        iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
        iptables -t nat -A POSTROUTING -s 172.30.0.0/16 -d 172.30.0.0/16 -o eth9 -j RETURN
        iptables -t nat -A POSTROUTING -s 172.31.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE
        ip6tables -A FORWARD -i eth9 -j DROP
        nft add table inet flannel-mine; nft add chain inet flannel-mine c; nft add rule inet flannel-mine c accept");
    let strangers = everything(&host);
    host.sh("iptables -t nat -I POSTROUTING -s 172.30.0.0/16 -d 172.30.0.0/16 -j RETURN
        iptables -t nat -A POSTROUTING -s 172.30.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE
        iptables -t nat -A POSTROUTING ! -s 172.30.0.0/16 -d 172.30.0.0/16 -j MASQUERADE");
    // What the firewalls hold besides the strangers' rules.
    let left = |host: &Host| -> BTreeSet<String> {
        let now = everything(host);
        assert_eq!(strangers.difference(&now).cloned().collect::<Vec<_>>(), [""; 0], "strangers' rules went");
        now.difference(&strangers).cloned().collect()
    };
    let config = |text: &str| etcd.put(&format!("{PREFIX}/config"), text);
    let holds = |host: &Host, text: &str| left(host).iter().any(|line| line.contains(text));

    host.start(&["--ip-masq"]);
    host.wait_ready();
    eventually("0.7's rules have gone", || {
        left(&host).iter().filter(|line| line.starts_with("-A")).all(|line| line.contains("flanneld"))
    });
    assert_eq!(host.log().matches("flannel 0.7 is left").count(), 3, "{}", host.log());

    host.stop();
    config(&with_nftables());
    host.start(&["--ip-masq"]);
    host.wait_ready();
    eventually("iptables' chains have gone", || !holds(&host, "FLANNEL") && holds(&host, "table ip flannel-ipv4 "));

    host.stop();
    config(&CONFIG.replace("172.30.", "10.88."));
    host.start(&["--ip-masq"]);
    host.wait_ready();
    eventually("the table has gone", || holds(&host, "FLANNEL-POSTRTG") && !holds(&host, "flannel-ipv4"));
    host.stop();
    config(CONFIG);
    host.start(&["--ip-masq"]);
    host.wait_ready();
    let subnet = host.subnet();
    assert_eq!(ours(&host, "nat"), masquerade(&subnet, " --random-fully", "", NETWORK));
    assert_eq!(ours(&host, "filter"), forward("", NETWORK));
    assert!(!holds(&host, "10.88."), "rules of the earlier network are left");

    again(&mut host, &[]);
    eventually("what masquerades has gone", || !holds(&host, "POSTRTG") && holds(&host, "FLANNEL-FWD"));
    again(&mut host, &["--iptables-forward-rules=false"]);
    eventually("all is as it was before flannel", || left(&host).is_empty());
}
