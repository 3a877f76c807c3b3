//! One rtnetlink socket: complete dumps, single requests and batches of changes.

use super::KernelError;
use super::wire::{Frame, Kind, Refusal, frames};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::iter::Peekable;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Size of the receive buffer in bytes. An unread answer takes about 832 bytes; the kernel's default holds 256 answers.
const RECEIVE_BUFFER: usize = 8 << 20;
/// The largest number of requests in one send. If all are refused, their answers fit into the kernel's default receive
/// buffer.
const BATCH_REQUESTS: usize = 200;
/// The largest number of bytes in one send, not counting the last request: a third of the kernel's default send buffer.
const BATCH_BYTES: usize = 64 << 10;
/// The kernel fills at most 32 KiB of dump at a time.
const INPUT: usize = 64 << 10;
/// How long an answer may take. The kernel answers while the request is being sent, so this limit is a safeguard.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often an interrupted dump is repeated, and the pause after the first attempt. The pause grows.
const DUMP_ATTEMPTS: u32 = 10;
const DUMP_PAUSE: Duration = Duration::from_millis(2);

/// A change to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The message.
    pub message: RouteNetlinkMessage,
    /// `NLM_F_CREATE` and the like. The socket adds `NLM_F_REQUEST` and `NLM_F_ACK` itself.
    pub flags: u16,
}

/// An rtnetlink socket of the network namespace of the thread that opened it. One call at a time.
///
/// A call that is cancelled, times out or overflows the receive buffer leaves stale answers on the socket, and perhaps a
/// running dump. The next call therefore opens a new socket.
pub struct NetlinkSocket {
    socket: TokioSocket,
    sequence: u32,
    /// Whether the last call did not end.
    unfinished: bool,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Why a call failed before it was answered.
#[derive(Debug)]
enum Broken {
    Io(io::Error),
    TimedOut,
    Malformed,
}

impl Broken {
    fn refusal(&self) -> Refusal {
        match self {
            Broken::Io(error) => Refusal::new(error.raw_os_error().unwrap_or(libc::EIO)),
            Broken::TimedOut => Refusal::new(libc::ETIMEDOUT),
            Broken::Malformed => Refusal::new(libc::EBADMSG),
        }
    }
}

/// The outcome of a dump.
enum Dumped<T> {
    Whole(Vec<T>),
    Interrupted,
    Refused(Refusal),
}

impl NetlinkSocket {
    /// Opens a socket. Needs a tokio runtime.
    pub fn open() -> Result<Self, KernelError> {
        let socket = open().map_err(|error| named("open netlink socket", Broken::Io(error).refusal()))?;
        Ok(NetlinkSocket {
            socket,
            sequence: 0,
            unfinished: false,
            input: Vec::with_capacity(INPUT),
            output: Vec::with_capacity(BATCH_BYTES),
        })
    }

    /// Reads a whole table and keeps the values that `pick` returns. A table that changed meanwhile is read again.
    /// `what` names the table in the error.
    pub async fn dump<T>(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        pick: impl Fn(Frame) -> Option<T>,
    ) -> Result<Vec<T>, KernelError> {
        for attempt in 1..=DUMP_ATTEMPTS {
            match self.dump_once(&message, &pick).await.map_err(|broken| named(what, broken.refusal()))? {
                Dumped::Whole(objects) => return Ok(objects),
                Dumped::Interrupted => sleep(DUMP_PAUSE * attempt).await,
                Dumped::Refused(refusal) => return Err(named(what, refusal)),
            }
        }
        let reason = format!("it changed {DUMP_ATTEMPTS} times while it was read");
        Err(KernelError { what: what.to_owned(), errno: 0, reason })
    }

