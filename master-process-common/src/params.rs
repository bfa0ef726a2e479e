//! What the loader passes to the programs: constants of `.rodata`.

/// The offsets of the kernel's fields that the programs read, in bytes.
///
/// rustc emits no CO-RE relocations. The loader therefore takes the offsets from the kernel's type information and writes
/// them here.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelOffsets {
    /// `task_struct.tgid`: the pid of a thread's process in the initial PID namespace.
    pub task_tgid: u32,
    /// `task_struct.mm`.
    pub task_mm: u32,
    /// `task_struct.signal`.
    pub task_signal: u32,
    /// `task_struct.se.sum_exec_runtime`: the CPU time of a thread, in nanoseconds.
    pub task_runtime: u32,
    /// `task_struct.se.prev_sum_exec_runtime`: the same when the thread was switched in; 0 if the kernel has no such
    /// field.
    pub task_runtime_before: u32,
    /// `signal_struct.live`: the number of threads that have not begun to exit.
    pub signal_live: u32,
    /// `signal_struct.nr_threads`: the number of threads that are not released yet.
    pub signal_nr_threads: u32,
    /// The counters of a `mm_struct` whose sum is the resident memory, in pages: file, anonymous, and shared.
    pub mm_pages: [u32; 3],
    /// Not 0: the verifier can follow the types from a `mm_struct` to these counters. Before Linux 6.2 it cannot, because
    /// it does not resolve an array of a `typedef`.
    pub mm_pages_typed: u32,
    /// Not 0: the argument of `oom:mark_victim` is a `task_struct`; 0: it is a pid.
    pub victim_is_task: u32,
}

impl KernelOffsets {
    /// Far outside any structure: a program without offsets reads nothing, rather than another field.
    pub const UNSET: Self = Self {
        task_tgid: FAR,
        task_mm: FAR,
        task_signal: FAR,
        task_runtime: FAR,
        task_runtime_before: 0,
        signal_live: FAR,
        signal_nr_threads: FAR,
        mm_pages: [FAR; 3],
        mm_pages_typed: 0,
        victim_is_task: 0,
    };
}

const FAR: u32 = 0x00ff_ffff;

const _: () = assert!(size_of::<KernelOffsets>() == 48 && align_of::<KernelOffsets>() == 4);

/// The supervisor that loads the programs, and what they are to watch.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// The device, in the kernel's encoding, and the inode of the supervisor's PID namespace.
    pub namespace: [u64; 2],
    /// The supervisor's pid in that namespace.
    pub supervisor: u32,
    /// Not 0: the children of a watched process are watched as well.
    pub tree: u32,
    /// The first index that is not reserved for a worker's own process.
    pub first_shared_index: u32,
    /// The base-2 logarithm of the page size.
    pub page_shift: u32,
}

impl Params {
    /// No supervisor.
    pub const UNSET: Self =
        Self { namespace: [0; 2], supervisor: 0, tree: 0, first_shared_index: 0, page_shift: 0 };
}

const _: () = assert!(size_of::<Params>() == 32 && align_of::<Params>() == 8);
