//! The one who answers the workers' calls: asks the core what is to be, and tells the kernel.

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

/// Holds what workers listen on, and answers their calls.
#[derive(Debug)]
pub struct Broker {
    pub(super) share: Share,
    pub(super) rules: ShareRules,
    pub(super) access: Access,
    pub(super) core: Core,
    pub(super) copies: Copies,
    pub(super) selection: Selection,
    /// What was opened before any worker was there.
    pub(super) permanent: Vec<Permanent>,
    pub(super) processes: HashMap<u64, Process>,
    pub(super) queues: QueueWatch,
    pub(super) looks: Looks,
    pub(super) occupants: Occupants,
    /// What walks found for calls that still wait.
    pub(super) found: Vec<(u64, Notification, SocketId, Holder)>,
    /// Where sockets are registered with epoll that are to be replaced by calls that still wait.
    pub(super) registered: Vec<(u64, Notification, Vec<Entry>)>,
    pub(super) reports: Vec<Report>,
    /// UDP sockets that are about to be bound, or stand-ins that do not listen yet.
    /// With each, whether it is being looked at.
    pub(super) unsettled: Vec<(SocketId, bool)>,
    pub(super) paths: PathUse,
    pub(super) removals: Removals,
    /// What our workers find as `NOTIFY_SOCKET`: those of a supervisor among them find another one.
    pub(super) notify_address: Vec<u8>,
    /// Whether workers' sockets can be copied and so looked at.
    pub(super) can_copy: bool,
    /// When something happened to a listener last.
    pub(super) active_at: Option<Time>,
    /// Where the last round of checks has come to.
    pub(super) checked: usize,
    pub(super) owners: Arc<Owners>,
    /// Whether a look has ended at a process that was handed to us and is nobody's, as far as is known.
    pub(super) met_orphan: bool,
    /// Where workers must listen to be ready.
    pub(super) expected: Expected,
}

/// A socket that was opened before any worker was there.
#[derive(Debug, Clone)]
pub(super) struct Permanent {
    pub(super) id: SocketId,
    pub(super) key: Key,
    /// Whether each worker that binds its address can have a shard of its own: `--listen` of TCP.
    pub(super) can_be_joined: bool,
}

/// What is known of a worker's process.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) pid: Option<Pid>,
    /// Whether it has ended, and only descendants of it may be left.
    pub(super) ended: bool,
    /// Whether its first process has ended, and others of its tree are known to live.
    pub(super) remains: bool,
    /// What its last call has put into the place of its own socket.
    pub(super) given: Option<(SocketId, Address)>,
    /// What it was given by calls that it was torn out of before they returned.
    undelivered: Vec<(SocketId, Address)>,
    /// What it gets when it listens on a socket of its own.
    pub(super) substitutes: Vec<(SocketId, SocketId)>,
    /// `IPV6_V6ONLY` and `SO_REUSEPORT` as it set them, where its sockets cannot be looked at.
    pub(super) options: super::options::NotedOptions,
    /// Listeners that are its own business, and are known to be: no report is made of them.
    pub(super) alone: super::options::Recent,
    /// Whether its memory could not be read in time: nothing of it is read any more, and nothing shared.
    pub(super) is_unreadable: bool,
    /// Whether it was told of that no more of its sockets are kept.
    pub(super) is_full: bool,
    /// Which of the addresses that `--ready` names it listens on by sockets of which nothing is kept.
    pub(super) named: Vec<usize>,
}

/// Whether the program listens on a Unix path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathUse {
    /// No worker has become ready yet, nor bound a path.
    Unknown,
    /// It does.
    Used,
    /// It was ready without.
    Unused,
}

/// The answer to a call.
#[derive(Debug)]
pub enum Decision {
    /// What the kernel is to be told, and what else follows.
    Reply(Reply),
    /// Ask again after this time.
    Wait(Duration),
    /// Ask again when [`Broker::take_looks`] names the call.
    AwaitLook,
}

/// The answer to a call, and what else follows from it.
#[derive(Debug)]
pub struct Reply {
    /// What the kernel is to be told.
    pub answer: Answer,
    /// The worker listens on a stream socket.
    pub listens: Option<Listens>,
}

/// How much of what was expected of it a worker listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listens {
    /// On all of it.
    All,
    /// Something is missing yet.
    Some,
}

impl Broker {
    /// A broker that answers `bind` as `share` and `rules` say, and watches `listen` in any case. It holds what was
    /// opened for handing over as well: a worker that binds such an address by itself gets it.
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

    /// What an earlier supervisor has left behind and holds an address is ended so; `None`: it is left alone.
    pub fn set_takeover(&mut self, takeover: Option<Takeover>) {
        self.occupants.set_takeover(takeover);
    }

    /// What our workers find as `NOTIFY_SOCKET`.
    pub fn set_notify_address(&mut self, address: &[u8]) {
        self.notify_address = address.to_owned();
    }

