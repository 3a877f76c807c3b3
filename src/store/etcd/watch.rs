//! A watch on all keys under `subnets/`.

use super::Keys;
use super::channel::Received;
use super::error::{self, CallError};
use super::liveness::{Liveness, Next, Patience};
use super::pool::{Pool, Session};
use crate::model::lease::Revision;
use crate::store::{Change, Changes, History, StoreError, Watch};
use etcd_client::{Error, Event, EventType, ResponseHeader, WatchOptions, WatchResponse, WatchStream};
use std::rc::Rc;
use tokio::time::timeout_at;

/// A running watch at one member of an etcd cluster.
pub struct EtcdWatch {
    pool: Rc<Pool>,
    keys: Rc<Keys>,
    member: usize,
    id: i64,
    history: History,
    stream: WatchStream,
    liveness: Liveness,
    received: Received,
    /// The bytes that had arrived when the watch was last found alive.
    heard: u64,
    /// The changes of an answer whose other parts are still to come.
    parts: Vec<Change>,
    over: Option<StoreError>,
}

/// A watch that a member has confirmed, and what it said of itself.
pub(super) struct Opened {
    member: usize,
    received: Received,
    stream: WatchStream,
    created: WatchResponse,
}

impl Opened {
    /// Asks a member to watch and waits until it confirms that it does.
    pub(super) async fn open(mut session: Session, keys: &Keys, after: Revision) -> Result<Self, Error> {
        // Without fragments the answer after a gap may be of any size: up to 1,000 revisions in one message.
        let options = WatchOptions::new().with_range(keys.subnets_end()).with_start_revision(after + 1).with_fragment();
        let mut stream = session.watch.watch(keys.subnets(), Some(options)).await?;
        let created = stream.message().await?.ok_or_else(|| Error::WatchError("the watch ended at once".to_owned()))?;
        error::user_is_known(&created)?;
        Ok(Opened { member: session.member, received: session.received, stream, created })
    }

    /// The member's own revision, which may lag behind the cluster's.
    pub(super) fn revision(&self) -> Option<Revision> {
        self.created.header().map(ResponseHeader::revision)
    }

    /// The watch, unless the member refused it while confirming.
    pub(super) fn start(self, pool: Rc<Pool>, keys: Rc<Keys>, patience: Patience) -> Result<EtcdWatch, StoreError> {
        let Opened { member, received, stream, created } = self;
        let history = created.header().map(history).unwrap_or_default();
        let (id, liveness) = (created.watch_id(), Liveness::new(patience));
        let (heard, parts) = (received.by_watches(), Vec::new());
        let watch = EtcdWatch { pool, keys, member, id, history, stream, liveness, received, heard, parts, over: None };
        match created.canceled() {
            true => Err(watch.cancelled(&created)),
            false => Ok(watch),
        }
    }
}

impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Changes, StoreError> {
        if let Some(over) = &self.over {
            return Err(over.clone());
        }
        let told = self.listen().await;
        if let Err(error) = &told {
            self.over = Some(error.clone());
        }
        told
    }

    fn history(&self) -> History {
        self.history
    }
}

/// Which history an answer is from: a cluster's id says which cluster it is, unless it was built anew from the same
/// words; then its elections are counted from the start again.
pub(super) fn history(header: &ResponseHeader) -> History {
    History { store: header.cluster_id(), term: header.raft_term() }
}

impl EtcdWatch {
    async fn listen(&mut self) -> Result<Changes, StoreError> {
        loop {
            let message = match timeout_at(self.liveness.end(), self.stream.message()).await {
                Ok(message) => message,
                // A long answer may take its time on a slow link.
                Err(_) if self.is_receiving() => {
                    self.liveness.heard();
                    continue;
                }
                Err(_) if self.liveness.timed_out() == Next::GiveUp => {
                    return Err(self.broken("the watch gives no sign of life"));
                }
                Err(_) => {
                    self.stream.request_progress().await.map_err(|error| self.failed(error))?;
                    continue;
                }
            };
            self.liveness.heard();
            match message {
                // The answer to a request for progress has no watch's id.
                Ok(Some(message)) if message.watch_id() != self.id => {}
                Ok(Some(message)) if message.canceled() => return Err(self.cancelled(&message)),
                Ok(Some(message)) => {
                    if let Some(changes) = self.take(&message) {
                        return Ok(changes);
                    }
                }
                Ok(None) => return Err(self.broken("the watch ended")),
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    /// Whether anything arrived since this was asked last.
    fn is_receiving(&mut self) -> bool {
        let before = std::mem::replace(&mut self.heard, self.received.by_watches());
        self.heard > before
    }

    /// The changes of a message, together with those of its earlier parts; `None` while parts are missing. Keys that are
    /// deleted together are one revision, which must not be applied by halves.
    fn take(&mut self, message: &WatchResponse) -> Option<Changes> {
        let changes: Vec<Change> = message.events().iter().filter_map(|event| self.change(event)).collect();
        self.parts.extend(changes);
        if message.0.fragment {
            return None;
        }
        let changes = std::mem::take(&mut self.parts);
        // The header of a watch that is still catching up is ahead of its events.
        let last = changes.iter().map(Change::revision).max();
        let revision = last.or_else(|| message.header().map(|header| header.revision())).unwrap_or_default();
        Some(Changes { revision, changes })
    }

    fn change(&self, event: &Event) -> Option<Change> {
        let kv = event.kv()?;
        Some(match event.event_type() {
            EventType::Put => Change::Put(self.keys.record(kv)),
            EventType::Delete => Change::delete(&self.keys.name(kv.key()), kv.mod_revision()),
        })
    }

    fn cancelled(&self, message: &WatchResponse) -> StoreError {
        match message.compact_revision() {
            0 => error::cancelled(message.cancel_reason(), &self.keys.prefix),
            revision => StoreError::Compacted(revision),
        }
    }

    fn failed(&self, error: Error) -> StoreError {
        match error::answer(error).map(CallError::Answer) {
            Ok(error) if error.is_too_large() => StoreError::Unavailable(format!("the watch broke: {error}")),
            Ok(error) => error.into_store_error(&self.keys.prefix),
            Err(error) => self.broken(&error::explain(&error)),
        }
    }

    fn broken(&self, what: &str) -> StoreError {
        self.pool.leave(self.member);
        StoreError::Unavailable(format!("{}: {what}", self.pool.url(self.member)))
    }
}
