//! `bind`: the kernel binds the worker's own socket, with the worker's own privileges.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::address::{Address, Key, Protocol};
use super::broker::{Broker, Decision};
use super::caller::CallerSocket;
use super::calls::{Request, answer};
use super::core::{Asked, Bind, Scope, SocketId};
use super::listening::MAX_LISTENERS;
use super::looks::{Asking, Caller, Look, Question};
use super::occupants::{Seeking, Wanted};
use crate::policy::{Time, WorkerId};
use crate::sys::epoll_entries::Entry;
use crate::sys::holders::Holder;
use crate::sys::peer::Peer;
use crate::sys::seccomp::{Answer, SocketOption};
use crate::sys::socket_options;
use crate::sys::sockets::{self, Kind};

/// The longest `sockaddr` that the kernel accepts: programs pass the size of `sockaddr_storage`.
const LONGEST_ADDRESS: u32 = 128;

/// The delay before a `bind` is tried again that waits for another `bind` to finish, which takes microseconds.
pub(super) const BIND_RETRY: Duration = Duration::from_millis(1);

/// The delay before a call is tried again whose worker has the maximum number of scans in progress.
const SCAN_RETRY: Duration = Duration::from_millis(20);

impl Broker {
    pub(super) fn bind(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        address: u64,
        length: u32,
    ) -> io::Result<Decision> {
        if !(2..=LONGEST_ADDRESS).contains(&length) {
            return Ok(answer(Answer::Continue));
        }
        let address = Address::decode(&request.peer.memory(address, length as usize)?);
        if address == Address::Private {
            return Ok(answer(Answer::Continue));
        }
        let socket = CallerSocket::look(&request.peer, fd)?;
        if let Some(process) = self.processes.get_mut(&request.worker.serial) {
            // The interrupted call again: its result is already in place.
            if process.take_undelivered(socket.inode, &address) {
                process.given = Some((socket.inode, address));
                return Ok(answer(Answer::Done));
            }
        }
        // Before Linux 5.14 the kernel creates a file at the path before it finds that the socket is already bound,
        // and leaves the file there.
        let is_bound = !socket.bindable || self.core.socket(socket.inode).is_some_and(|known| known.active);
        if is_bound && matches!(address, Address::Path(_)) {
            return Ok(answer(Answer::Fail(libc::EINVAL)));
        }
        if is_bound || !request.peer.shares_network()? || !request.peer.shares_users()? {
            return Ok(answer(Answer::Continue));
        }
        match (address, socket.kind) {
            (Address::Inet(address), Kind::Tcp { v6, .. }) if v6 == address.is_ipv6() => {
                self.bind_inet(request, fd, socket, Protocol::Tcp, address)
            }
            (Address::Inet(address), Kind::Udp { v6 }) if v6 == address.is_ipv6() => {
                self.bind_inet(request, fd, socket, Protocol::Udp, address)
            }
            (Address::Path(path), Kind::UnixStream) => self.bind_path(request, fd, socket, &path),
            (Address::Abstract(name), Kind::UnixStream) if self.rules.shares_abstract(&name) => {
                self.bind_one_for_all(request, fd, &socket, Key::Abstract(name))
            }
            (Address::Inet(_) | Address::Path(_) | Address::Abstract(_) | Address::Private, _kind) => {
                Ok(answer(Answer::Continue))
            }
        }
    }

    fn noted(&self, worker: WorkerId, id: SocketId, option: SocketOption) -> Option<bool> {
        self.processes.get(&worker.serial)?.options.get(id, option)
    }

