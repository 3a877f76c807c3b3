//! The daemon as a service manager sees it: asked to stop it stops, whatever it waits for; while it waits it asks for
//! time; once it is ready it shows that it is alive.

use crate::lab::{CONFIG, Etcd, FLANNELD, Host, Lab, Lease, PREFIX, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// SIGTERM must end it within this time.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Packets to etcd vanish without an answer.
fn swallow_packets_to_etcd(host: &Host) {
    host.sh("nft add table inet hole
        nft add chain inet hole out '{ type filter hook output priority 0; }'
        nft add rule inet hole out tcp dport 2379 drop");
}

/// Something that a host waits for, and what its STATUS= says of it.
struct Wait {
    name: &'static str,
    says: &'static str,
    flag: &'static str,
    prepare: fn(&Lab, &Host) -> Option<Etcd>,
}

const NO_FLAG: &str = "-v=1";

fn with_config(lab: &Lab, config: &str) -> Option<Etcd> {
    let etcd = lab.etcd();
    etcd.put(&format!("{PREFIX}/config"), config);
    Some(etcd)
}

const WAITS: &[Wait] = &[
    Wait { name: "refused", says: "connection refused", flag: NO_FLAG, prepare: |_, _| None },
    Wait {
        name: "blackhole",
        says: "waiting for etcd",
        flag: NO_FLAG,
        prepare: |lab, host| {
            swallow_packets_to_etcd(host);
            Some(lab.etcd_with_config())
        },
    },
    Wait {
        name: "silent",
        says: "waiting for etcd",
        flag: NO_FLAG,
        prepare: |lab, _| {
            let etcd = lab.etcd_with_config();
            etcd.pause();
            Some(etcd)
        },
    },
    // Its name servers do not answer, or not soon.
    Wait {
        name: "name",
        says: "waiting for etcd",
        flag: "--etcd-endpoints=http://etcd.flanneld.invalid:2379",
        prepare: |_, _| None,
    },
    Wait { name: "nokey", says: "there is no key", flag: NO_FLAG, prepare: |lab, _| Some(lab.etcd()) },
    Wait { name: "wrong", says: "Network is missing", flag: NO_FLAG, prepare: |lab, _| with_config(lab, "{}") },
    Wait {
        name: "nonic",
        says: "--iface=eth9 is not there",
        flag: "--iface=eth9",
        prepare: |lab, _| Some(lab.etcd_with_config()),
    },
    Wait {
        name: "full",
        says: "out of subnets",
        flag: NO_FLAG,
        prepare: |lab, _| {
            let etcd = with_config(lab, r#"{"Network":"172.30.0.0/28","Backend":{"Type":"vxlan"}}"#)?;
            for last in [4, 8, 12] {
                etcd.put(&format!("{PREFIX}/subnets/172.30.0.{last}-30"), "{}");
            }
            Some(etcd)
        },
    },
    Wait {
        name: "device",
        says: "fails",
        flag: NO_FLAG,
        prepare: |lab, host| {
            host.ip("link add stolen type vxlan id 1 dev eth0 dstport 8472 local 172.31.0.1");
            Some(lab.etcd_with_config())
        },
    },
];

#[test]
fn whatever_it_waits_for_sigterm_ends_it_at_once() {
    for Wait { name, says, flag, prepare } in WAITS {
        let lab = Lab::new(name);
        let mut host = lab.host(1);
        let _etcd = prepare(&lab, &host);
        // At once, in the midst of a call, and when it has said what it waits for.
        for patience in [Duration::from_millis(20), Duration::from_millis(700)] {
            host.start_with(FLANNELD, &flags(&host, flag));
            sleep(patience);
            ends_at_once(&mut host, name);
        }
        host.start_with(FLANNELD, &flags(&host, flag));
        eventually(&format!("{name}: STATUS= says {says:?}"), || host.status().is_some_and(|s| s.contains(says)));
        assert!(!host.ready_within(Duration::ZERO), "{name}: it does not wait");
        ends_at_once(&mut host, name);
    }
}

/// The lab's flags; `flag` takes the place of the lab's own of the same name.
fn flags(host: &Host, flag: &str) -> Vec<String> {
    let name = flag.split('=').next().unwrap_or(flag).to_owned() + "=";
    let mut flags = host.flags(&[]);
    flags.retain(|given| !given.starts_with(&name));
    flags.push(flag.to_owned());
    flags
}

fn catches_sigterm(host: &Host) -> bool {
    const SIGTERM: u32 = 15;
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid())).expect("its status");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("the signals it catches");
    u64::from_str_radix(caught.trim(), 16).expect("a mask") >> (SIGTERM - 1) & 1 == 1
}

#[track_caller]
fn ends_at_once(host: &mut Host, name: &str) {
    eventually("it is there to hear a signal", || catches_sigterm(host));
    let exit = host.stop();
    assert!(exit.code == Some(0) && exit.took < AT_ONCE, "{name}: {exit:?}");
}

#[test]
fn signals_that_ask_for_no_end_leave_the_daemon_running() {
    let lab = Lab::new("signals");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.join();
    for (signal, says) in [
        (Signal::SIGHUP, "SIGHUP: certificates and passwords are read again"),
        (Signal::SIGUSR1, "SIGUSR1 is ignored"),
        (Signal::SIGUSR2, "SIGUSR2 is ignored"),
        (Signal::SIGQUIT, "SIGQUIT is ignored"),
    ] {
        kill(Pid::from_raw(host.pid()), signal).expect("the daemon runs");
        eventually(says, || host.log().contains(says));
    }
    etcd.put_leases(&[Lease::guest(200)]);
    host.follows(&etcd);
    assert_eq!(host.stop().code, Some(0));
}

#[test]
fn without_an_answer_from_etcd_a_joined_host_still_ends_at_once() {
    let lab = Lab::new("cutoff");
    let _etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    host.start(&["--subnet-lease-ttl=3s"]);
    host.wait_ready();
    swallow_packets_to_etcd(&host);
    eventually("STATUS= says that the lease is not renewed", || {
        host.status().is_some_and(|status| status.contains("cannot be renewed"))
    });
    ends_at_once(&mut host, "cutoff");
}

#[test]
fn while_it_waits_it_asks_for_time_and_once_ready_it_shows_that_it_is_alive() {
    let lab = Lab::new("patience");
    let etcd = lab.etcd();
    let mut host = lab.host(1);
    host.start(&[]);
    let asked = |host: &Host| -> Vec<(Instant, Duration)> {
        let micros = |text: &str| text.strip_prefix("EXTEND_TIMEOUT_USEC=").and_then(|micros| micros.parse().ok());
        let heard = host.notified();
        heard.iter().filter_map(|n| Some((n.at, Duration::from_micros(micros(&n.text)?)))).collect()
    };
    let alive = |host: &Host| host.notified().iter().filter(|n| n.text == "WATCHDOG=1").count();
    eventually("it asks for time again and again", || asked(&host).len() >= 3);
    for pair in asked(&host).windows(2) {
        let ((earlier, extended), (later, _)) = (pair[0], pair[1]);
        assert!(later - earlier < extended, "systemd would have killed it: {pair:?}");
    }
    assert_eq!(alive(&host), 0, "the loop does not turn yet");
    etcd.put(&format!("{PREFIX}/config"), CONFIG);
    host.wait_ready();
    let before = alive(&host);
    eventually("it says that it is alive", || alive(&host) > before + 1);
    assert!(host.stop_heard("STOPPING=1"));
}
