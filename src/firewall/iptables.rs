//! Rules in iptables' tables: flannel's chains, each with one jump from a built-in chain.

use super::RuleSet;
use super::saved::{Chain, Rule, Saved};
use super::{KUBE_PROXY_MARK, Masquerade};
use std::collections::BTreeMap;

/// A chain of ours and the jump that enters it.
struct Wanted {
    table: &'static str,
    name: String,
    /// The rules; `None` to remove the chain and all jumps to it.
    rules: Option<Vec<Rule>>,
    parent: &'static str,
    jump: Rule,
    /// Whether the parent belongs to another program. While such a parent does not exist, nothing is done.
    foreign_parent: bool,
}

/// A change, and the reasons for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// The input of `iptables-restore --noflush`.
    pub script: String,
    /// One phrase for each difference, for the log.
    pub why: Vec<String>,
}

impl RuleSet {
    fn chains(&self) -> [Wanted; 3] {
        let wanted = |table, name: &str, parent, rules, comment: &str| {
            let name = format!("{name}{}", self.suffix);
            let jump = Rule::new(&format!("-m comment --comment \"{comment}\" -j {name}"));
            Wanted { table, name, rules, parent, jump, foreign_parent: parent == "DOCKER-USER" }
        };
        let forward = self.forward.then(|| self.forward_rules());
        let masquerade = self.masquerade.map(|how| self.masquerade_rules(how));
        let docker = self.docker_user.as_deref().map(|device| self.docker_rules(device));
        [
            wanted("nat", "FLANNEL-POSTRTG", "POSTROUTING", masquerade, "flanneld masq"),
            wanted("filter", "FLANNEL-FWD", "FORWARD", forward, "flanneld forward"),
            wanted("filter", "FLANNEL-DOCKER", "DOCKER-USER", docker, "flanneld docker"),
        ]
    }

    fn forward_rules(&self) -> Vec<Rule> {
        let rule = |side| format!("{side} {} -m comment --comment \"flanneld forward\" -j ACCEPT", self.network);
        ["-s", "-d"].map(|side| Rule::new(&rule(side))).to_vec()
    }

    fn masquerade_rules(&self, how: Masquerade) -> Vec<Rule> {
        let (net, subnet, multicast) = (self.network, self.subnet, self.multicast());
        let masquerade = if how.random_fully { "MASQUERADE --random-fully" } else { "MASQUERADE" };
        let rule = |what: String, target: &str| {
            Rule::new(&format!("{what} -m comment --comment \"flanneld masq\" -j {target}"))
        };
        vec![
            rule(format!("-m mark --mark {KUBE_PROXY_MARK:#x}/{KUBE_PROXY_MARK:#x}"), "RETURN"),
            rule(format!("-s {subnet} -d {net}"), "RETURN"),
            rule(format!("-s {net} -d {subnet}"), "RETURN"),
            rule(format!("! -s {net} -d {subnet}"), "RETURN"),
            rule(format!("-s {net} ! -d {multicast}"), masquerade),
            rule(format!("! -s {net} -d {net}"), masquerade),
        ]
    }

    fn docker_rules(&self, device: &str) -> Vec<Rule> {
        let rule = |from: String| {
            let to = self.subnet;
            Rule::new(&format!("{from} -d {to} -m comment --comment \"flanneld docker\" -j ACCEPT"))
        };
        let direct = self.direct_nic.iter().map(|nic| rule(format!("-i {nic} -s {}", self.network)));
        [rule(format!("-i {device}"))].into_iter().chain(direct).collect()
    }

    /// The three rules that flannel 0.7 put into POSTROUTING itself.
    fn rules_of_0_7(&self) -> [Vec<String>; 3] {
        let (net, multicast) = (self.network, self.multicast());
        [
            format!("-s {net} -d {net} -j RETURN"),
            format!("-s {net} ! -d {multicast} -j MASQUERADE"),
            format!("! -s {net} -d {net} -j MASQUERADE"),
        ]
        .map(|text| Rule::new(&text).meaning())
    }

    /// The change that makes the tables hold the wanted rules; `None` if they do already.
    pub fn iptables_change(&self, saved: &Saved) -> Option<Change> {
        let mut scripts: BTreeMap<&str, Script> = BTreeMap::new();
        for wanted in self.chains() {
            wanted.compare(saved, scripts.entry(wanted.table).or_default());
        }
        self.drop_rules_of_0_7(saved, scripts.entry("nat").or_default());
        let scripts = scripts.into_iter().filter(|(_, script)| !script.why.is_empty());
        let mut change = Change::default();
        for (table, Script { chains, rules, why }) in scripts {
            let lines = chains.into_iter().chain(rules).map(|line| line + "\n").collect::<String>();
            change.script += &format!("*{table}\n{lines}COMMIT\n");
            change.why.extend(why);
        }
        (!change.why.is_empty()).then_some(change)
    }

