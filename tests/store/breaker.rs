//! Stands between the store and a real etcd, speaks gRPC with both, and breaks what etcd promises of watches and lists.
//! Pings are answered here, so that nobody thinks the connection dead.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use prost::Message;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};

/// What every answer of etcd begins with.
#[derive(Clone, PartialEq, Message)]
pub struct Header {
    #[prost(uint64, tag = "1")]
    pub cluster_id: u64,
    #[prost(uint64, tag = "2")]
    pub member_id: u64,
    #[prost(int64, tag = "3")]
    pub revision: i64,
    #[prost(uint64, tag = "4")]
    pub raft_term: u64,
}

/// A key as etcd tells it.
#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    #[prost(int64, tag = "2")]
    pub create_revision: i64,
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    #[prost(int64, tag = "4")]
    pub version: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub value: Vec<u8>,
    #[prost(int64, tag = "6")]
    pub lease: i64,
}

/// A change as etcd tells it: 0 is a put, 1 a deletion.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(message, optional, tag = "2")]
    pub kv: Option<KeyValue>,
}

/// What a watch tells.
#[derive(Clone, PartialEq, Message)]
pub struct WatchResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<Header>,
    #[prost(int64, tag = "2")]
    pub watch_id: i64,
    #[prost(bool, tag = "3")]
    pub created: bool,
    #[prost(bool, tag = "4")]
    pub canceled: bool,
    #[prost(int64, tag = "5")]
    pub compact_revision: i64,
    #[prost(string, tag = "6")]
    pub cancel_reason: String,
    #[prost(bool, tag = "7")]
    pub fragment: bool,
    #[prost(message, repeated, tag = "11")]
    pub events: Vec<Event>,
}

impl WatchResponse {
    /// Whether it is about changes, not about the watch itself.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }
}

#[derive(Clone, PartialEq, Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreate>,
    #[prost(message, optional, tag = "2")]
    cancel: Option<Nothing>,
    #[prost(message, optional, tag = "3")]
    progress: Option<Nothing>,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct WatchCreate {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(int64, tag = "3")]
    start_revision: i64,
    #[prost(bool, tag = "4")]
    progress_notify: bool,
    #[prost(bool, tag = "8")]
    fragment: bool,
}

#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
}

/// What becomes of one message of a watch: the messages that arrive in its place.
pub type Rule = Box<dyn FnMut(WatchResponse) -> Vec<WatchResponse>>;

/// What is broken now.
#[derive(Default)]
struct Broken {
    rule: RefCell<Option<Rule>>,
    /// By how much a watch starts later (or, negative, earlier) than it was asked to.
    shift: Cell<i64>,
    /// The last list that went through, and how many more are answered with it.
    list: RefCell<Bytes>,
    replays: Cell<usize>,
    /// Of how many lists only the first half arrives.
    halves: Cell<usize>,
    watches: Cell<usize>,
    lists: Cell<usize>,
    asked_for_progress: Cell<usize>,
    cut: Notify,
    refuses: Cell<bool>,
    /// Answers of watches come whole, however long they are, as from etcd before 3.4.
    whole: Cell<bool>,
}

/// The proxy. Needs a `LocalSet`.
pub struct Breaker {
    address: SocketAddr,
    broken: Rc<Broken>,
    accepting: JoinHandle<()>,
}

impl Breaker {
    /// One in front of `http://host:port` that breaks nothing yet.
    pub async fn before(url: &str) -> Self {
        let target = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let broken: Rc<Broken> = Rc::default();
        let shared = broken.clone();
        let accepting = spawn_local(async move {
            while let Ok((near, _)) = listener.accept().await {
                if !shared.refuses.get() {
                    spawn_local(connection(near, target.clone(), shared.clone()));
                }
            }
        });
        Breaker { address, broken, accepting }
    }

    /// What the store is to dial.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What becomes of the messages of all watches from now on.
    pub fn rule(&self, rule: impl FnMut(WatchResponse) -> Vec<WatchResponse> + 'static) {
        self.broken.rule.replace(Some(Box::new(rule)));
    }

    /// Messages of watches pass unharmed again.
    pub fn mend(&self) {
        self.broken.rule.replace(None);
    }

    /// From now on watches start so many revisions later than they are asked to.
    pub fn shift_starts(&self, by: i64) {
        self.broken.shift.set(by);
    }

    /// From now on the answers of new watches do not come in parts.
    pub fn never_in_parts(&self) {
        self.broken.whole.set(true);
    }

    /// The next so many lists are answered with the one before them.
    pub fn replay_lists(&self, count: usize) {
        self.broken.replays.set(count);
    }

    /// Of the next so many lists half is missing.
    pub fn halve_lists(&self, count: usize) {
        self.broken.halves.set(count);
    }

    /// Ends all connections; whether new ones are refused.
    pub fn cut(&self, and_refuse: bool) {
        self.broken.refuses.set(and_refuse);
        self.broken.cut.notify_waiters();
    }

    /// How many watches have been opened so far.
    pub fn watches(&self) -> usize {
        self.broken.watches.get()
    }

    /// How many pages of lists have been asked for so far.
    pub fn lists(&self) -> usize {
        self.broken.lists.get()
    }

    /// How often a watch has been asked for its progress so far.
    pub fn asked_for_progress(&self) -> usize {
        self.broken.asked_for_progress.get()
    }
}

