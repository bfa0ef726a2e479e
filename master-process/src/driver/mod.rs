//! The event loop: it waits for events, passes them to the policy, and carries out the policy's actions.
//!
//! From [`Driver::run`] on, no act of a worker, a client or the kernel ends the supervisor. An operation that failed
//! temporarily is tried again; a lasting failure is reported.

mod calls;
mod deferred;
mod exits;
mod launch;
mod messages;
mod remains;
mod samples;
pub mod signals;
mod starts;
mod terminal;
mod token;
mod workers;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use tracing::{info, warn};

use crate::config::{Config, Share, StopGroup};
use crate::metrics::{Inspector, Meter, Question};
use crate::policy::{Action, Event, FailedStart, Outcome, Report, Settings, Supervisor, Time, WorkerId};
use crate::report::{self, ExitReport, Named};
use crate::share::{Broker, InheritedListeners};
use crate::sys::cgroup::Supervisors;
use crate::sys::notify::NotifySocket;
use crate::sys::pidfd;
use crate::sys::poller::Poller;
use crate::sys::signalfd::SignalFd;
use crate::sys::spawn::SpawnError;
use crate::tree::Trees;
use calls::Listeners;
use deferred::{Deferred, DeferredQueue};
use launch::Launcher;
use remains::Remainders;
pub use remains::cgroups;
use samples::Sampling;
use starts::Starts;
use terminal::Tty;
use token::Token;
use workers::Workers;

/// The number of starts before the loop handles other events. A start takes a fraction of a millisecond, and running
/// workers must not wait for ten thousand starts.
const MAX_STARTS_PER_ROUND: u32 = 8;

/// How a run ended.
#[derive(Debug)]
pub enum Ending {
    /// A signal stopped the supervisor.
    Stopped,
    /// Too many workers exited early.
    GaveUp,
    /// The first start of the run failed.
    CannotStart(SpawnError),
}

/// The running supervisor.
pub struct Driver {
    policy: Supervisor,
    epoch: Instant,
    poller: Poller,
    signals: SignalFd,
    tty: Tty,
    notify: NotifySocket,
    launcher: Launcher,
    workers: Workers,
    listeners: Listeners,
    broker: Broker,
    deferred: DeferredQueue,
    /// Whether a check of the workers' listeners is scheduled.
    checks_listeners: bool,
    trees: Trees,
    /// Whether another attempt to remove cgroups is scheduled.
    removes_cgroups: bool,
    /// Whether more of the processes that have ended are to be reaped.
    reap_scheduled: bool,
    /// Workers whose first process has ended while other processes of them live.
    remainders: Remainders,
    /// Workers that went into the background, and whose listeners are being checked.
    daemons_checked: HashSet<u64>,
    /// Process groups that were killed because no process of the worker was found, and that are not empty yet.
    dying_groups: Vec<(OwnedFd, Pid)>,
    stop_signal: i32,
    /// The reason why all workers stop, for the log.
    stop_cause: String,
    /// Whether the stop signal goes to all processes of a worker.
    stops_trees: bool,
    ready_timeout: Duration,
    memory_high_signal: Option<i32>,
    meter: Meter,
    inspector: Inspector,
    sampling: Sampling,
    greeting: Option<Greeting>,
    starts: Starts,
    /// The errors of failed starts that are not reported yet, by the worker's serial.
    failures: HashMap<u64, SpawnError>,
    /// The error of the first start, if it ends the run.
    first_failure: Option<SpawnError>,
}

struct Greeting {
    workers: u32,
    shares: bool,
    /// The source of the measurements, and the reason for the choice.
    measures: Option<String>,
}

