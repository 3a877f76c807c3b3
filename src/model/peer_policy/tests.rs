use super::*;
use crate::model::backend_data::BackendData;
use crate::model::lease::LeaseAttrs;
use crate::model::lease::Revision;
use ipnet::Ipv4Net;
use proptest::prelude::*;

fn facts() -> Facts {
    Facts {
        network: Some("10.5.0.0/16".parse().unwrap()),
        own_subnet: Some("10.5.1.0/24".parse().unwrap()),
        own_mac: Some("0e:00:00:00:00:01".parse().unwrap()),
        own_addresses: ["192.168.0.1".parse().unwrap(), "10.5.77.9".parse().unwrap()].into(),
        connected: vec![
            ("br0".into(), "10.5.50.1/24".parse().unwrap()),
            ("wide0".into(), "10.5.61.5/17".parse().unwrap()),
        ],
        underlay: vec![("an etcd endpoint".into(), "10.5.60.7".parse().unwrap())],
    }
}

pub(super) fn read(lease: &Lease) -> Reading {
    match lease.attrs.backend_data.as_ref().map(BackendData::vxlan) {
        Some(Ok(data)) => Reading::Endpoint(Endpoint { address: lease.attrs.public_ip, mac: Some(data.mac) }),
        Some(Err(reason)) => Reading::Bad(reason),
        None => Reading::Pending,
    }
}

fn record(name: &str, ip: &str, mac: &str, created: Revision) -> Record {
    let data = (!mac.is_empty()).then(|| format!("{{\"VtepMAC\":\"{mac}\"}}").into());
    let attrs = LeaseAttrs {
        public_ip: ip.parse().unwrap(),
        public_ipv6: None,
        backend_type: "vxlan".into(),
        backend_data: data,
        backend_v6_data: None,
    };
    Record::decode(name, attrs.to_json().as_bytes(), None, created, created)
}

fn judge(records: &[Record]) -> Peers {
    let mut peers = Peers::default();
    peers.revalidate(facts(), records.iter(), read);
    peers
}

fn verdicts(peers: &Peers) -> BTreeMap<Name, Verdict> {
    let names = peers
        .contenders
        .iter()
        .map(|(key, _)| key)
        .map(|key| key.to_string().into())
        .chain(peers.rejected.keys().cloned());
    names.map(|name: Name| (name.clone(), peers.verdict(&name).expect("a verdict"))).collect()
}

#[test]
fn networks_wider_than_a_subnet_are_told_if_they_touch_the_overlay() {
    let mut facts = facts();
    facts.connected.push(("corp0".into(), "10.0.0.9/8".parse().unwrap()));
    facts.connected.push(("other0".into(), "172.16.0.9/12".parse().unwrap()));
    facts.connected.push(("small0".into(), "10.5.70.9/25".parse().unwrap()));
    let wider: Vec<String> = facts.wider_networks().map(|(name, net)| format!("{name} {net}")).collect();
    assert_eq!(wider, ["wide0 10.5.0.0/17", "corp0 10.0.0.0/8"]);
}

