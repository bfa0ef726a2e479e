//! `bind` to a Unix path. The first worker of a generation binds its own socket; the others get that socket.

use std::io;
use std::os::fd::{AsFd, RawFd};
use std::path::Path;

use super::address::{Address, Key};
use super::bind::BIND_RETRY;
use super::broker::{Broker, Decision, PathUse};
use super::caller::{CallerSocket, is_shortage};
use super::calls::{Request, answer};
use super::core::{Bind, Socket, SocketId};
use super::occupants::Wanted;
use super::report::Report;
use super::unix::{Place, Refused};
use crate::sys::fs_identity::FsIdentity;
use crate::sys::seccomp::Answer;
use crate::sys::sockets;

impl Broker {
    pub(super) fn bind_path(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        socket: CallerSocket,
        path: &Path,
    ) -> io::Result<Decision> {
        let identity = request.peer.fs_identity()?;
        let Some(place) = self.place_of(request, &identity, libc::AT_FDCWD, path)? else {
            return Ok(answer(Answer::Continue));
        };
        if !self.rules.shares_path(&place.absolute()) {
            return Ok(answer(Answer::Continue));
        }
        self.paths = PathUse::Used;
        let key = place.key();
        if let Some(permanent) = self.permanent.iter().find(|permanent| permanent.key.matches(&key)) {
            let id = permanent.id;
            return self.give(request, fd, id, &Address::Path(path.to_owned()));
        }
        if !self.has_shards() {
            return self.bind_path_for_all(request, fd, &socket, place, &identity);
        }
        self.forget_without_file(request.worker.serial, &key);
        let at_path = self.at_path(&key);
        if at_path.is_none() && self.removals.is_under_way(request.now, request.worker.serial, &key) {
            return Ok(Decision::Wait(BIND_RETRY));
        }
        // Where the kernel gives no copy, a socket of ours replaces the worker's, and the worker binds that one.
        let stand_in = match socket.copy() {
            Some(_) => None,
            None => Some(sockets::new_unix()?),
        };
        let id = stand_in.as_ref().map_or(Ok(socket.inode), |stand_in| sockets::inode(stand_in.as_fd()))?;
        match self.core.bind_path(request.now, request.worker.serial, (id, &key), at_path) {
            Bind::Give(id) => return self.give(request, fd, id, &Address::Path(path.to_owned())),
            Bind::Refuse(errno) => return Ok(answer(Answer::Fail(errno))),
            Bind::Private | Bind::Check(_) => return Ok(answer(Answer::Continue)),
            Bind::Own { .. } => {}
        }
        self.copies.locate(request.worker.serial, id, request.call.thread, fd);
        let mut own = socket;
        if let Some(stand_in) = stand_in {
            let flags = request.peer.flags(fd)?;
            sockets::set_nonblocking(stand_in.as_fd(), flags & libc::O_NONBLOCK != 0)?;
            request.put(stand_in.as_fd(), fd, flags, &[])?;
            self.copies.insert(id, stand_in);
            own.inode = id;
        }
        if at_path.is_none() {
            if let Some(decision) = self.make_room(request, &place, &identity) {
                self.core.released(request.worker.serial, id);
                return Ok(decision);
            }
            self.copies.set_file(id, place.for_bind(&identity));
            return Ok(answer(Answer::Continue));
        }
        self.bind_beside(request, &own, place, path, &identity)
    }

    /// Binds a socket beside the path, where another generation's socket is. It moves to the path when its worker
    /// serves.
    fn bind_beside(
        &mut self,
        request: &Request<'_>,
        socket: &CallerSocket,
        place: Place,
        path: &Path,
        identity: &FsIdentity,
    ) -> io::Result<Decision> {
        let (id, key) = (socket.inode, place.key());
        let open = self.copies.get(id).map(super::copies::OpenSocket::fd).or_else(|| socket.copy());
        let Some(open) = open else { return Ok(answer(Answer::Continue)) };
        match place.bind_beside(open, identity, self.access) {
            Ok(file) => {
                self.copies.set_file(id, file);
                if let Some(process) = self.processes.get_mut(&request.worker.serial) {
                    process.given = Some((id, Address::Path(path.to_owned())));
                }
                Ok(answer(Answer::Done))
            }
            Err(why) => {
                self.core.released(request.worker.serial, id);
                self.reconcile(request.now);
                Ok(self.refuse(request.worker, &key, why.errno(), why))
            }
        }
    }

