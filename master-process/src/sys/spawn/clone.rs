//! clone3(2) with a function for the child.

use std::ffi::{c_long, c_void};

/// `CLONE_CLEAR_SIGHAND`, which does not fit the C library's int.
pub(super) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// clone3(2) with a function for the child, which the C library does not offer. Returns the pid or -errno.
///
/// # Safety
/// `args` must name a stack that nothing else uses while the child runs, and `entry` must never return.
pub(super) unsafe fn clone3(
    args: &libc::clone_args,
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> c_long {
    let result: c_long;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel preserves r8 and r9 over the call, so the child, whose stack is empty and aligned to
    // 16 bytes, finds its function and argument there. It pushes to its own stack only. rcx and r11 are what
    // `syscall` itself destroys; memory is clobbered as far as the compiler knows.
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
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r8") argument,
            in("r9") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above; the kernel preserves every register but x0.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x2",
            "blr x3",
            "brk #1",
            "2:",
            inlateout("x0") std::ptr::from_ref(args) => result,
            in("x1") size_of::<libc::clone_args>(),
            in("x2") argument,
            in("x3") entry,
            in("x8") libc::SYS_clone3,
            lateout("x30") _,
        );
    }
    result
}
