//! The types in the memory that the eBPF programs share with the supervisor.
//!
//! Both sides are compiled from this source, by different compilers and for different targets. The asserts pin the size
//! and the alignment of each type. Every field that one side writes while the other may read it is a 64-bit atomic: the
//! BPF target has no others.
//!
//! One program measures for all supervisors of the host. Each of them has arrays of its own, which it maps, and which the program
//! finds by the number of the supervisor's *row*. A *worker* has an [`Account`], numbered from 1: its process and what it uses. The
//! orphans of a worker that the supervisor has adopted have an account each, linked from that of the worker. Account 0
//! means "none", as in a fresh map.
#![no_std]

mod params;

use core::sync::atomic::AtomicU64;

pub use params::{KernelOffsets, Params};

/// No account.
pub const NONE: u64 = 0;

/// The number of entries of each map for which the loader sets none.
pub const DEFAULT_ENTRIES: u32 = 1024;

/// Calls of kernel functions in the eBPF programs. rustc emits no type information for them, so the programs call helpers
/// with these numbers, which no kernel has, and the loader puts the kernel's function in their place.
pub mod kfunc {
    /// The first of these numbers; the others follow in the order of [`NAMES`].
    pub const FIRST: u32 = 0x4d50_0000;
    /// The names of the functions.
    pub const NAMES: [&str; 7] = [
        "bpf_task_from_pid",
        "bpf_task_release",
        "bpf_rdonly_cast",
        "bpf_iter_num_new",
        "bpf_iter_num_next",
        "bpf_iter_num_destroy",
        "bpf_task_from_vpid",
    ];
    /// `bpf_task_from_pid`.
    pub const TASK_FROM_PID: u32 = FIRST;
    /// `bpf_task_release`.
    pub const TASK_RELEASE: u32 = FIRST + 1;
    /// `bpf_rdonly_cast`.
    pub const RDONLY_CAST: u32 = FIRST + 2;
    /// `bpf_iter_num_new`.
    pub const ITER_NUM_NEW: u32 = FIRST + 3;
    /// `bpf_iter_num_next`.
    pub const ITER_NUM_NEXT: u32 = FIRST + 4;
    /// `bpf_iter_num_destroy`.
    pub const ITER_NUM_DESTROY: u32 = FIRST + 5;
    /// `bpf_task_from_vpid`, since Linux 6.13: needed in a PID namespace only.
    pub const TASK_FROM_VPID: u32 = FIRST + 6;
}

/// The state of a worker at its last sample, as bits of [`Account::state`].
pub mod state {
    /// Its CPU time since the sample before is above its limit.
    pub const OVER_CPU: u64 = 1;
    /// Its memory is above its limit.
    pub const OVER_MEMORY: u64 = 2;
    /// Its memory is above the mark at which it is warned.
    pub const HIGH_MEMORY: u64 = 4;
    /// Set by the supervisor: the next sample is an event.
    pub const ANEW: u64 = 8;
    /// The sum of its CPU time was below that of the sample before. No event.
    pub const FELL: u64 = 16;
}

/// A process, and what it and its descendants use.
///
/// The first half is one cache line: nothing else is read or written of a worker that is idle.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct Account {
    /// Its pid in the initial PID namespace, with [`ADOPTED`] if the process is charged to the worker of another account;
    /// 0 if the account is free. The supervisor sets it last and clears it first; the program clears that of an adopted process
    /// that is gone.
    pub process: AtomicU64,
    /// The address of the worker's only thread, if it had one thread and no children when it was measured; otherwise 0.
    pub only_thread: AtomicU64,
    /// The CPU time of that thread when it was measured, in nanoseconds.
    pub thread_cpu: AtomicU64,
    /// The account of an adopted process that is charged to the same worker, and so on; 0 after the last one.
    pub next: AtomicU64,
    /// Bits of [`state`] in the lower half; the number of events in the upper one. An event is a sample at which the
    /// worker is above a limit, or at which the state has changed.
    pub state: AtomicU64,
    /// When the last sample was taken, in nanoseconds of the kernel's monotonic clock; 0 before the first one and while
    /// the other fields change that the program writes.
    pub sampled_at: AtomicU64,
    /// The time from the sample before to this one, in nanoseconds; 0 at the first one.
    pub span: AtomicU64,
    /// The CPU time of the worker in this span, in nanoseconds.
    pub used: AtomicU64,
    /// The most CPU time, in microseconds per second; 0 for no limit.
    pub max_cpu: AtomicU64,
    /// The most memory, in bytes; 0 for no limit. The worker is warned above [`high_memory`] of it.
    pub max_memory: AtomicU64,
    /// The CPU time of the process and its descendants at the last sample, in nanoseconds.
    pub tree_cpu: AtomicU64,
    /// The memory of the process and its descendants at the last sample, in bytes.
    pub tree_memory: AtomicU64,
    /// The sum that `cpu_ns` was last increased to.
    pub summed: AtomicU64,
    /// The CPU time of the worker since it has the account, in nanoseconds. It only grows.
    pub cpu_ns: AtomicU64,
    /// The resident memory of the worker, in bytes.
    pub memory: AtomicU64,
    /// The highest memory of any one of its processes, or of all of them at a sample, in bytes.
    pub peak: AtomicU64,
}

