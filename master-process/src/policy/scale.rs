//! What the user steers besides reloads: the number of workers, and the replacement of one of them.

use super::replacements::Backoffs;
use super::slot::Slot;
use super::supervisor::{Mode, Supervisor, index};
use super::{FailedStart, Report, Time, WorkerId};
use crate::config::MAX_WORKERS;

impl Supervisor {
    /// Changes the number of workers.
    pub(super) fn scale(&mut self, now: Time, workers: u32) {
        let from = self.wanted;
        if self.mode != Mode::Running || workers == from || !(1..=MAX_WORKERS).contains(&workers) {
            return;
        }
        self.push(Report::Scaled { from, to: workers });
        while self.wanted < workers {
            self.add_slot(now);
        }
        while self.wanted > workers {
            self.wanted -= 1;
            self.reconcile(self.wanted, now);
            self.finish_rollout(self.wanted, now);
        }
    }

    fn add_slot(&mut self, now: Time) {
        let id = self.wanted;
        self.wanted += 1;
        match self.slots.get_mut(index(id)) {
            // The workers that are still stopping belong to a removed slot, whose history does not count for the new
            // one.
            Some(slot) => {
                slot.throttle.reset();
                slot.failed = 0;
                slot.restarts = false;
                slot.backoffs = Backoffs::default();
            }
            None => self.slots.push(Slot::default()),
        }
        self.reconcile(id, now);
    }

    /// Replaces the worker of a slot. If a reload or a limit replaces it already, that continues: the result is the
    /// same.
    pub(super) fn restart(&mut self, now: Time, id: u32) {
        if self.mode != Mode::Running || id >= self.wanted {
            return;
        }
        let is_outdated = |generation| self.rollout.is_some() && generation < self.generation;
        let slot = &mut self.slots[index(id)];
        let has_successor = slot.serving.is_some() && slot.starting.is_some();
        if has_successor || slot.serving.is_some_and(|serving| is_outdated(serving.generation)) {
            slot.throttle.reset();
            return self.reconcile(id, now);
        }
        slot.throttle.reset();
        slot.failed = 0;
        // Whether a worker that is starting serves already is not known: its successor becomes ready first.
        slot.keep_starting();
        let worker = slot.set_to_be_replaced(true);
        slot.restarts = worker.is_some();
        if worker.is_some() {
            self.replacements.enqueue(id);
        }
        self.push(Report::RestartStarted { slot: id, worker });
        self.reconcile(id, now);
    }

    /// The new worker of a slot has passed its probation.
    pub(super) fn finish_restart(&mut self, id: u32, worker: WorkerId) {
        if std::mem::take(&mut self.slots[index(id)].restarts) {
            self.push(Report::RestartDone { worker });
        }
    }

    /// A start failed in a slot that is not reloaded. After as many as a reload would try, the old worker stays.
    pub(super) fn count_failed_restart(&mut self, now: Time, id: u32, cause: FailedStart) {
        let slot = &mut self.slots[index(id)];
        if !slot.restarts {
            return;
        }
        slot.failed += 1;
        let attempts = slot.failed;
        if attempts < self.settings.reload_attempts {
            return;
        }
        slot.restarts = false;
        slot.set_to_be_replaced(false);
        self.push(Report::RestartFailed { slot: id, attempts, cause });
        self.reconcile(id, now);
    }
}