    /// `--share shared`: all workers have the same socket at the path, permanently.
    fn bind_path_for_all(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        socket: &CallerSocket,
        place: Place,
        identity: &FsIdentity,
    ) -> io::Result<Decision> {
        let key = place.key();
        let at_path = self.at_path(&key);
        if at_path.is_none() && self.removals.is_under_way(request.now, request.worker.serial, &key) {
            return Ok(Decision::Wait(BIND_RETRY));
        }
        if !self.core.sockets().iter().any(|known| known.key.matches(&key)) {
            if let Some(decision) = self.make_room(request, &place, identity) {
                return Ok(decision);
            }
            self.copies.set_file(socket.inode, place.for_bind(identity));
        }
        self.bind_one_for_all(request, fd, socket, key)
    }

    /// Forgets sockets that a worker has bound at a path without listening, and whose file is gone or was never
    /// created.
    fn forget_without_file(&mut self, serial: u64, key: &Key) {
        let is_own =
            |socket: &&Socket| !socket.active && socket.users.contains(&serial) && socket.key.matches(key);
        let ids: Vec<SocketId> = self.core.sockets().iter().filter(is_own).map(|socket| socket.id).collect();
        for id in ids {
            if self.copies.file(id).is_none_or(|file| !file.is_there()) {
                self.core.released(serial, id);
            }
        }
    }

    /// Removes a stale socket file at the path. If something else is there, the kernel refuses the bind, and the log
    /// says what it is. The file of a living worker stays: the worker's own `bind` fails as it does without a
    /// supervisor. Returns what the call must wait for, if anything.
    fn make_room(&mut self, request: &Request<'_>, place: &Place, identity: &FsIdentity) -> Option<Decision> {
        if self.core.is_known(&place.key()) {
            return None;
        }
        if let Err(why) = place.make_room(identity) {
            if let Refused::Answered(answerer) = why {
                let wanted = Wanted { key: place.key(), answerer: Some(answerer) };
                if let Some(decision) = self.seek_occupant(request, wanted) {
                    return Some(decision);
                }
            }
            let (worker, address) = (request.worker, place.key().to_string());
            self.reports.push(Report::Refused { worker, address, why: why.to_string() });
        }
        None
    }

    /// The place that a worker's path names. If it has none, the kernel reports the right errno.
    pub(super) fn place_of(
        &self,
        request: &Request<'_>,
        identity: &FsIdentity,
        dir: RawFd,
        path: &Path,
    ) -> io::Result<Option<Place>> {
        match Place::of(&request.peer, identity, dir, path) {
            Ok(place) => Ok(Some(place)),
            Err(error) if is_shortage(&error) => Err(error),
            Err(_not_the_workers_to_look_into) => Ok(None),
        }
    }

    /// The socket of ours that clients reach at a path. Sockets whose file is neither at the path nor beside it are
    /// marked as unlinked: later binds do not get them.
    pub(super) fn at_path(&mut self, key: &Key) -> Option<SocketId> {
        let of_key = self.core.sockets().iter().filter(|socket| socket.key.matches(key));
        let ids: Vec<SocketId> = of_key.map(|socket| socket.id).collect();
        let mut at_path = None;
        for id in ids {
            let Some(file) = self.copies.file(id) else { continue };
            if file.is_at_path() {
                at_path = Some(id);
            } else if file.is_lost() {
                self.core.unlinked(id);
            }
        }
        at_path
    }

    /// Moves the wanted socket to its path.
    pub(super) fn arrange(&mut self, key: &Key) {
        let at_path = self.at_path(key);
        let Some(wanted) = self.core.wanted_at(key, at_path).filter(|wanted| at_path != Some(*wanted)) else {
            return;
        };
        let Some((file, current)) = self.copies.two_files(wanted, at_path) else { return };
        if let Err(error) = file.take_place_of(current) {
            let address = key.to_string();
            self.reports.push(Report::NotRenamed { address, error });
        }
    }
}
