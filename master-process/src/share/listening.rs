//! `listen`: the worker becomes ready, and the supervisor keeps a copy of its listener.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::Path;

use super::address::Key;
use super::call::{Call, Decision, Listens, Reply, answer};
use super::caller_socket::{CallerSocket, bound_key};
use super::callers::Caller;
use super::core::{Scope, SocketId};
use super::readiness::{Expected, is_at};
use super::report::Report;
use crate::config::AddressPattern;
use crate::sys::proc_stat;
use crate::sys::seccomp::Answer;
use crate::sys::sockets::{self, Kind};

/// The number of listeners and shared UDP sockets that are kept of one worker. Further ones are not shared. The limit
/// prevents one worker from using the descriptors that others need.
pub(super) const MAX_LISTENERS: usize = 256;

/// Decides a `listen`.
pub(super) fn listen(call: &mut Call<'_>, fd: RawFd, backlog: i32) -> io::Result<Decision> {
    let serial = call.worker.serial;
    let mut id = call.peer.inode(fd)?;
    if let Some(permanent) = call.sockets.permanent(id) {
        let key = permanent.key.clone();
        return listen_on_kept(call, id, &key, backlog);
    }
    if let Some(there) = call.callers.get(serial).and_then(|caller| caller.substitute(id)) {
        let Some(exchanged) = call.exchange(fd, id, there)? else {
            return Ok(call.await_scan());
        };
        if let Some(caller) = call.callers.get_mut(serial) {
            caller.forget_substitute(id);
        }
        id = exchanged;
    }
    if call.sockets.copies.get(id).is_none() {
        let mut socket = CallerSocket::inspect(&call.peer, fd)?;
        let known = call.sockets.core.socket(id).is_some_and(|known| known.users.contains(&serial));
        let room = call.sockets.listener_count(serial) < MAX_LISTENERS;
        let copy = if known && room { socket.take_copy() } else { None };
        let Some(copy) = copy else {
            report_if_full(call, known && !room, id);
            return listen_unshared(call, &socket, backlog);
        };
        call.sockets.copies.insert(id, copy);
    }
    let Some(open) = call.sockets.copies.get(id) else { return Ok(answer(Answer::Continue)) };
    // The worker's `bind` read the address from memory again, so the kernel's answer counts.
    let bound = bound_key(open.fd());
    let (scope, noted) = match call.sockets.core.socket(id) {
        Some(socket) => (socket.scope, socket.key.clone()),
        None => return Ok(answer(Answer::Continue)),
    };
    let Some(key) = bound.or_else(|| (!noted.has_group()).then_some(noted)) else {
        // The socket is not bound: the kernel assigns it a free port.
        call.sockets.core.released(serial, id);
        call.sockets.reconcile(call.now);
        return Ok(answer(Answer::Continue));
    };
    call.sockets.note_queues_of_awaited();
    if let Some(inherited) = call.sockets.core.inherited_by(serial, id, &key) {
        let Some(exchanged) = call.exchange(fd, id, inherited)? else {
            return Ok(call.await_scan());
        };
        id = exchanged;
    }
    call.sockets.copies.locate(serial, id, call.notification.thread, fd);
    if scope == Scope::Shard {
        let in_the_way = call.sockets.core.listeners_in_the_way(serial, id, &key);
        if !in_the_way.is_empty() && !call.check(&in_the_way) {
            return Ok(call.await_scan());
        }
        if !call.sockets.core.listeners_in_the_way(serial, id, &key).is_empty() {
            drop_inactive_copy(call, id);
            return Ok(answer(Answer::Fail(libc::EADDRINUSE)));
        }
        return listen_on_shard(call, id, &key, backlog);
    }
    if let Some(file) = call.sockets.copies.file_mut(id)
        && let Err(error) = file.adopt(call.settings.access)
    {
        let (worker, address) = (call.worker, key.to_string());
        call.sockets.report(Report::Refused { worker, address, why: format!("its file: {error}") });
    }
    listen_on_kept(call, id, &key, backlog)
}

/// Handles `listen` on the worker's own socket. The supervisor calls `listen` on its copy, which is the same
/// socket. So it has the result, and the order in which the sockets of an address begin to listen.
fn listen_on_shard(call: &mut Call<'_>, id: SocketId, key: &Key, backlog: i32) -> io::Result<Decision> {
    let Some(open) = call.sockets.copies.get_mut(id) else { return Ok(answer(Answer::Continue)) };
    let first = open.backlog.is_none();
    if first {
        // Others may join it from now on. Before, a bind to an address of an unrelated process had to fail as
        // usual.
        sockets::set_reuseport(open.fd())?;
    }
    if let Err(error) = sockets::listen(open.fd(), backlog) {
        drop_inactive_copy(call, id);
        return Ok(refused(&error));
    }
    open.listens(backlog);
    activate(call, id, key, first);
    Ok(ready(call, Answer::Done, Some(id)))
}

/// Handles `listen` on a socket that all workers have. Its queue gets the longest length that a worker requested.
fn listen_on_kept(call: &mut Call<'_>, id: SocketId, key: &Key, backlog: i32) -> io::Result<Decision> {
    let Some(open) = call.sockets.copies.get_mut(id) else { return Ok(answer(Answer::Continue)) };
    let first = open.backlog.is_none();
    // A negative backlog is the largest one: listen(2) takes the number as unsigned.
    let requested = if backlog < 0 { i32::MAX } else { backlog };
    if open.backlog.is_none_or(|current| current < requested) {
        if let Err(error) = sockets::listen(open.fd(), requested) {
            return Ok(refused(&error));
        }
        open.listens(requested);
    }
    // The peers of a Unix socket see the credentials of the last caller of `listen`, so the worker must make this
    // call.
    let reply = if key.has_group() { Answer::Done } else { Answer::Continue };
    if call.sockets.core.socket(id).is_some_and(|socket| !socket.permanent) {
        activate(call, id, key, first);
    }
    Ok(ready(call, reply, Some(id)))
}

