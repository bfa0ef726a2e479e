//! The broker: it answers the workers' calls, asks the core for decisions, and carries them out in the kernel.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;

use super::address::{Address, Key};
use super::copies::Copies;
use super::core::{Core, Socket, SocketId};
use super::listen_fds::InheritedListeners;
use super::looks::{Looks, Owners};
use super::occupants::{Occupants, Takeover};
use super::readiness::Expected;
use super::removals::Removals;
use super::report::Report;
use super::selection::Selection;
use super::unix::Access;
use crate::config::{Share, ShareRules};
use crate::policy::{Time, WorkerId};
use crate::sys::epoll_entries::Entry;
use crate::sys::holders::Holder;
use crate::sys::peer;
use crate::sys::queue_watch::QueueWatch;
use crate::sys::seccomp::{Answer, Calls, Notification};

/// Holds the workers' listeners, and answers the workers' calls.
#[derive(Debug)]
pub struct Broker {
    pub(super) share: Share,
    pub(super) rules: ShareRules,
    pub(super) access: Access,
    pub(super) core: Core,
    pub(super) copies: Copies,
    pub(super) selection: Selection,
    /// The sockets that were opened before the first worker started.
    pub(super) permanent: Vec<Permanent>,
    pub(super) processes: HashMap<u64, Process>,
    pub(super) queues: QueueWatch,
    pub(super) looks: Looks,
    pub(super) occupants: Occupants,
    /// The results of scans, for calls that still wait.
    pub(super) found: Vec<(u64, Notification, SocketId, Holder)>,
    /// The registrations with epoll of sockets that waiting calls will replace.
    pub(super) registered: Vec<(u64, Notification, Vec<Entry>)>,
    pub(super) reports: Vec<Report>,
    /// UDP sockets that are about to be bound, and stand-in sockets that do not listen yet; each with whether its
    /// check is scheduled.
    pub(super) unsettled: Vec<(SocketId, bool)>,
    pub(super) paths: PathUse,
    pub(super) removals: Removals,
    /// The `NOTIFY_SOCKET` of our workers. The workers of a nested supervisor have a different one.
    pub(super) notify_address: Vec<u8>,
    /// Whether workers' sockets can be copied, and so inspected.
    pub(super) can_copy: bool,
    /// The time of the last event of a listener.
    pub(super) active_at: Option<Time>,
    /// The position at which the next round of checks starts.
    pub(super) checked: usize,
    pub(super) owners: Arc<Owners>,
    /// Whether a scan has found a socket in an adopted process whose worker is unknown.
    pub(super) met_orphan: bool,
    /// The addresses on which a worker must listen to be ready.
    pub(super) expected: Expected,
}

/// A socket that was opened before the first worker started.
#[derive(Debug, Clone)]
pub(super) struct Permanent {
    pub(super) id: SocketId,
    pub(super) key: Key,
    /// Whether each worker that binds its address can have a shard of its own: true for `--listen` with TCP.
    pub(super) can_be_joined: bool,
}

/// The state of a worker's process.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) pid: Option<Pid>,
    /// Whether it has ended; descendants of it may be left.
    pub(super) ended: bool,
    /// Whether its first process has ended while others of its process tree live.
    pub(super) remains: bool,
    /// The socket with which its last call replaced its own.
    pub(super) given: Option<(SocketId, Address)>,
    /// The sockets given by calls that were interrupted before they returned.
    undelivered: Vec<(SocketId, Address)>,
    /// Pairs of a socket of its own and the socket that replaces it when the worker listens.
    pub(super) substitutes: Vec<(SocketId, SocketId)>,
    /// `IPV6_V6ONLY` and `SO_REUSEPORT` as it set them, where its sockets cannot be inspected.
    pub(super) options: super::options::NotedOptions,
    /// Its listeners that are not shared, and need no report.
    pub(super) alone: super::options::Recent,
    /// Whether a read of its memory timed out: its memory is not read again, and its addresses are not shared.
    pub(super) is_unreadable: bool,
    /// Whether the log says that further sockets of it are not kept.
    pub(super) is_full: bool,
    /// The indexes of the `--ready` addresses on which it listens by sockets that are not kept.
    pub(super) named: Vec<usize>,
}

/// Whether the program listens on a Unix path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathUse {
    /// No worker has become ready yet, nor bound a path.
    Unknown,
    /// It listens on a path.
    Used,
    /// A worker became ready without a path.
    Unused,
}

