//! The daemon as a service: a real systemd boots on hosts of the lab, with the units of `systemd/`.
//!
//! Everything here needs root and a few tools (`make setup`); what is missing is named, nothing is skipped.

#[path = "../install/deb.rs"]
mod deb;
#[allow(dead_code, unused_imports, reason = "a lab for several test programs, none of which needs all of it")]
#[path = "../it/lab/mod.rs"]
mod lab;
#[allow(dead_code, unused_imports, reason = "the same")]
mod machine;
#[path = "machine/tests.rs"]
mod machine_tests;
#[path = "../store/pki.rs"]
mod pki;
mod site;

mod centos;
mod field;
mod hardened;
mod life;
mod order;
mod package;
mod walkthrough;
