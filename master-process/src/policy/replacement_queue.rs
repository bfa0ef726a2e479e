//! The slots whose workers are replaced for a limit: as many at a time as a reload replaces.

use std::collections::{BTreeSet, VecDeque};

/// Slots that are being replaced, and those that wait, in the order in which they came.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct ReplacementQueue {
    active: BTreeSet<u32>,
    waiting: VecDeque<u32>,
}

impl ReplacementQueue {
    /// Adds a slot, unless it is in here.
    pub(super) fn enqueue(&mut self, slot: u32) {
        if !self.active.contains(&slot) && !self.waiting.contains(&slot) {
            self.waiting.push_back(slot);
        }
    }

    /// Removes a slot: it is replaced, or need not be any more.
    pub(super) fn remove(&mut self, slot: u32) {
        if !self.active.remove(&slot) {
            self.waiting.retain(|waiting| *waiting != slot);
        }
    }

    /// Moves an active slot behind those that wait, if there are any: an attempt failed, and a slot whose attempts all
    /// fail must not keep the others.
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

    /// Whether one more slot has to wait where `limit` may be replaced at a time.
    pub(super) fn is_full(&self, limit: usize) -> bool {
        self.active.len() + self.waiting.len() >= limit
    }

    /// Makes the next slot active and gives it; `None`: none waits, or there are `limit` already.
    pub(super) fn activate_next(&mut self, limit: usize) -> Option<u32> {
        if self.active.len() >= limit {
            return None;
        }
        let slot = self.waiting.pop_front()?;
        self.active.insert(slot);
        Some(slot)
    }
}