#[test]
fn alone() {
    for (name, ip, mac, expected) in [
        ("10.5.2.0-24", "192.168.0.2", "0e:00:00:00:00:02", "peer"),
        ("10.5.2.0-30", "192.168.0.2", "0e:00:00:00:00:02", "peer"),
        ("10.5.1.0-24", "192.168.0.2", "0e:00:00:00:00:02", "own"),
        ("10.5.2.0-24", "192.168.0.2", "", "pending"),
        ("foo", "192.168.0.2", "0e:00:00:00:00:02", "names no subnet"),
        ("10.6.2.0-24", "192.168.0.2", "0e:00:00:00:00:02", "not inside the network 10.5.0.0/16"),
        ("10.5.0.0-16", "192.168.0.2", "0e:00:00:00:00:02", "not inside"),
        ("128.0.0.0-1", "192.168.0.2", "0e:00:00:00:00:02", "not inside"),
        ("0.0.0.0-0", "192.168.0.2", "0e:00:00:00:00:02", "not inside"),
        ("10.5.0.0-23", "192.168.0.2", "0e:00:00:00:00:02", "overlaps ours"),
        ("10.5.1.128-25", "192.168.0.2", "0e:00:00:00:00:02", "overlaps ours"),
        ("10.5.50.0-24", "192.168.0.2", "0e:00:00:00:00:02", "on this host's br0"),
        ("10.5.50.0-28", "192.168.0.2", "0e:00:00:00:00:02", "on this host's br0"),
        ("10.5.50.64-28", "192.168.0.2", "0e:00:00:00:00:02", "peer"),
        ("10.5.48.0-20", "192.168.0.2", "0e:00:00:00:00:02", "on this host's br0"),
        ("10.5.77.0-24", "192.168.0.2", "0e:00:00:00:00:02", "holds 10.5.77.9, an address of this host"),
        ("10.5.60.0-24", "192.168.0.2", "0e:00:00:00:00:02", "holds 10.5.60.7, an etcd endpoint"),
        ("10.5.2.0-24", "0.0.0.0", "0e:00:00:00:00:02", "PublicIP 0.0.0.0"),
        ("10.5.2.0-24", "0.1.2.3", "0e:00:00:00:00:02", "PublicIP 0.1.2.3"),
        ("10.5.2.0-24", "127.0.0.1", "0e:00:00:00:00:02", "PublicIP 127.0.0.1"),
        ("10.5.2.0-24", "224.0.0.1", "0e:00:00:00:00:02", "PublicIP 224.0.0.1"),
        ("10.5.2.0-24", "255.255.255.255", "0e:00:00:00:00:02", "PublicIP 255.255.255.255"),
        ("10.5.2.0-24", "192.168.0.1", "0e:00:00:00:00:02", "PublicIP 192.168.0.1 is ours"),
        ("10.5.2.0-24", "192.168.0.2", "00:00:00:00:00:00", "VtepMAC 00:00:00:00:00:00"),
        ("10.5.2.0-24", "192.168.0.2", "01:00:5e:00:00:02", "VtepMAC 01:00:5e:00:00:02"),
        ("10.5.2.0-24", "192.168.0.2", "ff:ff:ff:ff:ff:ff", "VtepMAC ff:ff:ff:ff:ff:ff"),
        ("10.5.2.0-24", "192.168.0.2", "0e:00:00:00:00:01", "VtepMAC 0e:00:00:00:00:01 is ours"),
    ] {
        let verdict = format!("{:?}", judge(&[record(name, ip, mac, 1)]).verdict(name).unwrap());
        let said = match expected {
            "peer" => verdict.starts_with("Peer"),
            "own" | "pending" => verdict.to_lowercase() == expected,
            reason => verdict.starts_with("Refused") && verdict.contains(reason),
        };
        assert!(said, "{name} {ip} {mac}: {verdict}, not {expected}");
    }
}

