//! Comparing a slot with its desired state, and pushing the actions that lead there.

use std::time::Duration;

use super::limits::UsageTracker;
use super::slot::{Logged, Readiness, Serving, Slot, StartPhase, Starting};
use super::supervisor::{Mode, Supervisor, index};
use super::{Action, FailedStart, ReadyBy, Report, Time, WorkerId};

/// The longest time on probation. Long throttles are meant for crash loops; keeping two sets of workers that long
/// would cost too much.
const LONGEST_PROBATION: Duration = Duration::from_secs(5);

impl Supervisor {
    pub(super) fn reconcile_all(&mut self, now: Time) {
        let slots = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        for id in 0..slots {
            self.reconcile(id, now);
        }
        self.reconcile_preload(now);
    }

    /// Reconciles a slot, and then the slots that may be replaced now.
    pub(super) fn reconcile(&mut self, id: u32, now: Time) {
        self.reconcile_slot(id, now);
        while let Some(next) = self.replacements.activate_next(self.replacement_limit()) {
            self.reconcile_slot(next, now);
        }
    }

    fn reconcile_slot(&mut self, id: u32, now: Time) {
        if index(id) >= self.slots.len() {
            return;
        }
        if self.mode == Mode::Running && id < self.wanted {
            self.reconcile_serving(id, now);
            self.reconcile_starting(id, now);
            self.end_probation(id, now);
            self.cancel_replacement(id);
            self.release_place(id, now);
            self.launch_if_wanted(id, now);
        } else {
            self.stop_slot(id, now);
            self.leave_gate(id);
            self.release_place(id, now);
        }
        self.release_replacement(id);
        self.check_draining(id, now);
        self.kill_overdue(id, now);
        let wants_launch = self.wants_launch(id);
        let times = (self.start_times.unusual(), self.start_times.allowed(self.settings.ready_timeout));
        let slot = &mut self.slots[index(id)];
        let due = slot.next_due(self.program_signals_ready, times, wants_launch);
        let due = [due, self.gate.next_due(id)].into_iter().flatten().min();
        self.timers.set(id, slot.timer, due);
        slot.timer = due;
        self.drop_empty_slots();
    }

    /// A worker that was kept when a reload began may become ready by its age.
    fn reconcile_serving(&mut self, id: u32, now: Time) {
        let Some(serving) = self.slots[index(id)].serving else { return };
        if let Readiness::Unknown { ready_at: Some(at) } = serving.readiness
            && at <= now
            && !self.program_signals_ready
        {
            self.prove_ready(serving.worker, now, ReadyBy::Age);
        }
    }

    /// Handles a starting worker that is outdated, ready by its age, or late.
    pub(super) fn reconcile_starting(&mut self, id: u32, now: Time) {
        let slot = &mut self.slots[index(id)];
        let Some(starting) = slot.starting.as_deref().copied() else { return };
        let replaces = self.rollout.as_ref().is_some_and(|r| r.is_active(id)) || slot.is_to_be_replaced();
        let keeps_old = slot.serving.is_some() && !replaces;
        if starting.generation < self.generation || keeps_old {
            slot.starting = None;
            return self.cancel_start(now, starting.worker, starting.phase);
        }
        let StartPhase::Waiting { since, ready_at, logged } = starting.phase else {
            return;
        };
        let allowed = self.start_times.allowed(self.settings.ready_timeout);
        if !self.program_signals_ready && ready_at.is_some_and(|at| at <= now) {
            self.become_ready(id, now, ReadyBy::Age);
        } else if since.after(allowed) <= now {
            self.late(id, now, starting, (since, logged));
        } else if slot.has_ready() && !logged.long && since.after(self.start_times.unusual()) <= now {
            set_logged(slot, Logged { long: true, ..logged });
            self.push(Report::Waits { worker: starting.worker, after: now.since(since) });
        }
    }

    /// A start exceeds its time. If another worker serves the slot, that one stays and this one is stopped. If none
    /// does, the start goes on: a slow program would never serve if it were started anew.
    fn late(&mut self, id: u32, now: Time, starting: Starting, (since, logged): (Time, Logged)) {
        let (worker, after) = (starting.worker, now.since(since));
        let slot = &mut self.slots[index(id)];
        if !slot.has_ready() {
            set_logged(slot, Logged { late: true, ..logged });
            if !logged.late {
                self.push(Report::Slow { worker, after });
            }
            return;
        }
        slot.starting = None;
        let wait = slot.throttle.late(now, after, &self.settings);
        self.cancel_start(now, worker, starting.phase);
        self.count_early_death(now);
        self.count_failed_start(now, id, FailedStart::Late(worker));
        let next = self.next_of(id, wait);
        self.push(Report::Late { worker, after, next });
    }