    /// Requests one object.
    pub async fn get(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, KernelError> {
        let answer = self.get_once(message).await.map_err(|broken| named(what, broken.refusal()))?;
        answer.map_err(|refusal| named(what, refusal))
    }

    /// Makes changes in their order, many with one system call. Returns one result for each. A refused change does not
    /// stop the others. `ENOBUFS` and `ETIMEDOUT` mean that the outcome is unknown.
    pub async fn batch(&mut self, requests: impl IntoIterator<Item = Request>) -> Vec<Result<(), Refusal>> {
        let mut requests = requests.into_iter().peekable();
        let mut results = Vec::with_capacity(requests.size_hint().0);
        while requests.peek().is_some() {
            if let Err(broken) = self.batch_once(&mut requests, &mut results).await {
                let refusal = broken.refusal();
                let unsent = requests.map(|_| Err(refusal.clone()));
                results.extend(unsent);
                break;
            }
        }
        results
    }

    /// Makes one change.
    pub async fn change(&mut self, request: Request) -> Result<(), Refusal> {
        self.batch([request]).await.pop().unwrap_or(Ok(()))
    }

    async fn dump_once<T>(
        &mut self,
        message: &RouteNetlinkMessage,
        pick: impl Fn(Frame) -> Option<T>,
    ) -> Result<Dumped<T>, Broken> {
        self.begin()?;
        let sequence = self.push(message.clone(), NLM_F_DUMP);
        self.send().await?;
        let (mut objects, mut interrupted, mut end) = (Vec::new(), false, None);
        while end.is_none() {
            let deadline = Instant::now() + DEADLINE;
            self.receive(deadline, |frame| {
                if frame.sequence != sequence {
                    return;
                }
                interrupted |= frame.flags & NLM_F_DUMP_INTR != 0;
                match frame.kind() {
                    Kind::Object => objects.extend(pick(frame)),
                    Kind::Answer(outcome) | Kind::Done(outcome) => end = Some(outcome),
                    Kind::Noop => {}
                }
            })
            .await?;
        }
        self.unfinished = false;
        Ok(match end {
            Some(Err(refusal)) => Dumped::Refused(refusal),
            _ if interrupted => Dumped::Interrupted,
            _ => Dumped::Whole(objects),
        })
    }

    async fn get_once(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Result<Option<RouteNetlinkMessage>, Refusal>, Broken> {
        self.begin()?;
        let sequence = self.push(message, 0);
        self.send().await?;
        let deadline = Instant::now() + DEADLINE;
        let mut answer = None;
        while answer.is_none() {
            self.receive(deadline, |frame| {
                if frame.sequence == sequence {
                    answer = match frame.kind() {
                        Kind::Object => Some(Ok(object(frame))),
                        Kind::Answer(outcome) | Kind::Done(outcome) => Some(outcome.map(|()| None)),
                        Kind::Noop => None,
                    }
                }
            })
            .await?;
        }
        self.unfinished = false;
        Ok(answer.unwrap_or(Ok(None)))
    }

    /// Sends as many of `requests` as fit and appends one result for each of them, also after an error.
    ///
    /// Only the last one asks for an acknowledgement: the kernel executes them in their order and reports each refusal.
    async fn batch_once(
        &mut self,
        requests: &mut Peekable<impl Iterator<Item = Request>>,
        results: &mut Vec<Result<(), Refusal>>,
    ) -> Result<(), Broken> {
        self.begin()?;
        let (first, start) = (self.sequence.wrapping_add(1), results.len());
        let mut last = 0;
        while results.len() - start < BATCH_REQUESTS
            && self.output.len() < BATCH_BYTES
            && let Some(request) = requests.next()
        {
            last = self.output.len();
            self.push(request.message, request.flags);
            results.push(Ok(()));
        }
        self.demand_answer(last);
        let outcome = self.send_and_collect(first, &mut results[start..]).await;
        if let Err(broken) = &outcome {
            let unknown = results[start..].iter_mut().filter(|result| result.is_ok());
            unknown.for_each(|result| *result = Err(broken.refusal()));
        }
        match outcome {
            // The kernel has executed these requests, so the next ones can follow.
            Err(Broken::Io(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            outcome => outcome,
        }
    }

    /// Sends, and records refusals until the last request is answered.
    async fn send_and_collect(&mut self, first: u32, results: &mut [Result<(), Refusal>]) -> Result<(), Broken> {
        self.send().await?;
        let deadline = Instant::now() + DEADLINE;
        let mut answered = false;
        while !answered {
            self.receive(deadline, |frame| {
                let at = frame.sequence.wrapping_sub(first) as usize;
                let is_last = at + 1 == results.len();
                if let (Some(result), Kind::Answer(outcome)) = (results.get_mut(at), frame.kind()) {
                    *result = outcome;
                    answered |= is_last;
                }
            })
            .await?;
        }
        self.unfinished = false;
        Ok(())
    }

    /// Starts a call, on a new socket if the previous call did not end.
    fn begin(&mut self) -> Result<(), Broken> {
        if self.unfinished {
            self.socket = open().map_err(Broken::Io)?;
        }
        self.unfinished = true;
        self.output.clear();
        Ok(())
    }

    /// Appends a message to the output and returns its sequence number.
    fn push(&mut self, message: RouteNetlinkMessage, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = self.output.len();
        self.output.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut self.output[start..]);
        self.sequence
    }

    /// Requests an acknowledgement of the message that begins at `start`.
    fn demand_answer(&mut self, start: usize) {
        const FLAGS: usize = 6;
        if let Some(flags) = self.output.get_mut(start + FLAGS..start + FLAGS + 2) {
            let known = u16::from_ne_bytes([flags[0], flags[1]]);
            flags.copy_from_slice(&(known | NLM_F_ACK).to_ne_bytes());
        }
    }

    async fn send(&mut self) -> Result<(), Broken> {
        self.socket.send(&self.output).await.map(drop).map_err(Broken::Io)
    }

    /// Waits for a datagram and passes its messages to `take`.
    async fn receive(&mut self, deadline: Instant, mut take: impl FnMut(Frame)) -> Result<(), Broken> {
        self.input.clear();
        let received = timeout_at(deadline, self.socket.recv(&mut self.input)).await;
        received.map_err(|_| Broken::TimedOut)?.map_err(Broken::Io)?;
        for frame in frames(&self.input) {
            take(frame.ok_or(Broken::Malformed)?);
        }
        Ok(())
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.socket_ref().as_fd()
    }
}

/// The object in a message; `None` if it cannot be decoded. Such an object belongs to an unusual interface or route of
/// another program and must not hide the rest.
pub fn object(frame: Frame) -> Option<RouteNetlinkMessage> {
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(frame.bytes) {
        Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) => Some(message),
        Ok(_) => None,
        Err(error) => {
            tracing::debug!("skipped a netlink message that cannot be decoded: {error}");
            None
        }
    }
}

fn named(what: &str, refusal: Refusal) -> KernelError {
    KernelError::from_errno(what, refusal.errno, &refusal.explanation)
}

fn open() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let inner = socket.socket_mut();
    inner.bind_auto()?;
    inner.connect(&SocketAddr::new(0, 0))?;
    // Strict checking (Linux 4.20) filters dumps; CAP_ACK (4.3) and EXT_ACK (4.12) make acknowledgements shorter and
    // explain refusals. Older kernels work without them.
    do_without("NETLINK_GET_STRICT_CHK", inner.set_netlink_get_strict_chk(true));
    do_without("NETLINK_CAP_ACK", inner.set_cap_ack(true));
    do_without("NETLINK_EXT_ACK", inner.set_ext_ack(true));
    enlarge_receive_buffer(inner, RECEIVE_BUFFER);
    Ok(socket)
}

/// Logs that the kernel refuses an option. Every option is dispensable.
fn do_without(option: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!("netlink without {option}: {error}");
    }
}

/// Enlarges the receive buffer beyond `net.core.rmem_max` with `CAP_NET_ADMIN`, otherwise up to that limit. A small
/// buffer loses answers and reports; losses are detected and repaired by a full read.
pub(super) fn enlarge_receive_buffer(socket: &Socket, size: usize) {
    let forced = setsockopt(socket, sockopt::RcvBufForce, &size);
    let enlarged = forced.or_else(|_| setsockopt(socket, sockopt::RcvBuf, &size));
    do_without("a large receive buffer", enlarged.map_err(io::Error::from));
}
