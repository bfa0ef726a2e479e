//! Replacing workers that exceed a limit: the new worker becomes ready first, then the old one is stopped.
//!
//! [`Backoff`] spaces out the replacements of a slot, because a limit that does not fit the program would replace its
//! workers for ever. [`ReplacementQueue`] limits the slots that are replaced at a time to the batch of a reload.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::{self, Limit, LimitExceeded};
use super::reload::Rollout;
use super::slot::Slot;
use super::supervisor::{Mode, Supervisor, index};
use super::{Action, Busiest, Measured, OverLimit, Pss, Report, Time, Usage, WorkerId};
use crate::config::Limits;

/// The longest time between two replacements of a slot for the same limit. A worker that always exceeds its limit is
/// then replaced once an hour: rarely enough to do no harm, often enough for a slow leak.
const LONGEST: Duration = Duration::from_secs(3600);

/// A worker that is within its limit for less than this is still warming up, however short the interval of the
/// samples is.
const WARM_UP: Duration = Duration::from_secs(30);

/// The history of a slot's replacements for one limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Backoff {
    /// The time from the last replacement to the next; zero if there was none.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    pause: Duration,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<Time>,
    /// Whether the delay was reported.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    reported: bool,
}

/// What to do about a worker that exceeds its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Replace it now.
    Now {
        /// The previous worker was replaced for the same limit.
        again: bool,
    },
    /// Replace it later, if it still exceeds the limit then.
    Later {
        /// The time until then.
        wait: Duration,
        /// The delay was reported before.
        reported: bool,
    },
}

impl Backoff {
    /// Decides about a worker that exceeds its limit after it was within it for `time_within_limit`. `shortest` is
    /// the shortest time in which a worker can exceed the limit.
    ///
    /// Memory that was within its limit for longer than the pause leaks; the limit fits the program. CPU time depends
    /// on the work, so the time within the limit says nothing about it.
    pub(super) fn check(
        &mut self,
        now: Time,
        limit: Limit,
        time_within_limit: Duration,
        shortest: Duration,
    ) -> Decision {
        let again = self.is_again(limit, time_within_limit);
        if let Some(wait) = self.wait(now).filter(|_| again) {
            return Decision::Later { wait, reported: std::mem::replace(&mut self.reported, true) };
        }
        let before = if again { self.pause } else { shortest };
        self.pause = before.saturating_mul(2).min(LONGEST);
        self.until = Some(now.after(self.pause));
        self.reported = false;
        Decision::Now { again }
    }

    /// Whether the replacement is delayed, and that was reported.
    pub(super) fn is_told_to_wait(&self, now: Time, limit: Limit, time_within_limit: Duration) -> bool {
        self.reported && self.is_again(limit, time_within_limit) && self.wait(now).is_some()
    }

    /// Whether the limit seems not to fit the program.
    fn is_again(&self, limit: Limit, time_within_limit: Duration) -> bool {
        let fits = match limit {
            Limit::Memory => self.pause.max(WARM_UP),
            Limit::Cpu => LONGEST,
        };
        self.until.is_some() && time_within_limit < fits
    }

    fn wait(&self, now: Time) -> Option<Duration> {
        self.until.map(|until| until.since(now)).filter(|wait| !wait.is_zero())
    }
}

/// The slots that are being replaced, and those that wait, in order of arrival.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct ReplacementQueue {
    active: BTreeSet<u32>,
    waiting: VecDeque<u32>,
}

impl ReplacementQueue {
    /// Adds a slot unless it is already in the queue.
    pub(super) fn enqueue(&mut self, slot: u32) {
        if !self.active.contains(&slot) && !self.waiting.contains(&slot) {
            self.waiting.push_back(slot);
        }
    }

    /// Removes a slot that was replaced, or no longer needs to be.
    pub(super) fn remove(&mut self, slot: u32) {
        if !self.active.remove(&slot) {
            self.waiting.retain(|waiting| *waiting != slot);
        }
    }

