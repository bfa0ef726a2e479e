//! Checks of a load, and of the processes that answer.

use std::collections::BTreeSet;

use crate::load::{self, Connections, Load, Target};
use crate::{Supervisor, process};

/// Waits until this many more requests are served.
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

/// Sends requests until each of `expected` has answered, and no other process.
///
/// # Panics
/// When one of them never does, or another process does.
pub fn all_answer(supervisor: &Supervisor, target: impl Into<Target>, expected: &BTreeSet<i32>) {
    let target = target.into();
    let (expected, mut seen) = (&inside(expected), BTreeSet::new());
    supervisor.eventually("each worker answers", || {
        seen.extend(load::who(target.clone()));
        seen.is_superset(expected)
    });
    assert_eq!(&seen, expected, "only they answer");
}

/// These processes by the pids that they have in their own PID namespace.
fn inside(pids: &BTreeSet<i32>) -> BTreeSet<i32> {
    let own = |pid: i32| process::status(pid, "NSpid")?.split_whitespace().last()?.parse().ok();
    pids.iter().map(|pid| own(*pid).unwrap_or(*pid)).collect()
}

/// Reloads again and again while clients send requests, of which none may be lost. Gives the last workers.
///
/// # Panics
/// When a request is lost, or a reload does not come to an end.
pub fn reload_under_load(
    supervisor: &Supervisor,
    target: impl Into<Target>,
    workers: usize,
    reloads: usize,
) -> BTreeSet<i32> {
    let clients = Load::start(target.into(), 4, Connections::Fresh);
    let mut new = BTreeSet::new();
    for _ in 0..reloads {
        pass(supervisor, &clients, 50);
        new = supervisor.reload(workers);
    }
    pass(supervisor, &clients, 50);
    nothing_is_lost(clients);
    new
}
