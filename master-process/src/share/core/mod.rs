//! The decisions about shared addresses, without any I/O: facts in, effects out.
//!
//! A fact is a request or an event of a worker: it binds, listens, becomes ready, closes a listener, or ends. An
//! effect is a command for the kernel: which sockets of an address get new connections, and which copies of ours are
//! closed. The broker reports the facts and carries out the effects in their order.
//!
//! Every TCP listener and every shared UDP socket is a *shard*: the worker's own socket, of which the supervisor
//! holds a copy. The shards of an address form one `SO_REUSEPORT` group of the kernel ([`group`]). Sockets that
//! cannot be in a group are *shared*: all workers have the same socket ([`Scope::Shared`], [`Scope::Generation`]).

mod binding;
mod generations;
mod group;
mod readiness;
mod workers;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::address::Key;
use crate::policy::{Time, WorkerId};

pub(super) use binding::{Bind, BindRequest};
use group::Group;
use readiness::Names;
use serde::{Deserialize, Serialize};
pub(super) use workers::Workers;

/// The inode number of a socket, which is the same in every process that has it.
pub(super) type SocketId = u64;

/// How long a listener that its living worker has closed keeps its address if no sibling serves it. A worker that is
/// about to end closes its listeners first, and its successor gets the connections that wait. Together with
/// [`CLOSE_CHECK`] this is less than the two seconds after which a closed address is promised to be free.
pub(super) const CLOSE_GRACE: Duration = Duration::from_millis(600);

/// How long a socket is kept after its removal from the selection, where the kernel does not move its queue.
/// Connections whose handshake is in progress still arrive in the queue.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// The interval of the checks whether workers still have their listeners open, while there is activity.
pub const CLOSE_CHECK: Duration = Duration::from_millis(900);

/// How long after it became ready a worker still counts as starting: a program with several listeners is ready at its
/// first one, and opens its own port once it has loaded what it serves: as long as a program that never listens may take
/// to count as ready. A later bind to a new address is a search for a free port. With less, an application whose metrics
/// are served 6 s before itself would be reloaded before it serves; with more, programs that search would share more
/// often.
pub(super) const STARTUP: Duration = Duration::from_secs(10);

/// The number of addresses to remember as the program's own.
const MAX_KNOWN: usize = 1024;

/// What the kernel does with the queue of a listener that is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Migration {
    /// It moves the queue to another listener of the group (`BPF_SK_REUSEPORT_SELECT_OR_MIGRATE`, or
    /// `net.ipv4.tcp_migrate_req`).
    Moves,
    /// It resets the connections in the queue.
    Resets,
}

/// Which workers have a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Scope {
    /// One worker has it; it is one socket of a group.
    Shard,
    /// All workers have it.
    Shared,
    /// All workers of a generation have it: a Unix path.
    Generation(u32),
}

/// A socket that a worker has bound, or that we opened for workers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Socket {
    pub(super) id: SocketId,
    pub(super) key: Key,
    pub(super) scope: Scope,
    /// The living workers that have it; at most one for a shard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) users: Vec<u64>,
    /// Slots whose worker ended while it had this socket, without a stop signal. The next worker of the slot
    /// gets the socket or its queue.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) awaited_by: Vec<u32>,
    /// Whether it is in the kernel's group: a TCP or Unix socket that listens, a UDP socket that is shared.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) active: bool,
    /// Whether the program itself has set `SO_REUSEPORT`.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) requested_reuseport: bool,
    /// Whether it has `SO_REUSEPORT`, set by the program or by us.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) reuseport: bool,
    /// The time at which its living worker was found to have closed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) closed: Option<Time>,
    /// Whether its worker wants the address for another socket.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) released: bool,
    /// The time since which it gets no new connections, while others of its address do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unselected: Option<Time>,
    /// Whether connections wait in it, as far as is known.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) waiting: bool,
    /// Whether its worker does not accept connections.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) stalled: bool,
    /// The worker of a nested supervisor that has bound it; 0: none.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) inner: u64,
    /// The time of its worker's `bind`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bound_at: Option<Time>,
    /// Whether the supervisor opened it; then it stays open.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) permanent: bool,
    /// Whether its path no longer leads to it.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) unlinked: bool,
    /// Whether an earlier supervisor has left it, and no worker of this one has had it.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) restored: bool,
}

