//! A limit on requests: some at once, and then one after the other.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::Time;

/// The requests that may come at once, and how soon one more may come. `top` makes one in a second; a loop without a pause
/// would keep the supervisor busy.
const BURST: u32 = 50;
const REFILL: Duration = Duration::from_millis(100);

/// The requests that may still come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Rate {
    left: u32,
    /// When the last one was added.
    refilled: Option<Time>,
}

impl Rate {
    pub(crate) fn new() -> Rate {
        Rate { left: BURST, refilled: None }
    }

    /// Whether one more request may be carried out; it counts then.
    pub(crate) fn allow(&mut self, now: Time) -> bool {
        let since = *self.refilled.get_or_insert(now);
        let refills = now.nanoseconds_since(since) / u64::try_from(REFILL.as_nanos()).unwrap_or(1);
        if refills > 0 {
            self.left = BURST.min(self.left.saturating_add(u32::try_from(refills).unwrap_or(BURST)));
            self.refilled = Some(now);
        }
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_burst_one_comes_after_the_other() {
        let at = |millis| Time::new(Duration::from_millis(millis));
        let mut rate = Rate::new();
        assert!((0..BURST).all(|_| rate.allow(at(0))));
        assert!(!rate.allow(at(0)) && !rate.allow(at(99)));
        assert!(rate.allow(at(100)) && !rate.allow(at(100)));
        assert_eq!((0..2 * BURST).filter(|_| rate.allow(at(60_000))).count(), BURST as usize);
    }
}
