//! Whole tables before and after; a small iptables-restore stands in for the real one.

use super::*;
use proptest::prelude::*;

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

const BARE: &str = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n";

/// As flannel leaves it, in the words of iptables-save 1.8.9.
const FLANNELS: &str = r#"*filter
:FORWARD ACCEPT [0:0]
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.72.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.72.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.72.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
"#;

/// What `iptables-restore --noflush` makes of a state, as a text like that of iptables-save.
fn restore(before: &str, script: &str) -> String {
    let mut tables: BTreeMap<String, Vec<(String, String, Vec<String>)>> = BTreeMap::new();
    for (is_script, text) in [(false, before), (true, script)] {
        let mut table = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.to_owned();
            } else if let Some(chain) = line.strip_prefix(':') {
                let (name, policy) = chain.split_once(' ').unwrap();
                let chains = tables.entry(table.clone()).or_default();
                chains.retain(|(other, ..)| other != name);
                chains.push((name.to_owned(), policy.to_owned(), Vec::new()));
            } else if let Some((verb, rest)) = line.split_once(' ').filter(|(verb, _)| verb.starts_with('-')) {
                let (name, spec) = rest.split_once(' ').unwrap_or((rest, ""));
                let chains = tables.get_mut(&table).expect("a table");
                let at =
                    chains.iter().position(|(other, ..)| other == name).unwrap_or_else(|| panic!("no chain: {line}"));
                let rules = &mut chains[at].2;
                match verb {
                    "-A" => rules.push(spec.to_owned()),
                    "-I" => {
                        let (number, spec) = spec.split_once(' ').unwrap();
                        rules.insert(number.parse::<usize>().unwrap() - 1, spec.to_owned());
                    }
                    "-D" => {
                        let gone =
                            rules.iter().position(|rule| rule == spec).unwrap_or_else(|| panic!("{is_script} {line}"));
                        rules.remove(gone);
                    }
                    "-X" => drop(chains.remove(at)),
                    _ => panic!("{line}"),
                }
            }
        }
    }
    let mut text = String::new();
    for (table, chains) in tables {
        text += &format!("*{table}\n");
        chains.iter().for_each(|(name, policy, _)| text += &format!(":{name} {policy}\n"));
        for (name, _, rules) in &chains {
            rules.iter().for_each(|rule| text += &format!("-A {name} {rule}\n"));
        }
        text += "COMMIT\n";
    }
    text
}

/// Brings tables in line and makes sure that nothing is left to do.
#[track_caller]
fn mend(before: &str, set: &RuleSet) -> (String, Vec<String>) {
    let change = set.iptables_change(&Saved::parse(before)).expect("something differs");
    let after = restore(before, &change.script);
    assert_eq!(set.iptables_change(&Saved::parse(&after)), None, "{after}");
    (after, change.why)
}

#[test]
fn what_is_made_is_flannels_rule_for_rule() {
    let (after, _) = mend(BARE, &set());
    assert_eq!(Saved::parse(&after), Saved::parse(FLANNELS));
    assert_eq!(set().iptables_change(&Saved::parse(FLANNELS)), None, "what a Go flanneld left is adopted");
}

