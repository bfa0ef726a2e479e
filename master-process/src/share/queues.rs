//! The accept queues of the listeners that we hold, summed for each worker and each slot, and their check.
//!
//! A queue is read when somebody asks, and by the check that follows a connection. Nothing here sets a timer.

#[cfg(test)]
mod tests;

use super::copies::Copies;
use super::core::{Socket, SocketId};
use super::queue_history::{Reading, is_full};
use super::scans::{Question, Requested, Scans};
use super::sockets::Sockets;
use crate::policy::Time;
use crate::sys::accept_queue::AcceptQueue;
use crate::sys::queue_watch::QueueWatch;
use crate::sys::sockets;

/// The number of queues that one call reads, divided among the workers. Each takes about a microsecond, in which the
/// loop waits, and a worker decides how many listeners it has.
const MAX_READ: usize = 4096;

/// The number of queues that are read of each worker, however many workers there are. Most programs have one or two.
const MIN_READ_PER_WORKER: usize = 4;

/// The number of queues from which on one counter of the network namespace is read first. If it has not grown, the
/// queues' own counters need not be read, which saves half of the system calls; it takes as long as about a hundred of
/// them.
const MANY: usize = 256;

/// The queues of a worker or of a slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueTotals {
    /// The number of connections that wait, in all of its queues.
    pub length: u64,
    /// The queue with the least room in proportion. Its limit is the one to show.
    pub fullest: AcceptQueue,
    /// The packets that its TCP listeners have dropped: of a worker, since its listeners were opened; of a slot, since
    /// the supervisor started. `None`: it has no TCP listener. A Unix socket drops nothing: its clients wait, or get
    /// EAGAIN.
    pub drops: Option<u64>,
    /// Whether some of its queues are also those of other workers or slots.
    pub is_shared: bool,
    /// The number of its listeners whose queue was not read: it has very many, or the kernel does not list them.
    pub unread: usize,
    /// Since when connections wait, none of which is accepted: the worker hangs. It is known only of TCP listeners that
    /// one worker has.
    pub stalled_since: Option<Time>,
    read: usize,
}

impl QueueTotals {
    fn add(&mut self, reading: Option<&Reading>, is_shared: bool) {
        let Some(reading) = reading else {
            self.unread += 1;
            return;
        };
        self.read += 1;
        self.length += u64::from(reading.queue.length);
        if self.read == 1 || reading.queue.is_fuller_than(self.fullest) {
            self.fullest = reading.queue;
        }
        if let Some(drops) = reading.drops {
            *self.drops.get_or_insert(0) += u64::from(drops);
        }
        self.is_shared |= is_shared;
        self.stalled_since = [self.stalled_since, reading.stalled_since].into_iter().flatten().min();
    }
}

/// Totals by serial or by slot, in the order of these: with a thousand workers a map takes several times the memory, which nothing
/// else needs.
#[derive(Debug, Default)]
struct Table<K> {
    keys: Vec<K>,
    totals: Vec<QueueTotals>,
}

impl<K: Ord + Copy> Table<K> {
    /// With totals of nothing.
    fn new(mut keys: Vec<K>) -> Table<K> {
        keys.sort_unstable();
        keys.dedup();
        let totals = vec![QueueTotals::default(); keys.len()];
        Table { keys, totals }
    }

    fn get(&self, key: K) -> Option<&QueueTotals> {
        self.totals.get(self.keys.binary_search(&key).ok()?)
    }

    fn get_mut(&mut self, key: K) -> Option<&mut QueueTotals> {
        self.totals.get_mut(self.keys.binary_search(&key).ok()?)
    }
}

/// The accept queues of all workers at one moment.
#[derive(Debug, Default)]
pub struct AcceptQueues {
    workers: Table<u64>,
    slots: Table<u32>,
    /// The number of connections that wait, in all queues. A queue of several workers counts once.
    pub length: u64,
    /// The packets that all TCP listeners have dropped since the supervisor started, counted once.
    pub drops: u64,
    /// Whether a queue that gets new connections is full: the instance is not ready for more.
    pub is_any_full: bool,
}

