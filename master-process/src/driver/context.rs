//! What all parts of the driver use: the clock, the watches, the deferred operations, and the state of the workers.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::causes::{Asked, Before, Causes};
use super::workers::{CallListeners, Entry, Workers};
use crate::control::Journal;
use crate::metrics::{Inspector, Meter};
use crate::policy::{Event, Settings, Supervisor, Time, WorkerId};
use crate::report::ExitReport;
use crate::share::Broker;
use crate::sys::pidfd::Death;
use crate::sys::poller::Poller;
use crate::sys::seccomp::Notification;
use crate::tree::Trees;

/// How soon an operation is tried again that failed because a resource was missing.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(100);

/// The number of attempts to remove a cgroup. The wait doubles after each attempt; together the attempts take minutes.
/// A process that is blocked in the kernel must not wake the supervisor forever: the end of another worker triggers the
/// next attempt.
const CGROUP_ATTEMPTS: u32 = 11;

/// A source of events. A serial is never reused, so a late completion cannot reach another worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// The notify socket.
    Messages,
    /// The seccomp listener of the worker with this serial.
    Calls(u64),
    /// The readiness pipe of the worker with this serial.
    ReadyPipe(u64),
    /// Results of the helper thread of the sockets.
    Scans,
    /// Results of the helper thread of the process trees.
    Trees,
    /// Results of the inspector, about a worker that is over a limit.
    Inspected,
    /// The source of the samples was chosen.
    Measuring,
    /// Samples that the kernel reports.
    Samples,
    /// The queues of the sockets that workers listen on.
    Queues,
    /// Places at the gate.
    Places,
    /// The output of a preload command was sealed.
    Sealed,
    /// The controlling terminal.
    Terminal,
    /// The signalfd.
    Signals,
    /// The pidfd of the worker with this serial.
    Exit(u64),
    /// The control socket.
    Control,
    /// The client of the control socket with this number.
    Client(u64),
    /// The socket of the metrics.
    Metrics,
    /// The client of the metrics with this number.
    Scraper(u64),
    /// What systemd answers about our unit.
    StopTimeout,
    /// The answer of the program that is to take over.
    Upgrade,
}

const KIND_AT: u32 = 56;
const SERIAL: u64 = (1 << KIND_AT) - 1;

impl Token {
    /// Encodes the token as a number that sorts by kind in the order above, so that a worker's messages come before its
    /// end, and what clients of the control socket ask for comes last.
    pub(super) fn encode(self) -> u64 {
        match self {
            Token::Messages => 0,
            Token::Calls(serial) => 1 << KIND_AT | serial,
            Token::ReadyPipe(serial) => 2 << KIND_AT | serial,
            Token::Scans => 3 << KIND_AT,
            Token::Trees => 4 << KIND_AT,
            Token::Inspected => 5 << KIND_AT,
            Token::Measuring => 6 << KIND_AT,
            Token::Samples => 7 << KIND_AT,
            Token::Queues => 8 << KIND_AT,
            Token::Places => 9 << KIND_AT,
            Token::Sealed => 10 << KIND_AT,
            Token::Terminal => 11 << KIND_AT,
            Token::Signals => 12 << KIND_AT,
            Token::Exit(serial) => 13 << KIND_AT | serial,
            Token::Control => 14 << KIND_AT,
            Token::Client(number) => 15 << KIND_AT | number,
            Token::Metrics => 16 << KIND_AT,
            Token::Scraper(number) => 17 << KIND_AT | number,
            Token::StopTimeout => 18 << KIND_AT,
            Token::Upgrade => 19 << KIND_AT,
        }
    }

    pub(super) fn decode(number: u64) -> Token {
        let serial = number & SERIAL;
        match number >> KIND_AT {
            0 => Token::Messages,
            1 => Token::Calls(serial),
            2 => Token::ReadyPipe(serial),
            3 => Token::Scans,
            4 => Token::Trees,
            5 => Token::Inspected,
            6 => Token::Measuring,
            7 => Token::Samples,
            8 => Token::Queues,
            9 => Token::Places,
            10 => Token::Sealed,
            11 => Token::Terminal,
            12 => Token::Signals,
            13 => Token::Exit(serial),
            14 => Token::Control,
            15 => Token::Client(serial),
            16 => Token::Metrics,
            17 => Token::Scraper(serial),
            18 => Token::StopTimeout,
            _last => Token::Upgrade,
        }
    }
}

/// The next check of the times that clients may take.
#[derive(Debug, Default)]
pub(super) struct ClientCheck(Option<Time>);

impl ClientCheck {
    /// Schedules the check for the time when the next client is due, unless an earlier one is scheduled.
    pub(super) fn schedule(&mut self, cx: &mut Context, due: Option<Time>, check: Deferred) {
        let Some(due) = due.filter(|due| self.0.is_none_or(|earlier| *due < earlier)) else { return };
        self.0 = Some(due);
        // A little later, so that one check finds all that are due together.
        cx.schedule(due.since(cx.now()) + Duration::from_millis(100), check);
    }
}

