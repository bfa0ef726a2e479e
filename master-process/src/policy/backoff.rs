//! A limit that does not fit a program would replace its workers for ever: each replacement waits longer than the last.

use std::time::Duration;

use super::{Limit, Time};

/// The longest time between two replacements of a slot for the same limit. A worker that is over its limit for good
/// is then replaced once an hour: seldom enough to do no harm, often enough for a leak that is slower than that.
const LONGEST: Duration = Duration::from_secs(3600);

/// A worker that is within its limit for less than this only warms up, however short the samples' interval is.
const WARM_UP: Duration = Duration::from_secs(30);

/// A slot's memory of replacements for one limit.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backoff {
    /// From the last replacement to the next; zero: there was none.
    pause: Duration,
    until: Option<Time>,
    /// Whether anybody was told that the next one waits.
    told: bool,
}

/// What is to be done about a worker that is over its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Replace it.
    Now {
        /// The worker before it was replaced for the same limit.
        again: bool,
    },
    /// Its turn comes later, if it is still over the limit by then.
    Later {
        /// How long from now.
        wait: Duration,
        /// It was said before.
        told: bool,
    },
}

impl Backoff {
    /// A worker that had been within its limit for `calm` is over it. `shortest` is the least time in which that can
    /// happen to one that never was within.
    ///
    /// Memory that was within its limit for longer than the pause is no sign of a limit that does not fit: it leaks.
    /// CPU time comes and goes with the work, and says nothing by having been within it.
    pub(super) fn turn(&mut self, now: Time, limit: Limit, calm: Duration, shortest: Duration) -> Turn {
        let again = self.is_again(limit, calm);
        if let Some(wait) = self.wait(now).filter(|_| again) {
            return Turn::Later { wait, told: std::mem::replace(&mut self.told, true) };
        }
        let before = if again { self.pause } else { shortest };
        self.pause = before.saturating_mul(2).min(LONGEST);
        self.until = Some(now.after(self.pause));
        self.told = false;
        Turn::Now { again }
    }

    /// Whether its turn comes later, and that was said before.
    pub(super) fn is_told_to_wait(&self, now: Time, limit: Limit, calm: Duration) -> bool {
        self.told && self.is_again(limit, calm) && self.wait(now).is_some()
    }

    /// Whether this looks like a limit that does not fit.
    fn is_again(&self, limit: Limit, calm: Duration) -> bool {
        let fits = match limit {
            Limit::Memory => self.pause.max(WARM_UP),
            Limit::Cpu => LONGEST,
        };
        self.until.is_some() && calm < fits
    }

    fn wait(&self, now: Time) -> Option<Duration> {
        self.until.map(|until| until.since(now)).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORTEST: Duration = Duration::from_secs(50);

    fn at(seconds: u64) -> Time {
        Time::new(Duration::from_secs(seconds))
    }

    #[test]
    fn the_first_worker_over_its_limit_is_replaced_at_once() {
        assert_eq!(
            Backoff::default().turn(at(100), Limit::Memory, Duration::ZERO, SHORTEST),
            Turn::Now { again: false }
        );
    }

    #[test]
    fn each_successor_that_is_over_it_as_well_doubles_the_wait_up_to_an_hour() {
        let mut backoff = Backoff::default();
        let mut now = 1000;
        assert_eq!(
            backoff.turn(at(now), Limit::Memory, Duration::ZERO, SHORTEST),
            Turn::Now { again: false }
        );
        for wait in [100, 200, 400, 800, 1600, 3200, 3600, 3600] {
            let early = Duration::from_secs(wait - 50);
            let later = Turn::Later { wait: early, told: false };
            assert_eq!(backoff.turn(at(now + 50), Limit::Memory, Duration::ZERO, SHORTEST), later);
            let again = backoff.turn(at(now + 52), Limit::Memory, Duration::ZERO, SHORTEST);
            assert!(matches!(again, Turn::Later { told: true, .. }), "{again:?}");
            now += wait;
            assert_eq!(
                backoff.turn(at(now), Limit::Memory, Duration::ZERO, SHORTEST),
                Turn::Now { again: true }
            );
        }
    }

    #[test]
    fn a_leak_that_takes_its_time_is_never_kept_waiting() {
        let mut backoff = Backoff::default();
        for now in [1000, 1300, 1600, 1900] {
            let turn = backoff.turn(at(now), Limit::Memory, Duration::from_secs(250), SHORTEST);
            assert_eq!(turn, Turn::Now { again: false });
        }
    }

    #[test]
    fn cpu_time_that_comes_and_goes_waits_longer_each_time() {
        let mut backoff = Backoff::default();
        let calm = Duration::from_secs(600);
        assert_eq!(backoff.turn(at(1000), Limit::Cpu, calm, SHORTEST), Turn::Now { again: false });
        assert_eq!(backoff.turn(at(2000), Limit::Cpu, calm, SHORTEST), Turn::Now { again: true });
        assert_eq!(backoff.pause, 4 * SHORTEST);
        // After an hour within its limit it is as good as new.
        assert_eq!(backoff.turn(at(9000), Limit::Cpu, LONGEST, SHORTEST), Turn::Now { again: false });
        assert_eq!(backoff.pause, 2 * SHORTEST);
    }
}
