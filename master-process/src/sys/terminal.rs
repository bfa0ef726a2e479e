//! The controlling terminal and its job control: tty(4), tty_ioctl(4), credentials(7).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, getpid, getppid};
use rustix::stdio;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcgetpgrp, tcsetattr, tcsetpgrp};

use super::proc_stat::{self, Stat};

/// The number of parents that are followed. A shell, the server of its terminal, `sudo` and a few scripts are fewer.
/// Without a limit, the host would determine the length of the walk.
const MAX_ANCESTORS: usize = 16;

/// The controlling terminal of this process.
#[derive(Debug)]
pub struct Terminal {
    fd: OwnedFd,
}

impl Terminal {
    /// Opens the controlling terminal; `None` if there is none.
    pub fn open() -> Option<Terminal> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Some(Terminal { fd: rustix::fs::open("/dev/tty", flags, Mode::empty()).ok()? })
    }

    /// Whether the terminal hung up or is no longer our controlling terminal.
    pub fn is_gone(&self) -> bool {
        let mut polled = [PollFd::new(&self.fd, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let hung_up = poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0);
        hung_up || stat(getpid()).is_some_and(|own| !own.has_terminal)
    }

    /// The foreground process group, which gets the signals of the terminal's keys.
    pub fn foreground(&self) -> Option<Pid> {
        tcgetpgrp(&self.fd).ok()
    }

    /// Makes a process group of our session the foreground group. SIGTTOU is blocked, so the call does not stop us. It
    /// has no effect if the group or the terminal is gone.
    pub fn set_foreground(&self, group: Pid) {
        let _gone = tcsetpgrp(&self.fd, group);
    }

    /// Sets whether the terminal stops background processes that write to it (`stty tostop`); true if this changes the
    /// setting.
    pub fn set_tostop(&self, on: bool) -> bool {
        let Ok(mut modes) = tcgetattr(&self.fd) else { return false };
        if modes.local_modes.contains(LocalModes::TOSTOP) == on {
            return false;
        }
        modes.local_modes.set(LocalModes::TOSTOP, on);
        tcsetattr(&self.fd, OptionalActions::Now, &modes).is_ok()
    }

    /// Whether standard input is this terminal.
    pub fn is_stdin(&self) -> bool {
        // The kernel returns the foreground group only for the caller's controlling terminal.
        tcgetpgrp(stdio::stdin()).is_ok()
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a standard descriptor is a terminal that hung up before it could be opened.
pub fn was_lost() -> bool {
    let hung_up = |fd: BorrowedFd<'_>| tcgetattr(fd).err() == Some(rustix::io::Errno::IO);
    // The standard library would allocate buffers for these, which stay.
    hung_up(stdio::stdin()) || hung_up(stdio::stdout()) || hung_up(stdio::stderr())
}

/// The process group of the supervisor; `None` if the group has no number in our PID namespace. getpgrp(2) returns 0 then,
/// and rustix's function an invalid `Pid`.
pub fn own_group() -> Option<Pid> {
    stat(getpid()).and_then(|own| own.group)
}

/// Whether our process group is orphaned, so no process could continue it after a stop. Then the kernel ignores the
/// stop signals of a terminal; setpgid(2).
pub fn is_group_orphaned() -> bool {
    let Some(own) = stat(getpid()) else { return true };
    let mut above = getppid();
    for _ in 0..MAX_ANCESTORS {
        let Some(ancestor) = above.and_then(stat).filter(|ancestor| ancestor.session == own.session) else {
            return true;
        };
        if ancestor.group != own.group {
            return false;
        }
        above = ancestor.parent;
    }
    true
}

/// An ancestor of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ancestor {
    pid: Pid,
    /// The start time, which identifies the process together with the pid.
    started: u64,
    had_terminal: bool,
}

/// The ancestors of this process at its start, the nearest first. Some wrappers, such as `sudo` with `use_pty`, give
/// their command a separate terminal and outlive the user's.
#[derive(Debug, Default)]
pub struct Ancestors(Vec<Ancestor>);

impl Ancestors {
    /// Reads the current ancestors.
    pub fn collect() -> Ancestors {
        let mut found = Vec::new();
        let mut above = getppid();
        while let Some(pid) = above
            && found.len() < MAX_ANCESTORS
            && let Some(Stat { parent, started, has_terminal, .. }) = stat(pid)
        {
            found.push(Ancestor { pid, started, had_terminal: has_terminal });
            above = parent;
        }
        Ancestors(found)
    }

    /// Whether `pid` is the pid of an ancestor.
    pub fn contain(&self, pid: Pid) -> bool {
        self.0.iter().any(|ancestor| ancestor.pid == pid)
    }

    /// Whether an ancestor that still runs has lost the terminal that it had.
    pub fn lost_terminal(&self) -> bool {
        let lost = |ancestor: &Ancestor| {
            let now = stat(ancestor.pid).filter(|now| now.started == ancestor.started);
            now.is_some_and(|now| !now.has_terminal)
        };
        self.0.iter().filter(|ancestor| ancestor.had_terminal).any(lost)
    }
}

fn stat(pid: Pid) -> Option<Stat> {
    proc_stat::of(pid).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_an_ancestor_and_a_child_is_none() {
        let ancestors = Ancestors::collect();
        assert!(ancestors.contain(getppid().expect("the test runner")));
        assert!(!ancestors.contain(rustix::process::getpid()));
        assert!(!ancestors.lost_terminal(), "the runner still has its terminal");
    }

    #[test]
    fn an_ancestor_whose_pid_was_reused_has_lost_nothing() {
        let pid = getppid().expect("the test runner");
        let started = stat(pid).expect("it runs").started;
        let before = Ancestor { pid, started: started.wrapping_add(1), had_terminal: true };
        assert!(!Ancestors(vec![before]).lost_terminal());
    }
}
