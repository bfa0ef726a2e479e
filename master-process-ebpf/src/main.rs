//! The eBPF programs: a timer measures the workers and compares them with their limits, and two tracepoints record how
//! they are killed.
//!
//! The programs decide nothing and report no errors: they ignore tasks that belong to no worker, and missing map entries.
//! They load without the kernel's type information: the offsets of the fields that they read are constants, and so are
//! the numbers of the kernel's functions that they call.
#![no_std]
#![no_main]

mod death;
mod kernel;
mod maps;
mod sampler;
mod tree;
mod word;

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;

/// Not attached to a tracepoint: a supervisor runs it with the number of its row, first to start the timer that measures, and
/// then to identify processes. One program for both, because each takes some pages of the kernel's memory.
#[raw_tracepoint(tracepoint = "run")]
pub fn run(ctx: RawTracePointContext) -> i32 {
    sampler::run(ctx.arg::<u64>(0) as u32);
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
