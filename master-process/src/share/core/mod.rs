//! The decisions about shared addresses, without any I/O: facts in, effects out.
//!
//! A fact is what a worker asked for or what became of it: it wants to bind, it listens, it became ready, it died, it
//! closed a listener. An effect is what the kernel is to be told: which sockets of an address get new connections, and
//! which copy of ours is closed. The broker reports facts and carries the effects out in their order.
//!
//! Every TCP listener and every shared UDP socket is a *shard*: the worker's own socket, of which we hold a copy. The
//! shards of an address are one `SO_REUSEPORT` group of the kernel ([`group`]). Sockets that cannot be in a group are
//! *shared*: one socket that all workers have ([`Scope::Shared`], [`Scope::Generation`]).

mod binding;
pub(super) mod generations;
mod group;
mod paths;
mod readiness;
mod workers;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::address::Key;
use crate::policy::{Time, WorkerId};

pub(super) use binding::{Asked, Bind};
use group::Group;
use readiness::Names;
use workers::Workers;

/// The inode number of a socket: the same in every process that has it.
pub(super) type SocketId = u64;

/// How long a listener that its living worker has closed keeps the address, where no sibling serves it. A worker that
/// is about to end closes first: its successor gets the connections that wait. Together with [`CLOSE_CHECK`] less than
/// the two seconds after which a closed address is promised to be free.
pub(super) const CLOSE_GRACE: Duration = Duration::from_millis(600);

/// How long a socket is kept after it was taken out of the selection, where the kernel does not move what its closing cuts
/// off: connections whose handshake is under way still arrive in its queue.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// How often it is checked whether workers still have their listeners, while anything happens.
pub const CLOSE_CHECK: Duration = Duration::from_millis(900);

/// How long after it became ready a worker is still taken to be starting: programs of several listeners are ready at
/// their first. An address that is bound for the first time later than that belongs to a search for a free port.
pub(super) const SETTLING: Duration = Duration::from_secs(5);

/// Addresses that are remembered as the program's own.
const MAX_KNOWN: usize = 1024;

/// Whether the kernel moves the queue of a listener that is closed to another of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Migration {
    /// It does (`BPF_SK_REUSEPORT_SELECT_OR_MIGRATE`, or `net.ipv4.tcp_migrate_req`).
    Moves,
    /// It resets what waits there.
    Resets,
}

/// Whose a socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// One worker's own socket, one of a group.
    Shard,
    /// One socket for all workers.
    Shared,
    /// One socket for all workers of a generation: a Unix path.
    Generation(u32),
}

/// A socket that a worker has bound, or that we opened for workers.
#[derive(Debug, Clone)]
pub(super) struct Socket {
    pub(super) id: SocketId,
    pub(super) key: Key,
    pub(super) scope: Scope,
    /// The workers that have it, living ones only; a shard has one at most.
    pub(super) users: Vec<u64>,
    /// Slots whose worker ended unasked while it had it: the next one of the slot gets it, or its queue.
    pub(super) awaited_by: Vec<u32>,
    /// Whether it is in the kernel's group: a TCP or Unix socket that listens, a UDP socket that is shared.
    pub(super) active: bool,
    /// Whether the program itself asked for `SO_REUSEPORT`.
    pub(super) asked_reuseport: bool,
    /// Whether it has `SO_REUSEPORT`, whoever set it.
    pub(super) reuseport: bool,
    /// Since when no process of its living worker has it open.
    pub(super) closed: Option<Time>,
    /// Whether its worker wants the address for another socket.
    pub(super) released: bool,
    /// Since when it gets no new connections, while others of its address do.
    pub(super) unselected: Option<Time>,
    /// Whether connections wait in it, as far as is known.
    pub(super) waiting: bool,
    /// Whether its worker does not accept.
    pub(super) stalled: bool,
    /// Which of the workers of a supervisor that is itself a worker has bound it; 0: none.
    pub(super) inner: u64,
    /// When its worker asked to bind it.
    pub(super) asked_at: Option<Time>,
    /// Whether it was opened by us: it stays.
    pub(super) permanent: bool,
    /// Whether its path leads to it no more.
    pub(super) unlinked: bool,
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
            asked_reuseport: false,
            reuseport: false,
            closed: None,
            released: false,
            unselected: None,
            waiting: false,
            stalled: false,
            inner: 0,
            asked_at: None,
            permanent: false,
            unlinked: false,
        }
    }

    /// A worker of this slot is gone, as far as this socket goes. Unless it was asked to go, the next one is waited for.
    fn loses(&mut self, serial: u64, slot: u32, asked: bool) {
        let had = self.users.len();
        self.users.retain(|user| *user != serial);
        if self.users.len() == had {
            return;
        }
        // It may have been seen as closed just because its worker was dying.
        self.closed = None;
        if !asked && !self.awaited_by.contains(&slot) && !self.key.is_datagram() {
            self.awaited_by.push(slot);
        }
    }
}

