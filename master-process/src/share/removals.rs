//! Removals of a socket file that may be in progress.
//!
//! Programs remove a stale file at their path before they bind there. Such a call is continued, and the kernel may
//! carry it out after a sibling has bound there. So no worker binds at the path before the removal is over.

use std::time::Duration;

use rustix::process::Pid;

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

/// The removals that may be in progress.
#[derive(Debug, Default)]
pub(super) struct Removals(Vec<Removal>);

#[derive(Debug)]
struct Removal {
    serial: u64,
    thread: Pid,
    key: Key,
    since: Time,
    watch: CallWatch,
}

impl Removals {
    /// A thread of a worker may remove the file at a path.
    pub(super) fn begin(&mut self, now: Time, (serial, thread): (u64, Pid), key: Key, watch: CallWatch) {
        if self.0.len() >= MAX_REMOVALS {
            self.0.remove(0);
        }
        self.0.push(Removal { serial, thread, key, since: now, watch });
    }

    /// A thread makes another call, so its removal is over.
    pub(super) fn next_call(&mut self, thread: Pid) {
        self.0.retain(|removal| removal.thread != thread);
    }

    /// Forgets old removals: each holds a descriptor.
    pub(super) fn forget_old(&mut self, now: Time) {
        self.0.retain(|removal| now.since(removal.since) < MAX_WAIT);
    }

    /// Forgets the removals of a worker that has ended.
    pub(super) fn forget_worker(&mut self, serial: u64) {
        self.0.retain(|removal| removal.serial != serial);
    }

    /// Whether another worker may be about to remove the file at a path.
    pub(super) fn is_under_way(&mut self, now: Time, serial: u64, key: &Key) -> bool {
        self.0.retain(|removal| now.since(removal.since) < MAX_WAIT && removal.watch.may_be_in(CALLS));
        self.0.iter().any(|removal| removal.serial != serial && removal.key.matches(key))
    }
}