    /// What a worker's filter must send us: each call costs the worker ten microseconds, whatever it is about.
    pub fn calls(&self) -> Calls {
        let shares = self.share != Share::Off;
        let paths = shares && self.rules.may_share_paths();
        let uses_path = paths && self.paths == PathUse::Used;
        Calls {
            bind: shares,
            options: shares && !self.can_copy,
            listen: true,
            // Of a shard only its own worker is concerned.
            shutdown: uses_path || self.share == Share::Shared || (shares && !self.permanent.is_empty()),
            paths: paths && self.paths != PathUse::Unused,
            connect: uses_path,
        }
    }

    /// Whether a worker, or a generation, has sockets of its own.
    pub(super) fn has_shards(&self) -> bool {
        matches!(self.share, Share::Auto | Share::Slots)
    }

    /// A worker is about to start.
    pub fn enter(&mut self, worker: WorkerId, generation: u32) {
        self.core.started(worker, generation);
        self.processes.insert(worker.serial, Process::default());
    }

    /// The worker's process.
    pub fn launched(&mut self, worker: WorkerId, pid: Pid) {
        if let Some(process) = self.processes.get_mut(&worker.serial) {
            (process.pid, process.remains) = (Some(pid), false);
        }
    }

    /// The first process of a worker is gone, and others of its tree live: no new connection comes to them. `asked` as in
    /// [`leave`](Self::leave).
    pub fn first_ended(&mut self, now: Time, serial: u64, asked: bool) {
        self.core.first_ended(now, serial, asked);
        if let Some(process) = self.processes.get_mut(&serial) {
            (process.pid, process.remains) = (None, true);
        }
        // They are asked to leave, and close what they listen on.
        self.note_activity(now);
        self.reconcile(now);
    }

    /// The inode numbers of the sockets that make a process of a worker's tree the worker, where it has one of them open.
    /// Whether anybody has is not known here: a close is noticed late.
    pub fn listeners(&self, serial: u64) -> Vec<u64> {
        let alone = self.processes.get(&serial).into_iter().flat_map(|process| process.alone.iter());
        self.core.served_by(serial).into_iter().chain(alone).collect()
    }

    /// The inode numbers of what a worker listens on, and no other worker.
    pub fn listeners_of_worker(&self, serial: u64) -> Vec<u64> {
        let of_worker = |socket: &&Socket| socket.active && socket.users == [serial];
        self.core.sockets().iter().filter(of_worker).map(|socket| socket.id).collect()
    }

    /// A worker is gone, or did not start; a descendant of it may be left. `asked`: it was to go, and what waits for it
    /// is not its slot's next one's.
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

    /// Nobody of a worker's whole tree is left.
    pub fn forget(&mut self, serial: u64) {
        if self.processes.get(&serial).is_some_and(|process| process.ended) {
            self.processes.remove(&serial);
        }
    }

    /// New connections may come to a worker, or go to others.
    pub fn set_in_rotation(&mut self, now: Time, serial: u64, in_rotation: bool) {
        self.core.set_in_rotation(now, serial, in_rotation);
        self.learns_paths(in_rotation);
        self.note_activity(now);
        self.reconcile(now);
    }

    /// A worker is asked to stop: it accepts no more, or not for long.
    pub fn set_stopping(&mut self, now: Time, serial: u64) {
        self.core.stopping(serial);
        self.reconcile(now);
    }

    /// The generation that a reload under way leads to; none: there is no reload under way.
    pub fn set_target(&mut self, now: Time, target: Option<u32>) {
        self.core.set_target(target);
        self.reconcile(now);
    }

    /// A worker does not have our answer to the call that [`reply`](Self::reply) decided last. Where it was killed,
    /// that is all the same. Before Linux 5.19 any signal tears it out of the call, which is then made again by the
    /// kernel, or by a program that was told EINTR: what we have done for it is done.
    pub fn undelivered(&mut self, worker: WorkerId, answer: Answer) {
        let Some(process) = self.processes.get_mut(&worker.serial) else { return };
        if answer == Answer::Done
            && let Some(given) = process.given.take()
            && !process.undelivered.contains(&given)
        {
            process.undelivered.push(given);
        }
    }

    /// What has come up since this was asked last.
    pub fn take_reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// Readable when [`take_looks`](Self::take_looks) has something to say.
    pub fn looks(&self) -> BorrowedFd<'_> {
        self.looks.wake().fd()
    }

    /// Readable when [`take_queue_events`](Self::take_queue_events) has something to say.
    pub fn queues(&self) -> BorrowedFd<'_> {
        self.queues.as_fd()
    }

    /// When [`reconcile`](Self::reconcile) is to be called though nothing has happened.
    pub fn deadline(&self) -> Option<Time> {
        self.core.deadline()
    }
}

impl Process {
    /// Whether it has this socket from a call that it was torn out of, for this address. It is taken to know by now: if
    /// not, we shall be told again.
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