#[test]
fn each_difference_is_mended_and_named() {
    let jump = "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n";
    let reject = "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n";
    let first = "-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\n";
    let second = first.replace("-s", "-d");
    for (before, why) in [
        (FLANNELS.replace(jump, ""), "the jump from FORWARD to FLANNEL-FWD was missing"),
        (FLANNELS.replace(jump, &format!("{jump}{jump}")), "the jumps from FORWARD to FLANNEL-FWD were not"),
        (
            FLANNELS.replace(jump, "-A FORWARD -i eth9 -j FLANNEL-FWD\n"),
            "the jumps from FORWARD to FLANNEL-FWD were not",
        ),
        (FLANNELS.replace(jump, &format!("{reject}{jump}")), "stood behind the end of FORWARD, -j REJECT"),
        (FLANNELS.replace(first, ""), "chain FLANNEL-FWD was not as it should be"),
        (FLANNELS.replace(first, "").replace(&second, ""), "chain FLANNEL-FWD was empty"),
        (FLANNELS.replace(&format!("{first}{second}"), &format!("{second}{first}")), "chain FLANNEL-FWD was not"),
        (FLANNELS.replace("10.5.72.0/24 -d", "10.5.9.0/24 -d"), "chain FLANNEL-POSTRTG was not as it should be"),
        (FLANNELS.replace(" --random-fully", ""), "chain FLANNEL-POSTRTG was not as it should be"),
    ] {
        assert_ne!(before, FLANNELS, "{why}");
        let (_, told) = mend(&before, &set());
        assert!(told.len() == 1 && told[0].contains(why), "{told:?}");
    }
}

#[test]
fn what_is_right_before_a_final_reject_stays_there() {
    let reject = "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\nCOMMIT\n*nat";
    let guarded = FLANNELS.replace("COMMIT\n*nat", reject);
    assert_eq!(set().iptables_change(&Saved::parse(&guarded)), None);
    let (after, _) = mend(&BARE.replace("COMMIT\n*nat", reject), &set());
    let forward = Saved::parse(&after).chain("filter", "FORWARD").unwrap().rules.clone();
    assert_eq!((forward[0].target(), forward[1].target()), (Some("FLANNEL-FWD"), Some("REJECT")));
}

#[test]
fn what_is_not_wanted_goes_and_others_chains_stay() {
    let others = FLANNELS.replace("-A FORWARD -m", "-A FORWARD -j DOCKER-USER\n-A FORWARD -m").replace(
        ":FLANNEL-FWD - [0:0]\n",
        ":FLANNEL-FWD - [0:0]\n:DOCKER-USER - [0:0]\n:FLANNEL-FWD-7 - [0:0]\n-A DOCKER-USER -j RETURN\n-A FORWARD -j FLANNEL-FWD-7\n",
    );
    let nothing = RuleSet { forward: false, masquerade: None, ..set() };
    let (after, why) = mend(&others, &nothing);
    let saved = Saved::parse(&after);
    assert!(saved.chain("filter", "FLANNEL-FWD").is_none() && saved.chain("nat", "FLANNEL-POSTRTG").is_none());
    assert!(saved.chain("filter", "DOCKER-USER").is_some() && saved.chain("filter", "FLANNEL-FWD-7").is_some());
    assert_eq!((saved.chain("filter", "FORWARD").unwrap().rules.len(), why.len()), (2, 2));
    assert_eq!(nothing.iptables_change(&Saved::parse(BARE)), None);
}

#[test]
fn another_vni_has_chains_of_its_own() {
    let seven = RuleSet { suffix: RuleSet::suffix(7), ..set() };
    let (after, _) = mend(FLANNELS, &seven);
    let saved = Saved::parse(&after);
    assert_eq!(saved.chain("nat", "FLANNEL-POSTRTG-7").unwrap().rules.len(), 6);
    assert_eq!(set().iptables_change(&saved), None, "those of VNI 1 are untouched");
}

#[test]
fn the_three_rules_of_0_7_go() {
    let old = "-A POSTROUTING -s 10.5.0.0/16 -d 10.5.0.0/16 -j RETURN\n\
               -A POSTROUTING -s 10.5.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE\n\
               -A POSTROUTING ! -s 10.5.0.0/16 -d 10.5.0.0/16 -j MASQUERADE\n\
               -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n";
    let before = BARE.replace(":POSTROUTING ACCEPT [0:0]\n", &format!(":POSTROUTING ACCEPT [0:0]\n{old}"));
    for set in [set(), RuleSet { masquerade: None, ..set() }] {
        let (after, why) = mend(&before, &set);
        let rules = &Saved::parse(&after).chain("nat", "POSTROUTING").unwrap().rules.clone();
        assert!(rules.iter().all(|rule| !rule.render().contains("10.5.0.0/16")), "{rules:?}");
        assert!(rules.iter().any(|rule| rule.render().contains("docker0")));
        assert_eq!(why.iter().filter(|why| why.contains("flannel 0.7")).count(), 3);
    }
}