/// The answer to a call.
#[derive(Debug)]
pub enum Decision {
    /// The answer for the kernel, and what else follows.
    Reply(Reply),
    /// Try again after this time.
    Wait(Duration),
    /// Try again when [`Broker::take_scans`] names the call.
    AwaitScan,
}

/// The answer to a call, and what else follows from it.
#[derive(Debug)]
pub struct Reply {
    /// The answer for the kernel.
    pub answer: Answer,
    /// The worker listens on a stream socket.
    pub listens: Option<Listens>,
}

/// Whether a worker listens on all addresses that are expected of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listens {
    /// On all of them.
    All,
    /// At least one is missing.
    Some,
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
        let looks = Looks::new()?;
        let occupants = Occupants::new(looks.wake().clone());
        let mut broker = Broker {
            share,
            rules,
            access,
            core: Core::new(super::core::Migration::Resets),
            copies: Copies::default(),
            selection: Selection::default(),
            permanent: Vec::new(),
            processes: HashMap::new(),
            queues: QueueWatch::new()?,
            looks,
            occupants,
            found: Vec::new(),
            registered: Vec::new(),
            reports: inherited.take_reports(),
            unsettled: Vec::new(),
            paths: PathUse::Unknown,
            removals: Removals::default(),
            notify_address: Vec::new(),
            can_copy: peer::can_copy(),
            active_at: None,
            checked: 0,
            owners: Arc::default(),
            met_orphan: false,
            expected: Expected::default(),
        };
        for opened in inherited.take_opened() {
            let id = opened.id;
            broker.core.add_permanent(id, opened.key.clone(), opened.can_be_joined);
            broker.copies.insert(id, opened.fd).backlog = opened.backlog;
            if let Some(file) = opened.file {
                broker.copies.set_file(id, file);
                broker.paths = PathUse::Used;
            }
            let can_be_joined = opened.can_be_joined;
            broker.permanent.push(Permanent { id, key: opened.key, can_be_joined });
        }
        Ok(broker)
    }

    /// Sets how processes are ended that an earlier supervisor has left and that hold an address; `None`: they are
    /// not ended.
    pub fn set_takeover(&mut self, takeover: Option<Takeover>) {
        self.occupants.set_takeover(takeover);
    }

    /// Sets the `NOTIFY_SOCKET` of our workers.
    pub fn set_notify_address(&mut self, address: &[u8]) {
        self.notify_address = address.to_owned();
    }

    /// The calls that a worker's filter sends to the supervisor. Each call costs the worker about ten microseconds.
    pub fn calls(&self) -> Calls {
        let shares = self.share != Share::Off;
        let paths = shares && self.rules.may_share_paths();
        let uses_path = paths && self.paths == PathUse::Used;
        Calls {
            bind: shares,
            options: shares && !self.can_copy,
            listen: true,
            // `shutdown` of a shard concerns only its own worker.
            shutdown: uses_path || self.share == Share::Shared || (shares && !self.permanent.is_empty()),
            paths: paths && self.paths != PathUse::Unused,
            connect: uses_path,
        }
    }

    /// Whether each worker, or each generation, has its own sockets.
    pub(super) fn has_shards(&self) -> bool {
        matches!(self.share, Share::Auto | Share::Slots)
    }

    /// A worker is about to start.
    pub fn enter(&mut self, worker: WorkerId, generation: u32) {
        self.core.started(worker, generation);
        self.processes.insert(worker.serial, Process::default());
    }

    /// A worker's process has started.
    pub fn launched(&mut self, worker: WorkerId, pid: Pid) {
        if let Some(process) = self.processes.get_mut(&worker.serial) {
            (process.pid, process.remains) = (Some(pid), false);
        }
    }

    /// The first process of a worker has ended, and others of its process tree live: they get no new connections.
    /// `asked` as in [`leave`](Self::leave).
    pub fn first_ended(&mut self, now: Time, serial: u64, asked: bool) {
        self.core.first_ended(now, serial, asked);
        if let Some(process) = self.processes.get_mut(&serial) {
            (process.pid, process.remains) = (None, true);
        }
        // They are asked to stop, and close their listeners.
        self.note_activity(now);
        self.reconcile(now);
    }

    /// The inode numbers of the sockets that a worker serves: a process of its tree that has one of them open
    /// continues the worker. A socket may be closed already, since a close is noticed late.
    pub fn listeners(&self, serial: u64) -> Vec<u64> {
        let alone = self.processes.get(&serial).into_iter().flat_map(|process| process.alone.iter());
        self.core.served_by(serial).into_iter().chain(alone).collect()
    }

    /// The inode numbers of the listeners that only this worker has.
    pub fn listeners_of_worker(&self, serial: u64) -> Vec<u64> {
        let of_worker = |socket: &&Socket| socket.active && socket.users == [serial];
        self.core.sockets().iter().filter(of_worker).map(|socket| socket.id).collect()
    }

    /// A worker has ended, or did not start; a descendant of it may be left. `asked`: it was asked to stop, so its
    /// queue is not kept for the slot's next worker.
    pub fn leave(&mut self, now: Time, serial: u64, asked: bool) {
        self.choose_migration();
        self.note_queues(serial);
        self.core.died(serial, asked);
        self.copies.forget_worker(serial);
        self.removals.forget_worker(serial);
        self.found.retain(|(of, ..)| *of != serial);
        self.registered.retain(|(of, ..)| *of != serial);
        if let Some(process) = self.processes.get_mut(&serial) {
            process.ended = true;
        }
        self.reconcile(now);
    }

    /// A worker's whole process tree has ended.
    pub fn forget(&mut self, serial: u64) {
        if self.processes.get(&serial).is_some_and(|process| process.ended) {
            self.processes.remove(&serial);
        }
    }

    /// Adds a worker to the rotation for new connections, or removes it.
    pub fn set_in_rotation(&mut self, now: Time, serial: u64, in_rotation: bool) {
        self.core.set_in_rotation(now, serial, in_rotation);
        self.note_path_use(in_rotation);
        self.note_activity(now);
        self.reconcile(now);
    }

    /// A worker was asked to stop: it accepts no new connections, or soon will not.
    pub fn set_stopping(&mut self, now: Time, serial: u64) {
        self.core.stopping(serial);
        self.reconcile(now);
    }

    /// Sets the generation to which the reload in progress leads; `None`: there is no reload.
    pub fn set_target(&mut self, now: Time, target: Option<u32>) {
        self.core.set_target(target);
        self.reconcile(now);
    }

    /// The answer to the call that [`reply`](Self::reply) decided last did not reach the worker. If the worker was
    /// killed, nothing depends on it. Before Linux 5.19 any signal interrupts the call. The kernel, or a program that
    /// gets EINTR, then makes it again, and its effects are already in place.
    pub fn undelivered(&mut self, worker: WorkerId, answer: Answer) {
        let Some(process) = self.processes.get_mut(&worker.serial) else { return };
        if answer == Answer::Done
            && let Some(given) = process.given.take()
            && !process.undelivered.contains(&given)
        {
            process.undelivered.push(given);
        }
    }

    /// The reports since the last call.
    pub fn take_reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// Readable when [`take_scans`](Self::take_scans) has answers.
    pub fn scans(&self) -> BorrowedFd<'_> {
        self.looks.wake().fd()
    }

    /// Readable when [`take_queue_events`](Self::take_queue_events) has events.
    pub fn queues(&self) -> BorrowedFd<'_> {
        self.queues.as_fd()
    }

    /// The time at which [`reconcile`](Self::reconcile) must be called even without another event.
    pub fn deadline(&self) -> Option<Time> {
        self.core.deadline()
    }
}

impl Process {
    /// Whether an interrupted call gave it this socket for this address. The entry is removed: if this answer does
    /// not arrive either, it is added again.
    pub(super) fn take_undelivered(&mut self, id: SocketId, address: &Address) -> bool {
        let known = self.undelivered.iter().position(|(at, named)| (*at, named) == (id, address));
        known.map(|at| self.undelivered.swap_remove(at)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_that_was_interrupted_is_recognised_once_by_its_socket_and_address() {
        let address = |name: &[u8]| Address::Abstract(name.to_vec());
        let mut process = Process::default();
        process.undelivered.push((7, address(b"a")));
        assert!(!process.take_undelivered(8, &address(b"a")));
        assert!(!process.take_undelivered(7, &address(b"b")));
        assert!(process.take_undelivered(7, &address(b"a")));
        assert!(!process.take_undelivered(7, &address(b"a")));
    }
}
