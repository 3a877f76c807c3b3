//! Restraint in repair_limiter: when somebody undoes a repair again and again, as fast as it is made, answering every blow at
//! once would only cost both sides their processors, and us our logs. So each object may be repaired often in a short
//! time, and steadily only every now and then.

use crate::model::lease_set::Moment;
use crate::model::plan::{Key, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How often something may be done at once before it has to be done steadily.
const AT_ONCE: u32 = 40;

/// How often one object is repaired in a lasting fight.
const REPAIR_EVERY: Duration = Duration::from_millis(500);

/// Something that may be done often in a short time, and steadily only every now and then.
#[derive(Debug, Clone, Copy, Default)]
pub struct RateLimit {
    /// The moment at which all that was done would have been due, had it been done steadily.
    spent: Moment,
}

impl RateLimit {
    /// It was done at `now`; in the long run it is to be done one `every` so often.
    pub fn spend(&mut self, now: Moment, every: Duration) {
        self.spent = self.spent.max(now) + every;
    }

    /// When it may be done again, if `every` is what it is to be done in the long run.
    pub fn allowed_at(&self, every: Duration) -> Moment {
        self.spent.saturating_sub(every * AT_ONCE)
    }
}

/// What has been repaired lately.
#[derive(Debug, Default)]
pub struct RepairLimiter {
    repairs: BTreeMap<Key, RateLimit>,
    /// The objects that wait for their next repair.
    waiting: BTreeSet<Key>,
    /// The objects that had to wait and have not been left in peace since.
    fought_over: BTreeSet<Key>,
}

impl RepairLimiter {
    /// These operations have made good what somebody else had done.
    pub fn repaired<'o>(&mut self, ops: impl Iterator<Item = &'o Op>, now: Moment) {
        self.repairs.retain(|_, pace| pace.spent > now);
        self.fought_over.retain(|key| self.repairs.contains_key(key));
        for op in ops {
            self.repairs.entry(op.key()).or_default().spend(now, REPAIR_EVERY);
        }
    }

    /// The objects among `planned` whose repair has to wait; they are remembered as waiting.
    pub fn postpone(&mut self, planned: impl Iterator<Item = Key>, now: Moment) -> BTreeSet<Key> {
        let waiting: BTreeSet<Key> = planned.filter(|key| self.allowed_at(key).is_some_and(|at| now < at)).collect();
        self.waiting.extend(&waiting);
        self.fought_over.extend(&waiting);
        waiting
    }

    /// When the first of the waiting objects may be repaired.
    pub fn next(&self) -> Option<Moment> {
        self.waiting.iter().map(|key| self.allowed_at(key).unwrap_or_default()).min()
    }

    /// Everything is about to be looked at: nothing waits any more.
    pub fn look_again(&mut self) {
        self.waiting.clear();
    }

    /// Which object is fought over, for people.
    pub fn describe(&self, now: Moment) -> Option<String> {
        let calm = |key: &&Key| self.repairs.get(*key).is_none_or(|pace| pace.spent < now + REPAIR_EVERY * AT_ONCE / 2);
        let key = self.fought_over.iter().find(|key| !calm(key))?;
        Some(format!("somebody undoes the repair of the {key} again and again"))
    }

    fn allowed_at(&self, key: &Key) -> Option<Moment> {
        self.repairs.get(key).map(|pace| pace.allowed_at(REPAIR_EVERY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(repair_limiter: &mut RepairLimiter, key: Key, now: Moment) -> bool {
        !repair_limiter.postpone([key].into_iter(), now).is_empty()
    }

    #[test]
    fn a_lasting_fight_is_slow_and_a_short_one_is_not_noticed() {
        let op = Op::DeleteNeighbor([10, 5, 0, 1].into());
        let mut repair_limiter = RepairLimiter::default();
        let mut now = Duration::from_secs(7);
        for _ in 0..AT_ONCE {
            assert!(!waits(&mut repair_limiter, op.key(), now));
            repair_limiter.repaired([&op].into_iter(), now);
        }
        assert_eq!(repair_limiter.describe(now), None, "nobody had to wait");
        let mut repairs = 0;
        let end = now + Duration::from_secs(3600);
        while now < end {
            if !waits(&mut repair_limiter, op.key(), now) {
                repair_limiter.repaired([&op].into_iter(), now);
                repair_limiter.look_again();
                repairs += 1;
            }
            now += Duration::from_millis(10);
        }
        assert!((7000..=7300).contains(&repairs), "{repairs} an hour");
        repair_limiter.repaired([&op].into_iter(), now);
        assert!(waits(&mut repair_limiter, op.key(), now));
        assert!(repair_limiter.next() > Some(now) && repair_limiter.next() <= Some(now + 2 * REPAIR_EVERY));
        assert!(repair_limiter.describe(now).unwrap().contains("neighbour 10.5.0.1"));
        assert!(!waits(&mut repair_limiter, Key::Device, now), "others are not held up");
        now += REPAIR_EVERY * AT_ONCE;
        assert_eq!(repair_limiter.describe(now), None);
        assert!(repair_limiter.next() <= Some(now));
    }
}
