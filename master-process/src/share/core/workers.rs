//! The workers, as far as sharing goes.

use std::collections::HashMap;

use super::SETTLING;
use crate::policy::{Time, WorkerId};
use crate::share::address::Key;

/// A living worker.
#[derive(Debug, Clone)]
pub(in crate::share) struct Worker {
    pub(in crate::share) id: WorkerId,
    pub(in crate::share) generation: u32,
    /// New connections may come to it.
    pub(in crate::share) serves: bool,
    /// It was asked to stop.
    pub(in crate::share) stopping: bool,
    /// Since when it has been ready.
    ready_at: Option<Time>,
    /// What it listens on.
    pub(in crate::share) listens: Vec<Key>,
    /// It has served for long enough to have taken all that its slot's earlier workers had.
    pub(in crate::share) swept: bool,
}

impl Worker {
    /// Whether it has been ready for long enough to have bound all that it serves.
    pub(in crate::share) fn is_settled(&self, now: Time) -> bool {
        self.ready_at.is_some_and(|since| now.since(since) >= SETTLING)
    }
}

/// All of them, by serial.
#[derive(Debug, Default, Clone)]
pub(in crate::share) struct Workers {
    workers: HashMap<u64, Worker>,
    /// What each slot's last serving worker listened on: what its successor is waited for.
    listened: HashMap<u32, Vec<Key>>,
}

impl Workers {
    pub(super) fn start(&mut self, id: WorkerId, generation: u32) {
        let worker = Worker {
            id,
            generation,
            serves: false,
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

    pub(super) fn set_swept(&mut self, serial: u64) {
        if let Some(worker) = self.workers.get_mut(&serial) {
            worker.swept = true;
        }
    }

    pub(in crate::share) fn slot_of(&self, serial: u64) -> Option<u32> {
        self.get(serial).map(|worker| worker.id.slot)
    }

    pub(in crate::share) fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    pub(super) fn remove(&mut self, serial: u64) {
        self.workers.remove(&serial);
    }

    /// Notes that a worker listens; whether it listens on all that its predecessor did.
    pub(super) fn listens(&mut self, serial: u64, key: Option<&Key>) -> bool {
        let Some(worker) = self.workers.get_mut(&serial) else { return true };
        if let Some(key) = key.filter(|key| !worker.listens.iter().any(|other| other.matches(key))) {
            worker.listens.push(key.clone());
        }
        if worker.serves {
            self.listened.insert(worker.id.slot, worker.listens.clone());
        }
        let before = self.listened.get(&worker.id.slot);
        before.is_none_or(|keys| keys.iter().all(|key| worker.listens.iter().any(|other| other.matches(key))))
    }

    pub(super) fn set_serves(&mut self, now: Time, serial: u64, serves: bool) {
        let Some(worker) = self.workers.get_mut(&serial) else { return };
        worker.serves = serves;
        if serves {
            worker.ready_at.get_or_insert(now);
            self.listened.insert(worker.id.slot, worker.listens.clone());
        }
    }

    pub(super) fn set_stopping(&mut self, serial: u64) {
        if let Some(worker) = self.workers.get_mut(&serial) {
            worker.stopping = true;
        }
    }
}
