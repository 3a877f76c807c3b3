//! The members of an etcd cluster, of which one is asked until it fails.
//!
//! etcd-client balances over its endpoints and never leaves out a dead one: with one of two members down a third of
//! all calls fails. So each member gets a client of its own, and this pool chooses among them.

use super::addresses::Addresses;
use super::channel::{Received, counted, in_time};
use super::cluster::{ClusterId, Clusters, Verdict};
use super::credentials::Credentials;
use super::diagnosis::Dialled;
use super::error::{self, CallError, Failure};
use crate::store::StoreError;
use etcd_client::{Client, ConnectOptions, Error, GetOptions, KvClient, LeaseClient, WatchClient};
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, timeout};
use tonic::transport::Endpoint;

/// How long a member may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a member may take for one call; without a user that includes connecting. An answer that keeps coming may
/// take longer.
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
/// The longest answer of a call that is read. Lists come in pages of 2 MiB or so; a longer one costs etcd and the link
/// little, because it is refused as soon as it begins.
const LARGEST_ANSWER: usize = 8 << 20;
/// The longest part of a watch's answer that is read. etcd makes parts of 2 MiB, or of one change.
const LARGEST_CHANGE: usize = 64 << 20;
/// How often members that were never used are asked for their cluster at most.
const SURVEY_EVERY: Duration = Duration::from_secs(600);

/// All members, one of them pinned.
pub(super) struct Pool {
    members: Vec<Member>,
    addresses: Addresses,
    clusters: Clusters,
    /// A key that may be read by whoever may use the store at all.
    known_key: String,
    surveyed_at: Cell<Option<Instant>>,
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
    /// What has arrived over it.
    pub(super) received: Received,
    /// Reads and writes.
    pub(super) kv: KvClient,
    /// Leases.
    pub(super) lease: LeaseClient,
    /// Watches.
    pub(super) watch: WatchClient,
}

impl Pool {
    /// A pool of these members, `http://host:port` or `https://host:port` each. Nothing is dialled. A read of
    /// `known_key` tells which cluster a member belongs to.
    ///
    /// # Errors
    /// When there is no endpoint, or one is not of that form.
    pub(super) fn new(endpoints: Vec<String>, known_key: String, credentials: Credentials) -> Result<Self, StoreError> {
        if endpoints.is_empty() {
            return Err(StoreError::Refused("no etcd endpoint is given".into()));
        }
        let members = endpoints.into_iter().map(Member::new).collect::<Result<Vec<_>, _>>()?;
        let (members, ports): (Vec<Member>, Vec<u16>) = members.into_iter().unzip();
        Ok(Pool {
            addresses: Addresses::new(members.iter().map(|member| member.host.as_str()).zip(ports)),
            clusters: Clusters::of(members.len()),
            members,
            known_key,
            surveyed_at: Cell::default(),
            credentials,
            pinned: Cell::new(0),
            connections: Cell::new(0),
        })
    }

