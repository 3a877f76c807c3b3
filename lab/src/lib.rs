//! Test doubles and campaigns of flanneld. No release contains them.
//!
//! | where | what |
//! |---|---|
//! | [`kernel`] | a kernel in memory |
//! | [`store`] | a store in memory, with etcd's semantics and with faults |
//! | `src/bin/` | campaigns: whole daemons, etcd and the kernel under load; `make bench`, `make simulate` and others run them |
//!
//! Hosts that are network namespaces are in `tests/it/lab`, and clusters in one process in `tests/scenarios/lab`.

#![deny(unsafe_code)]

pub mod kernel;
pub mod store;
