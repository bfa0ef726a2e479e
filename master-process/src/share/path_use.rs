//! What is known of the Unix paths that the program uses, and the removals of files there that may be in progress.
//!
//! Programs remove a stale file at their path before they bind there. Such a call is continued, and the kernel may
//! carry it out after a sibling has bound there. So no worker binds at the path before the removal is over.

use std::time::Duration;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::address::Key;
use crate::policy::Time;
use crate::sys::peer::CallWatch;

/// The longest wait for a removal. File systems that need longer rarely hold sockets.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// The number of removals to remember.
const MAX_REMOVALS: usize = 64;

/// The system calls of a removal.
const CALLS: &[i64] = &[
    // Newer architectures have only `unlinkat`.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// Whether the program listens on a Unix path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum PathUse {
    /// No worker has become ready yet, nor bound a path.
    #[default]
    Unknown,
    /// It listens on a path.
    Used,
    /// A worker became ready without a path.
    Unused,
}

/// A removal of a socket file that may be in progress.
#[derive(Debug)]
struct Removal {
    serial: u64,
    thread: Pid,
    key: Key,
    since: Time,
    watch: CallWatch,
}

/// What is known of the paths that the program uses.
#[derive(Debug, Default)]
pub(super) struct Paths {
    path_use: PathUse,
    /// The removals that may be in progress.
    removals: Vec<Removal>,
}

impl Paths {
    /// What is known, without the removals: each lasts for a moment.
    pub(super) fn save(&self) -> PathUse {
        self.path_use
    }

    pub(super) fn resume(path_use: PathUse) -> Paths {
        Paths { path_use, removals: Vec::new() }
    }

    /// Records that the program listens on a path.
    pub(super) fn set_used(&mut self) {
        self.path_use = PathUse::Used;
    }

    /// Records that a worker became ready without a path.
    pub(super) fn set_unused(&mut self) {
        if self.path_use == PathUse::Unknown {
            self.path_use = PathUse::Unused;
        }
    }

    pub(super) fn are_used(&self) -> bool {
        self.path_use == PathUse::Used
    }

    pub(super) fn may_be_used(&self) -> bool {
        self.path_use != PathUse::Unused
    }

    /// A thread makes another call, so its removal is over.
    pub(super) fn next_call(&mut self, thread: Pid) {
        self.removals.retain(|removal| removal.thread != thread);
    }

    /// Forgets old removals: each holds a descriptor.
    pub(super) fn forget_old(&mut self, now: Time) {
        self.removals.retain(|removal| now.since(removal.since) < MAX_WAIT);
    }

    /// Forgets the removals of a worker that has ended.
    pub(super) fn forget_worker(&mut self, serial: u64) {
        self.removals.retain(|removal| removal.serial != serial);
    }

    /// A thread of a worker may remove the file at a path.
    pub(super) fn begin_removal(
        &mut self,
        now: Time,
        (serial, thread): (u64, Pid),
        key: Key,
        watch: CallWatch,
    ) {
        if self.removals.len() >= MAX_REMOVALS {
            self.removals.remove(0);
        }
        self.removals.push(Removal { serial, thread, key, since: now, watch });
    }

    /// Whether another worker may be about to remove the file at a path.
    pub(super) fn is_removal_under_way(&mut self, now: Time, serial: u64, key: &Key) -> bool {
        let may_run =
            |removal: &Removal| now.since(removal.since) < MAX_WAIT && removal.watch.may_be_in(CALLS);
        self.removals.retain(may_run);
        self.removals.iter().any(|removal| removal.serial != serial && removal.key.matches(key))
    }
}
