//! Our rules by the real iptables and nft, beside the rules of others.

use crate::lab::in_a_new_namespace;
use flanneld::firewall::host::HostFirewall;
use flanneld::firewall::obstacles::OnHost;
use flanneld::firewall::{Firewall, Look, Masquerade, Mode, RuleSet};
use std::process::{Command, Output};
use std::time::Duration;

fn set() -> RuleSet {
    RuleSet {
        network: "10.5.0.0/16".parse().unwrap(),
        subnet: "10.5.72.0/24".parse().unwrap(),
        forward: true,
        masquerade: Some(Masquerade { random_fully: true }),
        docker_user: None,
        direct_nic: None,
        suffix: String::new(),
    }
}

fn v6() -> RuleSet {
    RuleSet { network: "fd00:5::/48".parse().unwrap(), subnet: "fd00:5:0:72::/64".parse().unwrap(), ..set() }
}

fn shell(script: &str) -> Output {
    Command::new("sh").args(["-ec", script]).output().expect("a shell")
}

#[track_caller]
fn sh(script: &str) -> String {
    let output = shell(script);
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// All rules of both families and of nftables, without counters and comments of the tools.
fn everything() -> String {
    let text = sh("iptables-save; ip6tables-save; nft -s list ruleset");
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.to_owned() + "\n").collect()
}

async fn ensure(firewall: &mut HostFirewall, mode: Mode, sets: &[RuleSet]) -> Look {
    firewall.ensure(mode, sets, &[]).await.expect("the tools work")
}

/// The rules are there and a second look finds nothing to do, neither does a new daemon.
async fn settle(firewall: &mut HostFirewall, mode: Mode, sets: &[RuleSet]) -> String {
    ensure(firewall, mode, sets).await;
    let after = everything();
    assert_eq!(ensure(firewall, mode, sets).await.changes, [""; 0], "{after}");
    assert_eq!(ensure(&mut HostFirewall::new(), mode, sets).await.changes, [""; 0], "{after}");
    assert_eq!(everything(), after);
    after
}

#[test]
fn rules_are_flannels_byte_for_byte() {
    in_a_new_namespace(async || {
        let after = settle(&mut HostFirewall::new(), Mode::Iptables, &[set(), v6()]).await;
        for line in [
            r#"-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#,
            r#"-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN"#,
            r#"-A FLANNEL-POSTRTG -s 10.5.72.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN"#,
            r#"-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.72.0/24 -m comment --comment "flanneld masq" -j RETURN"#,
            r#"-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.72.0/24 -m comment --comment "flanneld masq" -j RETURN"#,
            r#"-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#,
            r#"-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#,
            r#"-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD"#,
            r#"-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#,
            r#"-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#,
            r#"-A FLANNEL-POSTRTG -s fd00:5::/48 ! -d ff00::/8 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#,
            r#"-A FLANNEL-FWD -d fd00:5::/48 -m comment --comment "flanneld forward" -j ACCEPT"#,
        ] {
            assert!(after.contains(&format!("{line}\n")), "{line}\n{after}");
        }
    });
}

