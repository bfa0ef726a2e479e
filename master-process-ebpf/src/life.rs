//! Processes come and go.

use core::ffi::c_void;

use master_process_common::{NONE, Process};

use crate::account::place_of;
use crate::kernel::{Task, current_in_namespace, current_tgid, read, signal_struct, tgid};
use crate::maps::{CONTROL, PLACES, TARGETS, constant, first_shared_place, process};
use crate::word::{add, get, set};

/// Watches the child of the supervisor that was announced, and those of watched processes. The child does not run yet.
#[inline(always)]
pub(crate) fn fork(parent: Task, child: Task) -> Option<()> {
    let number = tgid(child)?;
    // A thread is of the process that is watched already, or not.
    if number == current_tgid() {
        return None;
    }
    // A number can come back before its last owner was let go of.
    let stale = place_of(number);
    if stale != NONE {
        release(number, stale);
    }
    let signal = signal_struct(child)?;
    let (place, worker) = whose()?;
    let process = process(place)?;
    set(&process.tgid, u64::from(number));
    set(&process.ended, 0);
    set(&process.rss, 0);
    set(&process.signal, signal);
    set(&process.borrowed, shared_memory(parent, child));
    set(&process.worker, worker);
    let control = CONTROL.get(0)?;
    if place > get(&control.highest) {
        set(&control.highest, place);
    }
    if TARGETS.insert(number, place as u32, 0).is_err() {
        add(&control.turned_away, 1);
        give_back(place, process);
    }
    Some(())
}

/// The place for a child of the running process, and the worker that it belongs to.
#[inline(always)]
fn whose() -> Option<(u64, u64)> {
    let control = CONTROL.get(0)?;
    let armed = get(&control.armed);
    if armed != NONE && current_in_namespace() == Some(constant!(SETUP.supervisor)) {
        set(&control.armed, NONE);
        return Some((armed, armed));
    }
    if constant!(SETUP.tree) == 0 {
        return None;
    }
    let parent = place_of(current_tgid());
    if parent == NONE {
        return None;
    }
    let worker = get(&process(parent)?.worker);
    // What a dead worker has left behind is nobody's, and so are its children.
    if worker == NONE {
        return None;
    }
    match PLACES.pop() {
        Ok(Some(place)) => Some((u64::from(place), worker)),
        Ok(None) | Err(_) => {
            add(&control.turned_away, 1);
            None
        }
    }
}

/// The address of the memory that parent and child are both in, as after `vfork`, or 0.
#[inline(always)]
fn shared_memory(parent: Task, child: Task) -> u64 {
    let of = |task| read::<u64>(task, constant!(LAYOUT.task_mm));
    match (of(parent), of(child)) {
        (Some(parent), Some(child)) if parent == child => child,
        _ => 0,
    }
}

/// With its last thread, a process has no memory any more. It still runs, freeing it, and is still charged for that.
#[inline(always)]
pub(crate) fn exit(task: Task) -> Option<()> {
    let place = place_of(tgid(task)?);
    if place == NONE {
        return None;
    }
    let signal = signal_struct(task)? as *const c_void;
    let live: i32 = read(signal, constant!(LAYOUT.signal_live))?;
    if live == 0 {
        set(&process(place)?.ended, 1);
    }
    Some(())
}

/// Lets go of a process that runs nowhere any more: neither when it ends, which it does running, nor when it is
/// reaped, which can be before it has stopped.
#[inline(always)]
pub(crate) fn free(task: Task) -> Option<()> {
    let number = tgid(task)?;
    let place = place_of(number);
    if place == NONE {
        return None;
    }
    let signal = signal_struct(task)?;
    // The number can have been given to another process in the meantime.
    if get(&process(place)?.signal) != signal {
        return None;
    }
    // A thread, or the first thread of a process in which another one called `exec`.
    let threads: i32 = read(signal as *const c_void, constant!(LAYOUT.signal_nr_threads))?;
    if threads == 0 {
        release(number, place);
    }
    Some(())
}

#[inline(always)]
fn release(number: u32, place: u64) -> Option<()> {
    let process = process(place)?;
    // Whoever fails here finds that somebody else was faster, and has given the place back.
    if TARGETS.remove(number).is_ok() {
        give_back(place, process);
    }
    Some(())
}

/// Clears a place. A worker's own is the user side's to give out again, which sees by its number that it is free.
#[inline(always)]
fn give_back(place: u64, process: &Process) {
    set(&process.worker, NONE);
    set(&process.rss, 0);
    set(&process.signal, 0);
    set(&process.tgid, 0);
    if place >= first_shared_place() {
        // There is room for every place, so it cannot be full.
        let _never_full = PLACES.push(place as u32, 0);
    }
}
