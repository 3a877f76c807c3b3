//! A node agent that gives every host a subnet of its own and wires all hosts into one overlay.

pub mod agent;
pub mod backend;
pub mod cli;
pub mod kernel;
pub mod model;
pub mod store;