const _: () = assert!(size_of::<Account>() == 128 && align_of::<Account>() == 128);

/// The memory above which a worker with this limit is warned.
#[must_use]
pub const fn high_memory(max_memory: u64) -> u64 {
    max_memory / 10 * 8
}

/// The bit of [`Account::process`] that marks an adopted process.
pub const ADOPTED: u64 = 1 << 32;

/// The first bit of the number of events in [`Account::state`].
pub const EVENTS_SHIFT: u32 = 32;

/// What the two sides tell each other besides the accounts.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Control {
    /// The time between two samples, in nanoseconds; 0: no further one is taken.
    pub interval: AtomicU64,
    /// Not 0: the descendants of a process are measured with it.
    pub tree: AtomicU64,
    /// The supervisor's pid in the initial PID namespace. The program sets it when the supervisor starts it.
    pub supervisor: AtomicU64,
    /// The address of the supervisor's memory map, as the program found it at that time. Another process with this pid, and
    /// the program that the supervisor executes in its place, have another one.
    pub supervisor_mm: AtomicU64,
    /// When the next sample is to be taken, in nanoseconds of the kernel's monotonic clock; 0 if none is. The programs set it.
    pub due: AtomicU64,
    /// 1: the timer was started; a negative number: the error with which that failed.
    pub started: AtomicU64,
    /// A pid in the supervisor's PID namespace, which the program replaces by that in the initial one; 0 if there is no such
    /// process.
    pub translated: AtomicU64,
    /// The addresses of the seccomp filters of that process, from the newest on; 0 after the last one. Children inherit
    /// them, and each worker has one of its own.
    pub filters: [AtomicU64; FILTERS],
    /// The number of [`Listener`]s.
    pub listeners: AtomicU64,
    /// The number of descriptors of listeners that were found to be closed.
    pub closed: AtomicU64,
    /// The highest account that was ever in use.
    pub highest: AtomicU64,
    /// The account with which an unfinished sample continues; 0 if there is none.
    pub cursor: AtomicU64,
    /// The number of children of the supervisor that have no account, at the last sample.
    pub unknown_children: AtomicU64,
    /// The number of accounts whose process is a child of the supervisor, in the sample that is being taken.
    pub known: AtomicU64,
    /// The number of trees that were too large, or changed too fast, to be measured whole.
    pub unmeasured: AtomicU64,
    /// The number of samples taken.
    pub samples: AtomicU64,
    /// The time that the program has run, in nanoseconds.
    pub run_time: AtomicU64,
    /// When the program has begun to run the last time, in nanoseconds of the kernel's monotonic clock.
    pub begun: AtomicU64,
    /// A worker that has not run since it was measured is not measured at a sample, unless the sum of its account's number
    /// and of [`Self::samples`] has none of these bits.
    pub idle_samples: AtomicU64,
    /// The youngest child of the supervisor's first thread when the children were counted the last time: its address, and its
    /// pid in the initial PID namespace.
    pub youngest: [AtomicU64; 2],
    /// [`Self::known`] at that time.
    pub counted: AtomicU64,
}

const _: () = assert!(size_of::<Control>() == 256 && align_of::<Control>() == 64);

/// The number of seccomp filters of a process that are looked at.
pub const FILTERS: usize = 8;

/// The descriptor of a worker's listener, and the file that was there at the last sample.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Listener {
    /// The pid in the initial PID namespace in the upper half, and the descriptor in the lower one; 0 for none.
    pub place: AtomicU64,
    /// The address of the file; 0 before the first sample.
    pub file: AtomicU64,
}

const _: () = assert!(size_of::<Listener>() == 16);

/// Who has a row: the pid of a supervisor in the PID namespace of all that share the program, and in the upper half a number by
/// which it knows itself; 0 if the row is free. The programs do not use it.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Owner(pub AtomicU64);

/// The end of a worker, as its signals tell it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Death {
    /// The device, in the kernel's encoding, and the inode of the PID namespace for `sender`.
    pub namespace: [u64; 2],
    /// The name of the sender, up to its NUL.
    pub comm: [u8; 16],
    /// The last fatal signal that another process sent to the worker's own process; 0 if there was none, or if the last
    /// one came from the kernel or from the worker itself.
    pub signal: u32,
    /// The pid of its sender in the namespace; 0 if the sender is outside it.
    pub sender: u32,
    /// The user id of the sender in the initial user namespace.
    pub uid: u32,
    /// Not 0: the OOM killer chose it.
    pub oom: u32,
}

const _: () = assert!(size_of::<Death>() == 48 && align_of::<Death>() == 8);
