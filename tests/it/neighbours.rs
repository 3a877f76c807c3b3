//! Beside the rules of others: written here as Docker 28, firewalld and others write them.

use crate::lab::{CONFIG, Container, Etcd, Host, Lab, NETWORK, PREFIX, containers_on, eventually};

/// What Docker 28 has for docker0 (moby/moby#48724): what comes from elsewhere to ports that are not published is dropped
/// before any rule of ours is reached.
const DOCKER_28: &str = "
    iptables -P FORWARD DROP
    for chain in DOCKER DOCKER-BRIDGE DOCKER-CT DOCKER-FORWARD DOCKER-USER; do iptables -N $chain; done
    iptables -A DOCKER ! -i docker0 -o docker0 -j DROP
    iptables -A DOCKER-BRIDGE -o docker0 -j DOCKER
    iptables -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    iptables -A DOCKER-FORWARD -j DOCKER-CT
    iptables -A DOCKER-FORWARD -j DOCKER-BRIDGE
    iptables -A DOCKER-FORWARD -i docker0 -j ACCEPT
    iptables -I FORWARD -j DOCKER-FORWARD
    iptables -I FORWARD -j DOCKER-USER";

/// Two hosts with a container each. The rules of others are on the first.
struct Pair {
    hosts: Vec<Host>,
    containers: Vec<Container>,
    etcd: Etcd,
    lab: Lab,
}

impl Pair {
    /// The first host's daemon has these flags too.
    fn new(name: &str, flags: &[&str]) -> Pair {
        Pair::with_config(name, CONFIG, flags)
    }

    fn with_config(name: &str, config: &str, flags: &[&str]) -> Pair {
        let lab = Lab::new(name);
        let etcd = lab.etcd();
        etcd.put(&format!("{PREFIX}/config"), config);
        let mut hosts = lab.hosts(2);
        hosts[0].start(&[&["--healthz-port=8123"], flags].concat());
        hosts[1].start(&[]);
        hosts.iter().for_each(|host| host.wait_ready());
        let containers = containers_on(&mut hosts);
        let pair = Pair { hosts, containers, etcd, lab };
        if !config.contains("DirectRouting") {
            pair.hosts.iter().for_each(|host| host.follows(&pair.etcd));
        }
        pair
    }

    /// Does this on the first host.
    #[track_caller]
    fn others_do(&self, script: &str) {
        self.hosts[0].sh(script);
    }

    /// Whether the second host's container reaches the first one's.
    fn reaches(&self) -> bool {
        self.containers[1].ping(self.containers[0].address(), 1).is_ok()
    }

    #[track_caller]
    fn comes_to_reach(&self) {
        eventually("the container of another host gets through", || self.reaches());
    }

    fn readyz(&self) -> (u16, String) {
        self.hosts[0].http_get(8123, "/readyz").expect("an answer")
    }

    /// /readyz comes to say no, and why: all these words.
    #[track_caller]
    fn complains(&self, words: &[&str]) {
        eventually(&format!("/readyz says {words:?}"), || {
            let (code, reasons) = self.readyz();
            code == 503 && words.iter().all(|word| reasons.contains(word))
        });
    }

    #[track_caller]
    fn becomes_ready(&self) {
        eventually("/readyz has nothing to complain of", || self.readyz().0 == 200);
    }

    #[track_caller]
    fn logs(&self, text: &str) {
        eventually(&format!("the log says {text:?}"), || self.hosts[0].log().contains(text));
    }

    /// The rules of a chain of table filter, in their order.
    fn chain(&self, name: &str) -> Vec<String> {
        let rules = self.hosts[0].sh(&format!("iptables -S {name}"));
        rules.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect()
    }
}

#[test]
fn a_host_firewalls_final_reject_does_not_end_the_overlay() {
    let pair = Pair::new("firewalld", &[]);
    // firewalld starts, and later starts again: all rules are its own then.
    for round in 0..2 {
        pair.others_do(
            "printf '*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:FORWARD_direct -\n-A FORWARD -m conntrack --ctstate \
             RELATED,ESTABLISHED,DNAT -j ACCEPT\n-A FORWARD -i lo -j ACCEPT\n-A FORWARD -j FORWARD_direct\n-A FORWARD -m \
             conntrack --ctstate INVALID -j DROP\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\nCOMMIT\n' \
             | iptables-restore",
        );
        pair.comes_to_reach();
        let forward = pair.chain("FORWARD");
        assert_eq!(forward.len(), 6, "round {round}: {forward:#?}");
        assert!(forward[4].ends_with("-j FLANNEL-FWD") && forward[5].contains("-j REJECT"), "{forward:#?}");
    }
    // Somebody puts one before everything.
    pair.others_do("iptables -I FORWARD -j REJECT --reject-with icmp-host-prohibited");
    pair.comes_to_reach();
    pair.logs("the jump to FLANNEL-FWD stood behind the end of FORWARD");
}

#[test]
fn a_forward_policy_of_drop_keeps_nothing_from_the_overlay() {
    let pair = Pair::new("policy", &[]);
    pair.hosts.iter().for_each(|host| drop(host.sh("iptables -P FORWARD DROP")));
    pair.comes_to_reach();
    // Neither from outside of it to a container, nor back.
    let _server = pair.containers[0].serve("container");
    pair.lab.route_overlay_to(&pair.hosts[0]);
    let answer = pair.lab.ask(&format!("{}:80", pair.containers[0].address())).expect("an answer");
    assert_eq!((answer.server.as_str(), answer.client.as_str()), ("container", "172.31.0.254"));
}

