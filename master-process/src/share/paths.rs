//! Calls on the path of a Unix socket: `bind`, removing the file, renaming a socket to the path, and probing it with
//! `connect`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::address::{Address, Key};
use super::call::{BIND_RETRY, Call, Decision, answer};
use super::caller_socket::{CallerSocket, is_shortage};
use super::copies::OpenSocket;
use super::core::{Bind, Socket, SocketId};
use super::occupants::Wanted;
use super::report::Report;
use super::sockets::Sockets;
use super::unix::{Access, Place, Refused, SocketFile};
use crate::policy::Time;
use crate::sys::fs_identity::FsIdentity;
use crate::sys::peer::Peer;
use crate::sys::seccomp::Answer;
use crate::sys::sockets;

/// The longest `sockaddr` that is decoded.
const LONGEST_ADDRESS: u32 = 128;

/// Decides a `bind` to a path. The first worker of a generation binds its own socket; the others get that socket.
pub(super) fn bind(
    call: &mut Call<'_>,
    fd: RawFd,
    socket: CallerSocket,
    path: &Path,
) -> io::Result<Decision> {
    let identity = call.peer.fs_identity()?;
    let Some(place) = place_of(call, &identity, libc::AT_FDCWD, path)? else {
        return Ok(answer(Answer::Continue));
    };
    if !call.settings.rules.shares_path(&place.absolute()) {
        return Ok(answer(Answer::Continue));
    }
    call.paths.set_used();
    let key = place.key();
    if let Some(permanent) = call.sockets.permanent_at(&key) {
        return call.give(fd, permanent.id, &Address::Path(path.to_owned()));
    }
    if !call.settings.has_shards() {
        return bind_for_all(call, fd, &socket, place, &identity);
    }
    forget_without_file(call, &key);
    let at_path = call.sockets.at_path(&key);
    if at_path.is_none() && call.paths.is_removal_under_way(call.now, call.worker.serial, &key) {
        return Ok(Decision::Wait(BIND_RETRY));
    }
    // Where the kernel gives no copy, a socket of ours replaces the worker's, and the worker binds that one.
    let stand_in = match socket.copy() {
        Some(_) => None,
        None => Some(sockets::new_unix()?),
    };
    let id = stand_in.as_ref().map_or(Ok(socket.inode), |stand_in| sockets::inode(stand_in.as_fd()))?;
    match call.sockets.core.bind_path(call.now, call.worker.serial, (id, &key), at_path) {
        Bind::Give(id) => return call.give(fd, id, &Address::Path(path.to_owned())),
        Bind::Refuse(errno) => return Ok(answer(Answer::Fail(errno))),
        Bind::Private | Bind::Check(_) => return Ok(answer(Answer::Continue)),
        Bind::Own { .. } => {}
    }
    call.sockets.copies.locate(call.worker.serial, id, call.notification.thread, fd);
    let mut own = socket;
    if let Some(stand_in) = stand_in {
        let flags = call.peer.flags(fd)?;
        sockets::set_nonblocking(stand_in.as_fd(), flags & libc::O_NONBLOCK != 0)?;
        call.put(stand_in.as_fd(), fd, flags, &[])?;
        call.sockets.copies.insert(id, stand_in);
        own.inode = id;
    }
    if at_path.is_none() {
        if let Some(decision) = make_room(call, &place, &identity) {
            call.sockets.core.released(call.worker.serial, id);
            return Ok(decision);
        }
        call.sockets.copies.set_file(id, place.for_bind(&identity));
        return Ok(answer(Answer::Continue));
    }
    bind_beside(call, &own, place, path, &identity)
}

/// Binds a socket beside the path, where another generation's socket is. It moves to the path when its worker
/// serves.
fn bind_beside(
    call: &mut Call<'_>,
    socket: &CallerSocket,
    place: Place,
    path: &Path,
    identity: &FsIdentity,
) -> io::Result<Decision> {
    let (id, key) = (socket.inode, place.key());
    let open = call.sockets.copies.get(id).map(OpenSocket::fd).or_else(|| socket.copy());
    let Some(open) = open else { return Ok(answer(Answer::Continue)) };
    match place.bind_beside(open, identity, call.settings.access) {
        Ok(file) => {
            call.sockets.copies.set_file(id, file);
            if let Some(caller) = call.callers.get_mut(call.worker.serial) {
                caller.give(id, Address::Path(path.to_owned()));
            }
            Ok(answer(Answer::Done))
        }
        Err(why) => {
            call.sockets.core.released(call.worker.serial, id);
            call.sockets.reconcile(call.now);
            Ok(call.refuse(&key, why.errno(), why))
        }
    }
}

