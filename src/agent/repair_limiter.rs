//! Restraint in repairs that do not last. If somebody undoes each repair, or the kernel reports something else than what was asked
//! for, immediate answers cost both sides their processors, and us our logs. So each object, and all of them together, may be
//! repaired often in a short time, and then later and later.

use super::rate_limit::{RateLimit, Slowdown};
use crate::model::kernel_state::Key;
use crate::model::lease_set::Moment;
use crate::model::plan::Op;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The number of repairs of one object that need no pause.
const AT_ONCE: u32 = 40;

/// Repairs of one object.
const OF_AN_OBJECT: Slowdown =
    Slowdown { at_once: AT_ONCE, first_pause: FIRST_PAUSE, longest_pause: Duration::from_secs(60) };
/// Rounds of repairs, whatever they are about. An object that was damaged once waits for no longer than this pause while
/// others are fought over.
const OF_ALL: Slowdown =
    Slowdown { at_once: 5 * AT_ONCE, first_pause: FIRST_PAUSE, longest_pause: Duration::from_secs(5) };
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// How long at least nothing had to wait before a fight is said to be over.
const CALM_AFTER: Duration = Duration::from_secs(10);

/// The repairs of one object, or the rounds of repairs of all.
#[derive(Debug, Default)]
struct Repairs {
    rate: RateLimit,
    again_at: Moment,
    /// How long the next repair has to wait after the last.
    pause: Duration,
    repaired_at: Moment,
    /// When it was first seen since the last repair that another one is needed.
    damaged_at: Option<Moment>,
}

impl Repairs {
    /// Counts a repair. While nothing is fought over, a repair that has lasted for a while ends the count: damage that only
    /// now and then comes back is no fight, however often it does.
    fn repaired(&mut self, now: Moment, slowdown: &Slowdown, others_are_calm: bool) {
        let lasted = self.damaged_at.take().unwrap_or(now).saturating_sub(self.repaired_at);
        if others_are_calm && self.pause.is_zero() && lasted >= CALM_AFTER {
            self.rate = RateLimit::default();
        }
        self.repaired_at = now;
        self.again_at = self.rate.slow_down(now, slowdown);
        self.pause = self.again_at.saturating_sub(now);
    }
}

/// The recent repairs.
#[derive(Debug, Default)]
pub struct RepairLimiter {
    /// By object; `None` is all of them together.
    repairs: BTreeMap<Option<Key>, Repairs>,
    /// The objects that wait for their next repair.
    waiting: BTreeSet<Key>,
    /// The objects whose limit made a repair wait: when that was first so, and last.
    fought_over: BTreeMap<Option<Key>, (Moment, Moment)>,
}

