//! The eBPF programs: they charge each worker for what it uses, at the time when it uses it.
//!
//! The programs decide nothing and report no errors: they ignore tasks that belong to no worker, and missing map entries.
//! Most are raw tracepoints, because such programs load without the kernel's type information: the offsets of the fields
//! that they read are constants.
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

/// A context switch: `(bool preempt, task_struct *prev, task_struct *next)`.
#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    account::switch(ctx.arg(1), ctx.arg(2));
    0
}

/// Not attached to a tracepoint: the supervisor runs it on a CPU that runs a worker. Resident memory is otherwise recorded
/// only at context switches.
#[raw_tracepoint(tracepoint = "refresh")]
pub fn refresh(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: a helper without arguments.
    account::refresh(unsafe { bpf_get_current_task() } as *const _);
    0
}

/// A task was made that does not run yet: `(task_struct *parent, task_struct *child)`.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn sched_process_fork(ctx: RawTracePointContext) -> i32 {
    life::fork(ctx.arg(0), ctx.arg(1));
    0
}

/// A thread exits: `(task_struct *task)`.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn sched_process_exit(ctx: RawTracePointContext) -> i32 {
    life::exit(ctx.arg(0));
    0
}

/// A thread was reaped and no longer runs on any CPU: `(task_struct *task)`.
#[raw_tracepoint(tracepoint = "sched_process_free")]
pub fn sched_process_free(ctx: RawTracePointContext) -> i32 {
    life::free(ctx.arg(0));
    0
}

/// A signal was sent: `(int sig, kernel_siginfo *info, task_struct *task, int group, int result)`.
#[raw_tracepoint(tracepoint = "signal_generate")]
pub fn signal_generate(ctx: RawTracePointContext) -> i32 {
    let delivered = ctx.arg::<i32>(4) == 0;
    if delivered {
        death::signal(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    }
    0
}

/// The OOM killer chose its victim: `(task_struct *task, …)`, or `(int pid)` on older kernels.
#[raw_tracepoint(tracepoint = "mark_victim")]
pub fn mark_victim(ctx: RawTracePointContext) -> i32 {
    death::victim(ctx.arg(0));
    0
}

/// Required to link; the compiler removes all panics.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are open to GPL-compatible programs only, which MIT is.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
