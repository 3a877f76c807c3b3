//! One damage of each kind to the kernel's tables is undone.

use crate::field::Field;

/// A script, what the log says of a repair then, and how many repairs there are. The whole lists are in tests/it/heal.rs.
const ONE_OF_EACH_KIND: [(&str, &str, usize); 15] = [
    ("ip route del $PEER", "add route", 1),
    ("ip route replace $PEER via 172.30.200.0 dev flannel.1 onlink", "replace route", 1),
    ("ip route add 172.30.240.0/24 via 172.30.240.0 dev flannel.1 onlink", "no peer has it", 1),
    ("ip neigh del $GW dev flannel.1", "set neighbour", 1),
    ("ip neigh replace $GW lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent", "set neighbour", 1),
    ("bridge fdb del $MAC dev flannel.1 dst $DST", "set FDB entry", 1),
    ("bridge fdb replace $MAC dev flannel.1 dst 172.31.0.77 self permanent", "set FDB entry", 1),
    ("bridge fdb replace $MAC dev flannel.1 dst $DST via eth0 self permanent", "pointed to something else", 2),
    ("bridge fdb add 02:00:00:00:00:98 dev flannel.1 dst 172.31.0.77 self permanent", "no peer has it", 1),
    ("ip addr del $OWN/32 dev flannel.1", "add address", 11),
    ("ip link set flannel.1 down", "change device", 11),
    ("ip link set flannel.1 mtu 1400", "MTU 1400, not 1450", 1),
    ("ip link set flannel.1 address 02:00:00:00:00:97", "MAC 02:00:00:00:00:97, not", 6),
    ("ip link del flannel.1", "create device", 17),
    ("ip link del flannel.1; ip link add flannel.1 type bridge", "is a bridge device, not VXLAN", 18),
];

#[test]
fn each_kind_of_damage_heals() {
    let field = Field::new("damage");
    for (script, repair, count) in ONE_OF_EACH_KIND {
        field.heals(script, repair, count);
    }
    field.is_well();
}
