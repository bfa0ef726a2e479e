//! What is to be looked at a moment later, apart from the policy's deadlines: the queues that somebody came to.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::{info, warn};

use super::{Driver, Token};
use crate::policy::Time;
use crate::share::{Remark, Watch};

/// How long after somebody came a queue is looked at, and how often while somebody waits. It bounds what a
/// busy socket costs us: one wake-up in this time, however many connections come.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// Sockets whose queues are to be looked at, by inode number, the earliest first.
#[derive(Debug, Default)]
pub(super) struct Chores {
    looks: BTreeSet<(Time, u64)>,
}

impl Chores {
    /// When the next one is due.
    pub(super) fn first(&self) -> Option<Time> {
        self.looks.first().map(|(at, _)| *at)
    }

    fn due(&mut self, now: Time) -> Option<u64> {
        let (at, inode) = *self.looks.first()?;
        if at > now {
            return None;
        }
        self.looks.pop_first();
        Some(inode)
    }
}

impl Driver {
    /// Does what was left for now.
    pub(super) fn do_chores(&mut self) {
        let now = self.now();
        while let Some(inode) = self.chores.due(now) {
            match self.broker.look_at_queue(inode) {
                Watch::Come => self.watch_queue(inode),
                Watch::Soon => self.somebody_came(inode),
                Watch::Over => {}
            }
        }
    }

    /// Somebody waits, or did a moment ago: whether the queue moves shows later.
    pub(super) fn somebody_came(&mut self, inode: u64) {
        self.chores.looks.insert((self.now().after(LOOK_AFTER), inode));
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
            let _not_submitted = self.poller.forget(Token::Queue(inode).encode());
        }
        let _cancelled = self.poller.wait(Some(Duration::ZERO), &mut Vec::new());
    }

    /// Does what followed from sharing: watches new queues, tells what came up.
    pub(super) fn after_sharing(&mut self) {
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
                warn!(address, "{remark}")
            }
            Remark::Refused { worker, address, .. } | Remark::Hung { worker, address, .. } => {
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
