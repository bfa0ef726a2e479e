//! Types in the memory that the kernel side and the user side share.
//!
//! Both sides are compiled apart, by different compilers and for different machines, from this one source. The
//! asserts pin what the compilers could otherwise see differently: size and alignment. Everything that one side
//! writes while the other may be reading is an atomic, and all of 64 bits, the only ones that the kernel's machine has.
//!
//! Three arrays are mapped into the supervisor. A *worker* has an account, from 1 on; a *process* has a place, and
//! its place says whose account it is charged to. A worker's own process has the place of the worker's number, so it
//! always has one, however many descendants fill the others. Zero is nobody and nowhere, as in a fresh map.
#![no_std]

mod layout;

use core::sync::atomic::AtomicU64;

pub use layout::{Layout, Setup};

/// The worker that does not exist, the place where nobody is.
pub const NONE: u64 = 0;

/// How many entries the maps have unless the loader, which knows the real numbers, says otherwise.
pub const DEFAULT_ENTRIES: u32 = 1024;

/// What runs on a CPU, written by that CPU alone; a cache line each.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Cpu {
    /// Since when the process at `place` runs, in nanoseconds of the monotonic clock; 0 while the program is at it. What
    /// it has used since is in no account yet. Each value is larger than the one before, also where nobody runs that
    /// is watched.
    pub since: AtomicU64,
    /// Counts the switches: moves as long as the program runs.
    pub switches: AtomicU64,
    /// The address of the thread's `task_struct` that runs, as far as is known.
    pub task: AtomicU64,
    /// How long that thread had run, in nanoseconds, when it came to this CPU; where it is watched.
    pub runtime: AtomicU64,
    /// The place of the process that runs.
    pub place: AtomicU64,
}

const _: () = assert!(size_of::<Cpu>() == 64 && align_of::<Cpu>() == 64);

/// A process that is watched.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Process {
    /// The worker that it is charged to. The kernel side sets it; the user side takes it away from what a dead worker
    /// leaves behind, by compare-and-swap, since the place may be somebody else's by then.
    pub worker: AtomicU64,
    /// Its number, as the first PID namespace has it; 0 where the place is free. Set first and cleared last.
    pub tgid: AtomicU64,
    /// Not 0: every thread of it has ended, and its memory is nobody's any more.
    pub ended: AtomicU64,
    /// The address of its `signal_struct`, which is one and the same from its first thread to its last.
    pub signal: AtomicU64,
    /// The address of a `mm_struct` that it runs in and that is its parent's, as after `vfork`; 0 where there is none.
    pub borrowed: AtomicU64,
    /// Resident memory in bytes, as of the last time that one of its threads left a CPU.
    pub rss: AtomicU64,
}

const _: () = assert!(size_of::<Process>() == 64 && align_of::<Process>() == 64);

/// What one worker has used, and who ended it.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Account {
    /// Time on a CPU, in nanoseconds, of all threads of all its processes together. It grows only; the reader takes
    /// differences, so nobody has to reset it while another CPU adds to it.
    pub cpu_ns: AtomicU64,
    /// The most resident memory that one of its processes was seen with, in bytes.
    pub peak: AtomicU64,
    /// Not 0: the kernel chose it when memory ran out.
    pub oom: AtomicU64,
    /// The last signal of those that end a process which another one sent to the worker's own; 0 where there was none
    /// or the last one was the kernel's or its own.
    pub signal: AtomicU64,
    /// Who sent it, as the supervisor's PID namespace numbers it; 0 where that does not.
    pub sender: AtomicU64,
    /// The sender's user, as the first user namespace numbers it.
    pub uid: AtomicU64,
    /// The sender's name, up to its NUL, as it lies in memory.
    pub comm: [AtomicU64; 2],
}

const _: () = assert!(size_of::<Account>() == 64 && align_of::<Account>() == 64);

/// What the two sides say to each other apart from the accounts.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Control {
    /// The next process that the supervisor forks is this worker; the kernel side takes it back.
    pub armed: AtomicU64,
    /// The highest place that was ever in use.
    pub highest: AtomicU64,
    /// How many processes were not watched because there was no place left for them.
    pub turned_away: AtomicU64,
}

const _: () = assert!(size_of::<Control>() == 64 && align_of::<Control>() == 64);
