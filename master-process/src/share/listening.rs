//! A worker listens: it is ready, and its queue is watched.

use std::io;
use std::os::fd::RawFd;

use super::address::Key;
use super::broker::{Broker, Listens, Reply};
use super::caller::CallerSocket;
use super::calls::{Request, plain};
use super::remark::Remark;
use super::table::Part;
use crate::sys::seccomp::{self, Answer};
use crate::sys::sockets::{self, Kind};

impl Broker {
    pub(super) fn listen(&mut self, request: &Request<'_>, fd: RawFd, backlog: i32) -> io::Result<Reply> {
        let mut inode = request.peer.inode(fd)?;
        let serial = request.worker.serial;
        if self.table.by_inode(inode).is_some() {
            inode = self.adopt(request, fd, inode)?;
        }
        let first_of_key = {
            let key = self.table.by_inode(inode).map(|held| held.key.clone());
            key.is_some_and(|key| !self.table.of_key(&key).any(|held| held.is_listening()))
        };
        let Some(held) = self.table.by_inode(inode) else {
            return self.listen_alone(request, fd, backlog);
        };
        let key = held.key.clone();
        let first = !held.is_listening();
        // A Unix socket's peers see the credentials of who called `listen` last: that is the worker's to do.
        let answer = if matches!(key, Key::Unix { .. }) { Answer::Continue } else { Answer::Done };
        if let Err(error) = held.listen(backlog) {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            return Ok(self.refuse(request.worker, &key, errno, format_args!("listen: {error}")));
        }
        if first_of_key {
            self.remarks.push(Remark::Holds { address: key.to_string() });
        }
        let Some(held) = self.table.by_inode(inode) else { return Ok(plain(answer)) };
        let watched = first && matches!(held.part, Part::Lane(_));
        if watched {
            self.table.number(inode);
            self.unwatched.push(inode);
        }
        if watched || self.members.get(serial).is_some_and(|member| member.serves) {
            self.turn_key(&key);
        }
        Ok(Reply { answer, listens: Some(self.listens(serial, Some(&key))) })
    }

    /// A worker that does not listen yet takes over the queues of one that died in its slot meanwhile, with all who
    /// wait there: each of its sockets is exchanged as it begins to listen. Returns the inode number of what it
    /// has now.
    fn adopt(&mut self, request: &Request<'_>, fd: RawFd, inode: u64) -> io::Result<u64> {
        let Some(member) = self.members.get(request.worker.serial) else { return Ok(inode) };
        let (own, slot, fresh) = (member.lane, member.id.slot, member.listens.is_empty());
        if fresh && let Some(orphan) = self.lanes.adopt(own, slot) {
            self.members.change_lane(request.worker.serial, orphan);
        }
        let Some(lane) = self.members.get(request.worker.serial).map(|member| member.lane) else {
            return Ok(inode);
        };
        let Some(mine) = self.table.by_inode(inode) else { return Ok(inode) };
        let (key, kept) = (mine.key.clone(), mine.is_listening());
        if !matches!(mine.part, Part::Lane(old) if old != lane) {
            return Ok(inode);
        }
        let Some(better) = self.table.find(&key, Part::Lane(lane)).filter(|held| !held.is_used_up()) else {
            // Nobody waits for this address: its own socket will do.
            if let Some(mine) = self.table.by_inode(inode) {
                mine.part = Part::Lane(lane);
            }
            return Ok(inode);
        };
        better.shut = false;
        better.users.insert(slot);
        let (flags, taken) = (request.peer.flags(fd)?, better.inode);
        sockets::set_nonblocking(better.fd(), flags & libc::O_NONBLOCK != 0)?;
        let close_on_exec = flags & libc::O_CLOEXEC != 0;
        seccomp::put_descriptor(request.listener, request.call, better.fd(), fd, close_on_exec)?;
        if !kept {
            self.table.remove(inode);
        }
        if let Some(member) = self.members.get_mut(request.worker.serial) {
            member.bound.retain(|bound| *bound != inode);
            member.bound.push(taken);
        }
        Ok(taken)
    }

    /// On a socket that we do not hold. Whether it succeeds decides whether the worker is ready: so it is done here,
    /// on a copy, where there is one.
    fn listen_alone(&mut self, request: &Request<'_>, fd: RawFd, backlog: i32) -> io::Result<Reply> {
        let socket = CallerSocket::look(request.peer, fd)?;
        if socket.kind == Kind::Other || !request.is_waiting() {
            return Ok(plain(Answer::Continue));
        }
        let listens = Some(self.listens(request.worker.serial, None));
        let inode = request.peer.inode(fd)?;
        if let Some(member) = self.members.get_mut(request.worker.serial) {
            member.alone.push(inode);
        }
        match socket.copy().map(|copy| sockets::listen(copy, backlog)) {
            Some(Err(error)) => Ok(plain(Answer::Fail(error.raw_os_error().unwrap_or(libc::EINVAL)))),
            // Once more, by the worker: a Unix socket's peers see who called it last.
            Some(Ok(())) | None => Ok(Reply { answer: Answer::Continue, listens }),
        }
    }

    fn listens(&mut self, serial: u64, key: Option<&Key>) -> Listens {
        if self.members.listens(serial, key) { Listens::All } else { Listens::Some }
    }
}
