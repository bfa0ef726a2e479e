//! The sockets of one address, as the kernel numbers them, and which of them get new connections.

use super::{CLOSE_GRACE, Core, Effect, LINGER, Migration, Scope, Socket, SocketId};
use crate::policy::Time;
use crate::share::address::Key;

/// A `SO_REUSEPORT` group.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) key: Key,
    /// The kernel's order: each joins at the end, and the last takes the place of one that leaves
    /// (`__reuseport_detach_sock`, net/core/sock_reuseport.c).
    order: Vec<SocketId>,
    /// What the kernel was told last; `None`: nothing yet, so it chooses among all.
    selected: Option<Vec<(SocketId, usize)>>,
}

impl Group {
    pub(super) fn new(key: Key) -> Group {
        Group { key, order: Vec::new(), selected: None }
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

/// Whether a socket that its living worker has closed has kept its address long enough.
pub(super) fn is_overdue(socket: &Socket, now: Time) -> bool {
    socket.closed.is_some_and(|closed| now.since(closed) >= CLOSE_GRACE)
}

/// Whether nothing arrives any more in a socket that was taken out of the selection.
pub(super) fn has_lingered(socket: &Socket, now: Time) -> bool {
    socket.unselected.is_some_and(|since| now.since(since) >= LINGER)
}

/// How much a socket is wanted for new connections; the highest of an address get them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// On its way out: only where there is nothing else.
    Leaving,
    /// Nobody has it; the next worker of its slot gets what waits there.
    Awaited,
    /// Its worker was asked to stop, and may still accept.
    Stopping,
    /// Its worker is not ready yet, or stands by: better than to wait for nobody.
    Present,
    /// Opened by us: workers that were handed it accept there.
    Permanent,
    /// Its worker serves and does not accept just now.
    Stalled,
    /// Its worker serves.
    Serving,
}

impl Core {
    fn rank(&self, socket: &Socket) -> Rank {
        if socket.permanent {
            return Rank::Permanent;
        }
        if socket.closed.is_some() || socket.released {
            return Rank::Leaving;
        }
        let workers = socket.users.iter().filter_map(|serial| self.workers.get(*serial));
        let of_worker = workers.map(|worker| match (worker.stopping, worker.in_rotation, socket.stalled) {
            (true, ..) => Rank::Stopping,
            (false, false, _) => Rank::Present,
            (false, true, true) => Rank::Stalled,
            (false, true, false) => Rank::Serving,
        });
        let alone = if socket.awaited_by.is_empty() { Rank::Leaving } else { Rank::Awaited };
        of_worker.max().unwrap_or(alone)
    }

    /// Whether our copy of a socket is to be closed now.
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
            // Of one that stops the queue goes on: to its siblings where the kernel moves it.
            let moves = self.migration == Migration::Moves;
            // Of one that lives on what waits is lost where nothing moves it; but it may be dying.
            let at_once = others_live && (moves || !(stops || socket.waiting));
            return at_once || (!stops && is_overdue(socket, now));
        }
        if !socket.users.is_empty() {
            return false;
        }
        let resets = self.migration == Migration::Resets && socket.scope == Scope::Shard;
        if socket.awaited_by.is_empty() {
            // What waits here now is lost either way; what may still come is waited for.
            return !resets || !others_live || has_lingered(socket, now);
        }
        // What waits for the next worker of a slot: its siblings take it, where the kernel moves it; else that worker
        // takes the socket itself, unless it listens by now.
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

    /// Closes our copy of a socket, the last one as far as we know. Its number goes to the last of the group: for that
    /// moment new connections go to neither of the two, where there is a third.
    fn close(&mut self, key: &Key, id: SocketId, targets: &[SocketId]) {
        let last = self.group(key).order.last().copied();
        let others: Vec<SocketId> =
            targets.iter().copied().filter(|target| Some(*target) != last && *target != id).collect();
        // With nobody to choose, the kernel has nobody to move a queue to.
        let chosen = if others.is_empty() { targets } else { &others };
        self.select(key, chosen, true);
        self.effects.push(Effect::Close(id));
        self.group(key).leave(id);
        self.sockets.retain(|socket| socket.id != id);
    }

    /// Tells the kernel who gets new connections, unless it knows. Where these are all and it was never told, it
    /// chooses by itself among them, and the program's own choice holds.
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
