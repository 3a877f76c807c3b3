//! The meaning of recorded reports of real kernels. `tests/kernel/reports.rs` made the files.

use super::Event;
use super::listener::read;
use crate::model::entry::{FdbEntry, FdbReport};
use crate::model::family::PerFamily;
use crate::model::kernel_state::{Observed, Scope};

const CASES: &str = include_str!("reports/cases.txt");
const RECORDS: [(&str, &str); 4] = [
    ("5.10", include_str!("reports/5.10.txt")),
    ("6.1", include_str!("reports/6.1.txt")),
    ("6.12", include_str!("reports/6.12.txt")),
    ("7.2", include_str!("reports/7.2.txt")),
];

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn events(datagram: &[u8], index: u32) -> Vec<Event> {
    let scope = Scope {
        device: "flannel.1".to_owned(),
        networks: PerFamily { v4: "10.5.0.0/16".parse().ok(), v6: None },
        nic: 2,
    };
    let mut events = Vec::new();
    read(datagram, &scope, Some(index), &mut events);
    events
}

/// The meaning of one report, as `cases.txt` writes it; nothing for what is not about the FDB.
fn meaning(hex: &str, index: u32) -> Vec<String> {
    let words = |event| match event {
        Event::Entry(Observed::FdbEntry(FdbReport::Set(FdbEntry { mac, dst }))) => Some(format!("= set {mac} {dst}")),
        Event::Entry(Observed::FdbEntry(FdbReport::Gone(FdbEntry { mac, dst }))) => Some(format!("= gone {mac} {dst}")),
        Event::Entry(Observed::FdbEntry(FdbReport::Foreign(mac))) => Some(format!("= foreign {mac}")),
        Event::Entry(Observed::Neighbor(..)) => None,
        other => Some(format!("{other:?}")),
    };
    events(&bytes(hex), index).into_iter().filter_map(words).collect()
}

/// Each change is reported once or twice, and some that changed nothing are reported as well.
#[test]
fn a_change_of_the_fdb_is_news_once_on_every_kernel() {
    for (kernel, record) in RECORDS {
        let (first, rest) = record.split_once('\n').unwrap();
        let index = first.strip_prefix("index ").unwrap().parse().unwrap();
        let meant = rest.lines().flat_map(|line| match line.strip_prefix("  ") {
            Some(hex) => meaning(hex, index),
            None => vec![line.to_owned()],
        });
        let expected: Vec<&str> = CASES.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(meant.collect::<Vec<_>>(), expected, "{kernel}");
    }
}

#[test]
fn a_report_that_cannot_be_decoded_asks_for_a_reading() {
    let cut_off = 28_u32.to_ne_bytes();
    assert_eq!(events(&cut_off, 4), [Event::Unclear]);
    // A neighbour whose header is too short, as no kernel sends it.
    let mut short = 20_u32.to_ne_bytes().to_vec();
    short.extend(28_u16.to_ne_bytes());
    short.resize(20, 0);
    assert_eq!(events(&short, 4), [Event::Unclear]);
}
