//! The way out of a worker: out of rotation, its queue worked off, asked to leave, killed.

use std::time::Duration;

use super::slot::{LeavePhase, Leaving, Serving, Slot, StartPhase};
use super::supervisor::{Mode, Supervisor, index};
use super::{Action, Note, Queue, Time, WorkerId};

/// How often a draining worker's queue is looked at. Shorter costs calls, longer costs a reload time.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What a crashed worker leaves behind finishes what it is at, as it would without us. But where its replacement dies
/// early, it may hold what that one needs: then it has so long from the stop signal to SIGKILL. Long enough to write a
/// file, and as long as the throttle's default keeps the next start waiting.
const REMAINS_IN_THE_WAY: Duration = Duration::from_secs(1);

impl Supervisor {
    /// The slot is given up, or everything is. Only in the latter case does nobody else take over: then those
    /// that drain are asked to leave at once as well.
    pub(super) fn retire_all(&mut self, id: u32, now: Time) {
        let slot = &mut self.slots[index(id)];
        slot.trial = None;
        let (starting, served) =
            (slot.starting.take(), [slot.serving.take(), slot.standby.take().map(|standby| *standby)]);
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
    pub(super) fn relieve(&mut self, now: Time, old: Serving) {
        let until = now.after(self.settings.kill_timeout.max(self.settings.drain));
        let phase = LeavePhase::Draining { since: old.since, empty_since: None, look_at: None, until };
        self.slots[index(old.worker.slot)].leaving.push(Leaving { worker: old.worker, phase });
        self.actions.push_back(Action::Retire(old.worker));
        self.actions.push_back(Action::Look(old.worker));
    }

    pub(super) fn looked(&mut self, now: Time, worker: WorkerId, queue: Queue) {
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

    pub(super) fn look_at_draining(&mut self, id: u32, now: Time) {
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

    pub(super) fn retire(&mut self, now: Time, worker: WorkerId, phase: StartPhase) {
        match phase {
            StartPhase::Launching => {
                self.slots[index(worker.slot)].leaving.push(Leaving { worker, phase: LeavePhase::Launching })
            }
            StartPhase::Waiting { since, .. } => self.ask_to_leave(now, worker, since),
        }
    }

    pub(super) fn ask_to_leave(&mut self, now: Time, worker: WorkerId, since: Time) {
        let kill_at = now.after(self.settings.kill_timeout);
        let phase = LeavePhase::Asked { since, asked_at: now, kill_at };
        self.slots[index(worker.slot)].leaving.push(Leaving { worker, phase });
        self.actions.push_back(Action::Stop(worker));
    }

    /// The first process of a worker is gone, and others of its tree are not. They get what is left of the worker's time
    /// where it was asked to leave, and all of it where it was not.
    pub(super) fn died_with_remains(&mut self, now: Time, worker: WorkerId) {
        let Some(slot) = self.slots.get(index(worker.slot)) else { return };
        let leaving =
            slot.leaving.iter().find(|leaving| leaving.worker == worker).map(|leaving| leaving.phase);
        let later = now.after(self.settings.kill_timeout);
        let (asked_at, kill_at, crashed) = match leaving {
            Some(LeavePhase::Asked { asked_at, kill_at, .. }) => (asked_at, kill_at, false),
            Some(LeavePhase::Killed { .. }) => (now, now, false),
            Some(LeavePhase::Draining { .. } | LeavePhase::Launching) | None => (now, later, true),
            Some(LeavePhase::Remains { .. }) => return,
        };
        self.died(now, worker);
        // A slot that was scaled away may have gone with its last worker.
        while self.slots.len() <= index(worker.slot) {
            self.slots.push(Slot::default());
        }
        let slot = &mut self.slots[index(worker.slot)];
        let phase = LeavePhase::Remains { asked_at, kill_at: Some(kill_at), crashed };
        slot.leaving.push(Leaving { worker, phase });
        self.actions.push_back(Action::StopRemains(worker));
        self.settle(worker.slot, now);
    }

    /// A worker of the slot has died early: what an earlier one left behind when it crashed may be why.
    pub(super) fn hurry_remains(&mut self, id: u32) {
        for leaving in &mut self.slots[index(id)].leaving {
            if let LeavePhase::Remains { asked_at, kill_at: Some(kill_at), crashed: true } =
                &mut leaving.phase
            {
                *kill_at = (*kill_at).min(asked_at.after(REMAINS_IN_THE_WAY));
            }
        }
    }

    /// Nobody of a worker's tree is left.
    pub(super) fn remains_gone(&mut self, now: Time, worker: WorkerId) {
        let Some(slot) = self.slots.get_mut(index(worker.slot)) else { return };
        slot.leaving.retain(|leaving| {
            leaving.worker != worker || !matches!(leaving.phase, LeavePhase::Remains { .. })
        });
        self.settle(worker.slot, now);
    }

    pub(super) fn kill_overdue(&mut self, id: u32, now: Time) {
        let kill_now = matches!(self.mode, Mode::Stopping { kill: true, .. });
        for at in 0..self.slots[index(id)].leaving.len() {
            let leaving = &mut self.slots[index(id)].leaving[at];
            let (asked_at, kill_at, killed) = match leaving.phase {
                LeavePhase::Asked { since, asked_at, kill_at } => {
                    (asked_at, kill_at, LeavePhase::Killed { since })
                }
                LeavePhase::Remains { asked_at, kill_at: Some(kill_at), crashed } => {
                    (asked_at, kill_at, LeavePhase::Remains { asked_at, kill_at: None, crashed })
                }
                LeavePhase::Launching
                | LeavePhase::Draining { .. }
                | LeavePhase::Killed { .. }
                | LeavePhase::Remains { kill_at: None, .. } => continue,
            };
            if !kill_now && kill_at > now {
                continue;
            }
            let worker = leaving.worker;
            leaving.phase = killed;
            // What was to be killed with its first process had no time to be late.
            if !kill_now && now > asked_at {
                self.push(Note::Overdue { worker, after: now.since(asked_at) });
            }
            self.actions.push_back(Action::Kill(worker));
        }
    }
}
