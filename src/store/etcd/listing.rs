//! Reads all keys under `subnets/` at one revision, in pages that are short however long the values are.
//!
//! A lease is some 250 bytes, but anybody may put a megabyte under a junk key, and links may be slow. So the number of
//! keys in a page follows the size of the keys before, and is remembered for the next list. Where values are long, the
//! names are read without them first: a key that names no subnet is refused whatever its value is, and a long value
//! that was read once is not read again until it changes.

use super::error::{CallError, Failure};
use super::keys::Keys;
use super::pool::Pool;
use super::watch;
use crate::model::lease::{Name, Record, Revision};
use crate::model::subnet::SubnetKey;
use crate::store::Snapshot;
use etcd_client::{GetOptions, GetResponse, KeyValue};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Bound;

/// How many bytes a page should hold.
const PAGE_BYTES: usize = 2 << 20;
/// How many keys a page may hold.
const MOST_KEYS: i64 = 10_000;
/// How many keys the first page of the first list asks for: at most 96 MB in etcd's default limits.
const FIRST_KEYS: i64 = 64;
/// How much longer a page may be than the one before.
const GROWTH: i64 = 8;
/// How much shorter a page is after one that failed.
const SHRINKING: i64 = 8;
/// After a timeout a page still has this many keys: 4 KB, unless the values are long.
const FEWEST_AFTER_TIMEOUT: i64 = 16;
/// Pages whose keys are longer than this on average are followed by a page of names.
const LONG_AVERAGE: usize = 64 << 10;
/// How many names are read without their values.
const NAMES: i64 = 32;
/// A value that is longer than this is no lease. Such keys are remembered by what they were read as.
const LONG_VALUE: usize = 4 << 10;
/// Bytes of a key on the wire beside its name and its value.
const OVERHEAD: usize = 40;

/// The experience of one list for the next one.
#[derive(Default)]
pub(super) struct Experience {
    /// The number of keys in the next page; 0 before the first one.
    keys: Cell<i64>,
    /// The most keys that a page may have, because a longer one did not arrive in time; 0 if none did not.
    most: Cell<i64>,
    /// The keys with long values, and junk among them, as they were read last.
    long: RefCell<BTreeMap<Name, Record>>,
}

impl Experience {
    fn page(&self) -> i64 {
        if self.keys.get() == 0 { FIRST_KEYS } else { self.keys.get() }
    }

    /// A page was too long for this client.
    fn shrink(&self) {
        self.keys.set((self.page() / SHRINKING).max(1));
    }

    /// A list ended because an answer did not come in time: the next one asks for less at once.
    pub(super) fn timed_out(&self) {
        self.keys.set((self.page() / SHRINKING).max(FEWEST_AFTER_TIMEOUT.min(self.page())));
        self.most.set(self.keys.get());
    }

    /// A whole list arrived. If the link was slow, it may be faster by now.
    fn arrived(&self) {
        self.most.set(self.most.get().saturating_mul(2));
    }

    /// A page of this many bytes a key arrived.
    fn learn(&self, average: usize) {
        let fits = i64::try_from(PAGE_BYTES / average.max(1)).unwrap_or(MOST_KEYS);
        let most = if self.most.get() == 0 { MOST_KEYS } else { self.most.get() };
        self.keys.set(fits.clamp(1, MOST_KEYS).min(self.page() * GROWTH).min(most));
    }
}

/// A list that is being read.
pub(super) struct Listing<'a> {
    pool: &'a Pool,
    keys: &'a Keys,
    experience: &'a Experience,
    snapshot: Snapshot,
    /// How many keys there are, by the first page.
    total: Option<i64>,
    long: BTreeMap<Name, Record>,
    /// Whether the last page was of long values.
    is_long: bool,
}

impl<'a> Listing<'a> {
    /// Reads all pages at the revision of the first one.
    ///
    /// # Errors
    /// Also when the list is not complete: who is absent from a list goes, so half of one is worth nothing.
    pub(super) async fn read(
        pool: &'a Pool,
        keys: &'a Keys,
        experience: &'a Experience,
    ) -> Result<Snapshot, CallError> {
        let (snapshot, long) = (Snapshot::default(), BTreeMap::new());
        let mut listing = Listing { pool, keys, experience, snapshot, total: None, long, is_long: false };
        let mut rest = Some(keys.subnets());
        while let Some(from) = rest {
            rest = match std::mem::take(&mut listing.is_long) {
                true => listing.names(from).await?,
                false => listing.page(from).await?,
            };
        }
        experience.long.replace(std::mem::take(&mut listing.long));
        experience.arrived();
        listing.complete()
    }

    fn complete(self) -> Result<Snapshot, CallError> {
        let (count, total) = (self.snapshot.records.len(), self.total.unwrap_or_default());
        match i64::try_from(count) {
            Ok(count) if count == total => Ok(self.snapshot),
            _ => Err(partial(&format!("{count} keys of {total}"))),
        }
    }

