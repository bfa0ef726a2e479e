//! Points in time, as the driver's one clock counts them.

use std::time::Duration;

/// A point in time, counted from an epoch that only the driver knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(Duration);

impl Time {
    /// The point that lies `since_epoch` after the driver's epoch.
    pub fn new(since_epoch: Duration) -> Time {
        Time(since_epoch)
    }

    /// This point and `span` later; the end of time where that does not fit.
    pub fn after(self, span: Duration) -> Time {
        Time(self.0.saturating_add(span))
    }

    /// How long ago `earlier` was; zero where it lies ahead.
    pub fn since(self, earlier: Time) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}
