//! The members of an etcd cluster, of which one is asked until it fails.
//!
//! etcd-client balances over its endpoints and never leaves out a dead one: with one of two members down a third of
//! all calls fails. So each member gets a client of its own, and this pool chooses among them.

use super::addresses::Addresses;
use super::credentials::Credentials;
use super::diagnosis::Dialled;
use super::error::{self, CallError};
use crate::store::StoreError;
use etcd_client::{Client, ConnectOptions, Error, KvClient, LeaseClient, WatchClient};
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::sync::watch::Receiver;
use tokio::time::timeout;

/// How long a member may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a member may take for one call; without a user that includes connecting.
const CALL: Duration = Duration::from_secs(4);
/// How long a member may take to check a password. That is hard work by design, and hosts that start together wait for
/// each other. Pings find out sooner whether it is there at all.
const AUTHENTICATION: Duration = Duration::from_secs(25);
/// Pings while a stream is open; etcd ends connections that ping more often than every 5 s.
const PING: Duration = Duration::from_secs(5);
/// TCP's own probes of connections without a stream, on which etcd bears no pings: they keep the state of firewalls.
const PROBE: Duration = Duration::from_secs(30);
/// How long a ping may stay unanswered.
const PONG: Duration = Duration::from_secs(3);
/// The longest answer that is read; tonic's own limit is 4 MiB.
const LARGEST_ANSWER: usize = 64 << 20;

/// All members, one of them pinned.
pub(super) struct Pool {
    members: Vec<Member>,
    addresses: Addresses,
    credentials: Credentials,
    pinned: Cell<usize>,
    /// How many connections there were.
    connections: Cell<u64>,
}

struct Member {
    url: String,
    host: String,
    session: RefCell<Option<Session>>,
    /// Held by who is connecting.
    dialling: Mutex<()>,
}

/// A connection to one member.
#[derive(Clone)]
pub(super) struct Session {
    /// The member's place in the pool.
    pub(super) member: usize,
    /// Which of all connections it is.
    number: u64,
    /// Which certificates it was made with.
    generation: u64,
    /// Reads and writes.
    pub(super) kv: KvClient,
    /// Leases.
    pub(super) lease: LeaseClient,
    /// Watches.
    pub(super) watch: WatchClient,
}

impl Pool {
    /// A pool of these members, `http://host:port` or `https://host:port` each. Nothing is dialled.
    pub(super) fn new(endpoints: Vec<String>, credentials: Credentials) -> Result<Self, StoreError> {
        if endpoints.is_empty() {
            return Err(StoreError::Refused("no etcd endpoint is given".into()));
        }
        let members = endpoints.into_iter().map(Member::new).collect::<Result<Vec<_>, _>>()?;
        let (members, ports): (Vec<Member>, Vec<u16>) = members.into_iter().unzip();
        let addresses = Addresses::new(members.iter().map(|member| member.host.as_str()).zip(ports));
        Ok(Pool { members, addresses, credentials, pinned: Cell::new(0), connections: Cell::new(0) })
    }

    /// Asks the pinned member, then the others in turn, each once, until one answers. Who fails is pinned no more.
    pub(super) async fn call<T>(&self, ask: impl AsyncFn(Session) -> Result<T, Error>) -> Result<T, CallError> {
        let first = self.pinned.get();
        let mut failures = Vec::new();
        for step in 0..self.members.len() {
            let index = (first + step) % self.members.len();
            let member = &self.members[index];
            match self.call_at(index, &ask).await {
                Ok(answer) => return answer.map_err(CallError::Answer),
                Err(what) => {
                    tracing::debug!("{}: {what}", member.url);
                    failures.push((member.url.clone(), what));
                    self.leave(index);
                }
            }
        }
        // In the order in which they were given, so that the same trouble reads the same whoever was asked first.
        failures.rotate_right(first);
        Err(CallError::NoAnswer(failures))
    }

    /// One call at this member: what the cluster answered, or what went wrong here.
    async fn call_at<T>(
        &self,
        index: usize,
        ask: &impl AsyncFn(Session) -> Result<T, Error>,
    ) -> Result<Result<T, Box<tonic::Status>>, String> {
        let error = match self.ask(index, ask).await? {
            Ok(value) => return Ok(Ok(value)),
            Err(error) => error,
        };
        error::answer(error).map(Err).map_err(|error| self.dialled(index).explain(&error))
    }

    async fn ask<T>(
        &self,
        index: usize,
        ask: &impl AsyncFn(Session) -> Result<T, Error>,
    ) -> Result<Result<T, Error>, String> {
        let member = &self.members[index];
        let generation = self.credentials.refresh().await;
        if let Some(session) = member.session(generation) {
            let number = session.number;
            match in_time(CALL, Box::pin(ask(session))).await? {
                // The connection may have been dead for long, the member need not be.
                Err(error) if error::is_broken_connection(&error) => {}
                // etcd forgets who we are when it restarts, when nothing was asked for minutes, and on new passwords.
                Err(error) if self.credentials.has_user() && error::is_unknown_user(&error) => {
                    tracing::debug!("{}: {}; authenticating again", member.url, error::explain(&error));
                }
                result => return Ok(result),
            }
            member.session.borrow_mut().take_if(|session| session.number == number);
        }
        // A new connection may be one to another address, and what is known of the other members may be old.
        self.addresses.look_up();
        let session = match self.session(index, generation).await? {
            Ok(session) => session,
            Err(error) => return Ok(Err(error)),
        };
        in_time(CALL, Box::pin(ask(session))).await
    }

