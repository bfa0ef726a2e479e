//! Answering the workers' calls.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::address::{Address, Key};
use super::caller::CallerSocket;
use super::handed::HandedOver;
use super::table::{Held, Table};
use super::unix::{Access, Place};
use crate::sys::peer::{self, Peer};
use crate::sys::seccomp::{self, Answer, Call, Calls, Notification, SocketOption};
use crate::sys::sockets::{self, Kind};

/// The longest `sockaddr` of the families that we share; the kernel's own limit is 128.
const LONGEST_ADDRESS: u32 = 110;

/// Options that one worker set on sockets that it has not bound: a worker that sets them on every outgoing
/// connection must not fill our memory, and the one that it is about to bind is among the latest.
const REMEMBERED_OPTIONS: usize = 32;

/// Holds the shared sockets and hands them out.
#[derive(Debug)]
pub struct Broker {
    shares: bool,
    access: Access,
    table: Table,
    workers: HashMap<u64, WorkerSockets>,
    /// Whether workers' sockets can be copied and so looked at.
    can_copy: bool,
    /// Whether any worker has listened: then what is held is what this program binds.
    program_known: bool,
}

/// What we remember of one worker.
#[derive(Debug, Default)]
struct WorkerSockets {
    /// Inode numbers of ours that were put into its table.
    bound: Vec<u64>,
    options: Vec<(u64, SocketOption, bool)>,
}

/// The answer to a call, and what else follows from it.
#[derive(Debug)]
pub struct Reply {
    /// What the kernel is to be told.
    pub answer: Answer,
    /// The worker listens on a stream socket: it is ready.
    pub listens: bool,
    /// What the user may want to know.
    pub remark: Option<Remark>,
}

/// Something that came up while a call was answered.
#[derive(Debug)]
pub enum Remark {
    /// We hold a new address from now on.
    Holds(String),
    /// A worker cannot have an address, and is told so.
    Refused(String, String),
    /// A worker's call could not be looked at: it is carried out unshared.
    Unseen(&'static str, io::Error),
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remark::Holds(address) => write!(f, "listening on {address}, shared by all workers"),
            Remark::Refused(address, why) => write!(f, "cannot have {address}: {why}"),
            Remark::Unseen(call, error) => {
                write!(
                    f,
                    "its {call} cannot be looked into ({error}): its address is not shared"
                )
            }
        }
    }
}

impl Reply {
    fn plain(answer: Answer) -> Reply {
        Reply {
            answer,
            listens: false,
            remark: None,
        }
    }

    fn refused(key: &Key, errno: i32, why: impl fmt::Display) -> Reply {
        let remark = Remark::Refused(key.to_string(), why.to_string());
        Reply {
            answer: Answer::Fail(errno),
            listens: false,
            remark: Some(remark),
        }
    }
}

impl Broker {
    /// A broker that answers `bind` where `shares`, and otherwise only watches `listen`. It holds what was
    /// opened for handing over as well, so that a worker that binds such an address gets that very socket.
    pub fn new(shares: bool, access: Access, handed_over: &mut HandedOver) -> Broker {
        let mut table = Table::default();
        for held in handed_over.take_held() {
            table.add(held);
        }
        Broker {
            shares,
            access,
            table,
            workers: HashMap::new(),
            can_copy: peer::can_copy(),
            program_known: false,
        }
    }

    /// What the next worker's filter must send us.
    ///
    /// `unlink` costs a program that removes many files dearly, so it is asked for only until it is known
    /// that the program listens on no Unix path.
    pub fn calls(&self) -> Calls {
        Calls {
            bind: self.shares,
            options: self.shares && !self.can_copy,
            listen: true,
            shutdown: self.shares,
            unlink: self.shares && (!self.program_known || self.table.has_files()),
        }
    }

    /// A worker and every descendant of it are gone.
    pub fn forget(&mut self, worker: u64) {
        self.workers.remove(&worker);
    }

