//! A start that is under way.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::process::Pid;
use rustix::thread::futex;

use super::SpawnStep;
use super::memory::Memory;
use crate::sys::pidfd;

/// A child whose program does not run yet. It stays a child of ours, whatever becomes of this.
#[derive(Debug)]
pub struct Launch {
    pub(super) memory: Memory,
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    /// Where its listener is sent to, if it is.
    pub(super) receiver: Option<OwnedFd>,
    /// Whether it was started in the cgroup that was wanted.
    pub(super) in_cgroup: bool,
}

/// A start that has come to its end, whichever: [`Spawner::result`](super::Spawner::result) tells.
#[derive(Debug)]
#[must_use = "it holds descriptors, and a child that nobody reaps"]
pub struct FinishedLaunch(pub(super) Launch);

impl FinishedLaunch {
    /// The child's process id.
    pub fn pid(&self) -> Pid {
        self.0.pid
    }
}

impl Launch {
    /// The child's process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its handle.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// What it was doing when it was last heard of.
    pub fn step(&self) -> SpawnStep {
        SpawnStep::of(self.memory.step())
    }

    /// Whether [`wait`](Self::wait) has nothing to wait for. No system call; an end without `execve` may be missed.
    pub fn is_finished(&self) -> bool {
        self.memory.is_free()
    }

    /// Waits for so long at most until its program runs or has failed to.
    ///
    /// # Errors
    /// Itself, where that is still to come.
    pub fn wait(self, most: Duration) -> Result<FinishedLaunch, Launch> {
        let until = Instant::now() + most;
        while !self.memory.is_free() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.look();
            }
            let timeout = Timespec { tv_sec: 0, tv_nsec: left.as_nanos().min(999_999_999) as i64 };
            // Woken, too late, too early, or for nothing: the word tells.
            let _any = futex::wait(self.memory.inside(), futex::Flags::empty(), 1, Some(&timeout));
        }
        Ok(FinishedLaunch(self))
    }

    /// The last resort, where the word says that it is inside: it may have ended in a way that clears nothing.
    fn look(self) -> Result<FinishedLaunch, Launch> {
        match pidfd::try_wait(self.pidfd()) {
            Ok(None) => return Err(self),
            // Ended, or reaped by somebody.
            Ok(Some(_)) => self.memory.is_left(),
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => self.memory.is_left(),
            Err(_cannot_tell) => return Err(self),
        }
        Ok(FinishedLaunch(self))
    }

    /// Kills it. What it hangs in may keep it for longer.
    ///
    /// # Errors
    /// ESRCH where it is gone; see pidfd_send_signal(2).
    pub fn kill(&self) -> io::Result<()> {
        pidfd::signal(self.pidfd(), libc::SIGKILL)
    }
}
