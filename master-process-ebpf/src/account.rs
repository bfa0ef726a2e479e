//! Charging what runs, and noting what is resident.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use master_process_common::{Cpu, NONE, Process};

use crate::kernel::{Task, current_tgid, peek, read};
use crate::maps::{CPUS, TARGETS, account, constant, process};
use crate::word::{add, get, set};

/// Charges the slice that ends here, and remembers whose the one is that begins. `None` is no failure, only an early
/// end.
///
/// Who leaves is known from when he came, so only who comes is looked up. A dying process thereby pays for its last
/// slice although nobody finds it any more.
#[inline(always)]
pub(crate) fn switch(prev: Task, next: Task) -> Option<()> {
    // SAFETY: a helper without arguments.
    let cpu = CPUS.get(unsafe { bpf_get_smp_processor_id() })?;
    // The tracepoint fires with interrupts off: nobody else on this CPU is at it.
    set(&cpu.switches, get(&cpu.switches) + 1);

    let expected = get(&cpu.task);
    set(&cpu.task, next as u64);
    if expected != prev as u64 {
        make_good(cpu, prev);
    }

    let comes = place_of(peek(next, constant!(LAYOUT.task_tgid)));
    let leaves = get(&cpu.place);
    // Most switches are between strangers; they do not even pay for the clock.
    if leaves == NONE && comes == NONE {
        return None;
    }
    if leaves != NONE {
        note_memory(leaves, prev, Peek);
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let since = get(&cpu.since);
    // Whoever reads an account while this is 0 or has changed starts again: the slice may be in it already.
    set(&cpu.since, 0);
    if leaves != NONE {
        charge(leaves, now - since);
    }
    set(&cpu.place, comes);
    set(&cpu.since, now);
    Some(())
}

/// Charges a slice whose beginning was not seen by what the scheduler says of it, and forgets whose was expected to end.
///
/// The kernel does not promise that every switch is seen: it leaves a program out while the same CPU is running it,
/// and on one machine, whatever made it so, no switch away from one certain task was.
#[inline(always)]
fn make_good(cpu: &Cpu, prev: Task) -> Option<()> {
    set(&cpu.place, NONE);
    let (runtime, before) = (constant!(LAYOUT.task_runtime), constant!(LAYOUT.task_runtime_before));
    if runtime == 0 || before == 0 {
        return None;
    }
    let place = place_of(current_tgid());
    if place == NONE {
        return None;
    }
    note_memory(place, prev, Peek);
    let (runtime, before): (u64, u64) = (peek(prev, runtime), peek(prev, before));
    charge(place, runtime.checked_sub(before)?)
}

/// Notes what is resident now of the process that runs here.
#[inline(always)]
pub(crate) fn refresh(current: Task) -> Option<()> {
    // SAFETY: a helper without arguments.
    let cpu = CPUS.get(unsafe { bpf_get_smp_processor_id() })?;
    let place = get(&cpu.place);
    if place == NONE {
        return None;
    }
    note_memory(place, current, Read)
}

/// Where the process of this number is watched.
#[inline(always)]
pub(crate) fn place_of(tgid: u32) -> u64 {
    // The idle task is what comes most often, and belongs to nobody.
    if tgid == 0 {
        return NONE;
    }
    // SAFETY: the place is copied out at once. An entry is only replaced when its process runs nowhere any more.
    unsafe { TARGETS.get(tgid) }.map_or(NONE, |place| u64::from(*place))
}

#[inline(always)]
fn charge(place: u64, ns: u64) -> Option<()> {
    let worker = get(&process(place)?.worker);
    if worker == NONE {
        return None;
    }
    add(&account(worker)?.cpu_ns, ns);
    Some(())
}

/// What a process has in memory is one number whichever thread is asked, so the last writer is right.
#[inline(always)]
fn note_memory(place: u64, task: Task, how: impl How) -> Option<()> {
    let process = process(place)?;
    if get(&process.ended) != 0 {
        return None;
    }
    let mm: *const c_void = how.get(task, constant!(LAYOUT.task_mm))?;
    // A thread that is ending has let go of it.
    if mm.is_null() {
        return None;
    }
    if is_borrowed(process, mm as u64) {
        return None;
    }
    let [files, anonymous, shared] = constant!(LAYOUT.mm_pages);
    let pages = counter(mm, files, &how)? + counter(mm, anonymous, &how)? + counter(mm, shared, &how)?;
    let bytes = pages << (constant!(SETUP.page_shift) & 31);
    set(&process.rss, bytes);

    let worker = get(&process.worker);
    if worker != NONE {
        let peak = &account(worker)?.peak;
        // Two CPUs at once may lose the smaller of two peaks, or the larger: by what was allocated in that instant.
        if bytes > get(peak) {
            set(peak, bytes);
        }
    }
    Some(())
}

/// Whether this memory is the parent's: between `vfork` and `exec` it would be counted twice, and as the worker's own
/// it would be the supervisor's.
#[inline(always)]
fn is_borrowed(process: &Process, mm: u64) -> bool {
    let borrowed = get(&process.borrowed);
    if borrowed == 0 {
        return false;
    }
    if borrowed == mm {
        return true;
    }
    // From its `exec` on it has its own, and the address can come back as that of another.
    set(&process.borrowed, 0);
    false
}

/// A counter of pages; what CPUs have not added to it yet can make it negative.
#[inline(always)]
fn counter(mm: *const c_void, offset: u32, how: &impl How) -> Option<u64> {
    let pages: i64 =
        if constant!(LAYOUT.mm_pages_typed) == 0 { read(mm, offset)? } else { how.get(mm, offset)? };
    Some(pages.max(0) as u64)
}

/// How the kernel's structures are read.
trait How {
    fn get<T>(&self, structure: *const c_void, offset: u32) -> Option<T>;
}

/// Where the verifier knows what they are.
struct Peek;

impl How for Peek {
    #[inline(always)]
    fn get<T>(&self, structure: *const c_void, offset: u32) -> Option<T> {
        Some(peek(structure, offset))
    }
}

/// Where it does not.
struct Read;

impl How for Read {
    #[inline(always)]
    fn get<T>(&self, structure: *const c_void, offset: u32) -> Option<T> {
        read(structure, offset)
    }
}