    /// Asks the pinned member, then the others in turn, each once, until one answers. Who fails is pinned no more.
    pub(super) async fn call<T>(&self, ask: impl AsyncFn(Session) -> Result<T, Error>) -> Result<T, CallError> {
        let first = self.pinned.get();
        let mut failures = Vec::new();
        for step in 0..self.members.len() {
            let index = (first + step) % self.members.len();
            let member = &self.members[index];
            match self.call_at(index, &ask).await {
                Ok(answer) => {
                    self.clusters.answered();
                    return answer.map_err(CallError::Answer);
                }
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
    ) -> Result<Result<T, Box<tonic::Status>>, Failure> {
        let error = match self.ask(index, ask).await? {
            Ok(value) => return Ok(Ok(value)),
            Err(error) => error,
        };
        error::answer(error).map(Err).map_err(|error| Failure::Other(self.dialled(index).explain(&error)))
    }

    async fn ask<T>(
        &self,
        index: usize,
        ask: &impl AsyncFn(Session) -> Result<T, Error>,
    ) -> Result<Result<T, Error>, Failure> {
        let member = &self.members[index];
        let generation = self.credentials.refresh().await;
        if let Some(session) = member.session(generation) {
            let (number, received) = (session.number, session.received.clone());
            match in_time(CALL, || received.by_calls(), Box::pin(ask(session))).await? {
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
        let received = session.received.clone();
        Ok(in_time(CALL, || received.by_calls(), Box::pin(ask(session))).await?)
    }

    /// The connection to this member; made if there is none. Who asks meanwhile waits and shares it: one password is
    /// checked for all.
    async fn session(&self, index: usize, generation: u64) -> Result<Result<Session, Error>, Failure> {
        let member = &self.members[index];
        let limit = if self.credentials.has_user() { AUTHENTICATION } else { CALL };
        let made = async {
            let _alone = member.dialling.lock().await;
            match member.session(generation) {
                Some(session) => Ok(Ok(session)),
                None => match self.connect(index, generation).await {
                    Ok(session) => self.admit(session).await,
                    Err(error) => Ok(Err(error)),
                },
            }
        };
        in_time(limit, || 0, Box::pin(made)).await?
    }

    /// Takes a new connection into use, unless its member belongs to another cluster.
    async fn admit(&self, session: Session) -> Result<Result<Session, Error>, Failure> {
        let index = session.member;
        let id = match self.cluster_of(&session).await {
            Ok(id) => id,
            Err(error) => return Ok(Err(error)),
        };
        let url = &self.members[index].url;
        match id.map_or(Verdict::Member, |id| self.clusters.judge(index, id)) {
            Verdict::Member => {}
            Verdict::Successor => {
                tracing::warn!("{url} belongs to an etcd cluster that was built anew: it is used from now on");
                self.redial();
            }
            Verdict::Foreigner(in_use) => return Err(foreign(id, in_use)),
            Verdict::NewForeigner(in_use) => {
                let failure = foreign(id, in_use);
                tracing::warn!("{url}: {failure}");
                return Err(failure);
            }
        }
        self.members[index].session.replace(Some(session.clone()));
        Ok(Ok(session))
    }

    /// The cluster that a member belongs to; `None` if there is only one member, or this user may not know.
    async fn cluster_of(&self, session: &Session) -> Result<Option<ClusterId>, Error> {
        if self.members.len() == 1 {
            return Ok(None);
        }
        let options = GetOptions::new().with_count_only().with_serializable();
        match session.kv.clone().get(self.known_key.clone(), Some(options)).await {
            Ok(read) => Ok(read.header().map(|header| header.cluster_id()).filter(|id| *id != 0)),
            Err(error) => error::answer(error).map(|_| None),
        }
    }

    /// Asks the members that were never used for their cluster, so that an endpoint of another one is reported before
    /// it is needed. With a user nobody is asked: to check a password is hard work for etcd.
    pub(super) async fn survey(&self) {
        let is_due = self.surveyed_at.get().is_none_or(|then| then.elapsed() >= SURVEY_EVERY);
        if self.members.len() == 1 || self.credentials.has_user() || !is_due {
            return;
        }
        self.surveyed_at.set(Some(Instant::now()));
        for index in self.clusters.unknown() {
            let generation = self.credentials.refresh().await;
            let _ = timeout(CONNECT, self.session(index, generation)).await;
            if self.pinned.get() != index {
                self.members[index].session.take();
            }
        }
    }

    fn dialled(&self, index: usize) -> Dialled<'_> {
        let Member { url, host, .. } = &self.members[index];
        Dialled { url, host, access: self.credentials.access() }
    }

    /// A connection to this member. Without a user it dials when it is first used.
    async fn connect(&self, index: usize, generation: u64) -> Result<Session, Error> {
        let received = Received::default();
        let channel = counted(self.endpoint(&self.members[index])?.connect_lazy(), received.clone());
        let options = ConnectOptions::new().with_require_leader(true);
        let with_user = self.credentials.authenticate(options.clone()).await;
        let client = match Client::from_channel(channel.clone(), Some(with_user)).await {
            // Then nobody needs to.
            Err(error) if error::is_auth_disabled(&error) => Client::from_channel(channel, Some(options)).await?,
            connected => connected?,
        };
        let number = self.connections.get() + 1;
        self.connections.set(number);
        Ok(Session {
            member: index,
            number,
            generation,
            received,
            kv: client.kv_client().max_decoding_message_size(LARGEST_ANSWER),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(LARGEST_CHANGE),
        })
    }

    fn endpoint(&self, member: &Member) -> Result<Endpoint, Error> {
        let endpoint = Endpoint::from_shared(member.url.clone())?
            .connect_timeout(CONNECT)
            .tcp_keepalive(Some(PROBE))
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .keep_alive_while_idle(false);
        match member.is_encrypted() {
            true => self.credentials.encrypt(endpoint, PING + PONG),
            false => Ok(endpoint),
        }
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

/// A member of the cluster `id`, while the cluster `in_use` is another one.
fn foreign(id: Option<ClusterId>, in_use: ClusterId) -> Failure {
    let id = id.unwrap_or_default();
    Failure::Other(format!(
        "it belongs to another etcd cluster (ID {id:x}) than the one in use (ID {in_use:x}) and is not used: \
         --etcd-endpoints must name members of one cluster"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::credentials::Access;
    use super::*;

    fn credentials() -> Credentials {
        Credentials::load(Access::default()).unwrap()
    }

    fn pool_of(urls: Vec<String>) -> Result<Pool, StoreError> {
        Pool::new(urls, "/coreos.com/network/config".into(), credentials())
    }

    fn pool(urls: &[&str]) -> Pool {
        pool_of(urls.iter().map(|url| url.to_string()).collect()).unwrap()
    }

    #[test]
    fn what_is_no_endpoint_is_refused() {
        assert!(pool_of(Vec::new()).is_err());
        assert!(pool_of(vec!["http://10.0.0.2".into()]).is_err());
        assert!(pool_of(vec!["nonsense".into()]).is_err());
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
