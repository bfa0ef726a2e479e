//! The accept queues of Unix listeners. The kernel has no option of a socket that shows them, only the table of all
//! Unix sockets.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::core::SocketId;
use crate::policy::Time;
use crate::sys::accept_queue::{self, AcceptQueue};
use crate::sys::inet_diag;

/// The most Unix sockets that the host may have for the table to be read. The kernel walks all of them, 30 to 60 ns
/// each, while the loop waits, and a worker decides how many it opens. With more, no Unix queue is known.
const MAX_WALKED: usize = 16_384;

/// How long the table is used again: many queues can be checked in the same second.
const VALID_FOR: Duration = Duration::from_millis(500);

/// Whether the kernel lists Unix sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Listed {
    /// A helper thread has not tried it yet.
    #[default]
    Untried,
    Trying,
    Yes,
    No,
}

/// The queues at the last reading.
#[derive(Debug, Clone, Default)]
pub(super) struct UnixQueues {
    listed: Listed,
    read_at: Option<Time>,
    queues: HashMap<SocketId, AcceptQueue>,
}

impl UnixQueues {
    /// Whether a helper thread must try to read the table first: the kernel may load a module for it, which takes
    /// milliseconds.
    pub(super) fn is_untried(&self) -> bool {
        self.listed == Listed::Untried
    }

    pub(super) fn set_trying(&mut self) {
        self.listed = Listed::Trying;
    }

    /// Sets whether the helper thread could read the table.
    pub(super) fn set_listed(&mut self, listed: bool) {
        self.listed = if listed { Listed::Yes } else { Listed::No };
    }

    /// Reads the queues of these listeners, unless they are known already. What cannot be read is unknown afterwards.
    pub(super) fn refresh(&mut self, now: Time, listeners: impl Iterator<Item = SocketId>) {
        if self.read_at.is_some_and(|read_at| now.since(read_at) < VALID_FOR) {
            return;
        }
        self.queues.clear();
        let mut listeners = listeners.peekable();
        if self.listed != Listed::Yes || listeners.peek().is_none() {
            return;
        }
        self.read_at = Some(now);
        if !accept_queue::count_unix_sockets().is_ok_and(|count| count <= MAX_WALKED) {
            return;
        }
        let wanted: HashSet<SocketId> = listeners.collect();
        self.queues = inet_diag::unix_queues(|id| wanted.contains(&id)).unwrap_or_default();
    }

    /// The queue of a listener, as it was read last; `None`: it is unknown.
    pub(super) fn get(&self, id: SocketId) -> Option<AcceptQueue> {
        self.queues.get(&id).copied()
    }
}
