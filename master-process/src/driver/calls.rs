//! The system calls in which workers wait for an answer: the notifications of their seccomp filters.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{debug, warn};

use super::deferred::Deferred;
use super::{Driver, Token};
use crate::policy::{Event, ReadySignal, WorkerId};
use crate::share::{Decision, Listens};
use crate::sys::seccomp::{self, Notification};

/// The descriptors on which notifications arrive. A descriptor stays open after its worker has ended, until the last
/// descendant has ended: without it, `bind` in the descendants would fail with ENOSYS.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    open: HashMap<u64, (WorkerId, OwnedFd)>,
    /// Workers whose process trees are empty according to the kernel, and whose ends are not handled yet.
    hung_up: HashSet<u64>,
    /// Whether the warning about a call that could not be inspected was logged. It is logged once, not for each call.
    warned: bool,
}

impl Listeners {
    /// Whether a process of the worker's tree may still make a call.
    pub(super) fn has(&self, serial: u64) -> bool {
        self.open.contains_key(&serial)
    }

    /// Whether the worker's process tree is empty according to the kernel.
    pub(super) fn has_hung_up(&self, serial: u64) -> bool {
        self.hung_up.contains(&serial)
    }

    /// Forgets a worker whose end is handled.
    pub(super) fn forget(&mut self, serial: u64) {
        self.hung_up.remove(&serial);
    }

    pub(super) fn get(&self, serial: u64) -> Option<BorrowedFd<'_>> {
        self.open.get(&serial).map(|(_, listener)| listener.as_fd())
    }

    /// Returns true at the first call.
    pub(super) fn warn_once(&mut self) -> bool {
        !std::mem::replace(&mut self.warned, true)
    }

    pub(super) fn insert(&mut self, worker: WorkerId, listener: OwnedFd) {
        self.open.insert(worker.serial, (worker, listener));
    }
}

impl Driver {
    /// Answers one call for each readiness event. The watch is then set again, and reports at once if there is another
    /// call.
    pub(super) fn answer_call(&mut self, serial: u64) {
        let Some((worker, listener)) = self.listeners.open.get(&serial) else {
            return;
        };
        let (worker, listener) = (*worker, listener.as_fd());
        let mut state = [PollFd::new(&listener, PollFlags::IN)];
        let _count = poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let state = state[0].revents();
        if !state.contains(PollFlags::IN) {
            // The kernel also reports ERR if it was interrupted (`seccomp_notify_poll` of kernel/seccomp.c), so ERR is
            // not evaluated.
            if state.intersects(PollFlags::HUP | PollFlags::NVAL) {
                // No process of the worker's tree is left.
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

    /// Answers a call now, or later if the answer needs a lookup or the kernel lacks a resource. If the call continued
    /// unanswered, the worker would get an address of its own, which the other workers then could not bind.
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
            // The caller is dead, or will repeat the call. The effect of the call does not count until the worker has
            // received the answer.
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

    /// Reports as ready the workers that now listen on all expected addresses without having made another call. Returns
    /// true if there are any.
    pub(super) fn report_complete(&mut self) -> bool {
        let complete = self.broker.take_complete();
        let any = !complete.is_empty();
        for worker in complete {
            self.event(Event::ReadySignal(worker, ReadySignal::Listen));
        }
        any
    }

    /// Reads the results of the helper thread, and answers the calls that waited for them.
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
