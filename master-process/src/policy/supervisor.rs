//! The state machine.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::gate::Gate;
use super::preload::{PRELOAD, Preload};
use super::reload::Rollout;
use super::replacements::ReplacementQueue;
use super::slot::{Logged, Slot, StartPhase, Starting, StopPhase};
use super::start_times::StartTimes;
use super::throttle::RestartLimiter;
use super::time::Timers;
use super::{
    Action, Event, FailedStart, LaunchFailure, Next, ReadyBy, ReadySignal, Report, Settings, Time, WorkerId,
};
use crate::config::ReadyMode;

/// In mode `auto`, a program that neither listens nor notifies counts as ready at this age: a queue consumer, for
/// example. With a shorter time, a slow server would be taken for one; a longer time would delay every reload of a
/// consumer.
const AUTO_AGE: Duration = Duration::from_secs(10);

/// Two stop signals within this time are one: `timeout` signals its child and then its own process group, and npm
/// passes on what the terminal has sent to all processes. With a longer time, the second Ctrl-C of a user would be
/// taken for the first.
const SAME_STOP: Duration = Duration::from_millis(500);

/// How the supervisor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The user stopped it.
    Stopped,
    /// `--give-up`'s limit was reached.
    GaveUp,
    /// The very first start failed for a permanent reason.
    CannotStart,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Mode {
    Running,
    /// `requested_at` is the time of the first stop signal; `None` if the supervisor stops for another reason.
    Stopping {
        outcome: Outcome,
        kill: bool,
        requested_at: Option<Time>,
    },
}

/// The state of all workers.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Supervisor {
    pub(super) settings: Settings,
    pub(super) mode: Mode,
    /// The slots from `wanted` on are being removed.
    pub(super) wanted: u32,
    pub(super) slots: Vec<Slot>,
    pub(super) generation: u32,
    /// The generation of the last requested reload. Until its preload command is complete, it is not the current one.
    pub(super) requested_generation: u32,
    pub(super) preload: Preload,
    pub(super) rollout: Option<Rollout>,
    pub(super) restart_limiter: RestartLimiter,
    pub(super) timers: Timers,
    pub(super) actions: VecDeque<Action>,
    pub(super) serial: u64,
    /// Whether a worker was ever started.
    pub(super) launched_once: bool,
    /// Whether a worker ever sent a readiness signal: then age does not count.
    pub(super) program_signals_ready: bool,
    /// The time that this program takes to become ready.
    pub(super) start_times: StartTimes,
    /// Whether the limits are paused.
    pub(super) paused: bool,
    /// The starts that wait for a place, and those that have one.
    pub(super) gate: Gate,
    /// The slots whose workers are replaced for a limit.
    pub(super) replacements: ReplacementQueue,
    /// The generations for which the default memory limit is disabled.
    pub(super) no_memory_limit: Vec<u32>,
}

impl Supervisor {
    /// A supervisor; its first actions start every worker.
    pub fn new(settings: Settings, now: Time) -> Supervisor {
        let mut supervisor = Supervisor {
            mode: Mode::Running,
            wanted: settings.workers,
            slots: Vec::new(),
            generation: 0,
            requested_generation: 0,
            preload: if settings.preload { Preload::first(now) } else { Preload::default() },
            rollout: None,
            restart_limiter: RestartLimiter::new(settings.give_up),
            timers: Timers::default(),
            actions: VecDeque::new(),
            serial: 0,
            launched_once: false,
            program_signals_ready: false,
            start_times: StartTimes::default(),
            paused: false,
            gate: Gate::default(),
            replacements: ReplacementQueue::default(),
            no_memory_limit: Vec::new(),
            settings,
        };
        supervisor.slots.resize_with(index(supervisor.wanted), Slot::default);
        supervisor.reconcile_all(now);
        supervisor
    }

