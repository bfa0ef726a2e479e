//! Taking the samples: at each expiry of the timer, the workers of each supervisor whose sample is due are measured and compared
//! with their limits.

use aya_ebpf::bindings::bpf_timer;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::{
    bpf_ringbuf_output, bpf_timer_init, bpf_timer_set_callback, bpf_timer_start,
};
use core::ffi::c_void;
use master_process_common::{ADOPTED, Account, Control, EVENTS_SHIFT, NONE, high_memory, state};

use crate::kernel::{Turns, current_tgid, field, identify, process};
use crate::maps::{
    CONTROL, Current, EVENTS, TICKER, Ticker, account, constant, control, control_at, listener, set_current,
    ticker, timer,
};
use crate::tree;
use crate::word::{get, set};

/// The most accounts of a supervisor that are looked at in one expiry, and the number of steps after which no further account
/// of any supervisor is: the kernel runs nothing else on this CPU meanwhile. A worker that is idle takes one step, a thread or process that is measured another
/// one, and to find a process takes [`FIND_STEPS`] more.
const ACCOUNTS_AT_ONCE: u64 = 8192;
const STEPS_AT_ONCE: u64 = 8192;
const FIND_STEPS: u64 = 15;

/// The time until unfinished samples continue, and until a supervisor that has come is looked at, in nanoseconds.
const PAUSE: u64 = 1_000_000;

/// `BPF_F_TIMER_ABS`: the time of expiry is absolute.
const TIMER_ABS: u64 = 1;

/// `-EPROTO`: the offsets are not those of this kernel.
const MISFIT: i64 = -71;

/// The clock of the timer: `CLOCK_MONOTONIC`.
const MONOTONIC: u64 = 1;

/// The most listeners that are checked at a sample.
const MOST_LISTENERS: u64 = 4096;

/// The number of adopted processes that are added to a worker.
const MOST_ADOPTED: u64 = 1024;

/// `-EBUSY`: another supervisor has initialized the timer.
const BUSY: i64 = -16;

/// A time that does not come.
const NEVER: u64 = u64::MAX;

/// Identifies the process in [`Control::translated`] of the supervisor in this row; if there is none in it, has the timer take
/// the supervisor's samples, and sets [`Control::started`].
#[inline(always)]
pub(crate) fn run(row: u32) {
    let Some(control) = control_at(row) else { return };
    let pid = get(&control.translated);
    if pid != 0 {
        translate(control, pid);
    } else {
        let result = try_start(control, row).unwrap_or(MISFIT);
        set(&control.started, if result == 0 { 1 } else { result as u64 });
    }
}

