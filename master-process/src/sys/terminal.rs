//! The controlling terminal and its job control: tty(4), tty_ioctl(4), credentials(7).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, getpid, getppid};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcgetpgrp, tcsetattr, tcsetpgrp};

use super::proc_stat::{self, Stat};

/// How far up the parents are followed. A shell, its terminal's server, `sudo` and a script or two are fewer; a loop
/// without a bound would be the host's to end.
const MOST_ANCESTORS: usize = 16;

/// The terminal that controls this process.
#[derive(Debug)]
pub struct Terminal {
    fd: OwnedFd,
}

impl Terminal {
    /// Opens it; `None` where there is none.
    pub fn open() -> Option<Terminal> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Some(Terminal { fd: rustix::fs::open("/dev/tty", flags, Mode::empty()).ok()? })
    }

    /// Whether it is gone: hung up, or not ours any more.
    pub fn is_gone(&self) -> bool {
        let mut wish = [PollFd::new(&self.fd, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let hung_up = poll(&mut wish, Some(&now)).is_ok_and(|ready| ready > 0);
        hung_up || stat(getpid()).is_some_and(|own| !own.has_terminal)
    }

    /// The process group in its foreground, whose signals its keys send.
    pub fn foreground(&self) -> Option<Pid> {
        tcgetpgrp(&self.fd).ok()
    }

    /// Puts a process group of our session into the foreground. This stops nobody: we have SIGTTOU blocked. It does
    /// nothing where the group or the terminal is gone.
    pub fn set_foreground(&self, group: Pid) {
        let _gone = tcsetpgrp(&self.fd, group);
    }

    /// Sets whether it stops those who write to it from the background (`stty tostop`); true if that is a change.
    pub fn set_tostop(&self, on: bool) -> bool {
        let Ok(mut modes) = tcgetattr(&self.fd) else { return false };
        if modes.local_modes.contains(LocalModes::TOSTOP) == on {
            return false;
        }
        modes.local_modes.set(LocalModes::TOSTOP, on);
        tcsetattr(&self.fd, OptionalActions::Now, &modes).is_ok()
    }

    /// Whether this is the terminal that we read as standard input.
    pub fn is_stdin(&self) -> bool {
        // Of another terminal than the caller's own the kernel tells nobody the foreground.
        tcgetpgrp(std::io::stdin()).is_ok()
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a standard descriptor is a terminal that is hung up: the terminal went before anybody could open it.
pub fn was_lost() -> bool {
    let hung_up = |fd: BorrowedFd<'_>| tcgetattr(fd).err() == Some(rustix::io::Errno::IO);
    hung_up(std::io::stdin().as_fd())
        || hung_up(std::io::stdout().as_fd())
        || hung_up(std::io::stderr().as_fd())
}

/// The process group that we are in: the terminal's foreground is ours while it is this one's. None: it is outside of our
/// PID namespace. There getpgrp(2) gives 0, which is no `Pid`.
pub fn own_group() -> Option<Pid> {
    stat(getpid()).and_then(|own| own.group)
}

/// Whether nobody could continue our process group if it were stopped: the kernel then ignores the stop signals of a
/// terminal; setpgid(2).
pub fn is_group_orphaned() -> bool {
    let Some(own) = stat(getpid()) else { return true };
    let mut above = getppid();
    for _ in 0..MOST_ANCESTORS {
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

/// A process that we descend from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ancestor {
    pid: Pid,
    /// With the pid it tells the process from all others.
    started: u64,
    had_terminal: bool,
}

/// The processes that we descended from when we were started, the nearest first. Some wrappers give their command a
/// terminal of their own and outlive the user's: `sudo` with `use_pty`, for example.
#[derive(Debug, Default)]
pub struct Ancestors(Vec<Ancestor>);

impl Ancestors {
    /// Looks who they are.
    pub fn look() -> Ancestors {
        let mut found = Vec::new();
        let mut above = getppid();
        while let Some(pid) = above
            && found.len() < MOST_ANCESTORS
            && let Some(Stat { parent, started, has_terminal, .. }) = stat(pid)
        {
            found.push(Ancestor { pid, started, had_terminal: has_terminal });
            above = parent;
        }
        Ancestors(found)
    }

    /// Whether this was the number of one of them.
    pub fn contain(&self, pid: Pid) -> bool {
        self.0.iter().any(|ancestor| ancestor.pid == pid)
    }

    /// Whether one that is still there has lost the terminal that it had.
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
        let ancestors = Ancestors::look();
        assert!(ancestors.contain(getppid().expect("the test runner")));
        assert!(!ancestors.contain(rustix::process::getpid()));
        assert!(!ancestors.lost_terminal(), "nobody has taken the runner's terminal away");
    }

    #[test]
    fn an_ancestor_whose_number_is_somebody_elses_has_lost_nothing() {
        let pid = getppid().expect("the test runner");
        let started = stat(pid).expect("it runs").started;
        let before = Ancestor { pid, started: started.wrapping_add(1), had_terminal: true };
        assert!(!Ancestors(vec![before]).lost_terminal());
    }
}
