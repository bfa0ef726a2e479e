//! `listen`: the worker becomes ready, and the supervisor keeps a copy of its listener.

use std::io;
use std::os::fd::RawFd;

use super::address::Key;
use super::bind::is_for_all;
use super::broker::{Broker, Decision};
use super::caller::{CallerSocket, bound_key};
use super::calls::{Request, answer};
use super::core::{Scope, SocketId};
use super::report::Report;
use crate::sys::seccomp::Answer;
use crate::sys::sockets::{self, Kind};

/// The number of listeners and shared UDP sockets that are kept of one worker. Further ones are not shared. The limit
/// prevents one worker from using the descriptors that others need.
pub(super) const MAX_LISTENERS: usize = 256;

/// Fails the worker's call with the errno of `listen` on the copy of its socket.
fn refused(error: &io::Error) -> Decision {
    answer(Answer::Fail(error.raw_os_error().unwrap_or(libc::EINVAL)))
}

impl Broker {
    pub(super) fn listen(&mut self, request: &Request<'_>, fd: RawFd, backlog: i32) -> io::Result<Decision> {
        let serial = request.worker.serial;
        let mut id = request.peer.inode(fd)?;
        if let Some(permanent) = self.permanent.iter().find(|permanent| permanent.id == id) {
            let key = permanent.key.clone();
            return self.listen_on_kept(request, id, &key, backlog);
        }
        if let Some(there) = self.substitute(serial, id) {
            let Some(exchanged) = self.exchange(request, fd, id, there)? else {
                return Ok(self.await_scan(request));
            };
            self.forget_substitute(serial, id);
            id = exchanged;
        }
        if self.copies.get(id).is_none() {
            let mut socket = CallerSocket::look(&request.peer, fd)?;
            let known = self.core.socket(id).is_some_and(|known| known.users.contains(&serial));
            let room = self.listeners_of(serial) < MAX_LISTENERS;
            let copy = if known && room { socket.take_copy() } else { None };
            let Some(copy) = copy else {
                self.report_if_full(request, known && !room, id);
                return self.listen_alone(request, &socket, backlog);
            };
            self.copies.insert(id, copy);
        }
        let Some(open) = self.copies.get(id) else { return Ok(answer(Answer::Continue)) };
        // The worker's `bind` read the address from memory again, so the kernel's answer counts.
        let bound = bound_key(open.fd());
        let (scope, noted) = match self.core.socket(id) {
            Some(socket) => (socket.scope, socket.key.clone()),
            None => return Ok(answer(Answer::Continue)),
        };
        let Some(key) = bound.or_else(|| (!noted.has_group()).then_some(noted)) else {
            // The socket is not bound: the kernel assigns it a free port.
            self.core.released(serial, id);
            self.reconcile(request.now);
            return Ok(answer(Answer::Continue));
        };
        self.note_queues_of_awaited();
        if let Some(inherited) = self.core.inherited_by(serial, id, &key) {
            let Some(exchanged) = self.exchange(request, fd, id, inherited)? else {
                return Ok(self.await_scan(request));
            };
            id = exchanged;
        }
        self.copies.locate(serial, id, request.call.thread, fd);
        if scope == Scope::Shard {
            let in_the_way = self.core.listeners_in_the_way(serial, id, &key);
            if !in_the_way.is_empty() && !self.check(request, &in_the_way) {
                return Ok(self.await_scan(request));
            }
            if !self.core.listeners_in_the_way(serial, id, &key).is_empty() {
                self.drop_inactive_copy(id);
                return Ok(answer(Answer::Fail(libc::EADDRINUSE)));
            }
            return self.listen_on_shard(request, id, &key, backlog);
        }
        if let Some(file) = self.copies.file_mut(id)
            && let Err(error) = file.adopt(self.access)
        {
            let (worker, address) = (request.worker, key.to_string());
            self.reports.push(Report::Refused { worker, address, why: format!("its file: {error}") });
        }
        self.listen_on_kept(request, id, &key, backlog)
    }

    /// Handles `listen` on the worker's own socket. The supervisor calls `listen` on its copy, which is the same
    /// socket. So it knows the result, and the order in which the sockets of an address begin to listen.
    fn listen_on_shard(
        &mut self,
        request: &Request<'_>,
        id: SocketId,
        key: &Key,
        backlog: i32,
    ) -> io::Result<Decision> {
        let Some(open) = self.copies.get_mut(id) else { return Ok(answer(Answer::Continue)) };
        let first = open.backlog.is_none();
        if first {
            // Others may join it from now on. Before, a bind to an address of an unrelated process had to fail as
            // usual.
            sockets::set_reuseport(open.fd())?;
        }
        if let Err(error) = sockets::listen(open.fd(), backlog) {
            self.drop_inactive_copy(id);
            return Ok(refused(&error));
        }
        open.backlog = Some(backlog);
        self.activate(request, id, key, first);
        Ok(self.ready(request, Answer::Done, Some(id)))
    }

