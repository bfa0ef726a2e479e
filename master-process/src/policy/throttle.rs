//! The delay of a slot's next start, and when the supervisor gives up.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Settings, Time};
use crate::config::GiveUp;

/// The shortest delay after a failed start: with `--throttle 0` a missing file would otherwise be tried without a
/// pause. A longer delay would be noticed by the user who corrects it.
const FAILED_LAUNCH_WAIT: Duration = Duration::from_millis(100);

/// The history of a slot's early exits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Throttle {
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    early: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<Time>,
}

impl Throttle {
    /// The time of the next start; `None`: now.
    pub(super) fn not_before(&self) -> Option<Time> {
        self.not_before
    }

    /// Clears the history: a reload starts a new program.
    pub(super) fn reset(&mut self) {
        *self = Throttle::default();
    }

    /// The delay is over: a start begins, or waits only for a place at the gate.
    pub(super) fn clear_delay(&mut self) {
        self.not_before = None;
    }

    /// A worker ran for `uptime` and, if it was ever ready, for `ready_for` after that. Returns the delay of its
    /// replacement, and whether the exit was early.
    pub(super) fn died(
        &mut self,
        now: Time,
        uptime: Duration,
        ready_for: Option<Duration>,
        settings: &Settings,
    ) -> (Duration, bool) {
        if ready_for.is_some_and(|lived| lived > settings.throttle) {
            self.early = 0;
        }
        let early = uptime < settings.throttle;
        if !early {
            self.not_before = None;
            return (Duration::ZERO, false);
        }
        (self.count_early(now, uptime, settings), true)
    }

    /// A worker was not ready in time, which counts as an early exit.
    pub(super) fn late(&mut self, now: Time, uptime: Duration, settings: &Settings) -> Duration {
        self.count_early(now, uptime, settings)
    }

    /// A start failed permanently, which counts as the early exit of a worker with no uptime.
    pub(super) fn launch_failed(&mut self, now: Time, settings: &Settings) -> Duration {
        let wait = self.count_early(now, Duration::ZERO, settings).max(FAILED_LAUNCH_WAIT);
        self.wait(now, wait)
    }

    /// A start failed for a transient reason: the slot waits, and nothing counts against the program.
    pub(super) fn launch_delayed(&mut self, now: Time, settings: &Settings) -> Duration {
        self.wait(now, settings.throttle.max(FAILED_LAUNCH_WAIT))
    }

    fn count_early(&mut self, now: Time, uptime: Duration, settings: &Settings) -> Duration {
        self.early = self.early.saturating_add(1);
        let doubled = settings.throttle.saturating_mul(2u32.saturating_pow(self.early - 1));
        let span = doubled.min(settings.throttle_max.max(settings.throttle));
        self.wait(now, span.saturating_sub(uptime))
    }

    fn wait(&mut self, now: Time, wait: Duration) -> Duration {
        self.not_before = (wait > Duration::ZERO).then(|| now.after(wait));
        wait
    }
}

/// The early exits of all slots within the time of `--give-up`.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct RestartLimiter {
    limit: Option<GiveUp>,
    deaths: VecDeque<Time>,
}

impl RestartLimiter {
    pub(super) fn new(limit: Option<GiveUp>) -> RestartLimiter {
        RestartLimiter::with_deaths(limit, VecDeque::new())
    }

    /// The same after these early exits.
    pub(super) fn with_deaths(limit: Option<GiveUp>, deaths: VecDeque<Time>) -> RestartLimiter {
        RestartLimiter { limit, deaths }
    }

    /// The early exits so far that may count.
    pub(super) fn deaths(&self) -> &VecDeque<Time> {
        &self.deaths
    }

    /// Whether one more early exit would reach the limit.
    pub(super) fn is_next_last(&self, now: Time) -> bool {
        let recent = |limit: GiveUp| self.deaths.iter().filter(|at| now.since(**at) <= limit.within).count();
        self.limit
            .is_some_and(|limit| recent(limit) + 1 >= usize::try_from(limit.deaths).unwrap_or(usize::MAX))
    }

    /// Counts an early exit; returns the limit when it is reached.
    pub(super) fn early_death(&mut self, now: Time) -> Option<GiveUp> {
        let limit = self.limit?;
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|first| now.since(*first) > limit.within) {
            self.deaths.pop_front();
        }
        (self.deaths.len() >= usize::try_from(limit.deaths).unwrap_or(usize::MAX)).then_some(limit)
    }
}
