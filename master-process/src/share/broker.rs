//! The broker: it answers the workers' calls, follows the workers' lives, and lets the parts below do the rest.

use std::collections::HashSet;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::address::Key;
use super::bind;
use super::call::{Call, Decision, Settings, answer, is_for_all};
use super::caller_socket::is_shortage;
use super::callers::Callers;
use super::copies::OpenSocket;
use super::core::{Socket, SocketId};
use super::kept::Restoring;
use super::listen_fds::InheritedListeners;
use super::listening;
use super::occupants::{Occupants, Takeover};
use super::path_use::{PathUse, Paths};
use super::paths;
use super::queues::AcceptQueues;
use super::readiness::{Expected, Missing};
use super::report::Report;
use super::scans::{Found, Owners, Question, SavedScans, Scans, WaitingCall};
use super::sockets::{SavedSockets, Sockets, Watch};
use super::unix::Access;
use crate::config::{ReadyMode, Share, ShareRules};
use crate::policy::{Queue, Time, WorkerId};
use crate::sys::handover::{Incoming, Outgoing};
use crate::sys::holders::Holder;
use crate::sys::peer::{self, Peer};
use crate::sys::seccomp::{self, Answer, Calls, Notification, SocketOption};

/// The delay before a call is tried again that failed for lack of descriptors or memory.
const SHORTAGE_RETRY: Duration = Duration::from_millis(100);

/// The errors of a program's own mistakes, such as a bad descriptor or address. The kernel reports them to it.
const MISTAKES: [i32; 6] =
    [libc::ENOENT, libc::EBADF, libc::EIO, libc::ENOTSOCK, libc::EOPNOTSUPP, libc::ESTALE];

/// Holds the workers' listeners, and answers the workers' calls.
#[derive(Debug)]
pub struct Broker {
    pub(super) settings: Settings,
    /// The addresses on which a worker must listen to be ready.
    pub(super) expected: Expected,
    pub(super) sockets: Sockets,
    pub(super) scans: Scans,
    pub(super) callers: Callers,
    pub(super) paths: Paths,
    pub(super) occupants: Occupants,
}

/// The state of a broker as a supervisor hands it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    sockets: SavedSockets,
    #[serde(default)]
    callers: Callers,
    #[serde(default)]
    scans: SavedScans,
    #[serde(default)]
    path_use: PathUse,
    /// The calls that wait for a look at a process.
    #[serde(default)]
    waiting: Vec<WaitingCall>,
}

impl Broker {
    /// A broker that answers `bind` as `share` and `rules` say, and observes `listen` in any case. It also holds the
    /// sockets that are passed to every worker: a worker that binds such an address by itself gets that socket.
    ///
    /// # Errors
    /// EMFILE.
    pub fn new(
        share: Share,
        rules: ShareRules,
        access: Access,
        inherited: &mut InheritedListeners,
    ) -> io::Result<Broker> {
        let scans = Scans::new()?;
        let occupants = Occupants::new(scans.wake().clone());
        let sockets = Sockets::new(inherited)?;
        let mut paths = Paths::default();
        if sockets.copies.files().next().is_some() {
            paths.set_used();
        }
        let settings = Settings {
            share,
            rules,
            access,
            notify_address: Vec::new(),
            can_copy: peer::try_to_copy().is_ok(),
        };
        let (expected, callers) = (Expected::default(), Callers::default());
        Ok(Broker { settings, expected, sockets, scans, callers, paths, occupants })
    }

    /// The state now.
    pub fn save(&self, out: &mut Outgoing) -> Saved {
        let waiting = self.scans.waiting_calls().chain(self.occupants.waiting_calls());
        Saved {
            sockets: self.sockets.save(out),
            callers: self.callers.clone(),
            scans: self.scans.save(),
            path_use: self.paths.save(),
            waiting: waiting.collect(),
        }
    }

