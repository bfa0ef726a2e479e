//! The poller with io_uring.
//!
//! It uses `POLL_ADD` only, so the kernel never accesses a buffer of this process. This is the safety argument.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

/// The token of completions of cancellations, which are ignored.
const CANCELLED: u64 = u64::MAX;

/// The number of entries of the submission queue. The start of many workers fills it several times, with one call each
/// time. A larger queue would cost resident memory for that moment only.
const ENTRIES: u32 = 64;

/// The ring.
pub struct Ring {
    ring: IoUring,
    /// Entries without room in the queue while the kernel accepts none. None is dropped, because a lost watch could be
    /// that of a worker.
    waiting: VecDeque<squeue::Entry>,
}

impl Ring {
    /// Creates the ring. If the kernel can (6.1), completions are processed only during a wait, so they do not
    /// interrupt other work.
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

    pub(super) fn watch_room(&mut self, fd: BorrowedFd<'_>, token: u64) {
        self.poll(fd, token, u32::from(libc::POLLOUT.cast_unsigned()));
    }

    /// poll(2) reports POLLHUP and POLLERR without a request.
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

    /// Moves waiting entries into the queue, as far as the kernel makes room.
    fn fill(&mut self) {
        while let Some(entry) = self.waiting.front() {
            // SAFETY: the entry refers to no memory, and the kernel takes its own reference to the file when the entry
            // is submitted. If the descriptor is closed before that, the poll fails with EBADF or polls a newer file
            // with that number. That costs one useless check: the loop always verifies readiness with a call.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.waiting.pop_front();
            } else if self.ring.submit().is_err() {
                return;
            }
        }
    }

    /// Submits the pushed entries and waits. EINTR, ETIME, EBUSY and EAGAIN of io_uring_enter(2) are not errors here.
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
        // The result of the call does not show whether the timeout or an event ended the wait; the queue does.
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