    /// Removes the rules of flannel 0.7, because they match before ours.
    fn drop_rules_of_0_7(&self, saved: &Saved, script: &mut Script) {
        let old = self.rules_of_0_7();
        let rules = saved.chain("nat", "POSTROUTING").map(|chain| &chain.rules[..]).unwrap_or_default();
        for rule in rules.iter().filter(|rule| old.contains(&rule.meaning())) {
            script.rules.push(format!("-D POSTROUTING {}", rule.render()));
            script.why.push(format!("a rule of flannel 0.7 is left in POSTROUTING: {}", rule.render()));
        }
    }
}

/// Lines for one table.
#[derive(Default)]
struct Script {
    chains: Vec<String>,
    rules: Vec<String>,
    why: Vec<String>,
}

impl Wanted {
    fn compare(&self, saved: &Saved, script: &mut Script) {
        match &self.rules {
            Some(rules) if !self.foreign_parent || saved.chain(self.table, self.parent).is_some() => {
                self.compare_chain(rules, saved.chain(self.table, &self.name), script);
                self.compare_jump(saved.chain(self.table, self.parent), script);
            }
            Some(_) => {}
            None => self.compare_absence(saved, script),
        }
    }

    fn compare_chain(&self, rules: &[Rule], chain: Option<&Chain>, script: &mut Script) {
        let name = &self.name;
        let same = |chain: &Chain| chain.rules.iter().map(Rule::meaning).eq(rules.iter().map(Rule::meaning));
        match chain {
            Some(chain) if same(chain) => return,
            Some(chain) if chain.rules.is_empty() => script.why.push(format!("chain {name} was empty")),
            Some(_) => script.why.push(format!("chain {name} was not as it should be")),
            None => script.why.push(format!("chain {name} was missing")),
        }
        // A line with the name of a user-defined chain creates or flushes the chain.
        script.chains.push(format!(":{name} - [0:0]"));
        script.rules.extend(rules.iter().map(|rule| format!("-A {name} {}", rule.render())));
    }

    fn compare_jump(&self, parent: Option<&Chain>, script: &mut Script) {
        let (name, parent_name, none) = (&self.name, self.parent, Vec::new());
        let rules = parent.map_or(&none, |chain| &chain.rules);
        let is_jump = |rule: &&Rule| rule.target() == Some(name);
        let jumps: Vec<&Rule> = rules.iter().filter(is_jump).collect();
        let others: Vec<&Rule> = rules.iter().filter(|rule| !is_jump(rule)).collect();
        let end = others.iter().position(|rule| rule.swallows_all());
        let at = rules.iter().position(|rule| is_jump(&rule));
        let why = match (&jumps[..], at, end) {
            ([jump], Some(at), Some(end)) if jump.meaning() == self.jump.meaning() && at > end => {
                format!("the jump to {name} stood behind the end of {parent_name}, {}", others[end].render())
            }
            ([jump], ..) if jump.meaning() == self.jump.meaning() => return,
            ([], ..) => format!("the jump from {parent_name} to {name} was missing"),
            _ => format!("the jumps from {parent_name} to {name} were not as they should be"),
        };
        script.why.push(why);
        script.rules.extend(jumps.iter().map(|jump| format!("-D {parent_name} {}", jump.render())));
        script.rules.push(match end {
            Some(end) => format!("-I {parent_name} {} {}", end + 1, self.jump.render()),
            None => format!("-A {parent_name} {}", self.jump.render()),
        });
    }

    /// Removes the chain and all jumps to it.
    fn compare_absence(&self, saved: &Saved, script: &mut Script) {
        let name = &self.name;
        if saved.chain(self.table, name).is_none() {
            return;
        }
        for (parent, chain) in saved.chains(self.table) {
            let jumps = chain.rules.iter().filter(|rule| rule.target() == Some(name));
            script.rules.extend(jumps.map(|jump| format!("-D {parent} {}", jump.render())));
        }
        script.chains.push(format!(":{name} - [0:0]"));
        script.rules.push(format!("-X {name}"));
        script.why.push(format!("chain {name} is not wanted"));
    }
}

#[cfg(test)]
#[path = "iptables_tests.rs"]
mod tests;
