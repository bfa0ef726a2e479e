//! What is to be done a moment later, apart from the policy's deadlines.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{info, warn};

use super::{Driver, Token};
use crate::metrics::TIME_OUT;
use crate::policy::{Time, WorkerId};
use crate::share::{CLOSE_CHECK, Report, Watch};
use crate::sys::seccomp::Notification;

/// How long after somebody came a queue is looked at, and how often while somebody waits. It bounds what a
/// busy socket costs us: one wake-up in this time, however many connections come.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// How long after it began to serve a worker's sockets are held against what it has open. A program that only
/// tried a port out has closed it by then; clients of that port hang for so long.
const SWEEP_AFTER: Duration = Duration::from_secs(2);

/// How soon a `bind` that was let go on is looked after: it takes the kernel microseconds. Each further look waits twice as
/// long.
const UNSETTLED_AFTER: Duration = Duration::from_millis(1);

/// A program that binds in order to connect does so within a few seconds; one that is slow to listen must not keep us
/// awake.
const LOOKS_AT_UNSETTLED: u32 = 13;

/// How long the helper thread may take to kill a worker with all of its tree.
const KILLED_AFTER: Duration = Duration::from_millis(250);
/// How soon a start that is late is looked after. Each further look waits twice as long, up to 64 ms: little against
/// what it has taken by then.
const START_AFTER: Duration = Duration::from_millis(1);
const DOUBLINGS_OF_START: u32 = 6;

/// How long what failed for want of a resource waits.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Something for later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deferred {
    /// See whether the queue of the socket with this inode number moves.
    Queue(u64),
    /// See whether the socket with this inode number is bound, or listens, by now; it was so often.
    Unsettled(u64, u32),
    /// See whether workers still have their listeners open.
    CheckListeners,
    /// See what the worker of this serial really holds.
    Sweep(u64),
    /// Kill the first process of the worker of this serial, which was to be killed with all of its tree.
    KillFirst(u64),
    /// See who is left of the worker of this serial, whose first process is gone.
    Remains(u64),
    /// Remove the cgroups of workers that are gone; it was tried so often.
    Cgroups(u32),
    /// See whether the worker of this serial, which went into the background, serves; whether it was not ready then.
    Background(u64, bool),
    /// See whether the worker of this serial, which has ended and cannot be reaped, can be now.
    Exit(u64),
    /// See whether the start of the worker of this serial is over; it was not so often.
    Start(u64, u32),
    /// Measure all workers.
    Sample,
    /// The look of this number at a worker that is over a limit has taken too long.
    Inspection(u64),
    /// Answer a call of the worker of this serial, which could not be answered.
    Call(u64, Notification),
    /// See whether the terminal is gone, which a SIGHUP waits for.
    Hangup,
    /// See which other children were stopped.
    Stops,
    /// Let this worker, which the terminal has stopped by this signal, try again.
    Resume(WorkerId, i32),
}

impl Deferred {
    /// How long after it was left it is to be done; `interval` is that of the samples.
    fn wait(self, interval: Duration) -> Duration {
        match self {
            Deferred::Sample => interval,
            Deferred::Start(_, looks) => START_AFTER * 2u32.saturating_pow(looks.min(DOUBLINGS_OF_START)),
            Deferred::Queue(_) => LOOK_AFTER,
            Deferred::Unsettled(_, looks) => {
                UNSETTLED_AFTER * 2u32.saturating_pow(looks.min(LOOKS_AT_UNSETTLED))
            }
            Deferred::CheckListeners => CLOSE_CHECK,
            Deferred::Sweep(_) => SWEEP_AFTER,
            Deferred::KillFirst(_) => KILLED_AFTER,
            Deferred::Remains(_) => super::remains::LOOK_AGAIN,
            Deferred::Cgroups(tries) => AGAIN_AFTER * 2u32.saturating_pow(tries),
            Deferred::Background(..) => super::remains::ANSWERED_WITHIN,
            Deferred::Inspection(_) => TIME_OUT,
            Deferred::Exit(_)
            | Deferred::Call(..)
            | Deferred::Hangup
            | Deferred::Stops
            | Deferred::Resume(..) => AGAIN_AFTER,
        }
    }
}

/// All of them, the earliest first.
#[derive(Debug, Default)]
pub(super) struct DeferredQueue {
    by_time: BTreeMap<(Time, u64), Deferred>,
    count: u64,
}

impl DeferredQueue {
    /// When the next one is due.
    pub(super) fn first(&self) -> Option<Time> {
        self.by_time.first_key_value().map(|((at, _), _)| *at)
    }

    fn add(&mut self, at: Time, deferred: Deferred) {
        self.count += 1;
        self.by_time.insert((at, self.count), deferred);
    }

