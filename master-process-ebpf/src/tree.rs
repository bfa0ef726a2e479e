//! What a process and its descendants use.
//!
//! The walk follows the kernel's lists of threads and children under RCU, without their locks: memory that it reads is not
//! freed meanwhile, but a list can change. Every step is checked, and a walk that lost its way is given up.

use crate::kernel::{Turns, field, word};
use crate::maps::{constant, current};

/// The most threads and processes of one tree, which bounds the time of a walk to some hundred microseconds.
pub(crate) const MOST_STEPS: u64 = 8192;

/// The most children of the supervisor that are counted.
const MOST_CHILDREN: u64 = 65536;

/// A place in a walk is the address of a thread, with this bit if the walk has been there before.
const VISITED: u64 = 1;
/// Where children are counted, a place is the address of a child, or of a thread with this bit.
const BEFORE_CHILDREN: u64 = 1;
/// Instead of a place: the walk has lost its way.
const LOST: u64 = 0;
/// Instead of a place: the walk has come to its end. No thread has an address as low.
const END: u64 = 2;

/// What a tree uses.
pub(crate) struct Use {
    /// CPU time in nanoseconds, with that of the children that were waited for.
    pub(crate) cpu: u64,
    /// Resident memory in bytes.
    pub(crate) memory: u64,
    /// The highest resident memory that any one of its processes ever had, in bytes.
    pub(crate) peak: u64,
    /// The number of steps that the walk took.
    pub(crate) steps: u64,
    /// The walk came to its end.
    pub(crate) is_whole: bool,
}

/// Measures the process whose first thread is at `leader`, and its descendants. It is a child of the supervisor.
///
/// The verifier follows the loop until its state repeats, once for each way through it. So the ways are few: what a step
/// reads and where it leads to are functions of their own, which are verified once.
#[inline(always)]
pub(crate) fn measure(leader: u64) -> Use {
    let mut sum = Use { cpu: 0, memory: 0, peak: 0, steps: 0, is_whole: false };
    // The memory that was counted last: the threads of a process share theirs.
    let (mut place, mut counted) = (first_thread(leader), 0);
    let mut turns = Turns::new();
    turns.start(MOST_STEPS);
    while let Some(turn) = turns.next() {
        sum.steps = turn;
        let thread = place & !VISITED;
        let is_new = place == thread;
        if is_new {
            sum.cpu += cpu_time(thread);
        }
        let mm = field(thread, constant!(OFFSETS.task_mm));
        // A thread that exits has released it already; another one of the process may not have.
        if mm != 0 {
            if is_new && mm != counted {
                sum.memory += resident(thread);
                let peak = highest(thread);
                if peak > sum.peak {
                    sum.peak = peak;
                }
            }
            counted = mm;
        }
        let next = after(place);
        if next <= END {
            sum.is_whole = next == END && leader_of(thread) == leader;
            break;
        }
        place = next;
    }
    turns.end();
    sum
}

/// The place after this one, [`LOST`], or [`END`] after the last thread of a child of the supervisor and all that descends
/// from it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn after(place: u64) -> u64 {
    let Some(current) = current() else { return LOST };
    let thread = place & !VISITED;
    if place == thread && current.tree != 0 {
        let children = thread.wrapping_add(u64::from(constant!(OFFSETS.task_children)));
        let first = word(children);
        if first != children {
            let child = first.wrapping_sub(u64::from(constant!(OFFSETS.task_sibling)));
            return if parent_of(child) == thread { first_thread(child) } else { LOST };
        }
    }
    // The next thread of the process.
    let process = leader_of(thread);
    let next = field(thread, constant!(OFFSETS.task_thread));
    if next != threads_of(process) {
        let next = next.wrapping_sub(u64::from(constant!(OFFSETS.task_thread)));
        return if leader_of(next) == process { next } else { LOST };
    }
    // The next child of its parent, or the parent's next thread.
    let parent = parent_of(process);
    if tgid(parent) == current.supervisor {
        return END;
    }
    let next = field(process, constant!(OFFSETS.task_sibling));
    if next == parent.wrapping_add(u64::from(constant!(OFFSETS.task_children))) {
        return parent | VISITED;
    }
    let sibling = next.wrapping_sub(u64::from(constant!(OFFSETS.task_sibling)));
    // A process that was removed from the list points to itself.
    if sibling == process || parent_of(sibling) != parent { LOST } else { first_thread(sibling) }
}

/// The CPU time of a thread; with the first one, that of its process's threads that have ended and of its children that were
/// waited for. Those are read before the threads, so that a thread that ends meanwhile is missed in one sample rather than
/// counted twice.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cpu_time(thread: u64) -> u64 {
    let ended = if leader_of(thread) == thread { of_process(thread) } else { 0 };
    ended + field(thread, constant!(OFFSETS.task_runtime))
}

/// The resident memory of a thread's process, in bytes; 0 if it is its parent's, as between `vfork` and `exec`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn resident(thread: u64) -> u64 {
    let mm = field(thread, constant!(OFFSETS.task_mm));
    if field(parent_of(thread), constant!(OFFSETS.task_mm)) == mm {
        return 0;
    }
    let [files, anonymous, shared] = constant!(OFFSETS.mm_pages);
    (counter(mm, files) + counter(mm, anonymous) + counter(mm, shared)) << page_shift()
}

