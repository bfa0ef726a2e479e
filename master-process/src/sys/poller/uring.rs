//! Waiting by one io_uring.
//!
//! Only `POLL_ADD` is used, so the kernel never owns a buffer of ours: that is the whole safety argument.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

/// Completions of our own cancellations carry this and are of no interest.
const CANCELLED: u64 = u64::MAX;

/// Entries of the submission queue. A start of many workers fills it more than once, and each time is one
/// call; larger would cost resident memory for that one moment.
const ENTRIES: u32 = 64;

/// The ring.
pub struct Ring {
    ring: IoUring,
    /// Entries that found no room while the kernel took none: none is lost, a watch that is may be a worker's.
    waiting: VecDeque<squeue::Entry>,
}

impl Ring {
    /// Sets the ring up, with completions run only when we wait where the kernel can (6.1): then nothing
    /// interrupts anything else that we do.
    pub(super) fn new() -> io::Result<Ring> {
        let modern = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(ENTRIES);
        let ring = match modern {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(ENTRIES)?,
            result => result?,
        };
        if !ring.params().is_feature_ext_arg() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "it cannot wait with a time-out before Linux 5.11",
            ));
        }
        Ok(Ring { ring, waiting: VecDeque::new() })
    }

    pub(super) fn watch(&mut self, fd: BorrowedFd<'_>, token: u64) {
        self.poll(fd, token, u32::from(libc::POLLIN.cast_unsigned()));
    }

    /// POLLHUP and POLLERR come whether asked for or not; poll(2).
    pub(super) fn watch_hang_up(&mut self, fd: BorrowedFd<'_>, token: u64) {
        self.poll(fd, token, 0);
    }

    fn poll(&mut self, fd: BorrowedFd<'_>, token: u64, events: u32) {
        self.push(opcode::PollAdd::new(Fd(fd.as_raw_fd()), events).build().user_data(token));
    }

    pub(super) fn forget(&mut self, token: u64) {
        self.push(opcode::PollRemove::new(token).build().user_data(CANCELLED));
    }

    fn push(&mut self, entry: squeue::Entry) {
        self.waiting.push_back(entry);
        self.fill();
    }

    /// Puts what waits into the queue, as far as there is room and the kernel makes some.
    fn fill(&mut self) {
        while let Some(entry) = self.waiting.front() {
            // SAFETY: the entry points to no memory, and the kernel takes its own reference to the file when it
            // is submitted. A descriptor that is closed before that gives EBADF, or polls a newer file under
            // that number, which costs one look in vain: readiness is always checked by a call.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.waiting.pop_front();
            } else if self.ring.submit().is_err() {
                return;
            }
        }
    }

    /// Submits what was pushed and waits. EINTR, ETIME, EBUSY and EAGAIN of io_uring_enter(2) are no failure.
    pub(super) fn wait(&mut self, limit: Option<Duration>, ready: &mut Vec<u64>) -> io::Result<()> {
        self.fill();
        let timeout = limit.map(Timespec::from);
        let mut args = SubmitArgs::new();
        if let Some(timeout) = &timeout {
            args = args.timespec(timeout);
        }
        match self.ring.submitter().submit_with_args(1, &args) {
            Ok(_submitted) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => {}
                Some(_) | None => return Err(error),
            },
        }
        // Which of time-out and event ended the wait shows in the queue alone: the call's result does not say.
        let cancelled = -libc::ECANCELED;
        ready.extend(
            self.ring
                .completion()
                .filter(|entry| entry.user_data() != CANCELLED && entry.result() != cancelled)
                .map(|entry| entry.user_data()),
        );
        Ok(())
    }
}