    /// Handles an event.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Launched(worker) => self.launched(now, worker),
            Event::LaunchFailed(worker, failure) => self.launch_failed(now, worker, failure),
            Event::ReadySignal(worker, signal) => self.ready_signal(now, worker, signal),
            Event::PreloadLaunched(id) => self.preload_launched(now, id),
            Event::PreloadNotLaunched(id, failure) => self.preload_not_launched(now, id, failure),
            Event::PreloadEnded(id, complete) => self.preload_ended(now, id, complete),
            Event::PlaceGiven => self.place_given(now),
            Event::Queue(worker, queue) => self.queue_checked(now, worker, queue),
            Event::Died(worker) => self.died(now, worker),
            Event::DiedWithRemains(worker) => self.died_with_remains(now, worker),
            Event::RemainsGone(worker) => self.remains_gone(now, worker),
            Event::RemainsUnheeding(worker) => self.remains_unheeding(now, worker),
            Event::WentIntoBackground(worker) => self.went_into_background(now, worker),
            Event::Sampled(worker, usage) => self.sampled(now, worker, usage),
            Event::Pss(worker, pss) => self.pss_measured(now, worker, pss),
            Event::Threads(worker, busiest) => self.threads_seen(now, worker, busiest),
            Event::WatchesItself(worker, paused) => self.set_self_paused(now, worker, paused),
            Event::ToggleMonitoring => self.set_monitoring(now, !self.paused),
            Event::PauseMonitoring(paused) => self.set_monitoring(now, paused),
            Event::Reload => self.reload(now),
            Event::Stop => self.stop(now),
            Event::Hangup => self.hang_up(now),
            Event::ScaleUp => self.scale(now, self.wanted.saturating_add(1)),
            Event::ScaleDown => self.scale(now, self.wanted - 1),
            Event::Scale(workers) => self.scale(now, workers),
            Event::Restart(slot) => self.restart(now, slot),
        }
    }

    /// Handles what is due at this time.
    pub fn advance(&mut self, now: Time) {
        while let Some(slot) = self.timers.due(now) {
            if slot == PRELOAD {
                self.preload_due(now);
                continue;
            }
            self.slots[index(slot)].timer = None;
            self.reconcile(slot, now);
        }
    }

    /// The next action. A start that was cancelled before it was carried out is dropped here.
    pub fn next_action(&mut self, now: Time) -> Option<Action> {
        loop {
            let action = self.actions.pop_front()?;
            if let Action::Launch { worker, .. } = action
                && let Some(slot) = self.slots.get_mut(index(worker.slot))
                && slot.take_stopping(worker).is_some()
            {
                self.reconcile(worker.slot, now);
                continue;
            }
            if let Action::Preload { id, .. } = action
                && self.drop_cancelled_preload(now, id)
            {
                continue;
            }
            return Some(action);
        }
    }

    /// The time at which [`advance`](Self::advance) has to be called next; `None` if only an event matters.
    pub fn deadline(&self) -> Option<Time> {
        self.timers.first()
    }

    /// How the supervisor ended; `None` while it waits for anything.
    pub fn outcome(&self) -> Option<Outcome> {
        match self.mode {
            Mode::Running => None,
            Mode::Stopping { outcome, .. } => {
                (self.preload.is_idle() && self.slots.iter().all(Slot::is_empty)).then_some(outcome)
            }
        }
    }

    /// Whether a worker was being stopped, so that its end loses no connection. A worker on standby was not, although
    /// a successor serves: addresses that the successor does not serve are kept until it has passed its probation.
    pub fn expects_end(&self, worker: WorkerId) -> bool {
        if worker.is_preload() {
            return self.expects_end_of_preload(worker);
        }
        let slot = self.slots.get(index(worker.slot));
        slot.is_some_and(|slot| slot.stopping.iter().any(|stopping| stopping.worker == worker))
    }

    /// Whether the serving worker of a slot is on probation: the addresses of its predecessor may be needed again.
    pub fn is_on_probation(&self, slot: u32) -> bool {
        self.slots.get(index(slot)).is_some_and(|slot| slot.probation.is_some())
    }

    fn stop_phase(&self, worker: WorkerId) -> Option<StopPhase> {
        let stopping = &self.slots.get(index(worker.slot))?.stopping;
        stopping.iter().find(|stopping| stopping.worker == worker).map(|stopping| stopping.phase)
    }

    /// Whether a worker got the stop signal.
    pub fn was_asked_to_stop(&self, worker: WorkerId) -> bool {
        matches!(self.stop_phase(worker), Some(StopPhase::Signalled { .. } | StopPhase::Killed { .. }))
    }

    /// Whether a worker got SIGKILL.
    pub fn was_killed(&self, worker: WorkerId) -> bool {
        matches!(self.stop_phase(worker), Some(StopPhase::Killed { .. }))
    }

    /// Whether a worker is starting in a slot, or is to be started, now or later.
    pub fn expects_start(&self, slot: u32) -> bool {
        let state = self.slots.get(index(slot));
        let launching = |starting: &Starting| matches!(starting.phase, StartPhase::Launching);
        state.is_some_and(|state| state.starting.as_deref().is_some_and(launching) || self.wants_launch(slot))
    }

    fn launched(&mut self, now: Time, worker: WorkerId) {
        self.launched_once = true;
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else {
            return;
        };
        slot.has_run = true;
        if let Some(starting) = slot.starting.as_mut().filter(|starting| starting.worker == worker) {
            let ready_at = match self.settings.ready {
                ReadyMode::Auto => Some(now.after(AUTO_AGE)),
                ReadyMode::Alive(age) => Some(now.after(age)),
                ReadyMode::None
                | ReadyMode::Listen
                | ReadyMode::ListenOn(_)
                | ReadyMode::Notify
                | ReadyMode::NotifyFd(_) => None,
            };
            starting.phase = StartPhase::Waiting { since: now, ready_at, logged: Logged::default() };
            if self.settings.ready == ReadyMode::None {
                self.become_ready(worker.slot, now, ReadyBy::Launch);
            }
        } else if slot.take_stopping(worker).is_some() {
            self.request_stop(now, worker, now);
        }
        self.reconcile(worker.slot, now);
    }

    fn launch_failed(&mut self, now: Time, worker: WorkerId, failure: LaunchFailure) {
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else {
            return;
        };
        if slot.starting.take_if(|starting| starting.worker == worker).is_none() {
            slot.take_stopping(worker);
            return self.reconcile(worker.slot, now);
        }
        let wait = match failure {
            LaunchFailure::Passing => slot.throttle.launch_delayed(now, &self.settings),
            LaunchFailure::Lasting if !self.launched_once => {
                self.push(Report::LaunchFailed { worker, next: Next::Nothing });
                return self.shut_down(now, Outcome::CannotStart);
            }
            LaunchFailure::Lasting | LaunchFailure::NoAnswer => {
                let wait = slot.throttle.launch_failed(now, &self.settings);
                self.count_early_death(now);
                self.count_failed_start(now, worker.slot, FailedStart::NotLaunched);
                wait
            }
        };
        let next = self.next_of(worker.slot, wait);
        self.push(Report::LaunchFailed { worker, next });
        self.reconcile(worker.slot, now);
    }

    fn ready_signal(&mut self, now: Time, worker: WorkerId, signal: ReadySignal) {
        let counts = match (&self.settings.ready, signal) {
            (ReadyMode::Auto, ReadySignal::Listen | ReadySignal::ListenPartly | ReadySignal::Notify)
            | (ReadyMode::Listen | ReadyMode::ListenOn(_), ReadySignal::Listen | ReadySignal::ListenPartly)
            | (ReadyMode::Notify | ReadyMode::NotifyFd(_), ReadySignal::Notify) => true,
            (ReadyMode::Listen | ReadyMode::ListenOn(_), ReadySignal::Notify)
            | (ReadyMode::Notify | ReadyMode::NotifyFd(_), ReadySignal::Listen | ReadySignal::ListenPartly)
            | (
                ReadyMode::Alive(_) | ReadyMode::None,
                ReadySignal::Listen | ReadySignal::ListenPartly | ReadySignal::Notify,
            ) => false,
        };
        if !counts {
            return;
        }
        self.program_signals_ready = true;
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else {
            return;
        };
        let starts = slot.starting.as_ref().is_some_and(|starting| starting.worker == worker);
        match signal {
            // A missing address is waited for as long as a start may take.
            ReadySignal::ListenPartly => {}
            ReadySignal::Listen | ReadySignal::Notify if starts => {
                self.become_ready(worker.slot, now, ReadyBy::Signal(signal));
            }
            ReadySignal::Listen | ReadySignal::Notify => {
                self.prove_ready(worker, now, ReadyBy::Signal(signal))
            }
        }
        self.reconcile(worker.slot, now);
    }

    /// A daemon does not become ready by its age: it is the worker because it listens.
    fn went_into_background(&mut self, now: Time, worker: WorkerId) {
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else { return };
        if let Some(starting) = slot.starting.as_mut().filter(|starting| starting.worker == worker)
            && let StartPhase::Waiting { ready_at, .. } = &mut starting.phase
        {
            *ready_at = None;
        }
        self.reconcile(worker.slot, now);
    }

    /// Whether a worker is starting.
    pub fn is_starting(&self, worker: WorkerId) -> bool {
        let slot = self.slots.get(index(worker.slot));
        slot.and_then(|slot| slot.starting.as_deref()).is_some_and(|starting| starting.worker == worker)
    }

    pub(super) fn died(&mut self, now: Time, worker: WorkerId) {
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else {
            return;
        };
        if let Some(left) = slot.take_stopping(worker) {
            let uptime = left.phase.since().map_or(Duration::ZERO, |since| now.since(since));
            self.push(Report::Left { worker, uptime });
        } else if let Some(starting) = slot.starting.take_if(|starting| starting.worker == worker) {
            self.died_unasked(now, worker, starting.uptime(now), None, starting.generation);
        } else if let Some(standby) = slot.standby.take_if(|standby| standby.worker == worker) {
            self.push(Report::Left { worker, uptime: now.since(standby.since) });
        } else if let Some(serving) = slot.serving.take_if(|serving| serving.worker == worker) {
            slot.probation = None;
            slot.serving = slot.standby.take().map(|standby| *standby);
            if let Some(back) = slot.serving.filter(|back| back.ready_at().is_some()) {
                self.actions.push_back(Action::AddToRotation(back.worker));
            }
            let ready_for = serving.ready_at().map(|ready_at| now.since(ready_at));
            self.died_unasked(now, worker, now.since(serving.since), ready_for, serving.generation);
        }
        self.reconcile(worker.slot, now);
    }

    pub(super) fn died_unasked(
        &mut self,
        now: Time,
        worker: WorkerId,
        uptime: Duration,
        ready_for: Option<Duration>,
        generation: u32,
    ) {
        let slot = &mut self.slots[index(worker.slot)];
        let (wait, early) = slot.throttle.died(now, uptime, ready_for, &self.settings);
        if early {
            self.hurry_remains(worker.slot);
            self.count_early_death(now);
        }
        if generation == self.generation && (early || ready_for.is_none()) {
            self.count_failed_start(now, worker.slot, FailedStart::Died);
        }
        let next = self.next_of(worker.slot, wait);
        self.push(Report::Died { worker, uptime, next });
    }

    /// What happens next in a slot that has just lost a worker.
    pub(super) fn next_of(&self, slot: u32, wait: Duration) -> Next {
        let state = &self.slots[index(slot)];
        if self.mode != Mode::Running || slot >= self.wanted {
            Next::Nothing
        } else if state.starting.is_some() {
            Next::Successor
        } else if self.wants_launch(slot) {
            Next::Restart(wait)
        } else {
            Next::Predecessor
        }
    }

    fn stop(&mut self, now: Time) {
        match &mut self.mode {
            Mode::Running => {
                self.hang_up(now);
                self.mode =
                    Mode::Stopping { outcome: Outcome::Stopped, kill: false, requested_at: Some(now) };
            }
            Mode::Stopping { requested_at: requested_at @ None, .. } => *requested_at = Some(now),
            Mode::Stopping { kill, requested_at: Some(requested_at), .. } => {
                if !*kill && now.since(*requested_at) > SAME_STOP {
                    *kill = true;
                    let workers = self.slots.iter().map(Slot::workers).sum();
                    self.push(Report::Killing { workers });
                    self.reconcile_all(now);
                }
            }
        }
    }

    fn hang_up(&mut self, now: Time) {
        if self.mode == Mode::Running {
            let workers = self.slots.iter().map(Slot::workers).sum();
            self.push(Report::Stopping { workers });
            self.shut_down(now, Outcome::Stopped);
        }
    }

    pub(super) fn shut_down(&mut self, now: Time, outcome: Outcome) {
        self.mode = Mode::Stopping { outcome, kill: false, requested_at: None };
        self.set_rollout(None);
        self.reconcile_all(now);
    }

    pub(super) fn count_early_death(&mut self, now: Time) {
        if self.mode == Mode::Running
            && let Some(limit) = self.restart_limiter.early_death(now)
        {
            self.push(Report::GaveUp { deaths: limit.deaths, within: limit.within });
            self.shut_down(now, Outcome::GaveUp);
        }
    }

    /// Removes the slots beyond the wanted number that have no workers.
    pub(super) fn drop_empty_slots(&mut self) {
        while self.slots.len() > index(self.wanted) && self.slots.last().is_some_and(Slot::is_empty) {
            self.slots.pop();
        }
    }

    pub(super) fn push(&mut self, note: Report) {
        self.actions.push_back(Action::Report(note));
    }
}

pub(super) fn index(slot: u32) -> usize {
    slot as usize
}
