//! A worker binds: ours goes under its descriptor's number.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use super::address::{Address, Key};
use super::broker::{Broker, Reply};
use super::caller::{CallerSocket, is_shortage};
use super::calls::{Request, plain};
use super::table::{Held, Part};
use super::unix::{Claim, Place, SocketFile};
use crate::sys::options;
use crate::sys::seccomp::{self, Answer, SocketOption};
use crate::sys::sockets::{self, Kind, Tcp};

/// The longest `sockaddr` that the kernel takes: programs pass the size of `sockaddr_storage`.
const LONGEST_ADDRESS: u32 = 128;

impl Broker {
    pub(super) fn bind(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        address: u64,
        length: u32,
    ) -> io::Result<Reply> {
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
}