/// `--share shared`: all workers have the same socket at the path, permanently.
fn bind_for_all(
    call: &mut Call<'_>,
    fd: RawFd,
    socket: &CallerSocket,
    place: Place,
    identity: &FsIdentity,
) -> io::Result<Decision> {
    let key = place.key();
    let at_path = call.sockets.at_path(&key);
    if at_path.is_none() && call.paths.is_removal_under_way(call.now, call.worker.serial, &key) {
        return Ok(Decision::Wait(BIND_RETRY));
    }
    if !call.sockets.core.sockets().iter().any(|known| known.key.matches(&key)) {
        if let Some(decision) = make_room(call, &place, identity) {
            return Ok(decision);
        }
        call.sockets.copies.set_file(socket.inode, place.for_bind(identity));
    }
    call.bind_one_for_all(fd, socket, key)
}

/// Forgets sockets that a worker has bound at a path without listening, and whose file is gone or was never
/// created.
fn forget_without_file(call: &mut Call<'_>, key: &Key) {
    let serial = call.worker.serial;
    let is_own =
        |socket: &&Socket| !socket.active && socket.users.contains(&serial) && socket.key.matches(key);
    let ids: Vec<SocketId> =
        call.sockets.core.sockets().iter().filter(is_own).map(|socket| socket.id).collect();
    for id in ids {
        if call.sockets.copies.file(id).is_none_or(|file| !file.is_there()) {
            call.sockets.core.released(serial, id);
        }
    }
}

/// Removes a stale socket file at the path. If something else is there, the kernel refuses the bind, and the log
/// says what it is. The file of a living worker stays: the worker's own `bind` fails as it does without a
/// supervisor. Returns what the call must wait for, if anything.
fn make_room(call: &mut Call<'_>, place: &Place, identity: &FsIdentity) -> Option<Decision> {
    if call.sockets.core.is_known(&place.key()) {
        return None;
    }
    if let Err(why) = place.make_room(identity) {
        if let Refused::Answered(answerer) = why {
            let wanted = Wanted { key: place.key(), answerer: Some(answerer) };
            if let Some(decision) = call.seek_occupant(wanted) {
                return Some(decision);
            }
        }
        let (worker, address) = (call.worker, place.key().to_string());
        call.sockets.report(Report::Refused { worker, address, why: why.to_string() });
    }
    None
}

/// A path that other workers need stays. The caller gets success as the result.
pub(super) fn unlink(call: &mut Call<'_>, dir: RawFd, path: u64) -> io::Result<Decision> {
    let path = read_path(&call.peer, path)?;
    let serial = call.worker.serial;
    let clears = may_remove_before_bind(call.sockets, call.now, serial);
    if !(clears || is_name_of_ours(call.sockets, &path)) || !call.peer.shares_users()? {
        return Ok(answer(Answer::Continue));
    }
    let identity = call.peer.fs_identity()?;
    let Some(place) = place_of(call, &identity, dir, &path)? else {
        return Ok(answer(Answer::Continue));
    };
    let key = place.key();
    let there = call.sockets.at_path(&key).or_else(|| about_to_listen(call.sockets, &key));
    let Some(id) = there else {
        if clears && let Ok(watch) = call.peer.watch_call() {
            call.paths.begin_removal(call.now, (serial, call.notification.thread), key, watch);
        }
        return Ok(answer(Answer::Continue));
    };
    if is_needed_by_others(call.sockets, serial, id) {
        // Its next `bind` at the path gets this socket again.
        call.sockets.core.leaves_path(serial, id);
        return Ok(answer(Answer::Done));
    }
    call.sockets.core.unlinked(id);
    Ok(answer(Answer::Continue))
}

/// Whether a worker may remove a file because it and a sibling are about to bind there.
pub(super) fn may_remove_before_bind(sockets: &Sockets, now: Time, serial: u64) -> bool {
    let workers = sockets.core.workers();
    workers.get(serial).is_some_and(|worker| !worker.is_past_startup(now)) && workers.iter().nth(1).is_some()
}

/// The socket that a worker has bound at a path, or is binding now, and that does not listen yet.
fn about_to_listen(sockets: &Sockets, key: &Key) -> Option<SocketId> {
    let mut of_key =
        sockets.core.sockets().iter().filter(|socket| !socket.unlinked && socket.key.matches(key));
    of_key
        .find(|socket| sockets.copies.file(socket.id).is_some_and(SocketFile::is_awaited))
        .map(|socket| socket.id)
}

/// Whether the path of a socket must stay although this worker removes it.
fn is_needed_by_others(sockets: &Sockets, serial: u64, id: SocketId) -> bool {
    let Some(socket) = sockets.core.socket(id) else { return false };
    let workers = sockets.core.workers();
    let stops = workers.get(serial).is_some_and(|worker| worker.stopping);
    let is_other = |user: &u64| *user != serial && workers.get(*user).is_some_and(|worker| !worker.stopping);
    socket.permanent
        || stops
        || !socket.users.contains(&serial)
        || !socket.awaited_by.is_empty()
        || socket.users.iter().any(is_other)
}

