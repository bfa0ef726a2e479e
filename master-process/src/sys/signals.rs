//! Signals as a descriptor: blocked by the first instruction, read in the loop.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// Signals of the contract, read from [`Signals`]; every other one that can be blocked has no effect.
const READ: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCHLD,
];

/// Signals that stay as they are: faults of our own, which must end us, and Ctrl-Z.
const LEFT_ALONE: [i32; 8] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGSYS,
    libc::SIGTRAP,
    libc::SIGTSTP,
];

// The program's entry, before the C runtime's: it blocks what can be blocked, so that a signal waits until the
// loop reads it from the very first instruction on, and goes on as if nothing had been. It keeps the register
// that the C runtime looks at besides the stack.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".globl master_process_entry",
    "master_process_entry:",
    "push rdx",
    "mov eax, {rt_sigprocmask}",
    "mov edi, {setmask}",
    "lea rsi, [rip + {mask}]",
    "xor edx, edx",
    "mov r10d, 8",
    "syscall",
    "pop rdx",
    "jmp _start",
    rt_sigprocmask = const libc::SYS_rt_sigprocmask,
    setmask = const libc::SIG_SETMASK,
    mask = sym MASK,
);
#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".globl master_process_entry",
    "master_process_entry:",
    "mov x19, x0",
    "mov x8, {rt_sigprocmask}",
    "mov x0, {setmask}",
    "adrp x1, {mask}",
    "add x1, x1, :lo12:{mask}",
    "mov x2, xzr",
    "mov x3, 8",
    "svc #0",
    "mov x0, x19",
    "b _start",
    rt_sigprocmask = const libc::SYS_rt_sigprocmask,
    setmask = const libc::SIG_SETMASK,
    mask = sym MASK,
);

/// The kernel's signal set of all signals but those that stay as they are.
static MASK: u64 = {
    let (mut mask, mut at) = (u64::MAX, 0);
    while at < LEFT_ALONE.len() {
        mask &= !(1 << (LEFT_ALONE[at] - 1));
        at += 1;
    }
    mask
};

/// What the entry did, for programs that do not begin there.
fn block() {
    // SAFETY: the kernel reads the eight bytes of its signal set, and writes nothing.
    unsafe {
        let old = std::ptr::null_mut::<u64>();
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const MASK, old, size_of::<u64>());
    }
}

/// The supervisor's signals as something to wait for.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks the signals, sets every disposition that we inherited as "ignore" back to its default (an
    /// ignored SIGCHLD would reap our workers unseen, and workers would inherit all of them), and opens the
    /// descriptor.
    ///
    /// # Errors
    /// Those of signalfd(2): EMFILE, ENFILE, ENOMEM.
    pub fn new() -> io::Result<Signals> {
        block();
        for number in 1..=64 {
            undo_ignore(number);
        }
        // SAFETY: the set is filled before it is read, and the descriptor that signalfd returns is ours alone.
        unsafe {
            let mut set = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            for number in READ {
                libc::sigaddset(set.as_mut_ptr(), number);
            }
            match libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) {
                fd if fd >= 0 => Ok(Signals { fd: OwnedFd::from_raw_fd(fd) }),
                _failed => Err(io::Error::last_os_error()),
            }
        }
    }

    /// The next signal that has come, by number.
    pub fn next(&self) -> Option<i32> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut info) {
            // ssi_signo is the structure's first field; see signalfd(2).
            Ok(n) if n == info.len() => Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]])),
            Ok(_) | Err(_) => None,
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// By system call: the C library keeps two signals for itself, and refuses to speak of them.
fn undo_ignore(number: i32) {
    /// The kernel's `struct sigaction`, the same on every machine that we build for.
    #[repr(C)]
    struct Action {
        handler: usize,
        flags: usize,
        restorer: usize,
        mask: u64,
    }
    let set = |new: *const Action, old: *mut Action| {
        // SAFETY: both point to an `Action` of our own or nowhere; a number that the kernel refuses (SIGKILL,
        // SIGSTOP) changes nothing.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, new, old, size_of::<u64>()) }
    };
    let mut action = Action { handler: 0, flags: 0, restorer: 0, mask: 0 };
    if set(std::ptr::null(), &mut action) == 0 && action.handler == libc::SIG_IGN {
        set(&Action { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 }, std::ptr::null_mut());
    }
}

/// The name of a signal: `SIGKILL`, or `signal 35` for those that have none.
pub fn name(number: i32) -> String {
    nix::sys::signal::Signal::try_from(number)
        .map_or_else(|_unnamed| format!("signal {number}"), |signal| signal.as_str().to_owned())
}
