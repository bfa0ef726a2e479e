//! Points in time, and the timers of the slots. Only the driver reads a clock.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point in time, relative to an epoch of the driver.
///
/// Stored as nanoseconds plus one, so that `Option<Time>` has the same size: each slot has a dozen of these, mostly
/// unset, and each sample reads all slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time(NonZeroU64);

impl Time {
    /// The time `since_epoch` after the driver's epoch, at most the largest value, in five hundred years.
    pub fn new(since_epoch: Duration) -> Time {
        Time(NonZeroU64::MIN.saturating_add(nanoseconds(since_epoch)))
    }

    /// This time plus `span`, at most the largest value.
    pub fn after(self, span: Duration) -> Time {
        Time(self.0.saturating_add(nanoseconds(span)))
    }

    /// This time minus `span`, at least the epoch.
    pub fn before(self, span: Duration) -> Time {
        let before = self.0.get().saturating_sub(nanoseconds(span));
        Time(NonZeroU64::new(before).unwrap_or(NonZeroU64::MIN))
    }

    /// The time since `earlier`; zero if it is later.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.nanoseconds_since(earlier))
    }

    /// The same in nanoseconds.
    pub fn nanoseconds_since(self, earlier: Time) -> u64 {
        self.0.get().saturating_sub(earlier.0.get())
    }
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// The timers of all slots.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Timers {
    by_time: BTreeSet<(Time, u32)>,
}

impl Timers {
    /// The earliest timer; `None` if there is none.
    pub(super) fn first(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Removes and returns one slot whose timer has expired.
    pub(super) fn due(&mut self, now: Time) -> Option<u32> {
        let (at, slot) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.by_time.pop_first();
        Some(slot)
    }

    /// Changes a slot's timer from `old` to `new`.
    pub(super) fn set(&mut self, slot: u32, old: Option<Time>, new: Option<Time>) {
        if let Some(at) = old {
            self.by_time.remove(&(at, slot));
        }
        if let Some(at) = new {
            self.by_time.insert((at, slot));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_time_is_not_passed() {
        let end = Time::new(Duration::MAX);
        assert_eq!(end.after(Duration::MAX), end);
        assert_eq!(Time::new(Duration::ZERO).since(end), Duration::ZERO);
        assert_eq!(
            Time::new(Duration::from_secs(3)).since(Time::new(Duration::from_secs(1))),
            Duration::from_secs(2)
        );
    }
}