impl RepairLimiter {
    /// These operations, a round of them, have made good what was not as it should be.
    pub fn repaired<'o>(&mut self, ops: impl Iterator<Item = &'o Op>, now: Moment) {
        self.repairs.retain(|_, repairs| !repairs.rate.is_unspent(now));
        let mut fought_over = std::mem::take(&mut self.fought_over);
        fought_over.retain(|key, (_, last)| now < self.calm_at(key, *last));
        self.fought_over = fought_over;
        let keys: BTreeSet<Key> = ops.map(Op::key).collect();
        if keys.is_empty() {
            return;
        }
        let all = self.repairs.entry(None).or_default();
        all.repaired(now, &OF_ALL, true);
        let others_are_calm = all.pause.is_zero();
        for key in keys {
            self.repairs.entry(Some(key)).or_default().repaired(now, &OF_AN_OBJECT, others_are_calm);
        }
    }

    /// The objects among `planned` whose repair has to wait; they are remembered as waiting.
    pub fn postpone(&mut self, planned: impl Iterator<Item = Key>, now: Moment) -> BTreeSet<Key> {
        let all_wait = now < self.again_at(None);
        let mut waiting = BTreeSet::new();
        for key in planned {
            if let Some(repairs) = self.repairs.get_mut(&Some(key)) {
                repairs.damaged_at.get_or_insert(now);
            }
            let waits = now < self.again_at(Some(key));
            if waits {
                self.fought_over.entry(Some(key)).or_insert((now, now)).1 = now;
            }
            if waits || all_wait {
                waiting.insert(key);
            }
        }
        if all_wait && !waiting.is_empty() {
            self.fought_over.entry(None).or_insert((now, now)).1 = now;
        }
        self.waiting.extend(&waiting);
        waiting
    }

    /// When the first of the waiting objects may be repaired.
    pub fn next(&self) -> Option<Moment> {
        let first = self.waiting.iter().map(|key| self.again_at(Some(*key))).min()?;
        Some(first.max(self.again_at(None)))
    }

    /// Everything is about to be looked at: nothing waits any more. Gives what waited.
    pub fn look_again(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.waiting)
    }

    /// Which repairs do not last, for people: the fight that has lasted longest is named, so that the words stay the same.
    pub fn describe(&self, now: Moment) -> Option<String> {
        let lasting = self.fought_over.iter().filter(|(key, (_, last))| now < self.calm_at(key, *last));
        let (key, _) = lasting.min_by_key(|(_, (first, _))| *first)?;
        Some(match key {
            Some(key) => format!(
                "repairs of the {key} do not last: something changes it again and again; \
                 the next repair waits for up to a minute"
            ),
            None => {
                "repairs do not last: something changes one entry after another; the next repairs wait for up to 5 s"
                    .into()
            }
        })
    }

    /// When a fight is over, if no repair has had to wait after `last`.
    fn calm_at(&self, key: &Option<Key>, last: Moment) -> Moment {
        last + self.repairs.get(key).map_or(Duration::ZERO, |repairs| 2 * repairs.pause).max(CALM_AFTER)
    }

    fn again_at(&self, key: Option<Key>) -> Moment {
        self.repairs.get(&key).map_or(Moment::ZERO, |repairs| repairs.again_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::entry::Neighbor;
    use crate::model::mac::VtepMac;

    const START: Moment = Duration::from_secs(7);

    const MAC: VtepMac = VtepMac([2, 0, 0, 0, 0, 1]);

    fn op(last: u8) -> Op {
        Op::delete(Neighbor { ip: [10, 5, 0, last].into(), mac: MAC })
    }

    fn waits(limiter: &mut RepairLimiter, key: Key, now: Moment) -> bool {
        !limiter.postpone([key].into_iter(), now).is_empty()
    }

    /// Repairs `op` whenever that is allowed, from `now` until `end`; tells how often.
    fn fight(limiter: &mut RepairLimiter, op: impl Fn(u32) -> Op, mut now: Moment, end: Moment) -> u32 {
        let mut repairs = 0;
        while now < end {
            let next = op(repairs);
            if !waits(limiter, next.key(), now) {
                limiter.repaired([&next].into_iter(), now);
                limiter.look_again();
                repairs += 1;
            }
            now += Duration::from_millis(10);
        }
        repairs
    }

    #[test]
    fn a_short_fight_is_not_noticed() {
        let mut limiter = RepairLimiter::default();
        assert_eq!(fight(&mut limiter, |_| op(1), START, START + Duration::from_millis(390)), AT_ONCE - 1);
        assert!(!waits(&mut limiter, op(1).key(), START + Duration::from_millis(400)));
        assert_eq!(limiter.describe(START + Duration::from_millis(400)), None, "nobody had to wait");
    }

    #[test]
    fn a_lasting_fight_slows_down_to_a_repair_a_minute() {
        let mut limiter = RepairLimiter::default();
        let mut now = START;
        let counts: Vec<u32> = (0..4)
            .map(|_| {
                now += Duration::from_secs(600);
                fight(&mut limiter, |_| op(1), now - Duration::from_secs(600), now)
            })
            .collect();
        assert!((50..=60).contains(&counts[0]), "{counts:?}");
        assert!(counts[1..].iter().all(|count| (9..=11).contains(count)), "{counts:?}");
        assert!(waits(&mut limiter, op(1).key(), now));
        assert!(limiter.next() > Some(now) && limiter.next() <= Some(now + OF_AN_OBJECT.longest_pause));
        assert!(limiter.describe(now).unwrap().contains("neighbour 10.5.0.1"));
        assert!(!waits(&mut limiter, Key::Device, now), "others are not held up");
        now += 2 * OF_AN_OBJECT.longest_pause;
        assert_eq!(limiter.describe(now), None);
        assert!(!waits(&mut limiter, op(1).key(), now));
    }

    #[test]
    fn damage_that_comes_back_now_and_then_is_repaired_at_once_each_time() {
        let mut limiter = RepairLimiter::default();
        for nth in 1..1000 {
            let now = START + Duration::from_secs(20) * nth;
            assert!(!waits(&mut limiter, op(1).key(), now), "the {nth}th time");
            limiter.repaired([&op(1)].into_iter(), now);
        }
    }

    #[test]
    fn repairs_of_ever_other_objects_slow_down_too() {
        let mut limiter = RepairLimiter::default();
        let end = START + Duration::from_secs(3600);
        let each =
            |n: u32| Op::delete(Neighbor { ip: std::net::Ipv4Addr::from_bits(0x0a05_0000 + n).into(), mac: MAC });
        let repairs = fight(&mut limiter, each, START, end);
        assert!((900..1000).contains(&repairs), "{repairs}");
        assert!(waits(&mut limiter, Key::Device, end));
        assert!(limiter.next() <= Some(end + OF_ALL.longest_pause));
        assert!(limiter.describe(end).unwrap().contains("5 s"));
        assert_eq!(limiter.describe(end + 2 * OF_ALL.longest_pause), None);
    }

    #[test]
    fn a_large_round_is_one_round() {
        let mut limiter = RepairLimiter::default();
        let ops: Vec<Op> = (0..250).map(op).collect();
        (0..AT_ONCE - 1).for_each(|_| limiter.repaired(ops.iter(), START));
        assert_eq!(limiter.postpone(ops.iter().map(Op::key), START).len(), 0);
    }
}