impl Drop for Breaker {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// All calls of one connection, until it ends or is cut.
async fn connection(near: TcpStream, target: String, broken: Rc<Broken>) {
    let cut = broken.cut.notified();
    let calls = async {
        let far = TcpStream::connect(&target).await.ok()?;
        let (far, driver) = h2::client::handshake(far).await.ok()?;
        let driver = spawn_local(async move { drop(driver.await) });
        let mut near = h2::server::handshake(near).await.ok()?;
        let mut running = Vec::new();
        while let Some(Ok((request, respond))) = near.accept().await {
            running.push(spawn_local(call(request, respond, far.clone(), broken.clone())));
        }
        running.iter().for_each(JoinHandle::abort);
        driver.abort();
        Some(())
    };
    tokio::select! { _ = calls => {}, () = cut => {} }
}

/// Which calls are looked into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Watch,
    List,
    Other,
}

async fn call(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    far: SendRequest<Bytes>,
    broken: Rc<Broken>,
) -> Option<()> {
    let (head, body) = request.into_parts();
    let watches = head.uri.path() == "/etcdserverpb.Watch/Watch";
    let kind = Rc::new(Cell::new(if watches { Kind::Watch } else { Kind::Other }));
    let ranges = head.uri.path() == "/etcdserverpb.KV/Range";
    let (response, to_far) = far.ready().await.ok()?.send_request(Request::from_parts(head, ()), false).ok()?;
    let uploading = spawn_local(upload(body, to_far, kind.clone(), ranges, broken.clone()));
    let response = response.await;
    let Ok(response) = response else {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return None;
    };
    let (head, body) = response.into_parts();
    let ended = body.is_end_stream();
    let to_near = respond.send_response(Response::from_parts(head, ()), ended).ok()?;
    if !ended {
        download(body, to_near, &kind, &broken).await;
    }
    uploading.abort();
    Some(())
}

async fn upload(
    mut body: RecvStream,
    mut far: SendStream<Bytes>,
    kind: Rc<Cell<Kind>>,
    ranges: bool,
    broken: Rc<Broken>,
) -> Option<()> {
    let mut frames = Frames::default();
    while let Some(frame) = frames.next(&mut body).await {
        let Ok(frame) = frame else {
            far.send_reset(Reason::CANCEL);
            return None;
        };
        let frame = if kind.get() == Kind::Watch { ask_watch(frame, &broken) } else { frame };
        if ranges && RangeRequest::decode(frame.clone()).is_ok_and(|request| !request.range_end.is_empty()) {
            kind.set(Kind::List);
            broken.lists.set(broken.lists.get() + 1);
        }
        far.send_data(framed(&frame), false).ok()?;
    }
    far.send_data(Bytes::new(), true).ok()
}

/// A request of a watch, with the start that suits us.
fn ask_watch(frame: Bytes, broken: &Broken) -> Bytes {
    let mut request = WatchRequest::decode(frame.clone()).expect("a watch's request");
    if request.progress.is_some() {
        broken.asked_for_progress.set(broken.asked_for_progress.get() + 1);
    }
    let Some(create) = &mut request.create else { return frame };
    broken.watches.set(broken.watches.get() + 1);
    create.fragment &= !broken.whole.get();
    create.start_revision = (create.start_revision + broken.shift.get()).max(1);
    request.encode_to_vec().into()
}

async fn download(mut body: RecvStream, mut near: SendStream<Bytes>, kind: &Cell<Kind>, broken: &Broken) -> Option<()> {
    let mut frames = Frames::default();
    while let Some(frame) = frames.next(&mut body).await {
        let Ok(frame) = frame else {
            near.send_reset(Reason::CANCEL);
            return None;
        };
        for frame in match kind.get() {
            Kind::Watch => answer_watch(frame, broken),
            Kind::List => vec![answer_list(frame, broken)],
            Kind::Other => vec![frame],
        } {
            near.send_data(framed(&frame), false).ok()?;
        }
    }
    match body.trailers().await {
        Ok(Some(trailers)) => near.send_trailers(trailers).ok(),
        _ => near.send_data(Bytes::new(), true).ok(),
    }
}

fn answer_watch(frame: Bytes, broken: &Broken) -> Vec<Bytes> {
    let response = WatchResponse::decode(frame.clone()).expect("a watch's response");
    match &mut *broken.rule.borrow_mut() {
        Some(rule) => rule(response).iter().map(|response| response.encode_to_vec().into()).collect(),
        None => vec![frame],
    }
}

#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
    #[prost(bool, tag = "3")]
    more: bool,
    #[prost(int64, tag = "4")]
    count: i64,
}

fn answer_list(frame: Bytes, broken: &Broken) -> Bytes {
    if broken.replays.get() > 0 {
        broken.replays.set(broken.replays.get() - 1);
        return broken.list.borrow().clone();
    }
    if broken.halves.get() > 0 {
        broken.halves.set(broken.halves.get() - 1);
        let mut response = RangeResponse::decode(frame).expect("a list's response");
        response.kvs.truncate(response.kvs.len() / 2);
        return response.encode_to_vec().into();
    }
    broken.list.replace(frame.clone());
    frame
}

/// gRPC's messages in a stream of bytes: a flag, four bytes of length, the message.
#[derive(Default)]
struct Frames {
    bytes: BytesMut,
    whole: VecDeque<Bytes>,
}

impl Frames {
    async fn next(&mut self, body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
        loop {
            if let Some(frame) = self.whole.pop_front() {
                return Some(Ok(frame));
            }
            let more = match body.data().await? {
                Ok(more) => more,
                Err(error) => return Some(Err(error)),
            };
            let _ = body.flow_control().release_capacity(more.len());
            self.bytes.put(more);
            while self.bytes.len() >= 5 {
                let length = u32::from_be_bytes([self.bytes[1], self.bytes[2], self.bytes[3], self.bytes[4]]) as usize;
                if self.bytes.len() < 5 + length {
                    break;
                }
                assert_eq!(self.bytes[0], 0, "nobody asked for compression");
                self.bytes.advance(5);
                self.whole.push_back(self.bytes.split_to(length).freeze());
            }
        }
    }
}

fn framed(message: &Bytes) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}
