//! Messages about workers that are not ready in time, and about failed reloads.

use std::time::Duration;

use tracing::{error, info, warn};

use super::Span;
use super::lines::{Follows, Named, millis};
use crate::policy::{FailedStart, Next};
use crate::share::{Because, Missing};

/// What a worker that is not ready lacks.
fn not_listening(missing: Option<&Missing>) -> String {
    missing.map(|missing| format!(": it does not listen on {missing}")).unwrap_or_default()
}

/// The missing addresses, for a field of the log.
fn addresses(missing: Option<&Missing>) -> Option<String> {
    missing.map(|missing| missing.addresses.join(","))
}

/// A worker is late, and no other worker serves its slot.
pub fn slow(worker: Named, after: Duration, missing: Option<&Missing>) {
    let what = not_listening(missing);
    warn!(
        worker = worker.slot,
        pid = worker.pid,
        after_ms = millis(after),
        missing = addresses(missing),
        "{worker} is not ready after {} (--ready-timeout){what}; waiting for it, because no other worker serves its slot; \
         raise --ready-timeout if this program needs longer",
        Span(after)
    );
}

/// A worker takes longer than usual while another one serves its slot.
pub fn waits(worker: Named, after: Duration, missing: Option<&Missing>) {
    let what = not_listening(missing);
    info!(
        worker = worker.slot,
        pid = worker.pid,
        after_ms = millis(after),
        missing = addresses(missing),
        "{worker} is not ready after {}{what}; waiting for it while the old worker serves",
        Span(after)
    );
}

/// A late worker is stopped, because another one serves its slot.
pub fn late(worker: Named, after: Duration, missing: Option<&Missing>, next: Next) {
    let what = not_listening(missing);
    warn!(
        worker = worker.slot,
        pid = worker.pid,
        after_ms = millis(after),
        missing = addresses(missing),
        "{worker} was not ready within {} (--ready-timeout){what}; stopping it{}",
        Span(after),
        Follows(next, "starting another")
    );
}

/// A failed reload.
#[derive(Debug, Clone, Copy)]
pub struct FailedReload {
    /// The generation of the new workers.
    pub generation: u32,
    /// The slot whose workers failed.
    pub slot: u32,
    /// The number of failed workers.
    pub attempts: u32,
    /// The failure of the last one.
    pub cause: FailedStart,
    /// The number of workers of earlier generations that keep serving.
    pub kept: usize,
}

/// A reload failed. `missing`: the addresses on which the last late worker did not listen.
pub fn reload_failed(failed: FailedReload, missing: Option<&Missing>) {
    let FailedReload { generation, slot, attempts, cause, kept } = failed;
    let times = if attempts == 1 { "once".to_owned() } else { format!("{attempts} times") };
    let why = match (cause, missing) {
        (FailedStart::Died, _) => "exited early".to_owned(),
        (FailedStart::Late(_), None) => "was not ready in time".to_owned(),
        (FailedStart::Late(_), Some(missing)) => format!("did not listen on {missing},"),
        (FailedStart::NotLaunched, _) => "failed to start".to_owned(),
    };
    let old = if kept == 1 { "1 old worker keeps".to_owned() } else { format!("{kept} old workers keep") };
    // Whether the address is late or was removed on purpose cannot be determined.
    let how = match missing.map(|missing| missing.because) {
        Some(Because::Served | Because::Left) => {
            "; if the new release no longer serves it, send READY=1 (--ready auto or notify) or use \
             --ready listen:ADDR"
        }
        Some(Because::Named) | None => "",
    };
    error!(
        generation,
        worker = slot,
        attempts,
        kept,
        missing = addresses(missing),
        "reload {generation} failed: new worker {slot} {why} {times}; {old} serving{how}"
    );
}
