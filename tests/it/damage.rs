//! Damage to the kernel's tables, and the repairs that follow.

/// A script, what the log says of a repair then, and how many repairs there are.
pub type Damage = (&'static str, &'static str, usize);

pub const ROUTES: &[Damage] = &[
    ("ip route del $PEER", "add route", 1),
    ("ip route replace $PEER via 172.31.0.254", "delete route", 2),
    ("ip route replace $PEER via 172.30.200.0 dev flannel.1 onlink", "replace route", 1),
    ("ip route replace $PEER dev flannel.1", "replace route", 1),
    ("ip route replace $PEER nexthop via 172.31.0.254 nexthop via 172.31.0.253", "delete route", 2),
    ("ip route prepend $PEER via 172.31.0.254", "delete route", 1),
    ("ip route append $PEER via 172.31.0.254", "delete route", 1),
    ("ip route prepend $PEER via 10.99.0.2 proto 120", "delete route", 1),
    ("ip route prepend $PEER via 172.30.200.0 dev flannel.1 onlink", "delete route", 1),
    ("ip route add $PEER via $GW dev flannel.1 onlink metric 7", "delete route", 1),
    ("ip route del $PEER; ip route add $PEER via $GW dev flannel.1 onlink metric 7", "add route", 2),
    ("ip route del $PEER; ip route add $PEER via 172.31.0.254", "delete route", 2),
    ("ip route add 172.30.240.0/24 via 172.30.240.0 dev flannel.1 onlink", "no accepted lease has it", 1),
    ("ip route add 172.30.240.0/20 dev flannel.1", "no accepted lease has it", 1),
    ("ip route add 192.168.5.0/24 via 192.168.5.0 dev flannel.1 onlink", "no accepted lease has it", 1),
    ("ip route replace blackhole $PEER", "delete route", 2),
    ("ip route prepend blackhole $PEER", "delete route", 1),
    ("ip route append blackhole $PEER", "delete route", 1),
    ("ip route replace unreachable $PEER", "delete route", 2),
    ("ip route prepend throw $PEER", "delete route", 1),
    ("ip route del $PEER; ip route add prohibit $PEER", "delete route", 2),
    ("ip nexthop add id 9 via 172.31.0.254 dev eth0; ip route replace $PEER nhid 9", "delete route", 2),
    ("ip route flush dev flannel.1", "add route", 5),
];

pub const NEIGHBORS: &[Damage] = &[
    ("ip neigh del $GW dev flannel.1", "set neighbour", 1),
    ("ip neigh replace $GW lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent", "set neighbour", 1),
    ("ip neigh replace $GW lladdr $MAC dev flannel.1 nud reachable", "set neighbour", 1),
    ("ip neigh replace $GW lladdr $MAC dev flannel.1 nud noarp", "set neighbour", 1),
    ("ip neigh add 172.30.240.0 lladdr 02:00:00:00:00:98 dev flannel.1 nud permanent", "no accepted lease has it", 1),
    ("ip neigh flush dev flannel.1 nud permanent", "set neighbour", 5),
];

pub const FDB: &[Damage] = &[
    ("bridge fdb del $MAC dev flannel.1 dst $DST", "set FDB entry", 1),
    ("bridge fdb replace $MAC dev flannel.1 dst 172.31.0.77 self permanent", "set FDB entry", 1),
    ("bridge fdb replace $MAC dev flannel.1 dst $DST self dynamic", "set FDB entry", 2),
    ("bridge fdb replace $MAC dev flannel.1 dst $DST port 4789 self permanent", "pointed to something else", 2),
    ("bridge fdb replace $MAC dev flannel.1 dst $DST vni 7 self permanent", "pointed to something else", 2),
    ("bridge fdb replace $MAC dev flannel.1 dst $DST via eth0 self permanent", "pointed to something else", 2),
    ("bridge fdb add 02:00:00:00:00:98 dev flannel.1 dst 172.31.0.77 self permanent", "no accepted lease has it", 1),
    ("bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 172.31.0.77 self permanent", "no accepted lease has it", 1),
    (
        "bridge fdb show dev flannel.1 | while read mac rest; do bridge fdb del $mac dev flannel.1 self; done",
        "set FDB entry",
        5,
    ),
];

pub const ADDRESSES: &[Damage] = &[
    ("ip addr del $OWN/32 dev flannel.1", "add address", 11),
    ("ip addr flush dev flannel.1", "add address", 11),
    ("ip addr add 172.30.240.1/24 dev flannel.1", "delete address", 1),
    ("ip addr add $OWN/16 dev flannel.1", "delete address", 1),
    ("ip addr del $OWN/32 dev flannel.1; ip addr add $OWN/16 dev flannel.1", "delete address", 12),
];

/// The device stays the same.
pub const PARAMETERS: &[Damage] = &[
    ("ip link set flannel.1 down", "change device", 11),
    ("ip link set flannel.1 down; ip link set flannel.1 up", "add route", 10),
    ("ip link set flannel.1 mtu 1400", "MTU 1400, not 1450", 1),
    ("ip link set flannel.1 address 02:00:00:00:00:97", "MAC 02:00:00:00:00:97, not", 6),
    ("ip link set flannel.1 type vxlan id 1 dev eth0 local 172.31.0.77", "local 172.31.0.77, not 172.31.0.1", 1),
    ("ip link set flannel.1 type vxlan id 1 dev eth0 learning", "learning true, not false", 1),
    ("ip link set flannel.1 type vxlan id 1 dev eth0 ttl 5", "ttl 5, not 0", 1),
    ("ip link set flannel.1 type vxlan id 1 dev eth0 ageing 60", "ageing 60, not 300", 1),
    (
        "ip link set flannel.1 down; ip link set flannel.1 type vxlan id 1 dev eth0 ttl 5; ip link set flannel.1 mtu 1300",
        "ttl 5, not 0",
        11,
    ),
];

/// The device must be made anew.
pub const DEVICES: &[Damage] = &[
    ("ip link del flannel.1", "create device", 17),
    (
        "ip link del flannel.1
         ip link add flannel.1 type vxlan id 77 dev eth0 local 172.31.0.1 dstport 8472 nolearning
         ip link set flannel.1 up",
        "VNI 77, not 1",
        18,
    ),
    (
        "ip link del flannel.1
         ip link add flannel.1 type vxlan id 1 dev eth0 local 172.31.0.1 dstport 4789 nolearning
         ip link set flannel.1 up",
        "port 4789, not 8472",
        18,
    ),
    ("ip link del flannel.1; ip link add flannel.1 type vxlan id 1 dev docker0 dstport 8472", "lower device", 18),
    ("ip link del flannel.1; ip link add flannel.1 type vxlan id 1 dstport 8472 remote 172.31.0.2", "group", 18),
    ("ip link del flannel.1; ip link add flannel.1 type bridge", "is a bridge device, not VXLAN", 18),
    ("ip link del flannel.1; ip link add flannel.1 type veth peer name other2", "is a veth device", 18),
];
