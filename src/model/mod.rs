//! flannel's terms as pure values and functions: no I/O, no clock, no randomness of its own.

pub mod backend;
pub mod backend_data;
pub mod config;
pub mod desired;
pub mod device;
pub mod docker;
pub mod entry;
pub mod env_files;
pub mod family;
pub mod findings;
pub mod foreign;
pub mod go_json;
mod holds;
pub mod identity;
pub mod iface;
pub mod kernel_state;
pub mod lease;
pub mod lease_set;
pub mod links;
pub mod mac;
mod occupied;
pub mod peer_policy;
pub mod plan;
pub mod state_file;
pub mod subnet;
pub mod table;
pub mod view;
