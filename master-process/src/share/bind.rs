//! `bind`: the kernel binds the worker's own socket, with the worker's own privileges.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, RawFd};

use super::address::{Address, Key, Protocol};
use super::call::{BIND_RETRY, Call, Decision, answer};
use super::caller_socket::{CallerSocket, OwnSocket, bound_key};
use super::core::{Bind, BindRequest, SocketId};
use super::listening::MAX_LISTENERS;
use super::occupants::Wanted;
use super::paths;
use crate::sys::seccomp::{Answer, SocketOption};
use crate::sys::sockets::{self, Kind};

/// The longest `sockaddr` that the kernel accepts: programs pass the size of `sockaddr_storage`.
const LONGEST_ADDRESS: u32 = 128;

/// Decides a `bind`.
pub(super) fn bind(call: &mut Call<'_>, fd: RawFd, address: u64, length: u32) -> io::Result<Decision> {
    if !(2..=LONGEST_ADDRESS).contains(&length) {
        return Ok(answer(Answer::Continue));
    }
    let address = Address::decode(&call.peer.memory(address, length as usize)?);
    if address == Address::Private {
        return Ok(answer(Answer::Continue));
    }
    let socket = CallerSocket::inspect(&call.peer, fd)?;
    if let Some(caller) = call.callers.get_mut(call.worker.serial) {
        // The interrupted call again: its result is already in place.
        if caller.take_undelivered(socket.inode, &address) {
            caller.give(socket.inode, address);
            return Ok(answer(Answer::Done));
        }
    }
    // Before Linux 5.14 the kernel creates a file at the path before it finds that the socket is already bound,
    // and leaves the file there.
    let is_bound =
        !socket.bindable || call.sockets.core.socket(socket.inode).is_some_and(|known| known.active);
    if is_bound && matches!(address, Address::Path(_)) {
        return Ok(answer(Answer::Fail(libc::EINVAL)));
    }
    if is_bound || !call.peer.shares_network()? || !call.peer.shares_users()? {
        return Ok(answer(Answer::Continue));
    }
    match (address, socket.kind) {
        (Address::Inet(address), Kind::Tcp { v6, .. }) if v6 == address.is_ipv6() => {
            bind_inet(call, fd, socket, Protocol::Tcp, address)
        }
        (Address::Inet(address), Kind::Udp { v6 }) if v6 == address.is_ipv6() => {
            bind_inet(call, fd, socket, Protocol::Udp, address)
        }
        (Address::Path(path), Kind::UnixStream) => paths::bind(call, fd, socket, &path),
        (Address::Abstract(name), Kind::UnixStream) if call.settings.rules.shares_abstract(&name) => {
            call.bind_one_for_all(fd, &socket, Key::Abstract(name))
        }
        (Address::Inet(_) | Address::Path(_) | Address::Abstract(_) | Address::Private, _kind) => {
            Ok(answer(Answer::Continue))
        }
    }
}

