//! The sockets of one address in the kernel's order, and the selection of those that get new connections.

use serde::{Deserialize, Serialize};

use super::{CLOSE_GRACE, Core, Effect, LINGER, Migration, Scope, Socket, SocketId};
use crate::policy::Time;
use crate::share::address::Key;

/// A `SO_REUSEPORT` group.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Group {
    pub(super) key: Key,
    /// The kernel's order: a new socket joins at the end, and the last one takes the place of one that is removed
    /// (`__reuseport_detach_sock`, net/core/sock_reuseport.c).
    order: Vec<SocketId>,
    /// The selection that was attached last; `None`: none yet, so the kernel chooses among all.
    selected: Option<Vec<(SocketId, usize)>>,
}

impl Group {
    pub(super) fn new(key: Key) -> Group {
        Group { key, order: Vec::new(), selected: None }
    }

    /// A group of an earlier supervisor. Which of its sockets are selected is not known.
    pub(super) fn restore(&mut self, order: Vec<SocketId>) {
        self.selected = (order.len() > 1).then(Vec::new);
        self.order = order;
    }

    pub(super) fn number(&self, id: SocketId) -> Option<usize> {
        self.order.iter().position(|member| *member == id)
    }

    pub(super) fn join(&mut self, id: SocketId) {
        if !self.order.contains(&id) {
            self.order.push(id);
        }
    }

    pub(super) fn leave(&mut self, id: SocketId) {
        if let Some(at) = self.order.iter().position(|member| *member == id) {
            self.order.swap_remove(at);
        }
    }

    fn numbered(&self, wanted: impl Fn(SocketId) -> bool) -> Vec<(SocketId, usize)> {
        self.order.iter().copied().zip(0..).filter(|(id, _)| wanted(*id)).collect()
    }
}

/// Whether a socket that its living worker has closed has kept its address for the grace period.
pub(super) fn is_overdue(socket: &Socket, now: Time) -> bool {
    socket.closed.is_some_and(|closed| now.since(closed) >= CLOSE_GRACE)
}

/// Whether no connection arrives any more in a socket that was removed from the selection.
pub(super) fn has_lingered(socket: &Socket, now: Time) -> bool {
    socket.unselected.is_some_and(|since| now.since(since) >= LINGER)
}

/// The priority of a socket for new connections. The sockets of an address with the highest rank get them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It is about to be closed: selected only if there is no other.
    Closing,
    /// It has no worker; the next worker of its slot gets its queue.
    Awaited,
    /// Its worker was sent the stop signal, and may still accept.
    Stopping,
    /// Its worker is not ready yet, or is on standby: better than a socket without a worker.
    Present,
    /// The supervisor opened it: workers that got it accept there.
    Permanent,
    /// Its worker is in rotation, but does not accept at present.
    Stalled,
    /// Its worker is in rotation.
    Serving,
}

impl Core {
    fn rank(&self, socket: &Socket) -> Rank {
        if socket.permanent {
            return Rank::Permanent;
        }
        if socket.closed.is_some() || socket.released {
            return Rank::Closing;
        }
        let workers = socket.users.iter().filter_map(|serial| self.workers.get(*serial));
        let of_worker = workers.map(|worker| match (worker.stopping, worker.in_rotation, socket.stalled) {
            (true, ..) => Rank::Stopping,
            (false, false, _) => Rank::Present,
            (false, true, true) => Rank::Stalled,
            (false, true, false) => Rank::Serving,
        });
        let alone = if socket.awaited_by.is_empty() { Rank::Closing } else { Rank::Awaited };
        of_worker.max().unwrap_or(alone)
    }

