//! The maps that the programs share with each other and with the supervisor, and the constants that the loader sets.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_timer};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use master_process_common::{Account, Control, DEFAULT_ENTRIES, Death, KernelOffsets, Listener, Params};

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

/// What is to be measured.
#[unsafe(no_mangle)]
pub(crate) static PARAMS: Params = Params::UNSET;

/// The accounts of the workers and of adopted processes.
#[map]
static ACCOUNTS: Array<Account> = Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

/// The descriptors of listeners.
#[map]
static LISTENERS: Array<Listener> = Array::with_max_entries(DEFAULT_ENTRIES, BPF_F_MMAPABLE);

/// What the supervisor and the programs tell each other.
#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Wakes the supervisor: each record is a number of accounts with an event.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// The timer, which the kernel finds in its map by the type information that the loader adds.
#[repr(transparent)]
pub(crate) struct Timer(pub(crate) bpf_timer);

/// The timer that takes the samples.
#[map]
pub(crate) static TIMER: Array<Timer> = Array::with_max_entries(1, 0);

/// The workers' own processes whose signals are recorded, by their pids in the initial PID namespace.
#[map]
pub(crate) static DEATHS: HashMap<u32, Death> = HashMap::with_max_entries(DEFAULT_ENTRIES, BPF_F_NO_PREALLOC);

/// The account with a number.
#[inline(always)]
pub(crate) fn account(number: u64) -> Option<&'static Account> {
    ACCOUNTS.get(number as u32)
}

/// The listener with a number.
#[inline(always)]
pub(crate) fn listener(number: u64) -> Option<&'static Listener> {
    LISTENERS.get(number as u32)
}
