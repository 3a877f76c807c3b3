//! Leases in etcd's v3 API, in the keys and the form that flannel uses.

mod addresses;
mod channel;
mod cluster;
mod credentials;
mod diagnosis;
mod error;
mod keys;
mod listing;
mod liveness;
mod nearby;
mod plain;
mod pool;
mod spare;
mod watch;

pub use credentials::{Access, IdentityFiles, Password, Secret, User};
pub use watch::EtcdWatch;

use super::{Expiry, Leases, Precondition, Registry, Snapshot, StoreError, WriteOutcome};
use crate::files::FileIo;
use crate::model::lease::{LeaseAttrs, LeaseId, Record, Revision};
use crate::model::subnet::SubnetKey;
use credentials::Credentials;
use error::CallError;
use etcd_client::{Error, GetOptions, GetResponse, LeaseGrantOptions, PutOptions, Txn, TxnOp, TxnOpResponse};
use keys::Keys;
use listing::{Experience, Listing};
use liveness::Patience;
use nearby::Nearby;
use pool::{Pool, Session};
use spare::Spare;
use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::watch::Receiver;

/// How often a listing starts over before it gives up.
const LISTINGS: usize = 8;
/// How long a list waits at most for members that were never used to tell their cluster.
const SURVEY: Duration = Duration::from_secs(1);

/// Leases in etcd. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct EtcdStore {
    pool: Rc<Pool>,
    keys: Rc<Keys>,
    patience: Patience,
    experience: Rc<Experience>,
    spare: Rc<Spare>,
    nearby: Rc<Nearby>,
}

/// The part of `access` that these endpoints need: the files for TLS only if one of them uses TLS. Others may be missing.
fn needed(endpoints: &[String], access: Access) -> Access {
    let is_encrypted = endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
    if is_encrypted { access } else { Access { user: access.user, ..Access::default() } }
}

impl EtcdStore {
    /// A store at these members of one cluster, which ask for no user, with all keys under `prefix`. Dials nothing.
    ///
    /// # Errors
    /// As for [`EtcdStore::with_access`].
    pub fn new(endpoints: Vec<String>, prefix: &str) -> Result<Self, StoreError> {
        EtcdStore::with_access(endpoints, prefix, Access::default())
    }

    /// A store at these members of one cluster, `http://host:port` or `https://host:port` each, with all keys under
    /// `prefix`. Dials nothing.
    ///
    /// # Errors
    /// When there is no endpoint, one is not of that form, or a file that `access` names cannot be used. Files for TLS
    /// are read only if an endpoint uses TLS.
    pub fn with_access(endpoints: Vec<String>, prefix: &str, access: Access) -> Result<Self, StoreError> {
        let credentials = Credentials::load(needed(&endpoints, access)).map_err(StoreError::Refused)?;
        EtcdStore::new_with(endpoints, prefix, credentials)
    }

    /// The same as [`EtcdStore::with_access`], without waiting on this thread for the disk with the files.
    ///
    /// # Errors
    /// As there.
    pub async fn open(endpoints: Vec<String>, prefix: &str, access: Access) -> Result<Self, StoreError> {
        let access = needed(&endpoints, access);
        let credentials = FileIo::Aside.run(move || Credentials::load(access)).await.map_err(StoreError::Refused)?;
        EtcdStore::new_with(endpoints, prefix, credentials)
    }

    fn new_with(endpoints: Vec<String>, prefix: &str, credentials: Credentials) -> Result<Self, StoreError> {
        let keys = Keys::new(prefix);
        Ok(EtcdStore {
            pool: Rc::new(Pool::new(endpoints, keys.config(), credentials)?),
            keys: Rc::new(keys),
            patience: Patience::default(),
            experience: Rc::default(),
            spare: Rc::default(),
            nearby: Rc::default(),
        })
    }

    /// The same store, whose watches are asked for a sign of life when they have been silent for that long, and are
    /// over when they give none within as long again. By default that is 10 s and 15 s.
    pub fn with_patience(self, liveness: Duration) -> Self {
        EtcdStore { patience: Patience::new(liveness, liveness), ..self }
    }

    async fn call<T>(&self, ask: impl AsyncFn(Session) -> Result<T, Error>) -> Result<T, StoreError> {
        self.pool.call(ask).await.map_err(|error| self.error(error))
    }

    fn error(&self, error: CallError) -> StoreError {
        error.into_store_error(&self.keys.prefix)
    }

