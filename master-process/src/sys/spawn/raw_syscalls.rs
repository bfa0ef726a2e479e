//! System calls without the C library: any call, and clone3(2) or clone(2) with a function for the child.
//!
//! The C library stores the errno of a failed call in the caller's thread-local storage. The child of a start shares the
//! parent's memory, so it would overwrite the parent's errno.

use std::ffi::{c_long, c_void};

/// `CLONE_CLEAR_SIGHAND`, which does not fit into the C library's int.
pub(super) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// `CLONE_INTO_CGROUP`, for the same reason.
pub(super) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// clone3(2) with a function for the child, which the C library does not have. Returns the pid or -errno.
///
/// # Safety
/// `args` must name a stack that nothing else uses while the child runs, and `entry` must never return.
pub(super) unsafe fn clone3(args: &libc::clone_args, entry: Entry, argument: *mut c_void) -> c_long {
    let registers = [std::ptr::from_ref(args).expose_provenance(), size_of::<libc::clone_args>(), 0, 0];
    // SAFETY: the arguments are those of clone3, and the caller guarantees the rest.
    unsafe { clone_into(libc::SYS_clone3, registers, entry, argument) }
}

/// Does the same with clone(2), for container engines that fail clone3 with ENOSYS because their filters cannot inspect
/// its arguments. clone(2) lacks `CLONE_CLEAR_SIGHAND`, which is not needed: the only handlers are the runtime's for
/// faults. It also lacks `CLONE_INTO_CGROUP`.
///
/// # Safety
/// That of [`clone3`].
pub(super) unsafe fn clone(args: &libc::clone_args, entry: Entry, argument: *mut c_void) -> c_long {
    let flags = (args.flags & !(CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP)) | args.exit_signal;
    let top = args.stack + args.stack_size;
    let registers = [flags, top, args.pidfd, args.child_tid].map(|value| usize::try_from(value).unwrap_or(0));
    // SAFETY: the arguments are those of clone; the pidfd is stored where the parent's thread id would be; clone(2).
    unsafe { clone_into(libc::SYS_clone, registers, entry, argument) }
}

/// The child's function.
pub(super) type Entry = unsafe extern "C" fn(*mut c_void) -> !;

/// # Safety
/// The call must start a child on a stack of its own, and `entry` must never return.
unsafe fn clone_into(number: c_long, registers: [usize; 4], entry: Entry, argument: *mut c_void) -> c_long {
    // Here the fourth argument of clone(2) is the child's thread id, which is the fifth on aarch64.
    let [first, second, third, child_tid] = registers;
    let result: c_long;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel preserves r8 and r9 across the call, so the child, whose stack is empty and aligned to 16
    // bytes, finds its function and argument there. (For clone, r8 is a thread pointer, which is not set without
    // CLONE_SETTLS.) The child pushes to its own stack only. `syscall` destroys rcx and r11. The compiler assumes that
    // memory is clobbered.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test eax, eax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") child_tid,
            in("r8") argument,
            in("r9") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above; the kernel preserves all registers except x0.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x5",
            "blr x6",
            "brk #1",
            "2:",
            inlateout("x0") first => result,
            in("x1") second,
            in("x2") third,
            in("x3") 0,
            in("x4") child_tid,
            in("x5") argument,
            in("x6") entry,
            in("x8") number,
            lateout("x30") _,
        );
    }
    result
}

/// Makes a system call and returns its result or the negated errno.
///
/// # Safety
/// The arguments must be what the call's manual page demands.
pub(super) unsafe fn call(number: c_long, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: see the contract; `syscall` destroys rcx and r11.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") isize::try_from(number).unwrap_or(-1) => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: see the contract.
    unsafe {
        std::arch::asm!(
            "svc #0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b,
            in("x2") c,
            in("x3") d,
            in("x4") e,
            in("x5") f,
            options(nostack),
        );
    }
    result
}
