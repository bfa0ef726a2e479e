//! Giving memory back when the supervisor has come to rest.
//!
//! A start, a reload or the end of a worker runs code and takes memory that is not needed again for hours. On a host with hundreds of
//! supervisors most of them are idle, and what each keeps adds up.

use std::time::Duration;

use super::context::{Context, Deferred};
use super::starts::Starts;
use crate::sys::{allocator, own_code, thread};

/// How long nothing has happened when the supervisor is at rest. The next worker of a reload starts sooner as a rule, and helper
/// threads have ended by then.
const AFTER: Duration = Duration::from_secs(2);

/// What has happened, and whether the supervisor has come to rest since.
#[derive(Debug, Default)]
pub(super) struct Settling {
    is_due: bool,
    /// The number of the last record of the journal.
    seen: Option<u64>,
}

impl Settling {
    /// Notes whether something has happened since the last round of the loop.
    pub(super) fn after_round(&mut self, cx: &mut Context) {
        if !self.is_due && self.seen != Some(cx.journal.last_seq()) {
            self.wait(cx);
        }
    }

    fn wait(&mut self, cx: &mut Context) {
        self.is_due = true;
        self.seen = Some(cx.journal.last_seq());
        cx.schedule(AFTER, Deferred::Settle);
    }

    /// Gives memory back, unless something has happened meanwhile.
    pub(super) fn settle(&mut self, cx: &mut Context, starts: &mut Starts) {
        self.is_due = false;
        if self.seen != Some(cx.journal.last_seq()) || !starts.rest() {
            return self.wait(cx);
        }
        thread::reap();
        allocator::release_unused();
        own_code::unmap();
    }
}
