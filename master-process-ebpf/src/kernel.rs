//! Reading the kernel's structures, and calling its functions.

use core::ffi::c_void;
use core::mem::{MaybeUninit, transmute};

use aya_ebpf::bindings::bpf_pidns_info;
use aya_ebpf::helpers::generated::bpf_get_ns_current_pid_tgid;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel};
use master_process_common::kfunc;

use crate::maps::constant;

/// The address of a `task_struct`.
pub(crate) type Task = *const c_void;

/// Reads the field at `offset` of a kernel structure, with a helper that fails where nothing is mapped.
#[inline(always)]
pub(crate) fn read<T>(structure: *const c_void, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address; T is a plain number everywhere here.
    unsafe { bpf_probe_read_kernel(structure.wrapping_byte_add(offset as usize).cast()) }.ok()
}

/// Reads 64 bits of the kernel's memory with a plain load, at a tenth of the cost of the helper; 0 where nothing is mapped.
/// The result is a number for the verifier, whatever the field is, so that a loop over pointers has one state.
///
/// One function for all reads: the kernel rewrites each call of `bpf_rdonly_cast` when it loads the program, and a
/// hundred of them take it twenty milliseconds.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn word(address: u64) -> u64 {
    type Cast = unsafe extern "C" fn(*const c_void, u32) -> *const u64;
    let of = constant!(OFFSETS.word);
    // SAFETY: the loader puts the kernel's function `bpf_rdonly_cast` in the place of this number. It returns its argument;
    // the verifier makes loads from it such that they cannot fail.
    unsafe {
        let cast: Cast = transmute(kfunc::RDONLY_CAST as usize);
        cast(address as *const c_void, of).read_volatile()
    }
}

/// The field of a structure at an address that is known as a number.
#[inline(always)]
pub(crate) fn field(structure: u64, offset: u32) -> u64 {
    word(structure.wrapping_add(u64::from(offset)))
}

/// What `get` reads of the task with this pid, which the kernel function `from_pid` finds; `None` if there is no such task.
#[inline(always)]
fn of_task<T>(from_pid: u32, pid: u64, get: impl FnOnce(Task) -> T) -> Option<T> {
    type FromPid = unsafe extern "C" fn(i32) -> *mut c_void;
    type Release = unsafe extern "C" fn(*mut c_void);
    // SAFETY: as above. The task is read before it is released, once.
    unsafe {
        let (from_pid, release): (FromPid, Release) =
            (transmute(from_pid as usize), transmute(kfunc::TASK_RELEASE as usize));
        let task = from_pid(pid as i32);
        if task.is_null() {
            return None;
        }
        let found = get(task);
        release(task);
        Some(found)
    }
}

/// The address of the first thread of the process with this pid in the initial PID namespace. It stays valid to the end of
/// this run of the program, which is an RCU read section: until then the kernel frees no task.
#[inline(always)]
pub(crate) fn process(pid: u64) -> Option<u64> {
    of_task(kfunc::TASK_FROM_PID, pid, |task| read(task, constant!(OFFSETS.task_leader)))?
}

/// The pid in the initial PID namespace of a process with this pid in the namespace of the running process, and the address
/// of its newest seccomp filter; 0 for either if there is none.
#[inline(always)]
pub(crate) fn identify(pid_here: u64) -> (u64, u64) {
    let found = of_task(kfunc::TASK_FROM_VPID, pid_here, |task| {
        let filter = read::<u64>(task, constant!(OFFSETS.task_filter));
        (tgid(task).map_or(0, u64::from), filter.unwrap_or(0))
    });
    found.unwrap_or((0, 0))
}

/// A loop that the verifier follows only until its state repeats. The kernel counts the turns, in the structure that
/// `bpf_iter_num_new` fills; it must stay where it is.
pub(crate) struct Turns(MaybeUninit<u64>);

impl Turns {
    /// To be started.
    #[inline(always)]
    pub(crate) fn new() -> Turns {
        Turns(MaybeUninit::uninit())
    }

    /// Starts a loop of so many turns.
    #[inline(always)]
    pub(crate) fn start(&mut self, turns: u64) {
        type New = unsafe extern "C" fn(*mut u64, i32, i32) -> i32;
        // SAFETY: `bpf_iter_num_new` initializes the structure, of eight bytes, also where it fails.
        unsafe {
            let new: New = transmute(kfunc::ITER_NUM_NEW as usize);
            new(self.0.as_mut_ptr(), 0, turns as i32);
        }
    }

    /// The number of the next turn, from 0 on; `None` after the last one.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<u64> {
        type Next = unsafe extern "C" fn(*mut u64) -> *const i32;
        // SAFETY: `start` was called before, and the result is null or the address of a number.
        unsafe {
            let next: Next = transmute(kfunc::ITER_NUM_NEXT as usize);
            let turn = next(self.0.as_mut_ptr());
            if turn.is_null() { None } else { Some(turn.read_volatile() as u64) }
        }
    }

    /// Ends the loop. The verifier demands it on every path.
    #[inline(always)]
    pub(crate) fn end(&mut self) {
        type Destroy = unsafe extern "C" fn(*mut u64);
        // SAFETY: `start` was called before.
        unsafe {
            let destroy: Destroy = transmute(kfunc::ITER_NUM_DESTROY as usize);
            destroy(self.0.as_mut_ptr());
        }
    }
}

/// The pid of a task's process in the initial PID namespace.
#[inline(always)]
pub(crate) fn tgid(task: Task) -> Option<u32> {
    read(task, constant!(OFFSETS.task_tgid))
}

/// The pid of the running process in the initial PID namespace.
#[inline(always)]
pub(crate) fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The pid of the running process in a PID namespace; `None` if it is outside that namespace.
#[inline(always)]
pub(crate) fn current_in_namespace([device, inode]: [u64; 2]) -> Option<u32> {
    let mut ids = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: the structure is on this stack, and its size is the one that the helper requires.
    let result =
        unsafe { bpf_get_ns_current_pid_tgid(device, inode, &mut ids, size_of::<bpf_pidns_info>() as u32) };
    (result == 0).then_some(ids.tgid)
}