    /// Identifies a worker of a supervisor that is itself a worker; 0: none. Such a supervisor cannot install filters
    /// of its own, so its workers share through us. The environment that it sets tells them apart. A worker that
    /// imitates this environment shares only with itself.
    fn inner_worker(&self, request: &Request<'_>) -> io::Result<u64> {
        let root = self.processes.get(&request.worker.serial).and_then(|process| process.pid);
        if root == Some(request.call.thread) {
            return Ok(0);
        }
        let environment = match request.peer.environment() {
            Ok(environment) => environment,
            Err(error) if error.raw_os_error() == Some(libc::ETIMEDOUT) => return Err(error),
            // Without an environment the process counts as the worker itself.
            Err(_) => return Ok(0),
        };
        // Not PPID: shells overwrite it.
        let notify = environment.get("NOTIFY_SOCKET").filter(|notify| *notify != self.notify_address);
        let (Some(notify), Some(slot)) = (notify, environment.get("WORKER_INDEX")) else { return Ok(0) };
        let mut hasher = DefaultHasher::new();
        (notify, slot, environment.get("RELOAD_INDEX")).hash(&mut hasher);
        Ok(hasher.finish())
    }

    fn bind_inet(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        socket: CallerSocket,
        protocol: Protocol,
        address: SocketAddr,
    ) -> io::Result<Decision> {
        if !self.rules.shares_inet(address) {
            return Ok(answer(Answer::Continue));
        }
        let noted = |option| self.noted(request.worker, socket.inode, option);
        let v6only = socket.v6only.or_else(|| noted(SocketOption::V6Only)).unwrap_or(false);
        let asked = socket.reuseport.or_else(|| noted(SocketOption::ReusePort)).unwrap_or(false);
        let v6only = v6only && address.is_ipv6();
        let key = Key::Inet { protocol, address, v6only, interface: socket.interface };
        let permanent = self.permanent.iter().find(|permanent| permanent.key.matches(&key)).cloned();
        let joins_permanent = permanent.as_ref().is_some_and(|permanent| permanent.can_be_joined);
        if let Some(permanent) = permanent.filter(|_| !joins_permanent || !self.has_shards()) {
            return self.give(request, fd, permanent.id, &Address::Inet(address));
        }
        if !self.rules.only.is_empty() {
            // `--share-only` names it, so a late bind is not a search for a free port.
            self.core.know(&key);
        }
        if let Some(decision) = self.seek_occupant_of(request, &key, &socket) {
            return Ok(decision);
        }
        if protocol == Protocol::Tcp && !self.has_shards() {
            return self.bind_one_for_all(request, fd, &socket, key);
        }
        if protocol == Protocol::Udp {
            if self.listeners_of(request.worker.serial) >= MAX_LISTENERS {
                return Ok(answer(Answer::Continue));
            }
            if !self.has_settled(&key) {
                return Ok(Decision::Wait(BIND_RETRY));
            }
        }
        let mut own = OwnSocket::of(self, socket, &key, joins_permanent, v6only)?;
        self.note_queues_of_awaited();
        let (serial, mut checked) = (request.worker.serial, false);
        let inner = self.inner_worker(request)?;
        let (reuseport, enable) = loop {
            let ask = Asked { serial, id: own.id(), key: &key, inner, asked_reuseport: asked, checked };
            match self.core.bind(request.now, ask) {
                Bind::Check(ids) if self.check(request, &ids) => checked = true,
                Bind::Check(_) => return Ok(self.await_scan(request)),
                Bind::Private => return Ok(answer(Answer::Continue)),
                Bind::Refuse(errno) => return Ok(answer(Answer::Fail(errno))),
                Bind::Give(id) => return self.give(request, fd, id, &Address::Inet(address)),
                Bind::Own { reuseport, enable } => break (reuseport, enable),
            }
        };
        for other in enable {
            if let Some(decision) = self.enable_reuseport(request, other) {
                self.core.released(serial, own.id());
                return Ok(decision);
            }
        }
        self.copies.locate(serial, own.id(), request.call.thread, fd);
        if reuseport && let Some(mine) = own.fd() {
            sockets::set_reuseport(mine)?;
        }
        if own.is_stand_in() {
            return self.stand_in(request, fd, own, address, joins_permanent);
        }
        if protocol == Protocol::Udp
            && reuseport
            && let Some(copy) = own.take()
        {
            self.copies.insert(own.id(), copy);
            self.unsettled.push((own.id(), false));
        }
        Ok(answer(Answer::Continue))
    }

