//! Answering the workers' calls.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::address::{Address, Key};
use super::broker::{Broker, Listens, Reply};
use super::caller::{CallerSocket, is_shortage};
use super::remark::Remark;
use super::table::{Held, Part};
use super::unix::{Claim, Place, SocketFile};
use crate::policy::WorkerId;
use crate::sys::options;
use crate::sys::peer::Peer;
use crate::sys::seccomp::{self, Answer, Call, Notification, SocketOption};
use crate::sys::sockets::{self, Kind, Tcp};

/// The longest `sockaddr` that the kernel takes: programs pass the size of `sockaddr_storage`.
const LONGEST_ADDRESS: u32 = 128;

/// A call and who made it.
struct Request<'a> {
    listener: BorrowedFd<'a>,
    call: &'a Notification,
    peer: Peer,
    worker: WorkerId,
}

impl Request<'_> {
    fn is_waiting(&self) -> bool {
        seccomp::is_waiting(self.listener, self.call)
    }
}

fn plain(answer: Answer) -> Reply {
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

    fn refuse(&mut self, worker: WorkerId, key: &Key, errno: i32, why: impl Display) -> Reply {
        let (address, why) = (key.to_string(), why.to_string());
        self.remarks.push(Remark::Refused { worker, address, why });
        plain(Answer::Fail(errno))
    }

    fn bind(&mut self, request: &Request<'_>, fd: RawFd, address: u64, length: u32) -> io::Result<Reply> {
        if !(2..=LONGEST_ADDRESS).contains(&length) {
            return Ok(plain(Answer::Continue));
        }
        let address = Address::decode(&request.peer.memory(address, length as usize)?);
        if address == Address::Private {
            return Ok(plain(Answer::Continue));
        }
        let socket = CallerSocket::look(request.peer, fd)?;
        let inode = request.peer.inode(fd)?;
        let ours = self.table.by_inode(inode).is_some();
        if let Some(member) = self.members.get_mut(request.worker.serial) {
            member.asks(Some(address.clone()));
            // The call once more that it was torn out of: it has what it asks for.
            if ours && member.take_unheard(inode, &address) {
                member.is_given(inode);
                return Ok(plain(Answer::Done));
            }
        }
        // Before Linux 5.14 the kernel would make a file at the path before it sees that the socket has an address,
        // and leave it there.
        if ours && matches!(address, Address::Path(_)) {
            return Ok(plain(Answer::Fail(libc::EINVAL)));
        }
        // What is bound already the kernel refuses; and one of ours is.
        let bound = ours || !socket.bindable;
        if bound || !request.is_waiting() || !request.peer.shares_network()? {
            return Ok(plain(Answer::Continue));
        }
        match (address, socket.kind) {
            (Address::Inet(address @ SocketAddr::V4(_)), Kind::Inet) => {
                self.bind_key(request, fd, &socket, &Key::Inet { address, v6only: false })
            }
            (Address::Inet(address @ SocketAddr::V6(_)), Kind::Inet6) => {
                let member = self.members.get(request.worker.serial);
                let noted = member.and_then(|member| member.option(inode, SocketOption::V6Only));
                let v6only = socket.v6only.or(noted).unwrap_or(false);
                self.bind_key(request, fd, &socket, &Key::Inet { address, v6only })
            }
            (Address::Path(path), Kind::UnixStream) => self.bind_path(request, fd, &socket, &path),
            (Address::Abstract(name), Kind::UnixStream) => {
                self.bind_key(request, fd, &socket, &Key::Abstract(name))
            }
            (Address::Inet(_) | Address::Path(_) | Address::Abstract(_) | Address::Private, _kind) => {
                Ok(plain(Answer::Continue))
            }
        }
    }

    /// Whose socket of an address this worker gets: one that was handed over is everybody's.
    fn part(&mut self, request: &Request<'_>, key: &Key) -> Part {
        let Some(member) = self.members.get(request.worker.serial).filter(|_| self.parts()) else {
            return Part::All;
        };
        let (lane, generation) = (member.lane, member.generation);
        if self.table.find(key, Part::All).is_some() {
            return Part::All;
        }
        match key {
            Key::Inet { .. } => Part::Lane(lane),
            Key::Abstract(_) => Part::All,
            Key::Unix { .. } => Part::Generation(self.generation_for(key, generation)),
        }
    }

    fn bind_key(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        socket: &CallerSocket,
        key: &Key,
    ) -> io::Result<Reply> {
        let part = self.part(request, key);
        // A program that binds in order to connect has made a connection of what it got: that is not for others.
        if let Some(used) = self.table.find(key, part).filter(|held| held.is_used_up()).map(|held| held.inode)
        {
            self.table.remove(used);
        }
        if self.table.find(key, part).is_none() {
            match self.open(key, part, socket) {
                Ok(ours) => self.hold(key, part, ours, None)?,
                Err(error) => {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    return Ok(self.refuse(request.worker, key, errno, format_args!("bind: {error}")));
                }
            }
        }
        self.give(request, fd, socket, key, part)
    }

    /// A socket of ours for an address that is not a path.
    fn open(&mut self, key: &Key, part: Part, socket: &CallerSocket) -> io::Result<OwnedFd> {
        let model = socket.copy();
        match key {
            Key::Inet { address, v6only } => {
                let reuseport = part != Part::All;
                if reuseport && self.table.of_key(key).next().is_none() {
                    // With SO_REUSEPORT we would share the port with a stranger of our user, unseen.
                    drop(sockets::bind_tcp(*address, Tcp { v6only: *v6only, ..Tcp::default() })?);
                }
                sockets::bind_tcp(*address, Tcp { v6only: *v6only, reuseport, model })
            }
            Key::Abstract(name) => sockets::bind_abstract(name),
            Key::Unix { .. } => Err(io::Error::other("a Unix path is claimed before it is bound")),
        }
    }

    fn hold(&mut self, key: &Key, part: Part, fd: OwnedFd, file: Option<SocketFile>) -> io::Result<()> {
        let held = self.table.add(Held::bound(key.clone(), part, fd, file)?);
        self.unlistened.push(held.inode);
        Ok(())
    }

    fn bind_path(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        socket: &CallerSocket,
        path: &Path,
    ) -> io::Result<Reply> {
        let identity = request.peer.fs_identity()?;
        let place = match Place::of(request.peer, &identity, libc::AT_FDCWD, path) {
            Ok(place) => place,
            Err(error) if is_shortage(&error) => return Err(error),
            // A folder that is not there, or not the worker's to look into: the kernel knows the right errno.
            Err(_) => return Ok(plain(Answer::Continue)),
        };
        let key = place.key();
        let part = self.part(request, &key);
        if !self.table.find(&key, part).is_some_and(|held| held.is_in_place()) {
            let how = Claim { access: self.access, identity: Some(&identity), model: socket.copy() };
            let taken = self.table.of_key(&key).any(|held| held.is_in_place());
            let claimed = match part {
                Part::Generation(generation) if taken => place.claim_beside(generation, how),
                Part::Generation(_) | Part::All | Part::Lane(_) => place.claim(how),
            };
            match claimed {
                Ok((ours, file)) => self.hold(&key, part, ours, Some(file))?,
                Err(why) => return Ok(self.refuse(request.worker, &key, why.errno(), why)),
            }
        }
        self.give(request, fd, socket, &key, part)
    }

    /// Puts our socket in the place of the worker's.
    fn give(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        socket: &CallerSocket,
        key: &Key,
        part: Part,
    ) -> io::Result<Reply> {
        let Some(held) = self.table.find(key, part) else {
            return Ok(plain(Answer::Continue));
        };
        let Some(member) = self.members.get_mut(request.worker.serial) else {
            return Ok(plain(Answer::Continue));
        };
        // Binding an address twice fails, as it would without us: searches for a free port rely on it.
        let twice = member.bound.contains(&held.inode) && request.peer.holds(held.inode)?;
        let noted =
            || request.peer.inode(fd).ok().and_then(|inode| member.option(inode, SocketOption::ReusePort));
        if twice && socket.reuseport.or_else(noted) != Some(true) {
            return Ok(plain(Answer::Fail(libc::EADDRINUSE)));
        }
        // Options and flags belong to the socket, not to the descriptor: where others use it, they are theirs too.
        let inode = held.inode;
        let flags = request.peer.flags(fd)?;
        if !self.members.others_have(request.worker.serial, inode) {
            if let Some(model) = socket.copy() {
                options::copy_options(model, held.fd());
            }
            sockets::set_nonblocking(held.fd(), flags & libc::O_NONBLOCK != 0)?;
        }
        let Some(member) = self.members.get_mut(request.worker.serial) else {
            return Ok(plain(Answer::Continue));
        };
        let close_on_exec = flags & libc::O_CLOEXEC != 0;
        seccomp::put_descriptor(request.listener, request.call, held.fd(), fd, close_on_exec)?;
        if !member.bound.contains(&held.inode) {
            member.bound.push(held.inode);
        }
        member.is_given(held.inode);
        held.users.insert(request.worker.slot);
        held.shut = false;
        Ok(plain(Answer::Done))
    }

    fn listen(&mut self, request: &Request<'_>, fd: RawFd, backlog: i32) -> io::Result<Reply> {
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
