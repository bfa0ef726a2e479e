//! Detection of a worker that does not accept the connections in its queue.
//!
//! The length of the queue is not enough: the queue of a saturated worker stays full, because a new connection
//! replaces each one that it accepts. So a queue that does not get shorter is only suspected, and then the
//! connections themselves are compared. If the worker accepts none, the same ones wait a second later.

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::Time;

/// The number of observations, one a second, in which the queue does not get shorter before it is suspected. Fewer
/// would suspect a worker that is busy for a moment; more would let clients wait longer.
const SUSPECT_AFTER: u32 = 4;

/// The time between the lists of connections that are compared. A worker that serves a few connections a second would
/// not have accepted one in less. It is a little less than the time between observations.
const COMPARE_AFTER: Duration = Duration::from_millis(900);

/// The recent observations of a socket's queue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct StallDetector {
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    last: u32,
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    observations: u32,
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    stalled: bool,
    /// The first of the observations in which the queue did not get shorter.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Time>,
    /// The connections that waited when they were first listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<HashSet<u64>>,
    /// When that list came. A helper makes it, which may take longer than the time between two observations.
    #[serde(skip_serializing_if = "Option::is_none")]
    listed: Option<Time>,
}

/// The result of an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// No change.
    None,
    /// The queue is suspected: compare its connections.
    Suspected,
    /// The worker does not accept.
    Stalled,
    /// It accepts again.
    Accepts,
}

impl StallDetector {
    /// Since when the worker has accepted nothing; `None` if it is not known to be stalled.
    pub(super) fn stalled_since(&self) -> Option<Time> {
        self.since.filter(|_| self.stalled)
    }

    /// Records the number of connections that wait now.
    pub(super) fn observe(&mut self, now: Time, waiting: u32) -> Change {
        let still = waiting > 0 && waiting >= self.last;
        self.last = waiting;
        if self.stalled {
            self.stalled = still;
            return if still { Change::None } else { self.reset(Change::Accepts) };
        }
        if !still {
            return self.reset(Change::None);
        }
        self.since.get_or_insert(now);
        self.observations += 1;
        let too_soon = self.listed.is_some_and(|listed| now.since(listed) < COMPARE_AFTER);
        if self.observations > SUSPECT_AFTER && !too_soon { Change::Suspected } else { Change::None }
    }

    fn reset(&mut self, change: Change) -> Change {
        self.observations = 0;
        self.since = None;
        self.waiting = None;
        self.listed = None;
        change
    }

    /// Records which connections wait now, on all sockets of the address. If fewer of them waited at the last comparison
    /// than wait for this worker, it has accepted some.
    pub(super) fn confirm(&mut self, now: Time, waiting: HashSet<u64>) -> Change {
        let Some(before) = self.waiting.take() else {
            self.waiting = Some(waiting);
            self.listed = Some(now);
            return Change::None;
        };
        let same = before.intersection(&waiting).count();
        if same < self.last as usize || self.last == 0 {
            return self.reset(Change::None);
        }
        self.stalled = true;
        Change::Stalled
    }

    /// Confirms the suspicion without a comparison: the kernel does not list the connections.
    pub(super) fn confirm_unseen(&mut self) -> Change {
        self.stalled = true;
        Change::Stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(numbers: std::ops::Range<u64>) -> HashSet<u64> {
        numbers.collect()
    }

    fn at(second: u64) -> Time {
        Time::new(std::time::Duration::from_secs(second))
    }

    #[test]
    fn a_queue_that_never_gets_shorter_is_suspected_and_the_same_connections_confirm_it() {
        let mut detector = StallDetector::default();
        for (second, waiting) in (10..).zip([1, 1, 2, 2]) {
            assert_eq!(detector.observe(at(second), waiting), Change::None);
        }
        assert_eq!(detector.observe(at(14), 2), Change::Suspected);
        assert_eq!(detector.confirm(at(14), connections(0..2)), Change::None);
        assert_eq!(detector.observe(at(15), 2), Change::Suspected);
        assert_eq!(detector.stalled_since(), None, "it is not confirmed");
        assert_eq!(detector.confirm(at(15), connections(0..2)), Change::Stalled);
        assert_eq!(detector.stalled_since(), Some(at(10)), "the first observation counts");
        assert_eq!(detector.observe(at(16), 3), Change::None, "said once");
        assert_eq!(detector.stalled_since(), Some(at(10)));
        assert_eq!(detector.observe(at(17), 1), Change::Accepts);
        assert_eq!(detector.stalled_since(), None);
    }

    #[test]
    fn a_saturated_worker_whose_queue_stays_full_is_not_stalled() {
        let mut detector = StallDetector::default();
        for second in 0..60u64 {
            let change = detector.observe(at(second), 128);
            if change == Change::Suspected {
                // It accepts 50 a second, and 50 arrive.
                let waiting = connections(second * 50..second * 50 + 128);
                assert_eq!(detector.confirm(at(second), waiting), Change::None, "second {second}");
            } else {
                assert_eq!(change, Change::None);
            }
        }
    }

    #[test]
    fn lists_that_come_late_are_not_compared_with_the_next_ones() {
        let mut detector = StallDetector::default();
        for second in 0..4 {
            assert_eq!(detector.observe(at(second), 5), Change::None);
        }
        assert_eq!(detector.observe(at(4), 5), Change::Suspected);
        let late = Time::new(Duration::from_millis(4950));
        assert_eq!(detector.confirm(late, connections(0..5)), Change::None);
        assert_eq!(detector.observe(at(5), 5), Change::None, "50 ms are too little to accept anything");
        assert_eq!(detector.observe(at(6), 5), Change::Suspected);
        assert_eq!(detector.confirm(at(6), connections(21..26)), Change::None);
    }

    #[test]
    fn a_queue_that_moves_or_is_empty_is_not_even_suspected() {
        let mut detector = StallDetector::default();
        for (second, waiting) in (0..).zip([3, 2, 4, 3, 3, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0]) {
            assert_eq!(detector.observe(at(second), waiting), Change::None);
        }
    }
}