impl Socket {
    fn new(id: SocketId, key: Key, scope: Scope) -> Socket {
        Socket {
            id,
            key,
            scope,
            users: Vec::new(),
            awaited_by: Vec::new(),
            active: false,
            requested_reuseport: false,
            reuseport: false,
            closed: None,
            released: false,
            unselected: None,
            waiting: false,
            stalled: false,
            inner: 0,
            bound_at: None,
            permanent: false,
            unlinked: false,
            restored: false,
        }
    }

    /// A worker of this slot no longer has this socket. Unless it was sent the stop signal, the socket waits for the
    /// slot's next worker.
    fn remove_user(&mut self, serial: u64, slot: u32, expected: bool) {
        let had = self.users.len();
        self.users.retain(|user| *user != serial);
        if self.users.len() == had {
            return;
        }
        // It may have been found closed only because its worker was dying.
        self.closed = None;
        if !expected && !self.awaited_by.contains(&slot) && !self.key.is_datagram() {
            self.awaited_by.push(slot);
        }
    }
}

/// A command for the broker. Effects must be carried out in order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "an effect that is not carried out leaves connections waiting"]
pub(super) enum Effect {
    /// Route new connections of the address to these sockets only, each with its number in the kernel's group.
    Select {
        /// The address.
        key: Key,
        /// Not empty; sorted by number.
        targets: Vec<(SocketId, usize)>,
    },
    /// Move the wanted socket to a path, atomically.
    Arrange(Key),
    /// Close our copy, and forget what is known of the socket.
    Close(SocketId),
    /// The address has no socket left.
    Released(Key),
    /// A worker that is past its startup binds an address that no worker had before: it is not shared.
    Unshared(WorkerId, Key),
}

/// The state of all shared addresses.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Core {
    migration: Migration,
    sockets: Vec<Socket>,
    groups: Vec<Group>,
    workers: Workers,
    /// The addresses on which workers listened while they started.
    known: Vec<Key>,
    names: Names,
    /// Addresses to reconcile.
    dirty: Vec<Key>,
    /// They are carried out before the state is written.
    #[serde(skip)]
    effects: Vec<Effect>,
    unshared_reported: bool,
    /// The generation to which the reload in progress leads.
    target: Option<u32>,
    /// The number of changes so far.
    #[serde(skip)]
    changes: u64,
}

impl Core {
    pub(super) fn new(migration: Migration) -> Core {
        Core {
            migration,
            sockets: Vec::new(),
            groups: Vec::new(),
            workers: Workers::default(),
            known: Vec::new(),
            names: Names::default(),
            dirty: Vec::new(),
            effects: Vec::new(),
            unshared_reported: false,
            target: None,
            changes: 0,
        }
    }

    /// Sets what the kernel does with the queue of a closed listener.
    pub(super) fn set_migration(&mut self, migration: Migration) {
        self.migration = migration;
    }

    /// Adds a socket that the supervisor opened and keeps.
    pub(super) fn add_permanent(&mut self, id: SocketId, key: Key, can_be_joined: bool) {
        let scope = if can_be_joined { Scope::Shard } else { Scope::Shared };
        let permanent = Socket::new(id, key.clone(), scope);
        self.sockets.push(Socket { active: true, permanent: true, reuseport: can_be_joined, ..permanent });
        if can_be_joined {
            self.group(&key).join(id);
        }
        self.names.add_fixed(&key);
        self.remember(&key);
    }