#[test]
fn dockers_chain_for_users_is_used_only_if_asked_and_there() {
    let asked = RuleSet { docker_user: Some("flannel.1".into()), ..set() };
    assert_eq!(asked.iptables_change(&Saved::parse(FLANNELS)), None, "no DOCKER-USER, no rule");
    let docker =
        ":FLANNEL-FWD - [0:0]\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -s 10.9.9.9/32 -j DROP\n-A DOCKER-USER -j RETURN\n";
    let (after, _) = mend(&FLANNELS.replace(":FLANNEL-FWD - [0:0]\n", docker), &asked);
    let rules = Saved::parse(&after).chain("filter", "DOCKER-USER").unwrap().rules.clone();
    let targets: Vec<_> = rules.iter().map(Rule::target).collect();
    assert_eq!(targets, [Some("DROP"), Some("FLANNEL-DOCKER"), Some("RETURN")], "the user's own rules come first");
}

#[test]
fn ipv6_has_the_same_rules() {
    let v6 = RuleSet { network: "fd00:5::/48".parse().unwrap(), subnet: "fd00:5:0:7::/64".parse().unwrap(), ..set() };
    let (after, _) = mend(BARE, &v6);
    assert!(after.contains("-s fd00:5::/48 ! -d ff00::/8"), "{after}");
}

proptest! {
    /// Whatever others did to our chains and jumps, one change mends it, and what is not ours stays.
    #[test]
    fn any_disorder_is_mended_by_one_change(
        drops in prop::collection::vec(0usize..14, 0..6),
        copies in prop::collection::vec(0usize..14, 0..4),
        strangers in prop::collection::vec((0usize..14, 0usize..4), 0..5),
    ) {
        let foreign = ["-A FORWARD -j DOCKER-USER", "-A FORWARD -j DROP", "-A POSTROUTING -o eth0 -j MASQUERADE", "-A POSTROUTING -j ACCEPT"];
        let mut lines: Vec<String> = FLANNELS.lines().map(str::to_owned).collect();
        let is_rule = |line: &String| line.starts_with("-A");
        let rules = |lines: &Vec<String>| lines.iter().enumerate().filter(|(_, l)| is_rule(l)).map(|(i, _)| i).collect::<Vec<_>>();
        for drop in drops {
            let all = rules(&lines);
            if let Some(at) = all.get(drop % all.len().max(1)) { lines.remove(*at); }
        }
        for copy in copies {
            let all = rules(&lines);
            if let Some(at) = all.get(copy % all.len().max(1)) { lines.insert(*at, lines[*at].clone()); }
        }
        for (at, which) in strangers {
            let nat = lines.iter().position(|line| line == "*nat").unwrap();
            let start = if which < 2 { 1 } else { nat + 1 };
            let heads = lines[start..].iter().take_while(|line| line.starts_with(':')).count();
            let room = lines[start + heads..].iter().take_while(|line| is_rule(line)).count();
            lines.insert(start + heads + at % (room + 1), foreign[which].to_owned());
        }
        let before = lines.join("\n").replace(":FORWARD ", ":DOCKER-USER - [0:0]\n:FORWARD ");
        let count = |text: &str| foreign.map(|line| text.lines().filter(|l| *l == line).count());
        let after = match set().iptables_change(&Saved::parse(&before)) {
            None => before.clone(),
            Some(change) => restore(&before, &change.script),
        };
        prop_assert_eq!(set().iptables_change(&Saved::parse(&after)), None);
        prop_assert_eq!(count(&after), count(&before));
    }
}
