//! The one loop: it waits, tells the policy what happened, and does what the policy wants.
//!
//! From [`Driver::run`] on, nothing that a worker, a client or the kernel does ends the supervisor: what may
//! pass is tried again, what will not is reported.

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

/// So many starts are made before the loop looks what else has happened: a start takes a fraction of a
/// millisecond, and the workers that run already must not wait for ten thousand others.
const STARTS_AT_ONCE: u32 = 8;

/// How a run ended.
#[derive(Debug)]
pub enum Ending {
    /// The user wanted it so.
    Stopped,
    /// Too many early deaths.
    GaveUp,
    /// The very first start failed.
    CannotStart(SpawnError),
}

/// The supervisor at work.
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
    /// Whether a round of checks of the workers' listeners is to come.
    checks_listeners: bool,
    trees: Trees,
    /// Whether the removal of cgroups is to be tried again.
    removes_cgroups: bool,
    /// Workers whose first process is gone while others of them live.
    remainders: Remainders,
    /// Workers that went into the background, and that are being looked at whether they listen.
    daemons_looked_at: HashSet<u64>,
    /// Killed without their workers being known, and not all gone when those were.
    dying_groups: Vec<(OwnedFd, Pid)>,
    stop_signal: i32,
    /// Why all workers are to stop, for the log.
    stop_cause: String,
    /// Whether the stop signal goes to everybody of a worker.
    stops_trees: bool,
    ready_timeout: Duration,
    memory_high_signal: Option<i32>,
    meter: Meter,
    inspector: Inspector,
    sampling: Sampling,
    greeting: Option<Greeting>,
    starts: Starts,
    /// Why starts failed that are not reported yet, by the worker's serial.
    failures: HashMap<u64, SpawnError>,
    /// Why the very first start failed, where that ends the run.
    first_failure: Option<SpawnError>,
}

struct Greeting {
    workers: u32,
    shares: bool,
    /// What measures the workers, and why that.
    measures: Option<String>,
}

impl Driver {
    /// Takes everything in place; nothing runs yet. `cgroups` are those of [`cgroups`].
    ///
    /// # Errors
    /// What the kernel refuses of the few things that nothing works without, with the call's name.
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
            remainders: Remainders::new(),
            daemons_looked_at: HashSet::new(),
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

    /// Runs until the policy has come to an end and no worker is left.
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
            unfinished |= self.tell_complete();
            if let Some(outcome) = self.policy.outcome() {
                self.outlive_all();
                self.leave_terminal();
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
            // What a worker said before it died is heard before its death: tokens sort by kind.
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

    /// Watches a descriptor; a failure is the ring's, and the next wait reports it.
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

    /// Does what the policy wants; true when some of it is left for the next round.
    fn carry_out(&mut self) -> bool {
        let mut starts = 0;
        while starts < STARTS_AT_ONCE {
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
                    // In a moment it is looked at once, and then left alone.
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

    /// Asks a worker to leave. One that is stopped, by a terminal for example, must run to hear it.
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

    /// Everybody of a worker. Who descends from whom is known only as long as the first process lives: so that is killed
    /// with the others, or by itself where that takes too long.
    fn kill(&mut self, worker: WorkerId) {
        if self.kill_remains(worker) || self.workers.get(worker.serial).is_none() {
            return;
        }
        let hints = self.meter.processes_of(worker);
        self.trees.signal(worker.serial, libc::SIGKILL, hints);
        self.schedule(Deferred::KillFirst(worker.serial));
    }

    /// The first process of a worker, and its process group: it may have left that.
    fn kill_first(&self, serial: u64) {
        let Some(entry) = self.workers.get(serial).filter(|entry| !entry.reaped) else { return };
        let worker = entry.id;
        if let Err(error) = pidfd::kill_group(entry.pidfd.as_fd(), entry.pid) {
            self.failed_to_signal(worker, &error);
        }
        self.signal(worker, libc::SIGKILL);
    }

    fn failed_to_signal(&self, worker: WorkerId, error: &io::Error) {
        // Gone already: its death is on its way to us.
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

    /// Says what is to be said of workers that are not ready in time, and where they do not listen; `false`: it is about
    /// something else.
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

/// io_uring, or epoll where that is not to be had or the user wants it so.
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
