//! Comparing a slot with what it should be, and pushing the difference.

use std::time::Duration;

use super::limits::Watch;
use super::slot::{Serving, StartPhase, Starting};
use super::supervisor::{Mode, Supervisor, index};
use super::{Action, FailedStart, Note, ReadyBy, Sign, Time, WorkerId};

/// A throttle of minutes is for crash loops; two sets of workers for so long would be dear.
const LONGEST_TRIAL: Duration = Duration::from_secs(5);

impl Supervisor {
    pub(super) fn settle_all(&mut self, now: Time) {
        let slots = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        for id in 0..slots {
            self.settle(id, now);
        }
    }

    /// Compares a slot with what it should be and pushes the difference; then those slots that may be replaced now.
    pub(super) fn settle(&mut self, id: u32, now: Time) {
        self.settle_one(id, now);
        while let Some(next) = self.replacements.activate_next(self.replacement_limit()) {
            self.settle_one(next, now);
        }
    }

    fn settle_one(&mut self, id: u32, now: Time) {
        if index(id) >= self.slots.len() {
            return;
        }
        if self.mode == Mode::Running && id < self.wanted {
            self.settle_starting(id, now);
            self.end_trial(id, now);
            self.call_off(id);
            self.launch_if_wanted(id, now);
        } else {
            self.retire_all(id, now);
        }
        self.release_replacement(id);
        self.look_at_draining(id, now);
        self.kill_overdue(id, now);
        let wants_launch = self.wants_launch(id);
        let slot = &mut self.slots[index(id)];
        let due = slot.next_due(self.known_to_sign, wants_launch);
        self.timers.set(id, slot.timer, due);
        slot.timer = due;
        self.drop_empty_slots();
    }

    /// A starting worker is outdated, ready by its age, late, or simply not there yet.
    pub(super) fn settle_starting(&mut self, id: u32, now: Time) {
        let slot = &mut self.slots[index(id)];
        let Some(starting) = slot.starting.as_deref().copied() else { return };
        let replaces = self.rollout.as_ref().is_some_and(|r| r.is_active(id)) || slot.is_recycling();
        let keeps_old = slot.serving.is_some() && !replaces;
        if starting.generation < self.generation || keeps_old {
            slot.starting = None;
            return self.retire(now, starting.worker, starting.phase);
        }
        let StartPhase::Waiting { since, deadline, ready_at, listened } = starting.phase else {
            return;
        };
        if listened.is_some_and(|at| at <= now) {
            self.become_ready(id, now, ReadyBy::Sign(Sign::Listen));
        } else if !self.known_to_sign && ready_at.is_some_and(|at| at <= now) {
            self.become_ready(id, now, ReadyBy::Age);
        } else if deadline <= now {
            slot.starting = None;
            let uptime = now.since(since);
            let wait = slot.throttle.late(now, uptime, &self.settings);
            self.retire(now, starting.worker, starting.phase);
            self.count_early_death(now);
            self.count_failed_start(now, id, FailedStart::Late);
            let next = self.next_of(id, wait);
            self.push(Note::Late { worker: starting.worker, after: uptime, next });
        }
    }

    pub(super) fn become_ready(&mut self, id: u32, now: Time, by: ReadyBy) {
        let slot = &mut self.slots[index(id)];
        let recycles = slot.is_recycling();
        let Some(Starting { worker, generation, phase: StartPhase::Waiting { since, .. }, watch }) =
            slot.starting.as_deref().copied()
        else {
            return;
        };
        slot.starting = None;
        let old = slot.serving.replace(Serving {
            worker,
            generation,
            since,
            ready_at: now,
            recycled: false,
            watch,
        });
        let replaces = old.map(|old| old.worker);
        self.push(Note::Ready { worker, after: now.since(since), by, replaces });
        // In this order: at no moment is nobody there.
        self.actions.push_back(Action::Serve(worker));
        let slot = &mut self.slots[index(id)];
        let before = std::mem::replace(&mut slot.standby, old.map(Box::new));
        // A new release may be ready and die: until it has outlived the throttle, the old one stands by.
        let trial = self.settings.throttle.min(LONGEST_TRIAL);
        slot.trial = (self.rollout.is_some() || recycles).then(|| since.after(trial));
        self.actions.extend(old.map(|old| Action::Retire(old.worker)));
        if let Some(before) = before {
            self.relieve(now, *before);
        }
        self.end_trial(id, now);
    }

    /// The worker that serves has shown that it lives, or nobody wants it to: its predecessor may go.
    pub(super) fn end_trial(&mut self, id: u32, now: Time) {
        let slot = &mut self.slots[index(id)];
        let Some(serving) = slot.serving.filter(|_| slot.trial.is_none_or(|at| at <= now)) else { return };
        let was_on_trial = slot.trial.take().is_some();
        if let Some(standby) = slot.standby.take() {
            self.relieve(now, *standby);
        }
        if was_on_trial && serving.generation == self.generation {
            self.finish_rollout(id, now);
        }
    }

    /// Whether this slot lacks a worker that only the throttle may hold back.
    pub(super) fn wants_launch(&self, id: u32) -> bool {
        let slot = &self.slots[index(id)];
        let recycle = || slot.wants_other() && self.replacements.is_active(id);
        let replace = || self.rollout.as_ref().is_some_and(|rollout| rollout.is_active(id));
        self.mode == Mode::Running
            && id < self.wanted
            && slot.starting.is_none()
            && slot
                .serving
                .is_none_or(|serving| recycle() || serving.generation < self.generation && replace())
    }

    pub(super) fn launch_if_wanted(&mut self, id: u32, now: Time) {
        if !self.wants_launch(id) {
            return;
        }
        let slot = &mut self.slots[index(id)];
        if slot.throttle.not_before().is_some_and(|at| at > now) {
            return;
        }
        slot.throttle.launched();
        self.serial += 1;
        let worker = WorkerId { slot: id, serial: self.serial };
        let phase = StartPhase::Launching;
        let watch = Watch::default();
        let starting = Starting { worker, generation: self.generation, phase, watch };
        slot.starting = Some(Box::new(starting));
        self.actions.push_back(Action::Launch { worker, generation: self.generation });
    }
}
