//! The kernel's reports of changes to nftables' rules; iptables' own are among them where it is built on nftables.

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::libc;
use std::io;
use std::time::Duration;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// What somebody changes in many steps is looked at once.
const SETTLE: Duration = Duration::from_millis(100);

/// Hears of all changes to nftables' rules in the network namespace of the thread that opened it.
pub struct RuleEvents {
    socket: TokioSocket,
    input: Vec<u8>,
    /// A change was reported that nobody has looked at yet.
    heard: bool,
}

impl RuleEvents {
    /// Starts listening. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the kernel has no nftables, or refuses.
    pub fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(GROUP)?;
        Ok(RuleEvents { socket, input: Vec::with_capacity(64 << 10), heard: false })
    }

    /// Waits for a change, and until the burst that it is part of may be over. Cancel-safe.
    pub async fn changed(&mut self) {
        if !self.heard {
            self.input.clear();
            // More than could be kept is a change too.
            let _ = self.socket.recv(&mut self.input).await;
            self.heard = true;
        }
        tokio::time::sleep(SETTLE).await;
    }

    /// Forgets what was reported so far, which is about to be looked at; tells whether it was anything.
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
