//! The kernel as it is, in network namespaces; `ip` and `bridge` are the witnesses.

mod device;
mod entries;
mod firewall;
mod host;
mod ipv6;
mod lab;
mod plans;
mod reports;
mod scale;
mod socket;
