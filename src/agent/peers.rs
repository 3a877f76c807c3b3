//! The peers' leases: listed once, then followed by a watch for as long as the daemon runs.

use super::env::{Backoff, Env};
use super::status::{Board, Topic};
use crate::model::lease::Revision;
use crate::store::{Changes, Snapshot, Store, StoreError, Watch};
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

/// What there is to know of the keys in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// All of them.
    All(Snapshot),
    /// Some changed.
    Some(Changes),
}

/// Lists and watches for ever. A watch that breaks is taken up again where it ended; when the store no longer knows
/// what happened since, it is listed anew. Failures never say anything about peers.
pub async fn follow<S: Store>(store: Rc<S>, env: Rc<Env>, board: Board, news: mpsc::Sender<News>) -> Infallible {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut seen: Option<Revision> = None;
    loop {
        let error = match follow_once(&*store, &board, &news, &mut seen, &mut backoff).await {
            Err(StoreError::Compacted(revision)) => {
                tracing::info!(
                    "what happened in etcd after revision {revision} is not known there any more: listing again"
                );
                seen = None;
                tokio::time::sleep(backoff.pause(&env)).await;
                continue;
            }
            Err(error) => error,
            Ok(never) => match never {},
        };
        board.trouble(Topic::Peers, format!("peers cannot be followed: {error}"));
        tokio::time::sleep(backoff.pause(&env)).await;
    }
}

async fn follow_once<S: Store>(
    store: &S,
    board: &Board,
    news: &mpsc::Sender<News>,
    seen: &mut Option<Revision>,
    backoff: &mut Backoff,
) -> Result<Infallible, StoreError> {
    let from = match *seen {
        Some(revision) => revision,
        None => {
            let snapshot = store.list().await?;
            let revision = snapshot.revision;
            let _ = news.send(News::All(snapshot)).await;
            *seen = Some(revision);
            revision
        }
    };
    let mut watch = store.watch(from).await?;
    board.over(Topic::Peers);
    loop {
        let changes = watch.next().await?;
        backoff.reset();
        *seen = Some(changes.revision.max(from));
        if !changes.changes.is_empty() {
            let _ = news.send(News::Some(changes)).await;
        }
    }
}