    /// A broker that goes on from this state. Also returns the calls that wait for an answer.
    pub fn resume(
        (share, rules, access): (Share, ShareRules, Access),
        saved: Saved,
        is_checked: impl Fn(SocketId) -> bool,
        from: &mut Incoming,
    ) -> (Broker, Vec<WaitingCall>) {
        let scans = from.need(Scans::resume(saved.scans), "eventfd");
        let occupants = Occupants::new(scans.wake().clone());
        let sockets = Sockets::resume(saved.sockets, is_checked, from);
        let can_copy = peer::try_to_copy().is_ok();
        let settings = Settings { share, rules, access, notify_address: Vec::new(), can_copy };
        let (expected, paths) = (Expected::default(), Paths::resume(saved.path_use));
        let broker = Broker { settings, expected, sockets, scans, callers: saved.callers, paths, occupants };
        (broker, saved.waiting)
    }

    /// Sets how processes are ended that an earlier supervisor has left and that hold an address; `None`: they are
    /// not ended.
    pub fn set_takeover(&mut self, takeover: Option<Takeover>) {
        self.occupants.set_takeover(takeover);
    }

    /// Takes over the listeners that the service manager kept for an earlier supervisor. `workers`: the number of
    /// slots.
    pub fn restore(&mut self, inherited: &mut InheritedListeners, workers: u32) {
        let Settings { share, rules, .. } = &self.settings;
        let (shares, has_shards) = (*share != Share::Off, self.settings.has_shards());
        let restoring = Restoring { workers, shares, has_shards, rules };
        self.sockets.restore(inherited.take_kept(), &restoring);
        if self.sockets.copies.files().next().is_some() {
            self.paths.set_used();
        }
    }

    /// The workers' calls cannot be intercepted: they bind for themselves.
    pub fn give_up_restored(&mut self, now: Time) {
        self.sockets.give_up_restored(now);
    }

    /// The service manager keeps the listeners for the next supervisor.
    pub fn set_kept_by_manager(&mut self) {
        self.sockets.set_kept_by_manager();
    }

    /// The supervisor ends: if the service manager keeps the listeners, they stay as they are from now on.
    pub fn freeze(&mut self) {
        self.sockets.freeze();
    }

    /// The socket files below these directories stay after the end: they belong to the service manager, which removes
    /// them or keeps them for the next start.
    pub fn leave_files_in(&mut self, directories: &[PathBuf]) {
        if self.sockets.is_frozen() {
            self.sockets.copies.leave_files_in(directories);
        }
    }

    /// A number that differs from the last one if [`kept`](Self::kept) may have changed.
    pub fn kept_changes(&self) -> u64 {
        self.sockets.core.changes()
    }

    /// The listeners for the service manager to keep, each with its name.
    pub fn kept(&self) -> Vec<(String, u64)> {
        self.sockets.kept()
    }

