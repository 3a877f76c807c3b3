//! One change among very many hostile leases costs as few steps as one among few.

use super::tests::read;
use super::*;
use crate::model::lease::Record;
use kinds::{KINDS, Kind};

#[path = "../../../tests/hostile/kinds.rs"]
mod kinds;

/// A change may take so many searches of an index, whatever leases there are: most are for the subnets around and the
/// addresses inside one subnet, of which a /24 has 256.
const MOST_STEPS: usize = 300;
/// The number of leases that may turn from peers into refused ones, or back, because of one.
const MOST_TOUCHED: usize = 20;

fn facts() -> Facts {
    Facts {
        network: Some("10.0.0.0/8".parse().unwrap()),
        own_subnet: Some("10.255.0.0/24".parse().unwrap()),
        own_mac: Some("0e:00:00:00:00:01".parse().unwrap()),
        // The underlay is in the overlay: otherwise addresses there are refused at once.
        underlay: vec![("the address of eth0".into(), "10.255.9.9".parse().unwrap())],
        ..Facts::default()
    }
}

fn record(kind: &Kind, number: u32) -> Record {
    let (name, value) = (kind.lease)(number);
    Record::decode(&name, value.as_bytes(), None, i64::from(number) + 1, i64::from(number) + 1)
}

/// How many steps it takes to do this, and how many leases it touches.
fn steps(peers: &mut Peers, work: impl Fn(&mut Peers) -> usize) -> (usize, usize) {
    peers.contenders.steps.set(0);
    let touched = work(peers);
    (peers.contenders.steps.get(), touched)
}

#[test]
fn one_change_among_many_hostile_leases_costs_a_few_steps() {
    for kind in &KINDS {
        for count in [100, 5_000] {
            let records: Vec<Record> = (0..count).map(|number| record(kind, number)).collect();
            let mut peers = Peers::default();
            let (all, _) = steps(&mut peers, |peers| {
                peers.revalidate(facts(), records.iter(), read);
                0
            });
            assert!(all <= 20 * count as usize, "{}: {all} steps for {count}", kind.name);
            // The oldest and the youngest go and come back; one more comes.
            for number in [0, count - 1, count, count / 2] {
                let record = record(kind, number);
                for now in [None, Some(&record)] {
                    let (steps, touched) = steps(&mut peers, |peers| peers.update(&record.name, now, read).len());
                    let what = format!("{} {number} of {count}: {steps} steps, {touched} touched", kind.name);
                    assert!(steps <= MOST_STEPS && touched <= MOST_TOUCHED, "{what}");
                }
            }
        }
    }
}