#[test]
fn of_two_that_exclude_each_other_the_older_wins_until_it_goes() {
    let good = record("10.5.2.0-24", "192.168.0.2", "0e:00:00:00:00:02", 5);
    for (rival, reason) in [
        (record("10.5.3.0-24", "192.168.0.3", "0e:00:00:00:00:02", 6), "it has the MAC 0e:00:00:00:00:02 of the older"),
        (record("10.5.2.0-25", "192.168.0.3", "0e:00:00:00:00:03", 6), "its subnet overlaps the older"),
        (record("10.5.2.0-23", "192.168.0.3", "0e:00:00:00:00:03", 6), "its subnet overlaps the older"),
        (record("10.5.3.0-24", "10.5.2.7", "0e:00:00:00:00:03", 6), "its address 10.5.2.7 lies in the subnet of"),
    ] {
        let mut peers = judge(&[rival.clone(), good.clone()]);
        assert!(matches!(peers.verdict(&good.name), Some(Verdict::Peer(_))), "{reason}");
        assert!(format!("{:?}", peers.verdict(&rival.name)).contains(reason), "{:?}", peers.verdict(&rival.name));
        let touched = peers.update(&good.name, None, read);
        assert!(touched.contains(&rival.name) && touched.contains(&good.name));
        assert!(matches!(peers.verdict(&rival.name), Some(Verdict::Peer(_))), "{reason}");
    }
    let mut peers = judge(&[record("10.5.3.0-24", "10.5.2.7", "0e:00:00:00:00:03", 4), good.clone()]);
    assert!(format!("{:?}", peers.verdict(&good.name)).contains("holds 10.5.2.7, the address of the older"));
    assert!(peers.update("10.5.3.0-24", None, read).contains(&good.name));
}

#[test]
fn an_older_key_of_an_unusual_size_outweighs_no_hosts_subnet() {
    let good = record("10.5.2.0-24", "192.168.0.2", "0e:00:00:00:00:02", 5);
    for (stray, reason) in [
        ("10.5.2.0-23", "overlaps the lease 10.5.2.0-24 of 192.168.0.2; a /23 gives way, hosts' subnets are /24 here"),
        ("10.5.2.0-25", "a /25 gives way"),
        ("10.5.2.128-30", "a /30 gives way"),
    ] {
        let stray = record(stray, "192.168.0.3", "0e:00:00:00:00:03", 1);
        let mut peers = judge(std::slice::from_ref(&stray));
        assert!(matches!(peers.verdict(&stray.name), Some(Verdict::Peer(_))), "alone it is a host of another config");
        assert!(peers.update(&good.name, Some(&good), read).contains(&stray.name));
        assert!(matches!(peers.verdict(&good.name), Some(Verdict::Peer(_))));
        assert!(format!("{:?}", peers.verdict(&stray.name)).contains(reason), "{:?}", peers.verdict(&stray.name));
    }
    let with_its_mac = record("10.5.128.0-18", "192.168.0.3", "0e:00:00:00:00:02", 1);
    let peers = judge(&[with_its_mac, good.clone()]);
    assert!(matches!(peers.verdict(&good.name), Some(Verdict::Peer(_))));
}

/// The overlay may contain the underlay: only the hosts' subnets must not.
#[test]
fn an_address_in_the_overlay_is_refused_if_a_subnet_holds_it() {
    let lease = record("10.5.3.0-24", "10.5.90.9", "0e:00:00:00:00:03", 2);
    let own = record("10.5.3.0-24", "10.5.3.9", "0e:00:00:00:00:03", 2);
    let mut peers = judge(std::slice::from_ref(&lease));
    assert!(matches!(peers.verdict(&lease.name), Some(Verdict::Peer(_))), "{:?}", peers.verdict(&lease.name));
    peers.update(&own.name, Some(&own), read);
    assert!(format!("{:?}", peers.verdict(&own.name)).contains("lies in its own subnet"));
    let around = record("10.5.90.0-24", "192.168.0.2", "0e:00:00:00:00:02", 1);
    let peers = judge(&[lease.clone(), around]);
    assert!(format!("{:?}", peers.verdict(&lease.name)).contains("lies in the subnet of"));
}

#[test]
fn one_address_has_a_few_subnets_at_most() {
    let many: Vec<Record> =
        (2..40).map(|i| record(&format!("10.5.{i}.0-24"), "192.168.0.2", "0e:00:00:00:00:02", i)).collect();
    let mut peers = judge(&many);
    assert_eq!(peers.tally().peers, MOST_SUBNETS);
    assert!(format!("{:?}", peers.verdict("10.5.39.0-24")).contains("192.168.0.2 is that of 8 other leases"));
    let touched = peers.update("10.5.2.0-24", None, read);
    assert!(touched.contains(&many[MOST_SUBNETS].name) && touched.len() == 2, "the next one follows: {touched:?}");
}

