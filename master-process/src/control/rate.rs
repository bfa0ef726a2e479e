//! A limit on what clients do: some at once, and then one after the other.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::Time;

/// How many may come at once, and how soon one more may come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) burst: u32,
    pub(crate) refill: Duration,
}

/// The limit on requests. `top` makes one in a second; a loop without a pause would keep the supervisor busy.
pub(crate) const REQUESTS: Limit = Limit { burst: 50, refill: Duration::from_millis(100) };

/// How many may still come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Rate {
    left: u32,
    /// When the last one was added.
    refilled: Option<Time>,
}

impl Rate {
    pub(crate) fn new(limit: Limit) -> Rate {
        Rate { left: limit.burst, refilled: None }
    }

    /// Whether one more may come; it counts then.
    pub(crate) fn allow(&mut self, limit: Limit, now: Time) -> bool {
        let is_allowed = self.left(limit, now) > 0;
        self.count(u32::from(is_allowed));
        is_allowed
    }

    /// How many more may come now.
    pub(crate) fn left(&mut self, limit: Limit, now: Time) -> u32 {
        let Limit { burst, refill } = limit;
        let since = *self.refilled.get_or_insert(now);
        let refills = now.nanoseconds_since(since) / u64::try_from(refill.as_nanos()).unwrap_or(1);
        if refills > 0 {
            self.left = burst.min(self.left.saturating_add(u32::try_from(refills).unwrap_or(burst)));
            self.refilled = Some(now);
        }
        self.left
    }

    /// Counts some that have come.
    pub(crate) fn count(&mut self, some: u32) {
        self.left = self.left.saturating_sub(some);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_burst_one_comes_after_the_other() {
        let at = |millis| Time::new(Duration::from_millis(millis));
        let mut rate = Rate::new(REQUESTS);
        let mut allow = |millis| rate.allow(REQUESTS, at(millis));
        assert!((0..REQUESTS.burst).all(|_| allow(0)));
        assert!(!allow(0) && !allow(99));
        assert!(allow(100) && !allow(100));
        assert_eq!((0..2 * REQUESTS.burst).filter(|_| allow(60_000)).count(), REQUESTS.burst as usize);
    }
}