    /// Adds a listener of an earlier supervisor. The next workers of these slots get it, or its queue.
    pub(super) fn add_restored(
        &mut self,
        id: SocketId,
        key: &Key,
        scope: Scope,
        slots: Vec<u32>,
        reuseport: bool,
    ) {
        let socket = Socket::new(id, key.clone(), scope);
        self.sockets.push(Socket { active: true, awaited_by: slots, reuseport, restored: true, ..socket });
        self.remember(key);
        self.touch(key);
    }

    /// Sets the order of a group that existed before, and in which another selection may be in effect.
    pub(super) fn restore_order(&mut self, key: &Key, order: Vec<SocketId>) {
        self.group(key).restore(order);
        self.touch(key);
    }

    /// Releases a socket without workers: nobody is to get it.
    pub(super) fn give_up(&mut self, id: SocketId) {
        let Some(socket) = self.socket_mut(id).filter(|socket| socket.users.is_empty()) else { return };
        socket.awaited_by.clear();
        socket.released = true;
        let key = socket.key.clone();
        self.touch(&key);
    }

    /// The number of a socket in the kernel's group, if it is in one.
    pub(super) fn number(&self, socket: &Socket) -> Option<usize> {
        self.groups.iter().find(|group| group.key.matches(&socket.key))?.number(socket.id)
    }

    /// A number that differs from the last one if any socket may have changed since.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Every socket.
    pub(super) fn sockets(&self) -> &[Socket] {
        &self.sockets
    }

    /// The socket with an inode number.
    pub(super) fn socket(&self, id: SocketId) -> Option<&Socket> {
        self.sockets.iter().find(|socket| socket.id == id)
    }

    fn socket_mut(&mut self, id: SocketId) -> Option<&mut Socket> {
        self.sockets.iter_mut().find(|socket| socket.id == id)
    }

    /// The workers.
    pub(super) fn workers(&self) -> &Workers {
        &self.workers
    }

    /// A worker starts.
    pub(super) fn started(&mut self, worker: WorkerId, generation: u32) {
        self.workers.start(worker, generation);
    }

    /// Whether a bind of a worker to a new address is a search for a free port: the worker has been ready for a
    /// while, and addresses of the program are known. A worker that became ready by its age alone, and then binds its
    /// first address, is only slow.
    fn is_past_startup(&self, worker: &workers::Worker, now: Time) -> bool {
        worker.is_past_startup(now) && !self.known.is_empty()
    }

    /// A worker listens on a socket, or its UDP socket is shared from now on. `key` is the address to which the
    /// kernel has bound it. Returns `false` if the worker does not have this socket.
    pub(super) fn activated(&mut self, now: Time, serial: u64, id: SocketId, key: &Key) -> bool {
        let past_startup = self.workers.get(serial).is_none_or(|worker| self.is_past_startup(worker, now));
        let Some(socket) = self.socket_mut(id).filter(|socket| socket.users.contains(&serial)) else {
            return false;
        };
        if !socket.active {
            socket.key = key.clone();
            socket.active = true;
            socket.reuseport = true;
        }
        socket.closed = None;
        let (key, scope) = (socket.key.clone(), socket.scope);
        if scope == Scope::Shard {
            self.group(&key).join(id);
        }
        if let Some(slot) = self.workers.slot_of(serial) {
            // The slot's next worker has arrived, with another socket of the path.
            for other in self.sockets.iter_mut().filter(|other| other.id != id && other.key.matches(&key)) {
                if matches!(other.scope, Scope::Generation(_)) {
                    other.awaited_by.retain(|awaiting| *awaiting != slot);
                }
            }
        }
        if !past_startup {
            self.remember(&key);
        }
        self.touch(&key);
        true
    }

    /// Makes an address shared for any worker at any time.
    pub(super) fn know(&mut self, key: &Key) {
        self.remember(key);
    }

    fn remember(&mut self, key: &Key) {
        if !self.known.iter().any(|known| known.matches(key)) && self.known.len() < MAX_KNOWN {
            self.known.push(key.clone());
        }
    }

    /// The supervisor has set `SO_REUSEPORT` on a socket.
    pub(super) fn enabled(&mut self, id: SocketId) {
        if let Some(socket) = self.socket_mut(id) {
            socket.reuseport = true;
        }
    }