/// Work that is done later, apart from the policy's deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Deferred {
    /// Check whether the queue of the socket with this inode number moves.
    Queue(u64),
    /// Check whether the socket with this inode number is bound or listens. The second value is the number of earlier
    /// checks.
    Pending(u64, u32),
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
    /// Give memory back, if nothing has happened meanwhile.
    Settle,
    /// Check whether the source of the samples was chosen.
    Measuring,
    /// Try the places at the gate.
    TryPlaces,
    /// Measure all workers.
    Sample,
    /// The inspection with this number, of a worker that is over a limit, has timed out.
    Inspection(u64),
    /// Answer a call of the worker with this serial that could not be answered before.
    Call(u64, Notification),
    /// Check whether clients of the control socket take too long.
    Clients,
    /// Accept clients of the control socket again: there were many, or no descriptor was left.
    Accept,
    /// Check whether clients of the metrics take too long.
    Scrapers,
    /// Accept clients of the metrics again, likewise.
    AcceptScrapers,
    /// Feed the service manager's watchdog.
    Watchdog,
    /// Send the messages to the service manager that found its queue full.
    ManagerRetry,
    /// Compare the listeners that the service manager keeps with those that it should keep.
    ManagerStore,
    /// systemd has not answered about our unit.
    StopTimeout,
    /// Tell the service manager the state in a sentence.
    ManagerStatus,
    /// Check whether the terminal is gone. A SIGHUP waits for the result.
    Hangup,
    /// Check which other children were stopped.
    Stops,
    /// Reap more of the processes that have ended.
    Reap,
    /// Continue this worker, which the terminal has stopped with this signal.
    Resume(WorkerId, i32),
    /// Check whether an upgrade can go on.
    Upgrade,
}

/// All deferred operations, earliest first.
#[derive(Debug, Default)]
pub(super) struct DeferredQueue {
    by_time: BTreeMap<(Time, u64), Deferred>,
    count: u64,
}

impl DeferredQueue {
    pub(super) fn add(&mut self, at: Time, deferred: Deferred) {
        self.count += 1;
        self.by_time.insert((at, self.count), deferred);
    }

    /// All of them with their times, earliest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Time, Deferred)> {
        self.by_time.iter().map(|((at, _), deferred)| (*at, *deferred))
    }
}

/// What all parts of the driver use.
pub(super) struct Context {
    pub(super) policy: Supervisor,
    pub(super) poller: Poller,
    pub(super) workers: Workers,
    pub(super) broker: Broker,
    /// The descriptors on which the workers' intercepted calls arrive.
    pub(super) call_listeners: CallListeners,
    pub(super) trees: Trees,
    pub(super) meter: Meter,
    pub(super) inspector: Inspector,
    epoch: Instant,
    pub(super) deferred: DeferredQueue,
    /// Who asked for what, for the log.
    pub(super) causes: Causes,
    /// What has happened, for `status` and the events.
    pub(super) journal: Journal,
    /// The first process of the preload command that runs.
    pub(super) preload_pid: Option<i32>,
    /// Whether another attempt to remove cgroups is scheduled.
    cgroup_removal_scheduled: bool,
    /// Who has requested an upgrade, and who a reload, in this round.
    requested: (Option<String>, Option<String>),
}

impl Context {
    pub(super) fn new(
        settings: Settings,
        poller: Poller,
        broker: Broker,
        trees: Trees,
        meter: Meter,
    ) -> io::Result<Context> {
        let policy = Supervisor::new(settings, Time::new(Duration::ZERO));
        Context::with_policy((policy, Instant::now()), poller, broker, trees, meter)
    }

    /// The same for a policy whose times have this zero.
    pub(super) fn with_policy(
        (policy, epoch): (Supervisor, Instant),
        poller: Poller,
        broker: Broker,
        trees: Trees,
        meter: Meter,
    ) -> io::Result<Context> {
        Ok(Context {
            policy,
            poller,
            workers: Workers::default(),
            broker,
            call_listeners: CallListeners::default(),
            trees,
            meter,
            inspector: Inspector::new()?,
            epoch,
            deferred: DeferredQueue::default(),
            causes: Causes::default(),
            journal: Journal::default(),
            preload_pid: None,
            cgroup_removal_scheduled: false,
            requested: (None, None),
        })
    }

    /// The zero of all times.
    pub(super) fn epoch(&self) -> Instant {
        self.epoch
    }

    pub(super) fn now(&self) -> Time {
        Time::new(self.epoch.elapsed())
    }

    /// Excludes from the clock the time during which the supervisor was stopped: timeouts do not count it.
    pub(super) fn exclude(&mut self, stopped: Duration) {
        self.epoch += stopped;
    }

