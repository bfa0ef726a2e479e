//! Reading the kernel's own structures.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_pidns_info;
use aya_ebpf::helpers::generated::bpf_get_ns_current_pid_tgid;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel};

use crate::maps::constant;

/// A `task_struct`, known by its address only.
pub(crate) type Task = *const c_void;

/// What lies `offset` bytes into a structure of the kernel's.
#[inline(always)]
pub(crate) fn read<T>(structure: *const c_void, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and fails where nothing is mapped; T is a plain number everywhere here.
    unsafe { bpf_probe_read_kernel(structure.wrapping_byte_add(offset as usize).cast()) }.ok()
}

/// The same by a plain load, a tenth of the price: of a structure whose type the verifier knows, which has to agree
/// that there is such a field. Where nothing is mapped, it reads 0.
#[inline(always)]
pub(crate) fn peek<T>(structure: *const c_void, offset: u32) -> T {
    // SAFETY: the verifier lets nothing pass but a load of a field of a structure of the kernel's, and the kernel makes
    // such a load one that cannot fail; T is a plain number everywhere here.
    unsafe { structure.wrapping_byte_add(offset as usize).cast::<T>().read_volatile() }
}

/// The number of the process that a task belongs to, as the first PID namespace has it.
#[inline(always)]
pub(crate) fn tgid(task: Task) -> Option<u32> {
    read(task, constant!(LAYOUT.task_tgid))
}

/// The address of the `signal_struct` of the process that a task belongs to.
#[inline(always)]
pub(crate) fn signal_struct(task: Task) -> Option<u64> {
    read(task, constant!(LAYOUT.task_signal))
}

/// The running process's number, as the first PID namespace has it.
#[inline(always)]
pub(crate) fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The running process's number, as the supervisor's PID namespace has it; `None` where it lives in another.
#[inline(always)]
pub(crate) fn current_in_namespace() -> Option<u32> {
    let [device, inode] = constant!(SETUP.namespace);
    let mut ids = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: the structure is ours, and its size the one that the helper asks for.
    let result =
        unsafe { bpf_get_ns_current_pid_tgid(device, inode, &mut ids, size_of::<bpf_pidns_info>() as u32) };
    (result == 0).then_some(ids.tgid)
}
