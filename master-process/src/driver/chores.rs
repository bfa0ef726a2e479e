//! What is to be done a moment later, apart from the policy's deadlines.

use std::collections::BTreeMap;
use std::time::Duration;

use std::os::fd::AsFd;

use tracing::{info, warn};

use super::{Driver, Token};
use crate::policy::Time;
use crate::share::{Remark, Watch};
use crate::sys::pidfd;
use crate::sys::seccomp::Notification;

/// How long after somebody came a queue is looked at, and how often while somebody waits. It bounds what a
/// busy socket costs us: one wake-up in this time, however many connections come.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// How long after it began to serve a worker's sockets are held against what it has open. A program that only
/// tried a port out has closed it by then; clients of that port hang for so long.
const SWEEP_AFTER: Duration = Duration::from_secs(2);

/// A program that binds in order to connect does so within a few looks; one that is slow to listen must not keep
/// us awake.
const LOOKS_AT_UNLISTENED: u32 = 5;

/// How long what failed for want of a resource waits.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Something for later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chore {
    /// See whether the queue of the socket with this inode number moves.
    Queue(u64),
    /// See whether the socket with this inode number was made for something else than listening; so often at most.
    Unlistened(u64, u32),
    /// See what the worker of this serial really holds.
    Sweep(u64),
    /// See whether the worker of this serial, which has ended and cannot be reaped, can be now.
    Exit(u64),
    /// Measure all workers.
    Sample,
    /// Answer a call of the worker of this serial, which could not be answered.
    Call(u64, Notification),
}

impl Chore {
    /// How long after it was left it is to be done; `interval` is that of the samples.
    fn wait(self, interval: Duration) -> Duration {
        match self {
            Chore::Sample => interval,
            Chore::Queue(_) | Chore::Unlistened(..) => LOOK_AFTER,
            Chore::Sweep(_) => SWEEP_AFTER,
            Chore::Exit(_) | Chore::Call(..) => AGAIN_AFTER,
        }
    }
}

/// All of them, the earliest first.
#[derive(Debug, Default)]
pub(super) struct Chores {
    by_time: BTreeMap<(Time, u64), Chore>,
    count: u64,
}

impl Chores {
    /// When the next one is due.
    pub(super) fn first(&self) -> Option<Time> {
        self.by_time.first_key_value().map(|((at, _), _)| *at)
    }

    fn add(&mut self, at: Time, chore: Chore) {
        self.count += 1;
        self.by_time.insert((at, self.count), chore);
    }

    fn due(&mut self, now: Time) -> Option<Chore> {
        let first = self.by_time.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

impl Driver {
    /// Leaves something for later.
    pub(super) fn later(&mut self, chore: Chore) {
        let wait = chore.wait(self.sampling.interval);
        self.chores.add(self.now().after(wait), chore);
    }

    /// Does what was left for now.
    pub(super) fn do_chores(&mut self) {
        let now = self.now();
        while let Some(chore) = self.chores.due(now) {
            match chore {
                Chore::Queue(inode) => match self.broker.look_at_queue(inode) {
                    Watch::Come => self.watch_queue(inode),
                    Watch::Soon => self.later(chore),
                    Watch::Over => {}
                },
                Chore::Unlistened(inode, looks) => {
                    if looks > 0 && self.broker.look_at_unlistened(inode) == Watch::Soon {
                        self.later(Chore::Unlistened(inode, looks - 1));
                    }
                }
                Chore::Sample => self.sample(),
                Chore::Sweep(serial) => self.sweep(serial),
                Chore::Exit(serial) => self.worker_ended(serial),
                Chore::Call(serial, call) => self.reply_to(serial, &call),
            }
        }
    }

    fn sweep(&mut self, serial: u64) {
        let Some(entry) = self.workers.get(serial) else { return };
        let (pid, pidfd) = (entry.pid, entry.pidfd.as_fd());
        // A zombie has nothing open, and what it had is its successor's.
        self.broker.sweep(serial, pid, || matches!(pidfd::peek(pidfd), Ok(None)));
    }

    fn watch_queue(&mut self, inode: u64) {
        if let Some(socket) = self.broker.socket(inode)
            && let Err(error) = self.poller.watch(socket, Token::Queue(inode).encode())
        {
            warn!("watching: {error}: a hung worker may not be noticed");
        }
    }

    /// Before the end: the kernel takes a ring apart only after its process has ended, and until then the watches
    /// in it would hold the sockets, and so the addresses, that somebody may want at once.
    pub(super) fn end_watches(&mut self) {
        for inode in self.broker.inodes() {
            self.poller.forget(Token::Queue(inode).encode());
        }
        let _cancelled = self.poller.wait(Some(Duration::ZERO), &mut Vec::new());
    }

    /// Does what followed from sharing: points addresses, watches new queues, tells what came up.
    pub(super) fn after_sharing(&mut self) {
        self.broker.take_turns();
        self.broker.close_orphans(|slot| self.policy.expects_start(slot));
        self.broker.close_spares();
        for inode in self.broker.take_unlistened() {
            self.later(Chore::Unlistened(inode, LOOKS_AT_UNLISTENED));
        }
        for inode in self.broker.take_unwatched() {
            self.watch_queue(inode);
        }
        for remark in self.broker.take_remarks() {
            self.remark(&remark);
        }
    }

    fn remark(&mut self, remark: &Remark) {
        match remark {
            Remark::Holds { address } | Remark::LetGo { address } => info!(address, "{remark}"),
            Remark::NotSteered { address, .. } | Remark::NotRenamed { address, .. } => {
                warn!(address, "{remark}");
            }
            Remark::Refused { worker, address, .. }
            | Remark::Hung { worker, address, .. }
            | Remark::Bypassed { worker, address } => {
                warn!(worker = worker.slot, address, "{} {remark}", self.name(*worker));
            }
            Remark::Moves { worker, address } => {
                info!(worker = worker.slot, address, "{} {remark}", self.name(*worker));
            }
            Remark::Unseen { worker, .. } => {
                if self.listeners.warn_once() {
                    let worker_name = self.name(*worker);
                    warn!(worker = worker.slot, "{worker_name}: {remark}; more such calls are not told of");
                }
            }
        }
    }
}