    /// Moves an active slot behind the waiting ones, if there are any. Its attempt failed, and a slot whose attempts
    /// all fail must not block the others.
    pub(super) fn requeue(&mut self, slot: u32) {
        if !self.waiting.is_empty() && self.active.remove(&slot) {
            self.waiting.push_back(slot);
        }
    }

    /// Removes all slots.
    pub(super) fn clear(&mut self) {
        *self = ReplacementQueue::default();
    }

    /// Whether this slot may be replaced now.
    pub(super) fn is_active(&self, slot: u32) -> bool {
        self.active.contains(&slot)
    }

    /// Whether another slot has to wait if `limit` slots may be replaced at a time.
    pub(super) fn is_full(&self, limit: usize) -> bool {
        self.active.len() + self.waiting.len() >= limit
    }

    /// Activates the next slot and returns it; `None` if none waits, or `limit` slots are active.
    pub(super) fn activate_next(&mut self, limit: usize) -> Option<u32> {
        if self.active.len() >= limit {
            return None;
        }
        let slot = self.waiting.pop_front()?;
        self.active.insert(slot);
        Some(slot)
    }
}

/// The backoff of a slot, for each limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Backoffs {
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    cpu: Backoff,
    #[serde(skip_serializing_if = "crate::forms::is_default")]
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
    /// Handles a sample of a worker. Only serving workers are judged; a missing sample is no event.
    pub(super) fn sampled(&mut self, now: Time, worker: WorkerId, usage: Usage) {
        if self.paused || self.mode != Mode::Running {
            return;
        }
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else { return };
        let Some(serving) = slot.serving.as_mut().filter(|serving| serving.worker == worker) else {
            return;
        };
        let Some(ready_at) = serving.ready_at() else { return };
        let (generation, is_to_be_replaced) = (serving.generation, serving.to_be_replaced);
        let limits = limits_of(self.settings.limits, &self.no_memory_limit, generation);
        let verdict = serving.tracker.judge(now, usage, ready_at, &limits);
        if verdict.passed_high && self.settings.signals_high_memory {
            self.actions.push_back(Action::SignalHigh(worker));
        }
        if verdict.exceeds_default {
            self.disable_default_memory_limit(now, worker, generation, usage.memory);
        }
        if let Some(exceeded) = verdict.memory {
            self.over_memory(now, worker, exceeded);
        }
        if let Some(exceeded) = verdict.cpu {
            self.over_limit(now, worker, exceeded, Measured::Cpu);
        }
        if verdict.wants_threads {
            self.look_at_threads(now, worker);
        }
        if is_to_be_replaced {
            self.reconcile(worker.slot, now);
        }
    }

    /// Whether the memory of a worker has a limit.
    pub fn limits_memory_of(&self, worker: WorkerId) -> bool {
        let slot = self.slots.get(index(worker.slot));
        let serving = slot.and_then(|slot| slot.serving.as_ref()).filter(|serving| serving.worker == worker);
        serving.is_none_or(|serving| !self.no_memory_limit.contains(&serving.generation))
    }

    /// A worker exceeded the default memory limit at its first sample: the default does not fit this program.
    fn disable_default_memory_limit(&mut self, now: Time, worker: WorkerId, generation: u32, used: u64) {
        let Some(most) = self.settings.limits.max_memory else { return };
        self.no_memory_limit.push(generation);
        self.push(Report::DefaultDisabled { worker, used, most });
        for slot in &mut self.slots {
            let ready = [slot.serving.as_mut(), slot.standby.as_deref_mut()].into_iter().flatten();
            ready.filter(|of| of.generation == generation).for_each(|of| of.tracker.forget_memory());
        }
        self.reconcile_all(now);
    }

    /// A new release may be another program: the default applies to it until a worker exceeds it at its first sample.
    /// It stays disabled for the generations that still serve.
    pub(super) fn restore_default_memory_limit(&mut self) {
        let slots = &self.slots;
        let serves = |generation| {
            let of = |slot: &Slot| slot.serving.map(|serving| serving.generation);
            slots.iter().any(|slot| of(slot) == Some(generation))
        };
        self.no_memory_limit.retain(|generation| serves(*generation));
    }

    /// Whether a worker that exceeds a limit is to be judged for it. It is not if a reload replaces it anyway, if its
    /// successor is already starting, or if its replacement is known to be delayed.
    fn is_to_be_judged(&mut self, now: Time, worker: WorkerId, exceeded: LimitExceeded) -> bool {
        let is_outdated = |generation| self.rollout.is_some() && generation < self.generation;
        let slot = &mut self.slots[index(worker.slot)];
        let is_replaced = slot.is_to_be_replaced()
            || slot.starting.is_some()
            || slot.serving.is_none_or(|serving| is_outdated(serving.generation));
        !is_replaced
            && !slot.backoffs.of(exceeded.limit).is_told_to_wait(
                now,
                exceeded.limit,
                exceeded.time_within_limit,
            )
    }

    /// Resident memory counts shared memory once for each process. The PSS is therefore measured before a worker is
    /// replaced for its memory.
    fn over_memory(&mut self, now: Time, worker: WorkerId, exceeded: LimitExceeded) {
        let is_to_be_judged = self.is_to_be_judged(now, worker, exceeded);
        let Some(serving) = &mut self.slots[index(worker.slot)].serving else { return };
        if !is_to_be_judged {
            // The row of samples still counts: the worker was not within its limit meanwhile.
            serving.tracker.confirm_memory();
        } else if serving.tracker.look_at_pss(now) {
            self.actions.push_back(Action::MeasurePss(worker));
        }
    }

    /// Handles the result of measuring a worker's PSS.
    pub(super) fn pss_measured(&mut self, now: Time, worker: WorkerId, pss: Pss) {
        let (running, limits) = (!self.paused && self.mode == Mode::Running, self.settings.limits);
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else { return };
        let ready_at = slot.serving.filter(|serving| serving.worker == worker).and_then(|of| of.ready_at());
        let Some(tracker) = slot.tracker_of(worker) else { return };
        let exceeded = tracker.pss_seen(ready_at.unwrap_or(now), &limits);
        let (Some(exceeded), Some(most), Some(_serves), true) =
            (exceeded, limits.max_memory, ready_at, running)
        else {
            return;
        };
        match pss {
            Pss::Deferred => {}
            Pss::Bytes(bytes) if bytes <= most => tracker.is_within_by_pss(now, most - bytes),
            Pss::Bytes(used) => {
                tracker.confirm_memory();
                self.over_limit(now, worker, LimitExceeded { used, ..exceeded }, Measured::Pss);
            }
            Pss::Unknown(why) => {
                tracker.confirm_memory();
                self.over_limit(now, worker, exceeded, Measured::Resident(why));
            }
        }
    }

    /// The default CPU limit applies only to a single stuck loop. The threads are examined when a row of samples
    /// above the limit begins, and when it is complete.
    fn look_at_threads(&mut self, now: Time, worker: WorkerId) {
        let exceeded = LimitExceeded { limit: Limit::Cpu, time_within_limit: Duration::ZERO, used: 0 };
        if self.is_to_be_judged(now, worker, exceeded)
            && let Some(serving) = &mut self.slots[index(worker.slot)].serving
        {
            serving.tracker.look_at_threads();
            self.actions.push_back(Action::LookAtThreads(worker));
        }
    }

    /// Handles the result of examining a worker's threads.
    pub(super) fn threads_seen(&mut self, now: Time, worker: WorkerId, busiest: Option<Busiest>) {
        let (running, limits) = (!self.paused && self.mode == Mode::Running, self.settings.limits);
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else { return };
        let ready_at = slot.serving.filter(|serving| serving.worker == worker).and_then(|of| of.ready_at());
        let Some(tracker) = slot.tracker_of(worker) else { return };
        let exceeded = tracker.threads_seen(busiest, ready_at.unwrap_or(now), &limits);
        if let (Some(exceeded), Some(_serves), true) = (exceeded, ready_at, running) {
            self.over_limit(now, worker, exceeded, Measured::Cpu);
        }
    }

    fn over_limit(&mut self, now: Time, worker: WorkerId, exceeded: LimitExceeded, measured: Measured) {
        if !self.is_to_be_judged(now, worker, exceeded) {
            return;
        }
        let shortest = limits::shortest(&self.settings.limits, exceeded.limit);
        let queued = self.replacements.is_full(self.replacement_limit());
        let slot = &mut self.slots[index(worker.slot)];
        let (wait, again) = match slot.backoffs.of(exceeded.limit).check(
            now,
            exceeded.limit,
            exceeded.time_within_limit,
            shortest,
        ) {
            Decision::Now { again } => (None, again),
            Decision::Later { reported: true, .. } => return,
            Decision::Later { wait, reported: false } => (Some(wait), true),
        };
        if wait.is_none() {
            slot.set_to_be_replaced(true);
            self.replacements.enqueue(worker.slot);
        }
        let queued = queued && wait.is_none();
        let over = OverLimit {
            limit: exceeded.limit,
            used: exceeded.used,
            most: limits::most(&self.settings.limits, exceeded.limit),
            measured,
            samples: limits::failures(&self.settings.limits, exceeded.limit),
            wait,
            queued,
            again,
        };
        self.push(Report::OverLimit { worker, over });
        self.reconcile(worker.slot, now);
    }

    /// The number of slots that may be replaced for a limit at a time: the batch of a reload, less the slots that a
    /// reload is replacing.
    pub(super) fn replacement_limit(&self) -> usize {
        let reloading = self.rollout.as_ref().map_or(0, Rollout::count_active);
        self.settings.batch_of(index(self.wanted)).saturating_sub(reloading)
    }

    /// Removes a slot from the queue when its new worker serves and has passed its probation, or when the replacement
    /// was cancelled.
    pub(super) fn release_replacement(&mut self, id: u32) {
        let slot = &self.slots[index(id)];
        let is_on_probation = slot.probation.is_some() && self.replacements.is_active(id);
        if !slot.is_to_be_replaced() && !is_on_probation {
            self.replacements.remove(id);
        }
    }

    /// Cancels the replacement of a worker that is within its limits again, or is no longer judged. A successor that
    /// is already starting may still replace it.
    pub(super) fn cancel_replacement(&mut self, id: u32) {
        let slot = &mut self.slots[index(id)];
        if slot.starting.is_none()
            && slot.is_to_be_replaced()
            && !slot.wants_replacement()
            && let Some(worker) = slot.set_to_be_replaced(false)
        {
            self.push(Report::ReplacementCancelled { worker });
        }
    }

    /// The user pauses or resumes the limits of all workers.
    pub(super) fn set_monitoring(&mut self, now: Time, paused: bool) {
        if self.paused == paused {
            return;
        }
        self.paused = paused;
        if self.paused {
            let serving = self.slots.iter_mut().filter_map(|slot| slot.serving.as_mut());
            serving.for_each(|serving| serving.ends_judging(now, &self.settings.limits));
        }
        let ready =
            self.slots.iter_mut().flat_map(|slot| [slot.serving.as_mut(), slot.standby.as_deref_mut()]);
        ready.flatten().for_each(|ready| ready.tracker.forget(now));
        self.push(Report::Monitoring { paused: self.paused });
        self.reconcile_all(now);
    }

    /// A worker pauses or resumes its own limits.
    pub(super) fn set_self_paused(&mut self, now: Time, worker: WorkerId, paused: bool) {
        let judges = paused && !self.paused;
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else { return };
        if let Some(serving) = slot.serving.as_mut().filter(|serving| judges && serving.worker == worker) {
            serving.ends_judging(now, &self.settings.limits);
        }
        if let Some(changes) = slot.tracker_of(worker).and_then(|tracker| tracker.pause(now, paused)) {
            self.push(Report::WatchesItself { worker, paused, often: changes > 2 });
            self.reconcile(worker.slot, now);
        }
    }
}

