//! What a process and its descendants use.
//!
//! The walk follows the kernel's lists of threads and children under RCU, without their locks: memory that it reads is not
//! freed meanwhile, but a list can change. Every step is checked, and a walk that lost its way is given up.

use crate::kernel::{Turns, field, word};
use crate::maps::constant;

/// The most threads and processes of one tree, which bounds the time of a walk to some hundred microseconds.
pub(crate) const MOST_STEPS: u64 = 8192;

/// The most children of the supervisor that are counted.
const MOST_CHILDREN: u64 = 65536;

/// No address of a process.
const NO_CHILD: u64 = 0;

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

/// Measures the process whose first thread is at `leader`, and its descendants.
#[inline(always)]
pub(crate) fn measure(leader: u64) -> Use {
    let mut sum = Use { cpu: of_process(leader), memory: 0, peak: 0, steps: 0, is_whole: false };
    let outside = tgid(parent_of(leader));
    let (mut process, mut thread) = (leader, first_thread(leader));
    // Whether this thread is new, and the memory that was counted last: the threads of a process share theirs.
    let (mut is_new, mut counted) = (true, 0);
    let mut turns = Turns::new();
    turns.start(MOST_STEPS);
    while let Some(turn) = turns.next() {
        sum.steps = turn;
        if is_new {
            sum.cpu += field(thread, constant!(OFFSETS.task_runtime));
            let mm = field(thread, constant!(OFFSETS.task_mm));
            // A thread that exits has released it already; another one of the process may not have.
            if mm != 0 && mm != counted {
                counted = mm;
                add_memory(&mut sum, process, mm);
            }
            let children = thread.wrapping_add(u64::from(constant!(OFFSETS.task_children)));
            let first = word(children);
            if constant!(PARAMS.tree) != 0 && first != children {
                let child = first.wrapping_sub(u64::from(constant!(OFFSETS.task_sibling)));
                if parent_of(child) != thread {
                    break;
                }
                (process, thread, counted) = (child, first_thread(child), 0);
                sum.cpu += of_process(child);
                continue;
            }
        }
        // The next thread of the process.
        let next = field(thread, constant!(OFFSETS.task_thread));
        if next != threads_of(process) {
            thread = next.wrapping_sub(u64::from(constant!(OFFSETS.task_thread)));
            is_new = true;
            if leader_of(thread) != process {
                break;
            }
            continue;
        }
        if process == leader {
            sum.is_whole = true;
            break;
        }
        // The next child of its parent, or the parent's next thread.
        let parent = parent_of(process);
        let next = field(process, constant!(OFFSETS.task_sibling));
        if tgid(parent) == outside {
            break;
        }
        if next == parent.wrapping_add(u64::from(constant!(OFFSETS.task_children))) {
            (process, thread, is_new) = (leader_of(parent), parent, false);
            counted = field(parent, constant!(OFFSETS.task_mm));
            continue;
        }
        let sibling = next.wrapping_sub(u64::from(constant!(OFFSETS.task_sibling)));
        // A process that was removed from the list points to itself.
        if sibling == process || parent_of(sibling) != parent {
            break;
        }
        (process, thread, is_new, counted) = (sibling, first_thread(sibling), true, 0);
        sum.cpu += of_process(sibling);
    }
    turns.end();
    sum
}

/// Adds the resident memory of a process, unless it is its parent's, as between `vfork` and `exec`.
#[inline(always)]
fn add_memory(sum: &mut Use, process: u64, mm: u64) {
    if field(parent_of(process), constant!(OFFSETS.task_mm)) == mm {
        return;
    }
    let shift = constant!(PARAMS.page_shift) & 31;
    let [files, anonymous, shared] = constant!(OFFSETS.mm_pages);
    let pages = counter(mm, files) + counter(mm, anonymous) + counter(mm, shared);
    let peak = field(mm, constant!(OFFSETS.mm_peak));
    sum.memory += pages << shift;
    let peak = if pages > peak { pages } else { peak } << shift;
    if peak > sum.peak {
        sum.peak = peak;
    }
}

/// A counter of pages. It can be negative, because CPUs add to it with a delay.
#[inline(always)]
fn counter(mm: u64, offset: u32) -> u64 {
    let pages = field(mm, offset);
    // All bits where it is negative: the verifier would follow both ways of a condition.
    pages & !(((pages as i64) >> 63) as u64)
}

/// The CPU time of the threads of a process that have ended, and of its children that were waited for. Read before the
/// threads, so that a thread that ends meanwhile is missed in one sample rather than counted twice.
#[inline(always)]
fn of_process(process: u64) -> u64 {
    let signal = field(process, constant!(OFFSETS.task_signal));
    let threads = field(signal, constant!(OFFSETS.signal_runtime));
    if constant!(PARAMS.tree) == 0 {
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

/// The number of children of a process.
#[inline(always)]
pub(crate) fn count_children(leader: u64) -> u64 {
    let (mut children, mut thread, mut child) = (0, first_thread(leader), NO_CHILD);
    let head = threads_of(leader);
    let mut turns = Turns::new();
    turns.start(MOST_CHILDREN);
    while turns.next().is_some() {
        let list = thread.wrapping_add(u64::from(constant!(OFFSETS.task_children)));
        let next = if child == NO_CHILD { word(list) } else { field(child, constant!(OFFSETS.task_sibling)) };
        if next != list {
            let sibling = next.wrapping_sub(u64::from(constant!(OFFSETS.task_sibling)));
            if parent_of(sibling) != thread {
                break;
            }
            children += 1;
            child = sibling;
            continue;
        }
        let next = field(thread, constant!(OFFSETS.task_thread));
        if next == head {
            break;
        }
        (thread, child) = (next.wrapping_sub(u64::from(constant!(OFFSETS.task_thread))), NO_CHILD);
        if leader_of(thread) != leader {
            break;
        }
    }
    turns.end();
    children
}