    /// Checks, before the first socket of an address is bound, whether an unrelated process holds the address. The
    /// kernel then refuses the bind, or shares the address with that process if both have set `SO_REUSEPORT`. Returns
    /// what the call must wait for, if anything.
    fn seek_occupant_of(
        &mut self,
        request: &Request<'_>,
        key: &Key,
        socket: &CallerSocket,
    ) -> Option<Decision> {
        let Key::Inet { address, v6only, interface: 0, .. } = *key else { return None };
        let may_share = key.is_datagram() && socket.copy().is_none_or(sockets::is_reuseaddr);
        if may_share
            || self.core.sockets().iter().any(|known| known.key.overlaps(key))
            || !sockets::is_held(address, v6only, key.is_datagram())
        {
            return None;
        }
        self.seek_occupant(request, Wanted { key: key.clone(), answerer: None })
    }

    /// Searches for the process that holds an address. Returns what the call must wait for, if anything.
    pub(super) fn seek_occupant(&mut self, request: &Request<'_>, wanted: Wanted) -> Option<Decision> {
        let caller = (request.worker.serial, *request.call);
        match self.occupants.seek(request.now, wanted, caller) {
            Seeking::Await => Some(Decision::AwaitScan),
            Seeking::Wait => Some(Decision::Wait(SCAN_RETRY)),
            Seeking::GoOn => None,
        }
    }

    /// Replaces the worker's socket by one of ours. The worker's call then binds that one, with the worker's
    /// privileges. Only the addresses of `--listen` are bound with ours.
    fn stand_in(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        mut own: OwnSocket,
        address: SocketAddr,
        with_our_rights: bool,
    ) -> io::Result<Decision> {
        let id = own.id();
        let Some(socket) = own.take() else { return Ok(answer(Answer::Continue)) };
        if with_our_rights && let Err(error) = sockets::bind_to(socket.as_fd(), address) {
            self.core.released(request.worker.serial, id);
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            let key = Key::tcp(address, false);
            return Ok(self.refuse(request.worker, &key, errno, format_args!("bind: {error}")));
        }
        let flags = request.peer.flags(fd)?;
        sockets::set_nonblocking(socket.as_fd(), flags & libc::O_NONBLOCK != 0)?;
        let Some(registered) = self.registered_with_epoll(request, fd) else {
            self.core.released(request.worker.serial, id);
            return Ok(self.await_scan(request));
        };
        request.put(socket.as_fd(), fd, flags, &registered)?;
        self.copies.insert(id, socket);
        self.unsettled.push((id, false));
        if !with_our_rights {
            return Ok(answer(Answer::Continue));
        }
        if let Some(process) = self.processes.get_mut(&request.worker.serial) {
            process.given = Some((id, Address::Inet(address)));
        }
        Ok(answer(Answer::Done))
    }

    /// Binds an address that has one socket for all workers: the first worker's own, which the others get.
    pub(super) fn bind_one_for_all(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        socket: &CallerSocket,
        key: Key,
    ) -> io::Result<Decision> {
        let (serial, mut checked) = (request.worker.serial, false);
        let given_for = match &key {
            Key::Inet { address, .. } => Address::Inet(*address),
            Key::Abstract(name) => Address::Abstract(name.clone()),
            Key::Unix { shown, .. } => Address::Path(shown.clone()),
        };
        loop {
            match self.core.bind_shared(request.now, serial, (socket.inode, &key), checked) {
                Bind::Check(ids) if self.check(request, &ids) => checked = true,
                Bind::Check(_) => return Ok(self.await_scan(request)),
                Bind::Give(id) => return self.give(request, fd, id, &given_for),
                Bind::Refuse(errno) => return Ok(answer(Answer::Fail(errno))),
                Bind::Private => return Ok(answer(Answer::Continue)),
                Bind::Own { .. } => {
                    self.copies.locate(serial, socket.inode, request.call.thread, fd);
                    return Ok(answer(Answer::Continue));
                }
            }
        }
    }

