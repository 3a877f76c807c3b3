//! A network between the store and etcd that can fall silent or be slow.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};

/// Passes connections on to an etcd; needs a `LocalSet`.
pub struct Proxy {
    address: SocketAddr,
    connections: Rc<Cell<usize>>,
    answers: Rc<Answers>,
    accepting: JoinHandle<()>,
}

/// How the bytes of etcd's answers pass.
#[derive(Default)]
struct Answers {
    holds: Cell<bool>,
    /// Bytes a second; 0: as fast as may be.
    rate: Cell<u64>,
    passed: Cell<u64>,
    /// When the link is free for the next bytes.
    free_at: Cell<Option<Instant>>,
}

impl Proxy {
    /// One in front of `http://host:port`.
    pub async fn before(url: &str) -> Self {
        let target = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (answers, connections) = (Rc::<Answers>::default(), Rc::new(Cell::new(0)));
        let (back, count) = (answers.clone(), connections.clone());
        let accepting = spawn_local(async move {
            while let Ok((near, _)) = listener.accept().await {
                count.set(count.get() + 1);
                let Ok(far) = TcpStream::connect(&target).await else { continue };
                let (near, far) = (near.into_split(), far.into_split());
                spawn_local(pass(near.0, far.1, Rc::default()));
                spawn_local(pass(far.0, near.1, back.clone()));
            }
        });
        Proxy { address, connections, answers, accepting }
    }

    /// What the store is to dial.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often it was dialled.
    pub fn connections(&self) -> usize {
        self.connections.get()
    }

    /// From now on requests arrive and answers do not, until told otherwise; then the held ones come.
    pub fn hold_answers(&self, hold: bool) {
        self.answers.holds.set(hold);
    }

    /// From now on all answers together are this slow: so many bytes a second.
    pub fn throttle(&self, rate: u64) {
        self.answers.rate.set(rate);
    }

    /// How many bytes of answers have passed so far.
    pub fn passed(&self) -> u64 {
        self.answers.passed.get()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, link: Rc<Answers>) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        link.admit(count as u64).await;
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

impl Answers {
    /// Waits until the link has carried these bytes.
    async fn admit(&self, count: u64) {
        while self.holds.get() {
            sleep(Duration::from_millis(5)).await;
        }
        self.passed.set(self.passed.get() + count);
        if let Some(micros) = (count * 1_000_000).checked_div(self.rate.get()) {
            let begin = self.free_at.get().map_or_else(Instant::now, |at| at.max(Instant::now()));
            self.free_at.set(Some(begin + Duration::from_micros(micros)));
            sleep_until(begin + Duration::from_micros(micros)).await;
        }
    }
}
