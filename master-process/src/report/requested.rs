//! Messages about what somebody asked for, with who it was: a signal and its sender, or a client of the control socket.

use tracing::info;

use super::lines::{Named, Workers};
use crate::policy::{Report, WorkerId};

/// Logs what the policy begins by request. `cause` is empty if it is unknown.
pub fn requested(report: &Report, named: impl Fn(WorkerId) -> Named, cause: &str) {
    let by = if cause.is_empty() { String::new() } else { format!(": {cause}") };
    if let Report::Stopping { workers } = *report {
        info!(workers, cause, "stopping {}{by}", Workers(workers));
    } else if let Report::ReloadStarted { generation, slots } = *report {
        info!(generation, slots, cause, "reload {generation}: replacing {}{by}", Workers(slots));
    } else if let Report::Scaled { from, to } = *report {
        let workers = Workers(usize::try_from(to).unwrap_or(usize::MAX));
        info!(from, to, cause, "scaled from {from} to {workers}{by}");
    } else if let Report::RestartStarted { slot, worker } = *report {
        match worker.map(named) {
            Some(worker) => {
                info!(
                    worker = slot,
                    pid = worker.pid,
                    cause,
                    "restarting slot {slot}: replacing {worker}{by}"
                );
            }
            None => info!(worker = slot, cause, "restarting slot {slot}: it has no worker{by}"),
        }
    } else if let Report::Monitoring { paused } = *report {
        let did = if paused { "paused" } else { "resumed" };
        info!(cause, "resource limits of all workers {did}{by}");
    }
}
