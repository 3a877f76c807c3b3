//! What the kernel reports of changes of the FDB, and what the daemon makes of it. Kernels report differently, so the commands of
//! `src/kernel/reports/cases.txt` run on each kernel that is tried. With the name of a file in `RECORD_REPORTS` the reports are
//! written there: so were the files made that the unit tests of the listener read.

use crate::lab::*;
use flanneld::kernel::Event;
use flanneld::kernel::listener::read;
use flanneld::model::entry::{FdbEntry, FdbReport};
use flanneld::model::kernel_state::{Observed, Scope};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::libc::MSG_DONTWAIT;
use std::fmt::Write;
use std::net::UdpSocket;
use std::thread::sleep;
use std::time::{Duration, Instant};

const CASES: &str = include_str!("../../src/kernel/reports/cases.txt");
/// `RTNLGRP_NEIGH`.
const NEIGHBOURS: u32 = 3;
/// Reports of what a packet taught come some time after it was sent.
const LEARNED_WITHIN: Duration = Duration::from_secs(10);

/// The changes, each with what it means.
fn cases() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut cases: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in CASES.lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("= ") {
            Some(meaning) => cases.last_mut().expect("a command before it").1.push(meaning),
            None => cases.push((line, vec![])),
        }
    }
    cases
}

fn do_it(command: &str) {
    let (program, arguments) = command.split_once(' ').expect("a command");
    match program {
        "learn" => receive_from(arguments),
        program => drop(run(program, arguments)),
    }
}

/// Has flannel.1 receive a frame that somebody with this MAC sent.
fn receive_from(source: &str) {
    let vxlan = [8, 0, 0, 0, 0, 0, 1, 0];
    let frame = [&vxlan[..], &[0xff; 6], &mac(source).0, &[8, 6], &[0; 46]].concat();
    UdpSocket::bind("172.31.0.1:0").expect("a socket").send_to(&frame, "172.31.0.1:8472").expect("sent");
}

/// The datagrams that wait.
fn drain(socket: &Socket) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut input = Vec::with_capacity(1 << 16);
    while socket.recv(&mut input, MSG_DONTWAIT).is_ok() {
        all.push(std::mem::take(&mut input));
        input.reserve(1 << 16);
    }
    all
}

/// What reports mean, as far as they are about the FDB.
fn meaning(datagrams: &[Vec<u8>], scope: &Scope, index: u32) -> Vec<String> {
    let mut events = Vec::new();
    datagrams.iter().for_each(|datagram| read(datagram, scope, Some(index), &mut events));
    let words = |event| match event {
        Event::Entry(Observed::FdbEntry(FdbReport::Set(FdbEntry { mac, dst }))) => Some(format!("set {mac} {dst}")),
        Event::Entry(Observed::FdbEntry(FdbReport::Gone(FdbEntry { mac, dst }))) => Some(format!("gone {mac} {dst}")),
        Event::Entry(Observed::FdbEntry(FdbReport::Foreign(mac))) => Some(format!("foreign {mac}")),
        Event::Entry(Observed::Neighbor(..)) => None,
        other => Some(format!("{other:?}")),
    };
    events.into_iter().filter_map(words).collect()
}

#[test]
fn each_change_of_the_fdb_is_reported_once_and_nothing_else_is_news() {
    on_a_new_host(async |mut lab| {
        let index = lab.with_device().await;
        let mut socket = Socket::new(NETLINK_ROUTE).expect("a socket");
        socket.bind_auto().expect("bound");
        socket.add_membership(NEIGHBOURS).expect("a member");
        let mut record = format!("index {index}\n");
        for (command, expected) in cases() {
            do_it(command);
            let mut reports = drain(&socket);
            let end = Instant::now() + LEARNED_WITHIN;
            while meaning(&reports, &lab.scope, index).len() < expected.len() && Instant::now() < end {
                sleep(Duration::from_millis(5));
                reports.extend(drain(&socket));
            }
            assert_eq!(meaning(&reports, &lab.scope, index), expected, "{command}");
            writeln!(record, "{command}").expect("a string");
            for report in &reports {
                let hex: String = report.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(record, "  {hex}").expect("a string");
            }
        }
        if let Ok(file) = std::env::var("RECORD_REPORTS") {
            std::fs::write(file, record).expect("recorded");
        }
    });
}
