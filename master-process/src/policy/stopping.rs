//! Stopping a worker: out of rotation, drained, stopped, killed.

use std::time::Duration;

use super::slot::{Serving, Slot, StartPhase, StopPhase, Stopping};
use super::supervisor::{Mode, Supervisor, index};
use super::{Action, Queue, Report, Time, WorkerId};

/// The interval of the checks of a draining worker's queue. A shorter one costs calls, a longer one delays a reload.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The time from the stop signal to SIGKILL for the processes that a crashed worker left, where waiting longer does not
/// help: none of them handles the stop signal, or the replacement died early and may need what they hold. Otherwise they
/// have the kill time-out, to finish the requests that they would finish without a supervisor.
const REMAINS_AFTER_A_CRASH: Duration = Duration::from_secs(1);

impl Supervisor {
    /// The slot is removed, or everything stops. Only in the latter case does no other worker take over: draining
    /// workers get the stop signal at once as well.
    pub(super) fn stop_slot(&mut self, id: u32, now: Time) {
        let slot = &mut self.slots[index(id)];
        slot.probation = None;
        let (starting, served) =
            (slot.starting.take(), [slot.serving.take(), slot.standby.take().map(|standby| *standby)]);
        if let Some(starting) = starting {
            self.cancel_start(now, starting.worker, starting.phase);
        }
        for worker in served.into_iter().flatten() {
            match self.mode {
                Mode::Running => self.drain(now, worker),
                Mode::Stopping { .. } => self.request_stop(now, worker.worker, worker.since),
            }
        }
    }

    /// A replaced worker drains, and then gets the stop signal.
    pub(super) fn drain(&mut self, now: Time, old: Serving) {
        let until = now.after(self.settings.kill_timeout.max(self.settings.drain));
        let phase = StopPhase::Draining { since: old.since, empty_since: None, look_at: None, until };
        self.slots[index(old.worker.slot)].stopping.push(Stopping { worker: old.worker, phase });
        self.actions.push_back(Action::RemoveFromRotation(old.worker));
        self.actions.push_back(Action::CheckQueue(old.worker));
    }

    pub(super) fn queue_checked(&mut self, now: Time, worker: WorkerId, queue: Queue) {
        let drain = self.settings.drain;
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else {
            return;
        };
        let Some(stopping) = slot.stopping.iter_mut().find(|stopping| stopping.worker == worker) else {
            return;
        };
        let StopPhase::Draining { since, empty_since, look_at, until } = &mut stopping.phase else {
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
            slot.take_stopping(worker);
            self.request_stop(now, worker, since);
        }
        self.reconcile(worker.slot, now);
    }

    pub(super) fn check_draining(&mut self, id: u32, now: Time) {
        let all_stop = self.mode != Mode::Running;
        let mut signalled = Vec::new();
        for stopping in &mut self.slots[index(id)].stopping {
            let StopPhase::Draining { since, look_at, .. } = &mut stopping.phase else {
                continue;
            };
            if all_stop {
                signalled.push((stopping.worker, *since));
            } else if look_at.is_some_and(|at| at <= now) {
                *look_at = None;
                self.actions.push_back(Action::CheckQueue(stopping.worker));
            }
        }
        for (worker, since) in signalled {
            self.slots[index(id)].take_stopping(worker);
            self.request_stop(now, worker, since);
        }
    }

    pub(super) fn cancel_start(&mut self, now: Time, worker: WorkerId, phase: StartPhase) {
        match phase {
            StartPhase::Launching => {
                self.slots[index(worker.slot)].stopping.push(Stopping { worker, phase: StopPhase::Launching })
            }
            StartPhase::Waiting { since, .. } => self.request_stop(now, worker, since),
        }
    }

    pub(super) fn request_stop(&mut self, now: Time, worker: WorkerId, since: Time) {
        let kill_at = now.after(self.settings.kill_timeout);
        let phase = StopPhase::Signalled { since, signalled_at: now, kill_at };
        self.slots[index(worker.slot)].stopping.push(Stopping { worker, phase });
        self.actions.push_back(Action::Stop(worker));
    }