    /// Reads a page of keys with their values; returns where the rest begins. The page ends before the next key that is
    /// known to be long.
    async fn page(&mut self, from: Vec<u8>) -> Result<Option<Vec<u8>>, CallError> {
        let stop = self.next_long(&from);
        if stop.is_some() {
            self.count().await?;
        }
        if stop.as_ref() == Some(&from) {
            return self.names(from).await;
        }
        let limit = self.experience.page();
        let page = match self.range(from.clone(), stop.clone(), GetOptions::new().with_limit(limit)).await {
            Ok(page) => page,
            Err(error) if error.is_too_large() => {
                self.experience.shrink();
                self.is_long = true;
                return self.count().await.map(|()| Some(from));
            }
            Err(error) => return Err(error),
        };
        self.start(&page)?;
        let bytes: usize = page.kvs().iter().map(|kv| kv.key().len() + kv.value().len() + OVERHEAD).sum();
        if let Some(average) = bytes.checked_div(page.kvs().len()) {
            self.experience.learn(average);
            self.is_long = average > LONG_AVERAGE;
        }
        self.snapshot.records.reserve(page.kvs().len());
        for kv in page.kvs() {
            self.take(kv);
        }
        Ok(rest(&page).or(stop))
    }

    /// Begins the list without a page.
    async fn count(&mut self) -> Result<(), CallError> {
        if self.total.is_some() {
            return Ok(());
        }
        let all = self.range(self.keys.subnets(), None, GetOptions::new().with_count_only()).await?;
        self.start(&all)
    }

    /// The first key from here on that was long in the last list.
    fn next_long(&self, from: &[u8]) -> Option<Vec<u8>> {
        let name = self.keys.name(from);
        let long = self.experience.long.borrow();
        let next = long.range::<str, _>((Bound::Included(name.as_str()), Bound::Unbounded)).next();
        next.map(|(name, _)| [&self.keys.subnets(), name.as_bytes()].concat()).filter(|key| **key >= *from)
    }

    /// Reads keys without their values, then those values that matter one by one.
    async fn names(&mut self, from: Vec<u8>) -> Result<Option<Vec<u8>>, CallError> {
        let page = self.range(from, None, GetOptions::new().with_limit(NAMES).with_keys_only()).await?;
        for kv in page.kvs() {
            let name = self.keys.name(kv.key());
            if SubnetKey::parse(&name).is_err() {
                self.take_long(self.keys.record(kv));
            } else if let Some(known) = self.known(&name, kv.mod_revision()) {
                self.take_long(known);
            } else {
                self.value(kv).await?;
            }
        }
        Ok(rest(&page))
    }

    /// Reads one key whose name is known.
    async fn value(&mut self, name: &KeyValue) -> Result<(), CallError> {
        let options = GetOptions::new().with_revision(self.snapshot.revision);
        let key = name.key().to_vec();
        match self.pool.call(async |mut s| s.kv.get(key.clone(), Some(options.clone())).await).await {
            Ok(read) => read.kvs().first().into_iter().for_each(|kv| self.take(kv)),
            // Read without its value the key is malformed, too.
            Err(error) if error.is_too_large() => self.take_long(self.keys.record(name)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn take(&mut self, kv: &KeyValue) {
        let record = self.keys.record(kv);
        match kv.value().len() > LONG_VALUE {
            true => self.take_long(record),
            false => self.snapshot.records.push(record),
        }
    }

    fn take_long(&mut self, record: Record) {
        self.long.insert(record.name.clone(), record.clone());
        self.snapshot.records.push(record);
    }

    fn known(&self, name: &str, modified: Revision) -> Option<Record> {
        self.experience.long.borrow().get(name).filter(|record| record.modified() == modified).cloned()
    }

    /// The first page tells the revision of all, and their number.
    fn start(&mut self, page: &GetResponse) -> Result<(), CallError> {
        if self.total.is_none() {
            let header = page.header().ok_or_else(|| partial("it has no revision"))?;
            (self.snapshot.revision, self.snapshot.history) = (header.revision(), watch::history(header));
            self.total = Some(page.count());
        }
        Ok(())
    }

    /// Reads a range at the list's revision, up to all keys.
    async fn range(&self, from: Vec<u8>, end: Option<Vec<u8>>, options: GetOptions) -> Result<GetResponse, CallError> {
        let end = end.unwrap_or_else(|| self.keys.subnets_end());
        let options = options.with_range(end).with_revision(self.snapshot.revision);
        self.pool.call(async |mut s| s.kv.get(from.clone(), Some(options.clone())).await).await
    }
}

/// Where the keys behind a page begin, if there are any.
fn rest(page: &GetResponse) -> Option<Vec<u8>> {
    page.kvs().last().filter(|_| page.more()).map(|last| [last.key(), &[0]].concat())
}

fn partial(what: &str) -> CallError {
    CallError::NoAnswer(vec![("etcd's list of leases is not complete".into(), Failure::Other(what.into()))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_the_size_of_the_keys_and_grow_step_by_step() {
        let experience = Experience::default();
        let sizes = [250, 250, 250, 1 << 20, 250, 250, 4 << 20].map(|average| {
            experience.learn(average);
            experience.page()
        });
        assert_eq!(sizes, [512, 4096, 8388, 2, 16, 128, 1]);
    }

    #[test]
    fn a_page_that_failed_is_shorter_the_next_time_and_a_silent_etcd_does_not_shrink_it_to_one_key() {
        let experience = Experience::default();
        (0..3).for_each(|_| experience.learn(250));
        let after_timeouts = [(); 4].map(|()| {
            experience.timed_out();
            experience.page()
        });
        assert_eq!(after_timeouts, [1048, 131, 16, 16]);
        experience.learn(250);
        assert_eq!(experience.page(), 16, "what did not arrive in time is not tried again by the same list");
        experience.arrived();
        experience.learn(250);
        assert_eq!(experience.page(), 32);
        experience.shrink();
        experience.timed_out();
        assert_eq!(experience.page(), 4);
        experience.shrink();
        assert_eq!(experience.page(), 1);
    }
}
