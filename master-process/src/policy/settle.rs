//! Comparing a slot with what it should be, and pushing the difference.

use std::time::Duration;

use super::limits::Watch;
use super::slot::{Readiness, Said, Serving, Slot, StartPhase, Starting};
use super::supervisor::{Mode, Supervisor, index};
use super::{Action, FailedStart, Note, ReadyBy, Time, WorkerId};

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
            self.settle_serving(id, now);
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
        let times = (self.start_times.unusual(), self.start_times.allowed(self.settings.ready_timeout));
        let slot = &mut self.slots[index(id)];
        let due = slot.next_due(self.known_to_sign, times, wants_launch);
        self.timers.set(id, slot.timer, due);
        slot.timer = due;
        self.drop_empty_slots();
    }

    /// A worker that was kept through the begin of a reload may be ready by its age.
    fn settle_serving(&mut self, id: u32, now: Time) {
        let Some(serving) = self.slots[index(id)].serving else { return };
        if let Readiness::Unknown { ready_at: Some(at) } = serving.readiness
            && at <= now
            && !self.known_to_sign
        {
            self.prove_ready(serving.worker, now, ReadyBy::Age);
        }
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
        let StartPhase::Waiting { since, ready_at, said } = starting.phase else {
            return;
        };
        let allowed = self.start_times.allowed(self.settings.ready_timeout);
        if !self.known_to_sign && ready_at.is_some_and(|at| at <= now) {
            self.become_ready(id, now, ReadyBy::Age);
        } else if since.after(allowed) <= now {
            self.late(id, now, starting, (since, said));
        } else if slot.has_ready() && !said.long && since.after(self.start_times.unusual()) <= now {
            set_said(slot, Said { long: true, ..said });
            self.push(Note::Waits { worker: starting.worker, after: now.since(since) });
        }
    }

    /// A start takes longer than it may. Where another worker of the slot serves, that one stays and this one goes. Where
    /// none does, nothing is won by starting anew: a program that is slow would never come to serve.
    fn late(&mut self, id: u32, now: Time, starting: Starting, (since, said): (Time, Said)) {
        let (worker, after) = (starting.worker, now.since(since));
        let slot = &mut self.slots[index(id)];
        if !slot.has_ready() {
            set_said(slot, Said { late: true, ..said });
            if !said.late {
                self.push(Note::Slow { worker, after });
            }
            return;
        }
        slot.starting = None;
        let wait = slot.throttle.late(now, after, &self.settings);
        self.retire(now, worker, starting.phase);
        self.count_early_death(now);
        self.count_failed_start(now, id, FailedStart::Late(worker));
        let next = self.next_of(id, wait);
        self.push(Note::Late { worker, after, next });
    }

    /// A worker that may have served all the time is known to be ready. Where its successor serves already, it stands by
    /// as before.
    pub(super) fn prove_ready(&mut self, worker: WorkerId, now: Time, by: ReadyBy) {
        let slot = &mut self.slots[index(worker.slot)];
        let in_rotation = slot.serving.is_some_and(|serving| serving.worker == worker);
        let Some(kept) = slot.kept(worker) else { return };
        kept.readiness = Readiness::Since(now);
        let after = now.since(kept.since);
        self.start_times.took(after, false);
        if in_rotation {
            self.push(Note::Ready { worker, after, by, replaces: None });
            self.actions.push_back(Action::Serve(worker));
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
            readiness: Readiness::Since(now),
            recycled: false,
            watch,
        });
        let replaces = old.map(|old| old.worker);
        let after = now.since(since);
        let by_reload = self.rollout.is_some() && generation == self.generation;
        self.start_times.took(after, by_reload);
        self.push(Note::Ready { worker, after, by, replaces });
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

fn set_said(slot: &mut Slot, now_said: Said) {
    if let Some(StartPhase::Waiting { said, .. }) = slot.starting.as_mut().map(|starting| &mut starting.phase)
    {
        *said = now_said;
    }
}
