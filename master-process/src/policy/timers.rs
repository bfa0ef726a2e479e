//! One timer per slot, and the earliest of them all.

use std::collections::BTreeSet;

use super::Time;

/// The next moment at which each slot has something to do.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Timers {
    by_time: BTreeSet<(Time, u32)>,
}

impl Timers {
    /// The earliest moment at which anything is to do; `None`: sleep for ever.
    pub(super) fn first(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes out one slot whose moment has come.
    pub(super) fn due(&mut self, now: Time) -> Option<u32> {
        let (at, slot) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.by_time.pop_first();
        Some(slot)
    }

    /// Moves a slot's timer from `old` to `new`.
    pub(super) fn set(&mut self, slot: u32, old: Option<Time>, new: Option<Time>) {
        if let Some(at) = old {
            self.by_time.remove(&(at, slot));
        }
        if let Some(at) = new {
            self.by_time.insert((at, slot));
        }
    }
}
