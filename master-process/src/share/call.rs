//! A worker's call, and what several of the handlers that decide calls do.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::time::Duration;

use super::address::{Address, Key};
use super::caller_socket::CallerSocket;
use super::callers::Callers;
use super::core::{Bind, Scope, SocketId};
use super::occupants::{Occupants, Seeking, Wanted};
use super::path_use::Paths;
use super::readiness::Expected;
use super::report::Report;
use super::scans::{Question, Requested, Scans};
use super::sockets::Sockets;
use super::unix::Access;
use crate::config::{Share, ShareRules};
use crate::policy::{Time, WorkerId};
use crate::sys::epoll_entries::{self, Entry};
use crate::sys::holders::Holder;
use crate::sys::peer::Peer;
use crate::sys::seccomp::{self, Answer, Notification};
use crate::sys::sockets;

/// The delay before a `bind` is tried again that waits for another `bind` to finish, which takes microseconds.
pub(super) const BIND_RETRY: Duration = Duration::from_millis(1);

/// The delay before a call is tried again whose worker has the maximum number of scans in progress.
const SCAN_RETRY: Duration = Duration::from_millis(20);

/// A call that waits for its answer, its caller, and the parts of the broker that decide it.
pub(super) struct Call<'a> {
    pub(super) settings: &'a Settings,
    pub(super) expected: &'a Expected,
    pub(super) sockets: &'a mut Sockets,
    pub(super) scans: &'a mut Scans,
    pub(super) callers: &'a mut Callers,
    pub(super) paths: &'a mut Paths,
    pub(super) occupants: &'a mut Occupants,
    pub(super) listener: BorrowedFd<'a>,
    pub(super) notification: &'a Notification,
    pub(super) peer: Peer,
    pub(super) worker: WorkerId,
    pub(super) now: Time,
}

/// What is shared, and how. It does not change while workers run.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) share: Share,
    pub(super) rules: ShareRules,
    pub(super) access: Access,
    /// The `NOTIFY_SOCKET` of our workers. The workers of a nested supervisor have a different one.
    pub(super) notify_address: Vec<u8>,
    /// Whether workers' sockets can be copied, and so inspected.
    pub(super) can_copy: bool,
}

impl Settings {
    /// Whether each worker, or each generation, has its own sockets.
    pub(super) fn has_shards(&self) -> bool {
        matches!(self.share, Share::Auto | Share::Slots)
    }
}

/// The answer to a call.
#[derive(Debug)]
pub enum Decision {
    /// The answer for the kernel, and what else follows.
    Reply(Reply),
    /// Try again after this time.
    Wait(Duration),
    /// Try again when [`Broker::take_scans`](super::Broker::take_scans) names the call.
    AwaitScan,
}

/// The answer to a call, and what else follows from it.
#[derive(Debug)]
pub struct Reply {
    /// The answer for the kernel.
    pub answer: Answer,
    /// The worker listens on a stream socket.
    pub listens: Option<Listens>,
}

/// Whether a worker listens on all addresses that are expected of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listens {
    /// On all of them.
    All,
    /// At least one is missing.
    Some,
}

pub(super) fn answer(answer: Answer) -> Decision {
    Decision::Reply(Reply { answer, listens: None })
}