impl AcceptQueues {
    /// The queues of a worker; `None` if no queue of it can be read, as with `--share off`.
    #[must_use]
    pub fn worker(&self, serial: u64) -> Option<&QueueTotals> {
        self.workers.get(serial).filter(|totals| totals.read > 0)
    }

    /// The queues of a slot: those of its workers, and those that wait for its next worker, each counted once. `None`
    /// as for a worker.
    #[must_use]
    pub fn slot(&self, slot: u32) -> Option<&QueueTotals> {
        self.slots.get(slot).filter(|totals| totals.read > 0)
    }
}

/// Whether a socket has an accept queue.
fn has_queue(socket: &Socket) -> bool {
    socket.active && !socket.key.is_datagram()
}

fn is_unix_listener(socket: &&Socket) -> bool {
    has_queue(socket) && !socket.key.has_group()
}

/// What is read of the TCP listeners in whose queue nothing waits and whose limit is known, without a call for each. Those that are
/// watched and have no event are idle; one system call for all others takes a tenth of the time of a call for each. It is in
/// the order of the sockets that have a queue, and `None` for the rest.
fn idle_queues(sockets: &[Socket], copies: &Copies, watch: &QueueWatch) -> Vec<Option<Reading>> {
    let events = watch.peek();
    let has_event = |id: SocketId| events.as_ref().is_none_or(|events| events.contains(&id));
    let count = sockets.len().min(MAX_READ);
    let (mut readings, mut asked) = (Vec::with_capacity(count), Vec::new());
    for socket in sockets.iter().filter(|socket| has_queue(socket)).take(MAX_READ) {
        let open = copies.get(socket.id).filter(|_| socket.key.has_group());
        let reading = open.and_then(|open| Reading::idle(socket, open));
        if let Some(open) =
            open.filter(|open| reading.is_some() && (!open.is_watched || has_event(socket.id)))
        {
            asked.push((readings.len(), open.fd()));
        }
        readings.push(reading);
    }
    if asked.is_empty() {
        return readings;
    }
    let (places, fds): (Vec<usize>, Vec<_>) = asked.into_iter().unzip();
    for (place, is_idle) in places.into_iter().zip(sockets::idle_listeners(&fds)) {
        if !is_idle && let Some(reading) = readings.get_mut(place) {
            *reading = None;
        }
    }
    readings
}

