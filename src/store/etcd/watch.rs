//! A watch on all keys under `subnets/`.

use super::Keys;
use super::error::{self, CallError};
use super::pool::{Pool, Session};
use crate::model::lease::Revision;
use crate::store::{Change, Changes, StoreError, Watch};
use etcd_client::{Error, Event, EventType, WatchOptions, WatchResponse, WatchStream};
use std::rc::Rc;

/// A running watch at one member of an etcd cluster.
pub struct EtcdWatch {
    pool: Rc<Pool>,
    keys: Rc<Keys>,
    member: usize,
    id: i64,
    stream: WatchStream,
    over: Option<StoreError>,
}

/// A watch that a member has confirmed, and what it said of itself.
pub(super) struct Opened {
    member: usize,
    stream: WatchStream,
    created: WatchResponse,
}

impl Opened {
    /// Asks a member to watch and waits until it confirms that it does.
    pub(super) async fn open(mut session: Session, keys: &Keys, after: Revision) -> Result<Self, Error> {
        let options =
            WatchOptions::new().with_range(keys.subnets_end()).with_start_revision(after + 1).with_progress_notify();
        let mut stream = session.watch.watch(keys.subnets(), Some(options)).await?;
        let created = stream.message().await?.ok_or_else(|| Error::WatchError("the watch ended at once".to_owned()))?;
        error::user_is_known(&created)?;
        Ok(Opened { member: session.member, stream, created })
    }

    /// The member's own revision, which may lag behind the cluster's; cluster and term.
    pub(super) fn header(&self) -> Option<(Revision, u64, u64)> {
        self.created.header().map(|header| (header.revision(), header.cluster_id(), header.raft_term()))
    }

    /// The watch, unless the member refused it while confirming.
    pub(super) fn start(self, pool: Rc<Pool>, keys: Rc<Keys>) -> Result<EtcdWatch, StoreError> {
        let Opened { member, stream, created } = self;
        let watch = EtcdWatch { pool, keys, member, id: created.watch_id(), stream, over: None };
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
        loop {
            let error = match self.stream.message().await {
                Ok(Some(message)) if message.watch_id() != self.id => continue,
                Ok(Some(message)) if message.canceled() => self.cancelled(&message),
                Ok(Some(message)) => return Ok(self.changes(&message)),
                Ok(None) => self.broken("the watch ended"),
                Err(error) => self.failed(error),
            };
            self.over = Some(error.clone());
            return Err(error);
        }
    }
}

impl EtcdWatch {
    fn changes(&self, message: &WatchResponse) -> Changes {
        let changes = message.events().iter().filter_map(|event| self.change(event)).collect();
        // The header of a watch that is still catching up is ahead of its events. Only a message without events,
        // which etcd sends to watches that have caught up, speaks for its header's revision.
        let last = message.events().iter().filter_map(|event| Some(event.kv()?.mod_revision())).max();
        let revision = last.or_else(|| message.header().map(|header| header.revision())).unwrap_or_default();
        Changes { revision, changes }
    }

    fn change(&self, event: &Event) -> Option<Change> {
        let kv = event.kv()?;
        Some(match event.event_type() {
            EventType::Put => Change::Put(self.keys.record(kv)),
            EventType::Delete => Change::Delete { name: self.keys.name(kv.key()), revision: kv.mod_revision() },
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