    /// Adds a worker to the rotation for new connections, or removes it.
    pub(super) fn set_in_rotation(&mut self, now: Time, serial: u64, in_rotation: bool) {
        self.workers.set_in_rotation(now, serial, in_rotation);
        self.touch_all_of(serial);
    }

    /// A worker was sent the stop signal.
    pub(super) fn stopping(&mut self, serial: u64) {
        self.workers.set_stopping(serial);
        self.touch_all_of(serial);
    }

    /// The first process of a worker has ended, and others of its process tree live: they get no new connections. The
    /// slot's next worker, which starts meanwhile, gets the queue. `expected` as in [`died`](Self::died).
    pub(super) fn first_ended(&mut self, now: Time, serial: u64, expected: bool) {
        let stopping = self.workers.get(serial).is_some_and(|worker| worker.stopping);
        if !expected && !stopping {
            self.leave_addresses(serial);
        }
        self.set_in_rotation(now, serial, false);
    }

    /// A worker has ended. `expected`: it was sent the stop signal, so its queue is not kept for a successor.
    pub(super) fn died(&mut self, serial: u64, expected: bool) {
        let Some(worker) = self.workers.get(serial) else { return };
        let (slot, expected) = (worker.id.slot, expected || worker.stopping);
        self.touch_all_of(serial);
        if !expected {
            self.leave_addresses(serial);
        }
        self.workers.remove(serial);
        self.drop_inactive(|socket| socket.users == [serial]);
        for socket in &mut self.sockets {
            socket.remove_user(serial, slot, expected);
        }
    }

    /// The first process of a worker has ended, and no other process of its tree has this socket open any more. For
    /// this socket the worker has ended.
    pub(super) fn left(&mut self, serial: u64, id: SocketId) {
        let Some(worker) = self.workers.get(serial) else { return };
        let (slot, expected) = (worker.id.slot, worker.stopping);
        let Some(socket) = self.socket_mut(id) else { return };
        socket.remove_user(serial, slot, expected);
        let key = socket.key.clone();
        self.touch(&key);
    }

    /// Releases the sockets that wait for a slot: it gets no worker, or its new worker serves without them.
    pub(super) fn abandon(&mut self, slot: u32, kept: impl Fn(&Key) -> bool) {
        let mut keys = Vec::new();
        for socket in &mut self.sockets {
            if socket.awaited_by.contains(&slot) && !kept(&socket.key) {
                socket.awaited_by.retain(|awaiting| *awaiting != slot);
                keys.push(socket.key.clone());
            }
        }
        keys.iter().for_each(|key| self.touch(key));
    }

    /// A worker has served for a moment, and what earlier workers of its slot had and it has not was released.
    pub(super) fn swept(&mut self, serial: u64) {
        self.workers.set_swept(serial);
    }

