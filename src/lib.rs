//! `flanneld` gives each host a subnet of its own and connects the containers of all hosts by one VXLAN overlay. It is a
//! drop-in for flannel's `flanneld` with etcd v3.
//!
//! The daemon is level-triggered. The store's watch, the kernel's reports, timers and our own lease only change *facts*.
//! One pure function computes from the facts what the kernel should hold, `want`. Another compares that with what the
//! kernel does hold, `have`, and returns an ordered list of operations, a `Plan`. One thin function applies the plan. An
//! operation that failed leaves a difference, so it is tried again. A first join, a change of a peer, a repair, a restart
//! and the recovery from an outage are the same four steps with other facts.
//!
//! ```text
//!  etcd ---- watch, lists ---> agent::peers --+
//!  kernel ---- reports -> kernel::listener ---+--> facts --> want --+-- Plan --> kernel
//!  timers, own lease -------------------------+            have ---+
//!                                                model::desired    model::plan
//! ```
//!
//! # Where does it happen?
//!
//! | Event | Source |
//! |---|---|
//! | a node starts, joins and runs its loops | [`agent::run`] |
//! | our subnet is chosen | [`model::identity::Identity::decide`], then [`model::subnet`] for a free one |
//! | our lease is acquired, kept, defended | `agent/lease_manager/`: `acquire.rs`, `upkeep.rs`, `conflict.rs` |
//! | a peer's lease is followed, refused, held | [`agent::peers`], [`model::peer_policy`], [`model::lease_set`] |
//! | a lease becomes a route, an ARP and an FDB entry | [`model::desired`], which asks [`backend`] for the entries |
//! | a packet walks through route, ARP and FDB | [`backend::vxlan`] |
//! | a kind of entry is compared, made and removed | [`model::entry`], listed in [`model::kernel_state`] |
//! | a device is compared, made and changed | [`model::device`], `kernel/link/` |
//! | a deleted route is noticed | [`kernel::listener`] decodes the report, `Route::notice` in [`model::entry`] decides |
//! | a difference is planned, applied, retried | [`model::plan`], `agent/reconcile/execute.rs`, [`agent::retry_queue`] |
//! | the host is ready for the first time | `agent/reconcile/readiness.rs` |
//! | a condition begins or ends, with a WARN | [`agent::status`]; [`model::findings`] for refused leases |
//! | a single event is worth a WARN | where it happens |
//! | the firewall's rules are kept | [`firewall`] for the rules, [`agent::firewall`] for the loop |
//! | a command line becomes settings | [`cli::args`], `cli/run.rs` |
//!
//! # Modules
//!
//! The arrows point to what a module uses. The model and the backends are pure: they do no I/O, log nothing and have no
//! clock. The agent knows store, kernel and firewall only as traits.
//!
//! ```text
//! main -> cli -> agent -> { backend, store, kernel, firewall, files } -> model
//! ```

#![deny(unsafe_code)]

pub mod model;

pub mod backend;

pub mod store;

pub mod kernel;

pub mod firewall;

pub mod files;

pub mod agent;

pub mod malloc;

pub mod http;

pub mod telemetry;

pub mod cli;
