//! What hosts go through under each kernel that users run, and on devices that few test machines have: VLAN, bond, VRF,
//! dummy and slow links. `make test-kernels` runs these tests in guests; see docs/kernels.md.

#[path = "../it/damage.rs"]
mod damage;
#[allow(dead_code, reason = "made for the tests of tests/it")]
#[path = "../it/field.rs"]
mod field;
#[allow(dead_code, unused_imports, reason = "a lab for several test programs, none of which needs all of it")]
#[path = "../it/lab/mod.rs"]
mod lab;

mod heal;
mod links;
mod package;
mod rest;
mod scale;
mod slow;