    /// Decides what becomes of a worker's call, and does what must be done before it is answered.
    pub fn reply(&mut self, listener: BorrowedFd<'_>, call: &Notification, worker: u64) -> Reply {
        let peer = Peer::new(call.thread);
        let request = Request {
            listener,
            call,
            peer,
            worker,
        };
        let (name, result) = match call.call {
            Call::Bind { fd, address, length } => ("bind", self.bind(&request, fd, address, length)),
            Call::Listen { fd, backlog } => ("listen", self.listen(peer, fd, backlog)),
            Call::SetOption { fd, option, value } => {
                ("setsockopt", self.set_option(&request, fd, option, value))
            }
            Call::Shutdown { fd } => ("shutdown", self.shutdown(peer, fd)),
            Call::Unlink { dir, path } => ("unlink", self.unlink(&request, dir, path)),
            Call::Other => ("call", Ok(Reply::plain(Answer::Continue))),
        };
        result.unwrap_or_else(|error| {
            let gone = !seccomp::is_waiting(listener, call);
            // A program's own mistake (a bad descriptor, a bad address) is the kernel's to report.
            let mistake = matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::EBADF | libc::EIO | libc::ENOTSOCK)
            );
            let remark = (!gone && !mistake).then_some(Remark::Unseen(name, error));
            Reply {
                answer: Answer::Continue,
                listens: false,
                remark,
            }
        })
    }

    fn bind(&mut self, request: &Request<'_>, fd: RawFd, address: u64, length: u32) -> io::Result<Reply> {
        if !(2..=LONGEST_ADDRESS).contains(&length) {
            return Ok(Reply::plain(Answer::Continue));
        }
        let bytes = request.peer.memory(address, length as usize)?;
        let address = Address::decode(&bytes);
        if address == Address::Private {
            return Ok(Reply::plain(Answer::Continue));
        }
        let socket = CallerSocket::look(request.peer, fd)?;
        if !request.is_waiting() || !request.peer.shares_network()? {
            return Ok(Reply::plain(Answer::Continue));
        }
        match (address, socket.kind) {
            (Address::Inet(address @ SocketAddr::V4(_)), Kind::Inet) => self.bind_key(
                request,
                fd,
                &socket,
                Key::Inet {
                    address,
                    v6only: false,
                },
            ),
            (Address::Inet(address @ SocketAddr::V6(_)), Kind::Inet6) => {
                let inode = request.peer.inode(fd)?;
                let known = self.option_of(request.worker, inode, SocketOption::V6Only);
                let v6only = socket.v6only.or(known).unwrap_or(false);
                self.bind_key(request, fd, &socket, Key::Inet { address, v6only })
            }
            (Address::Path(path), Kind::UnixStream) => self.bind_path(request, fd, &socket, &path),
            (Address::Abstract(name), Kind::UnixStream) => {
                self.bind_key(request, fd, &socket, Key::Abstract(name))
            }
            (Address::Inet(_) | Address::Path(_) | Address::Abstract(_) | Address::Private, _kind) => {
                Ok(Reply::plain(Answer::Continue))
            }
        }
    }

    fn bind_path(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        socket: &CallerSocket,
        path: &Path,
    ) -> io::Result<Reply> {
        let Ok(place) = Place::open(&request.peer.resolve(libc::AT_FDCWD, path), path) else {
            // A folder that is not there, or not ours to look into: the kernel knows the right errno.
            return Ok(Reply::plain(Answer::Continue));
        };
        let key = place.key();
        if self.table.by_key(&key).is_some_and(|held| held.is_in_place()) {
            return self.bind_key(request, fd, socket, key);
        }
        let identity = request.peer.fs_identity()?;
        match place.claim(Some(identity), self.access) {
            Err(why) => Ok(Reply::refused(&key, why.errno(), why)),
            Ok(ours) => {
                self.table.add(Held::bound(key.clone(), ours, Some(place))?);
                let mut reply = self.bind_key(request, fd, socket, key.clone())?;
                reply.remark = reply.remark.or_else(|| Some(Remark::Holds(key.to_string())));
                Ok(reply)
            }
        }
    }

    /// Gives the worker our socket for `key`, making one where there is none yet.
    fn bind_key(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        socket: &CallerSocket,
        key: Key,
    ) -> io::Result<Reply> {
        let mut remark = None;
        let mine = self.workers.entry(request.worker).or_default();
        let held = match self.table.by_key(&key) {
            Some(held) => held,
            None => {
                let model = socket.copy.as_ref().map(AsFd::as_fd);
                let ours = match &key {
                    Key::Inet { address, v6only } => sockets::bind_tcp(*address, *v6only, model),
                    Key::Abstract(name) => sockets::bind_abstract(name),
                    Key::Unix { .. } => {
                        return Err(io::Error::other("a Unix path is claimed before it is bound"));
                    }
                };
                let ours = match ours {
                    Ok(ours) => ours,
                    Err(error) => {
                        let errno = error.raw_os_error().unwrap_or(libc::EIO);
                        return Ok(Reply::refused(&key, errno, format_args!("bind: {error}")));
                    }
                };
                remark = Some(Remark::Holds(key.to_string()));
                self.table.add(Held::bound(key, ours, None)?)
            }
        };
        // Binding an address twice fails, as it would without us: searches for a free port rely on it.
        let twice = mine.bound.contains(&held.inode) && request.peer.holds(held.inode)?;
        if twice && socket.reuseport != Some(true) {
            return Ok(Reply::plain(Answer::Fail(libc::EADDRINUSE)));
        }
        let flags = request.peer.flags(fd)?;
        sockets::set_nonblocking(held.fd(), flags & libc::O_NONBLOCK != 0)?;
        let close_on_exec = flags & libc::O_CLOEXEC != 0;
        seccomp::put_descriptor(request.listener, request.call, held.fd(), fd, close_on_exec)?;
        if !mine.bound.contains(&held.inode) {
            mine.bound.push(held.inode);
        }
        Ok(Reply {
            answer: Answer::Done,
            listens: false,
            remark,
        })
    }

    fn listen(&mut self, peer: Peer, fd: RawFd, backlog: i32) -> io::Result<Reply> {
        let inode = peer.inode(fd)?;
        let Some(held) = self.table.by_inode(inode) else {
            let listens = CallerSocket::look(peer, fd)?.kind != Kind::Other;
            self.program_known |= listens;
            return Ok(Reply {
                answer: Answer::Continue,
                listens,
                remark: None,
            });
        };
        self.program_known = true;
        match held.listen(backlog) {
            Ok(()) => Ok(Reply {
                answer: Answer::Done,
                listens: true,
                remark: None,
            }),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                Ok(Reply::refused(&held.key, errno, format_args!("listen: {error}")))
            }
        }
    }

    /// A listener that one worker shuts down would be shut for all of them; it may only close its copy.
    fn shutdown(&mut self, peer: Peer, fd: RawFd) -> io::Result<Reply> {
        if self.table.is_empty() {
            return Ok(Reply::plain(Answer::Continue));
        }
        let ours = self.table.by_inode(peer.inode(fd)?).is_some();
        Ok(Reply::plain(if ours { Answer::Done } else { Answer::Continue }))
    }

    /// A path that we hold stays; the worker believes that it is gone, which is all that it needs.
    fn unlink(&mut self, request: &Request<'_>, dir: RawFd, path: u64) -> io::Result<Reply> {
        if !self.table.has_files() {
            return Ok(Reply::plain(Answer::Continue));
        }
        let path = request.peer.string(path)?;
        let path = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
        if !path
            .file_name()
            .is_some_and(|name| self.table.has_file_called(name))
        {
            return Ok(Reply::plain(Answer::Continue));
        }
        let Ok(place) = Place::open(&request.peer.resolve(dir, path), path) else {
            return Ok(Reply::plain(Answer::Continue));
        };
        let ours = self
            .table
            .by_key(&place.key())
            .is_some_and(|held| held.is_in_place());
        Ok(Reply::plain(if ours && request.is_waiting() {
            Answer::Done
        } else {
            Answer::Continue
        }))
    }

    fn set_option(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        option: SocketOption,
        value: u64,
    ) -> io::Result<Reply> {
        let bytes = request.peer.memory(value, size_of::<i32>())?;
        let on = bytes.iter().any(|byte| *byte != 0);
        let inode = request.peer.inode(fd)?;
        let options = &mut self.workers.entry(request.worker).or_default().options;
        options.retain(|(at, which, _)| (*at, *which) != (inode, option));
        if options.len() >= REMEMBERED_OPTIONS {
            options.remove(0);
        }
        options.push((inode, option, on));
        Ok(Reply::plain(Answer::Continue))
    }

    fn option_of(&self, worker: u64, inode: u64, option: SocketOption) -> Option<bool> {
        let options = &self.workers.get(&worker)?.options;
        options
            .iter()
            .find(|(at, which, _)| (*at, *which) == (inode, option))
            .map(|(_, _, on)| *on)
    }
}

/// A call and who made it.
struct Request<'a> {
    listener: BorrowedFd<'a>,
    call: &'a Notification,
    peer: Peer,
    worker: u64,
}

impl Request<'_> {
    fn is_waiting(&self) -> bool {
        seccomp::is_waiting(self.listener, self.call)
    }
}