/// The limits for the workers of a generation.
fn limits_of(limits: Limits, no_memory_limit: &[u32], generation: u32) -> Limits {
    let max_memory = limits.max_memory.filter(|_| !no_memory_limit.contains(&generation));
    Limits { max_memory, ..limits }
}

impl Slot {
    /// Whether the serving worker is to be replaced, for a limit or by request.
    pub(super) fn is_to_be_replaced(&self) -> bool {
        self.serving.is_some_and(|serving| serving.to_be_replaced)
    }

    /// Sets whether the serving worker is to be replaced, and returns it.
    pub(super) fn set_to_be_replaced(&mut self, to_be_replaced: bool) -> Option<WorkerId> {
        let serving = self.serving.as_mut()?;
        serving.to_be_replaced = to_be_replaced;
        Some(serving.worker)
    }

    /// Whether the worker that is to be replaced was named by the user, or still exceeds a limit.
    pub(super) fn wants_replacement(&self) -> bool {
        let exceeds = || self.serving.is_some_and(|serving| !serving.tracker.is_within_limits());
        self.is_to_be_replaced() && (self.restarts || exceeds())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORTEST: Duration = Duration::from_secs(50);

    fn at(seconds: u64) -> Time {
        Time::new(Duration::from_secs(seconds))
    }

    #[test]
    fn the_first_worker_over_its_limit_is_replaced_at_once() {
        assert_eq!(
            Backoff::default().check(at(100), Limit::Memory, Duration::ZERO, SHORTEST),
            Decision::Now { again: false }
        );
    }

    #[test]
    fn each_successor_that_is_over_it_as_well_doubles_the_wait_up_to_an_hour() {
        let mut backoff = Backoff::default();
        let mut now = 1000;
        assert_eq!(
            backoff.check(at(now), Limit::Memory, Duration::ZERO, SHORTEST),
            Decision::Now { again: false }
        );
        for wait in [100, 200, 400, 800, 1600, 3200, 3600, 3600] {
            let early = Duration::from_secs(wait - 50);
            let later = Decision::Later { wait: early, reported: false };
            assert_eq!(backoff.check(at(now + 50), Limit::Memory, Duration::ZERO, SHORTEST), later);
            let again = backoff.check(at(now + 52), Limit::Memory, Duration::ZERO, SHORTEST);
            assert!(matches!(again, Decision::Later { reported: true, .. }), "{again:?}");
            now += wait;
            assert_eq!(
                backoff.check(at(now), Limit::Memory, Duration::ZERO, SHORTEST),
                Decision::Now { again: true }
            );
        }
    }

    #[test]
    fn a_leak_that_takes_its_time_is_never_kept_waiting() {
        let mut backoff = Backoff::default();
        for now in [1000, 1300, 1600, 1900] {
            let turn = backoff.check(at(now), Limit::Memory, Duration::from_secs(250), SHORTEST);
            assert_eq!(turn, Decision::Now { again: false });
        }
    }

    #[test]
    fn cpu_time_that_comes_and_goes_waits_longer_each_time() {
        let mut backoff = Backoff::default();
        let time_within_limit = Duration::from_secs(600);
        assert_eq!(
            backoff.check(at(1000), Limit::Cpu, time_within_limit, SHORTEST),
            Decision::Now { again: false }
        );
        assert_eq!(
            backoff.check(at(2000), Limit::Cpu, time_within_limit, SHORTEST),
            Decision::Now { again: true }
        );
        assert_eq!(backoff.pause, 4 * SHORTEST);
        // After an hour within its limit, its history no longer counts.
        assert_eq!(backoff.check(at(9000), Limit::Cpu, LONGEST, SHORTEST), Decision::Now { again: false });
        assert_eq!(backoff.pause, 2 * SHORTEST);
    }
}
