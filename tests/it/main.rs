//! The daemon as its users meet it: a real etcd, real kernels' tables, and hosts that are network namespaces.
//!
//! Everything here needs root and a few tools (`make setup`); what is missing is named, nothing is skipped.

mod damage;
mod field;
mod lab;
#[path = "lab/tests.rs"]
mod lab_tests;
#[path = "../store/pki.rs"]
mod pki;

mod cluster;
mod cost;
mod direct;
mod disaster;
mod docker;
mod endpoints;
mod firewall;
mod firewall_repair;
mod firewall_tools;
mod foreign;
mod heal;
mod heal_nic;
mod heal_random;
mod hostile;
mod join;
mod kube_proxy;
mod lease;
mod log_budget;
mod neighbours;
mod offload;
mod old_kernel;
mod outage;
mod overrun;
mod peers;
mod restart;
mod rivals;
mod secure;
mod service;
mod stalls;
mod start;
mod storm;
mod takeover;
