//! Reloads: a new generation, slot by slot.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::replacements::Backoffs;
use super::slot::Slot;
use super::supervisor::{Mode, Supervisor, index};
use super::{Action, FailedStart, Report, Time};

/// A reload in progress.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Rollout {
    /// The start of the reload.
    pub(super) since: Time,
    batch: usize,
    waiting: VecDeque<u32>,
    active: BTreeSet<u32>,
}

impl Rollout {
    /// A reload of the slots in `serving`, `batch` at a time. The slots in `empty` have no serving worker, so they
    /// need not wait.
    pub(super) fn new(since: Time, batch: usize, serving: VecDeque<u32>, empty: BTreeSet<u32>) -> Rollout {
        let mut rollout = Rollout { since, batch, waiting: serving, active: empty };
        rollout.fill();
        rollout
    }

    fn fill(&mut self) {
        let n = self.batch.min(self.waiting.len());
        self.active.extend(self.waiting.drain(..n));
    }

    /// Whether this slot is being replaced.
    pub(super) fn is_active(&self, slot: u32) -> bool {
        self.active.contains(&slot)
    }

    /// The number of slots that are being replaced.
    pub(super) fn count_active(&self) -> usize {
        self.active.len()
    }

    /// A slot was replaced or removed. Returns the slots that are replaced next.
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

    /// The number of slots that are not replaced yet.
    pub(super) fn count_left(&self) -> usize {
        self.active.len() + self.waiting.len()
    }

    /// Whether all slots were replaced.
    pub(super) fn is_done(&self) -> bool {
        self.count_left() == 0
    }
}

impl Supervisor {
    pub(super) fn reload(&mut self, now: Time) {
        if self.mode != Mode::Running {
            return;
        }
        self.requested_generation += 1;
        let (generation, slots) = (self.requested_generation, index(self.wanted));
        self.push(Report::ReloadStarted { generation, slots });
        if self.settings.preload {
            return self.reload_after_preload(now);
        }
        self.begin_generation(generation, now, now);
    }

    /// The new generation begins: a reload of all slots, which was requested at `since`.
    pub(super) fn begin_generation(&mut self, generation: u32, since: Time, now: Time) {
        self.generation = generation;
        self.replacements.clear();
        self.restore_default_memory_limit();
        let (mut serving, mut empty) = (VecDeque::new(), BTreeSet::new());
        for (id, slot) in (0..self.wanted).zip(&mut self.slots) {
            slot.throttle.reset();
            slot.failed = 0;
            slot.set_to_be_replaced(false);
            slot.restarts = false;
            slot.backoffs = Backoffs::default();
            slot.keep_starting();
            if slot.serving.is_some() {
                serving.push_back(id);
            } else {
                empty.insert(id);
            }
        }
        let batch = self.settings.batch_of(index(self.wanted));
        self.set_rollout(Some(Rollout::new(since, batch, serving, empty)));
        self.reconcile_all(now);
    }

    pub(super) fn set_rollout(&mut self, rollout: Option<Rollout>) {
        self.rollout = rollout;
        let target = self.rollout.as_ref().map(|_| self.generation);
        self.actions.push_back(Action::Target(target));
    }

    /// A start in this slot failed; the reload may fail with it.
    pub(super) fn count_failed_start(&mut self, now: Time, slot: u32, cause: FailedStart) {
        self.replacements.requeue(slot);
        if self.rollout.is_none() {
            return self.count_failed_restart(now, slot, cause);
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

    /// A slot was replaced or removed; the next ones follow.
    pub(super) fn finish_rollout(&mut self, slot: u32, now: Time) {
        let Some(rollout) = &mut self.rollout else { return };
        let left = rollout.count_left();
        let next = rollout.finish(slot);
        if rollout.count_left() < left && slot < self.wanted {
            self.push(Report::SlotReloaded { generation: self.generation, slot });
        }
        let Some(rollout) = &self.rollout else { return };
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
