//! Why the programs cannot be loaded.

use std::fmt;

/// Why the programs could not be loaded: one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError(String);

impl LoadError {
    /// From what failed and its reason.
    pub(super) fn new(what: impl fmt::Display, why: impl fmt::Display) -> LoadError {
        LoadError(format!("{what}: {why}"))
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LoadError {}