#[test]
fn one_host_may_have_two_subnets() {
    let two = [2, 3].map(|i| record(&format!("10.5.{i}.0-24"), "192.168.0.2", "0e:00:00:00:00:02", i));
    let peers = judge(&two);
    assert_eq!((peers.peers().count(), peers.tally().refused), (2, 0));
}

/// A record that may collide with others in every way there is.
fn any_record() -> impl Strategy<Value = Record> {
    let net =
        (0u8..8, 22u8..=26).prop_map(|(third, len)| Ipv4Net::new(Ipv4Addr::new(10, 5, third, 0), len).unwrap().trunc());
    let v6 = prop_oneof![3 => Just(None), 1 => (0u16..3).prop_map(|n| format!("fd00:{n}::/64").parse().ok())];
    let key = (net, v6).prop_map(|(v4, v6)| SubnetKey { v4, v6 }.to_string());
    let name = prop_oneof![20 => key, 1 => Just("junk".to_owned())];
    let ip = prop_oneof![
        Just("192.168.0.9".to_owned()),
        (1u8..5).prop_map(|i| format!("192.168.0.{i}")),
        (0u8..8).prop_map(|i| format!("10.5.{i}.9"))
    ];
    (name, ip, 0u8..9, 1i64..9)
        .prop_map(|(name, ip, mac, created)| record(&name, &ip, &format!("0e:00:00:00:00:0{mac}"), created))
}

/// Whether each lease is a peer, and if so by which endpoint. The reason of a refusal may change with the winner.
fn endpoints(peers: &Peers) -> BTreeMap<Name, Option<Endpoint>> {
    let endpoint = |verdict| if let Verdict::Peer(endpoint) = verdict { Some(endpoint) } else { None };
    verdicts(peers).into_iter().map(|(name, verdict)| (name, endpoint(verdict))).collect()
}

proptest! {
    #[test]
    fn judging_change_by_change_is_judging_all(changes in prop::collection::vec((any_record(), any::<bool>()), 1..60)) {
        let mut records: BTreeMap<Name, Record> = BTreeMap::new();
        let mut peers = judge(&[]);
        for (record, delete) in changes {
            let before = endpoints(&peers);
            let name = record.name.clone();
            if delete && records.contains_key(&name) {
                records.remove(&name);
            } else {
                records.insert(name.clone(), record);
            }
            let touched = peers.update(&name, records.get(&name), read);
            let all: Vec<Record> = records.values().cloned().collect();
            let afresh = judge(&all);
            prop_assert_eq!(verdicts(&peers), verdicts(&afresh));
            prop_assert_eq!(peers.tally(), afresh.tally());
            let after = endpoints(&afresh);
            for name in before.keys().chain(after.keys()) {
                prop_assert!(before.get(name) == after.get(name) || touched.contains(name), "{} untold", name);
            }
        }
    }

    #[test]
    fn no_two_peers_exclude_each_other(records in prop::collection::vec(any_record(), 1..60)) {
        let unique: BTreeMap<Name, Record> = records.into_iter().map(|r| (r.name.clone(), r)).collect();
        let all: Vec<Record> = unique.into_values().collect();
        let peers = judge(&all);
        let accepted: Vec<(Ipv4Net, Endpoint)> = peers.peers().map(|(key, endpoint)| (key.v4, endpoint)).collect();
        for (i, (net, endpoint)) in accepted.iter().enumerate() {
            for (other_net, other) in &accepted[i + 1..] {
                prop_assert!(!net.contains(other_net) && !other_net.contains(net));
                prop_assert!(endpoint.mac != other.mac || endpoint.address == other.address);
                prop_assert!(!net.contains(&other.address) && !other_net.contains(&endpoint.address));
            }
        }
    }
}
