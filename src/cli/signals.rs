//! Signals: SIGTERM and SIGINT end the daemon, SIGHUP has it read again what can be read again. The other signals that people
//! send to daemons would end it by default, and the host would be left without one; they are logged and ignored.

use std::future::poll_fn;
use std::task::Poll;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that the daemon receives.
pub(super) struct Signals {
    /// Those that end the daemon.
    ending: [(&'static str, Signal); 2],
    hangup: Signal,
    ignored: [(&'static str, Signal); 3],
}

impl Signals {
    /// Receives signals from now on. Needs a tokio runtime.
    ///
    /// # Errors
    /// The system's, when no handler can be installed.
    pub(super) fn receive() -> Result<Self, String> {
        let receive = |kind| signal(kind).map_err(|error| format!("signals cannot be received: {error}"));
        Ok(Signals {
            ending: [("SIGTERM", receive(SignalKind::terminate())?), ("SIGINT", receive(SignalKind::interrupt())?)],
            hangup: receive(SignalKind::hangup())?,
            ignored: [
                ("SIGQUIT", receive(SignalKind::quit())?),
                ("SIGUSR1", receive(SignalKind::user_defined1())?),
                ("SIGUSR2", receive(SignalKind::user_defined2())?),
            ],
        })
    }

    /// Waits for a signal that ends the daemon, and returns its name. Calls `reload` at each SIGHUP.
    pub(super) async fn end(&mut self, reload: impl Fn()) -> &'static str {
        loop {
            tokio::select! {
                biased;
                name = next_of(&mut self.ending) => return name,
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP: certificates and passwords are read again, over new connections to etcd");
                    reload();
                }
                name = next_of(&mut self.ignored) => {
                    tracing::info!("{name} is ignored: SIGTERM ends flanneld, SIGHUP has it read certificates again");
                }
            }
        }
    }
}

/// Waits for the first of these signals, and returns its name. Cancel-safe.
async fn next_of(signals: &mut [(&'static str, Signal)]) -> &'static str {
    poll_fn(|context| {
        let mut received =
            signals.iter_mut().filter_map(|(name, signal)| signal.poll_recv(context).is_ready().then_some(*name));
        received.next().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}
