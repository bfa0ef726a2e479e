//! Workers that use too much: replacement first, and then the stop of the faulty one.

use super::backoff::{Backoff, Turn};
use super::limits::{self, Limit, Trip};
use super::rollout::Rollout;
use super::slot::Slot;
use super::supervisor::{Mode, Supervisor, index};
use super::{Action, Note, OverLimit, Time, Usage, WorkerId};

/// A slot's replacements for each limit.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backoffs {
    cpu: Backoff,
    memory: Backoff,
}

impl Backoffs {
    fn of(&mut self, limit: Limit) -> &mut Backoff {
        match limit {
            Limit::Cpu => &mut self.cpu,
            Limit::Memory => &mut self.memory,
        }
    }
}

impl Supervisor {
    /// A sample of one worker. Only one that serves is judged; no sample is no event.
    pub(super) fn sampled(&mut self, now: Time, worker: WorkerId, usage: Usage) {
        if self.paused || self.mode != Mode::Running {
            return;
        }
        let limits = &self.settings.limits;
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else { return };
        let Some(serving) = slot.serving.as_mut().filter(|serving| serving.worker == worker) else {
            return;
        };
        let verdict = serving.watch.judge(now, usage, serving.ready_at, limits);
        let is_recycling = serving.recycled;
        if verdict.passed_high && self.settings.signals_high_memory {
            self.actions.push_back(Action::SignalHigh(worker));
        }
        for trip in verdict.trips.into_iter().flatten() {
            self.over_limit(now, worker, trip);
        }
        if is_recycling {
            self.settle(worker.slot, now);
        }
    }

    fn over_limit(&mut self, now: Time, worker: WorkerId, trip: Trip) {
        let shortest = limits::shortest(&self.settings.limits, trip.limit);
        let is_outdated = |generation| self.rollout.is_some() && generation < self.generation;
        let queued = self.replacements.is_full(self.replacement_limit());
        let slot = &mut self.slots[index(worker.slot)];
        // A reload replaces it anyway, or somebody is on the way already.
        if slot.is_recycling()
            || slot.starting.is_some()
            || slot.serving.is_none_or(|serving| is_outdated(serving.generation))
        {
            return;
        }
        let (wait, again) = match slot.backoffs.of(trip.limit).turn(now, trip.limit, trip.calm, shortest) {
            Turn::Now { again } => (None, again),
            Turn::Later { told: true, .. } => return,
            Turn::Later { wait, told: false } => (Some(wait), true),
        };
        if wait.is_none() {
            slot.set_recycling(true);
            self.replacements.enqueue(worker.slot);
        }
        let queued = queued && wait.is_none();
        let over = OverLimit { limit: trip.limit, used: trip.used, wait, queued, again };
        self.push(Note::OverLimit { worker, over });
        self.settle(worker.slot, now);
    }

    /// How many slots may be replaced for a limit at a time: a reload's batch, less what a reload replaces now.
    pub(super) fn replacement_limit(&self) -> usize {
        let reloading = self.rollout.as_ref().map_or(0, Rollout::count_active);
        self.settings.batch_of(index(self.wanted)).saturating_sub(reloading)
    }

    /// A slot stays in the queue until the successor of its worker serves and is through its trial, or the replacement is
    /// called off.
    pub(super) fn release_replacement(&mut self, id: u32) {
        let slot = &self.slots[index(id)];
        let is_on_trial = slot.trial.is_some() && self.replacements.is_active(id);
        if !slot.is_recycling() && !is_on_trial {
            self.replacements.remove(id);
        }
    }

    /// A worker that was to be replaced behaves again, or is not judged any more, before anybody took its place: who is
    /// on the way already may still come, but nobody after that.
    pub(super) fn call_off(&mut self, id: u32) {
        let slot = &mut self.slots[index(id)];
        if slot.starting.is_none()
            && slot.is_recycling()
            && !slot.wants_other()
            && let Some(worker) = slot.set_recycling(false)
        {
            self.push(Note::CalledOff { worker });
        }
    }

    /// The user pauses the judging of all workers, or lets it go on.
    pub(super) fn toggle_monitoring(&mut self, now: Time) {
        self.paused = !self.paused;
        let ready =
            self.slots.iter_mut().flat_map(|slot| [slot.serving.as_mut(), slot.standby.as_deref_mut()]);
        ready.flatten().for_each(|ready| ready.watch.forget());
        self.push(Note::Monitoring { paused: self.paused });
        self.settle_all(now);
    }

    /// A worker pauses the judging of itself, or lets it go on.
    pub(super) fn watch_itself(&mut self, now: Time, worker: WorkerId, paused: bool) {
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else { return };
        if let Some(changes) = slot.watch_of(worker).and_then(|watch| watch.pause(paused)) {
            self.push(Note::WatchesItself { worker, paused, often: changes > 2 });
            self.settle(worker.slot, now);
        }
    }
}

impl Slot {
    /// Whether the worker that serves is to be replaced because of what it uses.
    pub(super) fn is_recycling(&self) -> bool {
        self.serving.is_some_and(|serving| serving.recycled)
    }

    /// Says of the worker that serves whether it is to be replaced, and gives who that is.
    pub(super) fn set_recycling(&mut self, recycled: bool) -> Option<WorkerId> {
        let serving = self.serving.as_mut()?;
        serving.recycled = recycled;
        Some(serving.worker)
    }

    /// Whether a strike still stands against the worker that is to be replaced.
    pub(super) fn wants_other(&self) -> bool {
        self.is_recycling() && self.serving.is_some_and(|serving| !serving.watch.is_calm())
    }
}
