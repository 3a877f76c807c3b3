//! One damage of each kind to the kernel's tables is undone.

use crate::damage::{ADDRESSES, DEVICES, Damage, FDB, NEIGHBORS, PARAMETERS, ROUTES};
use crate::field::Field;

/// A choice of all that tests/it does.
const SCRIPTS: [&str; 15] = [
    "ip route del $PEER",
    "ip route replace $PEER via 172.30.200.0 dev flannel.1 onlink",
    "ip route add 172.30.240.0/24 via 172.30.240.0 dev flannel.1 onlink",
    "ip neigh del $GW dev flannel.1",
    "ip neigh replace $GW lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
    "bridge fdb del $MAC dev flannel.1 dst $DST",
    "bridge fdb replace $MAC dev flannel.1 dst 172.31.0.77 self permanent",
    "bridge fdb replace $MAC dev flannel.1 dst $DST via eth0 self permanent",
    "bridge fdb add 02:00:00:00:00:98 dev flannel.1 dst 172.31.0.77 self permanent",
    "ip addr del $OWN/32 dev flannel.1",
    "ip link set flannel.1 down",
    "ip link set flannel.1 mtu 1400",
    "ip link set flannel.1 address 02:00:00:00:00:97",
    "ip link del flannel.1",
    "ip link del flannel.1; ip link add flannel.1 type bridge",
];

/// The damage that a script does, as tests/it knows it.
fn damage(script: &str) -> &'static Damage {
    let mut all = [ROUTES, NEIGHBORS, FDB, ADDRESSES, PARAMETERS, DEVICES].into_iter().flatten();
    all.find(|damage| damage.0 == script).unwrap_or_else(|| panic!("not in tests/it/damage.rs: {script}"))
}

#[test]
fn each_kind_of_damage_heals() {
    let field = Field::new("damage");
    for (script, repair, count) in SCRIPTS.map(damage) {
        field.heals(script, repair, *count);
    }
    field.is_well();
}
