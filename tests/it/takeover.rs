//! A daemon takes over from another one, of whatever build: nothing is torn down, and what is right is not touched.

use std::collections::BTreeSet;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use crate::lab::{
    Container, DEVICE, Device, Etcd, FLANNELD, Host, Lab, Lease, NETWORK, Tables, containers_on, eventually_eq, program,
};

const DAY: u32 = 24 * 60 * 60;

/// Starts a daemon under strace until it is ready and follows its peers, ends it with SIGTERM, and gives the kinds of
/// netlink requests that it sent.
fn requests(host: &mut Host, etcd: &Etcd, binary: &str) -> BTreeSet<String> {
    let path = host.path("trace");
    let _ = fs::remove_file(&path);
    let trace = path.display().to_string();
    // -D: the daemon is the child that is stopped, and strace only looks on.
    let strace = ["-D", "-f", "-v", "-qq", "-e", "trace=sendto,sendmsg,write", "-o", &trace, binary];
    host.start_with("strace", &strace.iter().map(|word| word.to_string()).chain(host.flags(&[])).collect::<Vec<_>>());
    host.wait_ready();
    host.follows(etcd);
    host.stop();
    let text = fs::read_to_string(&path).expect("the trace");
    let kinds = text.split("nlmsg_type=").skip(1).map(|rest| rest.split([',', '}']).next().unwrap().to_owned());
    kinds.collect()
}

/// Whether a request changes nothing. 0xa10 is `NFT_MSG_GETGEN`, which strace does not name everywhere.
fn only_asks(kind: &str) -> bool {
    kind.starts_with("RTM_GET") || kind.contains("_GET") || kind.starts_with("0xa10 ")
}

#[test]
fn a_restart_that_finds_all_well_changes_nothing_and_loses_no_packet() {
    let lab = Lab::new("silent");
    let etcd = lab.etcd_with_config();
    etcd.put_leases(&(200..240).map(Lease::guest).collect::<Vec<_>>());
    let mut hosts = lab.joined(2);
    let containers = containers_on(&mut hosts);
    hosts.iter().for_each(|host| host.follows(&etcd));
    let copy = hosts[0].path("another-build");
    program::install(FLANNELD.as_ref(), &copy);
    let (state, lease, env) = (hosts[0].state(), etcd.lease_of_host(&hosts[0]), hosts[0].file("subnet.env"));

    let monitor = hosts[0].monitor();
    let pinging = containers[0].ping_background(containers[1].address());
    hosts[0].stop();
    let silent = requests(&mut hosts[0], &etcd, FLANNELD);
    assert!(silent.contains("RTM_GETROUTE"), "{silent:?}");
    assert!(silent.iter().all(|kind| only_asks(kind)), "{silent:?}");
    hosts[0].join();
    hosts[0].kill9();
    let silent = requests(&mut hosts[0], &etcd, copy.to_str().expect("a path"));
    assert!(silent.iter().all(|kind| only_asks(kind)), "{silent:?}");
    hosts[0].join();
    assert!(pinging.stop().lost_nothing());
    assert_eq!(monitor.about(DEVICE), [""; 0]);
    assert_eq!(hosts[0].state(), state);
    assert_eq!((etcd.lease_of_host(&hosts[0]), hosts[0].file("subnet.env")), (lease, env));

    // The proof that a change would have been seen.
    hosts[0].stop();
    hosts[0].sh("ip route flush dev flannel.1");
    let busy = requests(&mut hosts[0], &etcd, FLANNELD);
    assert!(busy.contains("RTM_NEWROUTE"), "{busy:?}");
    hosts[0].sh("iptables -F FLANNEL-FWD");
    let busy = requests(&mut hosts[0], &etcd, FLANNELD);
    assert!(!busy.iter().all(|kind| only_asks(kind)), "{busy:?}");
    assert!(!monitor.deleted(DEVICE).is_empty());
}

/// What another daemon left on a host, with containers behind it, and a second host that runs ours.
struct Legacy {
    lease: Lease,
    etcd: Etcd,
    hosts: Vec<Host>,
    containers: Vec<Container>,
    before: Option<Device>,
    _lab: Lab,
}

impl Legacy {
    /// `script` builds the device (it knows MAC), `for_peer` an entry for a peer (it knows PEER, GW, MAC, DST). `value` is
    /// the own lease in etcd.
    fn build(name: &str, script: &str, for_peer: &str, value: fn(&Lease) -> String) -> Legacy {
        let lab = Lab::new(name);
        let etcd = lab.etcd_with_config();
        let lease =
            Lease { subnet: "172.30.46.0/24".into(), public_ip: "172.31.0.1".into(), mac: "c6:d2:32:6f:8f:44".into() };
        etcd.put_with_ttl(&lease.key(), &value(&lease), DAY);
        etcd.put_leases(&[Lease::guest(200), Lease::guest(201)]);
        let mut hosts = lab.hosts(2);
        hosts[1].join();
        hosts[0].sh(&format!("MAC={}\n{script}", lease.mac));
        let gone = Lease::guest(240);
        for peer in etcd.peers_of(&hosts[0]).iter().chain([&gone]) {
            let (subnet, gw, mac, dst) = (&peer.subnet, peer.gateway(), &peer.mac, &peer.public_ip);
            hosts[0].sh(&format!("PEER={subnet}; GW={gw}; MAC={mac}; DST={dst}\n{for_peer}"));
        }
        let env = format!(
            "FLANNEL_NETWORK={NETWORK}\nFLANNEL_SUBNET=172.30.46.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
        );
        fs::write(hosts[0].path("subnet.env"), env).expect("subnet.env");
        let containers = containers_on(&mut hosts);
        containers[0].ping(containers[1].address(), 1).unwrap();
        let before = hosts[0].device(DEVICE);
        Legacy { lease, etcd, hosts, containers, before, _lab: lab }
    }

