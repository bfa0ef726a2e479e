//! A reload under way: which slots are being replaced, which wait for their turn.

use std::collections::{BTreeSet, VecDeque};

use super::Time;

/// A reload that has not ended yet.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Rollout {
    /// When it began.
    pub(super) since: Time,
    batch: usize,
    waiting: VecDeque<u32>,
    active: BTreeSet<u32>,
}

impl Rollout {
    /// A reload of the slots in `serving`, `batch` at a time. Those in `empty` have nobody who serves: they
    /// need not wait for their turn.
    pub(super) fn new(since: Time, batch: usize, serving: VecDeque<u32>, empty: BTreeSet<u32>) -> Rollout {
        let mut rollout = Rollout { since, batch, waiting: serving, active: empty };
        rollout.fill();
        rollout
    }

    fn fill(&mut self) {
        let n = self.batch.min(self.waiting.len());
        self.active.extend(self.waiting.drain(..n));
    }

    /// Whether this slot's turn has come and is not over.
    pub(super) fn is_active(&self, slot: u32) -> bool {
        self.active.contains(&slot)
    }

    /// How many slots' turn that is.
    pub(super) fn count_active(&self) -> usize {
        self.active.len()
    }

    /// A slot is replaced, or is gone. Returns the slots whose turn comes with it.
    pub(super) fn finish(&mut self, slot: u32) -> Vec<u32> {
        if !self.active.remove(&slot) {
            self.waiting.retain(|waiting| *waiting != slot);
            return Vec::new();
        }
        if self.active.is_empty() {
            self.fill();
            return self.active.iter().copied().collect();
        }
        Vec::new()
    }

    /// Whether every slot has had its turn.
    pub(super) fn is_done(&self) -> bool {
        self.active.is_empty() && self.waiting.is_empty()
    }
}
