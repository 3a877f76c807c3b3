//! Counts system calls and netlink messages of a cold join with strace. strace slows everything down, so nothing is timed.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::inside;
use crate::contestant::Contestant;
use crate::damage::right_route;
use crate::measures::*;
use crate::scene::Scene;
use crate::witness::{Report, Witness};

/// Two joins of hosts that have never run a daemon: one counts the calls, the other one counts the messages.
pub fn measure(contestant: &Contestant, peers: u32, patience: Duration, session: &mut Session) {
    if let Some(text) = traced(contestant, peers, patience, &["-c", "-S", "name"]) {
        session.syscalls = table(&text);
        session.set(SYSCALLS, session.syscalls.values().sum::<u64>() as f64);
    }
    // Without -v an array of messages would be cut short.
    if let Some(text) = traced(contestant, peers, patience, &["-v", "-s", "0", "-e", "trace=sendto,sendmsg"]) {
        let sends = text.lines().filter(|line| line.contains("nlmsg_len="));
        session.set(SENDS, sends.clone().count() as f64);
        session.set(SENT, sends.map(|line| line.matches("nlmsg_len=").count()).sum::<usize>() as f64);
    }
}

/// The output of strace for a join; `None` if the join does not complete.
fn traced(contestant: &Contestant, peers: u32, patience: Duration, options: &[&str]) -> Option<String> {
    let mut scene = Scene::new(peers);
    let flags = contestant.flags(&scene.host, &scene.network, scene.run.path());
    let output = scene.host.path("strace");
    let words = [&["-f", "-qq"][..], options, &["-o", output.to_str()?, &contestant.path]].concat();
    let words: Vec<String> = words.into_iter().map(str::to_owned).chain(flags).collect();
    let network = &scene.network;
    inside(&mut scene.host, |host| {
        let mut witness = Witness::start();
        let routes: HashSet<Report> = network.peers.iter().map(|peer| right_route(peer, true)).collect();
        host.start_with("strace", &words);
        let joined = witness.all(Instant::now() + patience, routes).is_some() && host.ready_within(patience);
        witness.settle(Duration::from_secs(1));
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", host.pid())).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let _ = kill(Pid::from_raw(child), Signal::SIGTERM);
        }
        host.wait_exit();
        joined
    })
    .then(|| fs::read_to_string(&output).ok())?
}

/// `% time, seconds, usecs/call, calls, [errors,] name` a line, below and above lines of dashes.
fn table(text: &str) -> BTreeMap<String, u64> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = words.last().filter(|name| **name != "total")?;
        Some(((*name).to_owned(), words.get(3)?.parse().ok()?))
    };
    text.lines().filter_map(row).collect()
}