    /// Our copy of a listener.
    pub fn listener(&self, id: u64) -> Option<BorrowedFd<'_>> {
        self.sockets.copies.get(id).map(OpenSocket::fd)
    }

    /// Sets the `NOTIFY_SOCKET` of our workers.
    pub fn set_notify_address(&mut self, address: &[u8]) {
        self.settings.notify_address = address.to_owned();
    }

    /// Sets what makes a worker ready; `false`: its listeners on the named addresses cannot be observed.
    #[must_use]
    pub fn set_ready_mode(&mut self, mode: &ReadyMode) -> bool {
        self.expected = Expected::of(mode);
        // A socket that is not shared is inspected through a copy.
        let named = matches!(self.expected, Expected::Named(_));
        !named || self.settings.can_copy || self.settings.share != Share::Off
    }

    /// The calls that a worker's filter sends to the supervisor. Each call costs the worker about ten microseconds.
    pub fn calls(&self) -> Calls {
        let Settings { share, rules, can_copy, .. } = &self.settings;
        let shares = *share != Share::Off;
        let paths = shares && rules.may_share_paths();
        let uses_path = paths && self.paths.are_used();
        Calls {
            bind: shares,
            options: shares && !can_copy,
            listen: true,
            // `shutdown` of a shard concerns only its own worker.
            shutdown: uses_path || *share == Share::Shared || (shares && self.sockets.has_permanent()),
            paths: paths && self.paths.may_be_used(),
            connect: uses_path,
        }
    }

    /// Decides a worker's call, and does what must be done before the answer.
    pub fn reply(
        &mut self,
        now: Time,
        listener: BorrowedFd<'_>,
        call: &Notification,
        worker: WorkerId,
    ) -> Decision {
        reply(self, now, listener, call, worker)
    }

    /// The answer to the call that [`reply`](Self::reply) decided last did not reach the worker. If the worker was
    /// killed, nothing depends on it. Before Linux 5.19 any signal interrupts the call. The kernel, or a program that
    /// gets EINTR, then makes it again, and its effects are already in place.
    pub fn undelivered(&mut self, worker: WorkerId, answer: Answer) {
        if answer == Answer::Done
            && let Some(caller) = self.callers.get_mut(worker.serial)
        {
            caller.interrupted();
        }
    }

    /// A worker is about to start.
    pub fn enter(&mut self, worker: WorkerId, generation: u32) {
        self.sockets.core.started(worker, generation);
        self.scans.enter(worker.serial);
        self.callers.enter(worker.serial);
    }

    /// A worker's process has started.
    pub fn launched(&mut self, worker: WorkerId, pid: Pid) {
        self.scans.launched(worker.serial, pid);
        if self.sockets.has_permanent_path() {
            self.sockets.try_unix_queues(&mut self.scans, worker.serial);
        }
    }

    /// Sets the known workers of adopted processes.
    pub fn set_owners(&mut self, owners: Owners) {
        self.scans.set_owners(owners);
    }

    /// Adds a worker to the rotation for new connections, or removes it.
    pub fn set_in_rotation(&mut self, now: Time, serial: u64, in_rotation: bool) {
        self.sockets.core.set_in_rotation(now, serial, in_rotation);
        if in_rotation && !self.sockets.has_path() {
            self.paths.set_unused();
        }
        self.sockets.note_activity(now);
        self.sockets.reconcile(now);
    }

    /// Sets the generation to which the reload in progress leads; `None`: there is no reload.
    pub fn set_target(&mut self, now: Time, target: Option<u32>) {
        self.sockets.core.set_target(target);
        self.sockets.reconcile(now);
    }

    /// A worker was sent the stop signal: it accepts no new connections, or soon will not.
    pub fn set_stopping(&mut self, now: Time, serial: u64) {
        self.sockets.core.stopping(serial);
        self.sockets.reconcile(now);
    }

    /// The first process of a worker has ended, and others of its process tree live: they get no new connections.
    /// `expected` as in [`leave`](Self::leave).
    pub fn first_ended(&mut self, now: Time, serial: u64, expected: bool) {
        self.sockets.core.first_ended(now, serial, expected);
        self.scans.first_ended(serial);
        // They are sent the stop signal, and close their listeners.
        self.sockets.note_activity(now);
        self.sockets.reconcile(now);
    }

    /// A worker has ended, or did not start; a descendant of it may be left. `expected`: it was sent the stop signal,
    /// so its queue is not kept for the slot's next worker.
    pub fn leave(&mut self, now: Time, serial: u64, expected: bool) {
        self.paths.forget_worker(serial);
        self.scans.worker_ended(serial);
        self.sockets.worker_ended(now, serial, expected);
    }

    /// A worker's whole process tree has ended.
    pub fn forget(&mut self, serial: u64) {
        if self.scans.forget(serial) {
            self.callers.forget(serial);
        }
    }

    /// Releases the sockets that wait for slots without a next worker. `is_needed` tells whether a slot gets a
    /// worker, or may need again what its last one served.
    pub fn abandon_slots(&mut self, now: Time, is_needed: impl Fn(u32) -> bool) {
        let core = &mut self.sockets.core;
        for slot in core.awaited_slots() {
            let may_take =
                core.workers().iter().any(|worker| worker.id.slot == slot && worker.may_take_over());
            if !is_needed(slot) && !may_take {
                core.abandon(slot, |_| false);
            }
        }
        self.sockets.reconcile(now);
    }

    /// A worker has served for a moment. Releases what earlier workers of its slot had and it has not, and requests a
    /// scan for listeners that bypass its filter.
    pub fn sweep(&mut self, now: Time, serial: u64) {
        let core = &mut self.sockets.core;
        let Some(worker) = core.workers().get(serial).filter(|worker| worker.in_rotation) else {
            return;
        };
        let slot = worker.id.slot;
        let listens: Vec<Key> = core.listening(serial).map(|socket| socket.key.clone()).collect();
        core.abandon(slot, |key: &Key| listens.iter().any(|listened| listened.matches(key)));
        core.swept(serial);
        if self.settings.share != Share::Off && self.settings.can_copy {
            self.scans.request(serial, Question::Listeners, None);
        }
        self.sockets.reconcile(now);
    }

    /// The addresses on which workers listen, sorted.
    pub fn addresses(&self) -> Vec<String> {
        let listening = self.sockets.core.sockets().iter().filter(|socket| socket.active);
        // Each slot has a listener at each address.
        let keys: HashSet<&Key> = listening.map(|socket| &socket.key).collect();
        let name = |key: &Key| match key {
            Key::Unix { .. } => format!("unix:{key}"),
            Key::Inet { .. } | Key::Abstract(_) => key.to_string(),
        };
        let mut addresses: Vec<String> = keys.into_iter().map(name).collect();
        addresses.sort();
        addresses.dedup();
        addresses
    }

    /// The inode numbers of the sockets that a worker serves: a process of its tree that has one of them open
    /// continues the worker. A socket may be closed already, since a close is noticed late.
    pub fn listeners(&self, serial: u64) -> Vec<u64> {
        let unshared = self.callers.get(serial).into_iter().flat_map(|caller| caller.unshared());
        self.sockets.core.served_by(serial).into_iter().chain(unshared).collect()
    }

    /// The inode numbers of the listeners that only this worker has.
    pub fn listeners_of_worker(&self, serial: u64) -> Vec<u64> {
        let of_worker = |socket: &&Socket| socket.active && socket.users == [serial];
        self.sockets.core.sockets().iter().filter(of_worker).map(|socket| socket.id).collect()
    }

    /// The expected addresses on which a worker does not listen yet; `None`: it is complete.
    pub fn missing(&self, serial: u64) -> Option<Missing> {
        self.expected.missing(&self.sockets, &self.callers, serial)
    }

    /// Workers that have become complete since the last call without a `listen` of their own: one has moved its
    /// socket to its path, or its predecessor has closed a listener.
    pub fn take_complete(&mut self) -> Vec<WorkerId> {
        let mut complete = self.sockets.core.take_changed();
        complete.retain(|worker| self.missing(worker.serial).is_none());
        complete.iter().for_each(|worker| self.sockets.core.set_incomplete(worker.serial, false));
        complete
    }

    /// Compares the sockets with what they should be, and removes the difference.
    pub fn reconcile(&mut self, now: Time) {
        self.paths.forget_old(now);
        self.sockets.reconcile(now);
    }

    /// The time at which [`reconcile`](Self::reconcile) must be called even without another event.
    pub fn deadline(&self) -> Option<Time> {
        if self.sockets.is_frozen() { None } else { self.sockets.core.deadline() }
    }

    /// The reports since the last call.
    pub fn take_reports(&mut self) -> Vec<Report> {
        self.sockets.take_reports()
    }

    /// Readable when [`take_scans`](Self::take_scans) has results.
    pub fn scans(&self) -> BorrowedFd<'_> {
        self.scans.fd()
    }

    /// Takes the results of the helper threads. Returns the waiting calls that must be tried again.
    pub fn take_scans(&mut self, now: Time) -> Vec<WaitingCall> {
        let (mut calls, answers) = self.scans.take();
        for answer in answers {
            let serial = answer.scan.serial;
            match answer.found {
                Found::Holder(id, Holder::NoProcess) => {
                    self.sockets.closed(now, serial, id, self.scans.has_remains(serial));
                }
                Found::Holder(id, Holder::Found(thread, fd)) => {
                    self.sockets.copies.locate(serial, id, thread, fd);
                }
                Found::Holder(_, Holder::Unowned | Holder::Unknown) | Found::Epoll(_) => {}
                Found::Unaccepted(id, waiting) => self.sockets.confirm_stall(now, id, waiting),
                Found::UnixQueues(listed) => self.sockets.history.unix.set_listed(listed),
                Found::Listeners(listeners) => self.report_bypasses(serial, &listeners),
            }
        }
        let (reports, waiting) = self.occupants.take();
        reports.into_iter().for_each(|report| self.sockets.report(report));
        calls.extend(waiting);
        calls
    }

    /// Whether, since the last call, a scan found a socket in an adopted process whose worker is unknown. Until the
    /// worker is known, the socket counts as open.
    pub fn take_found_unowned(&mut self) -> bool {
        self.scans.take_found_unowned()
    }

    /// Reports listeners of a worker or of a descendant that were opened without a call that the filter sees. Each is
    /// reported once.
    fn report_bypasses(&mut self, serial: u64, listeners: &[(SocketId, std::net::SocketAddr)]) {
        let Some(worker) = self.sockets.core.workers().get(serial).map(|worker| worker.id) else { return };
        for (id, address) in listeners {
            let is_ours = self.sockets.core.socket(*id).is_some() || self.sockets.permanent(*id).is_some();
            let Some(caller) = self.callers.get_mut(serial).filter(|_| !is_ours) else { continue };
            if caller.add_unshared(*id) {
                self.sockets.report(Report::Bypassed { worker, address: address.to_string() });
            }
        }
    }

    /// Whether to check soon if workers still have their listeners open. A worker that does not run closes nothing.
    /// So checks follow its visible activity, and an idle host is not disturbed.
    pub fn wants_check(&self, now: Time) -> bool {
        self.sockets.wants_check(now)
    }

    /// The descriptors at which workers have sockets open, each with a thread of the process, if they have changed since the
    /// last call.
    pub fn take_relocated(&mut self) -> Option<impl Iterator<Item = (Pid, RawFd)>> {
        let places = self.sockets.copies.take_relocated();
        places.map(|places| places.map(|place| (place.thread, place.fd)))
    }

    /// A descriptor of a listener was closed. The socket may be open at another one, or in another process.
    pub fn listener_closed(&mut self, now: Time) {
        self.sockets.note_activity(now);
        self.check_listeners();
    }

    /// Checks whether workers still have their listeners at the known descriptors. If not, a scan of their
    /// descriptors is requested.
    pub fn check_listeners(&mut self) {
        for (serial, id) in self.sockets.moved_listeners() {
            self.scans.request_holder(serial, id);
        }
    }

    /// The sockets to check a moment later: those about to be bound, or not listening yet.
    pub fn take_pending(&mut self) -> Vec<u64> {
        self.sockets.take_pending()
    }

    /// Checks a UDP socket that is about to be bound, or a stand-in socket that does not listen yet. `last`: this is
    /// the last check; a socket that is not in use by then is released.
    pub fn check_pending(&mut self, now: Time, id: u64, last: bool) -> Watch {
        self.sockets.check_pending(now, id, last)
    }

    /// Readable when [`take_queue_events`](Self::take_queue_events) has events.
    pub fn queue_events(&self) -> BorrowedFd<'_> {
        self.sockets.queue_events()
    }

    /// The sockets that got a connection or were shut down; each is to be checked after a moment.
    pub fn take_queue_events(&mut self, now: Time) -> Vec<u64> {
        self.sockets.take_queue_events(&mut self.scans, now)
    }

    /// Watches a socket for the next connection.
    pub fn watch_queue(&mut self, now: Time, id: u64) {
        self.sockets.watch_queue(now, id);
    }

    /// Whether connections wait for a worker that is out of rotation.
    pub fn queue(&self, serial: u64) -> Queue {
        self.sockets.queue(serial)
    }

    /// The accept queues of all workers. Reports the full ones.
    pub fn accept_queues(&mut self, now: Time) -> AcceptQueues {
        self.sockets.accept_queues(now)
    }

    /// Checks a queue that got a connection a moment ago: does its worker accept, and was there room?
    pub fn check_queue(&mut self, now: Time, id: u64) -> Watch {
        self.sockets.check_queue(&mut self.scans, now, id)
    }
}

