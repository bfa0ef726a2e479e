//! The memory that the programs share with each other and with the supervisor, and the constants that they are given.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, Stack};
use master_process_common::{Account, Control, Cpu, DEFAULT_ENTRIES, Layout, Process, Setup};

/// A field of the two constants that follow. Volatile, because its value is the loader's and not the compiler's; field
/// by field, because the compiler leaves out no volatile read of the others.
macro_rules! constant {
    ($name:ident.$field:ident) => {{
        // SAFETY: a static of our own, which nothing writes once the program is loaded.
        unsafe { core::ptr::read_volatile(&raw const $crate::maps::$name.$field) }
    }};
}
pub(crate) use constant;

/// The running kernel's offsets.
#[unsafe(no_mangle)]
pub(crate) static LAYOUT: Layout = Layout::UNSET;

/// Who loaded us.
#[unsafe(no_mangle)]
pub(crate) static SETUP: Setup = Setup::UNSET;

/// A watched process's tgid → its place in `PROCESSES`.
#[map]
pub(crate) static TARGETS: HashMap<u32, u32> = HashMap::with_max_entries(DEFAULT_ENTRIES, 0);

/// Every watched process.
#[map]
static PROCESSES: Array<Process> = Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

/// What the workers have used.
#[map]
static ACCOUNTS: Array<Account> = Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

/// Who runs where.
#[map]
pub(crate) static CPUS: Array<Cpu> = Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

/// What the supervisor says to us, and we to it.
#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Places for descendants that nobody has. The last one given back is the next one given out: so the part of
/// `PROCESSES` that is ever touched, and read at each sample, stays small.
#[map]
pub(crate) static PLACES: Stack<u32> = Stack::with_max_entries(DEFAULT_ENTRIES, 0);

/// The process at a place.
#[inline(always)]
pub(crate) fn process(place: u64) -> Option<&'static Process> {
    PROCESSES.get(place as u32)
}

/// The account of a worker.
#[inline(always)]
pub(crate) fn account(worker: u64) -> Option<&'static Account> {
    ACCOUNTS.get(worker as u32)
}

/// The first place that is not a worker's own.
#[inline(always)]
pub(crate) fn first_shared_place() -> u64 {
    u64::from(constant!(SETUP.first_shared_place))
}