    /// Replaces a worker's socket by one that other workers have.
    pub(super) fn give(
        &mut self,
        request: &Request<'_>,
        fd: RawFd,
        id: SocketId,
        address: &Address,
    ) -> io::Result<Decision> {
        let serial = request.worker.serial;
        let Some(registered) = self.registered_with_epoll(request, fd) else {
            return Ok(self.await_scan(request));
        };
        let copied = match self.copies.get(id) {
            Some(_) => None,
            // It does not listen yet, and only its worker has it open.
            None => match self.copy_from_user(id, serial) {
                Some(copy) if sockets::is_bound(copy.as_fd()) => Some(copy),
                Some(copy) => {
                    sockets::close_copy(copy);
                    if !self.may_be_binding(request.now, id) {
                        // Its `bind` failed.
                        self.core.drop_socket(id);
                        self.reconcile(request.now);
                    }
                    return Ok(Decision::Wait(BIND_RETRY));
                }
                None => return Ok(self.seek_user(request, id)),
            },
        };
        let socket = match (&copied, self.copies.get(id)) {
            (Some(copy), _) => copy.as_fd(),
            (None, Some(open)) => open.fd(),
            (None, None) => return Ok(answer(Answer::Continue)),
        };
        let flags = request.peer.flags(fd)?;
        // The flags belong to the open file description, so they apply to all its users.
        let others_use =
            self.core.socket(id).is_some_and(|known| known.users.iter().any(|user| *user != serial));
        if !others_use {
            sockets::set_nonblocking(socket, flags & libc::O_NONBLOCK != 0)?;
        }
        let put = request.put(socket, fd, flags, &registered);
        if let Some(copy) = copied {
            sockets::close_copy(copy);
        }
        put?;
        self.core.give(serial, id, false);
        self.copies.locate(serial, id, request.call.thread, fd);
        if let Some(process) = self.processes.get_mut(&serial) {
            process.given = Some((id, address.clone()));
        }
        Ok(answer(Answer::Done))
    }

    /// The registrations of a descriptor with epoll, which must be known before another socket replaces it. `None`: a
    /// scan of the worker's descriptors is in progress.
    pub(super) fn registered_with_epoll(&mut self, request: &Request<'_>, fd: RawFd) -> Option<Vec<Entry>> {
        if let Some((_, _, entries)) = self.registered.iter().find(|(_, call, _)| call == request.call) {
            return Some(entries.clone());
        }
        // Without copies of the worker's descriptors nothing can be registered again.
        let question = Question::Epoll(request.call.thread, fd);
        let serial = request.worker.serial;
        if !self.can_copy {
            return Some(Vec::new());
        }
        let caller = Some((serial, *request.call));
        if self.looks.is_asked(serial, question, caller) {
            return None;
        }
        match self.ask(serial, question, caller) {
            Asking::Sent | Asking::Busy => None,
            Asking::Impossible => Some(Vec::new()),
        }
    }

    /// Handles a socket without a copy that is not where its worker had it. Another process of the worker may have
    /// it; if none does, it is closed, and is forgotten.
    fn seek_user(&mut self, request: &Request<'_>, id: SocketId) -> Decision {
        let users = self.core.socket(id).map(|socket| socket.users.clone()).unwrap_or_default();
        for user in users.into_iter().filter(|user| *user != request.worker.serial) {
            match self.whereabouts(request, user, id) {
                Whereabouts::Asked => return self.await_scan(request),
                Whereabouts::Open if self.copies.location(user, id).is_some_and(|at| at.has(id)) => {
                    return Decision::Wait(BIND_RETRY);
                }
                Whereabouts::Open | Whereabouts::Closed => self.core.released(user, id),
            }
        }
        self.core.drop_socket(id);
        self.reconcile(request.now);
        Decision::Wait(BIND_RETRY)
    }

    /// Whether the `bind` of a socket was continued and the kernel may not have carried it out yet.
    fn may_be_binding(&self, now: Time, id: SocketId) -> bool {
        let users = || self.core.socket(id).into_iter().flat_map(|socket| &socket.users);
        let may_be_in_bind = || {
            users().filter_map(|user| self.copies.location(*user, id)).any(|at| {
                let watch = Peer::open(at.thread).and_then(|peer| peer.watch_call());
                watch.is_ok_and(|watch| watch.may_be_in(&[libc::SYS_bind]))
            })
        };
        self.core.is_fresh(now, id, may_be_in_bind)
    }

