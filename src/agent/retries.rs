//! Patience with single objects: what the kernel refuses is tried again later and later, without holding up the rest.

use super::env::{Backoff, Env};
use crate::model::lease_set::Moment;
use crate::model::plan::{Key, Op};
use std::collections::BTreeMap;
use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The objects that the kernel refused to change.
#[derive(Debug, Default)]
pub struct Retries {
    failing: BTreeMap<Key, Failing>,
}

#[derive(Debug)]
struct Failing {
    op: Op,
    reason: String,
    times: u32,
    repair: bool,
    backoff: Backoff,
    again_at: Moment,
}

impl Retries {
    /// Whether an operation is not yet to be tried again. Another operation on the same object is a new matter.
    pub fn postpone(&self, op: &Op, now: Moment) -> bool {
        self.failing.get(&op.key()).is_some_and(|failing| failing.op == *op && now < failing.again_at)
    }

    /// It was refused. `repair` says whether it was to make good what somebody else had done.
    pub fn failed(&mut self, op: &Op, reason: String, repair: bool, env: &Env) {
        let new = || Failing {
            op: op.clone(),
            reason: String::new(),
            times: 0,
            repair,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
            again_at: Moment::default(),
        };
        let failing = self.failing.entry(op.key()).or_insert_with(new);
        if failing.op != *op {
            *failing = new();
        }
        failing.reason = reason;
        failing.times += 1;
        failing.again_at = env.now() + failing.backoff.pause(env);
    }

    /// Whether this object is one that could not be repaired so far.
    pub fn is_repair(&self, key: &Key) -> bool {
        self.failing.get(key).is_some_and(|failing| failing.repair)
    }

    /// It was done. What else fails on the same object may succeed now and is due at once; after a change of the device,
    /// whatever its state kept from being done is another matter.
    pub fn succeeded(&mut self, op: &Op) {
        let key = op.key();
        match self.failing.get_mut(&key) {
            _ if key == Key::Device => self.failing.clear(),
            Some(failing) if failing.op != *op => failing.again_at = Moment::default(),
            _ => drop(self.failing.remove(&key)),
        }
    }

    /// Forgets what is no longer to be done: all that is not among `planned`.
    pub fn keep_only<'o>(&mut self, planned: impl Iterator<Item = &'o Op>) {
        if !self.failing.is_empty() {
            let keys: std::collections::BTreeSet<Key> = planned.map(Op::key).collect();
            self.failing.retain(|key, _| keys.contains(key));
        }
    }

    /// When the next one is to be tried again.
    pub fn next(&self) -> Option<Moment> {
        self.failing.values().map(|failing| failing.again_at).min()
    }

    /// What fails, for people. What failed only once is likely to be a change overtaken by another.
    pub fn describe(&self) -> Option<String> {
        let mut stubborn = self.failing.values().filter(|failing| failing.times > 1);
        let first = stubborn.next()?;
        let text = format!("{} fails: {}", first.op, first.reason);
        match stubborn.count() {
            0 => Some(text),
            more => Some(format!("{text} (and {more} more)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kernel_state::{Oif, Route};
    use std::cell::Cell;
    use std::rc::Rc;

    fn op(last: u8) -> Op {
        Op::DeleteNeighbor([10, 5, 0, last].into())
    }

    #[test]
    fn each_object_has_a_pause_of_its_own_that_grows() {
        let clock = Rc::new(Cell::new(Moment::default()));
        let hands = clock.clone();
        let env = Env::new(move || hands.get(), 1, |_| {});
        let mut retries = Retries::default();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            retries.failed(&op(1), "EBUSY".into(), false, &env);
            assert!(retries.postpone(&op(1), clock.get()) && !retries.postpone(&op(2), clock.get()));
            let again = retries.next().unwrap();
            pauses.push(again - clock.get());
            clock.set(again);
            assert!(!retries.postpone(&op(1), clock.get()));
        }
        assert!(pauses[0] < Duration::from_millis(200));
        assert!(pauses[11] > Duration::from_secs(20) && pauses[11] < Duration::from_secs(40), "{pauses:?}");
        assert_eq!(retries.describe().unwrap(), "delete neighbour 10.5.0.1 fails: EBUSY");
        retries.succeeded(&op(1));
        assert_eq!((retries.next(), retries.describe()), (None, None));
    }

    #[test]
    fn another_operation_on_the_object_is_tried_at_once() {
        let env = Env::new(Moment::default, 1, |_| {});
        let mut retries = Retries::default();
        retries.failed(&op(1), "EPERM".into(), true, &env);
        let other = Op::SetNeighbor([10, 5, 0, 1].into(), "0e:00:00:00:00:01".parse().unwrap());
        assert!(!retries.postpone(&other, Moment::default()));
        assert!(retries.is_repair(&other.key()) && !retries.is_repair(&op(2).key()));
        retries.keep_only([op(2)].iter());
        assert_eq!(retries.next(), None);
    }

    #[test]
    fn what_fails_is_due_when_something_else_was_done_to_the_object() {
        let clock = Duration::from_secs(9);
        let env = Env::new(move || clock, 1, |_| {});
        let dest = "10.5.1.0/24".parse().unwrap();
        let ours = Route { dest, gateway: None, oif: Oif::Ours, onlink: true, metric: 0, protocol: 100 };
        let (add, delete) = (Op::AddRoute(ours), Op::DeleteRoute(Route { oif: Oif::Other(2), ..ours }));
        let mut retries = Retries::default();
        retries.failed(&add, "EEXIST".into(), true, &env);
        assert!(retries.postpone(&add, clock));
        retries.succeeded(&delete);
        assert!(!retries.postpone(&add, clock) && retries.next() <= Some(clock) && retries.is_repair(&add.key()));
        retries.succeeded(&add);
        assert_eq!(retries.next(), None);
    }

    #[test]
    fn what_failed_for_the_devices_sake_is_tried_again_when_the_device_has_changed() {
        let env = Env::new(Moment::default, 1, |_| {});
        let mut retries = Retries::default();
        retries.failed(&op(1), "ENODEV".into(), true, &env);
        retries.succeeded(&op(2));
        assert!(retries.postpone(&op(1), Moment::default()));
        retries.succeeded(&Op::DeleteDevice(7));
        assert!(!retries.postpone(&op(1), Moment::default()));
    }
}