    /// Whether etcd itself is not as far as `after`: it was wiped or restored, and a watch would be silent for long.
    async fn is_behind(&self, opened: &watch::Opened, after: Revision) -> Result<bool, StoreError> {
        if opened.revision().is_none_or(|revision| revision >= after) {
            return Ok(false);
        }
        // The member may lag behind: a read from a quorum tells.
        let options = GetOptions::new().with_count_only();
        let read = self.call(async |mut s| s.kv.get(self.keys.config(), Some(options.clone())).await).await?;
        Ok(read.header().is_some_and(|header| header.revision() < after))
    }

    /// An etcd lease for a new key: the one that an earlier write was to use and did not, or a new one. Its id is chosen
    /// here, so that asking again after a lost answer makes no second one.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).max(1);
        if let Some(id) = self.spare.get(seconds)
            && self.call(async |session| renew(session, id).await).await?.is_some()
        {
            return Ok(id);
        }
        let id = rand::random_range(1..i64::MAX);
        self.spare.set(id, seconds);
        let options = LeaseGrantOptions::new().with_id(id);
        let granted = self.pool.call(async |mut s| s.lease.grant(seconds, Some(options.clone())).await).await;
        match granted {
            Err(error) if !error.is_lease_exists() => Err(self.error(error)),
            _ => Ok(LeaseId::new(id).expect("it is not 0")),
        }
    }

    /// Puts the value if the guard holds, and tells whether it did; either way the key as it stands then comes back.
    ///
    /// The guard of a second try does not hold if the first one, whose answer was lost, did the work. Only then is what
    /// stands there taken for it: a copy of this host writes the very same.
    async fn put(
        &self,
        key: &[u8],
        value: &[u8],
        precondition: Precondition,
        lease: Option<LeaseId>,
    ) -> Result<(bool, Option<Stored>), CallError> {
        let put = PutOptions::new().with_lease(raw(lease));
        let txn = Txn::new()
            .when([keys::precondition(key, precondition)])
            .and_then([TxnOp::put(key, value, Some(put)), TxnOp::get(key, None)])
            .or_else([TxnOp::get(key, None)]);
        let tries = Cell::new(0);
        let ask = async |mut session: Session| {
            tries.set(tries.get() + 1);
            session.kv.txn(txn.clone()).await
        };
        let done = self.pool.call(ask).await?;
        let stored = done.op_responses().iter().find_map(|response| match response {
            TxnOpResponse::Get(get) => self.stored(get),
            _ => None,
        });
        let is_ours = |stored: &Stored| tries.get() > 1 && stored.value == value && stored.lease == lease;
        Ok((done.succeeded() || stored.as_ref().is_some_and(is_ours), stored))
    }

    async fn read(&self, key: &[u8]) -> Result<Option<Record>, StoreError> {
        let read = self.call(async |mut s| s.kv.get(key, None).await).await?;
        Ok(self.stored(&read).map(|stored| stored.record))
    }

    fn stored(&self, get: &GetResponse) -> Option<Stored> {
        let kv = get.kvs().first()?;
        Some(Stored { record: self.keys.record(kv), value: kv.value().to_vec(), lease: LeaseId::new(kv.lease()) })
    }

    /// Gives a lease back that nothing was written with. If that fails it expires by itself.
    async fn revoke(&self, id: LeaseId) {
        if let Err(error) = self.release(id).await {
            tracing::debug!("etcd lease {id} is left to expire: {error}");
        }
    }
}

/// A key with what a retry needs to recognise its own earlier write.
struct Stored {
    record: Record,
    value: Vec<u8>,
    lease: Option<LeaseId>,
}

fn raw(lease: Option<LeaseId>) -> i64 {
    lease.map_or(0, |id| id.0.get())
}

impl Registry for EtcdStore {
    type Watch = EtcdWatch;

    async fn config(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let read = self.call(async |mut s| s.kv.get(self.keys.config(), None).await).await?;
        Ok(read.kvs().first().map(|kv| kv.value().to_vec()))
    }

    async fn other_configs(&self) -> Vec<String> {
        self.nearby.search(&self.pool, &self.keys).await
    }

