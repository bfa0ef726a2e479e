//! The state machine.

use std::collections::VecDeque;
use std::time::Duration;

use super::rollout::Rollout;
use super::slot::{LeavePhase, Leaving, Serving, Slot, StartPhase, Starting};
use super::throttle::Patience;
use super::timers::Timers;
use super::{Action, Event, LaunchFailure, Next, Note, Queue, ReadyBy, Settings, Sign, Time, WorkerId};
use crate::config::{MAX_WORKERS, ReadyMode};

/// In `auto`, a program that neither listens nor notifies counts as ready at this age: a queue consumer.
/// Shorter would take a slow server's first start for one; longer would hold every reload of a consumer up.
const AUTO_AGE: Duration = Duration::from_secs(10);

/// A program of several listeners is ready at its last `listen`: so long it may take for those that its
/// predecessor had. One that has dropped an address in its new release is held up by this once.
const NEXT_LISTEN: Duration = Duration::from_secs(1);

/// How often a draining worker's queue is looked at. Shorter costs calls, longer costs a reload time.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How a supervisor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The user wanted it so.
    Stopped,
    /// `--give-up`'s limit was reached.
    GaveUp,
    /// The very first start failed for a cause that lasts.
    CannotStart,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Running,
    Stopping { outcome: Outcome, kill: bool },
}

/// The workers as the policy knows them.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Supervisor {
    settings: Settings,
    mode: Mode,
    /// Slots from `wanted` on are on their way out.
    wanted: u32,
    slots: Vec<Slot>,
    generation: u32,
    rollout: Option<Rollout>,
    patience: Patience,
    timers: Timers,
    actions: VecDeque<Action>,
    serial: u64,
    /// Whether any worker was ever started.
    launched_once: bool,
    /// Whether any worker has ever said that it is ready: then age is no sign.
    known_to_sign: bool,
}

impl Supervisor {
    /// A supervisor whose first actions start every worker.
    pub fn new(settings: Settings, now: Time) -> Supervisor {
        let mut supervisor = Supervisor {
            mode: Mode::Running,
            wanted: settings.workers,
            slots: Vec::new(),
            generation: 0,
            rollout: None,
            patience: Patience::new(settings.give_up),
            timers: Timers::default(),
            actions: VecDeque::new(),
            serial: 0,
            launched_once: false,
            known_to_sign: false,
            settings,
        };
        supervisor.slots.resize_with(index(supervisor.wanted), Slot::default);
        supervisor.settle_all(now);
        supervisor
    }

