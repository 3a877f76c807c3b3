//! The life of flanneld.service, as an administrator watches it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::lab::{CONFIG, Etcd, Host, Lab, Lease, PREFIX, Tables};
use crate::machine::{Machine, in_time};
use crate::site::{self, SUBNET_ENV, pid_of, status, subnet_env};

/// Part of the unit for a while, so that nobody waits for minutes.
const SHORT: &str = "flanneld.service.d/short.conf";

struct Site {
    machine: Machine,
    host: Host,
    etcd: Etcd,
    _lab: Lab,
}

impl Site {
    /// A host that boots with flanneld, and an etcd without a network config.
    fn new() -> Site {
        let lab = Lab::new("life");
        let etcd = lab.etcd();
        let host = lab.host(1);
        let machine = Machine::boot(&host, |root| {
            site::install(root);
            root.unit(SHORT, "[Service]\nTimeoutStartSec=8\n");
            root.enable(&["flanneld"]);
        });
        Site { machine, host, etcd, _lab: lab }
    }

    fn show(&self, property: &str) -> String {
        self.machine.show("flanneld", property)
    }

    #[track_caller]
    fn is_active(&self) {
        self.machine.eventually_shows("flanneld", "ActiveState", "active");
    }

    #[track_caller]
    fn says(&self, text: &str) {
        in_time(&format!("systemctl status says {text}"), || status(&self.machine).contains(text));
    }

    /// The process has another id than this one, and is ready.
    #[track_caller]
    fn comes_again(&self, pid: &str) {
        in_time("it is started again", || {
            let now = pid_of(&self.machine, "flanneld");
            now != "0" && now != pid && self.show("ActiveState") == "active"
        });
    }

    /// All the network of the host, and the files.
    fn footprint(&self) -> (Tables, Option<String>, Option<String>) {
        let live = self.machine.live();
        (self.host.tables(), live.read(SUBNET_ENV), live.read("/run/flannel/docker_opts.env"))
    }

    fn it_waits_beyond_the_start_timeout(&self) {
        self.says("there is no key");
        sleep(Duration::from_secs(14));
        let said = status(&self.machine);
        assert!(
            said.contains("Active: activating (start)")
                && said.contains("Status: \"waiting for the network config: there is no key"),
            "{said}"
        );
        assert_eq!(self.show("NRestarts"), "0");
        self.machine.root().unit(SHORT, "");
        self.machine.systemctl(&["daemon-reload"]);
        self.etcd.put(&format!("{PREFIX}/config"), CONFIG);
        self.is_active();
        self.machine.wait_running();
        self.says(&format!("Status: \"subnet {}, 0 peers\"", self.etcd.lease_of_host(&self.host).subnet));
    }

    /// Nothing of the network goes when it is killed, stopped and restarted.
    fn traffic_never_depends_on_it(&self) {
        self.etcd.put_lease(&Lease::guest(207));
        self.says("1 peer");
        let (before, lease, pid) =
            (self.footprint(), self.etcd.lease_of_host(&self.host), pid_of(&self.machine, "flanneld"));
        let monitor = self.host.monitor();
        self.machine.systemctl(&["kill", "-s", "KILL", "flanneld"]);
        self.comes_again(&pid);
        assert_eq!((self.show("NRestarts"), &self.footprint()), ("1".into(), &before));
        self.machine.systemctl(&["stop", "flanneld"]);
        assert_eq!((self.show("ActiveState"), self.show("Result")), ("inactive".into(), "success".into()));
        assert_eq!(self.footprint(), before);
        // It does not depend on the link at the usual place.
        self.machine.sh("rm /run/docker_opts.env /run/flannel/docker_opts.env");
        // More often than systemd would allow by itself.
        (0..8).for_each(|_| drop(self.machine.systemctl(&["restart", "flanneld"])));
        assert_eq!((&self.footprint(), monitor.about("flannel.1")), (&before, vec![]));
        assert_eq!(self.etcd.lease_of_host(&self.host), lease);
    }