    async fn list(&self) -> Result<Snapshot, StoreError> {
        for _ in 0..LISTINGS {
            match Listing::read(&self.pool, &self.keys, &self.experience).await {
                Ok(snapshot) => {
                    let _ = tokio::time::timeout(SURVEY, self.pool.survey()).await;
                    return Ok(snapshot);
                }
                Err(error) if error.is_no_such_revision() => {}
                Err(error) => {
                    if error.is_timed_out() {
                        self.experience.timed_out();
                    }
                    return Err(self.error(error));
                }
            }
        }
        Err(StoreError::Unavailable("etcd's keys cannot be listed: they are compacted too fast".into()))
    }

    async fn watch(&self, after: Revision) -> Result<EtcdWatch, StoreError> {
        let opened = self.call(async |session| watch::Opened::open(session, &self.keys, after).await).await?;
        if self.is_behind(&opened, after).await? {
            return Err(StoreError::Compacted(after));
        }
        opened.start(self.pool.clone(), self.keys.clone(), self.patience.clone())
    }

    fn endpoints(&self) -> Receiver<Vec<IpAddr>> {
        self.pool.addresses()
    }

    fn ask_another(&self) {
        self.pool.leave_pinned();
    }

    fn redial(&self) {
        self.pool.redial();
    }
}

impl Leases for EtcdStore {
    async fn write(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        precondition: Precondition,
        expiry: Expiry,
    ) -> Result<WriteOutcome, StoreError> {
        let (key, value) = (self.keys.subnet(subnet), attrs.to_json().into_bytes());
        let lease = match expiry {
            Expiry::Grant(ttl) => Some(self.grant(ttl).await?),
            Expiry::Keep(id) => Some(id),
            Expiry::Forever => None,
        };
        let (succeeded, stored) = match self.put(&key, &value, precondition, lease).await {
            Ok(done) => {
                self.spare.take(lease);
                done
            }
            Err(error) if error.is_lease_not_found() => return Ok(WriteOutcome::Conflict(self.read(&key).await?)),
            Err(error) => return Err(self.error(error)),
        };
        match stored {
            Some(stored) if succeeded => Ok(WriteOutcome::Committed(stored.record)),
            stored => {
                let holds_nothing = stored.as_ref().is_none_or(|stored| stored.lease != lease);
                if let (Expiry::Grant(_), Some(id), true) = (expiry, lease, holds_nothing) {
                    self.revoke(id).await;
                }
                Ok(WriteOutcome::Conflict(stored.map(|stored| stored.record)))
            }
        }
    }

    async fn remove(&self, subnet: SubnetKey, unchanged: Revision) -> Result<bool, StoreError> {
        let key = self.keys.subnet(subnet);
        let txn = Txn::new()
            .when([keys::precondition(&key, Precondition::Unchanged(unchanged))])
            .and_then([TxnOp::delete(key.clone(), None)])
            .or_else([TxnOp::get(key.clone(), None)]);
        let tries = Cell::new(0);
        let done = self
            .call(async |mut session| {
                tries.set(tries.get() + 1);
                session.kv.txn(txn.clone()).await
            })
            .await?;
        let is_gone = done.op_responses().iter().any(|r| matches!(r, TxnOpResponse::Get(get) if get.kvs().is_empty()));
        // A first try whose answer was lost may have deleted it.
        Ok(done.succeeded() || (is_gone && tries.get() > 1))
    }

    async fn keep_alive(&self, id: LeaseId) -> Result<Option<Duration>, StoreError> {
        self.spare.take(Some(id));
        let ttl = self.call(async |session| renew(session, id).await).await?;
        Ok(ttl.map(Duration::from_secs))
    }

    async fn release(&self, id: LeaseId) -> Result<(), StoreError> {
        match self.pool.call(async |mut s| s.lease.revoke(id.0.get()).await).await {
            Err(error) if !error.is_lease_not_found() => Err(self.error(error)),
            _ => Ok(()),
        }
    }
}

/// One renewal; `None` if there is no such lease. etcd-client renews once by opening the stream, but keeps the time
/// to live to itself: a second renewal tells.
async fn renew(mut session: Session, id: LeaseId) -> Result<Option<u64>, Error> {
    let (mut keeper, mut answers) = match session.lease.keep_alive(id.0.get()).await {
        Err(Error::LeaseKeepAliveError(text)) if text.contains("lease not found") => return Ok(None),
        opened => opened?,
    };
    keeper.keep_alive().await?;
    let answer = answers.message().await?.ok_or_else(|| Error::LeaseKeepAliveError("the stream ended".into()))?;
    Ok(u64::try_from(answer.ttl()).ok().filter(|ttl| *ttl > 0))
}
