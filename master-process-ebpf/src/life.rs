//! Which processes are watched: from their fork until the kernel frees them.

use core::ffi::c_void;

use master_process_common::{NONE, Process};

use crate::account::index_of;
use crate::kernel::{Task, current_in_namespace, current_tgid, read, signal_struct, tgid};
use crate::maps::{CONTROL, FREE_INDEXES, TARGETS, constant, first_shared_index, process};
use crate::word::{add, get, set};

/// Watches the announced child of the supervisor, and the children of watched processes. The child does not run yet.
#[inline(always)]
pub(crate) fn fork(parent: Task, child: Task) -> Option<()> {
    let number = tgid(child)?;
    // A thread: its process is already watched, or is not.
    if number == current_tgid() {
        return None;
    }
    // The kernel can reuse a pid before the entry of its previous process was released.
    let stale = index_of(number);
    if stale != NONE {
        release(number, stale);
    }
    let signal = signal_struct(child)?;
    let (index, worker) = assign_index()?;
    let process = process(index)?;
    set(&process.tgid, u64::from(number));
    set(&process.ended, 0);
    set(&process.rss, 0);
    set(&process.signal, signal);
    set(&process.borrowed, shared_memory(parent, child));
    set(&process.worker, worker);
    let control = CONTROL.get(0)?;
    if index > get(&control.highest) {
        set(&control.highest, index);
    }
    if TARGETS.insert(number, index as u32, 0).is_err() {
        add(&control.dropped, 1);
        free_index(index, process);
    }
    Some(())
}

/// The index for a child of the running process, and the account that it is charged to.
#[inline(always)]
fn assign_index() -> Option<(u64, u64)> {
    let control = CONTROL.get(0)?;
    let armed = get(&control.armed);
    if armed != NONE && current_in_namespace() == Some(constant!(PARAMS.supervisor)) {
        set(&control.armed, NONE);
        return Some((armed, armed));
    }
    if constant!(PARAMS.tree) == 0 {
        return None;
    }
    let parent = index_of(current_tgid());
    if parent == NONE {
        return None;
    }
    let worker = get(&process(parent)?.worker);
    // The worker has ended: its remaining processes are not charged, and neither are their children.
    if worker == NONE {
        return None;
    }
    match FREE_INDEXES.pop() {
        Ok(Some(index)) => Some((u64::from(index), worker)),
        Ok(None) | Err(_) => {
            add(&control.dropped, 1);
            None
        }
    }
}

/// The address of the `mm_struct` that parent and child share, as after `vfork`, or 0.
#[inline(always)]
fn shared_memory(parent: Task, child: Task) -> u64 {
    let of = |task| read::<u64>(task, constant!(OFFSETS.task_mm));
    match (of(parent), of(child)) {
        (Some(parent), Some(child)) if parent == child => child,
        _ => 0,
    }
}

/// Marks a process as ended when its last thread exits. It still runs, to free its memory, and is charged for that.
#[inline(always)]
pub(crate) fn exit(task: Task) -> Option<()> {
    let index = index_of(tgid(task)?);
    if index == NONE {
        return None;
    }
    let signal = signal_struct(task)? as *const c_void;
    let live: i32 = read(signal, constant!(OFFSETS.signal_live))?;
    if live == 0 {
        set(&process(index)?.ended, 1);
    }
    Some(())
}

/// Releases a process that no longer runs on any CPU. Its exit is too early, because it still runs then; so is the time
/// when it is reaped, which can come before its last switch.
#[inline(always)]
pub(crate) fn free(task: Task) -> Option<()> {
    let number = tgid(task)?;
    let index = index_of(number);
    if index == NONE {
        return None;
    }
    let signal = signal_struct(task)?;
    // The kernel may have given the pid to another process in the meantime.
    if get(&process(index)?.signal) != signal {
        return None;
    }
    // Not 0 for a thread, and for the first thread of a process in which another thread called `exec`.
    let threads: i32 = read(signal as *const c_void, constant!(OFFSETS.signal_nr_threads))?;
    if threads == 0 {
        release(number, index);
    }
    Some(())
}

#[inline(always)]
fn release(number: u32, index: u64) -> Option<()> {
    let process = process(index)?;
    // If this fails, another CPU has removed the entry and freed the index.
    if TARGETS.remove(number).is_ok() {
        free_index(index, process);
    }
    Some(())
}

/// Clears an entry and frees its index. The supervisor assigns the indexes of workers' own processes: it sees by the pid
/// that one is free.
#[inline(always)]
fn free_index(index: u64, process: &Process) {
    set(&process.worker, NONE);
    set(&process.rss, 0);
    set(&process.signal, 0);
    set(&process.tgid, 0);
    if index >= first_shared_index() {
        // The stack has room for every index.
        let _never_full = FREE_INDEXES.push(index as u32, 0);
    }
}