    /// The connection to this member; made if there is none. Who asks meanwhile waits and shares it: one password is
    /// checked for all.
    async fn session(&self, index: usize, generation: u64) -> Result<Result<Session, Error>, String> {
        let member = &self.members[index];
        let limit = if self.credentials.has_user() { AUTHENTICATION } else { CALL };
        let made = async {
            let _alone = member.dialling.lock().await;
            match member.session(generation) {
                Some(session) => Ok(session),
                None => self.connect(index, generation).await,
            }
        };
        in_time(limit, Box::pin(made)).await
    }

    fn dialled(&self, index: usize) -> Dialled<'_> {
        let Member { url, host, .. } = &self.members[index];
        Dialled { url, host, access: self.credentials.access() }
    }

    /// A client for this member. Without a user it dials when it is first used.
    async fn connect(&self, index: usize, generation: u64) -> Result<Session, Error> {
        let member = &self.members[index];
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_tcp_keepalive(PROBE)
            .with_keep_alive(PING, PONG)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true);
        if member.is_encrypted() {
            options = self.credentials.encrypt(options, PING + PONG);
        }
        let authenticated = self.credentials.authenticate(options.clone()).await;
        let client = match Client::connect([&member.url], Some(authenticated)).await {
            // Then nobody needs to.
            Err(error) if error::is_auth_disabled(&error) => Client::connect([&member.url], Some(options)).await?,
            connected => connected?,
        };
        let number = self.connections.get() + 1;
        self.connections.set(number);
        let session = Session {
            member: index,
            number,
            generation,
            kv: client.kv_client().max_decoding_message_size(LARGEST_ANSWER),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(LARGEST_ANSWER),
        };
        member.session.replace(Some(session.clone()));
        Ok(session)
    }

    /// Makes the next call go to another member than this one, which failed.
    pub(super) fn leave(&self, member: usize) {
        self.members[member].session.take();
        if self.pinned.get() == member {
            self.pinned.set((member + 1) % self.members.len());
        }
    }

    /// Makes the next call go to another member than the last one.
    pub(super) fn leave_pinned(&self) {
        self.leave(self.pinned.get());
    }

    /// Lets go of all connections; what is under way on them goes on.
    pub(super) fn redial(&self) {
        self.members.iter().for_each(|member| drop(member.session.take()));
    }

    /// The name of a member, for messages.
    pub(super) fn url(&self, member: usize) -> &str {
        &self.members[member].url
    }

    /// The addresses of all members, as they become known.
    pub(super) fn addresses(&self) -> Receiver<Vec<IpAddr>> {
        self.addresses.subscribe()
    }
}

impl Member {
    /// A member and its port.
    fn new(url: String) -> Result<(Self, u16), StoreError> {
        let broken =
            || StoreError::Refused(format!("{url:?} is no etcd endpoint: http://HOST:PORT is wanted, or https"));
        let uri: hyper::Uri = url.parse().map_err(|_| broken())?;
        let host = uri.host().ok_or_else(broken)?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().ok_or_else(broken)?;
        Ok((Member { url, host, session: RefCell::default(), dialling: Mutex::default() }, port))
    }

    /// The connection that there is, if it was made with these certificates.
    fn session(&self, generation: u64) -> Option<Session> {
        self.session.borrow().clone().filter(|session| session.generation == generation)
    }

    fn is_encrypted(&self) -> bool {
        self.url.starts_with("https://")
    }
}

/// What comes of it in time. On the heap, since calls to etcd are large and are copied a few times on their way here.
async fn in_time<T>(limit: Duration, work: Pin<Box<impl Future<Output = T>>>) -> Result<T, String> {
    timeout(limit, work).await.map_err(|_| format!("no answer within {} s", limit.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::super::credentials::Access;
    use super::*;

    fn credentials() -> Credentials {
        Credentials::load(Access::default()).unwrap()
    }

    fn pool(urls: &[&str]) -> Pool {
        Pool::new(urls.iter().map(|url| url.to_string()).collect(), credentials()).unwrap()
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        assert!(Pool::new(Vec::new(), credentials()).is_err());
        assert!(Pool::new(vec!["http://10.0.0.2".into()], credentials()).is_err());
        assert!(Pool::new(vec!["nonsense".into()], credentials()).is_err());
    }

    #[test]
    fn leaving_a_member_twice_skips_no_other() {
        let pool = pool(&["http://10.0.0.2:1", "http://10.0.0.2:2", "http://10.0.0.2:3"]);
        pool.leave(0);
        pool.leave(0);
        assert_eq!(pool.pinned.get(), 1);
        pool.leave(2);
        assert_eq!(pool.pinned.get(), 1);
    }

    #[tokio::test]
    async fn the_same_trouble_reads_the_same_whoever_was_asked_first() {
        let pool = pool(&["http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3"]);
        let mut texts = Vec::new();
        for first in 0..3 {
            pool.pinned.set(first);
            texts.push(pool.call(async |mut s| s.kv.get("x", None).await).await.unwrap_err().to_string());
        }
        assert!(texts[0].starts_with("http://127.0.0.1:1, http://127.0.0.1:2, "), "{texts:?}");
        assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    }

    #[tokio::test]
    async fn the_names_of_all_members_are_looked_up_while_the_first_one_is_dialled() {
        let silent = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
        let first = format!("http://{}", silent.local_addr().unwrap());
        let pool = pool(&[&first, "http://[::1]:1", "http://localhost:1"]);
        let mut addresses = pool.addresses();
        let known = ["127.0.0.2", "::1"].map(|address| address.parse::<IpAddr>().unwrap());
        assert_eq!(*addresses.borrow_and_update(), known);
        tokio::select! {
            biased;
            _ = pool.call(async |mut session| session.kv.get("x", None).await) => panic!("the first member answered"),
            found = addresses.wait_for(|all| all.contains(&IpAddr::from([127, 0, 0, 1]))) => drop(found.unwrap()),
        }
    }
}
