//! Plans what to change, has the kernel do it, and keeps account of the outcome.

use super::Reconciler;
use crate::agent::loop_state::LoopState;
use crate::agent::report;
use crate::agent::retry_queue::Tried;
use crate::agent::status::Condition;
use crate::kernel::{Kernel, KernelError};
use crate::malloc;
use crate::model::desired::Dirty;
use crate::model::device::ExistingDevice;
use crate::model::kernel_state::Key;
use crate::model::lease_set::Moment;
use crate::model::plan::{Op, Plan, Step};
use std::collections::BTreeMap;

/// The outcome of steps that were applied together.
struct Outcome<'s> {
    /// The steps, and whether each is about an entry that somebody else damaged.
    steps: Vec<(&'s Step, bool)>,
    /// The errors, by the place of their step.
    refusals: BTreeMap<usize, KernelError>,
    /// When the steps were begun.
    begun: Moment,
    /// Whether the host has been ready once. Damage that the start finds is logged and counted as a change.
    after_start: bool,
}

impl<'s> Outcome<'s> {
    /// The steps that succeeded, either repairs or other changes.
    fn done(&self, repairs: bool) -> Vec<&'s Step> {
        let is_repair = |damaged: &bool| *damaged && self.after_start;
        self.succeeded().filter(|(_, damaged)| is_repair(damaged) == repairs).map(|(step, _)| *step).collect()
    }

    fn succeeded(&self) -> impl Iterator<Item = &(&'s Step, bool)> {
        let done = self.steps.iter().enumerate().filter(|(at, _)| !self.refusals.contains_key(at));
        done.map(|(_, step)| step)
    }

    /// Every step with the reason of its refusal, if it was refused.
    fn tried(&self) -> Vec<Tried<'_>> {
        let tried = self.steps.iter().enumerate().map(|(at, (step, damaged))| {
            let refusal = self.refusals.get(&at).map(|error| error.reason.as_str());
            Tried { op: &step.op, refusal, repair: *damaged && self.after_start }
        });
        tried.collect()
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Makes the kernel hold what is wanted: first the device, then everything else, from what the kernel made of the
    /// device.
    pub(super) async fn reconcile(&mut self, state: &mut LoopState) {
        const ROUNDS: usize = 4;
        for _ in 0..ROUNDS {
            let Some(plan) = self.plan(state) else { return };
            let on_device = plan.touches_device();
            let steps: Vec<&Step> = match on_device {
                true => plan.steps.iter().filter(|step| step.op.is_on_device()).collect(),
                false => plan.steps.iter().collect(),
            };
            self.execute(&steps, state).await;
            if on_device && !self.read(state).await {
                return;
            }
            if !on_device {
                (state.news, state.damage) = (Dirty::default(), Dirty::default());
            }
        }
    }

    /// Takes the differences that can be repaired now, and postpones the others. Returns `None`, and forgets what may differ,
    /// if nothing can be done now.
    fn plan(&self, state: &mut LoopState) -> Option<Plan> {
        let now = self.runtime.now();
        let due = [state.retries.next(), state.repair_limiter.next()].into_iter().flatten().any(|at| now >= at);
        if state.news.is_clean() && state.damage.is_clean() && !due {
            return None;
        }
        let mut plan = self.differences(state, due);
        self.status.update(|status| status.counters.compared += plan.compared as u64);
        let is_missing = !matches!(state.have.device, Some(ExistingDevice::Known(..)));
        let needs_device = !plan.is_empty() && is_missing && self.desired.want().device.get().is_some();
        // All steps on one entry wait together: a stray must be deleted before ours can be added.
        let mut waiting = state.retries.waiting(plan.steps.iter().map(|step| &step.op), now);
        // A change that the facts ask for is no repair, and does not wait like one.
        let repairs = plan.steps.iter().map(|step| step.op.key()).filter(|key| !state.news.covers(key));
        waiting.extend(state.repair_limiter.postpone(repairs, now));
        plan.steps.retain(|step| !waiting.contains(&step.op.key()));
        let device_waits = needs_device && !plan.touches_device();
        if device_waits {
            state.retries.wait_for_device();
        }
        if plan.is_empty() || device_waits {
            (state.news, state.damage) = (Dirty::default(), Dirty::default());
            return None;
        }
        Some(plan)
    }

    /// All differences between what is wanted and what the kernel holds. Only entries that may differ are compared, unless
    /// that may be any, or a retry is due.
    fn differences(&self, state: &mut LoopState, retry_is_due: bool) -> Plan {
        let (want, scope) = (self.desired.want(), self.desired.scope());
        match (&state.news, &state.damage) {
            (Dirty::Keys(news), Dirty::Keys(damage)) if !retry_is_due => {
                let keys: Vec<Key> = news.union(damage).copied().collect();
                Plan::at(&keys, &state.have, want, &scope)
            }
            _ => {
                let plan = Plan::between(&state.have, want, &scope);
                state.damage.merge(Dirty::Keys(state.repair_limiter.look_again()));
                state.retries.keep_only(plan.steps.iter().map(|step| &step.op));
                plan
            }
        }
    }

    /// Raises or clears the condition of the kernel by what it refuses.
    pub(super) fn report_failures(&self, state: &LoopState) {
        let failures = state.retries.describe().or_else(|| state.repair_limiter.describe(self.runtime.now()));
        self.status.set(Condition::Kernel, failures);
    }

    /// Has the kernel do these steps, and takes in the outcome.
    async fn execute(&mut self, steps: &[&Step], state: &mut LoopState) {
        let begun = self.runtime.now();
        let refusals = self.apply(steps).await;
        let steps = steps.iter().map(|step| (*step, is_damaged(&step.op.key(), state))).collect();
        let outcome = Outcome { steps, refusals, begun, after_start: self.status.read().started };
        self.take_outcome(&outcome, state);
        self.report_outcome(&outcome, state);
    }

    /// Has the kernel do these steps. Returns the errors, by the place of their step.
    async fn apply(&mut self, steps: &[&Step]) -> BTreeMap<usize, KernelError> {
        let (scope, mut refusals) = (self.desired.scope(), BTreeMap::new());
        for (nth, part) in steps.chunks(malloc::MANY).enumerate() {
            let ops: Vec<Op> = part.iter().map(|step| step.op.clone()).collect();
            let results = self.kernel.apply(&scope, &ops).await.into_iter().enumerate();
            refusals.extend(results.filter_map(|(at, result)| Some((nth * malloc::MANY + at, result.err()?))));
        }
        refusals
    }

    /// Keeps what is known of the kernel in step with what was done.
    fn take_outcome(&self, outcome: &Outcome, state: &mut LoopState) {
        let (now, steps, refusals) = (self.runtime.now(), &outcome.steps, &outcome.refusals);
        // Repairs that the start makes count in a fight, too.
        let made_good = outcome.succeeded().filter(|(_, damaged)| *damaged);
        state.repair_limiter.repaired(made_good.map(|(step, _)| &step.op), now);
        for (step, _) in outcome.succeeded() {
            state.have.apply(&step.op, 0);
        }
        state.handled(steps.len());
        if steps.len() >= malloc::MANY {
            state.have.compact();
        }
        if !(refusals.is_empty() && state.retries.is_empty()) {
            state.retries.tried(&outcome.tried(), &self.runtime);
        }
        if !refusals.is_empty() {
            // A refused operation may have been done in part. The state is read before the next attempt.
            state.reads.read_soon(state.retries.next().unwrap_or(now));
        }
        if refusals.values().any(KernelError::device_is_out) {
            // DELLINK follows the DELROUTE and DELNEIGH of its entries, so it may not have been reported yet.
            state.reads.read_soon(now);
        }
    }

    /// Counts and logs what was done.
    fn report_outcome(&self, outcome: &Outcome, state: &LoopState) {
        let now = self.runtime.now();
        let (changes, repairs) = (outcome.done(false), outcome.done(true));
        self.status.update(|status| {
            status.counters.kernel_changes += changes.len() as u64;
            status.counters.repairs += repairs.len() as u64;
            status.counters.kernel_failures += outcome.refusals.len() as u64;
        });
        report::log("", &changes, now.saturating_sub(outcome.begun));
        report::log("repaired: ", &repairs, now.saturating_sub(state.damaged_at));
    }
}

/// Whether an entry differs from what is wanted because somebody else changed it, and not because the store or the host's
/// interfaces ask for something else now.
fn is_damaged(key: &Key, state: &LoopState) -> bool {
    (state.damage.covers(key) || state.retries.is_repair(key)) && !state.news.covers(key)
}