    /// A copy of a socket, taken from one of the workers that have it.
    pub(super) fn copy_from_user(&self, id: SocketId, except: u64) -> Option<OwnedFd> {
        let users = self.core.socket(id)?.users.iter().filter(|user| **user != except);
        users.filter_map(|user| self.copies.location(*user, id)).find_map(|at| copy_at(at.thread, at.fd, id))
    }

    /// Sets `SO_REUSEPORT` on a worker's socket, so that another socket can join it. A UDP socket is kept from now
    /// on, because it has no `listen` to wait for. Returns what the joining call must wait for, if anything. A socket
    /// that is about to be bound must not have the option, because its own worker's next socket would then be bound
    /// beside it.
    fn enable_reuseport(&mut self, request: &Request<'_>, id: SocketId) -> Option<Decision> {
        if let Some(open) = self.copies.get(id) {
            // If this fails, the worker's own `bind` fails next, with the right errno.
            let _shown_there = sockets::set_reuseport(open.fd());
            self.core.enabled(id);
            return None;
        }
        let user = self.core.socket(id)?.users.first().copied()?;
        let datagram = self.core.socket(id)?.key.is_datagram();
        if datagram && self.listeners_of(user) >= MAX_LISTENERS {
            return None;
        }
        let Some(copy) = self.copy_from_user(id, u64::MAX) else {
            if user != request.worker.serial {
                return Some(self.seek_user(request, id));
            }
            // There is no socket left to join.
            self.core.released(user, id);
            return None;
        };
        if !sockets::is_bound(copy.as_fd()) {
            sockets::close_copy(copy);
            if self.may_be_binding(request.now, id) {
                return Some(Decision::Wait(BIND_RETRY));
            }
            // Its `bind` failed.
            self.core.released(user, id);
            return None;
        }
        let _shown_there = sockets::set_reuseport(copy.as_fd());
        self.core.enabled(id);
        let bound = super::caller::bound_key(copy.as_fd());
        match bound.filter(Key::is_datagram) {
            Some(key) => {
                self.core.activated(request.now, user, id, &key);
                self.copies.insert(id, copy);
            }
            None => sockets::close_copy(copy),
        }
        None
    }

    /// Whether no UDP socket of this address is about to be bound. The order of the binds is the order in the
    /// kernel's group.
    fn has_settled(&self, key: &Key) -> bool {
        !self
            .unsettled
            .iter()
            .any(|(id, _)| self.core.socket(*id).is_some_and(|socket| socket.key.matches(key)))
    }

    /// Checks whether a worker still has these sockets open, and releases those that it has closed. `false`: a scan
    /// of its descriptors is in progress.
    pub(super) fn check(&mut self, request: &Request<'_>, ids: &[SocketId]) -> bool {
        let serial = request.worker.serial;
        let mut known = true;
        for id in ids.iter().copied() {
            match self.whereabouts(request, serial, id) {
                Whereabouts::Open => {}
                Whereabouts::Closed => {
                    self.choose_migration();
                    self.core.released(serial, id);
                    self.reconcile(request.now);
                }
                Whereabouts::Asked => known = false,
            }
        }
        known
    }

    /// Whether a worker has a socket open; the call waits for the answer. If the socket is not at its last known
    /// descriptor, all descriptors of the worker's process tree are scanned.
    fn whereabouts(&mut self, request: &Request<'_>, user: u64, id: SocketId) -> Whereabouts {
        if self.copies.location(user, id).is_some_and(|at| at.has(id)) {
            return Whereabouts::Open;
        }
        let caller = (request.worker.serial, *request.call);
        let found = self.found.iter().find(|(_, call, socket, _)| call == request.call && *socket == id);
        match found.map(|(_, _, _, holder)| *holder) {
            Some(Holder::Nobody) => Whereabouts::Closed,
            Some(Holder::Found(thread, fd)) => {
                self.copies.locate(user, id, thread, fd);
                Whereabouts::Open
            }
            Some(Holder::Orphan | Holder::Unknown) => Whereabouts::Open,
            None if self.looks.is_asked(user, Question::Holder(id), Some(caller)) => Whereabouts::Asked,
            None => match self.ask(user, Question::Holder(id), Some(caller)) {
                Asking::Sent | Asking::Busy => Whereabouts::Asked,
                Asking::Impossible => Whereabouts::Open,
            },
        }
    }

