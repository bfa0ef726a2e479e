//! The state of the workers, for sharing.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::{STARTUP, SocketId};
use crate::by_number::ByNumber;
use crate::policy::{Time, WorkerId};
use crate::share::address::Key;

/// A socket on which a worker has called `listen`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Listening {
    pub(super) id: SocketId,
    /// Whether the worker opened it while it started.
    pub(super) at_start: bool,
    /// Whether a process in a session of its own called `listen`: a daemon that the worker has started.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) by_daemon: bool,
}

/// A living worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::share) struct Worker {
    pub(in crate::share) id: WorkerId,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(in crate::share) generation: u32,
    /// Whether it is in rotation for new connections.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(in crate::share) in_rotation: bool,
    /// Whether it was sent the stop signal.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(in crate::share) stopping: bool,
    /// The time at which it became ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ready_at: Option<Time>,
    /// The sockets on which it has called `listen`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) listens: Vec<Listening>,
    /// Whether it has served for a moment, and what earlier workers of its slot had and it has not was released.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    swept: bool,
}

impl Worker {
    /// Whether it has been ready for long enough to have bound all its addresses.
    pub(in crate::share) fn is_past_startup(&self, now: Time) -> bool {
        self.ready_at.is_some_and(|since| now.since(since) >= STARTUP)
    }

    /// Whether it may still listen on an address that an earlier worker of its slot has left.
    pub(in crate::share) fn may_take_over(&self) -> bool {
        !self.stopping && !self.swept
    }
}

/// The living workers, by serial.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(in crate::share) struct Workers {
    workers: ByNumber<u64, Worker>,
    /// The worker of each slot that is in rotation.
    serving: HashMap<u32, u64>,
    /// The addresses of the last worker that served in a slot when it ended, until another one serves there.
    left: HashMap<u32, Vec<Key>>,
    /// Workers that listen, but not yet on all expected addresses: by slot and serial.
    incomplete: BTreeSet<(u32, u64)>,
    /// Slots with such a worker in which a listener has changed.
    changed: BTreeSet<u32>,
}

impl Workers {
    pub(super) fn start(&mut self, id: WorkerId, generation: u32) {
        let worker = Worker {
            id,
            generation,
            in_rotation: false,
            stopping: false,
            ready_at: None,
            listens: Vec::new(),
            swept: false,
        };
        self.workers.insert(id.serial, worker);
    }

    pub(in crate::share) fn get(&self, serial: u64) -> Option<&Worker> {
        self.workers.get(&serial)
    }

    pub(in crate::share) fn slot_of(&self, serial: u64) -> Option<u32> {
        self.get(serial).map(|worker| worker.id.slot)
    }

    pub(in crate::share) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    pub(super) fn remove(&mut self, serial: u64) {
        let Some(worker) = self.workers.remove(&serial) else { return };
        self.incomplete.remove(&(worker.id.slot, serial));
        self.leaves_rotation(worker.id.slot, serial);
    }

    fn leaves_rotation(&mut self, slot: u32, serial: u64) {
        if self.serving.get(&slot) == Some(&serial) {
            self.serving.remove(&slot);
        }
    }

    /// The worker of a slot that is in rotation.
    pub(super) fn serving(&self, slot: u32) -> Option<u64> {
        self.serving.get(&slot).copied()
    }

    /// The addresses that the last worker that served in a slot has left.
    pub(super) fn left_in(&self, slot: u32) -> &[Key] {
        self.left.get(&slot).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn leave(&mut self, slot: u32, keys: Vec<Key>) {
        self.left.insert(slot, keys);
    }

    /// Takes the list of the sockets on which a worker has called `listen`. It must be set again.
    pub(super) fn take_listens(&mut self, serial: u64) -> Option<Vec<Listening>> {
        self.workers.get_mut(&serial).map(|worker| std::mem::take(&mut worker.listens))
    }

    pub(super) fn set_listens(&mut self, serial: u64, listens: Vec<Listening>) {
        if let Some(worker) = self.workers.get_mut(&serial) {
            worker.listens = listens;
        }
    }

    pub(super) fn set_incomplete(&mut self, serial: u64, incomplete: bool) {
        let Some(slot) = self.slot_of(serial) else { return };
        if incomplete {
            self.incomplete.insert((slot, serial));
        } else {
            self.incomplete.remove(&(slot, serial));
        }
    }

    /// A listener of a worker has changed.
    pub(super) fn note_change(&mut self, serial: u64) {
        let Some(slot) = self.slot_of(serial) else { return };
        if self.incomplete.range((slot, 0)..=(slot, u64::MAX)).next().is_some() {
            self.changed.insert(slot);
        }
    }

    /// Takes the incomplete workers of slots in which a listener has changed.
    pub(super) fn take_changed(&mut self) -> Vec<WorkerId> {
        let changed = std::mem::take(&mut self.changed);
        let of_slot = |slot: u32| self.incomplete.range((slot, 0)..=(slot, u64::MAX));
        changed
            .into_iter()
            .flat_map(of_slot)
            .map(|(slot, serial)| WorkerId { slot: *slot, serial: *serial })
            .collect()
    }

    pub(super) fn set_swept(&mut self, serial: u64) {
        if let Some(worker) = self.workers.get_mut(&serial) {
            worker.swept = true;
        }
    }

    pub(super) fn set_in_rotation(&mut self, now: Time, serial: u64, in_rotation: bool) {
        let Some(worker) = self.workers.get_mut(&serial) else { return };
        worker.in_rotation = in_rotation;
        let slot = worker.id.slot;
        if in_rotation {
            worker.ready_at.get_or_insert(now);
            self.serving.insert(slot, serial);
            self.left.remove(&slot);
            self.incomplete.remove(&(slot, serial));
        } else {
            self.leaves_rotation(slot, serial);
        }
    }

    pub(super) fn set_stopping(&mut self, serial: u64) {
        if let Some(worker) = self.workers.get_mut(&serial) {
            worker.stopping = true;
        }
    }
}
