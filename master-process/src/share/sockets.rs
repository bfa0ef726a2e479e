//! The sockets of all addresses: the core's decisions about them are carried out in the kernel, and their queues are
//! watched.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::address::Key;
use super::call::is_for_all;
use super::caller_socket::bound_key;
use super::copies::{Copies, SavedCopies};
use super::core::{Core, Effect, Migration, Scope, Socket, SocketId};
use super::listen_fds::InheritedListeners;
use super::queue_history::QueueHistory;
use super::report::Report;
use super::scans::{Question, Scans};
use super::selection::{SavedSelection, Selection};
use super::stall::{Change, StallDetector};
use super::unix::SocketFile;
use crate::policy::{Queue, Time};
use crate::sys::accept_queue;
use crate::sys::handover::{Fd, Incoming, Outgoing};
use crate::sys::peer::Peer;
use crate::sys::queue_watch::QueueWatch;
use crate::sys::sockets;

/// The number of sockets that one round checks. Each check takes some microseconds, in which the loop waits.
const CHECKS_AT_ONCE: usize = 256;

/// How long after a connection, a `listen` or a start the listeners are checked periodically. Later they are checked
/// with each sample, and with each connection.
const CHECKED_FOR: Duration = Duration::from_secs(10);

/// A socket that was opened before the first worker started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Permanent {
    pub(super) id: SocketId,
    pub(super) key: Key,
    /// Whether each worker that binds its address can have a shard of its own: true for `--listen` with TCP.
    pub(super) can_be_joined: bool,
    /// Whether it belongs to a socket unit of the service manager.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) external: bool,
}

/// The next step for a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Wait for the next connection.
    ForConnections,
    /// Check again after a moment.
    Soon,
    /// Nothing: the socket is no longer kept.
    Over,
}

/// The sockets that workers have bound, and those that we opened for workers.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) core: Core,
    pub(super) copies: Copies,
    selection: Selection,
    pub(super) queues: QueueWatch,
    /// The sockets that were opened before the first worker started.
    permanent: Vec<Permanent>,
    /// UDP sockets that are about to be bound, and stand-in sockets that do not listen yet; each with whether its
    /// check is scheduled.
    pending: Vec<(SocketId, bool)>,
    /// The time of the last event of a listener.
    active_at: Option<Time>,
    /// The position at which the next round of checks starts.
    checked: usize,
    /// Listeners of an earlier supervisor, each with the user that made it.
    pub(super) restored: Vec<(SocketId, Option<u32>)>,
    /// The numbers of `--listen` sockets in groups of an earlier supervisor.
    listen_numbers: Vec<(Key, u32, SocketId)>,
    /// Whether the service manager keeps the listeners for the next supervisor.
    kept_by_manager: bool,
    /// Whether the listeners stay as they are until the next supervisor takes them over.
    frozen: bool,
    /// What is remembered of the accept queues.
    pub(super) history: QueueHistory,
    pub(super) reports: Vec<Report>,
}

/// The sockets as a supervisor hands them over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedSockets {
    core: Core,
    copies: SavedCopies,
    #[serde(default)]
    selection: SavedSelection,
    #[serde(default)]
    permanent: Vec<Permanent>,
    #[serde(default)]
    pending: Vec<(SocketId, bool)>,
    #[serde(default)]
    active_at: Option<Time>,
    #[serde(default)]
    history: QueueHistory,
    #[serde(default)]
    restored: Vec<(SocketId, Option<u32>)>,
    #[serde(default)]
    kept_by_manager: bool,
    /// What watches the queues.
    #[serde(default)]
    queues: Option<Fd>,
}

impl Sockets {
    pub(super) fn save(&self, out: &mut Outgoing) -> SavedSockets {
        SavedSockets {
            core: self.core.clone(),
            copies: self.copies.save(out),
            selection: self.selection.save(out),
            permanent: self.permanent.clone(),
            pending: self.pending.clone(),
            active_at: self.active_at,
            history: self.history.clone(),
            restored: self.restored.clone(),
            kept_by_manager: self.kept_by_manager,
            queues: Some(self.queues.save(out)),
        }
    }