impl Driver {
    /// Prepares the supervisor; no worker runs yet. `cgroups` is the result of [`cgroups`].
    ///
    /// # Errors
    /// The errors of the few system calls that the supervisor cannot run without, with the call's name.
    pub fn new(
        config: &Config,
        signals: SignalFd,
        cgroups: Option<Supervisors>,
        mut broker: Broker,
        handed_over: InheritedListeners,
    ) -> anyhow::Result<Driver> {
        use anyhow::Context;
        let mut poller = choose_poller(std::env::var("MASTER_PROCESS_LOOP").ok().as_deref())?;
        let notify = messages::open_notify_socket(config.identity.as_ref()).context("the notify socket")?;
        broker.set_notify_address(&notify.address());
        anyhow::ensure!(
            broker.set_ready_mode(&config.ready),
            "--ready listen:ADDR with --share off: pidfd_getfd(2) is denied here, so the addresses of the workers cannot \
             be seen; let them send READY=1 (--ready notify), or share addresses"
        );
        let launcher = Launcher::new(config, handed_over, &notify)?;
        let trees = Trees::new(cgroups, &notify.address()).context("eventfd")?;
        pidfd::become_subreaper().context("prctl(PR_SET_CHILD_SUBREAPER)")?;
        poller.watch(signals.as_fd(), Token::Signals.encode()).context("watching")?;
        poller.watch(notify.watched(), Token::Messages.encode()).context("watching")?;
        let (meter, measures) = Meter::new(config.monitor, config.account, config.workers)?;
        let settings = Settings::from(config);
        let start = Time::new(Duration::ZERO);
        Ok(Driver {
            policy: Supervisor::new(settings, start),
            epoch: Instant::now(),
            poller,
            tty: Tty::new(config, &signals, start),
            signals,
            notify,
            launcher,
            workers: Workers::default(),
            listeners: Listeners::default(),
            broker,
            deferred: DeferredQueue::default(),
            checks_listeners: false,
            trees,
            removes_cgroups: false,
            reap_scheduled: false,
            remainders: Remainders::new(),
            daemons_checked: HashSet::new(),
            dying_groups: Vec::new(),
            stop_signal: config.stop_signal.0,
            stop_cause: String::new(),
            stops_trees: config.stop_group == StopGroup::Tree,
            ready_timeout: config.ready_timeout,
            memory_high_signal: config.memory_high_signal.map(|signal| signal.0),
            meter,
            inspector: Inspector::new().context("eventfd")?,
            sampling: Sampling::new(config.limits.interval),
            greeting: Some(Greeting {
                workers: config.workers,
                shares: config.share != Share::Off,
                measures,
            }),
            starts: Starts::default(),
            failures: HashMap::new(),
            first_failure: None,
        })
    }

    /// Runs until the policy has an outcome and no worker is left.
    pub fn run(mut self) -> Ending {
        let mut ready = Vec::new();
        self.start_sampling();
        self.watch_terminal();
        self.watch_looks();
        self.watch_inspector();
        self.watch_queues();
        self.watch_trees();
        loop {
            let mut unfinished = self.carry_out();
            self.after_sharing();
            unfinished |= self.report_complete();
            if let Some(outcome) = self.policy.outcome() {
                self.end_remaining_processes();
                self.restore_terminal();
                let failure = self.first_failure.or_else(|| self.failures.into_values().next());
                return match (outcome, failure) {
                    (Outcome::CannotStart, Some(failure)) => Ending::CannotStart(failure),
                    (Outcome::GaveUp, _) => Ending::GaveUp,
                    (Outcome::Stopped | Outcome::CannotStart, _) => Ending::Stopped,
                };
            }
            let limit = if unfinished { Some(Duration::ZERO) } else { self.until_deadline() };
            if let Err(error) = self.poller.wait(limit, &mut ready) {
                warn!("cannot wait for events: {error}; retrying");
                std::thread::sleep(Duration::from_millis(10));
            }
            // A worker's messages are read before its end is handled: tokens sort by kind.
            ready.sort_unstable();
            for token in ready.drain(..) {
                self.dispatch(Token::decode(token));
            }
            self.policy.advance(self.now());
            self.run_due();
        }
    }

    fn now(&self) -> Time {
        Time::new(self.epoch.elapsed())
    }

    fn until_deadline(&self) -> Option<Duration> {
        let first = [self.policy.deadline(), self.deferred.first(), self.broker.deadline()]
            .into_iter()
            .flatten()
            .min();
        first.map(|at| at.since(self.now()))
    }

