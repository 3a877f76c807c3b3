//! SIGINT and SIGTERM end the guests in order, so that nothing stays behind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// To be called before there are other threads, because these inherit what is blocked.
pub fn catch() {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block().expect("signals can be blocked");
    thread::spawn(move || {
        let _ = signals.wait();
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
}

/// Whether one of them has come.
pub fn is_set() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
