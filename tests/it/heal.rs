//! Whatever somebody does to the kernel's tables behind the daemon's back is undone at once, and nothing else is.

use crate::damage::*;
use crate::field::Field;

fn all_heal(name: &str, damages: &[&[Damage]]) {
    let field = Field::new(name);
    for (script, repair, count) in damages.iter().copied().flatten() {
        field.heals(script, repair, *count);
    }
    field.is_well();
}

#[test]
fn routes_heal() {
    all_heal("routes", &[ROUTES]);
}

#[test]
fn neighbors_and_fdb_entries_heal() {
    all_heal("neighbors", &[NEIGHBORS, FDB]);
}

#[test]
fn addresses_and_parameters_heal_in_place() {
    let field = Field::new("device");
    for (script, repair, count) in [ADDRESSES, PARAMETERS].into_iter().flatten() {
        field.heals(script, repair, *count);
        assert_eq!(field.hosts[0].state(), field.before, "another device after {script}");
    }
    field.is_well();
}

#[test]
fn a_device_that_is_gone_or_replaced_heals() {
    all_heal("replaced", &[DEVICES]);
}
