//! The kinds of kernel entries, one file each: key, value, what differs and why, and when it is made and removed.
//! A new kind is a file here and a line in the list in [`super::kernel_state`]. Beyond the model it needs its encoding,
//! its dump and its reports in `kernel/`, a [`Phase`](super::plan::Phase) if its place in the order is new, and a backend
//! that wants it.

mod address;
mod fdb;
mod neighbor;
mod route;

pub use address::Address;
pub use fdb::{FdbEntry, FdbReport};
pub use neighbor::{Neighbor, NeighborState};
pub use route::{BLACKHOLE_METRIC, Oif, PROTOCOL_KERNEL, Route, RouteReport};
