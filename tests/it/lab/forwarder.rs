//! Another way to etcd, which can be cut.

use std::io::copy;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use super::Underlay;

/// Passes connections on. When it is dropped all of them end and its address goes: who still sends to it gets no answer.
pub struct Forwarder {
    underlay: Arc<Underlay>,
    address: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Connections so far.
    count: AtomicUsize,
    /// It ends each connection at once.
    refuses: AtomicBool,
    stop: AtomicBool,
}

impl Forwarder {
    pub(super) fn start(underlay: Arc<Underlay>, last: u8) -> Forwarder {
        let address = format!("172.31.0.{last}");
        underlay.netns.ip(&format!("addr add {address}/24 dev br0"));
        let listen = || TcpListener::bind((address.as_str(), 2379)).expect("a port of its own");
        let listener = underlay.netns.enter(listen);
        listener.set_nonblocking(true).expect("a listener that does not block");
        let shared = Arc::<Shared>::default();
        let thread = thread::spawn({
            let (underlay, shared) = (underlay.clone(), shared.clone());
            move || underlay.netns.enter(|| shared.serve(&listener))
        });
        Forwarder { underlay, address, shared, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}:2379", self.address)
    }

    /// How often it was dialled.
    pub fn count(&self) -> usize {
        self.shared.count.load(Ordering::SeqCst)
    }

    /// Ends all connections, and new ones as soon as they are made.
    pub fn refuse(&self) {
        self.shared.refuses.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn serve(&self, listener: &TcpListener) {
        let mut open: Vec<TcpStream> = Vec::new();
        while !self.stop.load(Ordering::SeqCst) {
            if let Ok((near, _)) = listener.accept() {
                self.count.fetch_add(1, Ordering::SeqCst);
                near.set_nonblocking(false).expect("a stream that blocks");
                if self.refuses.load(Ordering::SeqCst) {
                    continue;
                }
                if let Ok(far) = TcpStream::connect("172.31.0.254:2379") {
                    open.extend([near.try_clone(), far.try_clone()].map(|stream| stream.expect("a second handle")));
                    pass(&near, &far);
                    pass(&far, &near);
                }
            } else {
                sleep(Duration::from_millis(5));
            }
            if self.refuses.load(Ordering::SeqCst) {
                open.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
            }
        }
        open.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }
}

fn pass(from: &TcpStream, to: &TcpStream) {
    let streams = (from.try_clone().expect("a second handle"), to.try_clone().expect("a second handle"));
    thread::spawn(move || {
        let (mut from, mut to) = streams;
        let _ = copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.underlay.netns.ip(&format!("addr del {}/24 dev br0", self.address));
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
