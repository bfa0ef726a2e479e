//! Signals as a descriptor: blocked before `main`, read in the loop.

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

// The loader runs this before `main`, the runtime's own start included: a signal that comes from then on
// waits until the loop reads it. (Tests keep their signals: Ctrl-C should end them.)
#[cfg(not(test))]
#[used]
// SAFETY: `.init_array` holds pointers to functions that the C runtime calls one by one with (argc, argv,
// envp); one that takes no argument ignores them, which the C calling convention allows.
#[unsafe(link_section = ".init_array")]
static BLOCK_BEFORE_MAIN: extern "C" fn() = block;

extern "C" fn block() {
    // SAFETY: the set is a plain value that these calls fill and read; they take no lock and allocate nothing,
    // so they may run before the runtime is up.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(set.as_mut_ptr());
        for number in LEFT_ALONE {
            libc::sigdelset(set.as_mut_ptr(), number);
        }
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
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
                fd if fd >= 0 => Ok(Signals {
                    fd: OwnedFd::from_raw_fd(fd),
                }),
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

fn undo_ignore(number: i32) {
    // SAFETY: both structures are plain values of our own; a number that sigaction refuses (SIGKILL, the two
    // that the C library keeps) changes nothing.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        if libc::sigaction(number, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
        {
            action.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(number, &action, std::ptr::null_mut());
        }
    }
}

/// The name of a signal: `SIGKILL`, or `signal 35` for those that have none.
pub fn name(number: i32) -> String {
    nix::sys::signal::Signal::try_from(number).map_or_else(
        |_unnamed| format!("signal {number}"),
        |signal| signal.as_str().to_owned(),
    )
}
