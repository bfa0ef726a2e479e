//! The calls that workers wait in: their filters' notifications.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{debug, warn};

use super::deferred::Deferred;
use super::{Driver, Token};
use crate::policy::{Event, ReadySignal, WorkerId};
use crate::share::{Decision, Listens};
use crate::sys::seccomp::{self, Notification};

/// Where notifications arrive. One outlives its worker for as long as a descendant of that is left: without
/// it, their `bind` would fail with ENOSYS.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    open: HashMap<u64, (WorkerId, OwnedFd)>,
    /// Workers of whose trees the kernel has said that nobody is left, and whose ends are not dealt with yet.
    hung_up: HashSet<u64>,
    /// Whether the remark that a call could not be looked into was made: it would be made for each call.
    warned: bool,
}

impl Listeners {
    /// Whether anybody of a worker's tree may still call.
    pub(super) fn has(&self, serial: u64) -> bool {
        self.open.contains_key(&serial)
    }

    /// Whether the kernel has said that nobody of a worker's tree is left.
    pub(super) fn has_hung_up(&self, serial: u64) -> bool {
        self.hung_up.contains(&serial)
    }

    /// A worker's end is dealt with.
    pub(super) fn forget(&mut self, serial: u64) {
        self.hung_up.remove(&serial);
    }

    pub(super) fn get(&self, serial: u64) -> Option<BorrowedFd<'_>> {
        self.open.get(&serial).map(|(_, listener)| listener.as_fd())
    }

    /// True the first time.
    pub(super) fn warn_once(&mut self) -> bool {
        !std::mem::replace(&mut self.warned, true)
    }

    pub(super) fn insert(&mut self, worker: WorkerId, listener: OwnedFd) {
        self.open.insert(worker.serial, (worker, listener));
    }
}

impl Driver {
    /// One call for each readiness: the watch is then set again, and tells at once whether there is another.
    pub(super) fn answer_call(&mut self, serial: u64) {
        let Some((worker, listener)) = self.listeners.open.get(&serial) else {
            return;
        };
        let (worker, listener) = (*worker, listener.as_fd());
        let mut state = [PollFd::new(&listener, PollFlags::IN)];
        let _count = poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let state = state[0].revents();
        if !state.contains(PollFlags::IN) {
            // Not ERR: the kernel says that where it was interrupted (`seccomp_notify_poll` of kernel/seccomp.c).
            if state.intersects(PollFlags::HUP | PollFlags::NVAL) {
                // Nobody of the worker's whole tree is left.
                self.listeners.open.remove(&serial);
                if self.trees.has(serial) {
                    self.listeners.hung_up.insert(serial);
                }
                self.tree_is_empty(serial);
                if !self.trees.has(serial) {
                    self.broker.forget(serial);
                }
                return;
            }
        } else if let Ok(call) = seccomp::receive(listener) {
            self.reply_to(serial, &call);
        }
        if let Some((_, listener)) = self.listeners.open.get(&serial)
            && let Err(error) = self.poller.watch(listener.as_fd(), Token::Calls(serial).encode())
        {
            warn!("cannot watch the system calls of {}: {error}; they are not answered", self.name(worker));
        }
    }

    /// Answers a call, now or, where something must be found out or the kernel lacks something, later: letting it go on
    /// would give the worker an address of its own that the others then cannot have.
    pub(super) fn reply_to(&mut self, serial: u64, call: &Notification) {
        let now = self.now();
        let Some((worker, listener)) = self.listeners.open.get(&serial) else { return };
        let (worker, listener) = (*worker, listener.as_fd());
        let reply = match self.broker.reply(now, listener, call, worker) {
            Decision::Reply(reply) => reply,
            Decision::Wait(wait) => return self.schedule_in(wait, Deferred::Call(serial, *call)),
            Decision::AwaitLook => return,
        };
        debug!("{}: {:?}: {:?}", self.name(worker), call.call, reply.answer);
        if seccomp::answer(listener, call, reply.answer).is_err() {
            // Dead, or to come again: what the call did has no meaning before the worker knows of it.
            return self.broker.undelivered(worker, reply.answer);
        }
        let sign = reply.listens.map(|listens| match listens {
            Listens::All => ReadySignal::Listen,
            Listens::Some => ReadySignal::ListenPartly,
        });
        if let Some(sign) = sign {
            self.event(Event::ReadySignal(worker, sign));
        }
    }

    /// Workers that listen wherever they are to without another call of theirs are ready; true where there are some.
    pub(super) fn tell_complete(&mut self) -> bool {
        let complete = self.broker.take_complete();
        let any = !complete.is_empty();
        for worker in complete {
            self.event(Event::ReadySignal(worker, ReadySignal::Listen));
        }
        any
    }

    /// What the helper thread has found: calls that waited for it go on.
    pub(super) fn read_looks(&mut self) {
        for (serial, call) in self.broker.take_looks(self.now()) {
            self.reply_to(serial, &call);
        }
        if self.broker.has_met_orphan() {
            self.trees.survey();
        }
        self.watch_looks();
    }

    pub(super) fn watch_looks(&mut self) {
        if let Err(error) = self.poller.watch(self.broker.looks(), Token::Looks.encode()) {
            warn!("cannot watch the helper thread: {error}; listeners that workers close may go unnoticed");
        }
    }
}
