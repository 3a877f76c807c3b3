//! Older kernels refuse options of netlink sockets that newer ones have. strace refuses them here, so that the kernel
//! really does without.

use crate::lab::{FLANNELD, Lab, Lease, State};

/// The strict check, two kinds of acknowledgements, the receive buffer by force and without: the first options that are
/// set on the socket for changes. After them the buffer of the listener, by force and without.
const ALL_OPTIONS: u32 = 7;

/// Entries like ours that are none of ours: a filter that the kernel ignores lets them through.
const NEIGHBOURHOOD: &str = "
    ip link add other.9 address 0e:00:00:00:09:09 type vxlan id 9 dstport 9999 local $IP dev eth0
    ip link set other.9 addrgenmode none
    ip addr add 172.30.222.1/32 dev other.9
    ip link set other.9 up
    ip neigh add 172.30.200.0 lladdr 0e:00:00:00:00:ee dev other.9 nud permanent
    bridge fdb add 0e:00:00:00:00:c8 dev other.9 dst 172.31.0.77 self permanent
    bridge fdb add 0e:00:00:00:00:ee dev other.9 dst 172.31.0.77 self permanent
    ip route add 172.30.200.0/24 via 172.31.0.254 table 99
    ip route add 172.30.201.0/24 dev other.9 table 99";

/// Deletes one entry of each kind, then all of them.
const DAMAGE: &str = "
    ip route del 172.30.200.0/24 dev flannel.1
    ip neigh del 172.30.201.0 dev flannel.1
    bridge fdb del 0e:00:00:00:00:c9 dev flannel.1 dst 172.31.0.201 self
    ip route add 172.30.209.0/24 via 172.30.209.0 dev flannel.1 onlink
    ip link set flannel.1 down";

/// Joins, is damaged and restarts while the first `options` options fail so; nothing of others is ever touched.
fn does_without(errno: &str, options: u32) {
    let lab = Lab::new("old");
    let etcd = lab.etcd_with_config();
    let mut host = lab.host(1);
    (200..206).for_each(|n| etcd.put_lease(&Lease::guest(n)));
    host.sh(&NEIGHBOURHOOD.replace("$IP", &host.public_ip()));
    let others = |host: &crate::lab::Host| {
        host.sh("ip -4 addr show dev other.9; ip -4 neigh show dev other.9; bridge fdb show dev other.9 | sort; ip route show table 99")
    };
    let before = others(&host);
    let inject = format!("inject=setsockopt:error={errno}:when=1..{options}");
    let trace = host.path("strace").display().to_string();
    // -D: the daemon is the child that is stopped, and strace only looks on.
    let words = ["-D", "-f", "-qq", "-e", "trace=setsockopt", "-e", &inject, "-o", &trace, FLANNELD];
    let words: Vec<String> = words.iter().map(|word| word.to_string()).chain(host.flags(&[])).collect();

    host.start_with("strace", &words);
    host.wait_ready();
    host.follows(&etcd);
    host.sh(DAMAGE);
    host.follows(&etcd);
    let state: State = host.state();
    host.stop();
    let mark = host.log().len();
    host.start_with("strace", &words);
    host.wait_ready();
    host.follows(&etcd);
    let log = host.log_since(mark);
    assert!(!log.contains("why="), "something was changed: {log}");
    host.returns_to(&state);
    assert_eq!(others(&host), before);
    let refused = std::fs::read_to_string(&trace).expect("strace's log").matches("(INJECTED)").count();
    assert!(refused >= options as usize, "{refused} options were refused");
}

#[test]
fn options_that_an_older_kernel_does_not_know_are_done_without() {
    does_without("ENOPROTOOPT", ALL_OPTIONS);
}

#[test]
fn options_that_the_kernel_does_not_support_or_allow_are_done_without() {
    does_without("EOPNOTSUPP", ALL_OPTIONS);
    does_without("EPERM", ALL_OPTIONS);
}
