//! The health endpoints: `/healthz` and `/readyz`, rendered from [`Health`] by a thread of their own, so they answer also
//! while the daemon's thread stands still.

use crate::agent::health::Health;
use crate::model::foreign::line;
use crate::model::lease_set::Moment;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How long a client may take to send its request.
const REQUEST: Duration = Duration::from_secs(1);

/// How long a connection may last.
const CONNECTION: Duration = Duration::from_secs(2);

/// At most this many connections are served at once; further ones wait.
const MOST_CONNECTIONS: usize = 256;

/// Serves on `listener` by a thread of its own, as long as the process runs. `now` is the daemon's clock.
///
/// # Errors
/// When there is no thread or no runtime for it.
pub fn start(
    listener: std::net::TcpListener,
    health: Arc<Health>,
    now: impl Fn() -> Moment + Send + Sync + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let page = Arc::new(Page { health, now: Box::new(now) });
    let serve = move || match runtime.block_on(serve(listener, page)) {};
    std::thread::Builder::new().name("health".into()).spawn(serve).map(drop)
}

/// The endpoints.
struct Page {
    health: Arc<Health>,
    now: Box<dyn Fn() -> Moment + Send + Sync>,
}

async fn serve(listener: TcpListener, page: Arc<Page>) -> Infallible {
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { continue };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("health endpoint: accept fails: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let page = page.clone();
        tokio::spawn(async move {
            if let Ok(Err(error)) = timeout(CONNECTION, converse(stream, &page)).await {
                tracing::debug!("health endpoint: {error}");
            }
            drop(slot);
        });
    }
}

async fn converse(stream: TcpStream, page: &Page) -> hyper::Result<()> {
    let service = service_fn(|request: Request<Incoming>| {
        let response = page.answer(request.method(), request.uri().path());
        std::future::ready(Ok::<_, Infallible>(response))
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

impl Page {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD only\n".into());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let now = (self.now)();
        let stuck = self.health.still_for(now).map(|still| {
            let what = format!("flanneld is stuck: its main loop has not run for {}", in_words(still));
            (what, still)
        });
        match (path, stuck) {
            ("/healthz", None) => text(StatusCode::OK, "flanneld is running\n".into()),
            ("/healthz", Some((what, _))) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{what}\n")),
            ("/readyz", stuck) => {
                let reasons: Vec<_> = stuck.into_iter().chain(self.health.reasons(now)).collect();
                match reasons.is_empty() {
                    true => text(StatusCode::OK, "flanneld is ready\n".into()),
                    false => text(StatusCode::SERVICE_UNAVAILABLE, self.not_ready(&reasons)),
                }
            }
            _ => text(StatusCode::NOT_FOUND, "there are /healthz and /readyz\n".into()),
        }
    }

    /// One line a reason, each with the time since when it holds.
    fn not_ready(&self, reasons: &[(String, Duration)]) -> String {
        let longest = reasons.iter().map(|(_, age)| *age).max().unwrap_or_default();
        let word = if self.health.has_started() { "not ready" } else { "not ready yet: starting" };
        let mut body = format!("flanneld is {word}, since {} ({})\n", at(longest), in_words(longest));
        for (reason, age) in reasons {
            // Writing to a String does not fail.
            let _ = writeln!(body, "{} (for {})", line(reason), in_words(*age));
        }
        body
    }
}

/// The wall clock's time that long ago.
fn at(age: Duration) -> String {
    let then = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_seconds(then).to_string()
}

/// Whole seconds, as in `1h 2m 3s`.
fn in_words(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::runtime::Runtime;
    use crate::agent::status::{Condition, StatusHandle};
    use http_body_util::BodyExt;
    use std::io::{Read, Write as _};
    use std::rc::Rc;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Served {
        status: StatusHandle,
        clock: Arc<AtomicU64>,
        page: Page,
    }

    fn served() -> Served {
        let clock: Arc<AtomicU64> = Arc::default();
        let now = |clock: &Arc<AtomicU64>| {
            let clock = clock.clone();
            move || Duration::from_secs(clock.load(Ordering::Relaxed))
        };
        let status = StatusHandle::new(Rc::new(Runtime::new(now(&clock), 1, |_| {})));
        status.update(|status| status.started = true);
        status.tick();
        let page = Page { health: status.health(), now: Box::new(now(&clock)) };
        Served { status, clock, page }
    }

    impl Served {
        fn code(&self, path: &str) -> u16 {
            self.page.answer(&Method::GET, path).status().as_u16()
        }

        fn body(&self, path: &str) -> String {
            let body = self.page.answer(&Method::GET, path).into_body();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let bytes = runtime.block_on(body.collect()).unwrap().to_bytes();
            String::from_utf8(bytes.to_vec()).unwrap()
        }
    }

    #[test]
    fn a_condition_makes_it_unready_and_a_loop_that_stands_still_ill() {
        let served = served();
        assert_eq!((served.code("/healthz"), served.code("/readyz")), (200, 200));
        served.status.raise(Condition::Peers, "etcd does not answer");
        assert_eq!((served.code("/healthz"), served.code("/readyz")), (200, 503));
        served.status.clear(Condition::Peers);
        served.clock.store(60, Ordering::Relaxed);
        assert_eq!((served.code("/healthz"), served.code("/readyz")), (503, 503));
        assert_eq!(served.body("/healthz"), "flanneld is stuck: its main loop has not run for 1m\n");
    }

    #[test]
    fn a_reason_has_its_age_and_every_answer_ends_its_line() {
        let served = served();
        served.status.raise(Condition::Peers, "etcd does not answer\nflanneld is ready");
        served.clock.store(29, Ordering::Relaxed);
        let body = served.body("/readyz");
        let lines: Vec<&str> = body.split_terminator('\n').collect();
        assert!(lines[0].starts_with("flanneld is not ready, since 2") && lines[0].ends_with("Z (29s)"), "{body}");
        assert_eq!(lines[1..], ["etcd does not answer\\nflanneld is ready (for 29s)"]);
        for path in ["/healthz", "/readyz", "/"] {
            assert!(served.body(path).ends_with('\n'));
        }
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        let served = served();
        assert_eq!((served.code("/"), served.code("/healthz/")), (404, 404));
        assert_eq!(served.page.answer(&Method::HEAD, "/healthz").status().as_u16(), 200);
        assert_eq!(served.page.answer(&Method::POST, "/healthz").status().as_u16(), 405);
    }

    #[test]
    fn clients_that_send_nothing_hold_up_nobody() {
        let Served { status, page, .. } = served();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        start(listener, status.health(), page.now).unwrap();
        let connect = |_: usize| std::net::TcpStream::connect(address).unwrap();
        let mut idle: Vec<_> = (0..MOST_CONNECTIONS).map(connect).collect();
        for _ in 0..3 {
            let mut probe = connect(0);
            probe.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = String::new();
            probe.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("flanneld is running\n"), "{answer}");
        }
        // Each is let go although it says nothing.
        for stream in &mut idle {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
}
