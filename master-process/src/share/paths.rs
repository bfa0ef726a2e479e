//! Calls on the path of a socket besides `bind`: removing it, renaming a socket to it, and probing it with `connect`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::address::{Address, Key};
use super::broker::{Broker, Decision};
use super::calls::{Request, answer};
use super::core::{Bind, SocketId};
use super::unix::{Access, SocketFile};
use crate::policy::Time;
use crate::sys::peer::Peer;
use crate::sys::seccomp::Answer;

/// The longest `sockaddr` that is decoded.
const LONGEST_ADDRESS: u32 = 128;

impl Broker {
    /// A path that other workers need stays. The caller is told that the call succeeded.
    pub(super) fn unlink(&mut self, request: &Request<'_>, dir: RawFd, path: u64) -> io::Result<Decision> {
        let path = read_path(&request.peer, path)?;
        let serial = request.worker.serial;
        let clears = self.may_remove_before_bind(request.now, serial);
        if !(clears || self.is_name_of_ours(&path)) || !request.peer.shares_users()? {
            return Ok(answer(Answer::Continue));
        }
        let identity = request.peer.fs_identity()?;
        let Some(place) = self.place_of(request, &identity, dir, &path)? else {
            return Ok(answer(Answer::Continue));
        };
        let key = place.key();
        let there = self.at_path(&key).or_else(|| self.about_to_listen(&key));
        let Some(id) = there else {
            if clears && let Ok(watch) = request.peer.watch_call() {
                self.removals.begin(request.now, (serial, request.call.thread), key, watch);
            }
            return Ok(answer(Answer::Continue));
        };
        if self.is_needed_by_others(serial, id) {
            // Its next `bind` at the path gets this socket again.
            self.core.gives_up(serial, id);
            return Ok(answer(Answer::Done));
        }
        self.core.unlinked(id);
        Ok(answer(Answer::Continue))
    }

    /// Whether a worker may remove a file because it and a sibling are about to bind there.
    pub(super) fn may_remove_before_bind(&self, now: Time, serial: u64) -> bool {
        let workers = self.core.workers();
        workers.get(serial).is_some_and(|worker| !worker.is_settled(now)) && workers.iter().nth(1).is_some()
    }

    /// The socket that a worker has bound at a path, or is binding now, and that does not listen yet.
    fn about_to_listen(&self, key: &Key) -> Option<SocketId> {
        let mut of_key =
            self.core.sockets().iter().filter(|socket| !socket.unlinked && socket.key.matches(key));
        of_key
            .find(|socket| self.copies.file(socket.id).is_some_and(SocketFile::is_awaited))
            .map(|socket| socket.id)
    }

    /// Whether the path of a socket must stay although this worker removes it.
    fn is_needed_by_others(&self, serial: u64, id: SocketId) -> bool {
        let Some(socket) = self.core.socket(id) else { return false };
        let workers = self.core.workers();
        let stops = workers.get(serial).is_some_and(|worker| worker.stopping);
        let is_other =
            |user: &u64| *user != serial && workers.get(*user).is_some_and(|worker| !worker.stopping);
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
        &mut self,
        request: &Request<'_>,
        (from_dir, from): (RawFd, u64),
        (to_dir, to): (RawFd, u64),
        flags: u32,
    ) -> io::Result<Decision> {
        let from = read_path(&request.peer, from)?;
        if flags != 0 || !self.is_name_of_ours(&from) || !request.peer.shares_users()? {
            return Ok(answer(Answer::Continue));
        }
        let to = read_path(&request.peer, to)?;
        let identity = request.peer.fs_identity()?;
        let source = self.place_of(request, &identity, from_dir, &from)?;
        let target = self.place_of(request, &identity, to_dir, &to)?;
        let Some((source, target)) = source.zip(target).filter(|(source, target)| source.is_beside(target))
        else {
            return Ok(answer(Answer::Continue));
        };
        let serial = request.worker.serial;
        let is_source = |id: &SocketId| {
            self.core
                .socket(*id)
                .is_some_and(|socket| socket.users.contains(&serial) && socket.key.matches(&source.key()))
        };
        let Some(id) = self.copies.files().map(|(id, _)| id).find(|id| is_source(id)) else {
            return Ok(answer(Answer::Continue));
        };
        let no_access = Access { mode: None, owner: None };
        if self.copies.file_mut(id).is_none_or(|file| file.adopt(no_access).is_err()) {
            return Ok(answer(Answer::Continue));
        }
        let key = target.key();
        let at_path = self.at_path(&key);
        match self.core.renamed(serial, id, &key, at_path) {
            Bind::Give(there) => {
                // Its own file is dropped. Its listener is replaced by the one that the others have.
                let listens_at = self.copies.location(serial, id).filter(|at| at.has(id));
                let active = self.core.socket(id).is_some_and(|socket| socket.active);
                if let Some(at) = listens_at.filter(|_| active) {
                    if self.exchange(request, at.fd, id, there)?.is_none() {
                        return Ok(self.await_scan(request));
                    }
                } else if let Some(process) = self.processes.get_mut(&serial) {
                    process.substitutes.push((id, there));
                }
                self.copies.drop_file(id);
                Ok(answer(Answer::Done))
            }
            Bind::Own { .. } => {
                let taken = at_path
                    .is_some_and(|there| self.core.socket(there).is_some_and(|socket| !socket.unlinked));
                if let Some(file) = self.copies.file_mut(id) {
                    file.moves_to(target, !taken);
                }
                Ok(answer(if taken { Answer::Done } else { Answer::Continue }))
            }
            Bind::Private | Bind::Refuse(_) | Bind::Check(_) => Ok(answer(Answer::Continue)),
        }
    }

    /// Handles a program that checks with `connect` whether a server answers at its path before it binds there. It
    /// must not find its siblings, nor the queue of its predecessor.
    pub(super) fn connect(
        &mut self,
        request: &Request<'_>,
        address: u64,
        length: u32,
    ) -> io::Result<Decision> {
        if !(3..=LONGEST_ADDRESS).contains(&length) {
            return Ok(answer(Answer::Continue));
        }
        let Address::Path(path) = Address::decode(&request.peer.memory(address, length as usize)?) else {
            return Ok(answer(Answer::Continue));
        };
        if !self.is_name_of_ours(&path) || !request.peer.shares_users()? {
            return Ok(answer(Answer::Continue));
        }
        let identity = request.peer.fs_identity()?;
        let Some(place) = self.place_of(request, &identity, libc::AT_FDCWD, &path)? else {
            return Ok(answer(Answer::Continue));
        };
        let key = place.key();
        let serial = request.worker.serial;
        let mut of_key =
            self.core.sockets().iter().filter(|socket| socket.key.matches(&key) && !socket.permanent);
        let is_probe =
            of_key.clone().next().is_some() && !of_key.any(|socket| socket.users.contains(&serial));
        Ok(answer(if is_probe { Answer::Fail(libc::ECONNREFUSED) } else { Answer::Continue }))
    }

    fn is_name_of_ours(&self, path: &Path) -> bool {
        path.file_name().is_some_and(|name| self.copies.files().any(|(_, file)| file.place().name() == name))
    }
}

fn read_path(peer: &Peer, at: u64) -> io::Result<PathBuf> {
    Ok(Path::new(OsStr::from_bytes(peer.string(at)?.as_bytes())).to_owned())
}
