//! Which signal ended a worker, and who sent it.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_get_current_uid_gid;
use aya_ebpf::helpers::generated::bpf_get_current_comm;

use crate::kernel::{Task, current_in_namespace, current_tgid, read, tgid};
use crate::maps::{DEATHS, constant};

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
    let death = DEATHS.get_ptr_mut(target)?;
    // SAFETY: the kernel frees an entry of the map only after the end of this program. The fields of two senders at the
    // same moment can mix; each of them sent a fatal signal.
    let death = unsafe { &mut *death };
    // A worker that calls `abort` is its own sender; some signals of the kernel name the worker as well.
    if target == current_tgid() || !is_by_a_process(info)? {
        // The signal that was recorded before is not the one that ends the worker.
        death.signal = 0;
        return None;
    }
    let comm = &raw mut death.comm;
    // SAFETY: the helper writes as many bytes as the field has.
    let _cannot_fail = unsafe { bpf_get_current_comm(comm.cast(), size_of_val(&death.comm) as u32) };
    death.sender = current_in_namespace(death.namespace).unwrap_or(0);
    death.uid = bpf_get_current_uid_gid() as u32;
    death.signal = number as u32;
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

/// Records that the OOM killer chose a worker.
#[inline(always)]
pub(crate) fn victim(task_or_number: u64) -> Option<()> {
    let number = match constant!(OFFSETS.victim_is_task) {
        // The id of a thread. It is the pid of the process, unless the first thread has ended.
        0 => task_or_number as u32,
        _ => tgid(task_or_number as Task)?,
    };
    let death = DEATHS.get_ptr_mut(number)?;
    // SAFETY: as above.
    unsafe { (*death).oom = 1 };
    Some(())
}
