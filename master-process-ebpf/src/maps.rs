//! The maps that the programs share with each other and with the supervisors, and the constants that the loader sets.
//!
//! One program measures for all supervisors of the host. Each of them has maps of its own, which are in the maps of maps here
//! in the supervisor's row.

use core::ffi::c_void;
use core::sync::atomic::AtomicU64;

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, bpf_map_def, bpf_map_type, bpf_timer};
use aya_ebpf::helpers::generated::bpf_map_lookup_elem;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap};
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

/// What else is to be known.
#[unsafe(no_mangle)]
pub(crate) static PARAMS: Params = Params::UNSET;

/// A map of maps, by the row of the supervisor.
#[repr(transparent)]
pub(crate) struct OfEach(bpf_map_def);

// SAFETY: the kernel reads it, and nothing writes it.
unsafe impl Sync for OfEach {}

impl OfEach {
    const fn new() -> OfEach {
        OfEach(bpf_map_def {
            type_: bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS,
            key_size: size_of::<u32>() as u32,
            value_size: size_of::<u32>() as u32,
            max_entries: DEFAULT_ENTRIES,
            map_flags: 0,
            id: 0,
            pinning: 0,
        })
    }

    /// The map of the supervisor in this row.
    #[inline(always)]
    pub(crate) fn of(&'static self, row: u32) -> Option<*mut c_void> {
        let map = (&raw const *self).cast_mut().cast();
        // SAFETY: a map of maps with keys of four bytes. The result is null or a map, which is not freed before the end of this
        // program.
        let found = unsafe { bpf_map_lookup_elem(map, (&raw const row).cast()) };
        if found.is_null() { None } else { Some(found) }
    }

    /// A value of the map of the supervisor in this row, whose values have the type `T`.
    #[inline(always)]
    fn value<T>(&'static self, row: u32, number: u32) -> Option<&'static T> {
        let map = self.of(row)?;
        // SAFETY: an array with keys of four bytes. The result is null or the address of a value, which consists of atomics.
        unsafe { bpf_map_lookup_elem(map, (&raw const number).cast()).cast::<T>().cast_const().as_ref() }
    }
}

/// The accounts of the workers and of adopted processes.
#[unsafe(no_mangle)]
#[unsafe(link_section = "maps")]
static ACCOUNTS: OfEach = OfEach::new();

/// The descriptors of listeners.
#[unsafe(no_mangle)]
#[unsafe(link_section = "maps")]
static LISTENERS: OfEach = OfEach::new();

/// What the supervisor and the programs tell each other.
#[unsafe(no_mangle)]
#[unsafe(link_section = "maps")]
pub(crate) static CONTROL: OfEach = OfEach::new();

/// Wakes the supervisor: each record is a number of accounts with an event.
#[unsafe(no_mangle)]
#[unsafe(link_section = "maps")]
pub(crate) static EVENTS: OfEach = OfEach::new();

/// The timer that takes the samples of all supervisors, and what is to be known from one expiry to the next.
#[repr(C)]
pub(crate) struct Ticker {
    /// The kernel finds it in its map by the type information that the loader adds.
    timer: bpf_timer,
    /// Another number for each supervisor that has started.
    pub(crate) newcomer: AtomicU64,
    /// The row whose sample was taken last.
    pub(crate) from: AtomicU64,
    /// The number of steps in this expiry.
    pub(crate) steps: AtomicU64,
}

const _: () = assert!(size_of::<Ticker>() == 40);

/// The only one.
#[map]
pub(crate) static TICKER: Array<Ticker> = Array::with_max_entries(1, 0);

/// The supervisor for which a sample is being taken.
pub(crate) struct Current {
    pub(crate) row: u64,
    /// Its pid in the initial PID namespace.
    pub(crate) supervisor: u64,
    /// Not 0: the descendants of a process are measured with it.
    pub(crate) tree: u64,
}

/// One, because the timer expires on one CPU at a time.
#[map]
static CURRENT: Array<Current> = Array::with_max_entries(1, 0);

/// The workers' own processes whose signals are recorded, by their pids in the initial PID namespace.
#[map]
pub(crate) static DEATHS: HashMap<u32, Death> = HashMap::with_max_entries(DEFAULT_ENTRIES, BPF_F_NO_PREALLOC);

/// The timer.
#[inline(always)]
pub(crate) fn timer() -> Option<*mut bpf_timer> {
    TICKER.get_ptr_mut(0).map(|ticker| ticker.cast())
}

/// What is beside it.
#[inline(always)]
pub(crate) fn ticker() -> Option<&'static Ticker> {
    // SAFETY: a value of this map, of which everything but the timer consists of atomics.
    TICKER.get_ptr(0).and_then(|ticker| unsafe { ticker.as_ref() })
}

/// The control of the supervisor in this row.
#[inline(always)]
pub(crate) fn control_at(row: u32) -> Option<&'static Control> {
    CONTROL.value(row, 0)
}

/// Has the functions below look for what belongs to this supervisor.
#[inline(always)]
pub(crate) fn set_current(current: Current) {
    if let Some(of_cpu) = CURRENT.get_ptr_mut(0) {
        // SAFETY: a value that is used in the callback of the timer only.
        unsafe { of_cpu.write(current) };
    }
}

/// The supervisor for which the sample is.
#[inline(always)]
pub(crate) fn current() -> Option<&'static Current> {
    // SAFETY: as above.
    CURRENT.get_ptr(0).and_then(|current| unsafe { current.as_ref() })
}

/// Its control.
#[inline(always)]
pub(crate) fn control() -> Option<&'static Control> {
    control_at(current()?.row as u32)
}

/// Its account with a number.
#[inline(always)]
pub(crate) fn account(number: u64) -> Option<&'static Account> {
    ACCOUNTS.value(current()?.row as u32, number as u32)
}

/// Its listener with a number.
#[inline(always)]
pub(crate) fn listener(number: u64) -> Option<&'static Listener> {
    LISTENERS.value(current()?.row as u32, number as u32)
}
