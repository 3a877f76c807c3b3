//! A node agent that gives every host a subnet of its own and wires all hosts into one VXLAN overlay: a drop-in for
//! flannel's `flanneld`.
//!
//! It is level-triggered. Sources (the store's watch, our own lease, timers) only change *facts*; from the facts
//! follows what the kernel *should* hold ([`model::kernel_state::Want`]); the difference to what it *does* hold
//! ([`model::kernel_state::Have`]) is a [`model::plan::Plan`]; applying it is one thin step. What fails is still
//! different afterwards, so it is tried again. Joining, a peer's change, a restart and making good after an outage are
//! all the same steps with other facts.
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
