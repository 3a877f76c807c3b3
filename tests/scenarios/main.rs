//! Whole daemons in one process: any number of hosts on one store and one clock that the test turns. A day takes
//! milliseconds, and the same seed gives the same run (`SEED=7 cargo test --test scenarios`).
//!
//! What a host should hold is worked out here from the bytes in the store, not by the code under test.

mod lab;

mod config;
mod direct;
mod fights;
mod hostile;
mod join;
mod kernel;
mod laws;
mod lease;
mod nic;
mod outage;
mod peers;
mod ready;
mod restart;
mod rivals;
mod subnets;
mod watch;
