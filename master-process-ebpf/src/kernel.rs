//! Reading the kernel's structures.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_pidns_info;
use aya_ebpf::helpers::generated::bpf_get_ns_current_pid_tgid;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel};

use crate::maps::constant;

/// The address of a `task_struct`.
pub(crate) type Task = *const c_void;

/// Reads the field at `offset` of a kernel structure, with a helper.
#[inline(always)]
pub(crate) fn read<T>(structure: *const c_void, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and fails where nothing is mapped; T is a plain number everywhere here.
    unsafe { bpf_probe_read_kernel(structure.wrapping_byte_add(offset as usize).cast()) }.ok()
}

/// Reads it with a plain load, at a tenth of the cost. The verifier must know the type of the structure, and accepts only
/// offsets of its fields. If nothing is mapped there, the load reads 0.
#[inline(always)]
pub(crate) fn peek<T>(structure: *const c_void, offset: u32) -> T {
    // SAFETY: the verifier accepts only the load of a field of a kernel structure, and the kernel makes such a load one
    // that cannot fail; T is a plain number everywhere here.
    unsafe { structure.wrapping_byte_add(offset as usize).cast::<T>().read_volatile() }
}

/// The pid of a task's process in the initial PID namespace.
#[inline(always)]
pub(crate) fn tgid(task: Task) -> Option<u32> {
    read(task, constant!(OFFSETS.task_tgid))
}

/// The address of the `signal_struct` of the process that a task belongs to.
#[inline(always)]
pub(crate) fn signal_struct(task: Task) -> Option<u64> {
    read(task, constant!(OFFSETS.task_signal))
}

/// The pid of the running process in the initial PID namespace.
#[inline(always)]
pub(crate) fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The pid of the running process in the supervisor's PID namespace; `None` if it is outside that namespace.
#[inline(always)]
pub(crate) fn current_in_namespace() -> Option<u32> {
    let [device, inode] = constant!(PARAMS.namespace);
    let mut ids = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: the structure is on this stack, and its size is the one that the helper requires.
    let result =
        unsafe { bpf_get_ns_current_pid_tgid(device, inode, &mut ids, size_of::<bpf_pidns_info>() as u32) };
    (result == 0).then_some(ids.tgid)
}
