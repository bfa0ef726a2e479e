//! How long this program takes to become ready.

use std::time::Duration;

/// A start may take so many times what the longest one took. The workers of a reload start all at once and beside those
/// that serve, so they are slower than one that is replaced alone; twice is what two releases on one machine leave each
/// other. More would only delay the news of a release that never gets ready.
const ALLOWANCE: u32 = 2;

/// A start that waited for something else, a database that was down for a night, must not delay the failure of the next
/// reload by as long. A program that really needs longer than half of this has `--ready-timeout`.
const LONGEST: Duration = Duration::from_secs(3600);

/// A start that takes no longer than this needs no words, whatever the earlier ones took.
const NOT_LONG: Duration = Duration::from_secs(10);

/// What the starts so far have taken, up to the moment at which each worker was ready.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StartTimes {
    /// The longest of the release that serves.
    longest: Duration,
    /// The longest of the release that a reload under way leads to.
    of_reload: Duration,
}

impl StartTimes {
    /// A worker is ready. `by_reload`: it is of the release that a reload under way leads to.
    pub(super) fn took(&mut self, time: Duration, by_reload: bool) {
        let longest = if by_reload { &mut self.of_reload } else { &mut self.longest };
        *longest = time.max(*longest);
    }

    /// A reload has ended. One that is complete has made another program of this one: what the last one needed counts
    /// no more.
    pub(super) fn reload_ended(&mut self, complete: bool) {
        let of_reload = std::mem::take(&mut self.of_reload);
        if complete {
            self.longest = of_reload;
        }
    }

    /// How long a start may take; at least `ready_timeout`.
    pub(super) fn allowed(&self, ready_timeout: Duration) -> Duration {
        ready_timeout.max(self.twice_the_longest().min(LONGEST))
    }

    /// After how long a start takes longer than usual, and somebody may wonder.
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
        assert_eq!(times.allowed(2 * LONGEST), 2 * LONGEST, "who asks for more gets it");
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