impl Sockets {
    /// The accept queues of all workers. Reads at most 4,096 queues, or four of each worker.
    pub(super) fn accept_queues(&mut self, now: Time) -> AcceptQueues {
        let Sockets { core, copies, history, reports, queues, .. } = self;
        let workers = core.workers();
        let mut everyone: Vec<(u64, u32)> =
            workers.iter().map(|worker| (worker.id.serial, worker.id.slot)).collect();
        everyone.sort_unstable();
        let (serials, slots_of): (Vec<u64>, Vec<u32>) = everyone.into_iter().unzip();
        let awaiting = core.sockets().iter().flat_map(|socket| &socket.awaited_by);
        let all_slots = slots_of.iter().chain(awaiting).copied().collect();
        let slot_of = |serial: &u64| slots_of.get(serials.binary_search(serial).ok()?).copied();
        let most = MIN_READ_PER_WORKER.max(MAX_READ / serials.len().max(1));
        let has_room = |totals: Option<&QueueTotals>| totals.is_none_or(|totals| totals.read < most);
        let mut found = AcceptQueues {
            workers: Table::new(serials.clone()),
            slots: Table::new(all_slots),
            ..AcceptQueues::default()
        };
        history.begin(now);
        history.unix.refresh(now, core.sockets().iter().filter(is_unix_listener).map(|socket| socket.id));
        let may_have_dropped = core.sockets().len() < MANY || history.may_have_dropped();
        let mut idle = idle_queues(core.sockets(), copies, queues);
        let mut slots = Vec::new();
        for (at, socket) in core.sockets().iter().filter(|socket| has_queue(socket)).enumerate() {
            // A permanent socket can be one of another network namespace.
            let may_have_dropped = may_have_dropped || socket.permanent;
            // Every worker has the sockets of `--listen`, whether it names them in a call or not.
            let users = if socket.permanent { &serials } else { &socket.users };
            slots.clear();
            slots.extend(users.iter().filter_map(slot_of));
            slots.extend(&socket.awaited_by);
            slots.sort_unstable();
            slots.dedup();
            let is_wanted = socket.permanent
                || users.iter().any(|serial| has_room(found.workers.get(*serial)))
                || (users.is_empty() && slots.iter().any(|slot| has_room(found.slots.get(*slot))));
            let idle = idle.get_mut(at).and_then(Option::take);
            let reading = match idle {
                _ if !is_wanted => None,
                // Most queues of many: nothing is new in them.
                Some(reading) if !may_have_dropped => Some(reading),
                idle => {
                    let reading = history.read(copies, socket, &slots, (idle.is_some(), may_have_dropped));
                    if let (Some(reading), Some(open)) = (&reading, copies.get(socket.id)) {
                        found.length += u64::from(reading.queue.length);
                        found.is_any_full |= is_full(socket, reading.queue);
                        reports.extend(history.report(now, socket, open, workers, reading));
                    }
                    reading
                }
            };
            let waiting = reading.as_ref().map_or(0, |reading| reading.queue.length);
            if socket.permanent && socket.unselected.is_some() && waiting == 0 {
                // The workers have listeners of their own at this address.
                continue;
            }
            for serial in users {
                if let Some(totals) = found.workers.get_mut(*serial) {
                    totals.add(reading.as_ref(), users.len() > 1);
                }
            }
            for slot in &slots {
                if let Some(totals) = found.slots.get_mut(*slot) {
                    totals.add(reading.as_ref(), slots.len() > 1);
                }
            }
        }
        found.drops = history.drops();
        for (slot, totals) in found.slots.keys.iter().zip(&mut found.slots.totals) {
            let counted = history.drops_of(*slot);
            totals.drops = (totals.drops.is_some() || counted > 0).then_some(counted);
        }
        found
    }

    /// Reads a queue that had a connection a moment ago, and reports it if it is or was full. Returns the number of
    /// connections in a TCP queue.
    pub(super) fn note_queue(&mut self, now: Time, id: SocketId) -> u32 {
        let Sockets { core, copies, history, reports, .. } = self;
        let (Some(socket), Some(open)) = (core.socket(id).filter(|socket| has_queue(socket)), copies.get(id))
        else {
            return 0;
        };
        let is_unix = is_unix_listener(&socket);
        if is_unix {
            if !sockets::is_readable(open.fd()) {
                return 0;
            }
            history.unix.refresh(now, core.sockets().iter().filter(is_unix_listener).map(|socket| socket.id));
        }
        let slots: Vec<u32> =
            socket.users.iter().filter_map(|serial| core.workers().slot_of(*serial)).collect();
        let slots = if slots.is_empty() { &socket.awaited_by } else { &slots };
        let Some(reading) = history.read(copies, socket, slots, (false, true)) else { return 0 };
        if let Some(open) = copies.get(id) {
            reports.extend(history.report(now, socket, open, core.workers(), &reading));
        }
        if is_unix { 0 } else { reading.queue.length }
    }

    /// Counts the drops of a worker's listeners for its slot, which it is about to lose.
    pub(super) fn count_drops(&mut self, serial: u64) {
        let Sockets { core, copies, history, .. } = self;
        let Some(slot) = core.workers().slot_of(serial) else { return };
        let is_own =
            |socket: &&Socket| has_queue(socket) && socket.key.has_group() && socket.users == [serial];
        for socket in core.sockets().iter().filter(is_own) {
            if let Some(open) = copies.get_mut(socket.id) {
                history.count_drops(open, &[slot]);
            }
        }
    }

    /// Has a helper thread try whether the kernel lists Unix sockets, for the first Unix listener.
    pub(super) fn try_unix_queues(&mut self, scans: &mut Scans, serial: u64) {
        if self.history.unix.is_untried()
            && scans.request(serial, Question::UnixQueues, None) == Requested::Sent
        {
            self.history.unix.set_trying();
        }
    }
}