    /// The decision of a call that waits for a scan: it is tried again when the scan has ended, or after a delay if
    /// its worker has the maximum number in progress.
    pub(super) fn await_scan(&self, request: &Request<'_>) -> Decision {
        if self.looks.is_awaited_by(request.call) { Decision::AwaitScan } else { Decision::Wait(SCAN_RETRY) }
    }

    /// Requests a scan of a worker's descriptors.
    pub(super) fn ask(&mut self, serial: u64, question: Question, call: Option<Caller>) -> Asking {
        let Some(process) = self.processes.get(&serial) else { return Asking::Impossible };
        let root = process.pid;
        if root.is_none() && !process.remains {
            return Asking::Impossible;
        }
        let others = self.processes.iter().filter(|(other, process)| **other != serial && !process.ended);
        let workers = others.filter_map(|(_, process)| process.pid).collect();
        let owners = Arc::clone(&self.owners);
        self.looks.ask(Look { serial, question, root, workers, owners, call })
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
    Asked,
}

/// The socket with this inode number, if this thread still has it at this descriptor.
fn copy_at(thread: rustix::process::Pid, fd: RawFd, id: SocketId) -> Option<OwnedFd> {
    let copy = Peer::open(thread).and_then(|peer| peer.copy(fd)).ok()?;
    if sockets::inode(copy.as_fd()).ok() == Some(id) {
        return Some(copy);
    }
    sockets::close_copy(copy);
    None
}

/// The socket to bind: the worker's own, or a stand-in. A stand-in is needed where the kernel gives no copy of the
/// worker's socket, where that is an MPTCP socket, which cannot be selected in a group, and for the addresses of
/// `--listen`.
struct OwnSocket {
    caller: CallerSocket,
    stand_in: Option<(OwnedFd, SocketId)>,
    is_stand_in: bool,
}

impl OwnSocket {
    fn of(
        broker: &Broker,
        caller: CallerSocket,
        key: &Key,
        joins_permanent: bool,
        v6only: bool,
    ) -> io::Result<OwnSocket> {
        let Kind::Tcp { v6, multipath } = caller.kind else {
            return Ok(OwnSocket { caller, stand_in: None, is_stand_in: false });
        };
        let is_ours = broker.copies.get(caller.inode).is_some();
        let needs = (caller.copy().is_none() || multipath || joins_permanent) && !is_ours;
        if !needs || key.is_datagram() {
            return Ok(OwnSocket { caller, stand_in: None, is_stand_in: false });
        }
        let socket = sockets::new_tcp(v6)?;
        match caller.copy() {
            Some(model) => socket_options::copy_options(model, socket.as_fd()),
            // A restart must not fail because of connections of the last run. The options that the program set are
            // unknown.
            None => socket_options::set_reuseaddr(socket.as_fd())?,
        }
        if v6 {
            socket_options::set_v6only(socket.as_fd(), v6only)?;
        }
        let id = sockets::inode(socket.as_fd())?;
        Ok(OwnSocket { caller, stand_in: Some((socket, id)), is_stand_in: true })
    }

    fn id(&self) -> SocketId {
        self.stand_in.as_ref().map_or(self.caller.inode, |(_, id)| *id)
    }

    fn is_stand_in(&self) -> bool {
        self.is_stand_in
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stand_in.as_ref().map(|(socket, _)| socket.as_fd()).or_else(|| self.caller.copy())
    }

    /// Takes the descriptor.
    fn take(&mut self) -> Option<OwnedFd> {
        match self.stand_in.take() {
            Some((socket, id)) => {
                self.caller.inode = id;
                Some(socket)
            }
            None => self.caller.take_copy(),
        }
    }
}

/// Whether all workers, or all of a generation, have the same socket.
pub(super) fn is_for_all(scope: Scope) -> bool {
    match scope {
        Scope::Shared | Scope::Generation(_) => true,
        Scope::Shard => false,
    }
}