    /// `is_checked` tells whether a check of a queue is scheduled, so that its connections are not waited for. That
    /// matters only if what watches the queues was not handed over.
    pub(super) fn resume(
        saved: SavedSockets,
        is_checked: impl Fn(SocketId) -> bool,
        from: &mut Incoming,
    ) -> Sockets {
        let queues = saved.queues.map(|queues| QueueWatch::resume(queues, from));
        let are_watched = queues.is_some();
        let mut sockets = Sockets {
            queues: queues.unwrap_or_else(|| from.need(QueueWatch::new(), "epoll_create1")),
            selection: Selection::resume(saved.selection, from),
            copies: Copies::resume(saved.copies, from),
            core: saved.core,
            permanent: saved.permanent,
            pending: saved.pending,
            active_at: saved.active_at,
            checked: 0,
            history: saved.history,
            restored: saved.restored,
            // They are all in their groups by now.
            listen_numbers: Vec::new(),
            kept_by_manager: saved.kept_by_manager,
            // A supervisor that stops says so in each round.
            frozen: false,
            reports: Vec::new(),
        };
        if !are_watched {
            sockets.watch_queues_again(is_checked);
        }
        sockets
    }

    fn watch_queues_again(&mut self, is_checked: impl Fn(SocketId) -> bool) {
        let listens = |socket: &&Socket| socket.active && !socket.key.is_datagram();
        let ids: Vec<SocketId> = self.core.sockets().iter().filter(listens).map(|socket| socket.id).collect();
        for id in ids {
            let (is_of_all, is_checked) = (self.is_of_all(id), is_checked(id));
            if is_of_all && is_checked {
                continue;
            }
            self.watch_for_connections(id);
            if is_checked {
                self.ignore_connections(id);
            }
        }
    }

    /// # Errors
    /// EMFILE.
    pub(super) fn new(inherited: &mut InheritedListeners) -> io::Result<Sockets> {
        let mut sockets = Sockets {
            core: Core::new(Migration::Resets),
            copies: Copies::default(),
            selection: Selection::default(),
            queues: QueueWatch::new()?,
            permanent: Vec::new(),
            pending: Vec::new(),
            active_at: None,
            checked: 0,
            restored: Vec::new(),
            listen_numbers: Vec::new(),
            kept_by_manager: false,
            frozen: false,
            history: QueueHistory::default(),
            reports: inherited.take_reports(),
        };
        for opened in inherited.take_opened() {
            let id = opened.id;
            sockets.core.add_permanent(id, opened.key.clone(), opened.can_be_joined);
            sockets.keep(id, opened.fd, opened.backlog, opened.file);
            let (can_be_joined, external) = (opened.can_be_joined, opened.external);
            if let Some(number) = opened.kept_number.filter(|_| can_be_joined) {
                sockets.listen_numbers.push((opened.key.clone(), number, id));
            }
            sockets.permanent.push(Permanent { id, key: opened.key, can_be_joined, external });
        }
        Ok(sockets)
    }

    /// Keeps a listener that is open before the first worker starts, and watches its queue.
    pub(super) fn keep(&mut self, id: SocketId, fd: OwnedFd, backlog: Option<i32>, file: Option<SocketFile>) {
        let open = self.copies.insert(id, fd);
        open.backlog = backlog;
        // The drops of the time before are not counted.
        open.drops = accept_queue::drops(open.fd()).unwrap_or(0);
        self.watch_for_connections(id);
        if let Some(file) = file {
            self.copies.set_file(id, file);
        }
    }

    /// Takes the numbers of the `--listen` sockets at an address that the service manager kept.
    pub(super) fn take_listen_numbers(&mut self, key: &Key) -> Vec<(u32, SocketId)> {
        let here = self.listen_numbers.extract_if(.., |(other, ..)| other.matches(key));
        here.map(|(_, number, id)| (number, id)).collect()
    }

    /// The service manager keeps the listeners for the next supervisor.
    pub(super) fn set_kept_by_manager(&mut self) {
        self.kept_by_manager = true;
    }

