//! Reloads: a new generation, slot by slot.

use std::collections::{BTreeSet, VecDeque};

use super::replacements::Backoffs;
use super::slot::Slot;
use super::supervisor::{Mode, Supervisor, index};
use super::{Action, FailedStart, Report, Time};

/// A reload that has not ended yet.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Rollout {
    /// When it began.
    pub(super) since: Time,
    batch: usize,
    waiting: VecDeque<u32>,
    active: BTreeSet<u32>,
}

impl Rollout {
    /// A reload of the slots in `serving`, `batch` at a time. Those in `empty` have nobody who serves: they
    /// need not wait for their turn.
    pub(super) fn new(since: Time, batch: usize, serving: VecDeque<u32>, empty: BTreeSet<u32>) -> Rollout {
        let mut rollout = Rollout { since, batch, waiting: serving, active: empty };
        rollout.fill();
        rollout
    }

    fn fill(&mut self) {
        let n = self.batch.min(self.waiting.len());
        self.active.extend(self.waiting.drain(..n));
    }

    /// Whether this slot's turn has come and is not over.
    pub(super) fn is_active(&self, slot: u32) -> bool {
        self.active.contains(&slot)
    }

    /// How many slots' turn that is.
    pub(super) fn count_active(&self) -> usize {
        self.active.len()
    }

    /// A slot is replaced, or is gone. Returns the slots whose turn comes with it.
    pub(super) fn finish(&mut self, slot: u32) -> Vec<u32> {
        if !self.active.remove(&slot) {
            self.waiting.retain(|waiting| *waiting != slot);
            return Vec::new();
        }
        if self.active.is_empty() {
            self.fill();
            return self.active.iter().copied().collect();
        }
        Vec::new()
    }

    /// Whether every slot has had its turn.
    pub(super) fn is_done(&self) -> bool {
        self.active.is_empty() && self.waiting.is_empty()
    }
}

impl Supervisor {
    pub(super) fn reload(&mut self, now: Time) {
        if self.mode != Mode::Running {
            return;
        }
        self.generation += 1;
        self.replacements.clear();
        self.restore_default_memory_limit();
        let (mut serving, mut empty) = (VecDeque::new(), BTreeSet::new());
        for (id, slot) in (0..self.wanted).zip(&mut self.slots) {
            slot.throttle.reset();
            slot.failed = 0;
            slot.set_over_limit(false);
            slot.backoffs = Backoffs::default();
            slot.keep_starting();
            if slot.serving.is_some() {
                serving.push_back(id);
            } else {
                empty.insert(id);
            }
        }
        let slots = index(self.wanted);
        let batch = self.settings.batch_of(slots);
        self.set_rollout(Some(Rollout::new(now, batch, serving, empty)));
        self.push(Report::ReloadStarted { generation: self.generation, slots });
        self.reconcile_all(now);
    }

    pub(super) fn set_rollout(&mut self, rollout: Option<Rollout>) {
        self.rollout = rollout;
        let target = self.rollout.as_ref().map(|_| self.generation);
        self.actions.push_back(Action::Target(target));
    }

    /// One more start of this slot came to nothing; the reload that it belongs to may end with it.
    pub(super) fn count_failed_start(&mut self, now: Time, slot: u32, cause: FailedStart) {
        self.replacements.requeue(slot);
        if self.rollout.is_none() {
            return;
        }
        let state = &mut self.slots[index(slot)];
        state.failed += 1;
        let attempts = state.failed;
        if attempts < self.settings.reload_attempts {
            return;
        }
        self.set_rollout(None);
        self.start_times.reload_ended(false);
        let outdated = |slot: &Slot| slot.serving.is_some_and(|serving| serving.generation < self.generation);
        let kept = self.slots.iter().filter(|slot| outdated(slot)).count();
        self.push(Report::ReloadFailed { generation: self.generation, slot, attempts, cause, kept });
        self.reconcile_all(now);
    }

    /// A slot has what the reload wanted for it, or is gone; the next ones may follow.
    pub(super) fn finish_rollout(&mut self, slot: u32, now: Time) {
        let Some(rollout) = &mut self.rollout else { return };
        let next = rollout.finish(slot);
        if rollout.is_done() {
            let took = now.since(rollout.since);
            self.set_rollout(None);
            self.start_times.reload_ended(true);
            self.push(Report::ReloadDone { generation: self.generation, took });
        }
        for slot in next {
            self.reconcile(slot, now);
        }
    }
}
