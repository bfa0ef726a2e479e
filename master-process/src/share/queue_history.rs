//! What is remembered of the accept queues between two readings: the drops of each slot, and which queues were full.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::copies::{Copies, OpenSocket};
use super::core::{Scope, Socket, Workers};
use super::report::{FullQueue, Report};
use super::unix_queues::UnixQueues;
use crate::policy::Time;
use crate::sys::accept_queue::{self, AcceptQueue};

/// How long a queue must not have been full before a full one is reported again. A queue that is full at each peak of
/// the load gets one line then, and not one for each peak.
const CLEAR_FOR: Duration = Duration::from_secs(60);

/// The number of addresses whose queue was full to remember. A forgotten one is reported again.
const MAX_FULL: usize = 64;

/// How long the answer stays valid whether a queue of the namespace overflowed. Reading the counter takes tens of
/// microseconds, and clients can make every listener drop malformed packets.
const OVERFLOWED_VALID: Duration = Duration::from_secs(1);

/// An accept queue, as it was read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) queue: AcceptQueue,
    /// The drops since the listener was opened; `None`: it is a Unix socket.
    pub(super) drops: Option<u32>,
    /// The drops since the last reading.
    new_drops: u32,
    pub(super) stalled_since: Option<Time>,
}

impl Reading {
    /// That of a TCP listener in whose queue nothing waits and which has dropped nothing more; `None`: its limit is not known.
    pub(super) fn idle(socket: &Socket, open: &OpenSocket) -> Option<Reading> {
        let queue = AcceptQueue { length: 0, limit: open.queue_limit? };
        let stalled_since = stalled_since(socket, open);
        Some(Reading { queue, drops: Some(open.drops), new_drops: 0, stalled_since })
    }
}

/// Since when the worker of a listener stalls. It may be the next one of its slot, which took the listener of a stalled
/// worker over.
fn stalled_since(socket: &Socket, open: &OpenSocket) -> Option<Time> {
    open.stall.stalled_since().filter(|_| socket.stalled)
}

/// The state of the counter of overflows.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Overflows {
    read_at: Time,
    count: u64,
    /// Whether it had grown since the reading before.
    has_grown: bool,
}

/// What is remembered between two readings.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct QueueHistory {
    /// The drops of each slot. Those of a queue that several slots have count in each of them.
    by_slot: BTreeMap<u32, u64>,
    drops: u64,
    /// The addresses whose queue was full, each with the last time.
    full: Vec<(String, Time)>,
    overflows: Option<Overflows>,
    /// `ListenDrops` when all queues were read last.
    listen_drops: Option<u64>,
    /// They are tried and read anew.
    #[serde(skip)]
    pub(super) unix: UnixQueues,
}

impl QueueHistory {
    /// Reads the counter of overflows for the first time. Only then it can show an overflow.
    pub(super) fn begin(&mut self, now: Time) {
        if self.overflows.is_none() {
            self.has_overflowed(now);
        }
    }

    /// Whether a listener of our network namespace may have dropped a connection request since the last call.
    pub(super) fn may_have_dropped(&mut self) -> bool {
        let count = accept_queue::listen_counters().map(|all| all.drops).ok();
        count.is_none() || std::mem::replace(&mut self.listen_drops, count) != count
    }

    /// The drops of all listeners, counted once.
    pub(super) fn drops(&self) -> u64 {
        self.drops
    }

    /// The drops of a slot, also of listeners that are closed by now.
    pub(super) fn drops_of(&self, slot: u32) -> u64 {
        self.by_slot.get(&slot).copied().unwrap_or(0)
    }

    /// Reads a queue and counts its new drops for these slots, unless there can be none. `is_idle`: no connection waits in
    /// it. `None`: the kernel does not tell.
    pub(super) fn read(
        &mut self,
        copies: &mut Copies,
        socket: &Socket,
        slots: &[u32],
        (is_idle, may_have_dropped): (bool, bool),
    ) -> Option<Reading> {
        let open = copies.get_mut(socket.id)?;
        let stalled_since = stalled_since(socket, open);
        if !socket.key.has_group() {
            let queue = self.unix.get(socket.id)?;
            return Some(Reading { queue, drops: None, new_drops: 0, stalled_since });
        }
        let queue = match open.queue_limit.filter(|_| is_idle) {
            Some(limit) => AcceptQueue { length: 0, limit },
            None => accept_queue::of_tcp(open.fd())?,
        };
        open.queue_limit = Some(queue.limit);
        let new_drops = if may_have_dropped { self.count_drops(open, slots) } else { 0 };
        Some(Reading { queue, drops: Some(open.drops), new_drops, stalled_since })
    }