/// Drops the copy of a socket that does not listen, unless the worker got it from us.
fn drop_inactive_copy(call: &mut Call<'_>, id: SocketId) {
    let stands_in = call.sockets.is_pending(id);
    if !stands_in && call.sockets.core.socket(id).is_some_and(|socket| !socket.active) {
        call.sockets.copies.drop_copy(id);
    }
}

fn activate(call: &mut Call<'_>, id: SocketId, key: &Key, first: bool) {
    let is_new = !call.sockets.core.sockets().iter().any(|socket| socket.active && socket.key.matches(key));
    call.sockets.core.activated(call.now, call.worker.serial, id, key);
    call.sockets.note_activity(call.now);
    if is_new {
        call.sockets.report(Report::Listening { address: key.to_string() });
    }
    // With `--share shared` the supervisor takes no part in requests.
    let watched = call.sockets.core.socket(id).is_some_and(|socket| socket.scope != Scope::Shared);
    if first && watched {
        call.sockets.watch_queue(call.now, id);
    }
    if !key.has_group() {
        call.sockets.try_unix_queues(call.scans, call.worker.serial);
    }
    call.sockets.reconcile(call.now);
}

/// Handles `listen` on a socket that is not shared. Its success makes the worker ready, so `listen` is called
/// here, on a copy, if there is one.
fn listen_unshared(call: &mut Call<'_>, socket: &CallerSocket, backlog: i32) -> io::Result<Decision> {
    if matches!(socket.kind, Kind::Other | Kind::Udp { .. }) {
        return Ok(answer(Answer::Continue));
    }
    if let Some(caller) = call.callers.get_mut(call.worker.serial) {
        caller.add_unshared(socket.inode);
    }
    match socket.copy().map(|copy| sockets::listen(copy, backlog)) {
        Some(Err(error)) => Ok(refused(&error)),
        // The worker calls it again: the peers of a Unix socket see the last caller.
        Some(Ok(())) | None => {
            if let Some(copy) = socket.copy() {
                note_unshared(call, copy);
            }
            Ok(ready(call, Answer::Continue, None))
        }
    }
}

fn report_if_full(call: &mut Call<'_>, full: bool, id: SocketId) {
    if !full {
        return;
    }
    call.sockets.core.released(call.worker.serial, id);
    let is_first = call.callers.get_mut(call.worker.serial).is_some_and(Caller::set_full);
    if is_first {
        call.sockets.report(Report::TooManyListeners { worker: call.worker, limit: MAX_LISTENERS });
    }
}

/// A worker has called `listen`, on a known socket or on one of its own. The decision says whether it listens on
/// all expected addresses now.
fn ready(call: &mut Call<'_>, answer: Answer, known: Option<SocketId>) -> Decision {
    let serial = call.worker.serial;
    if let Some(id) = known {
        let by_daemon = is_daemon(call);
        call.sockets.core.listens(call.now, serial, id, by_daemon);
    }
    let complete = call.expected.missing(call.sockets, call.callers, serial).is_none();
    call.sockets.core.set_incomplete(serial, !complete);
    let listens = if complete { Listens::All } else { Listens::Some };
    Decision::Reply(Reply { answer, listens: Some(listens) })
}

/// Whether the caller has left the session of its worker's first process.
fn is_daemon(call: &Call<'_>) -> bool {
    let root = call.scans.first_process(call.worker.serial);
    // For a session outside of our PID namespace the kernel reports 0, as getsid(2) does.
    let session = |pid| proc_stat::of(pid).ok().map(|stat| stat.session);
    match (session(call.notification.thread), root.and_then(session)) {
        (Some(caller), Some(root)) => caller != root,
        (None, _) | (_, None) => false,
    }
}

/// Records that a worker listens on a socket that is not kept; `copy` is a copy of it.
fn note_unshared(call: &mut Call<'_>, copy: BorrowedFd<'_>) {
    let Expected::Named(patterns) = call.expected else { return };
    let path = sockets::unix_path(copy).map(|path| {
        // The path as the worker sees it, also if the worker has a root directory of its own.
        let base = call.peer.base_below_root(libc::AT_FDCWD).unwrap_or_default();
        Path::new("/").join(base).join(path)
    });
    let (key, name) = (bound_key(copy), sockets::abstract_name(copy));
    let is_here = |pattern: &AddressPattern| {
        key.as_ref().is_some_and(|key| is_at(pattern, key))
            || path.as_ref().is_some_and(|path| pattern.matches_path(path))
            || name.as_ref().is_some_and(|name| pattern.matches_abstract(name))
    };
    let here = patterns.iter().enumerate().filter(|(_, pattern)| is_here(pattern)).map(|(at, _)| at);
    if let Some(caller) = call.callers.get_mut(call.worker.serial) {
        caller.add_named(here);
    }
}

/// Fails the worker's call with the errno of `listen` on the copy of its socket.
fn refused(error: &io::Error) -> Decision {
    answer(Answer::Fail(error.raw_os_error().unwrap_or(libc::EINVAL)))
}
