//! Answering the workers' calls.

use std::fmt::Display;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::address::Key;
use super::broker::{Broker, Reply};
use super::caller::is_shortage;
use super::remark::Remark;
use super::table::Part;
use super::unix::Place;
use crate::policy::WorkerId;
use crate::sys::peer::Peer;
use crate::sys::seccomp::{self, Answer, Call, Notification, SocketOption};

/// A call and who made it.
pub(super) struct Request<'a> {
    pub(super) listener: BorrowedFd<'a>,
    pub(super) call: &'a Notification,
    pub(super) peer: Peer,
    pub(super) worker: WorkerId,
}

impl Request<'_> {
    pub(super) fn is_waiting(&self) -> bool {
        seccomp::is_waiting(self.listener, self.call)
    }
}

pub(super) fn plain(answer: Answer) -> Reply {
    Reply { answer, listens: None }
}

impl Broker {
    /// Decides what becomes of a worker's call, and does what must be done before it is answered. `None`: the
    /// kernel lacks something just now, and the call has to wait.
    pub fn reply(
        &mut self,
        listener: BorrowedFd<'_>,
        call: &Notification,
        worker: WorkerId,
    ) -> Option<Reply> {
        let request = Request { listener, call, peer: Peer::new(call.thread), worker };
        if let Some(member) = self.members.get_mut(worker.serial) {
            member.asks(None);
        }
        let (name, result) = match call.call {
            Call::Bind { fd, address, length } => ("bind", self.bind(&request, fd, address, length)),
            Call::Listen { fd, backlog } => ("listen", self.listen(&request, fd, backlog)),
            Call::SetOption { fd, option, value } => {
                ("setsockopt", self.set_option(&request, fd, option, value))
            }
            Call::Shutdown { fd } => ("shutdown", self.shutdown(&request, fd)),
            Call::Unlink { dir, path } => ("unlink", self.unlink(&request, dir, path)),
            Call::Other => ("call", Ok(plain(Answer::Continue))),
        };
        let error = match result {
            Ok(reply) => return Some(reply),
            Err(error) if is_shortage(&error) => return None,
            Err(error) => error,
        };
        // A program's own mistake (a bad descriptor, a bad address) is the kernel's to report.
        let mistakes = [libc::ENOENT, libc::EBADF, libc::EIO, libc::ENOTSOCK, libc::EOPNOTSUPP];
        let mistake = error.raw_os_error().is_some_and(|errno| mistakes.contains(&errno));
        if !mistake && request.is_waiting() {
            self.remarks.push(Remark::Unseen { worker, call: name, error });
        }
        Some(plain(Answer::Continue))
    }

    pub(super) fn refuse(&mut self, worker: WorkerId, key: &Key, errno: i32, why: impl Display) -> Reply {
        let (address, why) = (key.to_string(), why.to_string());
        self.remarks.push(Remark::Refused { worker, address, why });
        plain(Answer::Fail(errno))
    }

    /// A listener that is shut down is shut for whoever holds it. One that only this worker has, and that no new
    /// connection comes to any more, may be: the program may rely on it to wake its threads. Another one is kept.
    fn shutdown(&mut self, request: &Request<'_>, fd: RawFd) -> io::Result<Reply> {
        if self.table.iter().next().is_none() {
            return Ok(plain(Answer::Continue));
        }
        let inode = request.peer.inode(fd)?;
        let Some(held) = self.table.by_inode(inode) else { return Ok(plain(Answer::Continue)) };
        let alone = matches!(held.part, Part::Lane(_));
        let serves = self.members.get(request.worker.serial).is_some_and(|member| member.serves);
        let key = held.key.clone();
        if alone && !serves && !held.is_waited_for() {
            self.take_out(&key, inode);
        } else if alone {
            // Who waits in its queue is its successor's; nobody else is to come.
            held.shut = true;
            self.turn_key(&key);
        }
        Ok(plain(Answer::Done))
    }

    /// A path that we hold stays; the worker believes that it is gone, which is all that it needs.
    fn unlink(&mut self, request: &Request<'_>, dir: RawFd, path: u64) -> io::Result<Reply> {
        if !self.table.has_files() {
            return Ok(plain(Answer::Continue));
        }
        let path = request.peer.string(path)?;
        let path = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
        if !path.file_name().is_some_and(|name| self.table.has_file_called(name)) {
            return Ok(plain(Answer::Continue));
        }
        let Ok(place) = Place::of(request.peer, &request.peer.fs_identity()?, dir, path) else {
            return Ok(plain(Answer::Continue));
        };
        let key = place.key();
        let ours = self.table.of_key(&key).any(|held| held.file.as_ref().is_some_and(|file| file.is_found()));
        Ok(plain(if ours && request.is_waiting() { Answer::Done } else { Answer::Continue }))
    }

    fn set_option(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        option: SocketOption,
        value: u64,
    ) -> io::Result<Reply> {
        let on = request.peer.memory(value, size_of::<i32>())?.iter().any(|byte| *byte != 0);
        let inode = request.peer.inode(fd)?;
        if let Some(member) = self.members.get_mut(request.worker.serial) {
            member.set_option(inode, option, on);
        }
        Ok(plain(Answer::Continue))
    }
}
