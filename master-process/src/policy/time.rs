//! Points in time, and the timer of each slot. The driver has the one clock.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::time::Duration;

/// A point in time, counted from an epoch that only the driver knows.
///
/// Nanoseconds, and one: a slot has a dozen of these that mostly are not set, and is looked at at every sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(NonZeroU64);

impl Time {
    /// The point that lies `since_epoch` after the driver's epoch; the end of time, in five hundred years, where that
    /// does not fit.
    pub fn new(since_epoch: Duration) -> Time {
        Time(NonZeroU64::MIN.saturating_add(nanoseconds(since_epoch)))
    }

    /// This point and `span` later; the end of time where that does not fit.
    pub fn after(self, span: Duration) -> Time {
        Time(self.0.saturating_add(nanoseconds(span)))
    }

    /// How long ago `earlier` was; zero where it lies ahead.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.nanoseconds_since(earlier))
    }

    /// The same, as a number.
    pub fn nanoseconds_since(self, earlier: Time) -> u64 {
        self.0.get().saturating_sub(earlier.0.get())
    }
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

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
