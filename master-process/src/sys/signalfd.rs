//! The supervisor's signals, blocked and read from a descriptor: signalfd(2).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Pid;

/// Signals that stay unblocked: faults of the supervisor itself, which must end it.
const LEFT_ALONE: [i32; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS, libc::SIGTRAP];

/// The kernel's signal set with all signals except those of [`LEFT_ALONE`].
static MASK: u64 = {
    let (mut mask, mut at) = (u64::MAX, 0);
    while at < LEFT_ALONE.len() {
        mask &= !(1 << (LEFT_ALONE[at] - 1));
        at += 1;
    }
    mask
};

/// Blocks all signals except those that a fault of the supervisor itself raises, so none is lost before the loop reads it.
///
/// This is the first statement of `main`: until then, each signal has its default action. It makes the system call
/// itself, because the C library leaves two signals that it reserves unblocked.
pub fn block() {
    // SAFETY: the kernel reads the eight bytes of its signal set and writes nothing.
    unsafe {
        let old = std::ptr::null_mut::<u64>();
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const MASK, old, size_of::<u64>());
    }
}

/// Unblocks all signals, also those that were blocked when this program was started. Those that came meanwhile have
/// their effect now.
pub fn unblock() {
    // SAFETY: as in `block`.
    unsafe {
        let (none, old) = (0u64, std::ptr::null_mut::<u64>());
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, old, size_of::<u64>());
    }
}

/// The descriptor that the supervisor reads its signals from.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
    /// Whether SIGHUP was ignored at the start of the supervisor, as under `nohup`.
    hup_was_ignored: bool,
}

/// A signal that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub number: i32,
    /// Its sender.
    pub sender: Sender,
    /// The user of the sender.
    pub uid: u32,
}

/// The sender of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The kernel: a key of the terminal, its hangup, a timer.
    Kernel,
    /// A process of our PID namespace.
    Process(Pid),
    /// A process that has no pid in our PID namespace.
    Outside,
}

impl SignalFd {
    /// Resets every inherited "ignore" disposition to the default, and opens the descriptor for the signals with these
    /// numbers. The caller has blocked them ([`block`]).
    ///
    /// With SIGCHLD ignored, the kernel would reap the workers itself, and workers would inherit every ignored signal.
    ///
    /// # Errors
    /// Those of signalfd(2): EMFILE, ENFILE, ENOMEM.
    pub fn new(numbers: impl Iterator<Item = i32>) -> io::Result<SignalFd> {
        let mut hup_was_ignored = false;
        for number in 1..=64 {
            hup_was_ignored |= undo_ignore(number) && number == libc::SIGHUP;
        }
        // SAFETY: the set is initialized before it is read, and only this value owns the descriptor that signalfd
        // returns.
        unsafe {
            let mut set = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            for number in numbers {
                libc::sigaddset(set.as_mut_ptr(), number);
            }
            match libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) {
                fd if fd >= 0 => Ok(SignalFd { fd: OwnedFd::from_raw_fd(fd), hup_was_ignored }),
                _failed => Err(io::Error::last_os_error()),
            }
        }
    }

    /// Whether SIGHUP was ignored at the start of the supervisor, as under `nohup`.
    pub fn hup_was_ignored(&self) -> bool {
        self.hup_was_ignored
    }

    /// The next signal; `None` if there is none.
    pub fn next(&self) -> Option<Received> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut info) {
            Ok(n) if n == info.len() => Some(Received::parse(&info)),
            Ok(_) | Err(_) => None,
        }
    }
}

impl Received {
    /// The first five fields of the structure have four bytes each: ssi_signo, ssi_errno, ssi_code, ssi_pid, ssi_uid; see
    /// signalfd(2).
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
        Received { number: field(0), sender, uid: field(4).cast_unsigned() }
    }
}

/// Does to this process what the default action of the signal `number` does. After a stop signal this returns when the
/// process is continued. If the process group is orphaned, no process can continue it: the kernel ignores the stop signal
/// and this returns at once. A SIGCONT that came before the call has no effect.
pub fn take_default_action(number: i32) {
    // SAFETY: the set is initialized before it is read. The signal becomes pending for this thread, which blocks it,
    // and is delivered when it is unblocked. Its disposition is the default, so no handler runs.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), number);
        libc::raise(number);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Resets an ignored signal to its default; true if it was ignored. This makes the system call itself, because the C
/// library reserves two signals and rejects their numbers.
fn undo_ignore(number: i32) -> bool {
    /// The kernel's `struct sigaction`, which is the same on every architecture that we build for.
    #[repr(C)]
    struct Action {
        handler: usize,
        flags: usize,
        restorer: usize,
        mask: u64,
    }
    let set = |new: *const Action, old: *mut Action| {
        // SAFETY: both pointers are null or point to an `Action` of this frame. The kernel rejects SIGKILL and SIGSTOP
        // without a change.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, new, old, size_of::<u64>()) }
    };
    let mut action = Action { handler: 0, flags: 0, restorer: 0, mask: 0 };
    let is_ignored = set(std::ptr::null(), &mut action) == 0 && action.handler == libc::SIG_IGN;
    if is_ignored {
        set(&Action { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 }, std::ptr::null_mut());
    }
    is_ignored
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
    fn the_sender_of_a_signal_is_the_kernel_a_process_or_outside() {
        let sender = |code, pid| Received::parse(&info(code, pid)).sender;
        assert_eq!(Received::parse(&info(libc::SI_USER, 7)).number, libc::SIGHUP);
        assert_eq!(sender(libc::SI_KERNEL, 0), Sender::Kernel);
        assert_eq!(Some(sender(libc::SI_USER, 7)), Pid::from_raw(7).map(Sender::Process));
        assert_eq!(sender(libc::SI_USER, 0), Sender::Outside);
    }
}
