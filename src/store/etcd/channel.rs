//! A connection to one member that counts what arrives, so that a deadline can tell a slow link from a silent member.

use http_body_util::BodyExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::http::Request;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt};

/// An answer still arrives if at least this many bytes come within one deadline: 32 kbit/s with a deadline of 4 s.
const LEAST_PROGRESS: u64 = 16 << 10;

/// The path of all calls about watches.
const WATCH: &str = "/etcdserverpb.Watch/";

/// The number of bytes that have arrived over one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Received {
    watches: Arc<AtomicU64>,
    calls: Arc<AtomicU64>,
}

impl Received {
    /// The bytes of answers to calls, without those of watches.
    pub(super) fn by_calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The bytes that watches received.
    pub(super) fn by_watches(&self) -> u64 {
        self.watches.load(Ordering::Relaxed)
    }

    fn counter(&self, path: &str) -> Arc<AtomicU64> {
        if path.starts_with(WATCH) { self.watches.clone() } else { self.calls.clone() }
    }
}

/// Wraps a channel so that `received` counts the bytes of all answers.
pub(super) fn counted(channel: tonic::transport::Channel, received: Received) -> etcd_client::Channel {
    let service = tower::service_fn(move |request: Request<Body>| {
        let (channel, counter) = (channel.clone(), received.counter(request.uri().path()));
        async move {
            let response = channel.oneshot(request).await.map_err(BoxError::from)?;
            Ok::<_, BoxError>(response.map(|body| count(body, counter)))
        }
    });
    etcd_client::Channel::Custom(BoxCloneSyncService::new(service))
}

fn count(body: Body, counter: Arc<AtomicU64>) -> Body {
    Body::new(body.map_frame(move |frame| {
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        counter.fetch_add(bytes, Ordering::Relaxed);
        frame
    }))
}

/// An answer did not come within this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimedOut(pub(super) Duration);

/// Waits for `work` for `limit`, and again for `limit` as long as the bytes that `arrived` returns keep growing.
///
/// The work is on the heap, because calls to etcd are large and are copied a few times on their way here.
///
/// # Errors
/// When less than 16 KiB arrived within the last `limit`.
pub(super) async fn in_time<T>(
    limit: Duration,
    arrived: impl Fn() -> u64,
    mut work: Pin<Box<impl Future<Output = T>>>,
) -> Result<T, TimedOut> {
    let mut before = arrived();
    loop {
        if let Ok(done) = timeout(limit, &mut work).await {
            return Ok(done);
        }
        let now = arrived();
        if now - before < LEAST_PROGRESS {
            return Err(TimedOut(limit));
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::future::pending;
    use tokio::time::{Instant, sleep};

    const LIMIT: Duration = Duration::from_secs(4);

    #[tokio::test(start_paused = true)]
    async fn a_deadline_grows_with_what_arrives() {
        let (began, bytes) = (Instant::now(), Cell::new(0));
        let slow = async {
            for _ in 0..60 {
                sleep(Duration::from_secs(1)).await;
                bytes.set(bytes.get() + LEAST_PROGRESS / 3);
            }
        };
        assert_eq!(in_time(LIMIT, || bytes.get(), Box::pin(slow)).await, Ok(()));
        assert_eq!(began.elapsed(), Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_trickles_is_given_up() {
        let (began, bytes) = (Instant::now(), Cell::new(0));
        let trickle = async {
            loop {
                sleep(Duration::from_secs(1)).await;
                bytes.set(bytes.get() + 1);
            }
        };
        assert_eq!(in_time::<()>(LIMIT, || bytes.get(), Box::pin(trickle)).await, Err(TimedOut(LIMIT)));
        assert_eq!(in_time::<()>(LIMIT, || 0, Box::pin(pending())).await, Err(TimedOut(LIMIT)));
        assert_eq!(began.elapsed(), 2 * LIMIT);
    }
}
