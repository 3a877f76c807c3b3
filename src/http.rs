//! The health endpoints: `/healthz` and `/readyz`, rendered from the [`StatusHandle`].

use crate::agent::status::StatusHandle;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::time::Duration;
use tokio::net::TcpListener;

/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// At most this many connections are served at once; further ones wait.
const MOST_CONNECTIONS: usize = 64;

/// The main loop stands still.
const STUCK: &str = "flanneld is stuck";

/// Serves for ever on `listener`. Must run in a `LocalSet`.
pub async fn serve(listener: TcpListener, status: StatusHandle) -> Infallible {
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(MOST_CONNECTIONS));
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
        let status = status.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response = answer(request.method(), request.uri().path(), &status);
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!("health endpoint: {error}");
            }
            drop(slot);
        });
    }
}

fn answer(method: &Method, path: &str, status: &StatusHandle) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD only".into());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/healthz" if status.is_alive() => text(StatusCode::OK, "flanneld is running".into()),
        "/healthz" => text(StatusCode::SERVICE_UNAVAILABLE, STUCK.into()),
        "/readyz" => {
            let mut reasons = status.read().reasons();
            if !status.is_alive() {
                reasons.push(STUCK.into());
            }
            match reasons.is_empty() {
                true => text(StatusCode::OK, "flanneld is ready".into()),
                false => {
                    let body = format!("flanneld is not ready yet\n{}\n", reasons.join("\n"));
                    text(StatusCode::SERVICE_UNAVAILABLE, body)
                }
            }
        }
        _ => text(StatusCode::NOT_FOUND, "there are /healthz and /readyz".into()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let plain = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::runtime::Runtime;
    use crate::agent::status::Condition;
    use std::cell::Cell;
    use std::rc::Rc;

    fn status() -> (StatusHandle, Rc<Cell<Duration>>) {
        let clock: Rc<Cell<Duration>> = Rc::default();
        let hands = clock.clone();
        let status = StatusHandle::new(Rc::new(Runtime::new(move || hands.get(), 1, |_| {})));
        status.update(|status| (status.started, status.last_tick) = (true, Some(Duration::ZERO)));
        (status, clock)
    }

    fn code(path: &str, status: &StatusHandle) -> u16 {
        answer(&Method::GET, path, status).status().as_u16()
    }

    #[test]
    fn what_stands_in_the_way_makes_it_unready_and_a_loop_that_stands_still_ill() {
        let (status, clock) = status();
        assert_eq!((code("/healthz", &status), code("/readyz", &status)), (200, 200));
        status.raise(Condition::Peers, "etcd does not answer");
        assert_eq!((code("/healthz", &status), code("/readyz", &status)), (200, 503));
        status.clear(Condition::Peers);
        clock.set(Duration::from_secs(60));
        assert_eq!((code("/healthz", &status), code("/readyz", &status)), (503, 503));
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        let (status, _) = status();
        assert_eq!((code("/", &status), code("/healthz/", &status)), (404, 404));
        assert_eq!(answer(&Method::HEAD, "/healthz", &status).status().as_u16(), 200);
        assert_eq!(answer(&Method::POST, "/healthz", &status).status().as_u16(), 405);
    }
}