    /// A worker that was taken to serve is now known to be ready. If its successor already serves, it stays on
    /// standby.
    pub(super) fn prove_ready(&mut self, worker: WorkerId, now: Time, by: ReadyBy) {
        let slot = &mut self.slots[index(worker.slot)];
        let in_rotation = slot.serving.is_some_and(|serving| serving.worker == worker);
        let Some(kept) = slot.kept(worker) else { return };
        kept.readiness = Readiness::Since(now);
        let after = now.since(kept.since);
        self.start_times.took(after, false);
        if in_rotation {
            self.push(Report::Ready { worker, after, by, replaces: None });
            self.actions.push_back(Action::AddToRotation(worker));
        }
    }

    pub(super) fn become_ready(&mut self, id: u32, now: Time, by: ReadyBy) {
        let slot = &mut self.slots[index(id)];
        let recycles = slot.is_to_be_replaced();
        let Some(Starting { worker, generation, phase: StartPhase::Waiting { since, .. }, tracker }) =
            slot.starting.as_deref().copied()
        else {
            return;
        };
        slot.starting = None;
        slot.has_been_ready = true;
        let old = slot.serving.replace(Serving {
            worker,
            generation,
            since,
            readiness: Readiness::Since(now),
            to_be_replaced: false,
            tracker,
        });
        let replaces = old.map(|old| old.worker);
        let after = now.since(since);
        let by_reload = self.rollout.is_some() && generation == self.generation;
        self.start_times.took(after, by_reload);
        self.push(Report::Ready { worker, after, by, replaces });
        // In this order, there is always a worker in rotation.
        self.actions.push_back(Action::AddToRotation(worker));
        let slot = &mut self.slots[index(id)];
        let before = std::mem::replace(&mut slot.standby, old.map(Box::new));
        // A new release may become ready and then exit. Until it has outlived the throttle, the old worker stays on
        // standby.
        let probation = self.settings.throttle.min(LONGEST_PROBATION);
        slot.probation = (self.rollout.is_some() || recycles).then(|| since.after(probation));
        self.actions.extend(old.map(|old| Action::RemoveFromRotation(old.worker)));
        if let Some(before) = before {
            self.drain(now, *before);
        }
        self.end_probation(id, now);
    }

    /// The serving worker has passed its probation, or the probation no longer matters: its predecessor is stopped.
    pub(super) fn end_probation(&mut self, id: u32, now: Time) {
        let slot = &mut self.slots[index(id)];
        let Some(serving) = slot.serving.filter(|_| slot.probation.is_none_or(|at| at <= now)) else {
            return;
        };
        let was_on_probation = slot.probation.take().is_some();
        if let Some(standby) = slot.standby.take() {
            self.drain(now, *standby);
        }
        if was_on_probation {
            self.finish_restart(id, serving.worker);
        }
        if was_on_probation && serving.generation == self.generation {
            self.finish_rollout(id, now);
        }
    }

    /// Whether this slot needs a new worker, which only the throttle and the gate may delay.
    pub(super) fn wants_launch(&self, id: u32) -> bool {
        let slot = &self.slots[index(id)];
        let recycle = || slot.wants_replacement() && self.replacements.is_active(id);
        let replace = || self.rollout.as_ref().is_some_and(|rollout| rollout.is_active(id));
        self.mode == Mode::Running
            && id < self.wanted
            && self.is_preloaded()
            && slot.starting.is_none()
            && slot
                .serving
                .is_none_or(|serving| recycle() || serving.generation < self.generation && replace())
    }

    pub(super) fn launch_if_wanted(&mut self, id: u32, now: Time) {
        let throttled = self.slots[index(id)].throttle.not_before().is_some_and(|at| at > now);
        if throttled || !self.wants_launch(id) {
            return self.leave_gate(id);
        }
        self.slots[index(id)].throttle.clear_delay();
        if !self.waits_at_gate(id, now) {
            self.launch(id);
        }
    }

    pub(super) fn launch(&mut self, id: u32) -> WorkerId {
        let slot = &mut self.slots[index(id)];
        self.serial += 1;
        let worker = WorkerId { slot: id, serial: self.serial };
        let phase = StartPhase::Launching;
        let tracker = UsageTracker::default();
        let starting = Starting { worker, generation: self.generation, phase, tracker };
        slot.starting = Some(Box::new(starting));
        self.actions.push_back(Action::Launch { worker, generation: self.generation });
        worker
    }
}

fn set_logged(slot: &mut Slot, now_logged: Logged) {
    if let Some(StartPhase::Waiting { logged, .. }) =
        slot.starting.as_mut().map(|starting| &mut starting.phase)
    {
        *logged = now_logged;
    }
}