/// Decides a `bind` to an IP address.
fn bind_inet(
    call: &mut Call<'_>,
    fd: RawFd,
    socket: CallerSocket,
    protocol: Protocol,
    address: SocketAddr,
) -> io::Result<Decision> {
    if !call.settings.rules.shares_inet(address) {
        return Ok(answer(Answer::Continue));
    }
    let caller = call.callers.get(call.worker.serial);
    let noted = |option| caller.and_then(|caller| caller.option(socket.inode, option));
    let v6only = socket.v6only.or_else(|| noted(SocketOption::V6Only)).unwrap_or(false);
    let requested_reuseport = socket.reuseport.or_else(|| noted(SocketOption::ReusePort)).unwrap_or(false);
    let v6only = v6only && address.is_ipv6();
    let key = Key::Inet { protocol, address, v6only, interface: socket.interface };
    let permanent = call.sockets.permanent_at(&key);
    let joins_permanent = permanent.as_ref().is_some_and(|permanent| permanent.can_be_joined);
    if let Some(permanent) = permanent.filter(|_| !joins_permanent || !call.settings.has_shards()) {
        return call.give(fd, permanent.id, &Address::Inet(address));
    }
    if !call.settings.rules.only.is_empty() {
        // `--share-only` names it, so a late bind is not a search for a free port.
        call.sockets.core.know(&key);
    }
    if let Some(decision) = seek_occupant_of(call, &key, &socket) {
        return Ok(decision);
    }
    if protocol == Protocol::Tcp && !call.settings.has_shards() {
        return call.bind_one_for_all(fd, &socket, key);
    }
    if protocol == Protocol::Udp {
        if call.sockets.listener_count(call.worker.serial) >= MAX_LISTENERS {
            return Ok(answer(Answer::Continue));
        }
        if call.sockets.has_pending_at(&key) {
            return Ok(Decision::Wait(BIND_RETRY));
        }
    }
    let is_ours = call.sockets.copies.get(socket.inode).is_some();
    let mut own = OwnSocket::of(socket, &key, joins_permanent, v6only, is_ours)?;
    if let Some(uid) = own.fd().and_then(sockets::owner) {
        call.sockets.yield_restored(call.now, &key, uid);
    }
    call.sockets.note_queues_of_awaited();
    let (serial, mut checked) = (call.worker.serial, false);
    let inner = inner_worker(call)?;
    let (reuseport, enable) = loop {
        let request = BindRequest { serial, id: own.id(), key: &key, inner, requested_reuseport, checked };
        match call.sockets.core.bind(call.now, request) {
            Bind::Check(ids) if call.check(&ids) => checked = true,
            Bind::Check(_) => return Ok(call.await_scan()),
            Bind::Private => return Ok(answer(Answer::Continue)),
            Bind::Refuse(errno) => return Ok(answer(Answer::Fail(errno))),
            Bind::Give(id) => return call.give(fd, id, &Address::Inet(address)),
            Bind::Own { reuseport, enable } => break (reuseport, enable),
        }
    };
    for other in enable {
        if let Some(decision) = enable_reuseport(call, other) {
            call.sockets.core.released(serial, own.id());
            return Ok(decision);
        }
    }
    call.sockets.copies.locate(serial, own.id(), call.notification.thread, fd);
    if reuseport && let Some(mine) = own.fd() {
        sockets::set_reuseport(mine)?;
    }
    if own.is_stand_in() {
        return stand_in(call, fd, own, address, joins_permanent);
    }
    if protocol == Protocol::Udp
        && reuseport
        && let Some(copy) = own.take()
    {
        call.sockets.copies.insert(own.id(), copy);
        call.sockets.add_pending(own.id());
    }
    Ok(answer(Answer::Continue))
}

/// Identifies a worker of a supervisor that is itself a worker; 0: none. Such a supervisor cannot install filters
/// of its own, so its workers share through us. The environment that it sets tells them apart. A worker that
/// imitates this environment shares only with itself.
fn inner_worker(call: &Call<'_>) -> io::Result<u64> {
    let root = call.scans.first_process(call.worker.serial);
    if root == Some(call.notification.thread) {
        return Ok(0);
    }
    let environment = match call.peer.environment() {
        Ok(environment) => environment,
        Err(error) if error.raw_os_error() == Some(libc::ETIMEDOUT) => return Err(error),
        // Without an environment the process counts as the worker itself.
        Err(_) => return Ok(0),
    };
    // Not PPID: shells overwrite it.
    let notify = environment.get("NOTIFY_SOCKET").filter(|notify| *notify != call.settings.notify_address);
    let (Some(notify), Some(slot)) = (notify, environment.get("WORKER_INDEX")) else { return Ok(0) };
    let mut hasher = DefaultHasher::new();
    (notify, slot, environment.get("RELOAD_INDEX")).hash(&mut hasher);
    Ok(hasher.finish())
}

