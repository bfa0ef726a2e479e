//! The kernel side of the measuring: what each worker uses is written down as it is used.
//!
//! Nothing here decides anything, and nothing here can fail in a way that somebody would hear of: a task that is not
//! a worker's is passed over, and so is a map that has no such entry.
#![no_std]
#![no_main]
// `lock +=` has no stable spelling for this target, which has no compare-and-swap and so no `fetch_add`.
#![feature(asm_experimental_arch)]

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_map, btf_tracepoint};
use aya_ebpf::programs::BtfTracePointContext;
use master_process_common::{Account, DEFAULT_WORKERS, TaskLayout};

/// The running kernel's offsets, filled in by the loader. The verifier sees constants.
#[unsafe(no_mangle)]
static TASK_LAYOUT: TaskLayout = TaskLayout::UNSET;

/// A registered worker's tgid → its place in `ACCOUNTS`. User space alone writes it.
#[btf_map]
static WORKERS: HashMap<u32, u32, DEFAULT_WORKERS> = HashMap::new();

/// What the workers have used, mapped into the supervisor.
#[btf_map]
static ACCOUNTS: Array<Account, DEFAULT_WORKERS, { BPF_F_MMAPABLE as usize }> = Array::new();

/// When the task that runs on this CPU was given it, in nanoseconds of the monotonic clock; 0 before the first
/// switch that was seen here.
#[btf_map]
static SLICE_START: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Charges the slice that ends here to the worker that the outgoing task belongs to.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    // bool preempt, struct task_struct *prev, struct task_struct *next
    charge(ctx.arg(1));
    0
}

/// Charges `prev` for the time since this CPU's last switch. `None` is no failure, only an early end.
#[inline(always)]
fn charge(prev: *const c_void) -> Option<()> {
    let start = SLICE_START.get_ptr_mut(0)?;
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the look-up gave this CPU's own slot, and the tracepoint fires with interrupts off: nobody else is at it.
    let began = unsafe { core::ptr::replace(start, now) };
    if began == 0 {
        return None;
    }

    // SAFETY: a static of our own. Volatile, because its value is the loader's and not the compiler's.
    let layout = unsafe { core::ptr::read_volatile(&raw const TASK_LAYOUT) };
    // SAFETY: `prev` is a task_struct for as long as the tracepoint runs, and the verifier refuses to load the program
    // unless the offset is that of a field of it.
    let tgid = unsafe { prev.byte_add(layout.tgid as usize).cast::<u32>().read_volatile() };
    // The idle task is what is switched out most, and belongs to nobody.
    if tgid == 0 {
        return None;
    }

    // SAFETY: the index is copied out before anything can give the entry to somebody else. An entry that user space
    // replaces between look-up and copy charges one slice to its successor.
    let index = unsafe { *WORKERS.get(tgid)? };
    let account = ACCOUNTS.get(index)?;
    add(account, now - began);
    Some(())
}

/// Adds to an account that other CPUs may be adding to.
#[inline(always)]
fn add(account: &Account, ns: u64) {
    // SAFETY: one atomic addition to memory that the reference keeps valid, and that allows for shared writing.
    unsafe {
        asm!("lock *(u64 *)({place} + 0) += {ns}", place = in(reg) account.cpu_ns.as_ptr(), ns = in(reg) ns);
    }
}

/// Panics are compiled away; without this the crate would not link.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers that this program calls are open to GPL-compatible programs, which MIT is.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
