//! What a source knows about a worker's end that its exit status does not say.

/// Who sent a worker the last signal of those that kill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Killer {
    /// The signal's number.
    pub signal: i32,
    /// The sender as our PID namespace numbers it; `None` where it lives outside of that.
    pub pid: Option<i32>,
    /// The sender's user, as the first user namespace numbers it.
    pub uid: u32,
    /// The sender's name: its thread's `comm`.
    pub name: String,
}

/// What a source has to say about a worker that is gone. Unknown is not no.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastWords {
    /// The most resident memory that was seen, in bytes; of the whole tree where that is what is counted.
    pub peak_memory: Option<u64>,
    /// The sender of the last signal of those that kill.
    pub killer: Option<Killer>,
    /// Whether the kernel killed it for want of memory.
    pub oom: Option<bool>,
}
