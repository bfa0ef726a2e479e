//! A worker's call: its caller, and the handler that decides it.

use std::fmt::Display;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use super::address::Key;
use super::bind::is_for_all;
use super::broker::{Broker, Decision, Reply};
use super::caller::is_shortage;
use super::core::Socket;
use super::report::Report;
use crate::policy::{Time, WorkerId};
use crate::sys::epoll_entries::{self, Entry};
use crate::sys::peer::Peer;
use crate::sys::seccomp::{self, Answer, Call, Notification, SocketOption};

/// The delay before a call is tried again that failed for lack of descriptors or memory.
const SHORTAGE_RETRY: std::time::Duration = std::time::Duration::from_millis(100);

/// A call and its caller.
pub(super) struct Request<'a> {
    pub(super) listener: BorrowedFd<'a>,
    pub(super) call: &'a Notification,
    pub(super) peer: Peer,
    pub(super) worker: WorkerId,
    pub(super) now: Time,
}

impl Request<'_> {
    pub(super) fn is_waiting(&self) -> bool {
        seccomp::is_waiting(self.listener, self.call)
    }

    /// Replaces the caller's descriptor `at` by a socket. The new descriptor has the given flags and the old one's
    /// registrations with epoll.
    pub(super) fn put(
        &self,
        socket: BorrowedFd<'_>,
        at: RawFd,
        flags: i32,
        registered: &[Entry],
    ) -> io::Result<()> {
        seccomp::put_descriptor(self.listener, self.call, socket, at, flags & libc::O_CLOEXEC != 0)?;
        epoll_entries::put_back(&self.peer, socket, at, registered)
    }
}

pub(super) fn answer(answer: Answer) -> Decision {
    Decision::Reply(Reply { answer, listens: None })
}

impl Broker {
    /// Decides a worker's call, and does what must be done before the answer.
    pub fn reply(
        &mut self,
        now: Time,
        listener: BorrowedFd<'_>,
        call: &Notification,
        worker: WorkerId,
    ) -> Decision {
        if let Some(process) = self.processes.get_mut(&worker.serial) {
            process.given = None;
        }
        self.removals.next_call(call.thread);
        let (name, result) = self.dispatch(now, listener, call, worker);
        let waits = matches!(result, Ok(Decision::AwaitScan | Decision::Wait(_)));
        if !waits {
            self.found.retain(|(_, of, ..)| of != call);
            self.registered.retain(|(_, of, _)| of != call);
        }
        let error = match result {
            Ok(decision) => return decision,
            Err(error) if is_shortage(&error) => return Decision::Wait(SHORTAGE_RETRY),
            Err(error) => error,
        };
        if error.raw_os_error() == Some(libc::ETIMEDOUT)
            && let Some(process) = self.processes.get_mut(&worker.serial)
        {
            process.is_unreadable = true;
        }
        // The kernel reports a program's own mistake, such as a bad descriptor or address.
        let mistakes = [libc::ENOENT, libc::EBADF, libc::EIO, libc::ENOTSOCK, libc::EOPNOTSUPP, libc::ESTALE];
        let mistake = error.raw_os_error().is_some_and(|errno| mistakes.contains(&errno));
        if !mistake && seccomp::is_waiting(listener, call) {
            self.reports.push(Report::Unseen { worker, call: name, error });
        }
        answer(Answer::Continue)
    }

    fn dispatch(
        &mut self,
        now: Time,
        listener: BorrowedFd<'_>,
        call: &Notification,
        worker: WorkerId,
    ) -> (&'static str, io::Result<Decision>) {
        let name = match call.call {
            Call::Bind { .. } => "bind",
            Call::Listen { .. } => "listen",
            Call::SetOption { .. } => "setsockopt",
            Call::Shutdown { .. } => "shutdown",
            Call::Connect { .. } => "connect",
            Call::Unlink { .. } => "unlink",
            Call::Rename { .. } => "rename",
            Call::Other => "call",
        };
        let about_path =
            matches!(call.call, Call::Unlink { .. } | Call::Rename { .. } | Call::Connect { .. });
        let clears =
            || matches!(call.call, Call::Unlink { .. }) && self.may_remove_before_bind(now, worker.serial);
        if about_path && self.copies.files().next().is_none() && !clears() {
            return (name, Ok(answer(Answer::Continue)));
        }
        let peer = match Peer::open(call.thread) {
            Ok(peer) => peer,
            Err(error) => return (name, Err(error)),
        };
        let request = Request { listener, call, peer, worker, now };
        // The call still waits, so the pinned process is the caller. Otherwise its pid may have been reused.
        if !request.is_waiting() {
            return (name, Ok(answer(Answer::Continue)));
        }
        let decision = match call.call {
            Call::Bind { fd, address, length } => self.bind(&request, fd, address, length),
            Call::Listen { fd, backlog } => self.listen(&request, fd, backlog),
            Call::SetOption { fd, option, value } => self.set_option(&request, fd, option, value),
            Call::Shutdown { fd } => self.shutdown(&request, fd),
            Call::Connect { address, length } => self.connect(&request, address, length),
            Call::Unlink { dir, path } => self.unlink(&request, dir, path),
            Call::Rename { from_dir, from, to_dir, to, flags } => {
                self.rename(&request, (from_dir, from), (to_dir, to), flags)
            }
            Call::Other => Ok(answer(Answer::Continue)),
        };
        (name, decision)
    }

    pub(super) fn refuse(&mut self, worker: WorkerId, key: &Key, errno: i32, why: impl Display) -> Decision {
        let (address, why) = (key.to_string(), why.to_string());
        self.reports.push(Report::Refused { worker, address, why });
        answer(Answer::Fail(errno))
    }

    /// `shutdown` on a listener affects every process that has it. A listener that other workers use stays open; the
    /// caller is told that the call succeeded, and does not use the listener any further.
    fn shutdown(&mut self, request: &Request<'_>, fd: RawFd) -> io::Result<Decision> {
        let id = request.peer.inode(fd)?;
        let others = |socket: &Socket| {
            let is_other = |user: &u64| *user != request.worker.serial;
            let has_others = socket.users.iter().any(is_other) || !socket.awaited_by.is_empty();
            socket.permanent || (is_for_all(socket.scope) && has_others)
        };
        let has_others = self.core.socket(id).is_some_and(others);
        Ok(answer(if has_others { Answer::Done } else { Answer::Continue }))
    }

    fn set_option(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        option: SocketOption,
        value: u64,
    ) -> io::Result<Decision> {
        let on = request.peer.memory(value, size_of::<i32>())?.iter().any(|byte| *byte != 0);
        let inode = request.peer.inode(fd)?;
        if let Some(process) = self.processes.get_mut(&request.worker.serial) {
            process.options.set(inode, option, on);
        }
        Ok(answer(Answer::Continue))
    }
}
