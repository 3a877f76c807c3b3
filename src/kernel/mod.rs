//! The host's network state. The only folder that speaks netlink; the daemon knows only [`Kernel`].

pub mod decode;
mod encode;
#[cfg(test)]
mod encode_tests;
mod ethtool;
mod link;
pub mod listener;
#[cfg(test)]
mod listener_tests;
pub mod netlink;
pub mod socket;
pub mod sysctl;
pub mod wire;

use crate::model::iface::{HostView, WayOut};
use crate::model::kernel_state::{Have, Observed, Scope};
use crate::model::plan::Op;
use nix::libc::{ENETDOWN, ENODEV};
use std::io;
use std::net::IpAddr;

/// Why the kernel did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct KernelError {
    /// The request, such as `dump routes`.
    pub what: String,
    /// The positive errno, or 0 when the request failed before the kernel judged it.
    pub errno: i32,
    /// The errno's text, with the kernel's own explanation (extended acknowledgement) where there is one.
    pub reason: String,
}

impl KernelError {
    /// The kernel's refusal of `what`; `explanation` may be empty.
    pub fn from_errno(what: impl Into<String>, errno: i32, explanation: &str) -> Self {
        let text = io::Error::from_raw_os_error(errno);
        let reason = if explanation.is_empty() { text.to_string() } else { format!("{text}: {explanation}") };
        KernelError { what: what.into(), errno, reason }
    }

    /// Whether it failed because the device it was to be done on is gone or down.
    pub fn device_is_out(&self) -> bool {
        [ENODEV, ENETDOWN].contains(&self.errno)
    }
}

/// A change in the host's network state, whoever made it: our own are reported too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An entry that concerns us.
    Entry(Observed),
    /// Our device, or an address on it. Entries may have gone with it without a report of their own.
    Device,
    /// Another interface, an address on it, or a default route (index 0).
    Host {
        /// Index of the interface.
        index: u32,
        /// Its name, when the change is one of the interface itself.
        name: Option<String>,
    },
    /// Any other IPv4 route of table main. It may decide which peers are on a link.
    Underlay,
    /// A report that cannot be decoded: it may be about anything.
    Unclear,
    /// Reports were lost.
    Overrun,
}

/// The kernel, as far as the daemon needs it.
#[allow(async_fn_in_trait, reason = "the daemon is one thread: no Send bounds are wanted")]
pub trait Kernel {
    /// All interfaces with their addresses, and the default routes.
    async fn host(&mut self) -> Result<HostView, KernelError>;

    /// The way by which packets to `ip` leave; `None` when there is no route.
    async fn route_to(&mut self, ip: IpAddr) -> Result<Option<WayOut>, KernelError>;

    /// Reads in full what concerns us. Consistent: an interrupted dump is read again.
    async fn observe(&mut self, scope: &Scope) -> Result<Have, KernelError>;

    /// Does the operations in their order on the device named in `scope`, many to a system call. One result for each,
    /// in the same order; a failing one does not keep the others from being done. Deleting what is not there succeeds.
    async fn apply(&mut self, scope: &Scope, ops: &[Op]) -> Vec<Result<(), KernelError>>;

    /// Waits until there are changes to be taken. Cancel-safe.
    async fn changed(&mut self);

    /// The changes reported so far, in their order. Those made by [`Kernel::apply`] are among them when it returns.
    fn take_changes(&mut self, scope: &Scope) -> Vec<Event>;
}