/// The highest resident memory that a thread's process ever had, as far as the kernel has noted it, or that it has now; in
/// bytes.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn highest(thread: u64) -> u64 {
    let mm = field(thread, constant!(OFFSETS.task_mm));
    let (now, peak) = (resident(thread), field(mm, constant!(OFFSETS.mm_peak)) << page_shift());
    // The memory of its parent is not its own.
    if now == 0 || now > peak { now } else { peak }
}

#[inline(always)]
fn page_shift() -> u32 {
    constant!(PARAMS.page_shift) & 31
}

/// A counter of pages. It can be negative, because CPUs add to it with a delay.
#[inline(always)]
fn counter(mm: u64, offset: u32) -> u64 {
    let pages = field(mm, offset);
    // All bits where it is negative: the verifier would follow both ways of a condition.
    pages & !(((pages as i64) >> 63) as u64)
}

/// The CPU time of the threads of a process that have ended, and of its children that were waited for.
#[inline(always)]
fn of_process(process: u64) -> u64 {
    let signal = field(process, constant!(OFFSETS.task_signal));
    let threads = field(signal, constant!(OFFSETS.signal_runtime));
    if current().is_none_or(|current| current.tree == 0) {
        return threads;
    }
    let [user, system] = constant!(OFFSETS.signal_children);
    threads + field(signal, user) + field(signal, system)
}

#[inline(always)]
pub(crate) fn tgid(task: u64) -> u64 {
    field(task, constant!(OFFSETS.task_tgid)) & 0xffff_ffff
}

#[inline(always)]
pub(crate) fn parent_of(process: u64) -> u64 {
    field(process, constant!(OFFSETS.task_parent))
}

#[inline(always)]
pub(crate) fn leader_of(thread: u64) -> u64 {
    field(thread, constant!(OFFSETS.task_leader))
}

/// The head of the list of a process's threads.
#[inline(always)]
pub(crate) fn threads_of(process: u64) -> u64 {
    let signal = field(process, constant!(OFFSETS.task_signal));
    signal.wrapping_add(u64::from(constant!(OFFSETS.signal_threads)))
}

#[inline(always)]
pub(crate) fn first_thread(process: u64) -> u64 {
    let signal = field(process, constant!(OFFSETS.task_signal));
    field(signal, constant!(OFFSETS.signal_threads)).wrapping_sub(u64::from(constant!(OFFSETS.task_thread)))
}

/// Whether the offsets are those of this kernel, as far as a process shows by itself that has this pid.
#[inline(always)]
pub(crate) fn describes(leader: u64, pid: u64) -> bool {
    let thread = first_thread(leader);
    tgid(leader) == pid
        && leader_of(leader) == leader
        && tgid(thread) == pid
        && leader_of(thread) == leader
        && field(leader, constant!(OFFSETS.task_mm)) != 0
        && field(leader, constant!(OFFSETS.task_runtime)) != 0
}

/// Instead of the address of a file where none is open: no address, and not the 0 of a listener that was not checked yet.
pub(crate) const NO_FILE: u64 = 1;

/// The address of the file that a process has open at a descriptor, or [`NO_FILE`].
#[inline(always)]
pub(crate) fn file(process: u64, fd: u64) -> u64 {
    let files = field(process, constant!(OFFSETS.task_files));
    let table = field(files, constant!(OFFSETS.files_table));
    let len = field(table, constant!(OFFSETS.table_len)) & 0xffff_ffff;
    if fd >= len {
        return NO_FILE;
    }
    let file = word(field(table, constant!(OFFSETS.table_files)).wrapping_add(fd * 8));
    if file == 0 { NO_FILE } else { file }
}

/// The last one in the list of the children of a process's first thread; 0 if it has none, or another thread can have some.
#[inline(always)]
pub(crate) fn youngest_child(leader: u64) -> u64 {
    if field(leader, constant!(OFFSETS.task_thread)) != threads_of(leader) {
        return 0;
    }
    let list = leader.wrapping_add(u64::from(constant!(OFFSETS.task_children)));
    // The second word of the head: `list_head.prev`.
    let last = field(list, 8);
    if last == list { 0 } else { last.wrapping_sub(u64::from(constant!(OFFSETS.task_sibling))) }
}

/// The number of children of a process.
#[inline(always)]
pub(crate) fn count_children(leader: u64) -> u64 {
    let (mut children, mut place) = (0, first_thread(leader) | BEFORE_CHILDREN);
    let mut turns = Turns::new();
    turns.start(MOST_CHILDREN);
    while turns.next().is_some() {
        place = next_child(place);
        if place <= END {
            break;
        }
        children += 1 - (place & BEFORE_CHILDREN);
    }
    turns.end();
    children
}

/// The place after this one among the threads of a process and their children, [`LOST`], or [`END`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn next_child(place: u64) -> u64 {
    let is_thread = place & BEFORE_CHILDREN != 0;
    let thread = if is_thread { place & !BEFORE_CHILDREN } else { parent_of(place) };
    let list = thread.wrapping_add(u64::from(constant!(OFFSETS.task_children)));
    let next = if is_thread { word(list) } else { field(place, constant!(OFFSETS.task_sibling)) };
    if next != list {
        let child = next.wrapping_sub(u64::from(constant!(OFFSETS.task_sibling)));
        return if child != place && parent_of(child) == thread { child } else { LOST };
    }
    let (leader, next) = (leader_of(thread), field(thread, constant!(OFFSETS.task_thread)));
    if next == threads_of(leader) {
        return END;
    }
    let next = next.wrapping_sub(u64::from(constant!(OFFSETS.task_thread)));
    if leader_of(next) == leader { next | BEFORE_CHILDREN } else { LOST }
}