    fn dispatch(&mut self, token: Token) {
        match token {
            Token::Messages => self.read_messages(),
            Token::Calls(serial) => self.answer_call(serial),
            Token::ReadyPipe(serial) => self.read_ready_pipe(serial),
            Token::Looks => self.read_looks(),
            Token::Trees => self.read_trees(),
            Token::Inspected => self.read_inspection(),
            Token::Queues => self.read_queues(),
            Token::Terminal => self.check_terminal(),
            Token::Signals => self.read_signals(),
            Token::Exit(serial) => self.worker_ended(serial),
        }
    }

    fn event(&mut self, event: Event) {
        self.policy.handle(self.now(), event);
    }

    /// Watches a descriptor. A failure is logged.
    fn watch(&mut self, fd: std::os::fd::BorrowedFd<'_>, token: Token) {
        if let Err(error) = self.poller.watch(fd, token.encode()) {
            warn!("cannot watch {token:?}: {error}; its events are not seen");
        }
    }

    fn watch_signals(&mut self) {
        if let Err(error) = self.poller.watch(self.signals.as_fd(), Token::Signals.encode()) {
            warn!("cannot watch signals: {error}; they are not read");
        }
    }

    /// Carries out the policy's actions. Returns true if some are left for the next round.
    fn carry_out(&mut self) -> bool {
        let mut starts = 0;
        while starts < MAX_STARTS_PER_ROUND {
            let now = self.now();
            let Some(action) = self.policy.next_action(now) else {
                return false;
            };
            match action {
                Action::Launch { worker, generation } => {
                    starts += 1;
                    self.launch(worker, generation);
                }
                Action::Target(target) => self.broker.set_target(now, target),
                Action::AddToRotation(worker) => {
                    self.broker.set_in_rotation(now, worker.serial, true);
                    // Schedules the one comparison of its registered sockets with its open descriptors.
                    self.schedule(Deferred::Sweep(worker.serial));
                }
                Action::RemoveFromRotation(worker) => self.broker.set_in_rotation(now, worker.serial, false),
                Action::CheckQueue(worker) => {
                    let queue = self.broker.queue(worker.serial);
                    self.event(Event::Queue(worker, queue));
                }
                Action::Stop(worker) => {
                    self.broker.set_stopping(now, worker.serial);
                    self.request_stop(worker);
                }
                Action::StopRemains(worker) => self.stop_remains(worker),
                Action::Kill(worker) => self.kill(worker),
                Action::MeasurePss(worker) => self.inspect(worker, Question::Pss),
                Action::LookAtThreads(worker) => self.inspect(worker, Question::Threads),
                Action::SignalHigh(worker) => self.warn_of_memory(worker),
                Action::Report(note) => self.report(&note),
            }
        }
        true
    }

    /// Sends a worker the stop signal, and SIGCONT: a worker that is stopped, by a terminal for example, must run to
    /// receive the signal.
    fn request_stop(&mut self, worker: WorkerId) {
        self.signal(worker, self.stop_signal);
        self.signal(worker, libc::SIGCONT);
        if self.stops_trees {
            let hints = self.meter.processes_of(worker);
            self.trees.signal(worker.serial, self.stop_signal, hints);
        }
    }

    fn signal(&self, worker: WorkerId, number: i32) {
        let Some(entry) = self.workers.get(worker.serial) else { return };
        if let Err(error) = pidfd::signal(entry.pidfd.as_fd(), number) {
            self.failed_to_signal(worker, &error);
        }
    }

    /// Kills all processes of a worker. Their descent is known only while the first process lives, so the helper thread
    /// kills the first process together with the others. If that takes too long, the first process is killed alone.
    fn kill(&mut self, worker: WorkerId) {
        if self.kill_remains(worker) || self.workers.get(worker.serial).is_none() {
            return;
        }
        let hints = self.meter.processes_of(worker);
        self.trees.signal(worker.serial, libc::SIGKILL, hints);
        self.schedule(Deferred::KillFirst(worker.serial));
    }

