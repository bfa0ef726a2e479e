//! The log lines that many tests wait for; `docs/log.md` lists all of them.

use crate::Supervisor;

/// The lines of workers that became ready, whatever made them so.
#[must_use]
pub fn ready(supervisor: &Supervisor) -> Vec<String> {
    supervisor.logged(&["worker", ") ready after"])
}

/// Waits until this many workers have become ready by listening.
///
/// # Panics
/// When they do not.
pub fn await_listening(supervisor: &Supervisor, count: usize) {
    supervisor
        .eventually("the workers listen", || supervisor.logged(&["worker", ": listening"]).len() >= count);
}

/// The warnings about workers that are not ready at the end of `--ready-timeout`.
#[must_use]
pub fn late(supervisor: &Supervisor) -> Vec<String> {
    supervisor.logged(&["is not ready after", "--ready-timeout"])
}

/// Waits until the reload with this number is complete; the first one is 1.
///
/// # Panics
/// When that does not come.
pub fn await_reload_complete(supervisor: &Supervisor, number: usize) {
    let complete = format!("reload {number} complete after");
    supervisor.eventually(&complete, || !supervisor.logged(&[&complete]).is_empty());
}

/// The lines of reloads that failed.
#[must_use]
pub fn failed_reloads(supervisor: &Supervisor) -> Vec<String> {
    supervisor.logged(&["reload", "failed: "])
}

/// Waits until a reload has failed.
///
/// # Panics
/// When none fails.
pub fn await_failed_reload(supervisor: &Supervisor) {
    supervisor.eventually("the reload fails", || !failed_reloads(supervisor).is_empty());
}
