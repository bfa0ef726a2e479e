//! The queues of the kept sockets: the connections that wait there, and whether their worker accepts them.

use std::collections::HashSet;

use super::address::Key;
use super::broker::Broker;
use super::core::{Scope, Socket, SocketId};
use super::looks::Question;
use super::report::Report;
use super::stall::Change;
use crate::policy::{Queue, Time};
use crate::sys::sockets;

/// The next step for a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Wait for the next connection.
    ForConnections,
    /// Look again after a moment.
    Soon,
    /// Nothing: the socket is no longer kept.
    Over,
}

impl Broker {
    /// The sockets that got a connection or were shut down; each is to be looked at after a moment.
    pub fn take_queue_events(&mut self, now: Time) -> Vec<u64> {
        let mut ids = Vec::new();
        self.queues.take(&mut ids);
        self.note_activity(now);
        ids.retain(|id| {
            if let Some(open) = self.copies.get(*id) {
                let _still_watched = self.queues.ignore_connections(open.fd(), *id);
            }
            self.on_queue_event(now, *id) == Watch::Soon
        });
        ids
    }

    /// Watches a socket for the next connection.
    pub fn watch_queue(&mut self, id: u64) {
        if let Some(open) = self.copies.get(id)
            && let Err(error) = self.queues.watch(open.fd(), id)
        {
            self.reports.push(Report::Unwatched { error });
        }
    }

    /// Whether connections wait for a worker that is out of rotation.
    pub fn queue(&self, serial: u64) -> Queue {
        let is_own = |socket: &&Socket| {
            let own = match socket.scope {
                Scope::Shard => true,
                Scope::Shared => false,
                // A generation's queue is its own only once its successor's is at the path.
                Scope::Generation(_) => self.copies.file(socket.id).is_some_and(|file| !file.is_at_path()),
            };
            own && socket.active && !socket.permanent && socket.users.contains(&serial)
        };
        let own = self.core.sockets().iter().filter(is_own);
        let mut queues = own.map(|socket| self.is_waited_for(socket.id)).peekable();
        match (queues.peek().is_some(), queues.any(|waited_for| waited_for)) {
            (false, _) => Queue::None,
            (true, true) => Queue::Waiting,
            (true, false) => Queue::Empty,
        }
    }

    fn is_waited_for(&self, id: SocketId) -> bool {
        self.copies.get(id).is_some_and(|open| sockets::is_readable(open.fd()))
    }

    /// Tells the core in which sockets of a worker connections wait.
    pub(super) fn note_queues(&mut self, serial: u64) {
        let of_worker = |socket: &&Socket| socket.active && socket.users.contains(&serial);
        self.note_queues_where(of_worker);
    }

    /// The same for sockets that have lost their worker.
    pub(super) fn note_queues_of_awaited(&mut self) {
        self.note_queues_where(|socket| !socket.awaited_by.is_empty());
    }

    fn note_queues_where(&mut self, wanted: impl Fn(&&Socket) -> bool) {
        let ids: Vec<SocketId> = self.core.sockets().iter().filter(wanted).map(|socket| socket.id).collect();
        for id in ids {
            let waiting = self.is_waited_for(id);
            self.core.set_waiting(id, waiting);
        }
    }

    /// A socket got a connection, or was shut down.
    fn on_queue_event(&mut self, now: Time, id: u64) -> Watch {
        let Some(open) = self.copies.get(id) else { return Watch::Over };
        let Some(socket) = self.core.socket(id) else { return Watch::Over };
        if !socket.key.is_datagram() && !sockets::is_listening(open.fd()) {
            self.choose_migration();
            self.core.shut_down(id);
            self.reconcile(now);
            return Watch::Over;
        }
        let user = socket.users.first().copied().filter(|_| socket.closed.is_none());
        if let Some(user) = user
            && !self.copies.location(user, id).is_some_and(|at| at.has(id))
        {
            self.ask_whether_open(user, id);
        }
        Watch::Soon
    }

    /// Looks at a queue that got a connection a moment ago: does its worker accept?
    pub fn check_queue(&mut self, now: Time, id: u64) -> Watch {
        if self.on_queue_event(now, id) == Watch::Over {
            return Watch::Over;
        }
        let is_datagram = self.core.socket(id).is_none_or(|socket| socket.key.is_datagram());
        let Some(open) = self.copies.get_mut(id).filter(|_| !is_datagram) else { return Watch::Over };
        let waiting = sockets::waiting(open.fd());
        match open.stall.observe(waiting) {
            Change::Suspected => self.suspect(id),
            change @ (Change::Accepts | Change::Stalled) => self.on_stall(now, id, change),
            Change::None => {}
        }
        if waiting == 0 { Watch::ForConnections } else { Watch::Soon }
    }

    /// The queue does not get shorter, so the connections in it are compared over time.
    fn suspect(&mut self, id: SocketId) {
        let Some(socket) = self.core.socket(id) else { return };
        // The queue of a socket without a worker waits for the next worker, which is no stall.
        let (Some(user), Key::Inet { address, .. }) = (socket.users.first().copied(), &socket.key) else {
            return;
        };
        let question = Question::Unaccepted(id, *address);
        if !self.looks.is_asked(user, question, None) {
            self.ask(user, question, None);
        }
    }

    /// Confirms or dismisses a suspected stall. If the kernel does not list the connections, the length of the queue
    /// decides.
    pub(super) fn confirm_stall(&mut self, now: Time, id: SocketId, waiting: Option<HashSet<u64>>) {
        let Some(open) = self.copies.get_mut(id) else { return };
        let change = match waiting {
            Some(waiting) => open.stall.confirm(waiting),
            None => open.stall.confirm_unseen(),
        };
        if change == Change::Stalled {
            self.on_stall(now, id, change);
        }
    }

    fn on_stall(&mut self, now: Time, id: SocketId, change: Change) {
        let (Some(open), Some(socket)) = (self.copies.get(id), self.core.socket(id)) else { return };
        let (waiting, address) = (sockets::waiting(open.fd()), socket.key.to_string());
        let worker = socket.users.first().and_then(|user| self.core.workers().get(*user)).map(|user| user.id);
        let stalled = change == Change::Stalled;
        self.reports.extend(worker.map(|worker| match stalled {
            true => Report::Stalled { worker, address, waiting },
            false => Report::Accepts { worker, address },
        }));
        self.core.set_stalled(id, stalled);
        self.reconcile(now);
    }
}
