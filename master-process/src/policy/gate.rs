//! The gate: a start waits for one of the places of the host, so that the supervisors of a host do not start all their
//! workers at the same moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::preload::PRELOAD;
use super::slot::Slot;
use super::supervisor::{Supervisor, index};
use super::{Action, Report, Time, WorkerId};
use crate::config::ReadyMode;

/// The longest wait of a start that replaces no crashed worker. Two thousand starts of a script language on two CPUs take
/// about a minute, and one that is started earlier makes all of them slower. Where a process keeps all places for ever, a
/// longer wait would only delay the start.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// A start keeps its place for this long at most, if the program is known to report that it is ready. Those that take
/// longer usually wait for something else, such as a database, and others must not wait for it too.
const LONGEST_HOLD: Duration = Duration::from_secs(3);

/// The same for a program that is not known to report it: a script language has loaded most of itself by then. With twice as
/// many places as CPUs, each CPU starts at least twenty such programs a second.
const LONGEST_SILENT_HOLD: Duration = Duration::from_millis(100);

/// The starts that wait for a place, and those that have one.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Gate {
    /// The slots whose start waits.
    waiting: BTreeMap<u32, Wait>,
    /// The same slots, by the end of their wait: the shortest wait is served first.
    by_end: BTreeSet<(Time, u32)>,
    /// The slots whose start has a place.
    holders: BTreeMap<u32, Holder>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Wait {
    since: Time,
    until: Time,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Holder {
    worker: WorkerId,
    until: Time,
}

impl Gate {
    /// The slot waits until then. Returns whether it did not wait before.
    fn enter(&mut self, slot: u32, wait: Wait) -> bool {
        let before = self.waiting.insert(slot, wait);
        if let Some(before) = before {
            self.by_end.remove(&(before.until, slot));
        }
        self.by_end.insert((wait.until, slot));
        before.is_none()
    }

    /// The slot does not wait any more.
    fn leave(&mut self, slot: u32) -> Option<Wait> {
        let wait = self.waiting.remove(&slot)?;
        self.by_end.remove(&(wait.until, slot));
        Some(wait)
    }

    /// Takes the slot that is served next.
    fn take_first(&mut self) -> Option<u32> {
        let (_, slot) = self.by_end.pop_first()?;
        self.waiting.remove(&slot);
        Some(slot)
    }

    /// When the slot's wait, or its hold, is over.
    pub(super) fn next_due(&self, slot: u32) -> Option<Time> {
        let wait = self.waiting.get(&slot).map(|wait| wait.until);
        let hold = self.holders.get(&slot).map(|holder| holder.until);
        [wait, hold].into_iter().flatten().min()
    }
}

impl Supervisor {
    /// Whether a start waits for a place.
    pub fn awaits_place(&self) -> bool {
        !self.gate.waiting.is_empty()
    }

    /// Whether the next start of a slot, which nothing else delays, has to wait for a place.
    pub(super) fn waits_at_gate(&mut self, id: u32, now: Time) -> bool {
        if !self.settings.start_gate {
            return false;
        }
        let since = self.gate.waiting.get(&id).map_or(now, |wait| wait.since);
        let until = since.after(self.longest_wait(id));
        if until <= now {
            if self.gate.leave(id).is_some() {
                self.push(Report::NoPlace { slot: (id != PRELOAD).then_some(id), after: now.since(since) });
            }
            return false;
        }
        if self.gate.enter(id, Wait { since, until }) {
            self.actions.push_back(Action::RequestPlace);
        }
        true
    }

    /// The slot wants no start, or something else delays it.
    pub(super) fn leave_gate(&mut self, id: u32) {
        self.gate.leave(id);
    }

    /// The replacement of a crashed worker waits no longer than the throttle lets others wait: nobody serves its slot.
    fn longest_wait(&self, id: u32) -> Duration {
        if id == PRELOAD {
            return LONGEST_WAIT;
        }
        let slot = &self.slots[index(id)];
        let replaces_crashed = slot.serving.is_none() && slot.has_run;
        if replaces_crashed { self.settings.throttle.min(LONGEST_WAIT) } else { LONGEST_WAIT }
    }

    fn longest_hold(&self) -> Duration {
        let reports = match self.settings.ready {
            ReadyMode::Listen | ReadyMode::ListenOn(_) | ReadyMode::Notify | ReadyMode::NotifyFd(_) => true,
            ReadyMode::Auto => self.program_signals_ready,
            ReadyMode::Alive(_) | ReadyMode::None => false,
        };
        if reports { LONGEST_HOLD } else { LONGEST_SILENT_HOLD }
    }

    /// A place is free for the next start.
    pub(super) fn place_given(&mut self, now: Time) {
        while let Some(id) = self.gate.take_first() {
            if id == PRELOAD {
                if !self.wants_preload() {
                    continue;
                }
                let worker = self.launch_preload();
                self.gate.holders.insert(id, Holder { worker, until: now.after(LONGEST_HOLD) });
                return self.reconcile_preload(now);
            }
            if !self.wants_launch(id) {
                continue;
            }
            let worker = self.launch(id);
            self.gate.holders.insert(id, Holder { worker, until: now.after(self.longest_hold()) });
            return self.reconcile(id, now);
        }
        self.actions.push_back(Action::ReleasePlace);
    }

    /// Gives the place of a start back when the start is over, or has had it for long enough.
    pub(super) fn release_place(&mut self, id: u32, now: Time) {
        let Some(holder) = self.gate.holders.get(&id) else { return };
        let starts = |slot: &Slot| slot.starting.as_ref().is_some_and(|start| start.worker == holder.worker);
        let starts = match id {
            PRELOAD => self.is_preload_starting(holder.worker),
            _slot => starts(&self.slots[index(id)]),
        };
        if !starts || holder.until <= now {
            self.gate.holders.remove(&id);
            self.actions.push_back(Action::ReleasePlace);
        }
    }
}
