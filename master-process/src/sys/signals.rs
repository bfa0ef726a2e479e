//! Signals as a descriptor: blocked by the first instruction, read in the loop.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Pid;

/// Signals of the contract, read from [`Signals`]; every other one that can be blocked has no effect.
const READ: [i32; 10] = [
    libc::SIGHUP,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGCHLD,
    libc::SIGTSTP,
];

/// Signals that stay as they are: faults of our own, which must end us.
const LEFT_ALONE: [i32; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS, libc::SIGTRAP];

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
    /// Whether SIGHUP was ignored when we were started, as `nohup` does it.
    hup_was_ignored: bool,
}

/// A signal that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub number: i32,
    /// Who sent it.
    pub sender: Sender,
}

/// Who sent a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The kernel: a terminal's key, its end, a timer.
    Kernel,
    /// A process, of our PID namespace.
    Process(Pid),
    /// A process that has no number in our PID namespace.
    Outside,
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
        let mut hup_was_ignored = false;
        for number in 1..=64 {
            hup_was_ignored |= undo_ignore(number) && number == libc::SIGHUP;
        }
        // SAFETY: the set is filled before it is read, and the descriptor that signalfd returns is ours alone.
        unsafe {
            let mut set = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            for number in READ {
                libc::sigaddset(set.as_mut_ptr(), number);
            }
            match libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) {
                fd if fd >= 0 => Ok(Signals { fd: OwnedFd::from_raw_fd(fd), hup_was_ignored }),
                _failed => Err(io::Error::last_os_error()),
            }
        }
    }

    /// Whether SIGHUP was ignored when we were started, as `nohup` does it.
    pub fn hup_was_ignored(&self) -> bool {
        self.hup_was_ignored
    }

    /// The next signal that has come.
    pub fn next(&self) -> Option<Received> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut info) {
            Ok(n) if n == info.len() => Some(Received::parse(&info)),
            Ok(_) | Err(_) => None,
        }
    }
}

impl Received {
    /// The structure's first four fields have four bytes each: ssi_signo, ssi_errno, ssi_code, ssi_pid; see signalfd(2).
    fn parse(info: &[u8; size_of::<libc::signalfd_siginfo>()]) -> Received {
        let field = |at: usize| {
            let bytes = info.get(4 * at..4 * at + 4).and_then(|bytes| bytes.try_into().ok());
            i32::from_ne_bytes(bytes.unwrap_or_default())
        };
        let sender = match Pid::from_raw(field(3)) {
            _any if field(2) == libc::SI_KERNEL => Sender::Kernel,
            Some(pid) => Sender::Process(pid),
            None => Sender::Outside,
        };
        Received { number: field(0), sender }
    }
}

/// Does to this process what a stop signal does by default, and returns when it is continued: at once where the kernel
/// ignores the signal because nobody could continue us. A SIGCONT that came before the call does not count.
pub fn stop_ourselves(number: i32) {
    // SAFETY: the set is filled before it is read. The signal becomes pending for this thread, which has it blocked, and
    // is delivered when it is unblocked: its disposition is the default, so no handler runs.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), number);
        libc::raise(number);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Sets a signal that is ignored back to its default; true where it was. By system call: the C library keeps two
/// signals for itself, and refuses to speak of them.
fn undo_ignore(number: i32) -> bool {
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
    let is_ignored = set(std::ptr::null(), &mut action) == 0 && action.handler == libc::SIG_IGN;
    if is_ignored {
        set(&Action { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 }, std::ptr::null_mut());
    }
    is_ignored
}

/// The signals that have a name of their own. The order is the kernel's, from 1; the numbers are those of signal(7).
const NAMES: [(i32, &str); 31] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGTRAP, "SIGTRAP"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGSTKFLT, "SIGSTKFLT"),
    (libc::SIGCHLD, "SIGCHLD"),
    (libc::SIGCONT, "SIGCONT"),
    (libc::SIGSTOP, "SIGSTOP"),
    (libc::SIGTSTP, "SIGTSTP"),
    (libc::SIGTTIN, "SIGTTIN"),
    (libc::SIGTTOU, "SIGTTOU"),
    (libc::SIGURG, "SIGURG"),
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGXFSZ, "SIGXFSZ"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGPROF, "SIGPROF"),
    (libc::SIGWINCH, "SIGWINCH"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGPWR, "SIGPWR"),
    (libc::SIGSYS, "SIGSYS"),
];

/// The name of a signal: `SIGKILL`, or `signal 35` for those that have none.
pub fn name(number: i32) -> String {
    NAMES
        .iter()
        .find(|(named, _)| *named == number)
        .map_or_else(|| format!("signal {number}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(code: i32, pid: i32) -> [u8; size_of::<libc::signalfd_siginfo>()] {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        for (at, field) in [libc::SIGHUP, 0, code, pid].into_iter().enumerate() {
            info[4 * at..4 * at + 4].copy_from_slice(&field.to_ne_bytes());
        }
        info
    }

    #[test]
    fn every_standard_signal_has_its_name() {
        for (number, expected) in NAMES {
            assert_eq!(name(number), expected);
        }
        let numbers: std::collections::BTreeSet<i32> = NAMES.iter().map(|(number, _)| *number).collect();
        assert!(numbers.iter().copied().eq(1..=31), "each of the standard signals stands in the table once");
        assert_eq!((name(9), name(15), name(17)), ("SIGKILL".into(), "SIGTERM".into(), "SIGCHLD".into()));
        assert_eq!(name(0), "signal 0");
        assert_eq!(name(35), "signal 35");
    }

    #[test]
    fn the_sender_of_a_signal_is_the_kernel_a_process_or_outside() {
        let sender = |code, pid| Received::parse(&info(code, pid)).sender;
        assert_eq!(Received::parse(&info(libc::SI_USER, 7)).number, libc::SIGHUP);
        assert_eq!(sender(libc::SI_KERNEL, 0), Sender::Kernel);
        assert_eq!(Some(sender(libc::SI_USER, 7)), Pid::from_raw(7).map(Sender::Process));
        assert_eq!(sender(libc::SI_USER, 0), Sender::Outside);
    }
}
