//! A start in progress.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::process::Pid;
use rustix::thread::futex;

use super::SpawnStep;
use super::memory::Memory;
use crate::sys::pidfd;

/// A child that has not executed its program yet. If this value is dropped, it remains a child of this process.
#[derive(Debug)]
pub struct Launch {
    pub(super) memory: Memory,
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    /// The socket that the child sends its listener to, if it does.
    pub(super) receiver: Option<OwnedFd>,
    /// Whether the child was started in the requested cgroup.
    pub(super) in_cgroup: bool,
    /// Whether clone3(2) started it.
    pub(super) by_clone3: bool,
}

/// A start that has succeeded or failed; [`Spawner::result`](super::Spawner::result) returns the result.
#[derive(Debug)]
#[must_use = "it holds descriptors, and a child that must be reaped"]
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

    /// The child's pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The last step that the child recorded.
    pub fn step(&self) -> SpawnStep {
        SpawnStep::of(self.memory.step())
    }

    /// Whether [`wait`](Self::wait) would return at once. This makes no system call and can miss an end without
    /// `execve`.
    pub fn is_finished(&self) -> bool {
        self.memory.is_free()
    }

    /// Waits until the program runs or the start has failed, at most for `most`.
    ///
    /// # Errors
    /// The launch itself, if it is still in progress.
    pub fn wait(self, most: Duration) -> Result<FinishedLaunch, Launch> {
        let until = Instant::now() + most;
        while !self.memory.is_free() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.check_exit();
            }
            let timeout = Timespec { tv_sec: 0, tv_nsec: left.as_nanos().min(999_999_999) as i64 };
            // The loop checks the word after every kind of wake-up.
            let _any = futex::wait(self.memory.inside(), futex::Flags::empty(), 1, Some(&timeout));
        }
        Ok(FinishedLaunch(self))
    }

    /// Checks whether the child has ended in a way that does not clear the word.
    fn check_exit(self) -> Result<FinishedLaunch, Launch> {
        match pidfd::try_wait(self.pidfd()) {
            Ok(None) => return Err(self),
            // It has ended, or another thread has reaped it.
            Ok(Some(_)) => self.memory.mark_free(),
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => self.memory.mark_free(),
            Err(_cannot_tell) => return Err(self),
        }
        Ok(FinishedLaunch(self))
    }

    /// Sends SIGKILL to the child. A child that blocks in the kernel can run on.
    ///
    /// # Errors
    /// ESRCH if it is gone; pidfd_send_signal(2).
    pub fn kill(&self) -> io::Result<()> {
        pidfd::signal(self.pidfd(), libc::SIGKILL)
    }
}
