//! Charging what runs, and noting what is resident.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use master_process_common::{NONE, Process};

use crate::kernel::{Task, current_tgid, peek, read};
use crate::maps::{CPUS, TARGETS, account, constant, process};
use crate::word::{add, get, set};

/// Charges the slice that ends here, and remembers whose the one is that begins. `None` is no failure, only an early
/// end.
///
/// Who leaves is known from when he came, so only who comes is looked up. A dying process thereby pays for its last
/// slice although nobody finds it any more. What a slice took is what the scheduler says, and so what everybody else
/// says who asks the kernel: on some machines without what interrupts or a hypervisor took of it, which a clock could
/// not tell.
#[inline(always)]
pub(crate) fn switch(prev: Task, next: Task) -> Option<()> {
    // SAFETY: a helper without arguments.
    let cpu = CPUS.get(unsafe { bpf_get_smp_processor_id() })?;
    // The tracepoint fires with interrupts off: nobody else on this CPU is at it.
    set(&cpu.switches, get(&cpu.switches) + 1);
    let noted = get(&cpu.place);
    let (leaves, before) =
        if get(&cpu.task) == prev as u64 { (noted, get(&cpu.runtime)) } else { unexpected(prev) };
    set(&cpu.task, next as u64);
    let comes = place_of(peek(next, constant!(LAYOUT.task_tgid)));
    // Most switches are between strangers.
    if leaves == NONE && comes == NONE && noted == NONE {
        return None;
    }

    if leaves != NONE {
        note_memory(leaves, prev, Peek);
    }
    let since = get(&cpu.since);
    // Whoever reads an account while this is 0 or has changed starts again: the slice may be in it already.
    set(&cpu.since, 0);
    if leaves != NONE {
        let after = runtime(prev);
        if after > before {
            charge(leaves, after - before);
        }
    }
    set(&cpu.place, comes);
    if comes == NONE {
        // Another number is all that it takes; strangers do not pay for the clock.
        set(&cpu.since, since + 1);
    } else {
        set(&cpu.runtime, runtime(next));
        // SAFETY: a helper without arguments.
        set(&cpu.since, unsafe { bpf_ktime_get_ns() });
    }
    Some(())
}

/// Who leaves, and what he had run for when he came, where his coming was not seen.
///
/// The kernel does not promise that every switch is: it leaves a program out while the same CPU is running it, and on
/// one machine, whatever made it so, no switch away from one certain task was.
#[inline(always)]
fn unexpected(prev: Task) -> (u64, u64) {
    let before = constant!(LAYOUT.task_runtime_before);
    if before == 0 { (NONE, 0) } else { (place_of(current_tgid()), peek(prev, before)) }
}

/// How long a thread has run, in nanoseconds.
#[inline(always)]
fn runtime(task: Task) -> u64 {
    peek(task, constant!(LAYOUT.task_runtime))
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