    /// The first process of a worker has ended and others are left. If the worker was stopping, they get the
    /// rest of its time; if not, all of it.
    pub(super) fn died_with_remains(&mut self, now: Time, worker: WorkerId) {
        let Some(slot) = self.slots.get(index(worker.slot)) else { return };
        let stopping =
            slot.stopping.iter().find(|stopping| stopping.worker == worker).map(|stopping| stopping.phase);
        let later = now.after(self.settings.kill_timeout);
        let (signalled_at, kill_at, crashed) = match stopping {
            Some(StopPhase::Signalled { signalled_at, kill_at, .. }) => (signalled_at, kill_at, false),
            Some(StopPhase::Killed { .. }) => (now, now, false),
            Some(StopPhase::Draining { .. } | StopPhase::Launching) | None => (now, later, true),
            Some(StopPhase::Remains { .. }) => return,
        };
        self.died(now, worker);
        // A removed slot may have gone with its last worker.
        while self.slots.len() <= index(worker.slot) {
            self.slots.push(Slot::default());
        }
        let slot = &mut self.slots[index(worker.slot)];
        let phase = StopPhase::Remains { signalled_at, kill_at: Some(kill_at), crashed };
        slot.stopping.push(Stopping { worker, phase });
        self.actions.push_back(Action::StopRemains(worker));
        self.reconcile(worker.slot, now);
    }

    /// A worker of the slot has died early: the processes that a crashed predecessor left may be the cause.
    pub(super) fn hurry_remains(&mut self, id: u32) {
        self.slots[index(id)].stopping.iter_mut().for_each(Stopping::hurry);
    }

    /// No process that a crashed worker left handles the stop signal: more time would change nothing.
    pub(super) fn remains_unheeding(&mut self, now: Time, worker: WorkerId) {
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else { return };
        slot.stopping.iter_mut().filter(|stopping| stopping.worker == worker).for_each(Stopping::hurry);
        self.reconcile(worker.slot, now);
    }

    /// No process of the worker is left.
    pub(super) fn remains_gone(&mut self, now: Time, worker: WorkerId) {
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else { return };
        slot.stopping.retain(|stopping| {
            stopping.worker != worker || !matches!(stopping.phase, StopPhase::Remains { .. })
        });
        self.reconcile(worker.slot, now);
    }

    pub(super) fn kill_overdue(&mut self, id: u32, now: Time) {
        let kill_now = matches!(self.mode, Mode::Stopping { kill: true, .. });
        for at in 0..self.slots[index(id)].stopping.len() {
            let stopping = &mut self.slots[index(id)].stopping[at];
            let (signalled_at, kill_at, killed) = match stopping.phase {
                StopPhase::Signalled { since, signalled_at, kill_at } => {
                    (signalled_at, kill_at, StopPhase::Killed { since })
                }
                StopPhase::Remains { signalled_at, kill_at: Some(kill_at), crashed } => {
                    (signalled_at, kill_at, StopPhase::Remains { signalled_at, kill_at: None, crashed })
                }
                StopPhase::Launching
                | StopPhase::Draining { .. }
                | StopPhase::Killed { .. }
                | StopPhase::Remains { kill_at: None, .. } => continue,
            };
            if !kill_now && kill_at > now {
                continue;
            }
            let worker = stopping.worker;
            stopping.phase = killed;
            // Processes that were to be killed with the first one are not late.
            if !kill_now && now > signalled_at {
                self.push(Report::Overdue { worker, after: now.since(signalled_at) });
            }
            self.actions.push_back(Action::Kill(worker));
        }
    }
}

impl Stopping {
    /// What a crashed worker left behind gets less time, unless it was killed.
    fn hurry(&mut self) {
        if let StopPhase::Remains { signalled_at, kill_at: Some(kill_at), crashed: true } = &mut self.phase {
            *kill_at = (*kill_at).min(signalled_at.after(REMAINS_AFTER_A_CRASH));
        }
    }
}