    /// Counts the new drops of a TCP listener for these slots, and returns their number.
    pub(super) fn count_drops(&mut self, open: &mut OpenSocket, slots: &[u32]) -> u32 {
        if let [slot] = slots {
            open.last_slot = Some(*slot);
        }
        let Some(drops) = accept_queue::drops(open.fd()) else { return 0 };
        let new = drops.wrapping_sub(std::mem::replace(&mut open.drops, drops));
        if new > 0 {
            self.drops += u64::from(new);
            for slot in slots.iter().copied().chain(open.last_slot.filter(|_| slots.is_empty())) {
                *self.by_slot.entry(slot).or_default() += u64::from(new);
            }
        }
        new
    }

    /// A report, if this reading shows that a queue is full or was full since the last one, and its address has had no
    /// full queue for a while.
    pub(super) fn report(
        &mut self,
        now: Time,
        socket: &Socket,
        open: &OpenSocket,
        workers: &Workers,
        reading: &Reading,
    ) -> Option<Report> {
        // A drop alone is no evidence: malformed packets are dropped as well.
        if !is_full(socket, reading.queue) && (reading.new_drops == 0 || !self.has_overflowed(now)) {
            return None;
        }
        let address = socket.key.to_string();
        if !self.is_news(now, &address) {
            return None;
        }
        let one = if let [serial] = socket.users[..] { workers.get(serial) } else { None };
        let queue = FullQueue {
            queue: reading.queue,
            is_unix: !socket.key.has_group(),
            backlog: open.backlog,
            survives_reload: socket.permanent || socket.scope == Scope::Shared,
            somaxconn: accept_queue::somaxconn_of(open.fd()),
        };
        Some(Report::QueueFull { worker: one.map(|worker| worker.id), address, queue })
    }

    /// Whether a TCP queue of our network namespace had no room since the last reading, as far as is known.
    fn has_overflowed(&mut self, now: Time) -> bool {
        if let Some(last) = self.overflows.filter(|last| now.since(last.read_at) < OVERFLOWED_VALID) {
            return last.has_grown;
        }
        let Ok(count) = accept_queue::listen_counters().map(|all| all.overflows) else { return false };
        let has_grown = self.overflows.is_some_and(|last| count > last.count);
        self.overflows = Some(Overflows { read_at: now, count, has_grown });
        has_grown
    }

    /// Records that a queue of an address is full. Returns whether that is to be reported.
    fn is_news(&mut self, now: Time, address: &str) -> bool {
        if let Some((_, last)) = self.full.iter_mut().find(|(known, _)| known == address) {
            return now.since(std::mem::replace(last, now)) >= CLEAR_FOR;
        }
        if self.full.len() >= MAX_FULL
            && let Some(oldest) = (0..self.full.len()).min_by_key(|at| self.full[*at].1)
        {
            self.full.swap_remove(oldest);
        }
        self.full.push((address.to_owned(), now));
        true
    }
}

/// Whether new connections find a full queue. A listener that is out of the selection gets none.
pub(super) fn is_full(socket: &Socket, queue: AcceptQueue) -> bool {
    queue.is_full() && socket.unselected.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Time {
        Time::new(Duration::from_secs(second))
    }

    #[test]
    fn a_full_queue_is_news_again_only_after_it_was_not_full_for_a_while() {
        let mut history = QueueHistory::default();
        let mut news = |second, address| history.is_news(at(second), address);
        assert!(news(0, "a") && news(0, "b"));
        // It stays full for three minutes.
        assert!((1..180).all(|second| !news(second, "a")));
        assert!(!news(179 + 59, "a"), "it was clear for 59 s");
        assert!(news(179 + 59 + 60, "a"));
        assert!(news(179 + 59 + 60, "b"), "each address counts for itself");
    }

    #[test]
    fn the_addresses_that_are_remembered_are_bounded_and_the_latest_are_kept() {
        let mut history = QueueHistory::default();
        for number in 0..1000 {
            assert!(history.is_news(at(number), &number.to_string()));
        }
        assert_eq!(history.full.len(), MAX_FULL);
        assert!(!history.is_news(at(1000), "999"));
        assert!(history.is_news(at(1000), "0"));
    }
}