    /// Ours starts while packets flow; gives what was reported as deleted.
    fn taken_over(&mut self) -> Vec<String> {
        let monitor = self.hosts[0].monitor();
        // Often enough to miss none of the moments between two steps.
        let pinging = self.containers[0].ping_every("0.002", self.containers[1].address());
        let back = self.containers[1].ping_every("0.002", self.containers[0].address());
        sleep(Duration::from_millis(200));
        self.hosts[0].join();
        // The kernel drops what it resolved for itself in its own time.
        let permanent = || {
            let mut tables = self.hosts[0].tables();
            tables.neighbors.retain(|neighbor| neighbor.state == "PERMANENT");
            tables
        };
        eventually_eq("exactly the peers are there", &Tables::to(&self.etcd.peers_of(&self.hosts[0])), permanent);
        sleep(Duration::from_millis(200));
        assert!(pinging.stop().lost_nothing());
        assert!(back.stop().lost_nothing());
        let device = |device: &Option<Device>| device.as_ref().map(|device| (device.ifindex, device.mac.clone()));
        let after = self.hosts[0].device(DEVICE);
        assert_eq!(device(&after), device(&self.before), "the same device");
        assert_eq!(after.map(|device| device.addresses), Some(vec!["172.30.46.0/32".to_owned()]));
        assert_eq!(self.etcd.get(&self.lease.key()), Some(self.lease.value()));
        assert_eq!(self.hosts[0].subnet(), self.lease.subnet);
        monitor.deleted(DEVICE)
    }
}

#[test]
fn what_a_go_flanneld_left_is_adopted() {
    let mut legacy = Legacy::build(
        "go",
        "ip link add flannel.1 address $MAC mtu 1450 txqueuelen 0 type vxlan id 1 local 172.31.0.1 dev eth0 dstport 8472 \
            nolearning ttl auto ageing 300 udpcsum
         ip addr add 172.30.46.0/32 dev flannel.1
         ip link set flannel.1 up",
        "ip neigh replace $GW lladdr $MAC dev flannel.1 nud permanent
         bridge fdb replace $MAC dev flannel.1 dst $DST self permanent
         ip route replace $PEER via $GW dev flannel.1 onlink",
        Lease::value,
    );
    let routes = legacy.hosts[0].sh("ip route show dev flannel.1 proto boot");
    let deleted = legacy.taken_over();
    // Of each table the entry of the peer that is gone, and nothing else.
    let gone = Lease::guest(240);
    assert_eq!(deleted.len(), 3, "{deleted:#?}");
    let stale = |line: &String| line.contains(gone.gateway()) || line.contains(&gone.mac);
    assert!(deleted.iter().all(stale), "{deleted:#?}");
    let left = legacy.hosts[0].sh("ip route show dev flannel.1 proto boot");
    assert_eq!(left.lines().count() + 1, routes.lines().count(), "routes were written anew: {left}");
}

#[test]
fn what_flannel_0_7_left_is_adopted() {
    let mut legacy = Legacy::build(
        "old",
        "ip link add flannel.1 address $MAC mtu 1450 type vxlan id 1 local 172.31.0.1 dev eth0 dstport 8472 nolearning
         ip addr add 172.30.46.0/16 dev flannel.1
         ip link set flannel.1 up
         echo 3 >/proc/sys/net/ipv4/neigh/flannel.1/app_solicit",
        // One ARP entry for each container that was talked to, as a miss made it.
        "bridge fdb replace $MAC dev flannel.1 dst $DST self permanent
         ip neigh replace ${GW%0}2 lladdr $MAC dev flannel.1 nud reachable
         ip neigh replace ${GW%0}3 lladdr $MAC dev flannel.1 nud stale",
        |lease| {
            let Lease { public_ip, mac, .. } = lease;
            format!(r#"{{"PublicIP":"{public_ip}","BackendType":"vxlan","BackendData":{{"VtepMAC":"{mac}"}}}}"#)
        },
    );
    let deleted = legacy.taken_over();
    assert_eq!(legacy.hosts[0].sh("ip route show 172.30.0.0/16"), "", "the wide connected route");
    let of_a_peer = |line: &String| legacy.etcd.peers_of(&legacy.hosts[0]).iter().any(|peer| line.contains(&peer.mac));
    assert!(!deleted.iter().any(of_a_peer), "{deleted:#?}");
}
