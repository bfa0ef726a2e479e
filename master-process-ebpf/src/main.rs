//! The kernel side of the measuring: what each worker uses is written down as it is used.
//!
//! Nothing here decides anything, and nothing here can fail in a way that somebody would hear of: a task that is not
//! a worker's is passed over, and so is a map that has no such entry. Raw tracepoints, because their programs need no
//! type information of the kernel to load: the offsets of what they read come as constants.
#![no_std]
#![no_main]
// `lock +=` has no stable spelling for this target, which has no compare-and-swap and so no `fetch_add`.
#![feature(asm_experimental_arch)]

mod account;
mod death;
mod kernel;
mod life;
mod maps;
mod word;

use aya_ebpf::helpers::generated::bpf_get_current_task;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};

/// Somebody leaves a CPU to somebody else: `(bool preempt, task_struct *prev, task_struct *next)`.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    account::switch(ctx.arg(1), ctx.arg(2));
    0
}

/// Attached nowhere: the user side has a CPU run it that runs a worker just then, since resident memory is otherwise
/// noted at switches only.
#[raw_tracepoint(tracepoint = "refresh")]
pub fn refresh(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: a helper without arguments.
    account::refresh(unsafe { bpf_get_current_task() } as *const _);
    0
}

/// Somebody has a child that does not run yet: `(task_struct *parent, task_struct *child)`.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn sched_process_fork(ctx: RawTracePointContext) -> i32 {
    life::fork(ctx.arg(0), ctx.arg(1));
    0
}

/// A thread ends: `(task_struct *task)`.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn sched_process_exit(ctx: RawTracePointContext) -> i32 {
    life::exit(ctx.arg(0));
    0
}

/// A thread has been reaped and runs nowhere any more: `(task_struct *task)`.
#[raw_tracepoint(tracepoint = "sched_process_free")]
pub fn sched_process_free(ctx: RawTracePointContext) -> i32 {
    life::free(ctx.arg(0));
    0
}

/// A signal is sent: `(int sig, kernel_siginfo *info, task_struct *task, int group, int result)`.
#[raw_tracepoint(tracepoint = "signal_generate")]
pub fn signal_generate(ctx: RawTracePointContext) -> i32 {
    let delivered = ctx.arg::<i32>(4) == 0;
    if delivered {
        death::signal(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    }
    0
}

/// The kernel chose whom it kills for want of memory: `(task_struct *task, …)`, or `(int pid)` on older kernels.
#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn mark_victim(ctx: RawTracePointContext) -> i32 {
    death::victim(ctx.arg(0));
    0
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
