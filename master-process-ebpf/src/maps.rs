//! The maps that the programs share with each other and with the supervisor, and the constants that the loader sets.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, Stack};
use master_process_common::{Account, Control, Cpu, DEFAULT_ENTRIES, KernelOffsets, Params, Process};

/// Reads one field of the two constants below. The read is volatile, because the loader sets the value after compilation;
/// it reads one field, because the compiler would keep the volatile reads of all others.
macro_rules! constant {
    ($name:ident.$field:ident) => {{
        // SAFETY: a static of this program, which nothing writes once the program is loaded.
        unsafe { core::ptr::read_volatile(&raw const $crate::maps::$name.$field) }
    }};
}
pub(crate) use constant;

/// The offsets of the running kernel.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: KernelOffsets = KernelOffsets::UNSET;

/// The supervisor that loaded the programs.
#[unsafe(no_mangle)]
pub(crate) static PARAMS: Params = Params::UNSET;

/// The index in `PROCESSES` of each watched process, by its tgid.
#[map]
pub(crate) static TARGETS: HashMap<u32, u32> = HashMap::with_max_entries(DEFAULT_ENTRIES, 0);

/// Every watched process.
#[map]
static PROCESSES: Array<Process> = Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

/// The accounts of the workers.
#[map]
static ACCOUNTS: Array<Account> = Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

/// What runs on each CPU.
#[map]
pub(crate) static CPUS: Array<Cpu> = Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

/// What the supervisor and the programs tell each other.
#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The free indexes for descendants. The last one freed is assigned next, so that the part of `PROCESSES` that was ever
/// used, which each sample reads, stays small.
#[map]
pub(crate) static FREE_INDEXES: Stack<u32> = Stack::with_max_entries(DEFAULT_ENTRIES, 0);

/// The process at an index.
#[inline(always)]
pub(crate) fn process(index: u64) -> Option<&'static Process> {
    PROCESSES.get(index as u32)
}

/// The account of a worker.
#[inline(always)]
pub(crate) fn account(worker: u64) -> Option<&'static Account> {
    ACCOUNTS.get(worker as u32)
}

/// The first index that is not reserved for a worker's own process.
#[inline(always)]
pub(crate) fn first_shared_index() -> u64 {
    u64::from(constant!(PARAMS.first_shared_index))
}
