//! Which signal ended a worker, and who sent it.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_uid_gid};
use master_process_common::{Account, NONE};

use crate::account::index_of;
use crate::kernel::{Task, current_in_namespace, current_tgid, read, tgid};
use crate::maps::{account, constant, first_shared_index, process};
use crate::word::{get, set};

/// Signals whose default action does not end the process: SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG,
/// SIGWINCH; as bits, the lowest for signal 0.
const HARMLESS: u64 = 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 21 | 1 << 22 | 1 << 23 | 1 << 28;

/// The offset of `siginfo_t.si_code`: the third int on every architecture but MIPS.
const SI_CODE: u32 = 8;

/// Passed instead of a siginfo: the running process is the sender.
const SEND_SIG_NOINFO: u64 = 0;
/// Passed instead of a siginfo: the kernel is the sender.
const SEND_SIG_PRIV: u64 = 1;

/// The codes for which the running process is the sender: SI_USER, SI_QUEUE and SI_TKILL. The signals of timers and
/// descriptors are sent while an arbitrary process runs.
const BY_A_PROCESS: [i32; 3] = [0, -1, -6];

/// Records the sender of a fatal signal to a worker's own process.
#[inline(always)]
pub(crate) fn signal(number: i32, info: u64, target: Task) -> Option<()> {
    if !(1..64).contains(&number) || HARMLESS & (1 << number) != 0 {
        return None;
    }
    let target = tgid(target)?;
    let account = account_of(target)?;
    // A worker that calls `abort` is its own sender; some signals of the kernel name the worker as well.
    if target == current_tgid() || !is_by_a_process(info)? {
        // The signal that was recorded before is not the one that ends the worker.
        set(&account.signal, 0);
        return None;
    }
    let comm = bpf_get_current_comm().unwrap_or_default();
    let [first, second] = halves(comm);
    // The fields of two senders at the same moment can mix. Each of them sent a fatal signal.
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

/// Records that the OOM killer chose a worker.
#[inline(always)]
pub(crate) fn victim(task_or_number: u64) -> Option<()> {
    let number = match constant!(OFFSETS.victim_is_task) {
        // The id of a thread. It is the pid of the process, unless the first thread has ended.
        0 => task_or_number as u32,
        _ => tgid(task_or_number as Task)?,
    };
    set(&account_of(number)?.oom, 1);
    Some(())
}

/// The account of a worker's own process; `None` for descendants.
#[inline(always)]
fn account_of(tgid: u32) -> Option<&'static Account> {
    let index = index_of(tgid);
    if index == NONE || index >= first_shared_index() {
        return None;
    }
    let worker = get(&process(index)?.worker);
    if worker == NONE {
        return None;
    }
    account(worker)
}