/// Something to do; in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "an effect that is not carried out leaves connections waiting"]
pub(super) enum Effect {
    /// New connections of the address go to these sockets only: each with its number in the kernel's group.
    Select {
        /// The address.
        key: Key,
        /// Not empty; sorted by number.
        targets: Vec<(SocketId, usize)>,
    },
    /// Put the right socket to a path, without a moment in which nothing is there.
    Arrange(Key),
    /// Close our copy, and forget what is known of the socket.
    Close(SocketId),
    /// No socket of the address is left.
    Released(Key),
    /// A worker that is long ready binds an address that no worker had before: it is not shared.
    Unshared(WorkerId, Key),
}

/// The state of all shared addresses.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Core {
    migration: Migration,
    sockets: Vec<Socket>,
    groups: Vec<Group>,
    workers: Workers,
    /// What workers listened on while they started.
    known: Vec<Key>,
    names: Names,
    /// Addresses that must be looked at again.
    dirty: Vec<Key>,
    effects: Vec<Effect>,
    told_unshared: bool,
    /// The generation that a reload under way leads to.
    target: Option<u32>,
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
            told_unshared: false,
            target: None,
        }
    }

    /// What the kernel does with the queue of a listener that is closed.
    pub(super) fn set_migration(&mut self, migration: Migration) {
        self.migration = migration;
    }

    /// A socket that we opened ourselves and keep.
    pub(super) fn add_permanent(&mut self, id: SocketId, key: Key, can_be_joined: bool) {
        let scope = if can_be_joined { Scope::Shard } else { Scope::Shared };
        let permanent = Socket::new(id, key.clone(), scope);
        self.sockets.push(Socket { active: true, permanent: true, reuseport: can_be_joined, ..permanent });
        if can_be_joined {
            self.group(&key).join(id);
        }
        self.names.is_the_programs(&key);
        self.remember(&key);
    }

    /// Every socket.
    pub(super) fn sockets(&self) -> &[Socket] {
        &self.sockets
    }

    /// The socket of an inode number.
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

    /// Whether what a worker binds now is a search for a free port: it has been ready for a while, and the program's own
    /// addresses are known. One that counts as ready by its age alone, and then binds its first address, is just slow.
    fn is_settled(&self, worker: &workers::Worker, now: Time) -> bool {
        worker.is_settled(now) && !self.known.is_empty()
    }

    /// A worker listens on a socket, or its UDP socket is shared from now on. `key` is the address that the kernel has
    /// bound it to. `false`: it is not one of ours to keep.
    pub(super) fn activated(&mut self, now: Time, serial: u64, id: SocketId, key: &Key) -> bool {
        let settled = self.workers.get(serial).is_none_or(|worker| self.is_settled(worker, now));
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
            // The next worker of the slot is here, and has another socket of the path.
            for other in self.sockets.iter_mut().filter(|other| other.id != id && other.key.matches(&key)) {
                if matches!(other.scope, Scope::Generation(_)) {
                    other.awaited_by.retain(|awaiting| *awaiting != slot);
                }
            }
        }
        if !settled {
            self.remember(&key);
        }
        self.touch(&key);
        true
    }

    /// An address is shared, whoever binds it and when.
    pub(super) fn know(&mut self, key: &Key) {
        self.remember(key);
    }

    fn remember(&mut self, key: &Key) {
        if !self.known.iter().any(|known| known.matches(key)) && self.known.len() < MAX_KNOWN {
            self.known.push(key.clone());
        }
    }

    /// A socket got `SO_REUSEPORT` from us.
    pub(super) fn enabled(&mut self, id: SocketId) {
        if let Some(socket) = self.socket_mut(id) {
            socket.reuseport = true;
        }
    }

    /// New connections may come to a worker, or not.
    pub(super) fn set_in_rotation(&mut self, now: Time, serial: u64, in_rotation: bool) {
        self.workers.set_in_rotation(now, serial, in_rotation);
        self.touch_all_of(serial);
    }

    /// A worker was asked to stop.
    pub(super) fn stopping(&mut self, serial: u64) {
        self.workers.set_stopping(serial);
        self.touch_all_of(serial);
    }

    /// The first process of a worker is gone, and others of its tree live: no new connection comes to them. What waits for
    /// it waits for its slot's next one, which starts meanwhile. `asked` as in [`died`](Self::died).
    pub(super) fn first_ended(&mut self, now: Time, serial: u64, asked: bool) {
        let stopping = self.workers.get(serial).is_some_and(|worker| worker.stopping);
        if !asked && !stopping {
            self.leave_addresses(serial);
        }
        self.set_in_rotation(now, serial, false);
    }

    /// A worker is gone. `asked`: it was to stop, and nobody takes its place.
    pub(super) fn died(&mut self, serial: u64, asked: bool) {
        let Some(worker) = self.workers.get(serial) else { return };
        let (slot, asked) = (worker.id.slot, asked || worker.stopping);
        self.touch_all_of(serial);
        if !asked {
            self.leave_addresses(serial);
        }
        self.workers.remove(serial);
        self.drop_inactive(|socket| socket.users == [serial]);
        for socket in &mut self.sockets {
            socket.loses(serial, slot, asked);
        }
    }

    /// The first process of a worker is gone, and nobody of the others has this socket open any more: of this socket the
    /// worker is gone.
    pub(super) fn left(&mut self, serial: u64, id: SocketId) {
        let Some(worker) = self.workers.get(serial) else { return };
        let (slot, asked) = (worker.id.slot, worker.stopping);
        let Some(socket) = self.socket_mut(id) else { return };
        socket.loses(serial, slot, asked);
        let key = socket.key.clone();
        self.touch(&key);
    }

    /// No worker of this slot will come, or the one that came serves without these: what waits for it is let go.
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

    /// A worker has served for a moment: what its slot's earlier workers had and it has not was let go.
    pub(super) fn swept(&mut self, serial: u64) {
        self.workers.set_swept(serial);
    }

    /// Slots that sockets wait for.
    pub(super) fn awaited_slots(&self) -> Vec<u32> {
        let mut slots: Vec<u32> = self.sockets.iter().flat_map(|socket| socket.awaited_by.clone()).collect();
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// No process of a worker has this socket open any more, and the worker lives.
    pub(super) fn closed(&mut self, now: Time, serial: u64, id: SocketId) {
        // What is found of one that has died meanwhile says nothing: its successor gets what waits there.
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

    /// The same, and the worker wants the address for another socket: it is free at once.
    pub(super) fn released(&mut self, serial: u64, id: SocketId) {
        let Some(socket) = self.socket_mut(id) else { return };
        socket.users.retain(|user| *user != serial);
        socket.released = socket.users.is_empty();
        let key = socket.key.clone();
        self.workers.note_change(serial);
        self.drop_inactive(|socket| socket.id == id);
        self.touch(&key);
    }

    /// A socket that does not listen is not to be had any more.
    pub(super) fn drop_socket(&mut self, id: SocketId) {
        self.drop_inactive(|socket| socket.id == id);
    }

    /// Forgets sockets that are bound and nothing else.
    fn drop_inactive(&mut self, which: impl Fn(&Socket) -> bool) {
        let dropped = |socket: &Socket| !socket.active && !socket.permanent && which(socket);
        let ids = self.sockets.iter().filter(|socket| dropped(socket)).map(|socket| socket.id);
        self.effects.extend(ids.map(Effect::Close));
        self.sockets.retain(|socket| !dropped(socket));
    }

    /// The socket does not listen any more: its worker has shut it down. The kernel has taken it out of its group.
    pub(super) fn shut_down(&mut self, id: SocketId) {
        let Some(socket) = self.socket(id).filter(|socket| !socket.permanent) else { return };
        let key = socket.key.clone();
        self.note_change(id);
        self.group(&key).leave(id);
        self.sockets.retain(|socket| socket.id != id);
        self.effects.push(Effect::Close(id));
        self.touch(&key);
    }

    /// Whether connections wait in a socket.
    pub(super) fn set_waiting(&mut self, id: SocketId, waiting: bool) {
        if let Some(socket) = self.socket_mut(id) {
            socket.waiting = waiting;
        }
    }

    /// A worker does not accept from this socket, or does so again.
    pub(super) fn set_stalled(&mut self, id: SocketId, stalled: bool) {
        if let Some(socket) = self.socket_mut(id) {
            socket.stalled = stalled;
            let key = socket.key.clone();
            self.touch(&key);
        }
    }

    fn touch(&mut self, key: &Key) {
        if !self.dirty.iter().any(|dirty| dirty.matches(key)) {
            self.dirty.push(key.clone());
        }
    }

    fn touch_all_of(&mut self, serial: u64) {
        let of = |socket: &&Socket| socket.users.contains(&serial);
        let keys: Vec<Key> = self.sockets.iter().filter(of).map(|socket| socket.key.clone()).collect();
        keys.iter().for_each(|key| self.touch(key));
    }

    /// When [`reconcile`](Self::reconcile) has something to do without any other fact.
    pub(super) fn deadline(&self) -> Option<Time> {
        let closed = self.sockets.iter().filter_map(|socket| Some(socket.closed?.after(CLOSE_GRACE)));
        let lingering = self.sockets.iter().filter(|socket| self.lingers(socket));
        closed.chain(lingering.filter_map(|socket| Some(socket.unselected?.after(LINGER)))).min()
    }

    /// Whether a socket without a worker is kept only for what may still arrive.
    fn lingers(&self, socket: &Socket) -> bool {
        self.migration == Migration::Resets
            && socket.scope == Scope::Shard
            && socket.active
            && socket.users.is_empty()
            && !socket.permanent
            && !socket.waiting
    }

    /// Compares what is with what should be; what is to be done about the difference.
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
