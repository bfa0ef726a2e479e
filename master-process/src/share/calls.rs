//! A worker's call: who made it, and which way it goes.

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

/// How long a call waits whose answer takes a descriptor or memory that there is none of.
const SHORTAGE: std::time::Duration = std::time::Duration::from_millis(100);

/// A call and who made it.
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

    /// Puts a socket in the place of the caller's descriptor `at`, with the flags that this has, and where that was
    /// registered with epoll.
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
    /// Decides what becomes of a worker's call, and does what must be done before it is answered.
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
        let waits = matches!(result, Ok(Decision::AwaitLook | Decision::Wait(_)));
        if !waits {
            self.found.retain(|(_, of, ..)| of != call);
            self.registered.retain(|(_, of, _)| of != call);
        }
        let error = match result {
            Ok(decision) => return decision,
            Err(error) if is_shortage(&error) => return Decision::Wait(SHORTAGE),
            Err(error) => error,
        };
        if error.raw_os_error() == Some(libc::ETIMEDOUT)
            && let Some(process) = self.processes.get_mut(&worker.serial)
        {
            process.is_unreadable = true;
        }
        // A program's own mistake (a bad descriptor, a bad address) is the kernel's to report.
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
            || matches!(call.call, Call::Unlink { .. }) && self.may_clear_the_way(now, worker.serial);
        if about_path && self.copies.files().next().is_none() && !clears() {
            return (name, Ok(answer(Answer::Continue)));
        }
        let peer = match Peer::open(call.thread) {
            Ok(peer) => peer,
            Err(error) => return (name, Err(error)),
        };
        let request = Request { listener, call, peer, worker, now };
        // What is pinned is the caller only if that still waits: its number may have been another's by then.
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

    /// A listener that is shut down is shut for whoever has it: one that others have as well is not. The worker believes
    /// that it is, and leaves it alone.
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
