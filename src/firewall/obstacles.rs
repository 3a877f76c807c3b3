//! Rules of other programs that block packets of the overlay to our containers, and the remedies.

use super::saved::{Rule, Saved};
use super::{Mode, RuleSet};
use ipnet::IpNet;
use serde_json::Value;
use std::net::IpAddr;

/// An interface of the host and a network on it.
pub type OnHost = (String, IpNet);

/// The rules in iptables' tables that drop packets to our containers although our own rules accept them. Docker 28 and
/// later adds such rules (moby/moby#48724, #49829).
pub fn in_iptables(saved: &Saved, set: &RuleSet, on_host: &[OnHost]) -> Vec<String> {
    let mut found = Vec::new();
    let raw = saved.chain("raw", "PREROUTING").map(|chain| &chain.rules[..]).unwrap_or_default();
    let drops = raw.iter().filter(|rule| drops_for_a_container(rule, set.subnet)).count();
    if drops > 0 {
        found.push(format!(
            "Docker drops what other hosts send to its containers ({drops} rules in table raw, such as of published \
             ports): start dockerd with --allow-direct-routing (Docker 28.2 and later) or with \
             DOCKER_INSECURE_NO_IPTABLES_RAW=1 in its environment"
        ));
    }
    let is_ours = |bridge: &str| on_host.iter().any(|(name, net)| name == bridge && set.subnet.contains(&net.addr()));
    let chains = saved.chains("filter").filter(|(name, _)| name.starts_with("DOCKER"));
    let mut rules = chains.flat_map(|(_, chain)| &chain.rules);
    let bridge = rules.find_map(|rule| drops_for_a_bridge(rule).filter(|bridge| is_ours(bridge)));
    if let (Some(bridge), None) = (bridge, &set.docker_user) {
        found.push(format!(
            "Docker drops what other hosts send to ports of containers on {bridge} that are not published: \
             --iptables-docker-user-rules accepts it in the chain DOCKER-USER"
        ));
    }
    found
}

/// `-d 172.30.46.2/32 ! -i docker0 -j DROP`
fn drops_for_a_container(rule: &Rule, subnet: IpNet) -> bool {
    let to = rule.option("-d").filter(|(negated, _)| !negated).and_then(|(_, net)| parse(net));
    let not_from_its_bridge = rule.option("-i").is_some_and(|(negated, _)| negated);
    rule.target() == Some("DROP") && not_from_its_bridge && to.is_some_and(|net| subnet.contains(&net))
}

/// `! -i docker0 -o docker0 -j DROP`: the bridge.
fn drops_for_a_bridge(rule: &Rule) -> Option<&str> {
    let (_, bridge) = rule.option("-o").filter(|(negated, _)| !negated)?;
    let drops = rule.target() == Some("DROP") && rule.option("-i") == Some((true, bridge));
    (drops && rule.meaning().len() == 3).then_some(bridge)
}

fn parse(net: &str) -> Option<IpNet> {
    net.parse().ok().or_else(|| net.parse::<IpAddr>().map(IpNet::from).ok())
}

/// The chains in `nft -j list chains` that drop forwarded packets by policy. Rules in other chains cannot accept those
/// packets on their behalf.
pub fn dropping_chains(json: &str, set: &RuleSet, mode: Mode) -> Vec<String> {
    let listing: Value = serde_json::from_str(json).unwrap_or_default();
    let text = |chain: &Value, member: &str| chain[member].as_str().unwrap_or_default().to_owned();
    let families = if set.network.addr().is_ipv6() { ["ip6", "inet"] } else { ["ip", "inet"] };
    let chains = listing["nftables"].as_array().into_iter().flatten().map(|object| &object["chain"]);
    let dropping = chains.filter(|chain| text(chain, "hook") == "forward" && text(chain, "policy") == "drop");
    let named = dropping.map(|chain| (text(chain, "family"), text(chain, "table"), text(chain, "name")));
    let foreign = |(family, table, name): &(String, String, String)| {
        // This is the chain of iptables itself.
        let has_our_rules = mode == Mode::Iptables && table == "filter" && name == "FORWARD";
        families.contains(&family.as_str()) && !has_our_rules
    };
    named.filter(foreign).map(|(family, table, name)| format!("{family} {table} {name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(docker_user: bool) -> RuleSet {
        RuleSet {
            network: "172.30.0.0/16".parse().unwrap(),
            subnet: "172.30.46.0/24".parse().unwrap(),
            forward: true,
            masquerade: None,
            docker_user: docker_user.then(|| "flannel.1".into()),
            direct_nic: None,
            suffix: String::new(),
        }
    }

    #[test]
    fn dockers_drops_are_found_where_they_hit_our_containers() {
        let saved = Saved::parse(
            "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 172.30.46.2/32 ! -i docker0 -j DROP\n\
             -A PREROUTING -d 172.19.0.2/32 ! -i br-1 -j DROP\nCOMMIT\n\
             *filter\n:DOCKER - [0:0]\n-A DOCKER ! -i br-1 -o br-1 -j DROP\n-A DOCKER ! -i docker0 -o docker0 -j DROP\nCOMMIT\n",
        );
        let on_host: [OnHost; 2] =
            [("docker0".into(), "172.30.46.1/24".parse().unwrap()), ("br-1".into(), "172.19.0.1/16".parse().unwrap())];
        let found = in_iptables(&saved, &set(false), &on_host);
        assert!(found[0].contains("(1 rules in table raw") && found[0].contains("--allow-direct-routing"), "{found:?}");
        assert!(found[1].contains("on docker0") && found[1].contains("--iptables-docker-user-rules"), "{found:?}");
        assert_eq!(in_iptables(&saved, &set(true), &on_host).len(), 1);
        assert_eq!(in_iptables(&saved, &set(false), &on_host[1..]).len(), 1);
        assert!(in_iptables(&Saved::default(), &set(false), &on_host).is_empty());
    }

    #[test]
    fn dropping_chains_of_others_are_named() {
        let chain = |family: &str, table: &str, hook: &str, policy: &str| {
            format!(
                r#"{{"chain":{{"family":"{family}","table":"{table}","name":"FORWARD","hook":"{hook}","policy":"{policy}"}}}}"#
            )
        };
        let json = |chains: &[String]| format!(r#"{{"nftables":[{{"metainfo":{{}}}},{}]}}"#, chains.join(","));
        let text = json(&[
            chain("ip", "filter", "forward", "drop"),
            chain("inet", "mine", "forward", "drop"),
            chain("inet", "mine", "input", "drop"),
            chain("inet", "other", "forward", "accept"),
            chain("ip6", "six", "forward", "drop"),
        ]);
        let named = |mode| dropping_chains(&text, &set(false), mode);
        assert_eq!(named(Mode::Iptables), ["inet mine FORWARD"]);
        assert_eq!(named(Mode::Nftables), ["ip filter FORWARD", "inet mine FORWARD"]);
        assert!(dropping_chains("nonsense", &set(false), Mode::Iptables).is_empty());
    }
}
