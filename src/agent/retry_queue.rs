//! Retries for single entries: an operation that the kernel refuses is tried again with growing pauses, and delays no
//! other entry.

use super::runtime::{Backoff, Runtime};
use crate::model::kernel_state::Key;
use crate::model::lease_set::Moment;
use crate::model::plan::Op;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Retries after longer pauses than this are made at whole multiples of it, so that thousands of failing entries do not
/// wake the loop one by one.
const GRID: Duration = Duration::from_secs(1);

/// One operation of a batch, and its outcome.
#[derive(Debug, Clone, Copy)]
pub struct Tried<'o> {
    /// The operation.
    pub op: &'o Op,
    /// The reason of the refusal, if the operation was refused.
    pub refusal: Option<&'o str>,
    /// Whether the operation was to repair what somebody else had done.
    pub repair: bool,
}

/// The entries that the kernel refused to change.
#[derive(Debug, Default)]
pub struct RetryQueue {
    failing: BTreeMap<Key, Failing>,
}

#[derive(Debug)]
struct Failing {
    /// All operations that were tried on the entry together.
    ops: Vec<Op>,
    /// The first operation that was refused, and the reason.
    refusal: String,
    times: u32,
    repair: bool,
    backoff: Backoff,
    again_at: Moment,
}

impl RetryQueue {
    /// The entries among `planned` whose retry is not due yet. If other operations are planned on an entry than those
    /// that failed, it does not wait.
    pub fn waiting<'o>(&self, planned: impl Iterator<Item = &'o Op>, now: Moment) -> BTreeSet<Key> {
        if self.failing.is_empty() {
            return BTreeSet::new();
        }
        let planned = by_key(planned.filter(|op| self.failing.contains_key(&op.key())));
        let waits = |(key, ops): &(Key, Vec<&Op>)| {
            let same = |failing: &Failing| now < failing.again_at && failing.ops.iter().eq(ops.iter().copied());
            self.failing.get(key).is_some_and(same)
        };
        planned.into_iter().filter(waits).map(|(key, _)| key).collect()
    }

    /// Whether nothing has failed.
    pub fn is_empty(&self) -> bool {
        self.failing.is_empty()
    }

    /// Takes in the outcome of a batch. A change of the device ends the waiting of all entries.
    pub fn tried(&mut self, batch: &[Tried], runtime: &Runtime) {
        if batch.iter().any(|tried| tried.refusal.is_none() && tried.op.key() == Key::Device) {
            self.failing.clear();
        }
        let refused = batch.iter().filter(|tried| tried.refusal.is_some()).map(|tried| tried.op.key());
        let touched: BTreeSet<Key> = refused.chain(self.failing.keys().copied()).collect();
        if touched.is_empty() {
            return;
        }
        let mut first: BTreeMap<Key, &Tried> = BTreeMap::new();
        for tried in batch.iter().filter(|tried| tried.refusal.is_some()) {
            first.entry(tried.op.key()).or_insert(tried);
        }
        for (key, ops) in by_key(batch.iter().map(|tried| tried.op).filter(|op| touched.contains(&op.key()))) {
            match first.get(&key) {
                None => drop(self.failing.remove(&key)),
                Some(tried) => self.failed(key, ops, tried, runtime),
            }
        }
    }

    fn failed(&mut self, key: Key, ops: Vec<&Op>, tried: &Tried, runtime: &Runtime) {
        let same = self.failing.remove(&key).filter(|failing| failing.ops.iter().eq(ops.iter().copied()));
        let mut failing = same.unwrap_or_else(|| Failing {
            ops: ops.into_iter().cloned().collect(),
            refusal: String::new(),
            times: 0,
            repair: tried.repair,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            again_at: Moment::default(),
        });
        failing.refusal = format!("{} fails: {}", tried.op, tried.refusal.unwrap_or_default());
        failing.times += 1;
        let pause = failing.backoff.pause(runtime);
        let at = runtime.now() + pause;
        failing.again_at = if pause < GRID { at } else { Duration::from_secs(at.as_secs() + 1) };
        self.failing.insert(key, failing);
    }

    /// Whether this entry waits for the retry of a repair.
    pub fn is_repair(&self, key: &Key) -> bool {
        self.failing.get(key).is_some_and(|failing| failing.repair)
    }

    /// Forgets the entries that are not among `planned`.
    pub fn keep_only<'o>(&mut self, planned: impl Iterator<Item = &'o Op>) {
        if !self.failing.is_empty() {
            let keys: BTreeSet<Key> = planned.map(Op::key).collect();
            self.failing.retain(|key, _| keys.contains(key));
        }
    }

    /// Forgets the entries that need a device while there is none: they are planned again once it exists.
    pub fn wait_for_device(&mut self) {
        self.failing.retain(|key, _| matches!(key, Key::Device | Key::Address(_)));
    }

    /// When the next retry is due.
    pub fn next(&self) -> Option<Moment> {
        self.failing.values().map(|failing| failing.again_at).min()
    }

    /// A sentence on what fails. A single failure is left out: most likely another change came first.
    pub fn describe(&self) -> Option<String> {
        let mut stubborn = self.failing.values().filter(|failing| failing.times > 1);
        let first = stubborn.next()?;
        match stubborn.count() {
            0 => Some(first.refusal.clone()),
            more => Some(format!("{} (and {more} more)", first.refusal)),
        }
    }
}

