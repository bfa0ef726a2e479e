//! Decisions about `bind`: the worker's own socket, alone or in a group, or a socket that other workers have.

use std::time::Duration;

use super::generations::{self, SocketChoice};
use super::{Core, Effect, Migration, Scope, Socket, SocketId};
use crate::policy::Time;
use crate::share::address::Key;

/// How long a continued `bind` may normally take: the kernel needs microseconds.
const BIND_TAKES: Duration = Duration::from_millis(50);

/// How long it may take if its thread has not been seen to do anything else since. On a busy machine a thread may
/// wait for a CPU, and a stopped thread does not continue at all.
const BIND_TAKES_AT_MOST: Duration = Duration::from_secs(5);

/// The number of sockets that one worker has bound and that do not listen yet. Each takes a few words of memory. The
/// socket that will listen is among the latest.
pub(in crate::share) const MAX_BOUND: usize = 256;

/// The number of a worker's own UDP sockets of an address that are checked before its next bind, if the decision does
/// not depend on them. Each check takes some microseconds, in which the supervisor does nothing else.
const LOOKED_AT: usize = 8;

/// A `bind` to an address whose sockets are shards.
#[derive(Debug, Clone, Copy)]
pub(in crate::share) struct BindRequest<'a> {
    /// The worker's serial.
    pub(in crate::share) serial: u64,
    /// The socket.
    pub(in crate::share) id: SocketId,
    /// The address.
    pub(in crate::share) key: &'a Key,
    /// The worker of a nested supervisor that makes the call; 0: none.
    pub(in crate::share) inner: u64,
    /// Whether the program itself has set `SO_REUSEPORT`.
    pub(in crate::share) requested_reuseport: bool,
    /// Whether the check of [`Bind::Check`] was made.
    pub(in crate::share) checked: bool,
}

/// The decision about a `bind`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::share) enum Bind {
    /// The kernel handles the call, and the core keeps no record of it.
    Private,
    /// The kernel binds the worker's own socket. If `reuseport`, `SO_REUSEPORT` is set on it before, and also on the
    /// sockets in `enable`.
    Own {
        /// Whether it joins other sockets.
        reuseport: bool,
        /// Sockets of other workers that do not have `SO_REUSEPORT` yet.
        enable: Vec<SocketId>,
    },
    /// This socket replaces the worker's own. Afterwards call [`give`](Core::give).
    Give(SocketId),
    /// The call fails with this errno.
    Refuse(i32),
    /// First check whether the worker still has these sockets open. Report those that it has closed with
    /// [`released`](Core::released), and call again with `checked`.
    Check(Vec<SocketId>),
}

impl Core {
    /// A worker binds a socket without an address to an address whose sockets are shards.
    pub(in crate::share) fn bind(&mut self, now: Time, request: BindRequest<'_>) -> Bind {
        let BindRequest { serial, id, key, inner, requested_reuseport, checked } = request;
        let own_ids = self.own_overlapping(&request);
        if !checked && !own_ids.is_empty() {
            return Bind::Check(self.worth_checking(&request, own_ids));
        }
        // Only after the check: sockets that the worker has closed must not prevent its bind, whether it is shared or
        // not.
        if !self.is_shareable(now, serial, key) {
            return Bind::Private;
        }
        let own = || self.sockets.iter().filter(|socket| own_ids.contains(&socket.id));
        // A worker must get the same result as without siblings whose sockets can be joined.
        let has_own = own().next().is_some();
        let may_join_own = requested_reuseport && own().all(|socket| socket.requested_reuseport);
        if requested_reuseport && own().any(|socket| socket.reuseport && !socket.requested_reuseport) {
            return Bind::Refuse(libc_errno::EADDRINUSE);
        }
        let is_other =
            |socket: &&Socket| socket.id != id && socket.key.overlaps(key) && !own_ids.contains(&socket.id);
        let others: Vec<&Socket> = self.sockets.iter().filter(is_other).collect();
        if let Some(left) = self.inherited_by(serial, id, key).filter(|_| !has_own) {
            return Bind::Give(left);
        }
        let joins = !others.is_empty() && (!has_own || may_join_own);
        let enable =
            others.iter().filter(|socket| joins && !socket.reuseport).map(|socket| socket.id).collect();
        self.track(
            serial,
            Socket {
                users: vec![serial],
                inner,
                bound_at: Some(now),
                requested_reuseport,
                reuseport: joins || requested_reuseport,
                ..Socket::new(id, key.clone(), Scope::Shard)
            },
        );
        Bind::Own { reuseport: joins, enable }
    }