/// Handles a program that binds a temporary name and renames it to its path, as haproxy does. The second such
/// worker of a generation gets the first one's socket when it listens. A worker of another generation is already
/// bound beside the path.
pub(super) fn rename(
    call: &mut Call<'_>,
    (from_dir, from): (RawFd, u64),
    (to_dir, to): (RawFd, u64),
    flags: u32,
) -> io::Result<Decision> {
    let from = read_path(&call.peer, from)?;
    if flags != 0 || !is_name_of_ours(call.sockets, &from) || !call.peer.shares_users()? {
        return Ok(answer(Answer::Continue));
    }
    let to = read_path(&call.peer, to)?;
    let identity = call.peer.fs_identity()?;
    let source = place_of(call, &identity, from_dir, &from)?;
    let target = place_of(call, &identity, to_dir, &to)?;
    let Some((source, target)) = source.zip(target).filter(|(source, target)| source.is_beside(target))
    else {
        return Ok(answer(Answer::Continue));
    };
    let serial = call.worker.serial;
    let is_source = |id: &SocketId| {
        call.sockets
            .core
            .socket(*id)
            .is_some_and(|socket| socket.users.contains(&serial) && socket.key.matches(&source.key()))
    };
    let Some(id) = call.sockets.copies.files().map(|(id, _)| id).find(|id| is_source(id)) else {
        return Ok(answer(Answer::Continue));
    };
    let no_access = Access { mode: None, owner: None };
    if call.sockets.copies.file_mut(id).is_none_or(|file| file.adopt(no_access).is_err()) {
        return Ok(answer(Answer::Continue));
    }
    let key = target.key();
    let at_path = call.sockets.at_path(&key);
    match call.sockets.core.renamed(serial, id, &key, at_path) {
        Bind::Give(there) => {
            // Its own file is dropped. Its listener is replaced by the one that the others have.
            let listens_at = call.sockets.copies.location(serial, id).filter(|at| at.has(id));
            let active = call.sockets.core.socket(id).is_some_and(|socket| socket.active);
            if let Some(at) = listens_at.filter(|_| active) {
                if call.exchange(at.fd, id, there)?.is_none() {
                    return Ok(call.await_scan());
                }
            } else if let Some(caller) = call.callers.get_mut(serial) {
                caller.add_substitute(id, there);
            }
            call.sockets.copies.drop_file(id);
            Ok(answer(Answer::Done))
        }
        Bind::Own { .. } => {
            let taken = at_path
                .is_some_and(|there| call.sockets.core.socket(there).is_some_and(|socket| !socket.unlinked));
            if let Some(file) = call.sockets.copies.file_mut(id) {
                file.moves_to(target, !taken);
            }
            Ok(answer(if taken { Answer::Done } else { Answer::Continue }))
        }
        Bind::Private | Bind::Refuse(_) | Bind::Check(_) => Ok(answer(Answer::Continue)),
    }
}

/// Handles a program that checks with `connect` whether a server answers at its path before it binds there. It
/// must not find its siblings, nor the queue of its predecessor.
pub(super) fn connect(call: &mut Call<'_>, address: u64, length: u32) -> io::Result<Decision> {
    if !(3..=LONGEST_ADDRESS).contains(&length) {
        return Ok(answer(Answer::Continue));
    }
    let Address::Path(path) = Address::decode(&call.peer.memory(address, length as usize)?) else {
        return Ok(answer(Answer::Continue));
    };
    if !is_name_of_ours(call.sockets, &path) || !call.peer.shares_users()? {
        return Ok(answer(Answer::Continue));
    }
    let identity = call.peer.fs_identity()?;
    let Some(place) = place_of(call, &identity, libc::AT_FDCWD, &path)? else {
        return Ok(answer(Answer::Continue));
    };
    let key = place.key();
    let serial = call.worker.serial;
    let mut of_key =
        call.sockets.core.sockets().iter().filter(|socket| socket.key.matches(&key) && !socket.permanent);
    let is_probe = of_key.clone().next().is_some() && !of_key.any(|socket| socket.users.contains(&serial));
    Ok(answer(if is_probe { Answer::Fail(libc::ECONNREFUSED) } else { Answer::Continue }))
}

fn is_name_of_ours(sockets: &Sockets, path: &Path) -> bool {
    path.file_name().is_some_and(|name| sockets.copies.files().any(|(_, file)| file.place().name() == name))
}

/// The place that a worker's path names. If it has none, the kernel reports the right errno.
fn place_of(call: &Call<'_>, identity: &FsIdentity, dir: RawFd, path: &Path) -> io::Result<Option<Place>> {
    match Place::of(&call.peer, identity, dir, path) {
        Ok(place) => Ok(Some(place)),
        Err(error) if is_shortage(&error) => Err(error),
        Err(_not_the_workers_to_look_into) => Ok(None),
    }
}

fn read_path(peer: &Peer, at: u64) -> io::Result<PathBuf> {
    Ok(Path::new(OsStr::from_bytes(peer.string(at)?.as_bytes())).to_owned())
}
