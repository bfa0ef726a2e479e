//! Types in the memory that the kernel side and the user side share.
//!
//! Both sides are compiled apart, by different compilers and for different machines, from this one source. The
//! asserts pin what the compilers could otherwise see differently: size and alignment.
#![no_std]

use core::sync::atomic::AtomicU64;

/// How many workers the maps hold unless the loader, which knows the real number, says otherwise.
pub const DEFAULT_WORKERS: usize = 1024;

/// What one worker has used, written by the kernel side on every CPU while the user side reads it.
///
/// Its place in the array of accounts is the worker's index. The array is mapped into the supervisor, so a sample is
/// a load from memory; that is why the field is an atomic, here as well as there.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Account {
    /// Time on a CPU, in nanoseconds, of all threads together. It grows only; the reader takes differences, so
    /// nobody has to reset it while another CPU adds to it.
    pub cpu_ns: AtomicU64,
}

const _: () = assert!(size_of::<Account>() == 8 && align_of::<Account>() == 8);

/// Where the running kernel keeps what the program reads of a `task_struct`, in bytes from its start.
///
/// rustc emits no relocations that a loader could adapt to a kernel, so the offsets are constants of the program that
/// the loader fills in from the kernel's own type information.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskLayout {
    /// `task_struct.tgid`: the process that a thread belongs to, as the first PID namespace numbers it.
    pub tgid: u32,
}

const _: () = assert!(size_of::<TaskLayout>() == 4 && align_of::<TaskLayout>() == 4);

impl TaskLayout {
    /// Far outside of any `task_struct`: a program whose loader forgot the offsets is refused by the verifier instead
    /// of charging the wrong process.
    pub const UNSET: Self = Self { tgid: 0x00ff_ffff };
}