    /// Whether our copy of a socket must be closed now.
    fn is_done(&self, socket: &Socket, now: Time, others_live: bool) -> bool {
        if socket.permanent || !socket.active {
            return false;
        }
        if socket.released {
            return true;
        }
        let stops =
            socket.users.iter().any(|serial| self.workers.get(*serial).is_some_and(|user| user.stopping));
        if socket.closed.is_some() {
            // If the worker stops, its siblings get the queue where the kernel moves it.
            let moves = self.migration == Migration::Moves;
            // If the worker lives on, the queue is lost where the kernel does not move it. But the worker may be
            // dying.
            let at_once = others_live && (moves || !(stops || socket.waiting));
            return at_once || (!stops && is_overdue(socket, now));
        }
        if !socket.users.is_empty() {
            return false;
        }
        let resets = self.migration == Migration::Resets && socket.scope == Scope::Shard;
        if socket.awaited_by.is_empty() {
            // The connections that wait now are lost in any case. Those that may still arrive are waited for.
            return !resets || !others_live || has_lingered(socket, now);
        }
        // The queue waits for the slot's next worker. Where the kernel moves queues, the siblings get it. Elsewhere
        // that worker takes the socket itself, unless it already listens on another.
        let next_listens = || {
            let listens = |other: &Socket| {
                other.active
                    && other.id != socket.id
                    && other.key.matches(&socket.key)
                    && other.users.iter().any(|serial| {
                        self.workers.slot_of(*serial).is_some_and(|slot| socket.awaited_by.contains(&slot))
                    })
            };
            self.sockets.iter().any(listens)
        };
        socket.scope == Scope::Shard
            && others_live
            && (!resets || (has_lingered(socket, now) && (!socket.waiting || next_listens())))
    }

    pub(super) fn reconcile_address(&mut self, now: Time, key: &Key) {
        let here = |socket: &&Socket| socket.active && socket.key.matches(key);
        let live = |rank: Rank| rank >= Rank::Present;
        let ranks: Vec<(SocketId, Rank)> =
            self.sockets.iter().filter(here).map(|socket| (socket.id, self.rank(socket))).collect();
        let done: Vec<SocketId> = self
            .sockets
            .iter()
            .filter(here)
            .filter(|socket| {
                let others_live = ranks.iter().any(|(id, rank)| *id != socket.id && live(*rank));
                self.is_done(socket, now, others_live)
            })
            .map(|socket| socket.id)
            .collect();
        let kept = |id: &SocketId| !done.contains(id);
        let best = ranks.iter().filter(|(id, _)| kept(id)).map(|(_, rank)| *rank).max();
        let targets: Vec<SocketId> =
            ranks.iter().filter(|(id, rank)| kept(id) && Some(*rank) == best).map(|(id, _)| *id).collect();
        let had_any = !ranks.is_empty();
        if matches!(key, Key::Unix { .. }) && had_any {
            self.effects.push(Effect::Arrange(key.clone()));
        }
        for id in &done {
            self.close(key, *id, &targets);
        }
        self.select(key, &targets, false);
        for socket in self.sockets.iter_mut().filter(|socket| socket.active && socket.key.matches(key)) {
            if targets.contains(&socket.id) {
                socket.unselected = None;
            } else {
                socket.unselected.get_or_insert(now);
            }
        }
        if had_any && best.is_none() {
            self.groups.retain(|group| !group.key.matches(key));
            self.effects.push(Effect::Released(key.clone()));
        }
    }

    /// Closes our copy of a socket, which is the last one as far as we know. The last socket of the group gets its
    /// number. Until the next selection new connections go to neither of the two, if there is a third socket.
    fn close(&mut self, key: &Key, id: SocketId, targets: &[SocketId]) {
        let last = self.group(key).order.last().copied();
        let others: Vec<SocketId> =
            targets.iter().copied().filter(|target| Some(*target) != last && *target != id).collect();
        // Without a selected socket the kernel cannot move the queue.
        let chosen = if others.is_empty() { targets } else { &others };
        self.select(key, chosen, true);
        self.effects.push(Effect::Close(id));
        self.group(key).leave(id);
        self.sockets.retain(|socket| socket.id != id);
    }

    /// Tells the kernel which sockets get new connections, unless this is already in effect. As long as all sockets
    /// are wanted and no selection was attached, the kernel chooses among all, and a selection by the program itself
    /// stays in effect.
    fn select(&mut self, key: &Key, targets: &[SocketId], always: bool) {
        let group = self.group(key);
        let targets = group.numbered(|id| targets.contains(&id));
        let all = targets.len() == group.order.len();
        let known = group.selected.as_ref() == Some(&targets) || (group.selected.is_none() && all && !always);
        if targets.is_empty() || known {
            return;
        }
        group.selected = Some(targets.clone());
        self.effects.push(Effect::Select { key: key.clone(), targets });
    }
}