    /// Kills the first process of a worker, and its process group. The process is killed separately because it may have
    /// left the group.
    fn kill_first(&self, serial: u64) {
        let Some(entry) = self.workers.get(serial).filter(|entry| !entry.reaped) else { return };
        let worker = entry.id;
        if let Err(error) = pidfd::kill_group(entry.pidfd.as_fd(), entry.pid) {
            self.failed_to_signal(worker, &error);
        }
        self.signal(worker, libc::SIGKILL);
    }

    fn failed_to_signal(&self, worker: WorkerId, error: &io::Error) {
        // The process is already gone, and the event of its end follows.
        if error.raw_os_error() != Some(libc::ESRCH) {
            warn!("cannot signal {}: pidfd_send_signal: {error}", self.name(worker));
        }
    }

    fn report(&mut self, note: &Report) {
        if let Report::LaunchFailed { worker, next } = *note {
            return self.report_launch_failure(worker, next);
        }
        if let Report::Stopping { workers } = *note {
            return report::stopping(workers, &self.stop_cause);
        }
        if self.report_not_ready(note) {
            return;
        }
        if let Report::Died { worker, .. } | Report::Left { worker, .. } = *note {
            let Some(entry) = self.workers.take_ended(worker.serial) else {
                return;
            };
            let ended = Named { slot: worker.slot, pid: Some(entry.pid.as_raw_pid()) };
            return report::note(note, |_| ended, &entry.end.unwrap_or_default());
        }
        report::note(note, |id| self.name(id), &ExitReport::default());
    }

    /// Reports workers that are not ready in time, and the addresses on which they do not listen. Returns false if the
    /// report is about something else.
    fn report_not_ready(&self, note: &Report) -> bool {
        let missing = |worker: WorkerId| self.broker.missing(worker.serial);
        match *note {
            Report::Slow { worker, after } => {
                report::slow(self.name(worker), after, missing(worker).as_ref())
            }
            Report::Waits { worker, after } => {
                report::waits(self.name(worker), after, missing(worker).as_ref())
            }
            Report::Late { worker, after, next } => {
                report::late(self.name(worker), after, missing(worker).as_ref(), next);
            }
            Report::ReloadFailed { generation, slot, attempts, cause, kept } => {
                let missing = match cause {
                    FailedStart::Late(worker) => missing(worker),
                    FailedStart::Died | FailedStart::NotLaunched => None,
                };
                let failed = report::FailedReload { generation, slot, attempts, cause, kept };
                report::reload_failed(failed, missing.as_ref());
            }
            Report::Ready { .. }
            | Report::Died { .. }
            | Report::Left { .. }
            | Report::LaunchFailed { .. }
            | Report::Overdue { .. }
            | Report::OverLimit { .. }
            | Report::DefaultDisabled { .. }
            | Report::ReplacementCancelled { .. }
            | Report::Monitoring { .. }
            | Report::WatchesItself { .. }
            | Report::ReloadStarted { .. }
            | Report::ReloadDone { .. }
            | Report::Scaled { .. }
            | Report::Stopping { .. }
            | Report::Killing { .. }
            | Report::GaveUp { .. } => return false,
        }
        true
    }

    fn name(&self, worker: WorkerId) -> Named {
        let pid = self.workers.get(worker.serial).map(|entry| entry.pid.as_raw_pid());
        Named { slot: worker.slot, pid }
    }
}

/// io_uring, or epoll if io_uring is unavailable or the user chose epoll.
fn choose_poller(wish: Option<&str>) -> anyhow::Result<Poller> {
    use anyhow::Context;
    match wish {
        Some("epoll") => return Poller::epoll().context("epoll_create1"),
        Some("io_uring") => return Poller::uring().context("MASTER_PROCESS_LOOP=io_uring: io_uring_setup"),
        None | Some("") => {}
        Some(other) => anyhow::bail!("MASTER_PROCESS_LOOP: {other:?} is neither io_uring nor epoll"),
    }
    Poller::uring().or_else(|error| {
        info!("io_uring unavailable: {error}; using epoll");
        Poller::epoll().context("epoll_create1")
    })
}
