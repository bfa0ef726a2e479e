//! Workers that use too much: replacement first, and then the stop of the faulty one.

use super::backoff::{Backoff, Turn};
use super::limits::{self, Limit, Trip};
use super::rollout::Rollout;
use super::slot::Slot;
use super::supervisor::{Mode, Supervisor, index};
use super::{Action, Busiest, Measured, Note, OverLimit, Pss, Time, Usage, WorkerId};
use crate::config::Limits;

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
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else { return };
        let Some(serving) = slot.serving.as_mut().filter(|serving| serving.worker == worker) else {
            return;
        };
        let Some(ready_at) = serving.ready_at() else { return };
        let (generation, is_recycling) = (serving.generation, serving.recycled);
        let limits = limits_of(self.settings.limits, &self.no_memory_limit, generation);
        let verdict = serving.watch.judge(now, usage, ready_at, &limits);
        if verdict.passed_high && self.settings.signals_high_memory {
            self.actions.push_back(Action::SignalHigh(worker));
        }
        if verdict.exceeds_default {
            self.disable_default_memory_limit(now, worker, generation, usage.memory);
        }
        if let Some(trip) = verdict.memory {
            self.over_memory(now, worker, trip);
        }
        if let Some(trip) = verdict.cpu {
            self.over_limit(now, worker, trip, Measured::Cpu);
        }
        if verdict.wants_threads {
            self.look_at_threads(now, worker);
        }
        if is_recycling {
            self.settle(worker.slot, now);
        }
    }

    /// A worker exceeds the default memory limit from the first: the limit says nothing of this program.
    fn disable_default_memory_limit(&mut self, now: Time, worker: WorkerId, generation: u32, used: u64) {
        let Some(most) = self.settings.limits.max_memory else { return };
        self.no_memory_limit.push(generation);
        self.push(Note::DefaultDisabled { worker, used, most });
        for slot in &mut self.slots {
            let ready = [slot.serving.as_mut(), slot.standby.as_deref_mut()].into_iter().flatten();
            ready.filter(|of| of.generation == generation).for_each(|of| of.watch.forget_memory());
        }
        self.settle_all(now);
    }

    /// A new release may be another program: the default holds for it until a worker exceeds it from the first. It stays
    /// off for the generations that still serve.
    pub(super) fn restore_default_memory_limit(&mut self) {
        let slots = &self.slots;
        let serves = |generation| {
            let of = |slot: &Slot| slot.serving.map(|serving| serving.generation);
            slots.iter().any(|slot| of(slot) == Some(generation))
        };
        self.no_memory_limit.retain(|generation| serves(*generation));
    }

    /// Whether a worker that is over a limit is to be looked at for that: a reload replaces it anyway, or somebody is on
    /// the way already, or its turn is known to come later.
    fn is_to_be_judged(&mut self, now: Time, worker: WorkerId, trip: Trip) -> bool {
        let is_outdated = |generation| self.rollout.is_some() && generation < self.generation;
        let slot = &mut self.slots[index(worker.slot)];
        let is_replaced = slot.is_recycling()
            || slot.starting.is_some()
            || slot.serving.is_none_or(|serving| is_outdated(serving.generation));
        !is_replaced && !slot.backoffs.of(trip.limit).is_told_to_wait(now, trip.limit, trip.calm)
    }

    /// Shared memory counts once for each process that has it. Before that ends a worker, its PSS is looked at.
    fn over_memory(&mut self, now: Time, worker: WorkerId, trip: Trip) {
        let is_to_be_judged = self.is_to_be_judged(now, worker, trip);
        let Some(serving) = &mut self.slots[index(worker.slot)].serving else { return };
        if !is_to_be_judged {
            // The row counts all the same: its worker was not within its limit meanwhile.
            serving.watch.confirm_memory();
        } else if serving.watch.look_at_pss(now) {
            self.actions.push_back(Action::MeasurePss(worker));
        }
    }

    /// What a look at a worker's PSS came to.
    pub(super) fn pss_measured(&mut self, now: Time, worker: WorkerId, pss: Pss) {
        let (running, limits) = (!self.paused && self.mode == Mode::Running, self.settings.limits);
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else { return };
        let ready_at = slot.serving.filter(|serving| serving.worker == worker).and_then(|of| of.ready_at());
        let Some(watch) = slot.watch_of(worker) else { return };
        let trip = watch.pss_seen(ready_at.unwrap_or(now), &limits);
        let (Some(trip), Some(most), Some(_serves), true) = (trip, limits.max_memory, ready_at, running)
        else {
            return;
        };
        match pss {
            Pss::Deferred => {}
            Pss::Bytes(bytes) if bytes <= most => watch.is_within_by_pss(now, most - bytes),
            Pss::Bytes(used) => {
                watch.confirm_memory();
                self.over_limit(now, worker, Trip { used, ..trip }, Measured::Pss);
            }
            Pss::Unknown(why) => {
                watch.confirm_memory();
                self.over_limit(now, worker, trip, Measured::Resident(why));
            }
        }
    }

    /// The default CPU limit holds against a single stuck loop only. The threads are looked at when a row of samples over it
    /// begins and when it is complete.
    fn look_at_threads(&mut self, now: Time, worker: WorkerId) {
        let trip = Trip { limit: Limit::Cpu, calm: std::time::Duration::ZERO, used: 0 };
        if self.is_to_be_judged(now, worker, trip)
            && let Some(serving) = &mut self.slots[index(worker.slot)].serving
        {
            serving.watch.look_at_threads();
            self.actions.push_back(Action::LookAtThreads(worker));
        }
    }

    /// What a look at a worker's threads came to.
    pub(super) fn threads_seen(&mut self, now: Time, worker: WorkerId, busiest: Option<Busiest>) {
        let (running, limits) = (!self.paused && self.mode == Mode::Running, self.settings.limits);
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else { return };
        let ready_at = slot.serving.filter(|serving| serving.worker == worker).and_then(|of| of.ready_at());
        let Some(watch) = slot.watch_of(worker) else { return };
        let trip = watch.threads_seen(busiest, ready_at.unwrap_or(now), &limits);
        if let (Some(trip), Some(_serves), true) = (trip, ready_at, running) {
            self.over_limit(now, worker, trip, Measured::Cpu);
        }
    }

    fn over_limit(&mut self, now: Time, worker: WorkerId, trip: Trip, measured: Measured) {
        if !self.is_to_be_judged(now, worker, trip) {
            return;
        }
        let shortest = limits::shortest(&self.settings.limits, trip.limit);
        let queued = self.replacements.is_full(self.replacement_limit());
        let slot = &mut self.slots[index(worker.slot)];
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
        let over = OverLimit { limit: trip.limit, used: trip.used, measured, wait, queued, again };
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

/// The limits of a generation's workers.
fn limits_of(limits: Limits, no_memory_limit: &[u32], generation: u32) -> Limits {
    let max_memory = limits.max_memory.filter(|_| !no_memory_limit.contains(&generation));
    Limits { max_memory, ..limits }
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