    fn a_lease_that_is_lost_is_told_and_no_reason_to_end(&self) {
        let (lease, pid) = (self.etcd.lease_of_host(&self.host), pid_of(&self.machine, "flanneld"));
        self.etcd.del(&lease.key());
        in_time("it registers again", || self.etcd.get(&lease.key()).is_some());
        let other = Lease { subnet: lease.subnet.clone(), ..Lease::guest(209) };
        self.etcd.put_lease(&other);
        self.says(&other.public_ip);
        assert_eq!((self.show("ActiveState"), pid_of(&self.machine, "flanneld")), ("active".into(), pid));
        self.etcd.del(&lease.key());
        in_time("it registers again", || self.etcd.leases().contains(&lease));
        self.says(&format!("Status: \"subnet {}", lease.subnet));
    }

    fn a_loop_that_is_stuck_is_killed_by_the_watchdog(&self) {
        self.machine.root().unit(SHORT, "[Service]\nWatchdogSec=12\n");
        self.machine.systemctl(&["daemon-reload"]);
        self.machine.systemctl(&["restart", "flanneld"]);
        let pid = pid_of(&self.machine, "flanneld");
        self.machine.sh(&format!("kill -STOP {pid}"));
        let stuck = Instant::now();
        in_time("the watchdog bites", || self.machine.journal("flanneld").contains("Watchdog timeout"));
        println!("the watchdog came after {:?}", stuck.elapsed());
        self.comes_again(&pid);
        self.machine.root().unit(SHORT, "");
        self.machine.systemctl(&["daemon-reload"]);
    }

    /// What only an administrator can mend: named, tried again in peace, and never for the last time.
    fn a_wrong_flag_is_named_and_tried_again_in_peace(&self) {
        site::configure(&self.machine.root(), "FLANNEL_OPTIONS=--bogus");
        let (before, start) = (self.show("NRestarts").parse::<u64>().expect("a number"), Instant::now());
        assert!(self.machine.run(&["systemctl", "restart", "flanneld"]).is_err());
        assert!(self.machine.journal("flanneld").contains("unknown flag --bogus"));
        let starts = || self.show("NRestarts").parse::<u64>().expect("a number").saturating_sub(before);
        sleep(Duration::from_secs(6));
        in_time("it is tried again", || starts() >= 1);
        assert!(starts() <= 1 + start.elapsed().as_secs() / 4, "{} starts in {:?}", starts(), start.elapsed());
        site::configure(&self.machine.root(), "");
        self.is_active();
    }

    fn a_reboot_keeps_what_must_be_kept(&mut self) {
        let (lease, env) = (self.etcd.lease_of_host(&self.host), self.machine.live().read(SUBNET_ENV));
        self.machine.power_off();
        assert_eq!(self.etcd.lease_of_host(&self.host), lease, "the lease stays");
        // A new kernel.
        self.host.ip("link del flannel.1");
        self.machine.power_on();
        self.is_active();
        assert_eq!((self.etcd.lease_of_host(&self.host), self.machine.live().read(SUBNET_ENV)), (lease, env));
        assert_eq!(self.host.tables(), Tables::to(&self.etcd.peers_of(&self.host)));
        assert!(self.machine.sh("cat /run/docker_opts.env").contains(&subnet_env(&self.machine, "FLANNEL_SUBNET")));
    }
}

#[test]
fn the_service_waits_lives_and_comes_again_as_an_administrator_expects() {
    let mut site = Site::new();
    site.it_waits_beyond_the_start_timeout();
    site.traffic_never_depends_on_it();
    site.a_lease_that_is_lost_is_told_and_no_reason_to_end();
    site.a_loop_that_is_stuck_is_killed_by_the_watchdog();
    site.a_wrong_flag_is_named_and_tried_again_in_peace();
    site.a_reboot_keeps_what_must_be_kept();
}
