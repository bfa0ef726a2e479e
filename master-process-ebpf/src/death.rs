//! What a worker died of.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_uid_gid};
use master_process_common::{Account, NONE};

use crate::account::place_of;
use crate::kernel::{Task, current_in_namespace, current_tgid, read, tgid};
use crate::maps::{account, constant, first_shared_place, process};
use crate::word::{get, set};

/// Signals whose default is not the end of the process: SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG,
/// SIGWINCH; as bits, the lowest for signal 0.
const HARMLESS: u64 = 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 21 | 1 << 22 | 1 << 23 | 1 << 28;

/// `siginfo_t.si_code`, the third int of it on every machine but one (MIPS).
const SI_CODE: u32 = 8;

/// In place of a siginfo: the running process sends it, and has nothing else to say.
const SEND_SIG_NOINFO: u64 = 0;
/// In place of a siginfo: the kernel sends it.
const SEND_SIG_PRIV: u64 = 1;

/// The only codes that name the running process as the sender: SI_USER, SI_QUEUE and SI_TKILL. Timers and descriptors
/// send signals in the name of whoever happens to run.
const BY_A_PROCESS: [i32; 3] = [0, -1, -6];

/// Notes who sends a worker what can end it.
#[inline(always)]
pub(crate) fn signal(number: i32, info: u64, target: Task) -> Option<()> {
    if !(1..64).contains(&number) || HARMLESS & (1 << number) != 0 {
        return None;
    }
    let target = tgid(target)?;
    let account = account_of(target)?;
    // A worker that calls `abort` kills itself; so does the kernel in its name.
    if target == current_tgid() || !is_by_a_process(info)? {
        // What ends it then is not what somebody sent before.
        set(&account.signal, 0);
        return None;
    }
    let comm = bpf_get_current_comm().unwrap_or_default();
    let [first, second] = halves(comm);
    // Two senders at the very same moment can get mixed up; either is as true as the other.
    set(&account.sender, u64::from(current_in_namespace().unwrap_or(0)));
    set(&account.uid, bpf_get_current_uid_gid() & 0xffff_ffff);
    set(&account.comm[0], first);
    set(&account.comm[1], second);
    set(&account.signal, number as u64);
    Some(())
}

#[inline(always)]
fn is_by_a_process(info: u64) -> Option<bool> {
    if info == SEND_SIG_NOINFO {
        return Some(true);
    }
    if info == SEND_SIG_PRIV {
        return Some(false);
    }
    let code: i32 = read(info as *const c_void, SI_CODE)?;
    Some(code == BY_A_PROCESS[0] || code == BY_A_PROCESS[1] || code == BY_A_PROCESS[2])
}

#[inline(always)]
fn halves(comm: [u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = comm;
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
}

/// Notes that the kernel chose a worker when memory ran out.
#[inline(always)]
pub(crate) fn victim(task_or_number: u64) -> Option<()> {
    let number = match constant!(LAYOUT.victim_is_task) {
        // The number of a thread, which is the process's unless the first thread has ended.
        0 => task_or_number as u32,
        _ => tgid(task_or_number as Task)?,
    };
    set(&account_of(number)?.oom, 1);
    Some(())
}

/// The account of a worker's own process; a descendant has none.
#[inline(always)]
fn account_of(tgid: u32) -> Option<&'static Account> {
    let place = place_of(tgid);
    if place == NONE || place >= first_shared_place() {
        return None;
    }
    let worker = get(&process(place)?.worker);
    if worker == NONE {
        return None;
    }
    account(worker)
}