#[inline(always)]
fn try_start(control: &Control, row: u32) -> Option<i64> {
    let supervisor = u64::from(current_tgid());
    let leader = process(supervisor)?;
    if !tree::describes(leader, supervisor) {
        return Some(MISFIT);
    }
    set(&control.supervisor, supervisor);
    set(&control.supervisor_mm, field(leader, constant!(OFFSETS.task_mm)));
    let (timer, ticker) = (timer()?, ticker()?);
    // SAFETY: the timer is in a value of this map, as the kernel demands, and the callback has the kernel's signature.
    unsafe {
        let started = bpf_timer_init(timer, (&raw const TICKER).cast_mut().cast(), MONOTONIC);
        if started != 0 && started != BUSY {
            return Some(started);
        }
        let callback: unsafe extern "C" fn(*mut c_void, *mut u32, *mut bpf_timer) -> i64 = expired;
        let set = bpf_timer_set_callback(timer, callback as *mut c_void);
        if set != 0 {
            return Some(set);
        }
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    set(&control.due, next_sample(control, now));
    // In this order: a callback that runs meanwhile and has passed this row finds another number than before, or has started the
    // timer before it is started here.
    set(&ticker.newcomer, now << ROW_BITS | u64::from(row));
    Some(start(timer, now + PAUSE))
}

/// The bits of a number of a row.
const ROW_BITS: u64 = 10;

/// Starts the timer, or has it expire at another time.
#[inline(always)]
fn start(timer: *mut bpf_timer, at: u64) -> i64 {
    // SAFETY: the timer was initialized before.
    unsafe { bpf_timer_start(timer, at, TIMER_ABS) }
}

/// The timer has expired. The name is not mangled: it would differ from folder to folder, and so would the object.
///
/// All supervisors share one timer, because the kernel does not wait for the memory of a timer: where all slabs of its size are full,
/// there is none. Of 500 supervisors that started at once, 100 to 200 had none.
#[unsafe(no_mangle)]
unsafe extern "C" fn expired(_map: *mut c_void, _key: *mut u32, timer: *mut bpf_timer) -> i64 {
    let Some(ticker) = ticker() else { return 0 };
    let newcomer = get(&ticker.newcomer);
    set(&ticker.steps, 0);
    let rows = constant!(PARAMS.rows);
    // Who had to wait comes first.
    let from = get(&ticker.from);
    let mut earliest = NEVER;
    let mut turns = Turns::new();
    turns.start(u64::from(rows));
    while let Some(turn) = turns.next() {
        let row = (from + turn) & u64::from(rows.wrapping_sub(1));
        if CONTROL.of(row as u32).is_some() {
            let due = sample_row(row);
            if due < earliest {
                earliest = due;
            }
        }
    }
    turns.end();
    if earliest != NEVER {
        // SAFETY: a helper without arguments.
        let soon = unsafe { bpf_ktime_get_ns() } + PAUSE;
        start(timer, if earliest < soon { soon } else { earliest });
    }
    if get(&ticker.newcomer) != newcomer {
        // SAFETY: a helper without arguments.
        let soon = unsafe { bpf_ktime_get_ns() } + PAUSE;
        start(timer, soon);
    }
    0
}

/// Takes the sample of the supervisor in a row if it is due, and returns when the next one is.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sample_row(row: u64) -> u64 {
    let (Some(ticker), Some(control)) = (ticker(), control_at(row as u32)) else { return NEVER };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let due = get(&control.due);
    if due == NONE {
        return NEVER;
    }
    if due > now {
        return due;
    }
    if get(&ticker.steps) > STEPS_AT_ONCE {
        return due;
    }
    set(&ticker.from, row);
    let supervisor = get(&control.supervisor);
    let mm = mm_of(supervisor);
    // The supervisor may have been killed.
    let due = if mm != 0 && mm == get(&control.supervisor_mm) {
        set_current(Current { row, supervisor, tree: get(&control.tree) });
        sample(control, ticker, row as u32);
        next_sample(control, now)
    } else {
        NONE
    };
    set(&control.due, due);
    if due == NONE { NEVER } else { due }
}

/// The address of the memory map of the process with this pid in the initial PID namespace; 0 if there is none.
#[inline(always)]
fn mm_of(pid: u64) -> u64 {
    match process(pid) {
        Some(leader) => field(leader, constant!(OFFSETS.task_mm)),
        None => 0,
    }
}

/// When the next sample, or the rest of this one, is to be taken; [`NONE`] if none is. Samples are taken at multiples of the
/// interval, so that many supervisors wake a CPU once.
#[inline(always)]
fn next_sample(control: &Control, now: u64) -> u64 {
    let interval = get(&control.interval);
    if get(&control.cursor) != NONE {
        now
    } else if interval == 0 {
        NONE
    } else {
        (now / interval + 1) * interval
    }
}

#[inline(always)]
fn sample(control: &Control, ticker: &Ticker, row: u32) {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let highest = get(&control.highest);
    let cursor = get(&control.cursor);
    // Accounts of adopted processes are above those of workers, and are added to these: the last ones come first.
    let from = if cursor == NONE { highest } else { cursor };
    let (mut events, mut steps, mut next) = (0u64, get(&ticker.steps), NONE);
    set(&control.begun, now);
    if cursor == NONE {
        set(&control.known, 0);
    }
    let mut turns = Turns::new();
    turns.start(ACCOUNTS_AT_ONCE + 1);
    while let Some(turn) = turns.next() {
        let number = from.wrapping_sub(turn);
        // The subtraction wraps where the accounts have ended.
        if number == NONE || number > from {
            next = NONE;
            break;
        }
        next = number;
        if turn == ACCOUNTS_AT_ONCE || steps > STEPS_AT_ONCE {
            break;
        }
        // The sum is of what functions return, and so no number that the verifier knows: it would follow each value.
        let idle = sample_idle(number);
        steps += idle;
        if idle == 0 {
            steps += 1 + measure_account(number);
            events += judge_account(number);
        }
    }
    turns.end();
    set(&control.cursor, next);
    set(&ticker.steps, steps + 1);
    if next == NONE {
        let mut closed = 0;
        turns.start(MOST_LISTENERS);
        while let Some(turn) = turns.next() {
            if turn >= get(&control.listeners) {
                break;
            }
            closed += check_listener(turn);
        }
        turns.end();
        set(&control.closed, get(&control.closed) + closed);
        events += closed;
        events += count_unknown_children(get(&control.supervisor));
        set(&control.samples, get(&control.samples) + 1);
    }
    if events != 0 {
        if let Some(ring) = EVENTS.of(row) {
            let record = (&raw mut events).cast();
            // SAFETY: a ring buffer, and a record of this length. If there is no room, the supervisor is awake, or will be by an
            // earlier record.
            let _no_room = unsafe { bpf_ringbuf_output(ring, record, size_of::<u64>() as u64, 0) };
        }
    }
    // SAFETY: a helper without arguments.
    let end = unsafe { bpf_ktime_get_ns() };
    set(&control.run_time, get(&control.run_time) + (end - now));
}