/// Decides a worker's call, and does what must be done before the answer.
pub(super) fn reply(
    broker: &mut Broker,
    now: Time,
    listener: BorrowedFd<'_>,
    notification: &Notification,
    worker: WorkerId,
) -> Decision {
    if let Some(caller) = broker.callers.get_mut(worker.serial) {
        caller.begin_call();
    }
    broker.paths.next_call(notification.thread);
    let result = dispatch(broker, now, listener, notification, worker);
    let waits = matches!(result, Ok(Decision::AwaitScan | Decision::Wait(_)));
    if !waits {
        broker.scans.forget_call(notification);
    }
    let error = match result {
        Ok(decision) => return decision,
        Err(error) if is_shortage(&error) => return Decision::Wait(SHORTAGE_RETRY),
        Err(error) => error,
    };
    let is_mistake = error.raw_os_error().is_some_and(|errno| MISTAKES.contains(&errno));
    if !is_mistake && seccomp::is_waiting(listener, notification) {
        broker.sockets.report(Report::Unseen { worker, call: name(&notification.call), error });
    }
    answer(Answer::Continue)
}

fn dispatch(
    broker: &mut Broker,
    now: Time,
    listener: BorrowedFd<'_>,
    notification: &Notification,
    worker: WorkerId,
) -> io::Result<Decision> {
    let Broker { settings, expected, sockets, scans, callers, paths, occupants } = broker;
    let is_unlink = matches!(notification.call, seccomp::Call::Unlink { .. });
    let about_path = is_unlink
        || matches!(notification.call, seccomp::Call::Rename { .. } | seccomp::Call::Connect { .. });
    let clears = || is_unlink && paths::may_remove_before_bind(sockets, now, worker.serial);
    if about_path && sockets.copies.files().next().is_none() && !clears() {
        return Ok(answer(Answer::Continue));
    }
    let peer = Peer::open(notification.thread)?;
    let mut call = Call {
        settings,
        expected,
        sockets,
        scans,
        callers,
        paths,
        occupants,
        listener,
        notification,
        peer,
        worker,
        now,
    };
    // The call still waits, so the pinned process is the caller. Otherwise its pid may have been reused.
    if !call.is_waiting() {
        return Ok(answer(Answer::Continue));
    }
    match notification.call {
        seccomp::Call::Bind { fd, address, length } => bind::bind(&mut call, fd, address, length),
        seccomp::Call::Listen { fd, backlog } => listening::listen(&mut call, fd, backlog),
        seccomp::Call::SetOption { fd, option, value } => set_option(&mut call, fd, option, value),
        seccomp::Call::Shutdown { fd } => shutdown(&call, fd),
        seccomp::Call::Connect { address, length } => paths::connect(&mut call, address, length),
        seccomp::Call::Unlink { dir, path } => paths::unlink(&mut call, dir, path),
        seccomp::Call::Rename { from_dir, from, to_dir, to, flags } => {
            paths::rename(&mut call, (from_dir, from), (to_dir, to), flags)
        }
        seccomp::Call::Other => Ok(answer(Answer::Continue)),
    }
}