    /// The supervisor ends. If the service manager keeps the listeners, they stay as they are: the next supervisor may
    /// start at once, and connections wait for it.
    pub(super) fn freeze(&mut self) {
        self.frozen = self.kept_by_manager;
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.frozen
    }

    pub(super) fn report(&mut self, report: Report) {
        self.reports.push(report);
    }

    /// Takes the reports since the last call.
    pub(super) fn take_reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// Readable when [`take_queue_events`](Self::take_queue_events) has events.
    pub(super) fn queue_events(&self) -> BorrowedFd<'_> {
        self.queues.as_fd()
    }

    pub(super) fn has_permanent(&self) -> bool {
        !self.permanent.is_empty()
    }

    /// Whether a permanent socket is a Unix socket.
    pub(super) fn has_permanent_path(&self) -> bool {
        self.permanent.iter().any(|permanent| !permanent.key.has_group())
    }

    /// The permanent socket of an address.
    pub(super) fn permanent_at(&self, key: &Key) -> Option<Permanent> {
        self.permanent.iter().find(|permanent| permanent.key.matches(key)).cloned()
    }

    /// The permanent socket with this inode number.
    pub(super) fn permanent(&self, id: SocketId) -> Option<&Permanent> {
        self.permanent.iter().find(|permanent| permanent.id == id)
    }

    /// Whether a worker has bound a Unix path.
    pub(super) fn has_path(&self) -> bool {
        self.core.sockets().iter().any(|socket| matches!(socket.key, Key::Unix { .. }))
    }

    /// A worker has ended. `expected`: it was sent the stop signal, so its queue is not kept for the slot's next
    /// worker.
    pub(super) fn worker_ended(&mut self, now: Time, serial: u64, expected: bool) {
        self.choose_migration();
        self.note_queues(serial);
        self.count_drops(serial);
        self.core.died(serial, expected);
        self.copies.forget_worker(serial);
        self.reconcile(now);
    }

    /// No process of a worker's tree has this socket open any more. `has_remains`: its first process has ended.
    pub(super) fn closed(&mut self, now: Time, serial: u64, id: SocketId, has_remains: bool) {
        self.choose_migration();
        self.note_queues(serial);
        self.count_drops(serial);
        if has_remains {
            self.core.left(serial, id);
        } else {
            self.core.closed(now, serial, id);
        }
        let has_others = self.core.socket(id).is_some_and(|socket| {
            !socket.users.is_empty() || !socket.awaited_by.is_empty() || socket.permanent
        });
        if !has_others
            && !self.frozen
            && let Some(file) = self.copies.file_mut(id)
        {
            file.leave_to_worker();
        }
        self.reconcile(now);
    }

    /// A worker has closed a socket, and binds its address with another one.
    pub(super) fn released(&mut self, now: Time, serial: u64, id: SocketId) {
        self.choose_migration();
        self.count_drops(serial);
        self.core.released(serial, id);
        self.reconcile(now);
    }

    /// Tells the core whether the kernel moves queues, which decides how to treat the queues of ended workers.
    pub(super) fn choose_migration(&mut self) {
        let migration = self.selection.migration();
        self.core.set_migration(migration);
    }

    /// Carries out the core's effects.
    pub(super) fn reconcile(&mut self, now: Time) {
        if self.frozen {
            return;
        }
        self.note_queues_of_awaited();
        if !self.restored.is_empty() {
            self.selection.retry(&self.copies);
            self.choose_migration();
        }
        for effect in self.core.reconcile(now) {
            match effect {
                Effect::Select { key, targets } => {
                    if let Err(error) = self.selection.select(&key, &targets, &self.copies) {
                        self.report(Report::NotSelected { address: key.to_string(), error });
                    }
                }
                Effect::Arrange(key) => self.arrange(&key),
                Effect::Close(id) => {
                    self.selection.remove(id);
                    self.restored.retain(|(restored, _)| *restored != id);
                    let is_grouped = self.copies.file(id).is_none();
                    if let Some(open) = self.copies.get_mut(id) {
                        self.queues.forget(open.fd());
                        // The drops that came after its worker had gone.
                        self.history.count_drops(open, &[]);
                        // The service manager closes its copy a little later. Until then the socket would stay in its
                        // group, and the numbers of the others would be wrong.
                        if self.kept_by_manager && is_grouped {
                            sockets::shut_down(open.fd());
                        }
                    }
                    self.copies.close(id);
                }
                Effect::Released(key) => {
                    self.selection.forget(&key);
                    self.report(Report::Closed { address: key.to_string() });
                }
                Effect::Unshared(worker, key) => {
                    self.report(Report::Unshared { worker, address: key.to_string() });
                }
            }
        }
    }

    /// The socket of ours that clients reach at a path. Sockets whose file is neither at the path nor beside it are
    /// marked as unlinked: later binds do not get them.
    pub(super) fn at_path(&mut self, key: &Key) -> Option<SocketId> {
        let of_key = self.core.sockets().iter().filter(|socket| socket.key.matches(key));
        let ids: Vec<SocketId> = of_key.map(|socket| socket.id).collect();
        let mut at_path = None;
        for id in ids {
            let Some(file) = self.copies.file(id) else { continue };
            if file.is_at_path() {
                at_path = Some(id);
            } else if file.is_lost() {
                self.core.unlinked(id);
            }
        }
        at_path
    }

    /// Moves the wanted socket to its path.
    fn arrange(&mut self, key: &Key) {
        let at_path = self.at_path(key);
        let Some(wanted) = self.core.wanted_at(key, at_path).filter(|wanted| at_path != Some(*wanted)) else {
            return;
        };
        let Some((file, current)) = self.copies.two_files(wanted, at_path) else { return };
        if let Err(error) = file.take_place_of(current) {
            let address = key.to_string();
            self.report(Report::NotRenamed { address, error });
        }
    }

    /// The number of listeners and shared UDP sockets of a worker.
    pub(super) fn listener_count(&self, serial: u64) -> usize {
        let of_worker = |socket: &&Socket| socket.active && socket.users.contains(&serial);
        self.core.sockets().iter().filter(of_worker).count()
    }

    /// Whether the `bind` of a socket was continued and the kernel may not have carried it out yet.
    pub(super) fn may_be_binding(&self, now: Time, id: SocketId) -> bool {
        let users = || self.core.socket(id).into_iter().flat_map(|socket| &socket.users);
        let may_be_in_bind = || {
            users().filter_map(|user| self.copies.location(*user, id)).any(|at| {
                let watch = Peer::open(at.thread).and_then(|peer| peer.watch_call());
                watch.is_ok_and(|watch| watch.may_be_in(&[libc::SYS_bind]))
            })
        };
        self.core.is_fresh(now, id, may_be_in_bind)
    }

    /// A copy of a socket, taken from one of the workers that have it.
    pub(super) fn copy_from_user(&self, id: SocketId, except: u64) -> Option<OwnedFd> {
        let users = self.core.socket(id)?.users.iter().filter(|user| **user != except);
        users.filter_map(|user| self.copies.location(*user, id)).find_map(|at| copy_at(at.thread, at.fd, id))
    }

    /// Whether to check soon if workers still have their listeners open. A worker that does not run closes nothing.
    /// So checks follow its visible activity, and an idle host is not disturbed.
    pub(super) fn wants_check(&self, now: Time) -> bool {
        let active = self.active_at.is_some_and(|active| now.since(active) < CHECKED_FOR);
        active && self.core.sockets().iter().any(may_be_closed)
    }

    /// Records an event of a listener.
    pub(super) fn note_activity(&mut self, now: Time) {
        self.active_at = Some(now);
    }

    /// The listeners that are no longer at their known descriptors, of the next round of checks, each with its worker.
    pub(super) fn moved_listeners(&mut self) -> Vec<(u64, SocketId)> {
        let candidates: Vec<(u64, SocketId)> = self
            .core
            .sockets()
            .iter()
            .filter(|socket| may_be_closed(socket))
            .flat_map(|socket| socket.users.iter().map(|user| (*user, socket.id)))
            .collect();
        let from = if self.checked < candidates.len() { self.checked } else { 0 };
        let round = candidates.iter().skip(from).take(CHECKS_AT_ONCE);
        self.checked = from + round.len();
        let is_gone = |(serial, id): &&(u64, SocketId)| {
            !self.copies.location(*serial, *id).is_some_and(|at| at.has(*id))
        };
        round.filter(is_gone).copied().collect()
    }

    /// Adds a UDP socket that is about to be bound, or a stand-in socket that does not listen yet.
    pub(super) fn add_pending(&mut self, id: SocketId) {
        self.pending.push((id, false));
    }

    pub(super) fn is_pending(&self, id: SocketId) -> bool {
        self.pending.iter().any(|(pending, _)| *pending == id)
    }

    /// The sockets to check a moment later: those about to be bound, or not listening yet.
    pub(super) fn take_pending(&mut self) -> Vec<u64> {
        let fresh: Vec<u64> =
            self.pending.iter().filter(|(_, scheduled)| !scheduled).map(|(id, _)| *id).collect();
        self.pending.iter_mut().for_each(|(_, scheduled)| *scheduled = true);
        fresh
    }

    /// Checks a UDP socket that is about to be bound, or a stand-in socket that does not listen yet. If the
    /// program connects the latter instead, our copy would keep the connection open after the worker closes it.
    /// `last`: this is the last check; a socket that is not in use by then is released.
    pub(super) fn check_pending(&mut self, now: Time, id: u64, last: bool) -> Watch {
        let Some(open) = self.copies.get(id) else {
            self.pending.retain(|(other, _)| *other != id);
            return Watch::Over;
        };
        let Some(socket) = self.core.socket(id) else {
            self.pending.retain(|(other, _)| *other != id);
            self.copies.close(id);
            return Watch::Over;
        };
        let (user, datagram) = (socket.users.first().copied(), socket.key.is_datagram());
        let (active, grouped) = (socket.active, socket.key.has_group());
        let done = if datagram {
            match (bound_key(open.fd()), user) {
                (Some(key), Some(user)) => self.core.activated(now, user, id, &key),
                _not_bound_yet => false,
            }
        } else {
            active
        };
        let used_up = !datagram && !done && grouped && !sockets::is_closed(open.fd());
        if !done
            && (used_up || last)
            && let Some(user) = user
        {
            self.core.released(user, id);
        }
        if done || used_up || last {
            self.pending.retain(|(other, _)| *other != id);
            self.reconcile(now);
            return Watch::Over;
        }
        Watch::Soon
    }

    /// Whether a UDP socket of this address is about to be bound. The order of the binds is the order in the
    /// kernel's group.
    pub(super) fn has_pending_at(&self, key: &Key) -> bool {
        let is_here = |id: SocketId| self.core.socket(id).is_some_and(|socket| socket.key.matches(key));
        self.pending.iter().any(|(id, _)| is_here(*id))
    }

    /// The sockets that got a connection or were shut down; each is to be checked after a moment.
    pub(super) fn take_queue_events(&mut self, scans: &mut Scans, now: Time) -> Vec<u64> {
        let mut ids = Vec::new();
        self.queues.take(&mut ids);
        ids.retain(|id| {
            if self.is_of_all(*id) {
                return self.may_have_queued(*id);
            }
            self.note_activity(now);
            self.ignore_connections(*id);
            self.on_queue_event(scans, now, *id) == Watch::Soon
        });
        ids
    }

    /// Whether all workers may accept from a socket, so that a stall is nobody's.
    fn is_of_all(&self, id: SocketId) -> bool {
        self.core.socket(id).is_some_and(|socket| socket.permanent || is_for_all(socket.scope))
    }

    /// A socket of all workers has an event; whether connections may wait there. It is no longer watched: a Unix
    /// socket that a worker has shut down has events for ever.
    fn may_have_queued(&mut self, id: SocketId) -> bool {
        let Some(open) = self.copies.get_mut(id) else { return false };
        open.is_watched = false;
        self.queues.forget(open.fd());
        sockets::is_listening(open.fd()) && !sockets::is_shut_down(open.fd())
    }

    /// Watches a socket for the next connection.
    pub(super) fn watch_queue(&mut self, now: Time, id: u64) {
        self.history.begin(now);
        self.watch_for_connections(id);
    }

    fn watch_for_connections(&mut self, id: SocketId) {
        let Some(open) = self.copies.get_mut(id) else { return };
        let watched = self.queues.watch(open.fd(), id);
        open.is_watched = watched.is_ok();
        if let Err(error) = watched {
            self.report(Report::Unwatched { error });
        }
    }

    /// Waits no longer for connections, but for the shutdown of a socket.
    fn ignore_connections(&mut self, id: SocketId) {
        let Some(open) = self.copies.get_mut(id) else { return };
        open.is_watched = false;
        let _still_watched = self.queues.ignore_connections(open.fd(), id);
    }

    /// Whether connections wait for a worker that is out of rotation.
    pub(super) fn queue(&self, serial: u64) -> Queue {
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
    fn on_queue_event(&mut self, scans: &mut Scans, now: Time, id: u64) -> Watch {
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
            scans.request_holder(user, id);
        }
        Watch::Soon
    }

    /// Checks a queue that got a connection a moment ago: was there room, and does its worker accept?
    pub(super) fn check_queue(&mut self, scans: &mut Scans, now: Time, id: u64) -> Watch {
        if self.is_of_all(id) {
            let is_empty = self.note_queue(now, id) == 0;
            return if is_empty { Watch::ForConnections } else { Watch::Soon };
        }
        if self.on_queue_event(scans, now, id) == Watch::Over {
            return Watch::Over;
        }
        let is_datagram = self.core.socket(id).is_none_or(|socket| socket.key.is_datagram());
        if is_datagram {
            return Watch::Over;
        }
        let waiting = self.note_queue(now, id);
        let stalled = self.core.socket(id).is_some_and(|socket| socket.stalled);
        let Some(open) = self.copies.get_mut(id) else { return Watch::Over };
        if !stalled && open.stall.stalled_since().is_some() {
            // Another worker has taken the listener over.
            open.stall = StallDetector::default();
        }
        match open.stall.observe(now, waiting) {
            Change::Suspected => self.suspect(scans, id),
            change @ (Change::Accepts | Change::Stalled) => self.on_stall(now, id, change),
            Change::None => {}
        }
        if waiting == 0 { Watch::ForConnections } else { Watch::Soon }
    }

    /// The queue does not get shorter, so the connections in it are compared over time.
    fn suspect(&self, scans: &mut Scans, id: SocketId) {
        let Some(socket) = self.core.socket(id) else { return };
        // The queue of a socket without a worker waits for the next worker, which is no stall.
        let (Some(user), Key::Inet { address, .. }) = (socket.users.first().copied(), &socket.key) else {
            return;
        };
        scans.request(user, Question::Unaccepted(id, *address), None);
    }

    /// Confirms or dismisses a suspected stall. If the kernel does not list the connections, the length of the queue
    /// decides.
    pub(super) fn confirm_stall(&mut self, now: Time, id: SocketId, waiting: Option<HashSet<u64>>) {
        let Some(open) = self.copies.get_mut(id) else { return };
        let change = match waiting {
            Some(waiting) => open.stall.confirm(now, waiting),
            None => open.stall.confirm_unseen(),
        };
        if change == Change::Stalled {
            self.on_stall(now, id, change);
        }
    }

    fn on_stall(&mut self, now: Time, id: SocketId, change: Change) {
        let (Some(open), Some(socket)) = (self.copies.get(id), self.core.socket(id)) else { return };
        let waiting = accept_queue::of_tcp(open.fd()).map_or(0, |queue| queue.length);
        let address = socket.key.to_string();
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

/// The socket with this inode number, if this thread still has it at this descriptor.
fn copy_at(thread: rustix::process::Pid, fd: RawFd, id: SocketId) -> Option<OwnedFd> {
    let copy = Peer::open(thread).and_then(|peer| peer.copy(fd)).ok()?;
    if sockets::inode(copy.as_fd()).ok() == Some(id) {
        return Some(copy);
    }
    sockets::close_copy(copy);
    None
}

fn may_be_closed(socket: &Socket) -> bool {
    socket.active && !socket.permanent && socket.closed.is_none() && !socket.users.is_empty()
}
