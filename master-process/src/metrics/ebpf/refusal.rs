//! Why the programs are not to be had, or no longer.

use std::fmt;

/// Why the programs could not be loaded: one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(String);

impl Refusal {
    /// Of something that failed: what was attempted, and what came of it.
    pub(super) fn new(what: impl fmt::Display, why: impl fmt::Display) -> Refusal {
        Refusal(format!("{what}: {why}"))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// The programs do not run any more: somebody has removed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the eBPF programs were detached")
    }
}

impl std::error::Error for Lost {}