/// Checks, before the first socket of an address is bound, whether an unrelated process holds the address. The
/// kernel then refuses the bind, or shares the address with that process if both have set `SO_REUSEPORT`. Returns
/// what the call must wait for, if anything.
fn seek_occupant_of(call: &mut Call<'_>, key: &Key, socket: &CallerSocket) -> Option<Decision> {
    let Key::Inet { address, v6only, interface: 0, .. } = *key else { return None };
    let may_share = key.is_datagram() && socket.copy().is_none_or(sockets::is_reuseaddr);
    if may_share
        || call.sockets.core.sockets().iter().any(|known| known.key.overlaps(key))
        || !sockets::is_held(address, v6only, key.is_datagram())
    {
        return None;
    }
    call.seek_occupant(Wanted { key: key.clone(), answerer: None })
}

/// Sets `SO_REUSEPORT` on a worker's socket, so that another socket can join it. A UDP socket is kept from now
/// on, because it has no `listen` to wait for. Returns what the joining call must wait for, if anything. A socket
/// that is about to be bound must not have the option, because its own worker's next socket would then be bound
/// beside it.
fn enable_reuseport(call: &mut Call<'_>, id: SocketId) -> Option<Decision> {
    if let Some(open) = call.sockets.copies.get(id) {
        // If this fails, the worker's own `bind` fails next, with the right errno.
        let _shown_there = sockets::set_reuseport(open.fd());
        call.sockets.core.enabled(id);
        return None;
    }
    let user = call.sockets.core.socket(id)?.users.first().copied()?;
    let datagram = call.sockets.core.socket(id)?.key.is_datagram();
    if datagram && call.sockets.listener_count(user) >= MAX_LISTENERS {
        return None;
    }
    let Some(copy) = call.sockets.copy_from_user(id, u64::MAX) else {
        if user != call.worker.serial {
            return Some(call.seek_user(id));
        }
        // There is no socket left to join.
        call.sockets.core.released(user, id);
        return None;
    };
    if !sockets::is_bound(copy.as_fd()) {
        sockets::close_copy(copy);
        if call.sockets.may_be_binding(call.now, id) {
            return Some(Decision::Wait(BIND_RETRY));
        }
        // Its `bind` failed.
        call.sockets.core.released(user, id);
        return None;
    }
    let _shown_there = sockets::set_reuseport(copy.as_fd());
    call.sockets.core.enabled(id);
    let bound = bound_key(copy.as_fd());
    match bound.filter(Key::is_datagram) {
        Some(key) => {
            call.sockets.core.activated(call.now, user, id, &key);
            call.sockets.copies.insert(id, copy);
        }
        None => sockets::close_copy(copy),
    }
    None
}

/// Replaces the worker's socket by one of ours. The worker's call then binds that one, with the worker's
/// privileges. Only the addresses of `--listen` are bound with ours.
fn stand_in(
    call: &mut Call<'_>,
    fd: RawFd,
    mut own: OwnSocket,
    address: SocketAddr,
    with_our_rights: bool,
) -> io::Result<Decision> {
    let id = own.id();
    let Some(socket) = own.take() else { return Ok(answer(Answer::Continue)) };
    if with_our_rights && let Err(error) = sockets::bind_to(socket.as_fd(), address) {
        call.sockets.core.released(call.worker.serial, id);
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let key = Key::tcp(address, false);
        return Ok(call.refuse(&key, errno, format_args!("bind: {error}")));
    }
    let flags = call.peer.flags(fd)?;
    sockets::set_nonblocking(socket.as_fd(), flags & libc::O_NONBLOCK != 0)?;
    let Some(registered) = call.epoll_registrations(fd) else {
        call.sockets.core.released(call.worker.serial, id);
        return Ok(call.await_scan());
    };
    call.put(socket.as_fd(), fd, flags, &registered)?;
    call.sockets.copies.insert(id, socket);
    call.sockets.add_pending(id);
    if !with_our_rights {
        return Ok(answer(Answer::Continue));
    }
    if let Some(caller) = call.callers.get_mut(call.worker.serial) {
        caller.give(id, Address::Inet(address));
    }
    Ok(answer(Answer::Done))
}