#[test]
fn dockers_drop_of_what_is_not_published_is_named_with_what_helps() {
    let pair = Pair::new("filterdrop", &[]);
    pair.others_do(DOCKER_28);
    pair.complains(&["Docker drops", "on docker0", "--iptables-docker-user-rules"]);
    assert!(!pair.reaches(), "the rules do not drop what Docker's do");
    pair.others_do("iptables -F DOCKER");
    pair.becomes_ready();
    pair.comes_to_reach();
}

#[test]
fn docker_user_rules_let_the_overlay_through_behind_the_users_own() {
    let pair = Pair::new("dockeruser", &["--iptables-docker-user-rules"]);
    pair.others_do(DOCKER_28);
    pair.comes_to_reach();
    pair.becomes_ready();
    // Rules of the user's own are asked first, also when Docker ends the chain with this, as it did up to version 27.
    let set_to = |drop: &str| {
        pair.others_do(&format!(
            "printf '*filter\n:DOCKER-USER -\n{drop}-A DOCKER-USER -j RETURN\nCOMMIT\n' | iptables-restore --noflush"
        ));
        eventually("the jump to our accept is back", || {
            pair.chain("DOCKER-USER").iter().any(|rule| rule.ends_with("-j FLANNEL-DOCKER"))
        });
        pair.chain("DOCKER-USER")
    };
    let drop = format!("-A DOCKER-USER -s {}/32 -j DROP", pair.containers[1].address());
    let users = set_to(&format!("{drop}\n"));
    assert!(users.len() == 3 && users[0] == drop && users[2].ends_with("-j RETURN"), "{users:#?}");
    assert!(!pair.reaches(), "{users:#?}");
    set_to("");
    pair.comes_to_reach();
    // Only what comes through the overlay's device is accepted.
    assert_eq!(pair.chain("FLANNEL-DOCKER").len(), 1);
    assert!(
        pair.hosts[1]
            .run(&[
                "sh",
                "-c",
                "ip route replace $0 via $1 && ping -c1 -W1 $0",
                &pair.containers[0].address().to_string(),
                &pair.hosts[0].public_ip()
            ])
            .is_err()
    );
}

#[test]
fn docker_user_rules_let_through_what_comes_directly_too_and_no_more() {
    let config = CONFIG.replacen(r#""Type""#, r#""DirectRouting": true, "Type""#, 1);
    let pair = Pair::with_config("directuser", &config, &["--iptables-docker-user-rules"]);
    pair.others_do(DOCKER_28);
    pair.comes_to_reach();
    pair.becomes_ready();
    assert_eq!(pair.chain("FLANNEL-DOCKER").len(), 2);
    // The other host itself has an address that is none of the overlay's there.
    let words = ["ping", "-c1", "-W1", &pair.containers[0].address().to_string()];
    assert!(pair.hosts[1].run(&words).is_err());
}

#[test]
fn docker_user_rules_stand_in_iptables_also_where_ours_are_in_nftables() {
    let config = CONFIG.replacen('{', r#"{ "EnableNFTables": true,"#, 1);
    let pair = Pair::with_config("nftuser", &config, &["--iptables-docker-user-rules"]);
    pair.others_do(DOCKER_28);
    pair.comes_to_reach();
    pair.becomes_ready();
}

#[test]
fn dockers_drop_in_table_raw_is_named_while_it_is_there() {
    let pair = Pair::new("rawdrop", &["--iptables-docker-user-rules"]);
    pair.becomes_ready();
    let rule = format!("PREROUTING -d {} ! -i docker0 -j DROP", pair.containers[0].address());
    pair.others_do(&format!("iptables -t raw -A {rule}"));
    pair.complains(&["--allow-direct-routing", "DOCKER_INSECURE_NO_IPTABLES_RAW=1"]);
    assert!(!pair.reaches());
    pair.others_do(&format!("iptables -t raw -D {rule}"));
    pair.becomes_ready();
    pair.comes_to_reach();
}

#[test]
fn dockers_drops_are_named_also_where_our_rules_are_in_nftables() {
    let config = CONFIG.replacen('{', r#"{ "EnableNFTables": true,"#, 1);
    let pair = Pair::with_config("nftdrops", &config, &[]);
    pair.becomes_ready();
    pair.others_do(DOCKER_28);
    pair.complains(&["--iptables-docker-user-rules"]);
    // iptables' own policy is one that no table of ours can change.
    pair.logs("the chain ip filter FORWARD drops what is forwarded");
}

#[test]
fn chains_of_others_that_drop_what_is_forwarded_are_named_in_the_log() {
    let pair = Pair::new("strict", &[]);
    pair.others_do("iptables -P FORWARD DROP");
    pair.comes_to_reach();
    pair.others_do(
        "nft add table inet strict; nft add chain inet strict guard '{ type filter hook forward priority 10; policy drop; }'",
    );
    pair.logs(&format!(
        "the chain inet strict guard drops what is forwarded and not accepted there, and no rule elsewhere \
                        can change that: accept {NETWORK}"
    ));
    assert!(!pair.reaches());
    assert!(!pair.hosts[0].log().contains("ip filter FORWARD drops"), "our rules are in that one");
}
