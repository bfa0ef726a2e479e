//! What a source knows about the end of a worker, besides its exit status.

use serde::{Deserialize, Serialize};

/// The sender of the last fatal signal to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Killer {
    /// The number of the signal.
    pub signal: i32,
    /// The pid of the sender in this PID namespace; `None` if the sender is outside it.
    pub pid: Option<i32>,
    /// The user id of the sender in the initial user namespace.
    pub uid: u32,
    /// The `comm` of the sending thread.
    pub name: String,
}

/// The details of an end. `None` means unknown, not "no".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExitDetails {
    /// The highest resident memory that was seen, in bytes; of the process tree with `--account tree`.
    pub peak_memory: Option<u64>,
    /// The sender of the last fatal signal.
    pub killer: Option<Killer>,
    /// Whether the OOM killer killed it.
    pub oom: Option<bool>,
}