/// Groups operations by their entry, in their order.
fn by_key<'o>(ops: impl Iterator<Item = &'o Op>) -> Vec<(Key, Vec<&'o Op>)> {
    let mut groups: BTreeMap<Key, Vec<&Op>> = BTreeMap::new();
    ops.for_each(|op| groups.entry(op.key()).or_default().push(op));
    groups.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::entry::{Neighbor, Oif, Route};
    use crate::model::mac::VtepMac;
    use std::cell::Cell;
    use std::rc::Rc;

    fn op(last: u8) -> Op {
        Op::delete(Neighbor { ip: [10, 5, 0, last].into(), mac: VtepMac([2, 0, 0, 0, 0, last]) })
    }

    fn refused(op: &Op) -> Tried<'_> {
        Tried { op, refusal: Some("EBUSY"), repair: true }
    }

    fn done(op: &Op) -> Tried<'_> {
        Tried { op, refusal: None, repair: true }
    }

    fn runtime() -> (Runtime, Rc<Cell<Moment>>) {
        let clock = Rc::new(Cell::new(Moment::default()));
        let hands = clock.clone();
        (Runtime::new(move || hands.get(), 1, |_| {}), clock)
    }

    fn waits(retries: &RetryQueue, ops: &[&Op], now: Moment) -> usize {
        retries.waiting(ops.iter().copied(), now).len()
    }

    #[test]
    fn each_object_has_a_pause_of_its_own_that_grows() {
        let (runtime, clock) = runtime();
        let mut retries = RetryQueue::default();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            retries.tried(&[refused(&op(1)), done(&op(2))], &runtime);
            assert_eq!(waits(&retries, &[&op(1), &op(2)], clock.get()), 1);
            let again = retries.next().unwrap();
            pauses.push(again - clock.get());
            clock.set(again);
            assert_eq!(waits(&retries, &[&op(1)], clock.get()), 0);
        }
        assert!(pauses[0] < Duration::from_millis(200));
        assert!(pauses[11] > Duration::from_secs(20) && pauses[11] < Duration::from_secs(40), "{pauses:?}");
        assert_eq!(retries.describe().unwrap(), "delete neighbour 10.5.0.1 fails: EBUSY");
        retries.tried(&[done(&op(1))], &runtime);
        assert_eq!((retries.next(), retries.describe()), (None, None));
    }

    #[test]
    fn two_operations_on_one_object_wait_together() {
        let (runtime, clock) = runtime();
        let dest = "10.5.1.0/24".parse().unwrap();
        let ours = Route { dest, gateway: None, oif: Oif::Ours, onlink: true, metric: 0, protocol: 100 };
        let (add, delete) = (Op::add(ours), Op::delete(Route { oif: Oif::Other(2), ..ours }));
        let mut retries = RetryQueue::default();
        for _ in 0..5 {
            retries.tried(&[refused(&delete), refused(&add)], &runtime);
            assert_eq!(waits(&retries, &[&delete, &add], clock.get()), 1);
            clock.set(retries.next().unwrap());
        }
        assert_eq!(retries.describe().unwrap(), format!("{delete} fails: EBUSY"));
        assert!(retries.next().unwrap() > Duration::from_secs(1), "the pauses grow");
        // Something else to be done is a new matter, and done at once.
        retries.tried(&[refused(&add)], &runtime);
        assert_eq!(waits(&retries, &[&add], clock.get()), 1);
        assert_eq!(waits(&retries, &[&delete, &add], clock.get()), 0);
        retries.tried(&[done(&delete), done(&add)], &runtime);
        assert_eq!(retries.next(), None);
    }

    #[test]
    fn what_is_no_longer_to_be_done_is_forgotten_and_a_new_device_is_a_new_matter() {
        let (runtime, clock) = runtime();
        let mut retries = RetryQueue::default();
        retries.tried(&[refused(&op(1))], &runtime);
        assert!(retries.is_repair(&op(1).key()) && !retries.is_repair(&op(2).key()));
        retries.tried(&[done(&Op::DeleteDevice(7)), refused(&op(2))], &runtime);
        assert_eq!(waits(&retries, &[&op(1), &op(2)], clock.get()), 1);
        retries.keep_only([op(1)].iter());
        assert_eq!(retries.next(), None);
    }

    #[test]
    fn thousands_that_fail_for_long_come_up_together() {
        let (runtime, clock) = runtime();
        let ops: Vec<Op> = (0..200).map(op).collect();
        let mut retries = RetryQueue::default();
        let mut wakes = 0;
        while clock.get() < Duration::from_secs(600) {
            let waiting = retries.waiting(ops.iter(), clock.get());
            let due: Vec<Tried> = ops.iter().filter(|op| !waiting.contains(&op.key())).map(refused).collect();
            retries.tried(&due, &runtime);
            clock.set(retries.next().unwrap());
            wakes += 1;
        }
        assert!(wakes < 1500, "{wakes} times in ten minutes");
    }
}
