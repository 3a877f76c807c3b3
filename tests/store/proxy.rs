//! A network between the store and etcd that can fall silent.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, spawn_local};

/// Passes connections on to an etcd; needs a `LocalSet`.
pub struct Proxy {
    address: SocketAddr,
    holds_answers: Rc<Cell<bool>>,
    connections: Rc<Cell<usize>>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// One in front of `http://host:port`.
    pub async fn before(url: &str) -> Self {
        let target = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let holds_answers = Rc::new(Cell::new(false));
        let connections = Rc::new(Cell::new(0));
        let (holds, count) = (holds_answers.clone(), connections.clone());
        let accepting = spawn_local(async move {
            while let Ok((near, _)) = listener.accept().await {
                count.set(count.get() + 1);
                let Ok(far) = TcpStream::connect(&target).await else { continue };
                let (near, far) = (near.into_split(), far.into_split());
                spawn_local(pass(near.0, far.1, Rc::default()));
                spawn_local(pass(far.0, near.1, holds.clone()));
            }
        });
        Proxy { address, holds_answers, connections, accepting }
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
        self.holds_answers.set(hold);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, holds: Rc<Cell<bool>>) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        while holds.get() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