impl Call<'_> {
    /// Whether the caller still waits for the answer.
    pub(super) fn is_waiting(&self) -> bool {
        seccomp::is_waiting(self.listener, self.notification)
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
        seccomp::put_descriptor(self.listener, self.notification, socket, at, flags & libc::O_CLOEXEC != 0)?;
        epoll_entries::put_back(&self.peer, socket, at, registered)
    }

    /// Fails the call, and reports why.
    pub(super) fn refuse(&mut self, key: &Key, errno: i32, why: impl Display) -> Decision {
        let (address, why) = (key.to_string(), why.to_string());
        self.sockets.report(Report::Refused { worker: self.worker, address, why });
        answer(Answer::Fail(errno))
    }

    /// Checks whether a worker still has these sockets open, and releases those that it has closed. `false`: a scan
    /// of its descriptors is in progress.
    pub(super) fn check(&mut self, ids: &[SocketId]) -> bool {
        let serial = self.worker.serial;
        let mut known = true;
        for id in ids.iter().copied() {
            match self.whereabouts(serial, id) {
                Whereabouts::Open => {}
                Whereabouts::Closed => self.sockets.released(self.now, serial, id),
                Whereabouts::Scanning => known = false,
            }
        }
        known
    }

    /// Whether a worker has a socket open; the call waits for the answer. If the socket is not at its last known
    /// descriptor, all descriptors of the worker's process tree are scanned.
    fn whereabouts(&mut self, user: u64, id: SocketId) -> Whereabouts {
        if self.sockets.copies.location(user, id).is_some_and(|at| at.has(id)) {
            return Whereabouts::Open;
        }
        match self.scans.holder(self.notification, id) {
            Some(Holder::NoProcess) => Whereabouts::Closed,
            Some(Holder::Found(thread, fd)) => {
                self.sockets.copies.locate(user, id, thread, fd);
                Whereabouts::Open
            }
            Some(Holder::Unowned | Holder::Unknown) => Whereabouts::Open,
            None => {
                let call = (self.worker.serial, *self.notification);
                match self.scans.request(user, Question::Holder(id), Some(call)) {
                    Requested::Sent | Requested::Busy => Whereabouts::Scanning,
                    Requested::Impossible => Whereabouts::Open,
                }
            }
        }
    }

    /// Handles a socket without a copy that is not where its worker had it. Another process of the worker may have
    /// it; if none does, it is closed, and is forgotten.
    pub(super) fn seek_user(&mut self, id: SocketId) -> Decision {
        let users = self.sockets.core.socket(id).map(|socket| socket.users.clone()).unwrap_or_default();
        let serial = self.worker.serial;
        for user in users.into_iter().filter(|user| *user != serial) {
            match self.whereabouts(user, id) {
                Whereabouts::Scanning => return self.await_scan(),
                Whereabouts::Open if self.sockets.copies.location(user, id).is_some_and(|at| at.has(id)) => {
                    return Decision::Wait(BIND_RETRY);
                }
                Whereabouts::Open | Whereabouts::Closed => self.sockets.core.released(user, id),
            }
        }
        self.sockets.core.drop_socket(id);
        self.sockets.reconcile(self.now);
        Decision::Wait(BIND_RETRY)
    }

    /// The decision of a call that waits for a scan: it is tried again when the scan has ended, or after a delay if
    /// its worker has the maximum number in progress.
    pub(super) fn await_scan(&self) -> Decision {
        if self.scans.is_awaited_by(self.notification) {
            Decision::AwaitScan
        } else {
            Decision::Wait(SCAN_RETRY)
        }
    }

    /// Binds an address that has one socket for all workers: the first worker's own, which the others get.
    pub(super) fn bind_one_for_all(
        &mut self,
        fd: RawFd,
        socket: &CallerSocket,
        key: Key,
    ) -> io::Result<Decision> {
        let (serial, mut checked) = (self.worker.serial, false);
        let given_for = match &key {
            Key::Inet { address, .. } => Address::Inet(*address),
            Key::Abstract(name) => Address::Abstract(name.clone()),
            Key::Unix { shown, .. } => Address::Path(shown.clone()),
        };
        loop {
            match self.sockets.core.bind_shared(self.now, serial, (socket.inode, &key), checked) {
                Bind::Check(ids) if self.check(&ids) => checked = true,
                Bind::Check(_) => return Ok(self.await_scan()),
                Bind::Give(id) => return self.give(fd, id, &given_for),
                Bind::Refuse(errno) => return Ok(answer(Answer::Fail(errno))),
                Bind::Private => return Ok(answer(Answer::Continue)),
                Bind::Own { .. } => {
                    self.sockets.copies.locate(serial, socket.inode, self.notification.thread, fd);
                    return Ok(answer(Answer::Continue));
                }
            }
        }
    }

    /// Replaces a worker's socket by one that other workers have.
    pub(super) fn give(&mut self, fd: RawFd, id: SocketId, address: &Address) -> io::Result<Decision> {
        let serial = self.worker.serial;
        let Some(registered) = self.epoll_registrations(fd) else {
            return Ok(self.await_scan());
        };
        let copied = match self.sockets.copies.get(id) {
            Some(_) => None,
            // It does not listen yet, and only its worker has it open.
            None => match self.sockets.copy_from_user(id, serial) {
                Some(copy) if sockets::is_bound(copy.as_fd()) => Some(copy),
                Some(copy) => {
                    sockets::close_copy(copy);
                    if !self.sockets.may_be_binding(self.now, id) {
                        // Its `bind` failed.
                        self.sockets.core.drop_socket(id);
                        self.sockets.reconcile(self.now);
                    }
                    return Ok(Decision::Wait(BIND_RETRY));
                }
                None => return Ok(self.seek_user(id)),
            },
        };
        let socket = match (&copied, self.sockets.copies.get(id)) {
            (Some(copy), _) => copy.as_fd(),
            (None, Some(open)) => open.fd(),
            (None, None) => return Ok(answer(Answer::Continue)),
        };
        let flags = self.peer.flags(fd)?;
        // The flags belong to the open file description, so they apply to all its users.
        let others_use =
            self.sockets.core.socket(id).is_some_and(|known| known.users.iter().any(|user| *user != serial));
        if !others_use {
            sockets::set_nonblocking(socket, flags & libc::O_NONBLOCK != 0)?;
        }
        let put = self.put(socket, fd, flags, &registered);
        if let Some(copy) = copied {
            sockets::close_copy(copy);
        }
        put?;
        self.sockets.core.give(serial, id, false);
        self.sockets.copies.locate(serial, id, self.notification.thread, fd);
        if let Some(caller) = self.callers.get_mut(serial) {
            caller.give(id, address.clone());
        }
        Ok(answer(Answer::Done))
    }

    /// Replaces a worker's socket as it begins to listen: by one in which connections wait for it, or by one that its
    /// siblings have. `None`: a scan for the socket's registrations with epoll is in progress.
    pub(super) fn exchange(
        &mut self,
        fd: RawFd,
        own: SocketId,
        there: SocketId,
    ) -> io::Result<Option<SocketId>> {
        let serial = self.worker.serial;
        let Some(registered) = self.epoll_registrations(fd) else { return Ok(None) };
        let copied = match self.sockets.copies.get(there) {
            Some(_) => None,
            None => self.sockets.copy_from_user(there, serial),
        };
        if let Some(copy) = copied {
            self.sockets.copies.insert(there, copy);
        }
        let Some(open) = self.sockets.copies.get(there) else { return Ok(Some(own)) };
        let flags = self.peer.flags(fd)?;
        if self.sockets.core.socket(there).is_some_and(|socket| socket.users.is_empty()) {
            sockets::set_nonblocking(open.fd(), flags & libc::O_NONBLOCK != 0)?;
        }
        self.put(open.fd(), fd, flags, &registered)?;
        self.sockets.core.released(serial, own);
        self.sockets.core.give(serial, there, false);
        self.sockets.core.exchanged(serial, own, there);
        self.sockets.reconcile(self.now);
        Ok(Some(there))
    }

    /// The registrations of a descriptor with epoll, which must be known before another socket replaces it. `None`: a
    /// scan of the worker's descriptors is in progress.
    pub(super) fn epoll_registrations(&mut self, fd: RawFd) -> Option<Vec<Entry>> {
        if let Some(entries) = self.scans.registrations(self.notification) {
            return Some(entries);
        }
        // Without copies of the worker's descriptors nothing can be registered again.
        if !self.settings.can_copy {
            return Some(Vec::new());
        }
        let question = Question::Epoll(self.notification.thread, fd);
        let serial = self.worker.serial;
        match self.scans.request(serial, question, Some((serial, *self.notification))) {
            Requested::Sent | Requested::Busy => None,
            Requested::Impossible => Some(Vec::new()),
        }
    }

    /// Searches for the process that holds an address. Returns what the call must wait for, if anything.
    pub(super) fn seek_occupant(&mut self, wanted: Wanted) -> Option<Decision> {
        let call = (self.worker.serial, *self.notification);
        match self.occupants.seek(self.now, wanted, call) {
            Seeking::Await => Some(Decision::AwaitScan),
            Seeking::Wait => Some(Decision::Wait(SCAN_RETRY)),
            Seeking::GoOn => None,
        }
    }
}

/// Whether a worker has a socket open, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whereabouts {
    /// It is open, or may be.
    Open,
    /// No process of the worker has it open.
    Closed,
    /// A scan is in progress; the call is tried again.
    Scanning,
}

/// Whether all workers, or all of a generation, have the same socket.
pub(super) fn is_for_all(scope: Scope) -> bool {
    match scope {
        Scope::Shared | Scope::Generation(_) => true,
        Scope::Shard => false,
    }
}
