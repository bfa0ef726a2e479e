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
    /// `task_struct.group_leader`: the first thread of its process.
    pub task_leader: u32,
    /// `task_struct.real_parent`: the thread that has started the process, or has adopted it.
    pub task_parent: u32,
    /// `task_struct.children`: the list of the processes whose parent the thread is.
    pub task_children: u32,
    /// `task_struct.sibling`: the place of the process in that list.
    pub task_sibling: u32,
    /// `task_struct.thread_node`: the place of the thread in the list of its process.
    pub task_thread: u32,
    /// `signal_struct.thread_head`: that list.
    pub signal_threads: u32,
    /// `signal_struct.sum_sched_runtime`: the CPU time of the threads that have ended, in nanoseconds.
    pub signal_runtime: u32,
    /// `signal_struct.cutime` and `cstime`: the CPU time of the children that were waited for, in nanoseconds.
    pub signal_children: [u32; 2],
    /// The counters of a `mm_struct` whose sum is the resident memory, in pages: file, anonymous, and shared.
    pub mm_pages: [u32; 3],
    /// `mm_struct.hiwater_rss`: the highest resident memory before some of it was released, in pages.
    pub mm_peak: u32,
    /// `task_struct.files`: the descriptors of the process.
    pub task_files: u32,
    /// `files_struct.fdt`: the table of them.
    pub files_table: u32,
    /// `fdtable.fd`: its files, by descriptor.
    pub table_files: u32,
    /// `fdtable.max_fds`: the length of that array.
    pub table_len: u32,
    /// `task_struct.seccomp.filter`: the newest filter of a thread.
    pub task_filter: u32,
    /// `seccomp_filter.prev`: the filter that was there before.
    pub filter_before: u32,
    /// The id of a type that begins with a 64-bit number. The programs read every field as such a number.
    pub word: u32,
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
        task_leader: FAR,
        task_parent: FAR,
        task_children: FAR,
        task_sibling: FAR,
        task_thread: FAR,
        signal_threads: FAR,
        signal_runtime: FAR,
        signal_children: [FAR; 2],
        mm_pages: [FAR; 3],
        mm_peak: FAR,
        task_files: FAR,
        files_table: FAR,
        table_files: FAR,
        table_len: FAR,
        task_filter: FAR,
        filter_before: FAR,
        word: 0,
        victim_is_task: 0,
    };
}

const FAR: u32 = 0x00ff_ffff;

const _: () = assert!(size_of::<KernelOffsets>() == 100 && align_of::<KernelOffsets>() == 4);

/// What else the programs need to know.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// The base-2 logarithm of the page size.
    pub page_shift: u32,
    /// The number of supervisors that can share the programs, a power of two.
    pub rows: u32,
}

impl Params {
    /// Pages of one byte, and no supervisor.
    pub const UNSET: Self = Self { page_shift: 0, rows: 0 };
}

const _: () = assert!(size_of::<Params>() == 8 && align_of::<Params>() == 4);