    fn due(&mut self, now: Time) -> Option<Deferred> {
        let first = self.by_time.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

impl Driver {
    /// Leaves something for later.
    pub(super) fn schedule(&mut self, deferred: Deferred) {
        self.schedule_in(deferred.wait(self.sampling.interval), deferred);
    }

    /// The same, after a time of its own.
    pub(super) fn schedule_in(&mut self, wait: Duration, deferred: Deferred) {
        self.deferred.add(self.now().after(wait), deferred);
    }

    /// Does what was left for now.
    pub(super) fn run_due(&mut self) {
        let now = self.now();
        while let Some(deferred) = self.deferred.due(now) {
            match deferred {
                Deferred::Queue(inode) => match self.broker.look_at_queue(now, inode) {
                    Watch::ForConnections => self.broker.watch_queue(inode),
                    Watch::Soon => self.schedule(deferred),
                    Watch::Over => {}
                },
                Deferred::Unsettled(inode, looks) => {
                    if self.broker.look_at_unsettled(now, inode, looks == LOOKS_AT_UNSETTLED) == Watch::Soon {
                        self.schedule(Deferred::Unsettled(inode, looks + 1));
                    }
                }
                Deferred::CheckListeners => {
                    self.broker.check_listeners();
                    self.checks_listeners = false;
                }
                Deferred::Sample => self.sample(),
                Deferred::Sweep(serial) => match self.workers.get(serial).map(|entry| entry.id.slot) {
                    // What its predecessor served alone is kept as long as that may come back.
                    Some(slot) if self.policy.is_on_probation(slot) => self.schedule(deferred),
                    Some(_) | None => self.broker.sweep(now, serial),
                },
                Deferred::KillFirst(serial) => self.kill_first(serial),
                Deferred::Remains(serial) => self.look_at_remains(serial),
                Deferred::Cgroups(tries) => self.remove_cgroups(tries),
                Deferred::Background(serial, was_starting) => self.check_daemon(serial, was_starting),
                Deferred::Inspection(number) => self.give_inspection_up(number),
                Deferred::Exit(serial) => self.worker_ended(serial),
                Deferred::Start(serial, looks) => self.look_at_start(serial, looks),
                Deferred::Call(serial, call) => self.reply_to(serial, &call),
                Deferred::Hangup => self.look_after_hang_up(),
                Deferred::Stops => self.look_at_stops(),
                Deferred::Resume(worker, number) => self.resume(worker, number),
            }
        }
    }

    /// Somebody came to sockets, or they were shut down.
    pub(super) fn read_queues(&mut self) {
        for inode in self.broker.take_queue_events(self.now()) {
            self.schedule(Deferred::Queue(inode));
        }
        self.watch_queues();
    }

    pub(super) fn watch_queues(&mut self) {
        if let Err(error) = self.poller.watch(self.broker.queues(), Token::Queues.encode()) {
            warn!("cannot watch the queues: {error}; a worker that stops accepting may go unnoticed");
        }
    }

    /// Does what followed from sharing: watches new queues, looks after what is under way, tells what came up.
    pub(super) fn after_sharing(&mut self) {
        let now = self.now();
        self.broker.reconcile(now);
        let policy = &self.policy;
        self.broker.abandon_slots(now, |slot| policy.expects_start(slot) || policy.is_on_probation(slot));
        for inode in self.broker.take_unsettled() {
            self.schedule(Deferred::Unsettled(inode, 0));
        }
        if !self.checks_listeners && self.broker.wants_check(now) {
            self.checks_listeners = true;
            self.schedule(Deferred::CheckListeners);
        }
        for report in self.broker.take_reports() {
            self.tell(&report);
        }
    }

    fn tell(&mut self, report: &Report) {
        match report {
            Report::Listening { address } | Report::Closed { address } => info!(address, "{report}"),
            Report::Unwatched { .. } => warn!("{report}"),
            Report::NotSelected { address, .. }
            | Report::NotRenamed { address, .. }
            | Report::Held { address, .. }
            | Report::TakenOver { address, .. } => {
                warn!(address, "{report}");
            }
            Report::Refused { worker, address, .. }
            | Report::Stalled { worker, address, .. }
            | Report::Bypassed { worker, address }
            | Report::Unshared { worker, address } => {
                warn!(worker = worker.slot, address, "{} {report}", self.name(*worker));
            }
            Report::TooManyListeners { worker, .. } => {
                warn!(worker = worker.slot, "{} {report}", self.name(*worker));
            }
            Report::Accepts { worker, address } => {
                info!(worker = worker.slot, address, "{} {report}", self.name(*worker));
            }
            Report::Unseen { worker, .. } => {
                if self.listeners.warn_once() {
                    let worker_name = self.name(*worker);
                    warn!(
                        worker = worker.slot,
                        "{worker_name}: {report}; further such calls are not reported"
                    );
                }
            }
        }
    }
}
