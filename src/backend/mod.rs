//! How leases become kernel state. One file a backend.

pub mod vxlan;
