//! What tests ask of a load, and of who answers.

use std::collections::BTreeSet;

use crate::Supervisor;
use crate::load::{self, Load, Target};

/// Waits until so many more requests are served.
///
/// # Panics
/// When they are not.
pub fn pass(supervisor: &Supervisor, clients: &Load, count: u64) {
    let goal = clients.tally().served() + count;
    supervisor.eventually("requests are served", || clients.tally().served() >= goal);
}

/// Ends a load of which every request must have been answered.
///
/// # Panics
/// When one was not.
pub fn nothing_is_lost(clients: Load) {
    let tally = clients.stop();
    println!("{tally}");
    assert_eq!(tally.lost() + tally.inexcusable(), 0, "{tally}");
}

/// Asks until each of `expected` has answered, and nobody else.
///
/// # Panics
/// When one of them never does, or somebody else does.
pub fn all_answer(supervisor: &Supervisor, target: impl Into<Target>, expected: &BTreeSet<i32>) {
    let target = target.into();
    let mut seen = BTreeSet::new();
    supervisor.eventually("each worker answers", || {
        seen.extend(load::who(target.clone()));
        seen.is_superset(expected)
    });
    assert_eq!(&seen, expected, "nobody else answers");
}
