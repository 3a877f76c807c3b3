//! A field for damage: two hosts with a container each, a few guests as peers, and strangers who are not to be touched.

use std::time::Instant;

use crate::lab::{Container, Etcd, Host, Lab, Lease, State, containers_on, eventually, patience, wait_until};

/// What other software has on the host: routes into the overlay's network too, for what is no peer's.
const STRANGERS: &str = "
    ip link add other0 type veth peer name other1
    ip addr add 10.99.0.1/24 dev other0
    ip link set other0 up; ip link set other1 up
    ip route add 10.98.0.0/16 via 10.99.0.2
    ip route add 172.30.250.0/24 via 10.99.0.2
    ip route add 172.30.251.0/24 dev other0 metric 5
    ip route add 172.30.252.0/24 via 10.99.0.2 proto 120
    ip route add blackhole 172.30.253.0/24
    ip route add 172.30.200.0/24 via 10.99.0.2 metric 50
    ip route add 172.30.200.0/24 via 10.99.0.2 table 100
    ip neigh add 10.99.0.2 lladdr 02:00:00:00:99:02 dev other0 nud permanent
    ip rule add from 172.30.0.0/16 lookup 100 pref 1000";

pub struct Field {
    pub etcd: Etcd,
    /// The damage is done to the first; the second is its peer.
    pub hosts: Vec<Host>,
    pub containers: Vec<Container>,
    /// The first host when all was well.
    pub before: State,
    /// Shell variables for scripts.
    variables: String,
    _lab: Lab,
}

impl Field {
    /// The peers are the second host and guests 200 to 203.
    pub fn new(name: &str) -> Field {
        let lab = Lab::new(name);
        let etcd = lab.etcd_with_config();
        etcd.put_leases(&(200..204).map(Lease::guest).collect::<Vec<_>>());
        // All repairs are logged, not only as many as the budget of the log allows.
        let mut hosts = lab.hosts(2);
        hosts.iter_mut().for_each(|host| host.start(&["-v=1"]));
        hosts.iter().for_each(Host::wait_ready);
        let containers = containers_on(&mut hosts);
        hosts[0].sh(STRANGERS);
        hosts.iter().for_each(|host| host.follows(&etcd));
        let (own, peer) = (etcd.lease_of_host(&hosts[0]), etcd.lease_of_host(&hosts[1]));
        let variables = format!(
            "OWN={}; OWN_MAC={}; PEER={}; GW={}; MAC={}; DST={};\n",
            own.gateway(),
            own.mac,
            peer.subnet,
            peer.gateway(),
            peer.mac,
            peer.public_ip
        );
        let field = Field { before: hosts[0].state(), etcd, hosts, containers, variables, _lab: lab };
        field.containers_reach_each_other();
        field
    }

    /// Runs a script on the first host. It knows OWN and OWN_MAC, and of the second host PEER, GW, MAC and DST.
    #[track_caller]
    pub fn damage(&self, script: &str) {
        self.hosts[0].sh(&format!("{}{script}", self.variables));
    }

    /// The same, where the script may fail, for instance because what it breaks is broken already.
    pub fn try_damage(&self, script: &str) -> bool {
        self.hosts[0].run(&["sh", "-c", &format!("{}{script}", self.variables)]).is_ok()
    }

    /// Does damage and waits until all is as before: every table, every route of anybody, the pings. The log must then
    /// hold `count` repairs, each a line with a reason and a time, of which at least one is `repair`.
    ///
    /// A repair takes less time than `ip` needs to start, so damage of several commands is done while the daemon stands
    /// still; so is flushing, which goes on until nothing is left.
    #[track_caller]
    pub fn heals(&self, script: &str, repair: &str, count: usize) {
        let host = &self.hosts[0];
        let mark = host.log().len();
        if script.contains([';', '\n']) || script.contains("flush") {
            host.freeze();
            self.damage(script);
            host.thaw();
        } else {
            self.damage(script);
        }
        let start = Instant::now();
        host.returns_to(&self.before);
        println!("{:>9.1?} {script}", start.elapsed());
        let repairs = || -> Vec<String> {
            let log = host.log_since(mark);
            log.lines().filter(|line| line.contains(" repaired: ")).map(str::to_owned).collect()
        };
        wait_until(patience() / 2, || repairs().len() >= count);
        let repairs = repairs();
        assert_eq!(repairs.len(), count, "{script}: {repairs:#?}");
        assert!(repairs.iter().any(|line| line.contains(repair)), "{script}: no {repair:?} in {repairs:#?}");
        assert!(repairs.iter().all(|line| line.contains("why=") && line.contains("took=")), "{repairs:#?}");
        self.containers_reach_each_other();
    }

    pub fn containers_reach_each_other(&self) {
        let (one, other) = (&self.containers[0], &self.containers[1]);
        one.ping(other.address(), 1).unwrap();
        other.ping(one.address(), 1).unwrap();
    }

    /// All is as before, the daemons have nothing to complain of, and nothing of this was noticed elsewhere.
    pub fn is_well(&self) {
        self.hosts[0].returns_to(&self.before);
        for host in &self.hosts {
            host.follows(&self.etcd);
            let subnet = format!("subnet {}, 5 peers", host.subnet());
            eventually("STATUS= names no trouble", || host.status().as_deref() == Some(&subnet));
        }
        self.containers_reach_each_other();
    }
}
