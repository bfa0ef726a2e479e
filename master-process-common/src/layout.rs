//! What the loader tells the program before it runs: constants of `.rodata`.

/// Where the running kernel keeps what the program reads, in bytes.
///
/// rustc emits no relocations that a loader could adapt to a kernel, so the offsets are constants that the loader fills
/// in from the kernel's own type information.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// `task_struct.tgid`: the process that a thread belongs to, as the first PID namespace numbers it.
    pub task_tgid: u32,
    /// `task_struct.mm`.
    pub task_mm: u32,
    /// `task_struct.signal`.
    pub task_signal: u32,
    /// `task_struct.se.sum_exec_runtime`: how long a thread has run, in nanoseconds.
    pub task_runtime: u32,
    /// `task_struct.se.prev_sum_exec_runtime`: the same when it came to its CPU; 0 where there is no such
    /// field.
    pub task_runtime_before: u32,
    /// `signal_struct.live`: threads that have not begun to end.
    pub signal_live: u32,
    /// `signal_struct.nr_threads`: threads that are not released yet.
    pub signal_nr_threads: u32,
    /// Counters of a `mm_struct`, in pages, whose sum is what is resident: of files, anonymous, and shared.
    pub mm_pages: [u32; 3],
    /// Not 0: the verifier can follow the types from a `mm_struct` to these; before Linux 6.2 it loses its way in an array
    /// of a `typedef`.
    pub mm_pages_typed: u32,
    /// Not 0: `oom:mark_victim` gives a `task_struct`; 0: it gives a number.
    pub victim_is_task: u32,
}

impl Layout {
    /// Far outside of any structure: a program whose loader forgot the offsets reads nothing instead of something else.
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

const _: () = assert!(size_of::<Layout>() == 48 && align_of::<Layout>() == 4);

/// Who loads the program, and what for.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// The device and the inode of the supervisor's PID namespace, the device as the kernel numbers it.
    pub namespace: [u64; 2],
    /// The supervisor's number in there.
    pub supervisor: u32,
    /// Not 0: a child of a watched process is watched, too.
    pub tree: u32,
    /// The first place that is not a worker's own.
    pub first_shared_place: u32,
    /// A page is so many bytes: as a power of two.
    pub page_shift: u32,
}

impl Setup {
    /// Nobody's.
    pub const UNSET: Self =
        Self { namespace: [0; 2], supervisor: 0, tree: 0, first_shared_place: 0, page_shift: 0 };
}

const _: () = assert!(size_of::<Setup>() == 32 && align_of::<Setup>() == 8);
