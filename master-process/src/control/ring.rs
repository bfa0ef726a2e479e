//! The recent events, in as little memory as they need.

use std::collections::VecDeque;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::event::Event;
use super::journal::End;
use super::snapshot::{EndReason, FailedReload};

/// The events that are kept. All slots of a mid-sized reload fit: a reader that is as slow as a whole reload misses none.
/// More would cost memory in each supervisor that has run for a while.
const EVENTS: usize = 256;

/// What has happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum What {
    /// A worker runs.
    Started { slot: u32, pid: i32, generation: u32 },
    /// A worker is ready. `replaces`: the pid of the worker that it replaces.
    Ready { slot: u32, pid: i32, after_ms: u32, replaces: Option<i32> },
    /// A worker does not accept the connections that wait for it.
    Hung { slot: u32, pid: i32, address: Box<str>, queued: u32 },
    /// A hung worker accepts again.
    Accepting { slot: u32, pid: i32 },
    /// A worker exceeds a limit.
    OverLimit { slot: u32, pid: i32, limit: Box<str>, used: u64, most: u64 },
    /// A worker gets no new connections.
    Draining { slot: u32, pid: i32 },
    /// A worker has ended.
    Ended(Box<Ended>),
    /// A worker could not be started.
    StartFailed { slot: u32, message: Box<str> },
    /// The throttle delays the next start of a slot.
    Throttled { slot: u32, wait_ms: u32 },
    /// A preload command is complete.
    Preloaded { generation: u32, bytes: u64, took_ms: u32 },
    /// A preload command failed.
    PreloadFailed { generation: u32, message: Box<str> },
    /// A reload began.
    ReloadBegun { reload: u32, slots: u32, by: Box<str> },
    /// A slot was reloaded.
    SlotDone { reload: u32, slot: u32 },
    /// A reload is complete.
    ReloadComplete { reload: u32, took_ms: u32 },
    /// A reload was given up.
    ReloadGivenUp { reload: u32, error: Box<FailedReload> },
    /// A newer reload took the place of one.
    ReloadSuperseded { reload: u32, by: u32 },
    /// A slot is being restarted.
    RestartBegun { slot: u32, pid: Option<i32>, by: Box<str> },
    /// A slot was restarted.
    RestartComplete { slot: u32, pid: i32 },
    /// The restart of a slot was given up.
    RestartGivenUp { error: Box<FailedReload> },
    /// The number of workers changed.
    Scaled { from: u32, to: u32, by: Box<str> },
    /// The supervisor was started.
    SupervisorStarted,
    /// The supervisor stops.
    SupervisorStopping { by: Box<str> },
    /// The limits were paused or resumed.
    LimitsPaused { paused: bool, by: Box<str> },
    /// The source of the measurements was chosen.
    Monitor { source: Box<str> },
    /// Another version of this program has taken over.
    Upgraded { from: Box<str>, to: Box<str>, pause_ms: u32 },
    /// Another version could not take over.
    UpgradeFailed { message: Box<str> },
}

/// The end of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Its slot.
    pub(crate) slot: u32,
    /// Its pid.
    pub(crate) pid: i32,
    /// Why it was replaced.
    pub(crate) reason: EndReason,
    /// How it ended.
    pub(crate) end: End,
    /// How long it served without new connections before the stop signal.
    pub(crate) drained_ms: Option<u32>,
    /// The time from the stop signal to its end.
    pub(crate) stopped_ms: Option<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    at: SystemTime,
    what: What,
}

/// The recent events.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Ring {
    records: VecDeque<Record>,
    /// The number of the last event; the first one is 1.
    last: u64,
}

/// What follows a place in the sequence of events.
#[derive(Debug)]
pub(crate) enum Next {
    /// An event.
    Event(Box<Event>),
    /// Events that are no longer kept: their count.
    Missed(u64),
    /// Nothing yet.
    End,
}

impl Ring {
    pub(super) fn push(&mut self, at: SystemTime, what: What) {
        if self.records.len() == EVENTS {
            self.records.pop_front();
        }
        self.records.push_back(Record { at, what });
        self.last += 1;
    }

    /// The number of the last event; 0 if there was none.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    fn first(&self) -> u64 {
        self.last + 1 - u64::try_from(self.records.len()).unwrap_or_default()
    }

    /// The event after `seq`, or the number of those that are no longer kept, and the place after it.
    pub(crate) fn after(&self, seq: u64) -> (Next, u64) {
        let (wanted, first) = (seq + 1, self.first());
        if wanted > self.last {
            return (Next::End, seq.min(self.last));
        }
        if wanted < first {
            return (Next::Missed(first - wanted), first - 1);
        }
        let at = usize::try_from(wanted - first).unwrap_or(usize::MAX);
        match self.records.get(at) {
            Some(record) => (Next::Event(Box::new(Event::of(wanted, record.at, &record.what))), wanted),
            None => (Next::End, seq),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(ring: &mut Ring, count: u64) {
        (0..count).for_each(|_| ring.push(SystemTime::UNIX_EPOCH, What::SupervisorStarted));
    }

    #[test]
    fn numbers_have_no_gaps_and_what_is_gone_is_counted() {
        let mut ring = Ring::default();
        assert!(matches!(ring.after(0), (Next::End, 0)));
        assert!(matches!(ring.after(7), (Next::End, 0)), "a number that is not reached yet");
        push(&mut ring, 2);
        let (Next::Event(event), 1) = ring.after(0) else { unreachable!("the first") };
        assert_eq!(event.seq, 1);
        assert!(matches!(ring.after(2), (Next::End, 2)));
        let most = u64::try_from(EVENTS).expect("small");
        push(&mut ring, most);
        assert!(matches!(ring.after(0), (Next::Missed(2), 2)));
        let (Next::Event(event), 3) = ring.after(2) else { unreachable!("the oldest") };
        assert_eq!(event.seq, 3);
        assert_eq!(ring.last(), most + 2);
    }

    #[test]
    fn a_record_is_small() {
        assert!(size_of::<Record>() <= 64, "{}", size_of::<Record>());
    }
}