    /// Handles `listen` on a socket that all workers have. Its queue gets the longest length that a worker requested.
    fn listen_on_kept(
        &mut self,
        request: &Request<'_>,
        id: SocketId,
        key: &Key,
        backlog: i32,
    ) -> io::Result<Decision> {
        let Some(open) = self.copies.get_mut(id) else { return Ok(answer(Answer::Continue)) };
        let first = open.backlog.is_none();
        // A negative backlog is the largest one: listen(2) takes the number as unsigned.
        let wish = if backlog < 0 { i32::MAX } else { backlog };
        if open.backlog.is_none_or(|current| current < wish) {
            if let Err(error) = sockets::listen(open.fd(), wish) {
                return Ok(refused(&error));
            }
            open.backlog = Some(wish);
        }
        // The peers of a Unix socket see the credentials of the last caller of `listen`, so the worker must make this
        // call.
        let reply = if key.has_group() { Answer::Done } else { Answer::Continue };
        if self.core.socket(id).is_some_and(|socket| !socket.permanent) {
            self.activate(request, id, key, first);
        }
        Ok(self.ready(request, reply, Some(id)))
    }

    /// Drops the copy of a socket that does not listen, unless the worker got it from us.
    fn drop_inactive_copy(&mut self, id: SocketId) {
        let stands_in = self.unsettled.iter().any(|(unsettled, _)| *unsettled == id);
        if !stands_in && self.core.socket(id).is_some_and(|socket| !socket.active) {
            self.copies.drop_copy(id);
        }
    }

    fn activate(&mut self, request: &Request<'_>, id: SocketId, key: &Key, first: bool) {
        let is_new = !self.core.sockets().iter().any(|socket| socket.active && socket.key.matches(key));
        self.core.activated(request.now, request.worker.serial, id, key);
        self.note_activity(request.now);
        if is_new {
            self.reports.push(Report::Listening { address: key.to_string() });
        }
        let watched = self.core.socket(id).is_some_and(|socket| !is_for_all(socket.scope));
        if first && watched {
            self.watch_queue(id);
        }
        self.reconcile(request.now);
    }

    /// Handles `listen` on a socket that is not shared. Its success makes the worker ready, so `listen` is called
    /// here, on a copy, if there is one.
    fn listen_alone(
        &mut self,
        request: &Request<'_>,
        socket: &CallerSocket,
        backlog: i32,
    ) -> io::Result<Decision> {
        if matches!(socket.kind, Kind::Other | Kind::Udp { .. }) {
            return Ok(answer(Answer::Continue));
        }
        if let Some(process) = self.processes.get_mut(&request.worker.serial) {
            process.alone.insert(socket.inode);
        }
        match socket.copy().map(|copy| sockets::listen(copy, backlog)) {
            Some(Err(error)) => Ok(refused(&error)),
            // The worker calls it again: the peers of a Unix socket see the last caller.
            Some(Ok(())) | None => {
                if let Some(copy) = socket.copy() {
                    self.note_alone(request, copy);
                }
                Ok(self.ready(request, Answer::Continue, None))
            }
        }
    }

    /// Replaces a worker's socket as it begins to listen: by one in which connections wait for it, or by one that its
    /// siblings have. `None`: a scan for the socket's registrations with epoll is in progress.
    pub(super) fn exchange(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        own: SocketId,
        there: SocketId,
    ) -> io::Result<Option<SocketId>> {
        let serial = request.worker.serial;
        let Some(registered) = self.registered_with_epoll(request, fd) else { return Ok(None) };
        let copied = match self.copies.get(there) {
            Some(_) => None,
            None => self.copy_from_user(there, serial),
        };
        if let Some(copy) = copied {
            self.copies.insert(there, copy);
        }
        let Some(open) = self.copies.get(there) else { return Ok(Some(own)) };
        let flags = request.peer.flags(fd)?;
        if self.core.socket(there).is_some_and(|socket| socket.users.is_empty()) {
            sockets::set_nonblocking(open.fd(), flags & libc::O_NONBLOCK != 0)?;
        }
        request.put(open.fd(), fd, flags, &registered)?;
        self.core.released(serial, own);
        self.core.give(serial, there, false);
        self.core.exchanged(serial, own, there);
        self.reconcile(request.now);
        Ok(Some(there))
    }

    fn substitute(&self, serial: u64, id: SocketId) -> Option<SocketId> {
        let substitutes = &self.processes.get(&serial)?.substitutes;
        substitutes.iter().find(|(own, _)| *own == id).map(|(_, there)| *there)
    }

    fn forget_substitute(&mut self, serial: u64, id: SocketId) {
        if let Some(process) = self.processes.get_mut(&serial) {
            process.substitutes.retain(|(own, _)| *own != id);
        }
    }

    pub(super) fn listeners_of(&self, serial: u64) -> usize {
        let of_worker = |socket: &&super::core::Socket| socket.active && socket.users.contains(&serial);
        self.core.sockets().iter().filter(of_worker).count()
    }

    fn report_if_full(&mut self, request: &Request<'_>, full: bool, id: SocketId) {
        if !full {
            return;
        }
        self.core.released(request.worker.serial, id);
        if let Some(process) = self.processes.get_mut(&request.worker.serial)
            && !std::mem::replace(&mut process.is_full, true)
        {
            self.reports.push(Report::TooManyListeners { worker: request.worker, limit: MAX_LISTENERS });
        }
    }
}
