use super::*;
use crate::model::config::NetworkConfig;

const MAC: &str = "0e:00:00:00:00:01";
const OTHER: &str = "0e:00:00:00:00:99";

fn overlay() -> Overlay {
    let text = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.3.0"}"#;
    NetworkConfig::parse(text.as_bytes()).unwrap().ipv4.unwrap()
}

fn record(name: &str, ip: &str, mac: &str, lease: i64) -> Record {
    let value = format!(r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#);
    Record::decode(name, value.as_bytes(), LeaseId::new(lease), 1, 1)
}

fn lease(record: &Record) -> Lease {
    record.content.clone().unwrap()
}

fn identity() -> Identity {
    Identity { public_ip: Some("192.168.0.1".parse().unwrap()), ..Identity::default() }
}

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

/// Nothing speaks against any subnet.
fn free() -> Surroundings {
    Surroundings::default()
}

fn on_host(nets: &[&str]) -> Surroundings {
    Surroundings { on_host: nets.iter().map(|text| net(text)).collect(), ..free() }
}

fn needs(address: &str) -> Surroundings {
    Surroundings { needed: vec![("the address of eth0".into(), address.parse().unwrap())], ..free() }
}

#[test]
fn each_proof_makes_a_lease_ours() {
    let mine = record("10.5.2.0-24", "192.168.0.1", MAC, 7);
    let moved = record("10.5.2.0-24", "192.168.0.77", MAC, 7);
    let mac = Some(MAC.parse().unwrap());
    for (identity, record) in [
        (Identity { remembered_lease: LeaseId::new(7), ..identity() }, &moved),
        (Identity { remembered_mac: mac, ..identity() }, &moved),
        (Identity { device_mac: mac, ..identity() }, &moved),
        (Identity { env_subnet: Some(net("10.5.2.0/24")), ..identity() }, &mine),
    ] {
        let decision = identity.decide(std::slice::from_ref(record), &free(), &overlay(), 0);
        assert_eq!(decision, Decision::Keep(lease(record)), "{identity:?}");
        assert_eq!(identity.mac(&decision), mac);
    }
}

#[test]
fn our_public_ip_alone_is_adopted_and_another_ones_key_is_left() {
    let same_ip = record("10.5.2.0-24", "192.168.0.1", OTHER, 7);
    assert_eq!(
        identity().decide(std::slice::from_ref(&same_ip), &free(), &overlay(), 0),
        Decision::Adopt(lease(&same_ip))
    );
    let env = Identity { env_subnet: Some(net("10.5.2.0/24")), ..identity() };
    let foreign = record("10.5.2.0-24", "192.168.0.2", OTHER, 7);
    assert_eq!(env.decide(&[foreign], &free(), &overlay(), 0), Decision::Create(net("10.5.1.0/24")));
}

#[test]
fn two_reservations_are_not_taken_for_one_lease() {
    let reserved = record("10.5.2.0-24", "192.168.0.2", OTHER, 0);
    assert!(!identity().surely_owns(&lease(&reserved)));
}

#[test]
fn what_does_not_fit_the_config_is_discarded() {
    let wrong = record("10.5.2.0-25", "192.168.0.1", MAC, 7);
    let identity = Identity { remembered_mac: Some(MAC.parse().unwrap()), ..identity() };
    assert_eq!(identity.decide(std::slice::from_ref(&wrong), &free(), &overlay(), 0), Decision::Discard(lease(&wrong)));
}

#[test]
fn a_dual_stack_lease_of_ours_does_not_fit_without_ipv6() {
    let dual = record("10.5.2.0-24&fc00:5:22::-64", "192.168.0.1", MAC, 7);
    let identity = Identity { remembered_mac: Some(MAC.parse().unwrap()), ..identity() };
    assert_eq!(identity.decide(std::slice::from_ref(&dual), &free(), &overlay(), 0), Decision::Discard(lease(&dual)));
}

#[test]
fn the_previous_subnet_is_taken_again_if_it_is_free() {
    let identity =
        Identity { remembered_subnet: Some(net("10.5.3.0/24")), env_subnet: Some(net("10.5.2.0/24")), ..identity() };
    assert_eq!(identity.decide(&[], &free(), &overlay(), 0), Decision::Create(net("10.5.3.0/24")));
    let other = record("10.5.3.128-25", "192.168.0.2", OTHER, 7);
    assert_eq!(
        identity.decide(std::slice::from_ref(&other), &free(), &overlay(), 0),
        Decision::Create(net("10.5.2.0/24"))
    );
    // Our own bridge still has the previous subnet: that is no reason not to take it again.
    let bridge = on_host(&["10.5.2.0/24"]);
    assert_eq!(identity.decide(&[other], &bridge, &overlay(), 0), Decision::Create(net("10.5.2.0/24")));
}

#[test]
fn everything_parsable_is_taken_but_what_covers_the_network() {
    let bad = [
        Record::decode("10.5.1.7-24", b"", None, 1, 1),
        Record::decode("10.5.2.0-24", b"garbage", None, 1, 1),
        Record::decode("0.0.0.0-0", b"{}", None, 1, 1),
        Record::decode("10.5.0.0-16", b"{}", None, 1, 1),
    ];
    assert_eq!(identity().decide(&bad, &free(), &overlay(), 5), Decision::Create(net("10.5.3.0/24")));
    let held = on_host(&["10.5.3.0/24"]);
    let why = "10.5.3.0/24, a network of this host".to_owned();
    assert_eq!(identity().decide(&bad, &held, &overlay(), 5), Decision::Unusable(net("10.5.3.0/24"), why));
    let wide = on_host(&["10.0.0.0/8"]);
    assert_eq!(identity().decide(&bad, &wide, &overlay(), 5), Decision::Create(net("10.5.3.0/24")));
    let third = record("10.5.3.0-24", "192.168.0.9", OTHER, 9);
    assert_eq!(identity().decide(&[&bad[..], &[third]].concat(), &held, &overlay(), 5), Decision::OutOfSubnets);
}

#[test]
fn a_subnet_in_use_is_kept_made_again_or_lost_but_never_changed() {
    let mac = Some(MAC.parse().unwrap());
    let in_use = Some(InUse { subnet: net("10.5.2.0/24"), created: 1 });
    let identity = Identity { in_use, remembered_mac: mac, ..identity() };
    let mine = record("10.5.2.0-24", "192.168.0.1", MAC, 7);
    let adopted = record("10.5.2.0-24", "192.168.0.1", OTHER, 8);
    let wider = record("10.5.2.0-23", "192.168.0.2", OTHER, 8);
    let dual = record("10.5.2.0-24&fc00:5:22::-64", "192.168.0.2", OTHER, 8);
    for (records, expected) in [
        (vec![], Decision::Create(net("10.5.2.0/24"))),
        (vec![mine.clone()], Decision::Keep(lease(&mine))),
        (vec![adopted.clone()], Decision::Reclaim(lease(&adopted))),
        (vec![Record::decode("10.5.2.0-24", b"garbage", None, 1, 9)], Decision::Overwrite(net("10.5.2.0/24"), 9)),
        (vec![wider], Decision::Create(net("10.5.2.0/24"))),
        (vec![dual.clone()], Decision::Taken(dual)),
    ] {
        assert_eq!(identity.decide(&records, &free(), &overlay(), 0), expected);
    }
    let rivals = [OTHER.parse().unwrap()].into();
    let known = Identity { rivals, ..identity.clone() };
    assert_eq!(known.decide(std::slice::from_ref(&adopted), &free(), &overlay(), 0), Decision::Taken(adopted.clone()));
    let later = Identity { in_use: Some(InUse { subnet: net("10.5.2.0/24"), created: 0 }), ..identity };
    assert_eq!(later.decide(std::slice::from_ref(&adopted), &free(), &overlay(), 0), Decision::Taken(adopted));
}

#[test]
fn who_yields_takes_another_subnet_and_a_copy_also_another_mac() {
    let mac: VtepMac = MAC.parse().unwrap();
    let [theirs, copied] = [OTHER, MAC].map(|mac| record("10.5.2.0-24", "192.168.0.1", mac, 7));
    let state = Identity {
        remembered_mac: Some(mac),
        remembered_lease: LeaseId::new(7),
        remembered_subnet: Some(net("10.5.2.0/24")),
        env_subnet: Some(net("10.5.2.0/24")),
        device_mac: Some(mac),
        ..identity()
    };
    for (record, keeps) in [(theirs, Some(mac)), (copied, None)] {
        let mut identity = state.clone();
        identity.back_off(&lease(&record));
        let decision = identity.decide(std::slice::from_ref(&record), &free(), &overlay(), 0);
        assert_eq!(decision, Decision::Create(net("10.5.1.0/24")));
        assert_eq!(identity.mac(&decision), keeps);
    }
}

#[test]
fn rivals_are_not_collected_without_end() {
    let mut identity = identity();
    for last in 0..=255 {
        let mac = format!("0e:00:00:00:00:{last:02x}");
        identity.meet(&lease(&record("10.5.2.0-24", "192.168.0.1", &mac, 7)));
        assert!(identity.rivals.contains(&mac.parse().unwrap()) && identity.rivals.len() <= MOST_RIVALS);
    }
    assert_eq!(identity.rivals.len(), MOST_RIVALS);
}

#[test]
fn subnet_env_proves_nothing_to_a_host_that_knows_its_mac() {
    let same_ip = record("10.5.2.0-24", "192.168.0.1", OTHER, 7);
    let env_subnet = Some(net("10.5.2.0/24"));
    for identity in [
        Identity { remembered_mac: Some(MAC.parse().unwrap()), env_subnet, ..identity() },
        Identity { device_mac: Some(MAC.parse().unwrap()), env_subnet, ..identity() },
    ] {
        assert_eq!(
            identity.decide(std::slice::from_ref(&same_ip), &free(), &overlay(), 0),
            Decision::Adopt(lease(&same_ip))
        );
    }
}

#[test]
fn a_subnet_that_holds_what_this_host_needs_is_not_taken() {
    // Of 10.5.1.0/24 to 10.5.3.0/24 one is left for each.
    let guest = |third: u8| record(&format!("10.5.{third}.0-24"), "192.168.0.9", OTHER, 9);
    let moved = Identity { remembered_subnet: Some(net("10.5.1.0/24")), ..identity() };
    for random in 0..4 {
        let decide = |around: &Surroundings| moved.decide(&[guest(2)], around, &overlay(), random);
        assert_eq!(decide(&needs("10.5.1.7")), Decision::Create(net("10.5.3.0/24")));
        assert_eq!(decide(&needs("192.168.0.7")), Decision::Create(net("10.5.1.0/24")));
    }
    let all = [guest(2), guest(3)];
    let why = "10.5.1.7, the address of eth0".to_owned();
    assert_eq!(moved.decide(&all, &needs("10.5.1.7"), &overlay(), 0), Decision::Unusable(net("10.5.1.0/24"), why));
    let same_ip = record("10.5.1.0-24", "192.168.0.1", OTHER, 7);
    assert!(matches!(identity().decide(&[same_ip], &needs("10.5.1.7"), &overlay(), 0), Decision::Create(_)));
}

#[test]
fn a_subnet_that_holds_another_hosts_address_is_not_taken() {
    let guest = record("10.5.2.0-24", "10.5.1.9", OTHER, 9);
    let moved = Identity { remembered_subnet: Some(net("10.5.1.0/24")), ..identity() };
    for random in 0..4 {
        let decision = moved.decide(std::slice::from_ref(&guest), &free(), &overlay(), random);
        assert_eq!(decision, Decision::Create(net("10.5.3.0/24")));
    }
}

#[test]
fn a_stray_wide_key_is_avoided_but_stops_nobody() {
    let text = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.0.0","SubnetMax":"10.5.3.0"}"#;
    let overlay = NetworkConfig::parse(text.as_bytes()).unwrap().ipv4.unwrap();
    let host = record("10.5.0.0-24", "192.168.0.9", OTHER, 9);
    let reserved = record("10.5.0.0-23", "192.168.0.8", MAC, 0);
    let leased = record("10.5.0.0-23", "192.168.0.8", MAC, 8);
    let junk = Record::decode("10.5.0.0-23", b"junk", LeaseId::new(5), 1, 1);
    let rest = ["10.5.2.0-24", "10.5.3.0-24"].map(|name| record(name, "192.168.0.9", OTHER, 9));
    let decide = |records: &[&Record], random| {
        let records: Vec<Record> = records.iter().map(|record| (*record).clone()).collect();
        identity().decide(&records, &free(), &overlay, random)
    };
    for (stray, random) in [(&reserved, 0), (&junk, 1), (&leased, 2), (&reserved, 3)] {
        let Decision::Create(subnet) = decide(&[stray, &host], random) else { panic!("{stray:?}") };
        assert!(["10.5.2.0/24", "10.5.3.0/24"].contains(&&*subnet.to_string()), "outside if that can be: {subnet}");
        let full = decide(&[stray, &host, &rest[0], &rest[1]], random);
        assert_eq!(full, Decision::Create(net("10.5.1.0/24")), "{stray:?}");
    }
    // A lease that may belong to a host of an earlier config keeps its subnet while no host of this one is inside.
    assert_eq!(decide(&[&leased, &rest[0], &rest[1]], 0), Decision::OutOfSubnets);
    assert!(matches!(decide(&[&junk, &rest[0], &rest[1]], 0), Decision::Create(_)));
    // A host that was here before gets its own subnet back.
    let before = Identity { remembered_subnet: Some(net("10.5.1.0/24")), ..identity() };
    assert_eq!(before.decide(&[reserved], &free(), &overlay, 0), Decision::Create(net("10.5.1.0/24")));
}