#[test]
fn whatever_somebody_does_to_them_is_mended_and_nothing_else_touched() {
    in_a_new_namespace(async || {
        let foreign = "iptables -N MINE; iptables -A MINE -p tcp --dport 7 -j DROP; iptables -A FORWARD -j MINE; \
                       iptables -t nat -A POSTROUTING -o eth9 -j MASQUERADE";
        sh(foreign);
        let mut firewall = HostFirewall::new();
        let right = settle(&mut firewall, Mode::Iptables, &[set()]).await;
        for damage in [
            "iptables -F FLANNEL-FWD",
            "iptables -D FLANNEL-FWD 1",
            "iptables -t nat -F FLANNEL-POSTRTG",
            "iptables -t nat -D FLANNEL-POSTRTG 3",
            "iptables -t nat -I FLANNEL-POSTRTG -j ACCEPT",
            "iptables -D FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD",
            "iptables -t nat -D POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG",
            "iptables -A FORWARD -j FLANNEL-FWD",
            "iptables -t nat -F POSTROUTING; iptables -t nat -X FLANNEL-POSTRTG 2>/dev/null || iptables -t nat -F FLANNEL-POSTRTG; \
             iptables -t nat -A POSTROUTING -o eth9 -j MASQUERADE",
            "iptables -R FLANNEL-FWD 1 -d 10.5.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT; \
             iptables -R FLANNEL-FWD 2 -s 10.5.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT",
        ] {
            sh(damage);
            assert_ne!(everything(), right, "{damage}");
            let look = ensure(&mut firewall, Mode::Iptables, &[set()]).await;
            assert_eq!(
                look.changes.len(),
                if damage.starts_with("iptables -t nat -F POSTROUTING") { 2 } else { 1 },
                "{look:?}"
            );
            let mut lines: [Vec<String>; 2] =
                [everything(), right.clone()].map(|text| text.lines().map(str::to_owned).collect());
            lines.iter_mut().for_each(|lines| lines.sort());
            assert_eq!(lines[0], lines[1], "{damage}");
            assert_eq!(ensure(&mut firewall, Mode::Iptables, &[set()]).await.changes, [""; 0], "{damage}");
        }
        sh("iptables -F; iptables -t nat -F; iptables -X; iptables -t nat -X");
        ensure(&mut firewall, Mode::Iptables, &[set()]).await;
        sh(foreign);
        settle(&mut firewall, Mode::Iptables, &[set()]).await;
    });
}

#[test]
fn a_jump_stands_before_a_final_reject() {
    in_a_new_namespace(async || {
        let mut firewall = HostFirewall::new();
        settle(&mut firewall, Mode::Iptables, &[set()]).await;
        sh("iptables -I FORWARD 1 -j REJECT --reject-with icmp-host-prohibited");
        let look = ensure(&mut firewall, Mode::Iptables, &[set()]).await;
        assert!(look.changes.len() == 1 && look.changes[0].contains("behind the end of FORWARD"), "{look:?}");
        let forward = sh("iptables -S FORWARD | grep -- -A");
        assert!(forward.lines().next().unwrap().contains("FLANNEL-FWD"), "{forward}");
        settle(&mut firewall, Mode::Iptables, &[set()]).await;
    });
}

#[test]
fn a_change_of_the_mode_leaves_nothing_behind() {
    in_a_new_namespace(async || {
        sh("nft add table ip mine; iptables -A FORWARD -i eth9 -j DROP");
        let sets = [set(), v6()];
        for _ in 0..2 {
            settle(&mut HostFirewall::new(), Mode::Iptables, &sets).await;
            let listed = everything();
            assert!(listed.contains("FLANNEL-POSTRTG") && !listed.contains("table ip flannel-ipv4"), "{listed}");
            settle(&mut HostFirewall::new(), Mode::Nftables, &sets).await;
            let listed = everything();
            assert!(!listed.contains("FLANNEL"), "{listed}");
            for table in ["table ip flannel-ipv4 {", "table ip6 flannel-ipv6 {", "table ip mine {"] {
                assert!(listed.contains(table), "{table}: {listed}");
            }
            assert!(listed.contains("-A FORWARD -i eth9 -j DROP"), "{listed}");
        }
    });
}