    /// The worker's own sockets that prevent its `bind` in the kernel if they are still open.
    fn own_overlapping(&self, request: &BindRequest<'_>) -> Vec<SocketId> {
        let is_own = |socket: &&Socket| {
            socket.id != request.id
                && socket.users.contains(&request.serial)
                && socket.inner == request.inner
                && socket.key.overlaps(request.key)
        };
        self.sockets.iter().filter(is_own).map(|socket| socket.id).collect()
    }

    /// Which of a worker's own sockets must be checked. Of many UDP sockets that no sibling has joined only the
    /// latest are: the kernel alone decides about the next bind, and closed sockets need only be forgotten in time.
    fn worth_checking(&self, request: &BindRequest<'_>, mut own: Vec<SocketId>) -> Vec<SocketId> {
        let is_private = |socket: &Socket| own.contains(&socket.id) && !socket.active && !socket.reuseport;
        let mut overlapping = self.sockets.iter().filter(|socket| socket.key.overlaps(request.key));
        if request.key.is_datagram() && !request.requested_reuseport && overlapping.all(is_private) {
            own.drain(..own.len().saturating_sub(LOOKED_AT));
        }
        own
    }

    /// The listeners of a worker beside which another socket of it must not listen, as far as the program itself
    /// decides. Two sockets with `SO_REUSEADDR` can be bound before either listens.
    pub(in crate::share) fn listeners_in_the_way(
        &self,
        serial: u64,
        id: SocketId,
        key: &Key,
    ) -> Vec<SocketId> {
        let Some(own) = self.socket(id).filter(|own| !own.active) else { return Vec::new() };
        let in_the_way = |socket: &&Socket| {
            socket.id != id
                && socket.active
                && socket.scope == Scope::Shard
                && socket.users.contains(&serial)
                && socket.inner == own.inner
                && !(socket.requested_reuseport && own.requested_reuseport)
                && socket.key.overlaps(key)
        };
        self.sockets.iter().filter(in_the_way).map(|socket| socket.id).collect()
    }

    /// A worker binds the socket `id` to an address that has one socket for all workers.
    pub(in crate::share) fn bind_shared(
        &mut self,
        now: Time,
        serial: u64,
        (id, key): (SocketId, &Key),
        checked: bool,
    ) -> Bind {
        let there = self.sockets.iter().find(|socket| socket.key.matches(key));
        let there = there.map(|there| (there.id, there.users.contains(&serial)));
        if let Some((there, true)) = there.filter(|_| !checked) {
            return Bind::Check(vec![there]);
        }
        if !self.is_shareable(now, serial, key) {
            return Bind::Private;
        }
        let Some((there, has)) = there else {
            let socket = Socket::new(id, key.clone(), Scope::Shared);
            self.track(serial, Socket { users: vec![serial], bound_at: Some(now), ..socket });
            return Bind::Own { reuseport: false, enable: Vec::new() };
        };
        if has { Bind::Refuse(libc_errno::EADDRINUSE) } else { Bind::Give(there) }
    }

    /// Records a socket that a worker binds. If there are too many, the oldest one that does not listen is dropped.
    pub(in crate::share) fn track(&mut self, serial: u64, socket: Socket) {
        // A reused inode number belongs to another socket.
        self.sockets.retain(|old| old.id != socket.id);
        self.sockets.push(socket);
        let bound = |socket: &Socket| !socket.active && socket.users == [serial];
        if self.sockets.iter().filter(|socket| bound(socket)).count() > MAX_BOUND
            && let Some(oldest) = self.sockets.iter().position(bound)
        {
            let oldest = self.sockets.remove(oldest);
            self.effects.push(Effect::Close(oldest.id));
        }
    }

    /// A worker binds the socket `id` to a path. `at_path`: the socket that is there now.
    pub(in crate::share) fn bind_path(
        &mut self,
        now: Time,
        serial: u64,
        (id, key): (SocketId, &Key),
        at_path: Option<SocketId>,
    ) -> Bind {
        if !self.is_shareable(now, serial, key) {
            return Bind::Private;
        }
        let Some(own) = self.workers.get(serial).map(|worker| worker.generation) else {
            return Bind::Private;
        };
        let states = self.states_at(key, at_path);
        let generation = match generations::choose(own, self.target, &states) {
            SocketChoice::Own => own,
            SocketChoice::Share(other) => other,
            SocketChoice::TakeOver(other) => {
                let taken = self.sockets.iter_mut().filter(|socket| socket.key.matches(key));
                for socket in taken.filter(|socket| socket.scope == Scope::Generation(other)) {
                    socket.scope = Scope::Generation(own);
                }
                own
            }
        };
        let of_generation = |socket: &&Socket| {
            socket.key.matches(key) && socket.scope == Scope::Generation(generation) && !socket.unlinked
        };
        match self
            .sockets
            .iter()
            .find(of_generation)
            .map(|socket| (socket.id, socket.users.contains(&serial)))
        {
            // The kernel decides by the file at the path alone.
            Some((_, true)) => Bind::Private,
            Some((there, false)) => Bind::Give(there),
            None => {
                self.track(
                    serial,
                    Socket {
                        users: vec![serial],
                        bound_at: Some(now),
                        ..Socket::new(id, key.clone(), Scope::Generation(generation))
                    },
                );
                Bind::Own { reuseport: false, enable: Vec::new() }
            }
        }
    }