    /// The slots for whose next worker sockets wait.
    pub(super) fn awaited_slots(&self) -> Vec<u32> {
        let mut slots: Vec<u32> = self.sockets.iter().flat_map(|socket| socket.awaited_by.clone()).collect();
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// No process of a living worker has this socket open any more.
    pub(super) fn closed(&mut self, now: Time, serial: u64, id: SocketId) {
        // The result of a scan is outdated if the worker has ended meanwhile: its successor gets the queue.
        let Some(socket) = self.socket_mut(id).filter(|socket| socket.users.contains(&serial)) else {
            return;
        };
        if socket.scope == Scope::Shard {
            socket.closed.get_or_insert(now);
        } else {
            socket.users.retain(|user| *user != serial);
        }
        let key = socket.key.clone();
        self.workers.note_change(serial);
        self.touch(&key);
    }

    /// The same, and the worker binds the address with another socket, so it is free at once.
    pub(super) fn released(&mut self, serial: u64, id: SocketId) {
        let Some(socket) = self.socket_mut(id) else { return };
        socket.users.retain(|user| *user != serial);
        socket.released = socket.users.is_empty();
        let key = socket.key.clone();
        self.workers.note_change(serial);
        self.drop_inactive(|socket| socket.id == id);
        self.touch(&key);
    }

    /// Forgets a socket that does not listen and cannot be found any more.
    pub(super) fn drop_socket(&mut self, id: SocketId) {
        self.drop_inactive(|socket| socket.id == id);
    }

    /// Forgets sockets that are bound, but neither active nor permanent.
    fn drop_inactive(&mut self, which: impl Fn(&Socket) -> bool) {
        let dropped = |socket: &Socket| !socket.active && !socket.permanent && which(socket);
        let ids = self.sockets.iter().filter(|socket| dropped(socket)).map(|socket| socket.id);
        self.effects.extend(ids.map(Effect::Close));
        self.sockets.retain(|socket| !dropped(socket));
    }

    /// A worker has shut its listener down. The kernel has removed it from its group.
    pub(super) fn shut_down(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id).filter(|socket| !socket.permanent) else { return };
        let key = socket.key.clone();
        self.note_change(id);
        self.group(&key).leave(id);
        self.sockets.retain(|socket| socket.id != id);
        self.effects.push(Effect::Close(id));
        self.touch(&key);
    }

    /// Sets whether connections wait in a socket.
    pub(super) fn set_waiting(&mut self, id: SocketId, waiting: bool) {
        if let Some(socket) = self.socket_mut(id) {
            socket.waiting = waiting;
        }
    }

    /// Sets whether a worker has stopped accepting from a socket.
    pub(super) fn set_stalled(&mut self, id: SocketId, stalled: bool) {
        if let Some(socket) = self.socket_mut(id) {
            socket.stalled = stalled;
            let key = socket.key.clone();
            self.touch(&key);
        }
    }

    fn touch(&mut self, key: &Key) {
        self.changes += 1;
        if !self.dirty.iter().any(|dirty| dirty.matches(key)) {
            self.dirty.push(key.clone());
        }
    }

    fn touch_all_of(&mut self, serial: u64) {
        let of = |socket: &&Socket| socket.users.contains(&serial);
        let keys: Vec<Key> = self.sockets.iter().filter(of).map(|socket| socket.key.clone()).collect();
        keys.iter().for_each(|key| self.touch(key));
    }

    /// The time at which [`reconcile`](Self::reconcile) has something to do without another fact.
    pub(super) fn deadline(&self) -> Option<Time> {
        let closed = self.sockets.iter().filter_map(|socket| Some(socket.closed?.after(CLOSE_GRACE)));
        let lingering = self.sockets.iter().filter(|socket| self.lingers(socket));
        closed.chain(lingering.filter_map(|socket| Some(socket.unselected?.after(LINGER)))).min()
    }

    /// Whether a socket without a worker is kept only for connections that may still arrive.
    fn lingers(&self, socket: &Socket) -> bool {
        self.migration == Migration::Resets
            && socket.scope == Scope::Shard
            && socket.active
            && socket.users.is_empty()
            && !socket.permanent
            && !socket.waiting
    }

    /// Compares the actual state with the wanted one. Returns the effects that remove the difference.
    pub(super) fn reconcile(&mut self, now: Time) -> Vec<Effect> {
        let is_due = |socket: &&Socket| {
            group::is_overdue(socket, now) || (self.lingers(socket) && group::has_lingered(socket, now))
        };
        let due: Vec<Key> = self.sockets.iter().filter(is_due).map(|socket| socket.key.clone()).collect();
        due.iter().for_each(|key| self.touch(key));
        for key in std::mem::take(&mut self.dirty) {
            self.reconcile_address(now, &key);
        }
        std::mem::take(&mut self.effects)
    }

    fn group(&mut self, key: &Key) -> &mut Group {
        let at = self.groups.iter().position(|group| group.key.matches(key)).unwrap_or_else(|| {
            self.groups.push(Group::new(key.clone()));
            self.groups.len() - 1
        });
        &mut self.groups[at]
    }
}
