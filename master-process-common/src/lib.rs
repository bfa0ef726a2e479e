//! The types in the memory that the eBPF programs share with the supervisor.
//!
//! Both sides are compiled from this source, by different compilers and for different targets. The asserts pin the size
//! and the alignment of each type. Every field that one side writes while the other may read it is a 64-bit atomic: the
//! BPF target has no others.
//!
//! The supervisor maps three arrays. A *worker* has an account, numbered from 1. A *process* has an index in the array of
//! processes; its entry names the account that it is charged to. A worker's own process has the index of the worker's
//! account, so there is always room for it, however many descendants fill the other entries. Account 0 and index 0 mean
//! "none", as in a fresh map.
#![no_std]

mod params;

use core::sync::atomic::AtomicU64;

pub use params::{KernelOffsets, Params};

/// No account, no index.
pub const NONE: u64 = 0;

/// The number of entries of each map for which the loader sets none.
pub const DEFAULT_ENTRIES: u32 = 1024;

/// What runs on a CPU. Only that CPU writes it; each entry is a cache line.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Cpu {
    /// When the process at `index` was switched in, in nanoseconds of the monotonic clock; 0 while the program charges the
    /// slice. The time since then is in no account yet. Each value is larger than the previous one, also while no watched
    /// process runs.
    pub since: AtomicU64,
    /// The number of context switches. It grows as long as the program is attached.
    pub switches: AtomicU64,
    /// The address of the `task_struct` of the running thread, if its switch was seen.
    pub task: AtomicU64,
    /// The CPU time of that thread when it was switched in, in nanoseconds, if it is watched.
    pub runtime: AtomicU64,
    /// The index of the running process.
    pub index: AtomicU64,
}

const _: () = assert!(size_of::<Cpu>() == 64 && align_of::<Cpu>() == 64);

/// A watched process.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Process {
    /// The account that the process is charged to. The eBPF program sets it. When a worker has ended, the supervisor clears
    /// it for the processes that the worker left, by compare-and-swap, because the entry may have been reused by then.
    pub worker: AtomicU64,
    /// Its pid in the initial PID namespace; 0 if the entry is free. Set first and cleared last.
    pub tgid: AtomicU64,
    /// Not 0: all its threads have ended, and its memory no longer counts.
    pub ended: AtomicU64,
    /// The address of its `signal_struct`, which stays the same from its first thread to its last.
    pub signal: AtomicU64,
    /// The address of the `mm_struct` that it shares with its parent, as after `vfork`; 0 if it shares none.
    pub borrowed: AtomicU64,
    /// Resident memory in bytes when one of its threads was last switched out.
    pub rss: AtomicU64,
}

const _: () = assert!(size_of::<Process>() == 64 && align_of::<Process>() == 64);

/// What a worker has used, and the sender of the signal that ended it.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Account {
    /// CPU time of all threads of all its processes, in nanoseconds. It only grows: the supervisor computes differences, so
    /// that it need not be reset while another CPU adds to it.
    pub cpu_ns: AtomicU64,
    /// The highest resident memory of any one of its processes, in bytes.
    pub peak: AtomicU64,
    /// Not 0: the OOM killer chose it.
    pub oom: AtomicU64,
    /// The last fatal signal that another process sent to the worker's own process; 0 if there was none, or if the last one
    /// came from the kernel or from the worker itself.
    pub signal: AtomicU64,
    /// The pid of its sender in the supervisor's PID namespace; 0 if the sender is outside it.
    pub sender: AtomicU64,
    /// The user id of the sender in the initial user namespace.
    pub uid: AtomicU64,
    /// The name of the sender, up to its NUL, in memory order.
    pub comm: [AtomicU64; 2],
}

const _: () = assert!(size_of::<Account>() == 64 && align_of::<Account>() == 64);

/// What the two sides tell each other besides the accounts.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Control {
    /// The account of the next process that the supervisor forks. The eBPF program clears it.
    pub armed: AtomicU64,
    /// The highest index that was ever in use.
    pub highest: AtomicU64,
    /// The number of processes that are not watched because no index was free.
    pub dropped: AtomicU64,
}

const _: () = assert!(size_of::<Control>() == 64 && align_of::<Control>() == 64);