/// Takes the sample of a worker that has not run since it was measured, and returns whether it is one: 1 or 0.
///
/// Such a worker has used no CPU time, and has neither allocated nor freed memory, started a thread or a child, or called
/// `exec`. So this reads one line of its memory and writes one of its account; to measure it takes some twenty, which are
/// in no cache any more after an interval of seconds. The thread may be gone: then it is another one's memory that is read, or
/// no memory, and compared with what the thread had used. The supervisor learns that a worker has ended by other means.
///
/// This function and those below are verified once, on their own: inlined into the loop that calls them, they are too
/// much for the verifier. The loader describes such functions as taking and returning one number.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sample_idle(number: u64) -> u64 {
    let (Some(control), Some(worker)) = (control(), account(number)) else { return 0 };
    let thread = get(&worker.only_thread);
    if thread == 0
        || get(&worker.process) == 0
        || get(&worker.next) != NONE
        // Within its limits, and not to be reported.
        || get(&worker.state) & 0xffff_ffff != 0
        || (number + get(&control.samples)) & get(&control.idle_samples) == 0
        || field(thread, constant!(OFFSETS.task_runtime)) != get(&worker.thread_cpu)
    {
        return 0;
    }
    set(&control.known, get(&control.known) + 1);
    let (before, now) = (get(&worker.sampled_at), get(&control.begun));
    set(&worker.sampled_at, 0);
    set(&worker.span, now.wrapping_sub(before));
    set(&worker.used, 0);
    set(&worker.sampled_at, now);
    1
}

/// Measures the process of an account, and returns the number of steps that this took.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn measure_account(number: u64) -> u64 {
    let (Some(control), Some(account)) = (control(), account(number)) else { return 0 };
    let owner = get(&account.process);
    if owner == 0 {
        return 0;
    }
    // Every worker and every adopted process is a child of the supervisor: another parent's has only the same pid.
    let leader = match process(owner & 0xffff_ffff) {
        Some(leader) if tree::tgid(tree::parent_of(leader)) == get(&control.supervisor) => leader,
        _ => {
            set(&account.tree_memory, 0);
            if owner & ADOPTED != 0 {
                // The supervisor frees the account when it needs one.
                set(&account.process, 0);
            }
            return 1;
        }
    };
    set(&control.known, get(&control.known) + 1);
    // Before the rest is read: if the thread runs meanwhile, it has another one at the next sample.
    let thread_cpu = field(leader, constant!(OFFSETS.task_runtime));
    let found = tree::measure(leader);
    // The supervisor may have released the account meanwhile.
    if get(&account.process) != owner {
        return FIND_STEPS + found.steps;
    }
    let is_alone = found.is_whole && found.steps == 0 && owner & ADOPTED == 0;
    set(&account.only_thread, if is_alone { leader } else { 0 });
    set(&account.thread_cpu, thread_cpu);
    if found.is_whole {
        set(&account.tree_cpu, found.cpu);
        set(&account.tree_memory, found.memory);
        if found.peak > get(&account.peak) {
            set(&account.peak, found.peak);
        }
    } else {
        // The last values stay.
        set(&control.unmeasured, get(&control.unmeasured) + 1);
    }
    FIND_STEPS + found.steps
}