    /// Reports an event to the policy.
    pub(super) fn event(&mut self, event: Event) {
        self.policy.handle(self.now(), event);
    }

    /// Reports to the policy what somebody asks for. The log names the cause.
    pub(super) fn request(&mut self, event: Event, cause: String) {
        let before = Before::of(&self.policy);
        if let Event::Stop | Event::Hangup = event {
            self.causes.add(Asked::Stop, cause.clone());
        } else if let Event::Restart(slot) = event {
            self.causes.add(Asked::Restart(slot), cause.clone());
        }
        if event == Event::Reload {
            self.requested.1 = Some(cause.clone());
        }
        self.event(event);
        self.causes.changed(before, Before::of(&self.policy), &cause);
    }

    /// Requests an upgrade in place.
    pub(super) fn request_upgrade(&mut self, cause: String) {
        self.requested.0 = Some(cause);
    }

    /// Takes who has requested an upgrade since the last call, and who a reload.
    pub(super) fn take_upgrade_requests(&mut self) -> (Option<String>, Option<String>) {
        std::mem::take(&mut self.requested)
    }

    /// Watches a descriptor. A failure is logged.
    pub(super) fn watch(&mut self, fd: BorrowedFd<'_>, token: Token) {
        if let Err(error) = self.poller.watch(fd, token.encode()) {
            warn!("cannot watch {token:?}: {error}; its events are not seen");
        }
    }

    /// The time until the loop must run even without an event.
    pub(super) fn until_deadline(&self) -> Option<Duration> {
        let deferred = self.deferred.by_time.first_key_value().map(|((at, _), _)| *at);
        let first = [self.policy.deadline(), deferred, self.broker.deadline()].into_iter().flatten().min();
        first.map(|at| at.since(self.now()))
    }

    /// Schedules an operation after this wait.
    pub(super) fn schedule(&mut self, wait: Duration, deferred: Deferred) {
        let at = self.now().after(wait);
        self.deferred.add(at, deferred);
    }

    /// Takes the next operation that is due.
    pub(super) fn take_due(&mut self, now: Time) -> Option<Deferred> {
        let first = self.deferred.by_time.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// What the supervisors before this one have measured of a worker and its present account does not count.
    pub(super) fn measured_before(&self, entry: &Entry) -> (Duration, u64) {
        let (cpu, peak) = entry.measured_before;
        (if self.meter.counts_from_watch() { cpu } else { Duration::ZERO }, peak)
    }

    /// Records how a worker ended, for the report of its end.
    pub(super) fn record_end(&mut self, worker: WorkerId, death: Option<Death>) {
        let before = self.workers.get(worker.serial).map(|entry| self.measured_before(entry));
        let (cpu_before, peak_before) = before.unwrap_or_default();
        let sampled =
            self.meter.usage(worker).map(|(usage, _)| cpu_before + Duration::from_nanos(usage.cpu_ns));
        let exact = death.map(|death| death.cpu);
        self.journal.add_cpu(worker.slot, sampled.max(exact).unwrap_or_default());
        let mut details = self.meter.ended(worker);
        details.peak_memory = details.peak_memory.max(Some(peak_before).filter(|peak| *peak > 0));
        self.inspector.forget(worker);
        let met = self.trees.limits_met(worker.serial);
        self.workers.ended(worker.serial, ExitReport::new(death, details).at_limits(met));
    }

    /// Schedules another attempt to remove the cgroups of workers that are gone, if any are left.
    pub(super) fn schedule_cgroup_removal(&mut self) {
        if self.trees.has_emptied() && !self.cgroup_removal_scheduled {
            self.cgroup_removal_scheduled = true;
            self.schedule(RETRY_AFTER, Deferred::Cgroups(0));
        }
    }

    pub(super) fn remove_cgroups(&mut self, attempts: u32) {
        let attempts = attempts + 1;
        self.cgroup_removal_scheduled = self.trees.remove_cgroups() && attempts < CGROUP_ATTEMPTS;
        if self.cgroup_removal_scheduled {
            self.schedule(RETRY_AFTER * 2u32.saturating_pow(attempts), Deferred::Cgroups(attempts));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_ring_and_sorts_by_kind() {
        let all = [
            Token::Messages,
            Token::Calls(7),
            Token::ReadyPipe(7),
            Token::Scans,
            Token::Trees,
            Token::Inspected,
            Token::Measuring,
            Token::Samples,
            Token::Queues,
            Token::Places,
            Token::Sealed,
            Token::Terminal,
            Token::Signals,
            Token::Exit(SERIAL),
            Token::Control,
            Token::Client(SERIAL),
            Token::Metrics,
            Token::Scraper(SERIAL),
            Token::StopTimeout,
            Token::Upgrade,
        ];
        let numbers = all.map(Token::encode);
        assert!(numbers.is_sorted());
        assert_eq!(numbers.map(Token::decode), all);
    }
}
