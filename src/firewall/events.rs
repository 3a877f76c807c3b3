//! The kernel's reports of changes to nftables' rules; iptables' own are among them where it is built on nftables.

use nix::libc;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
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
    /// Something was reported since [`RuleEvents::take`].
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

    /// Waits for a change, and until the burst that it is part of is over. Cancel-safe.
    pub async fn changed(&mut self) {
        self.input.clear();
        // More than could be kept is a change too.
        let _ = self.socket.recv(&mut self.input).await;
        self.heard = true;
        tokio::time::sleep(SETTLE).await;
        self.drain();
    }

    /// Forgets what was reported so far, because it is about to be seen; tells whether anything was since the last time.
    pub fn take(&mut self) -> bool {
        self.drain();
        std::mem::take(&mut self.heard)
    }

    fn drain(&mut self) {
        loop {
            self.input.clear();
            match self.socket.socket_ref().recv(&mut self.input, libc::MSG_DONTWAIT) {
                Ok(_) => self.heard = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.heard = true,
                Err(_) => return,
            }
        }
    }
}
