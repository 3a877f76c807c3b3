//! An etcd of three members, of which any may fail in any way: the daemon finds another one, and traffic never notices.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::lab::{Cluster, DEVICE, Etcd, Host, Lab, Lease, Tables, containers_on, eventually, wait_until};

/// Leases short enough to be renewed, and so to end, within these tests.
const TTL: &str = "--subnet-lease-ttl=30s";

/// How long an event may take to arrive when the member in use has failed. Aimed at: 15 s.
const LIMIT: Duration = Duration::from_secs(30);

fn start(host: &mut Host, cluster: &Cluster, extra: &[&str]) {
    host.start(&[&[cluster.flag().as_str()], extra].concat());
}

fn joined(lab: &Lab, cluster: &Cluster, count: u8) -> Vec<Host> {
    let mut hosts = lab.hosts(count);
    hosts.iter_mut().for_each(|host| start(host, cluster, &[TTL]));
    hosts.iter().for_each(Host::wait_ready);
    hosts.iter().for_each(|host| host.follows(&cluster[0]));
    hosts
}

/// Lets the member that the hosts use, which leads the others, fail in some way, and tells of a new peer at another.
fn fails_over(name: &str, fail: fn(&mut Cluster, usize), mend: fn(&mut Cluster, usize)) {
    let lab = Lab::new(name);
    let mut cluster = lab.etcd_cluster();
    let mut hosts = joined(&lab, &cluster, 2);
    let containers = containers_on(&mut hosts);
    let (from, to) = (&containers[0], containers[1].address());
    from.ping(to, 1).unwrap();
    let pinging = from.ping_background(to);

    let active = cluster.followed_by(&hosts[0]);
    cluster.lead(active);
    let began = Instant::now();
    fail(&mut cluster, active);
    let other = (active + 1) % 3;
    cluster[other].put_lease_patiently(&Lease::guest(201));
    let put = began.elapsed();
    for host in &hosts {
        let wanted = Tables::to(&cluster[other].peers_of(host));
        assert!(wait_until(LIMIT, || host.tables() == wanted), "not within {LIMIT:?}: {:?}", host.tables());
    }
    println!(
        "{name}: put at another member after {put:.1?}, in both kernels {:.1?} after the failure",
        began.elapsed()
    );

    mend(&mut cluster, active);
    cluster[other].put_lease(&Lease::guest(202));
    hosts.iter().for_each(|host| host.follows(&cluster[other]));
    assert!(pinging.stop().lost_nothing());
    assert!(hosts.iter_mut().all(Host::running));
}

#[test]
fn a_member_that_dies_is_left_for_another() {
    fails_over("dies", |cluster, active| cluster[active].kill(), |cluster, active| cluster[active].start());
}

#[test]
fn a_member_that_hangs_is_left_for_another() {
    fails_over("hangs", |cluster, active| cluster[active].pause(), |cluster, active| cluster[active].resume());
}

#[test]
fn a_member_that_falls_silent_is_left_for_another() {
    fails_over("silent", |cluster, active| cluster.cut_off(active), |cluster, active| cluster.connect(active));
}

#[test]
fn a_new_leader_and_members_that_restart_or_are_replaced_lose_no_event_and_repeat_none() {
    let lab = Lab::new("rejoin");
    let mut cluster = lab.etcd_cluster();
    let host = joined(&lab, &cluster, 1).remove(0);
    let monitor = host.monitor();
    let mut events = Events { next: 130, present: Vec::new(), sent: 0 };

    for leader in [0, 1, 2] {
        cluster.lead(leader);
        events.send(&cluster[leader]);
    }
    let active = cluster.followed_by(&host);
    cluster[active].kill();
    events.send(&cluster[(active + 1) % 3]);
    cluster[active].start();
    events.send(&cluster[active]);
    let active = cluster.followed_by(&host);
    cluster[active].kill();
    cluster.replace(active);
    events.send(&cluster[active]);
    host.follows(&cluster[active]);

    // A neighbour that goes is reported as failed first.
    let is_change = |line: &String| line.starts_with("Deleted") || !line.contains("FAILED");
    let said: Vec<String> = monitor.about(DEVICE).into_iter().filter(is_change).collect();
    assert_eq!(said.len(), 3 * events.sent, "a route, a neighbour and an FDB entry an event, and no more: {said:#?}");
}

/// Peers that come and go.
struct Events {
    next: u8,
    present: Vec<Lease>,
    sent: usize,
}

impl Events {
    /// Five peers come, and two of those that there are go.
    fn send(&mut self, etcd: &Etcd) {
        for n in self.next..self.next + 5 {
            etcd.put_lease_patiently(&Lease::guest(n));
            self.present.push(Lease::guest(n));
        }
        for lease in self.present.drain(..2) {
            etcd.del(&lease.key());
        }
        (self.next, self.sent) = (self.next + 5, self.sent + 7);
    }
}

/// Leaves the hosts without etcd for a while, in some way.
fn sits_out(name: &str, fail: fn(&mut Cluster), mend: fn(&mut Cluster)) {
    let lab = Lab::new(name);
    let mut cluster = lab.etcd_cluster();
    let mut hosts = joined(&lab, &cluster, 2);
    let containers = containers_on(&mut hosts);
    let (from, to) = (&containers[0], containers[1].address());
    from.ping(to, 1).unwrap();
    let pinging = from.ping_background(to);
    let marks: Vec<usize> = hosts.iter().map(|host| host.log().len()).collect();

    fail(&mut cluster);
    sleep(OUTAGE);
    for (host, mark) in hosts.iter_mut().zip(marks) {
        let log = host.log_since(mark);
        println!("{name}: {} lines", log.lines().count());
        assert!(log.lines().count() <= MOST_LINES, "{log}");
        assert!(host.running());
    }

    mend(&mut cluster);
    let guest = Lease::guest(203);
    cluster[1].put_lease_patiently(&guest);
    hosts.iter().for_each(|host| host.follows(&cluster[1]));
    for host in &hosts {
        let own = cluster[1].lease_of_host(host);
        let id = || cluster[1].lease_of(&own.key()).expect("an etcd lease");
        eventually("the lease is renewed", || cluster[1].ttl(id()) > 20);
    }
    assert!(pinging.stop().lost_nothing());
}

/// How long etcd is away; each host tries some thirty times meanwhile.
const OUTAGE: Duration = Duration::from_secs(20);

/// How much a host may say of an outage, however often it tries.
const MOST_LINES: usize = 8;

#[test]
fn without_a_quorum_traffic_flows_and_little_is_said() {
    let fail = |cluster: &mut Cluster| [0, 2].into_iter().for_each(|index| cluster[index].kill());
    sits_out("quorum", fail, |cluster| cluster[0].start());
}

#[test]
fn with_all_members_off_the_network_traffic_flows_and_little_is_said() {
    let fail = |cluster: &mut Cluster| (0..3).for_each(|index| cluster.unplug(index));
    sits_out("unplugged", fail, |cluster| (0..3).for_each(|index| cluster.plug_in(index)));
}

#[test]
fn with_all_members_silent_traffic_flows_and_little_is_said() {
    let fail = |cluster: &mut Cluster| (0..3).for_each(|index| cluster[index].pause());
    sits_out("all-hang", fail, |cluster| (0..3).for_each(|index| cluster[index].resume()));
}