    /// Records what happened and decides what follows.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Launched(worker) => self.launched(now, worker),
            Event::LaunchFailed(worker, failure) => self.launch_failed(now, worker, failure),
            Event::Signed(worker, sign) => self.signed(now, worker, sign),
            Event::Queue(worker, queue) => self.looked(now, worker, queue),
            Event::Died(worker) => self.died(now, worker),
            Event::Reload => self.reload(now),
            Event::Stop => self.stop(now),
            Event::ScaleUp => self.scale_up(now),
            Event::ScaleDown => self.scale_down(now),
        }
    }

    /// Does what time alone makes due.
    pub fn advance(&mut self, now: Time) {
        while let Some(slot) = self.timers.due(now) {
            self.slots[index(slot)].timer = None;
            self.settle(slot, now);
        }
    }

    /// The next thing to do. A start that became unwanted before anybody carried it out is dropped here.
    pub fn next_action(&mut self, now: Time) -> Option<Action> {
        loop {
            let action = self.actions.pop_front()?;
            if let Action::Launch { worker, .. } = action
                && let Some(slot) = self.slots.get_mut(index(worker.slot))
                && slot.take_leaving(worker).is_some()
            {
                self.settle(worker.slot, now);
                continue;
            }
            return Some(action);
        }
    }

    /// When [`advance`](Self::advance) is needed next; `None`: never, until something happens.
    pub fn deadline(&self) -> Option<Time> {
        self.timers.first()
    }

    /// How it ended, once nothing is left to wait for.
    pub fn outcome(&self) -> Option<Outcome> {
        match self.mode {
            Mode::Running => None,
            Mode::Stopping { outcome, .. } => self.slots.iter().all(Slot::is_empty).then_some(outcome),
        }
    }

    /// Whether a worker was asked to leave, or is about to be: its end loses nobody who waits for it.
    pub fn expects_end(&self, worker: WorkerId) -> bool {
        let slot = self.slots.get(index(worker.slot));
        slot.is_some_and(|slot| {
            slot.leaving.iter().any(|leaving| leaving.worker == worker)
                || slot.standby.is_some_and(|standby| standby.worker == worker)
        })
    }

    fn launched(&mut self, now: Time, worker: WorkerId) {
        self.launched_once = true;
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else {
            return;
        };
        if let Some(starting) = slot.starting.as_mut().filter(|starting| starting.worker == worker) {
            let ready_at = match self.settings.ready {
                ReadyMode::Auto => Some(now.after(AUTO_AGE)),
                ReadyMode::Alive(age) => Some(now.after(age)),
                ReadyMode::None | ReadyMode::Listen | ReadyMode::Notify | ReadyMode::NotifyFd(_) => None,
            };
            let deadline = now.after(self.settings.ready_timeout);
            starting.phase = StartPhase::Waiting { since: now, deadline, ready_at, listened: None };
            if self.settings.ready == ReadyMode::None {
                self.become_ready(worker.slot, now, ReadyBy::Launch);
            }
        } else if slot.take_leaving(worker).is_some() {
            self.ask_to_leave(now, worker, now);
        }
        self.settle(worker.slot, now);
    }

    fn launch_failed(&mut self, now: Time, worker: WorkerId, failure: LaunchFailure) {
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else {
            return;
        };
        if slot.starting.take_if(|starting| starting.worker == worker).is_none() {
            slot.take_leaving(worker);
            return self.settle(worker.slot, now);
        }
        let wait = match failure {
            LaunchFailure::Passing => slot.throttle.launch_delayed(now, &self.settings),
            LaunchFailure::Lasting if !self.launched_once => {
                self.push(Note::LaunchFailed { worker, next: Next::Nothing });
                return self.shut_down(now, Outcome::CannotStart);
            }
            LaunchFailure::Lasting => {
                let wait = slot.throttle.launch_failed(now, &self.settings);
                self.count_early_death(now);
                self.count_failed_start(now, worker.slot);
                wait
            }
        };
        let next = self.next_of(worker.slot, wait);
        self.push(Note::LaunchFailed { worker, next });
        self.settle(worker.slot, now);
    }

    fn signed(&mut self, now: Time, worker: WorkerId, sign: Sign) {
        let counts = match (self.settings.ready, sign) {
            (ReadyMode::Auto, Sign::Listen | Sign::ListenFirst | Sign::Notify)
            | (ReadyMode::Listen, Sign::Listen | Sign::ListenFirst)
            | (ReadyMode::Notify | ReadyMode::NotifyFd(_), Sign::Notify) => true,
            (ReadyMode::Listen, Sign::Notify)
            | (ReadyMode::Notify | ReadyMode::NotifyFd(_), Sign::Listen | Sign::ListenFirst)
            | (ReadyMode::Alive(_) | ReadyMode::None, Sign::Listen | Sign::ListenFirst | Sign::Notify) => {
                false
            }
        };
        if !counts {
            return;
        }
        self.known_to_sign = true;
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else {
            return;
        };
        let Some(starting) = slot.starting.as_mut().filter(|starting| starting.worker == worker) else {
            return;
        };
        match (sign, &mut starting.phase) {
            (Sign::ListenFirst, StartPhase::Waiting { listened, .. }) => {
                listened.get_or_insert(now.after(NEXT_LISTEN));
            }
            (Sign::Listen | Sign::Notify | Sign::ListenFirst, _phase) => {
                self.become_ready(worker.slot, now, ReadyBy::Sign(sign));
            }
        }
        self.settle(worker.slot, now);
    }

    fn died(&mut self, now: Time, worker: WorkerId) {
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else {
            return;
        };
        if let Some(left) = slot.take_leaving(worker) {
            let uptime = left.phase.since().map_or(Duration::ZERO, |since| now.since(since));
            self.push(Note::Left { worker, uptime });
        } else if let Some(starting) = slot.starting.take_if(|starting| starting.worker == worker) {
            self.died_unasked(now, worker, starting.uptime(now), None, starting.generation);
        } else if let Some(standby) = slot.standby.take_if(|standby| standby.worker == worker) {
            self.push(Note::Left { worker, uptime: now.since(standby.since) });
        } else if let Some(serving) = slot.serving.take_if(|serving| serving.worker == worker) {
            slot.trial = None;
            slot.serving = slot.standby.take();
            if let Some(back) = slot.serving {
                self.actions.push_back(Action::Serve(back.worker));
            }
            let ready_for = Some(now.since(serving.ready_at));
            self.died_unasked(now, worker, now.since(serving.since), ready_for, serving.generation);
        }
        self.settle(worker.slot, now);
    }

    fn died_unasked(
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
            self.count_early_death(now);
        }
        if generation == self.generation && (early || ready_for.is_none()) {
            self.count_failed_start(now, worker.slot);
        }
        let next = self.next_of(worker.slot, wait);
        self.push(Note::Died { worker, uptime, next });
    }

    /// What follows for a slot that has just lost a worker and may have to wait.
    fn next_of(&self, slot: u32, wait: Duration) -> Next {
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

    fn reload(&mut self, now: Time) {
        if self.mode != Mode::Running {
            return;
        }
        self.generation += 1;
        let (mut serving, mut empty) = (VecDeque::new(), std::collections::BTreeSet::new());
        for (id, slot) in (0..self.wanted).zip(&mut self.slots) {
            slot.throttle.reset();
            slot.failed = 0;
            if slot.serving.is_some() {
                serving.push_back(id);
            } else {
                empty.insert(id);
            }
        }
        let slots = index(self.wanted);
        self.rollout = Some(Rollout::new(now, self.settings.batch_of(slots), serving, empty));
        self.push(Note::ReloadStarted { generation: self.generation, slots });
        self.settle_all(now);
    }

    fn stop(&mut self, now: Time) {
        let Mode::Stopping { outcome, kill } = self.mode else {
            let workers = self.slots.iter().map(Slot::workers).sum();
            self.push(Note::Stopping { workers });
            return self.shut_down(now, Outcome::Stopped);
        };
        if !kill {
            self.mode = Mode::Stopping { outcome, kill: true };
            let workers = self.slots.iter().map(Slot::workers).sum();
            self.push(Note::Killing { workers });
            self.settle_all(now);
        }
    }

    fn shut_down(&mut self, now: Time, outcome: Outcome) {
        self.mode = Mode::Stopping { outcome, kill: false };
        self.rollout = None;
        self.settle_all(now);
    }

    fn scale_up(&mut self, now: Time) {
        if self.mode != Mode::Running || self.wanted >= MAX_WORKERS {
            return;
        }
        let id = self.wanted;
        self.wanted += 1;
        match self.slots.get_mut(index(id)) {
            // What is still leaving it belonged to a slot that was given up: its memory is not the new one's.
            Some(slot) => {
                slot.throttle.reset();
                slot.failed = 0;
            }
            None => self.slots.push(Slot::default()),
        }
        self.push(Note::Scaled { from: id, to: self.wanted });
        self.settle(id, now);
    }

    fn scale_down(&mut self, now: Time) {
        if self.mode != Mode::Running || self.wanted <= 1 {
            return;
        }
        let from = self.wanted;
        self.wanted -= 1;
        self.push(Note::Scaled { from, to: self.wanted });
        self.settle(self.wanted, now);
        self.finish_rollout(self.wanted, now);
    }

    fn count_early_death(&mut self, now: Time) {
        if self.mode == Mode::Running
            && let Some(limit) = self.patience.early_death(now)
        {
            self.push(Note::GaveUp { deaths: limit.deaths, within: limit.within });
            self.shut_down(now, Outcome::GaveUp);
        }
    }

    /// One more start of this slot came to nothing; the reload that it belongs to may end with it.
    fn count_failed_start(&mut self, now: Time, slot: u32) {
        if self.rollout.is_none() {
            return;
        }
        let state = &mut self.slots[index(slot)];
        state.failed += 1;
        let attempts = state.failed;
        if attempts < self.settings.reload_attempts {
            return;
        }
        self.rollout = None;
        let outdated = |slot: &Slot| slot.serving.is_some_and(|serving| serving.generation < self.generation);
        let kept = self.slots.iter().filter(|slot| outdated(slot)).count();
        self.push(Note::ReloadFailed { generation: self.generation, slot, attempts, kept });
        self.settle_all(now);
    }

    /// A slot has what the reload wanted for it, or is gone; the next ones may follow.
    fn finish_rollout(&mut self, slot: u32, now: Time) {
        let Some(rollout) = &mut self.rollout else { return };
        let next = rollout.finish(slot);
        if rollout.is_done() {
            let took = now.since(rollout.since);
            self.rollout = None;
            self.push(Note::ReloadDone { generation: self.generation, took });
        }
        for slot in next {
            self.settle(slot, now);
        }
    }

    fn settle_all(&mut self, now: Time) {
        let slots = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        for id in 0..slots {
            self.settle(id, now);
        }
    }

    /// Compares a slot with what it should be and pushes the difference.
    fn settle(&mut self, id: u32, now: Time) {
        if index(id) >= self.slots.len() {
            return;
        }
        if self.mode == Mode::Running && id < self.wanted {
            self.settle_starting(id, now);
            self.end_trial(id, now);
            self.launch_if_wanted(id, now);
        } else {
            self.retire_all(id, now);
        }
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
    fn settle_starting(&mut self, id: u32, now: Time) {
        let slot = &mut self.slots[index(id)];
        let Some(starting) = slot.starting else { return };
        let keeps_old = slot.serving.is_some() && !self.rollout.as_ref().is_some_and(|r| r.is_active(id));
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
            self.count_failed_start(now, id);
            let next = self.next_of(id, wait);
            self.push(Note::Late { worker: starting.worker, after: uptime, next });
        }
    }

    fn become_ready(&mut self, id: u32, now: Time, by: ReadyBy) {
        let slot = &mut self.slots[index(id)];
        let Some(Starting { worker, generation, phase: StartPhase::Waiting { since, .. } }) = slot.starting
        else {
            return;
        };
        slot.starting = None;
        let old = slot.serving.replace(Serving { worker, generation, since, ready_at: now });
        let replaces = old.map(|old| old.worker);
        self.push(Note::Ready { worker, after: now.since(since), by, replaces });
        // In this order: at no moment is nobody there.
        self.actions.push_back(Action::Serve(worker));
        let slot = &mut self.slots[index(id)];
        let before = std::mem::replace(&mut slot.standby, old);
        // A new release may be ready and die: until it has outlived the throttle, the old one stands by.
        slot.trial = self.rollout.is_some().then(|| since.after(self.settings.throttle));
        self.actions.extend(old.map(|old| Action::Retire(old.worker)));
        if let Some(before) = before {
            self.relieve(now, before);
        }
        self.end_trial(id, now);
    }

    /// The worker that serves has shown that it lives, or nobody wants it to: its predecessor may go.
    fn end_trial(&mut self, id: u32, now: Time) {
        let slot = &mut self.slots[index(id)];
        let Some(serving) = slot.serving.filter(|_| slot.trial.is_none_or(|at| at <= now)) else { return };
        let was_on_trial = slot.trial.take().is_some();
        if let Some(standby) = slot.standby.take() {
            self.relieve(now, standby);
        }
        if was_on_trial && serving.generation == self.generation {
            self.finish_rollout(id, now);
        }
    }

    /// Whether this slot lacks a worker that only the throttle may hold back.
    fn wants_launch(&self, id: u32) -> bool {
        let slot = &self.slots[index(id)];
        let replace = || self.rollout.as_ref().is_some_and(|rollout| rollout.is_active(id));
        self.mode == Mode::Running
            && id < self.wanted
            && slot.starting.is_none()
            && slot.serving.is_none_or(|serving| serving.generation < self.generation && replace())
    }

    fn launch_if_wanted(&mut self, id: u32, now: Time) {
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
        slot.starting = Some(Starting { worker, generation: self.generation, phase: StartPhase::Launching });
        self.actions.push_back(Action::Launch { worker, generation: self.generation });
    }

    /// The slot is given up, or everything is. Only in the latter case does nobody else take over: then those
    /// that drain are asked to leave at once as well.
    fn retire_all(&mut self, id: u32, now: Time) {
        let slot = &mut self.slots[index(id)];
        slot.trial = None;
        let (starting, served) = (slot.starting.take(), [slot.serving.take(), slot.standby.take()]);
        if let Some(starting) = starting {
            self.retire(now, starting.worker, starting.phase);
        }
        for worker in served.into_iter().flatten() {
            match self.mode {
                Mode::Running => self.relieve(now, worker),
                Mode::Stopping { .. } => self.ask_to_leave(now, worker.worker, worker.since),
            }
        }
    }

    /// A worker whose place others have taken works off what waits for it, and is asked to leave then.
    fn relieve(&mut self, now: Time, old: Serving) {
        let until = now.after(self.settings.kill_timeout.max(self.settings.drain));
        let phase = LeavePhase::Draining { since: old.since, empty_since: None, look_at: None, until };
        self.slots[index(old.worker.slot)].leaving.push(Leaving { worker: old.worker, phase });
        self.actions.push_back(Action::Retire(old.worker));
        self.actions.push_back(Action::Look(old.worker));
    }

    fn looked(&mut self, now: Time, worker: WorkerId, queue: Queue) {
        let drain = self.settings.drain;
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else {
            return;
        };
        let Some(leaving) = slot.leaving.iter_mut().find(|leaving| leaving.worker == worker) else {
            return;
        };
        let LeavePhase::Draining { since, empty_since, look_at, until } = &mut leaving.phase else {
            return;
        };
        let (since, over) = (*since, *until <= now);
        let done = match queue {
            Queue::None => true,
            Queue::Empty => {
                let empty_at = *empty_since.get_or_insert(now);
                *look_at = Some(empty_at.after(drain));
                empty_at.after(drain) <= now
            }
            Queue::Waiting => {
                *empty_since = None;
                *look_at = Some(now.after(LOOK_AGAIN));
                false
            }
        };
        if done || over {
            slot.take_leaving(worker);
            self.ask_to_leave(now, worker, since);
        }
        self.settle(worker.slot, now);
    }

    fn look_at_draining(&mut self, id: u32, now: Time) {
        let stopping = self.mode != Mode::Running;
        let mut asked = Vec::new();
        for leaving in &mut self.slots[index(id)].leaving {
            let LeavePhase::Draining { since, look_at, .. } = &mut leaving.phase else {
                continue;
            };
            if stopping {
                asked.push((leaving.worker, *since));
            } else if look_at.is_some_and(|at| at <= now) {
                *look_at = None;
                self.actions.push_back(Action::Look(leaving.worker));
            }
        }
        for (worker, since) in asked {
            self.slots[index(id)].take_leaving(worker);
            self.ask_to_leave(now, worker, since);
        }
    }

    fn retire(&mut self, now: Time, worker: WorkerId, phase: StartPhase) {
        match phase {
            StartPhase::Launching => {
                self.slots[index(worker.slot)].leaving.push(Leaving { worker, phase: LeavePhase::Launching })
            }
            StartPhase::Waiting { since, .. } => self.ask_to_leave(now, worker, since),
        }
    }

    fn ask_to_leave(&mut self, now: Time, worker: WorkerId, since: Time) {
        let kill_at = now.after(self.settings.kill_timeout);
        let phase = LeavePhase::Asked { since, asked_at: now, kill_at };
        self.slots[index(worker.slot)].leaving.push(Leaving { worker, phase });
        self.actions.push_back(Action::Stop(worker));
    }

    fn kill_overdue(&mut self, id: u32, now: Time) {
        let kill_now = matches!(self.mode, Mode::Stopping { kill: true, .. });
        for at in 0..self.slots[index(id)].leaving.len() {
            let leaving = &mut self.slots[index(id)].leaving[at];
            let LeavePhase::Asked { since, asked_at, kill_at } = leaving.phase else {
                continue;
            };
            if !kill_now && kill_at > now {
                continue;
            }
            let worker = leaving.worker;
            leaving.phase = LeavePhase::Killed { since };
            if !kill_now {
                self.push(Note::Overdue { worker, after: now.since(asked_at) });
            }
            self.actions.push_back(Action::Kill(worker));
        }
    }

    /// Slots beyond the wanted number go when nothing is left in them.
    fn drop_empty_slots(&mut self) {
        while self.slots.len() > index(self.wanted) && self.slots.last().is_some_and(Slot::is_empty) {
            self.slots.pop();
        }
    }

    fn push(&mut self, note: Note) {
        self.actions.push_back(Action::Report(note));
    }
}

fn index(slot: u32) -> usize {
    slot as usize
}
