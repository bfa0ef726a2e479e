//! Messages about an upgrade in place.

use std::time::Duration;

use tracing::{info, warn};

use super::Span;
use super::lines::millis;

/// Another version has taken over.
pub fn upgraded(from: &str, to: &str, workers: usize, pause: Duration) {
    let s = if workers == 1 { "" } else { "s" };
    info!(
        from,
        to,
        workers,
        pause_ms = millis(pause),
        "upgraded from {from} to {to} in {}; {workers} worker{s} kept",
        Span(pause)
    );
}

/// The version that was to take over has executed this one again.
pub fn came_back(reason: &str, pause: Duration) {
    warn!(
        pause_ms = millis(pause),
        "upgrade failed: the new program could not take over: {reason}; the one before goes on after {}",
        Span(pause)
    );
}

/// The program before has left descriptors open that the state does not name.
pub fn closed_descriptors(count: usize) {
    let (s, them) = if count == 1 { ("", "it") } else { ("s", "them") };
    warn!(count, "found {count} open descriptor{s} that the state does not name: closed {them}");
}
