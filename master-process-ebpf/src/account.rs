//! Charging CPU time, and recording resident memory.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use master_process_common::{NONE, Process};

use crate::kernel::{Task, current_tgid, peek, read};
use crate::maps::{CPUS, TARGETS, account, constant, process};
use crate::word::{add, get, set};

/// Charges the time slice of the previous task, and records which process the next task belongs to. `None` is an early
/// return, not a failure.
///
/// The previous task's index was recorded when it was switched in, so only the next task is looked up. An exiting process
/// is thereby charged for its last slice although its entry is no longer found. The length of the slice is the
/// scheduler's own number, as in `/proc`: on some machines it excludes the time of interrupts and of a hypervisor, which a
/// clock would include.
#[inline(always)]
pub(crate) fn switch(prev: Task, next: Task) -> Option<()> {
    // SAFETY: a helper without arguments.
    let cpu = CPUS.get(unsafe { bpf_get_smp_processor_id() })?;
    // The tracepoint fires with interrupts off: nothing else on this CPU writes the entry.
    set(&cpu.switches, get(&cpu.switches) + 1);
    let noted = get(&cpu.index);
    let (leaves, before) =
        if get(&cpu.task) == prev as u64 { (noted, get(&cpu.runtime)) } else { unexpected(prev) };
    set(&cpu.task, next as u64);
    let comes = index_of(peek(next, constant!(OFFSETS.task_tgid)));
    // Most switches are between tasks that are not watched.
    if leaves == NONE && comes == NONE && noted == NONE {
        return None;
    }

    if leaves != NONE {
        note_memory(leaves, prev, Peek);
    }
    let since = get(&cpu.since);
    // A reader that finds 0, or a changed value, reads again: the slice may be in the account already.
    set(&cpu.since, 0);
    if leaves != NONE {
        let after = runtime(prev);
        if after > before {
            charge(leaves, after - before);
        }
    }
    set(&cpu.index, comes);
    if comes == NONE {
        // Any other value will do; tasks that are not watched do not pay for the clock.
        set(&cpu.since, since + 1);
    } else {
        set(&cpu.runtime, runtime(next));
        // SAFETY: a helper without arguments.
        set(&cpu.since, unsafe { bpf_ktime_get_ns() });
    }
    Some(())
}

/// The index of the previous task, and its CPU time when it was switched in, if that switch was not seen.
///
/// The kernel does not report every switch: it skips a program that the same CPU is already running. On one machine, for
/// an unknown reason, no switch away from one particular task was reported.
#[inline(always)]
fn unexpected(prev: Task) -> (u64, u64) {
    let before = constant!(OFFSETS.task_runtime_before);
    if before == 0 { (NONE, 0) } else { (index_of(current_tgid()), peek(prev, before)) }
}

/// The CPU time of a thread, in nanoseconds.
#[inline(always)]
fn runtime(task: Task) -> u64 {
    peek(task, constant!(OFFSETS.task_runtime))
}

/// Records the resident memory of the process that runs on this CPU.
#[inline(always)]
pub(crate) fn refresh(current: Task) -> Option<()> {
    // SAFETY: a helper without arguments.
    let cpu = CPUS.get(unsafe { bpf_get_smp_processor_id() })?;
    let index = get(&cpu.index);
    if index == NONE {
        return None;
    }
    note_memory(index, current, Read)
}

/// The index of a watched process; `NONE` if it is not watched.
#[inline(always)]
pub(crate) fn index_of(tgid: u32) -> u64 {
    // The idle task is the most frequent one, and belongs to no worker.
    if tgid == 0 {
        return NONE;
    }
    // SAFETY: the index is copied at once. An entry is replaced only when its process no longer runs on any CPU.
    unsafe { TARGETS.get(tgid) }.map_or(NONE, |index| u64::from(*index))
}

#[inline(always)]
fn charge(index: u64, ns: u64) -> Option<()> {
    let worker = get(&process(index)?.worker);
    if worker == NONE {
        return None;
    }
    add(&account(worker)?.cpu_ns, ns);
    Some(())
}

/// Records the resident memory of a process. All its threads share one number, so the last writer is right.
#[inline(always)]
fn note_memory(index: u64, task: Task, access: impl Access) -> Option<()> {
    let process = process(index)?;
    if get(&process.ended) != 0 {
        return None;
    }
    let mm: *const c_void = access.get(task, constant!(OFFSETS.task_mm))?;
    // An exiting thread has released it.
    if mm.is_null() {
        return None;
    }
    if is_borrowed(process, mm as u64) {
        return None;
    }
    let [files, anonymous, shared] = constant!(OFFSETS.mm_pages);
    let pages =
        counter(mm, files, &access)? + counter(mm, anonymous, &access)? + counter(mm, shared, &access)?;
    let bytes = pages << (constant!(PARAMS.page_shift) & 31);
    set(&process.rss, bytes);

    let worker = get(&process.worker);
    if worker != NONE {
        let peak = &account(worker)?.peak;
        // Of two CPUs that write at once, one value is lost: the error is what was allocated in that instant.
        if bytes > get(peak) {
            set(peak, bytes);
        }
    }
    Some(())
}

/// Whether this memory is the parent's. Between `vfork` and `exec` it would be counted twice, and for a worker's own process
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
    // After `exec` the process has memory of its own, and the kernel can reuse the address for another `mm_struct`.
    set(&process.borrowed, 0);
    false
}

/// A counter of pages. It can be negative, because CPUs add to it with a delay.
#[inline(always)]
fn counter(mm: *const c_void, offset: u32, access: &impl Access) -> Option<u64> {
    let pages: i64 =
        if constant!(OFFSETS.mm_pages_typed) == 0 { read(mm, offset)? } else { access.get(mm, offset)? };
    Some(pages.max(0) as u64)
}

/// A way to read the kernel's structures.
trait Access {
    fn get<T>(&self, structure: *const c_void, offset: u32) -> Option<T>;
}

/// For structures whose type the verifier knows.
struct Peek;

impl Access for Peek {
    #[inline(always)]
    fn get<T>(&self, structure: *const c_void, offset: u32) -> Option<T> {
        Some(peek(structure, offset))
    }
}

/// For all others.
struct Read;

impl Access for Read {
    #[inline(always)]
    fn get<T>(&self, structure: *const c_void, offset: u32) -> Option<T> {
        read(structure, offset)
    }
}