/// The call as messages name it.
fn name(call: &seccomp::Call) -> &'static str {
    match call {
        seccomp::Call::Bind { .. } => "bind",
        seccomp::Call::Listen { .. } => "listen",
        seccomp::Call::SetOption { .. } => "setsockopt",
        seccomp::Call::Shutdown { .. } => "shutdown",
        seccomp::Call::Connect { .. } => "connect",
        seccomp::Call::Unlink { .. } => "unlink",
        seccomp::Call::Rename { .. } => "rename",
        seccomp::Call::Other => "call",
    }
}

/// `shutdown` on a listener affects every process that has it. A listener that other workers use stays open; the
/// caller gets success as the result, and does not use the listener any further.
fn shutdown(call: &Call<'_>, fd: RawFd) -> io::Result<Decision> {
    let id = call.peer.inode(fd)?;
    let others = |socket: &Socket| {
        let is_other = |user: &u64| *user != call.worker.serial;
        let has_others = socket.users.iter().any(is_other) || !socket.awaited_by.is_empty();
        socket.permanent || (is_for_all(socket.scope) && has_others)
    };
    let has_others = call.sockets.core.socket(id).is_some_and(others);
    Ok(answer(if has_others { Answer::Done } else { Answer::Continue }))
}

/// Records an option that belongs to the identity of an address, where sockets cannot be inspected.
fn set_option(call: &mut Call<'_>, fd: RawFd, option: SocketOption, value: u64) -> io::Result<Decision> {
    let on = call.peer.memory(value, size_of::<i32>())?.iter().any(|byte| *byte != 0);
    let inode = call.peer.inode(fd)?;
    if let Some(caller) = call.callers.get_mut(call.worker.serial) {
        caller.set_option(inode, option, on);
    }
    Ok(answer(Answer::Continue))
}
