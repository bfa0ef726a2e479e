//! Work that is done later, apart from the policy's deadlines.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{info, warn};

use super::{Driver, Token};
use crate::metrics::TIME_OUT;
use crate::policy::{Time, WorkerId};
use crate::share::{CLOSE_CHECK, Report, Watch};
use crate::sys::seccomp::Notification;

/// How soon a queue is examined after a connection arrived, and how often while a connection waits. It limits the cost
/// of a busy socket to one wake-up in this time, however many connections arrive.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// How soon after a worker was added to the rotation its registered sockets are compared with its open descriptors. A
/// program that only probed a port has closed it by then. Clients of that port hang for this long.
const SWEEP_AFTER: Duration = Duration::from_secs(2);

/// How soon the result of a `bind` that the kernel executes is checked: the kernel needs microseconds. Each further
/// check waits twice as long.
const UNSETTLED_AFTER: Duration = Duration::from_millis(1);

/// The number of checks. A program that binds in order to connect does so within a few seconds. A program that listens
/// late must not wake the supervisor forever.
const LOOKS_AT_UNSETTLED: u32 = 13;

/// The time that the helper thread has to kill a worker with its process tree.
const KILLED_AFTER: Duration = Duration::from_millis(250);
/// How soon a late start is checked. Each further check waits twice as long, up to 64 ms. That is short compared with
/// the time the start has taken by then.
const START_AFTER: Duration = Duration::from_millis(1);
const DOUBLINGS_OF_START: u32 = 6;

/// How soon an operation is tried again that failed because a resource was missing.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A deferred operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deferred {
    /// Check whether the queue of the socket with this inode number moves.
    Queue(u64),
    /// Check whether the socket with this inode number is bound or listens. The second value is the number of earlier
    /// checks.
    Unsettled(u64, u32),
    /// Check whether workers still have their listeners open.
    CheckListeners,
    /// Compare the registered sockets of the worker with this serial with its open descriptors.
    Sweep(u64),
    /// Kill the first process of the worker with this serial, in case the helper thread has not killed the process
    /// tree.
    KillFirst(u64),
    /// Check which processes are left of the worker with this serial, whose first process has ended.
    Remains(u64),
    /// Remove the cgroups of workers that are gone. The value is the number of earlier attempts.
    Cgroups(u32),
    /// Check whether the worker with this serial, which went into the background, listens. The second value tells
    /// whether it was not ready then.
    Background(u64, bool),
    /// Check whether the worker with this serial, which has ended, can now be reaped.
    Exit(u64),
    /// Check whether the start of the worker with this serial is finished. The second value is the number of earlier
    /// checks.
    Start(u64, u32),
    /// Measure all workers.
    Sample,
    /// The inspection with this number, of a worker that is over a limit, has timed out.
    Inspection(u64),
    /// Answer a call of the worker with this serial that could not be answered before.
    Call(u64, Notification),
    /// Check whether the terminal is gone. A SIGHUP waits for the result.
    Hangup,
    /// Check which other children were stopped.
    Stops,
    /// Reap more of the processes that have ended.
    Reap,
    /// Continue this worker, which the terminal has stopped with this signal.
    Resume(WorkerId, i32),
}

impl Deferred {
    /// The time from scheduling until it is due. `interval` is the sample interval.
    fn wait(self, interval: Duration) -> Duration {
        match self {
            Deferred::Sample => interval,
            Deferred::Reap => Duration::ZERO,
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

/// All deferred operations, earliest first.
#[derive(Debug, Default)]
pub(super) struct DeferredQueue {
    by_time: BTreeMap<(Time, u64), Deferred>,
    count: u64,
}

impl DeferredQueue {
    /// The time at which the next one is due.
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
    /// Schedules an operation after its usual wait.
    pub(super) fn schedule(&mut self, deferred: Deferred) {
        self.schedule_in(deferred.wait(self.sampling.interval), deferred);
    }

    /// Schedules an operation after this wait.
    pub(super) fn schedule_in(&mut self, wait: Duration, deferred: Deferred) {
        self.deferred.add(self.now().after(wait), deferred);
    }

    /// Runs the operations that are due.
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
                    // The sockets that only its predecessor served are kept as long as the predecessor may come back.
                    Some(slot) if self.policy.is_on_probation(slot) => self.schedule(deferred),
                    Some(_) | None => self.broker.sweep(now, serial),
                },
                Deferred::KillFirst(serial) => self.kill_first(serial),
                Deferred::Remains(serial) => self.look_at_remains(serial),
                Deferred::Cgroups(tries) => self.remove_cgroups(tries),
                Deferred::Background(serial, was_starting) => self.check_daemon(serial, was_starting),
                Deferred::Inspection(number) => self.abandon_inspection(number),
                Deferred::Exit(serial) => self.worker_ended(serial),
                Deferred::Start(serial, looks) => self.look_at_start(serial, looks),
                Deferred::Call(serial, call) => self.reply_to(serial, &call),
                Deferred::Hangup => self.continue_hang_up(),
                Deferred::Stops => self.look_at_stops(),
                Deferred::Reap => {
                    self.reap_scheduled = false;
                    self.reap_orphans();
                }
                Deferred::Resume(worker, number) => self.resume(worker, number),
            }
        }
    }

    /// Handles the events of sockets: connections arrived, or the sockets were shut down.
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

    /// Handles the consequences of socket sharing: watches new queues, schedules checks of pending binds, and logs the
    /// reports.
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
            self.log_report(&report);
        }
    }

    fn log_report(&mut self, report: &Report) {
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
