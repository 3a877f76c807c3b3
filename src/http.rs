//! The health endpoints: `/healthz` and `/readyz`, rendered from the [`Board`].

use crate::agent::status::Board;
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

/// Serves for ever on `listener`. Must run in a `LocalSet`.
pub async fn serve(listener: TcpListener, board: Board) -> Infallible {
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
        let board = board.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, &board))));
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

fn answer(request: &Request<Incoming>, board: &Board) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD only".into());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" if board.is_alive() => text(StatusCode::OK, "flanneld is running".into()),
        "/healthz" => text(StatusCode::SERVICE_UNAVAILABLE, "flanneld is stuck".into()),
        "/readyz" => {
            let reasons = board.read().reasons();
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