#[test]
fn nftables_rules_are_flannels_and_are_mended() {
    in_a_new_namespace(async || {
        let mut firewall = HostFirewall::new();
        let right = settle(&mut firewall, Mode::Nftables, &[set(), v6()]).await;
        for rule in [
            "meta mark & 0x00004000 == 0x00004000 return",
            "ip saddr 10.5.72.0/24 ip daddr 10.5.0.0/16 return",
            "ip saddr != 10.5.0.0/16 ip daddr 10.5.72.0/24 return",
            "ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
            "ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random",
            "ip6 saddr fd00:5::/48 ip6 daddr != ff00::/8 masquerade fully-random",
            "ip daddr 10.5.0.0/16 accept",
        ] {
            assert!(right.contains(rule), "{rule}: {right}");
        }
        for damage in [
            "nft flush ruleset",
            "nft delete table ip flannel-ipv4",
            "nft flush chain ip flannel-ipv4 postrtg",
            "nft insert rule ip flannel-ipv4 forward drop",
            "nft add rule ip6 flannel-ipv6 postrtg accept",
            "nft delete rule ip flannel-ipv4 forward handle $(nft -a list chain ip flannel-ipv4 forward | sed -n 's/.*saddr.*handle //p')",
        ] {
            sh(damage);
            assert!(!ensure(&mut firewall, Mode::Nftables, &[set(), v6()]).await.changes.is_empty(), "{damage}");
            settle(&mut firewall, Mode::Nftables, &[set(), v6()]).await;
            assert_eq!(
                sh("nft -s list table ip flannel-ipv4; nft -s list table ip6 flannel-ipv6"),
                right[right.find("table ip flannel").unwrap()..],
                "{damage}"
            );
        }
    });
}

#[test]
fn changes_are_heard_of_when_they_happen() {
    in_a_new_namespace(async || {
        let mut firewall = HostFirewall::new();
        settle(&mut firewall, Mode::Iptables, &[set()]).await;
        assert!(firewall.reports_changes());
        ensure(&mut firewall, Mode::Iptables, &[set()]).await;
        let quiet = tokio::time::timeout(Duration::from_millis(500), firewall.changed()).await;
        assert!(quiet.is_err(), "looking is no change");
        for change in ["iptables -F FLANNEL-FWD", "nft add table ip mine", "ip6tables -A INPUT -j ACCEPT"] {
            let hear = tokio::time::timeout(Duration::from_secs(20), firewall.changed());
            let (heard, ()) = tokio::join!(hear, async { drop(sh(change)) });
            heard.expect(change);
        }
    });
}

#[test]
fn what_others_drop_is_named() {
    in_a_new_namespace(async || {
        sh(
            "nft add table inet strict; nft add chain inet strict guard '{ type filter hook forward priority 0; policy drop; }'; \
            iptables -P FORWARD DROP; iptables -N DOCKER; iptables -A DOCKER ! -i docker0 -o docker0 -j DROP; \
            iptables -t raw -A PREROUTING -d 10.5.72.2/32 ! -i docker0 -j DROP",
        );
        let on_host: [OnHost; 1] = [("docker0".into(), "10.5.72.1/24".parse().unwrap())];
        let mut firewall = HostFirewall::new();
        let look = firewall.ensure(Mode::Iptables, &[set()], &on_host).await.unwrap();
        assert_eq!(look.dropping_chains, ["inet strict guard"]);
        assert_eq!(look.obstacles.len(), 2, "{look:?}");
        // Looked at for another reason than a report of this change.
        sh("nft delete table inet strict");
        let look = firewall.ensure(Mode::Iptables, &[set()], &on_host).await.unwrap();
        assert_eq!(look.dropping_chains, [""; 0]);
        let look = ensure(&mut firewall, Mode::Nftables, &[set()]).await;
        assert_eq!((look.dropping_chains, look.obstacles.len()), (vec!["ip filter FORWARD".to_owned()], 1), "raw only");
    });
}

#[test]
fn iptables_legacy_is_never_started() {
    in_a_new_namespace(async || {
        settle(&mut HostFirewall::new(), Mode::Iptables, &[set()]).await;
        settle(&mut HostFirewall::new(), Mode::Nftables, &[set()]).await;
        let tables = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
        assert_eq!(tables, "", "tables of iptables-legacy were made");
    });
}