    /// A worker renames the socket that it has bound to another path. [`Bind::Give`]: there is a socket at that path
    /// for it to share.
    pub(in crate::share) fn renamed(
        &mut self,
        serial: u64,
        id: SocketId,
        key: &Key,
        at_path: Option<SocketId>,
    ) -> Bind {
        let Some(own) = self.workers.get(serial).map(|worker| worker.generation) else {
            return Bind::Private;
        };
        let choice = generations::choose(own, self.target, &self.states_at(key, at_path));
        let generation = match choice {
            SocketChoice::Own | SocketChoice::TakeOver(_) => own,
            SocketChoice::Share(other) => other,
        };
        let there = self.sockets.iter().find(|socket| {
            socket.id != id
                && socket.key.matches(key)
                && socket.scope == Scope::Generation(generation)
                && !socket.unlinked
        });
        match there.map(|socket| (socket.id, socket.users.contains(&serial))) {
            Some((there, false)) => return Bind::Give(there),
            // The worker replaces its first socket at the path by another one.
            Some((there, true)) => self.unlinked(there),
            None => {}
        }
        if let Some(socket) = self.socket_mut(id) {
            socket.key = key.clone();
            socket.scope = Scope::Generation(own);
        }
        self.note_change(id);
        Bind::Own { reuseport: false, enable: Vec::new() }
    }

    /// A worker gets a socket that other workers have, or that its slot's last worker had.
    pub(in crate::share) fn give(&mut self, serial: u64, id: SocketId, requested_reuseport: bool) {
        let slot = self.workers.slot_of(serial);
        let Some(socket) = self.socket_mut(id) else { return };
        if !socket.users.contains(&serial) {
            socket.users.push(serial);
        }
        socket.awaited_by.retain(|awaiting| Some(*awaiting) != slot);
        socket.closed = None;
        socket.released = false;
        socket.restored = false;
        socket.stalled = false;
        socket.requested_reuseport = requested_reuseport;
        let key = socket.key.clone();
        self.touch(&key);
    }

    /// Whether a worker may share an address. If it has long been ready, and no worker listened on the address while
    /// starting, the bind is a search for a free port, and must not lead to a sibling's.
    pub(in crate::share) fn is_shareable(&mut self, now: Time, serial: u64, key: &Key) -> bool {
        let Some(worker) = self.workers.get(serial) else { return false };
        if self.is_known(key) || !self.is_past_startup(worker, now) {
            return true;
        }
        if !std::mem::replace(&mut self.unshared_reported, true) {
            self.effects.push(Effect::Unshared(worker.id, key.clone()));
        }
        false
    }

    /// The socket that replaces a worker's own when it listens: one that its slot's last worker left, with
    /// connections that the kernel cannot move. One that an earlier supervisor has left gets all connections until then:
    /// there may be one in the next moment.
    pub(in crate::share) fn inherited_by(&self, serial: u64, own: SocketId, key: &Key) -> Option<SocketId> {
        let slot = self.workers.slot_of(serial)?;
        let inherits = |socket: &&Socket| {
            self.migration == Migration::Resets
                && socket.scope == Scope::Shard
                && socket.active
                && (socket.waiting || socket.restored)
                && socket.users.is_empty()
                && socket.id != own
                && socket.key.matches(key)
                && socket.awaited_by.contains(&slot)
        };
        self.sockets.iter().find(inherits).map(|socket| socket.id)
    }

    /// Whether a continued `bind` may not be carried out yet. `may_be_in_bind`: whether its thread may still be in
    /// that call.
    pub(in crate::share) fn is_fresh(
        &self,
        now: Time,
        id: SocketId,
        may_be_in_bind: impl FnOnce() -> bool,
    ) -> bool {
        let bound_at = self.socket(id).and_then(|socket| socket.bound_at);
        bound_at.is_some_and(|bound_at| {
            let age = now.since(bound_at);
            age < BIND_TAKES || (age < BIND_TAKES_AT_MOST && may_be_in_bind())
        })
    }

    /// Whether a worker listened on an address while it started.
    pub(in crate::share) fn is_known(&self, key: &Key) -> bool {
        self.known.iter().any(|known| known.matches(key))
    }
}

/// The one constant of the C library on which a decision depends.
mod libc_errno {
    /// errno(3).
    pub(in crate::share) const EADDRINUSE: i32 = 98;
}
