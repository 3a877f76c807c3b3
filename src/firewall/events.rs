//! The kernel's reports of changes to nftables rules. They include the rules of an iptables that is built on nftables.

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::libc;
use std::io;
use std::time::Duration;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// The pause after a first report, so that a burst of changes causes one check.
const SETTLE: Duration = Duration::from_millis(100);

/// Receives all changes to nftables rules in the network namespace of the thread that opened it.
pub struct RuleEvents {
    socket: TokioSocket,
    input: Vec<u8>,
    /// Whether a change was reported since the last check.
    heard: bool,
}

impl RuleEvents {
    /// Starts listening. Needs a tokio runtime.
    ///
    /// # Errors
    /// If the kernel has no nftables, or refuses the subscription.
    pub fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(GROUP)?;
        Ok(RuleEvents { socket, input: Vec::with_capacity(64 << 10), heard: false })
    }

    /// Waits for a change and for the end of its burst. Cancel-safe.
    pub async fn changed(&mut self) {
        if !self.heard {
            self.input.clear();
            // Lost reports are a change too.
            let _ = self.socket.recv(&mut self.input).await;
            self.heard = true;
        }
        tokio::time::sleep(SETTLE).await;
    }

    /// Drops the reports so far, because a check follows. Returns whether there were any.
    pub fn drain(&mut self) -> bool {
        let mut heard = std::mem::take(&mut self.heard);
        loop {
            self.input.clear();
            match self.socket.socket_ref().recv(&mut self.input, libc::MSG_DONTWAIT) {
                Ok(_) => heard = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard = true,
                Err(_) => return heard,
            }
        }
    }
}