/// Adds what the processes of a worker use, and compares it with the limits. Returns the number of events.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_account(number: u64) -> u64 {
    let Some(worker) = account(number) else { return 0 };
    let owner = get(&worker.process);
    if owner == 0 || owner & ADOPTED != 0 {
        return 0;
    }
    let (mut cpu, mut memory) = (get(&worker.tree_cpu), get(&worker.tree_memory));
    let mut next = get(&worker.next);
    let mut turns = Turns::new();
    turns.start(MOST_ADOPTED);
    while turns.next().is_some() {
        if next == NONE {
            break;
        }
        let Some(adopted) = account(next) else { break };
        cpu += get(&adopted.tree_cpu);
        memory += get(&adopted.tree_memory);
        next = get(&adopted.next);
    }
    turns.end();

    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let used = used_since(worker, cpu);
    let before = get(&worker.sampled_at);
    let span = if before == 0 { 0 } else { now - before };
    // A reader that finds 0, or another time afterwards, reads again.
    set(&worker.sampled_at, 0);
    set(&worker.span, span);
    set(&worker.used, used);
    set(&worker.cpu_ns, get(&worker.cpu_ns) + used);
    set(&worker.memory, memory);
    if memory > get(&worker.peak) {
        set(&worker.peak, memory);
    }
    let (last, found) = (get(&worker.state), compare(number));
    let fell = last & state::FELL;
    let is_event = found & (state::OVER_CPU | state::OVER_MEMORY) != 0 || found | fell != last & 0xffff_ffff;
    let count = (last >> EVENTS_SHIFT) + u64::from(is_event);
    set(&worker.state, count << EVENTS_SHIFT | fell | found);
    set(&worker.sampled_at, now);
    u64::from(is_event)
}

/// The CPU time since the last sample. The sum falls for one sample when a thread ends in the middle of it, and for good
/// when a descendant ends that its parent does not wait for.
#[inline(always)]
fn used_since(worker: &Account, cpu: u64) -> u64 {
    let (summed, last) = (get(&worker.summed), get(&worker.state));
    if cpu >= summed {
        set(&worker.summed, cpu);
        set(&worker.state, last & !state::FELL);
        return cpu - summed;
    }
    if last & state::FELL == 0 {
        set(&worker.state, last | state::FELL);
    } else {
        set(&worker.summed, cpu);
        set(&worker.state, last & !state::FELL);
    }
    0
}

/// The state of a worker by its limits, at the sample that is in its account.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn compare(number: u64) -> u64 {
    let Some(worker) = account(number) else { return 0 };
    let (memory, used, span) = (get(&worker.memory), get(&worker.used), get(&worker.span));
    let mut found = 0;
    let most = get(&worker.max_cpu);
    // In microseconds, so that the products fit 64 bits.
    if most != 0 && span != 0 && used / 1000 * 1_000_000 > most * (span / 1000) {
        found |= state::OVER_CPU;
    }
    let most = get(&worker.max_memory);
    if most != 0 && memory > most {
        found |= state::OVER_MEMORY;
    }
    if most != 0 && memory > high_memory(most) {
        found |= state::HIGH_MEMORY;
    }
    found
}

/// Counts the children of the supervisor that have no account: orphans of workers, which it has adopted. More of them than
/// before are an event.
///
/// A new child is the last one of its list. While that is the same, and as many as before have an account, no child is new,
/// and the list need not be walked: it has a line or two of each child.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_unknown_children(supervisor: u64) -> u64 {
    let (Some(control), Some(leader)) = (control(), process(supervisor)) else { return 0 };
    let (known, youngest) = (get(&control.known), tree::youngest_child(leader));
    let pid = tree::tgid(youngest);
    let [last, last_pid] = &control.youngest;
    if youngest != NONE
        && youngest == get(last)
        && pid == get(last_pid)
        && known == get(&control.counted)
        && get(&control.samples) & get(&control.idle_samples) != 0
    {
        return 0;
    }
    set(last, youngest);
    set(last_pid, pid);
    set(&control.counted, known);
    let children = tree::count_children(leader);
    let unknown_children = if children > known { children - known } else { 0 };
    let are_more = unknown_children > get(&control.unknown_children);
    set(&control.unknown_children, unknown_children);
    u64::from(are_more)
}

/// Identifies a process, as [`Control::translated`] and [`Control::filters`] say.
#[inline(always)]
fn translate(control: &Control, pid: u64) {
    let (pid, mut filter) = identify(pid);
    set(&control.translated, pid);
    for place in &control.filters {
        set(place, filter);
        if filter != 0 {
            filter = field(filter, constant!(OFFSETS.filter_before));
        }
    }
}

/// Checks a descriptor of a listener, and returns 1 if it has another file than at the last sample, or none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn check_listener(number: u64) -> u64 {
    let Some(listener) = listener(number) else { return 0 };
    let place = get(&listener.place);
    if place == 0 {
        return 0;
    }
    let file = match process(place >> 32) {
        Some(leader) => tree::file(leader, place & 0xffff_ffff),
        None => tree::NO_FILE,
    };
    let before = get(&listener.file);
    if file == before {
        return 0;
    }
    set(&listener.file, file);
    u64::from(before != 0)
}
