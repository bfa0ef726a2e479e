//! The time that this program takes to become ready.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A start may take this many times the longest one so far. The workers of a reload start together and beside the
/// serving ones, so they are slower than one that is replaced alone; two releases on one machine take twice as long.
/// A larger factor would only delay the failure of a release that never becomes ready.
const ALLOWANCE: u32 = 2;

/// The upper limit of that extension. A start that waited for something else, such as a database that was down for a
/// night, must not delay the failure of the next reload as long. A program that needs more than half of this has
/// `--ready-timeout`.
const LONGEST: Duration = Duration::from_secs(3600);

/// A start within this time is not reported, whatever the earlier ones took.
const NOT_LONG: Duration = Duration::from_secs(10);

/// The longest times to readiness so far.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct StartTimes {
    /// The longest of the serving release.
    longest: Duration,
    /// The longest of the release that the current reload starts.
    of_reload: Duration,
}

impl StartTimes {
    /// A worker became ready. `by_reload`: it belongs to the release that the current reload starts.
    pub(super) fn took(&mut self, time: Duration, by_reload: bool) {
        let longest = if by_reload { &mut self.of_reload } else { &mut self.longest };
        *longest = time.max(*longest);
    }

    /// A reload ended. If it is complete, the program is another one, and the times of the old one no longer count.
    pub(super) fn reload_ended(&mut self, complete: bool) {
        let of_reload = std::mem::take(&mut self.of_reload);
        if complete {
            self.longest = of_reload;
        }
    }

    /// The time that a start may take; at least `ready_timeout`.
    pub(super) fn allowed(&self, ready_timeout: Duration) -> Duration {
        ready_timeout.max(self.twice_the_longest().min(LONGEST))
    }

    /// The time after which a start takes longer than usual and is reported.
    pub(super) fn unusual(&self) -> Duration {
        NOT_LONG.max(self.twice_the_longest())
    }

    fn twice_the_longest(&self) -> Duration {
        self.longest.max(self.of_reload).saturating_mul(ALLOWANCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_program_has_twice_the_time_that_it_needed_and_never_less_than_the_time_out() {
        let mut times = StartTimes::default();
        assert_eq!((times.allowed(60 * SECOND), times.unusual()), (60 * SECOND, 10 * SECOND));
        times.took(75 * SECOND, false);
        times.took(20 * SECOND, false);
        assert_eq!((times.allowed(60 * SECOND), times.unusual()), (150 * SECOND, 150 * SECOND));
        assert_eq!(times.allowed(300 * SECOND), 300 * SECOND);
    }

    #[test]
    fn a_start_that_waited_for_a_night_gives_the_next_one_an_hour_at_most() {
        let mut times = StartTimes::default();
        times.took(8 * 3600 * SECOND, false);
        assert_eq!(times.allowed(60 * SECOND), LONGEST);
        assert_eq!(times.allowed(2 * LONGEST), 2 * LONGEST, "a longer setting counts");
    }

    #[test]
    fn a_reload_that_is_complete_forgets_what_the_last_release_needed() {
        let mut times = StartTimes::default();
        times.took(75 * SECOND, false);
        times.took(40 * SECOND, true);
        assert_eq!(times.allowed(60 * SECOND), 150 * SECOND, "until then both count");
        times.reload_ended(true);
        assert_eq!(times.allowed(60 * SECOND), 80 * SECOND);
        times.took(200 * SECOND, true);
        times.reload_ended(false);
        assert_eq!(times.allowed(60 * SECOND), 80 * SECOND, "one that failed is not what serves");
    }
}
