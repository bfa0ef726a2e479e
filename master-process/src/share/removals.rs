//! Removals of a file that may still be under way.
//!
//! Programs remove what an earlier one has left at their path before they bind there. Such a call is let go on, and may
//! come to the kernel after a sibling has bound there: so nobody binds at the path before it is over.

use std::time::Duration;

use rustix::process::Pid;

use super::address::Key;
use crate::policy::Time;
use crate::sys::peer::CallWatch;

/// How long a removal is waited for: a file system that needs longer is a rare one for sockets.
const TAKES: Duration = Duration::from_secs(1);

/// More than so many at once are not remembered.
const MOST: usize = 64;

/// `unlink` and `unlinkat` that were let go on.
const CALLS: &[i64] = &[
    // Newer kinds of CPU have only the other one.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// Those that may be under way.
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
    /// A thread of a worker may remove what is at a path.
    pub(super) fn begin(&mut self, now: Time, (serial, thread): (u64, Pid), key: Key, watch: CallWatch) {
        if self.0.len() >= MOST {
            self.0.remove(0);
        }
        self.0.push(Removal { serial, thread, key, since: now, watch });
    }

    /// A thread makes a call: the one before is over.
    pub(super) fn next_call(&mut self, thread: Pid) {
        self.0.retain(|removal| removal.thread != thread);
    }

    /// Those that have had their time are forgotten: each holds a descriptor.
    pub(super) fn forget_old(&mut self, now: Time) {
        self.0.retain(|removal| now.since(removal.since) < TAKES);
    }

    /// The same of a worker that is gone.
    pub(super) fn forget_worker(&mut self, serial: u64) {
        self.0.retain(|removal| removal.serial != serial);
    }

    /// Whether another worker may be about to remove what is at a path.
    pub(super) fn is_under_way(&mut self, now: Time, serial: u64, key: &Key) -> bool {
        self.0.retain(|removal| now.since(removal.since) < TAKES && removal.watch.may_be_in(CALLS));
        self.0.iter().any(|removal| removal.serial != serial && removal.key.matches(key))
    }
}
