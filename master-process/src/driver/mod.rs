//! The event loop: it waits for events, passes them to the policy, and carries out the policy's actions.
//!
//! From [`Driver::run`] on, no act of a worker, a client or the kernel ends the supervisor. An operation that failed
//! temporarily is tried again; a lasting failure is reported.

mod calls;
mod causes;
mod context;
mod control;
mod daemons;
mod endpoint;
mod exits;
mod fd_store;
mod gate;
mod journal;
mod launch;
mod preload;
mod samples;
mod saved;
mod service_manager;
mod settling;
pub mod signals;
mod snapshot;
mod starts;
mod stop_timeout;
pub mod trial;
mod upgrade;
mod workers;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use tracing::{info, warn};

use crate::config::{Config, Share};
use crate::metrics::{Meter, Question};
use crate::policy::{Action, Event, FailedStart, Outcome, Report, Settings, WorkerId};
use crate::report::{self, ExitReport, Named, Span};
use crate::share::{Broker, InheritedListeners};
use crate::sys::cgroup::Supervisors;
use crate::sys::notify::NotifySocket;
use crate::sys::pidfd;
use crate::sys::poller::Poller;
use crate::sys::signalfd::SignalFd;
use crate::tree::Trees;
use crate::upgrade::OwnProgram;
use calls::Calls;
use causes::Asked;
use context::{Context, Deferred, Token};
pub use control::Control;
pub use endpoint::Endpoint;
use exits::Exits;
pub use exits::cgroups;
use gate::Gate;
use launch::Launcher;
pub use launch::worker_variables;
use samples::Sampling;
pub use saved::Saved;
use service_manager::ServiceManager;
use settling::Settling;
use signals::Signals;
pub use starts::FirstFailure;
use starts::{Greeting, Starts};
use stop_timeout::StopTimeout;
use upgrade::Upgrades;

/// The number of starts before the loop handles other events. A start takes a fraction of a millisecond, and running
/// workers must not wait for ten thousand starts.
const MAX_STARTS_PER_ROUND: u32 = 8;

/// SIGKILL takes effect within microseconds, unless a process is blocked in the kernel.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// How a run ended.
#[derive(Debug)]
pub enum Ending {
    /// A signal stopped the supervisor.
    Stopped,
    /// Too many workers exited early.
    GaveUp,
    /// The first start of the run failed.
    CannotStart(FirstFailure),
    /// Another version of the program is to be started by the service manager.
    Changed,
}

/// The running supervisor.
pub struct Driver {
    cx: Context,
    signals: Signals,
    notify: NotifySocket,
    starts: Starts,
    gate: Gate,
    calls: Calls,
    exits: Exits,
    sampling: Sampling,
    control: Control,
    endpoint: Endpoint,
    manager: ServiceManager,
    stop_timeout: StopTimeout,
    upgrades: Upgrades,
    settling: Settling,
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
        mut inherited: InheritedListeners,
        (control, endpoint): (Control, Endpoint),
    ) -> anyhow::Result<Driver> {
        use anyhow::Context as _;
        let ChosenPoller { mut poller, refused } = choose_poller(std::env::var(LOOP).ok().as_deref())?;
        if let Some(error) = refused {
            info!("io_uring unavailable: {error}; using epoll");
        }
        let notify = calls::open_notify_socket(config.identity.as_ref()).context("the notify socket")?;
        broker.set_notify_address(&notify.address());
        anyhow::ensure!(
            broker.set_ready_mode(&config.ready),
            "--ready listen:ADDR with --share off: pidfd_getfd(2) is denied here, so the addresses of the workers cannot \
             be seen; let them send READY=1 (--ready notify), or share addresses"
        );
        let manager = ServiceManager::new(config, inherited.take_kept_names());
        let launcher = Launcher::new(config, inherited, &notify)?;
        let trees = Trees::new(cgroups, &notify.address()).context("eventfd")?;
        pidfd::become_subreaper().context("prctl(PR_SET_CHILD_SUBREAPER)")?;
        poller.watch(signals.as_fd(), Token::Signals.encode()).context("watching")?;
        poller.watch(notify.watched(), Token::Messages.encode()).context("watching")?;
        let meter = Meter::new(config)?;
        let greeting = Greeting { workers: config.workers, shares: config.share != Share::Off };
        let cx = Context::new(Settings::from(config), poller, broker, trees, meter).context("eventfd")?;
        Ok(Driver {
            signals: Signals::new(config, signals, cx.now()),
            cx,
            notify,
            starts: Starts::new(launcher, greeting, (config.preload_max, config.ready_timeout)),
            gate: Gate::new(config),
            calls: Calls::default(),
            exits: Exits::new(config),
            sampling: Sampling::new(config),
            control,
            endpoint,
            manager,
            stop_timeout: StopTimeout::new(config, false),
            upgrades: Upgrades::new(config, OwnProgram::find()),
            settling: Settling::default(),
        })
    }

    /// Runs until the policy has an outcome and no worker is left.
    pub fn run(mut self: Box<Self>) -> Ending {
        let (mut ready, mut has_begun) = (Vec::new(), false);
        self.start_watching();
        self.manager.feed(&mut self.cx);
        loop {
            let mut unfinished = false;
            if self.upgrades.is_resting() {
                self.rest();
            } else {
                unfinished = self.carry_out();
            }
            // After that: to find who has ended takes longer with more children, and a replacement does not wait for it.
            let reaped = self.exits.reap_if_due(&mut self.cx, &mut self.starts, &self.signals.tty);
            unfinished |= reaped;
            // When the first starts are over: loading eBPF does not compete with them.
            if !has_begun && self.starts.has_greeted() && !unfinished {
                has_begun = true;
                self.sampling.begin(&mut self.cx, &self.signals.tty);
                self.control.begin(&mut self.cx);
                self.endpoint.begin(&mut self.cx);
                self.stop_timeout.begin(&mut self.cx);
            }
            self.calls.after_round(&mut self.cx);
            unfinished |= calls::report_complete(&mut self.cx);
            unfinished |= self.control.after_round(&mut self.cx, self.signals.tty.is_lent());
            unfinished |= self.endpoint.after_round(&mut self.cx, &self.control);
            self.manager.after_round(&mut self.cx);
            if has_begun {
                self.settling.after_round(&mut self.cx);
            }
            self.begin_upgrade();
            // What was reaped may be the last worker, whose end is still to be reported.
            if let Some(outcome) = self.cx.policy.outcome().filter(|_| !reaped) {
                return self.end(outcome);
            }
            let limit = if unfinished { Some(Duration::ZERO) } else { self.cx.until_deadline() };
            if let Err(error) = self.cx.poller.wait(limit, &mut ready) {
                warn!("cannot wait for events: {error}; retrying");
                std::thread::sleep(Duration::from_millis(10));
            }
            // A worker's messages are read before its end is handled: tokens sort by kind.
            ready.sort_unstable();
            for token in ready.drain(..) {
                self.dispatch(Token::decode(token));
            }
            self.cx.policy.advance(self.cx.now());
            self.run_due();
        }
    }

    fn start_watching(&mut self) {
        let cx = &mut self.cx;
        self.signals.tty.watch(cx);
        calls::watch_scans(cx);
        samples::watch_inspector(cx);
        calls::watch_queues(cx);
        exits::watch_trees(cx);
    }

    /// Handles an event.
    fn dispatch(&mut self, token: Token) {
        let cx = &mut self.cx;
        match token {
            Token::Messages => calls::read_messages(&self.notify, cx, &mut self.starts),
            Token::Calls(serial) => calls::answer_call(cx, &mut self.exits, serial),
            Token::ReadyPipe(serial) => calls::read_ready_pipe(cx, serial),
            Token::Scans => calls::read_scans(cx),
            Token::Trees => self.exits.read_trees(cx, &mut self.starts),
            Token::Inspected => samples::read_inspection(cx),
            Token::Measuring => self.sampling.begun(cx, &self.signals.tty),
            Token::Samples => self.sampling.read(cx),
            Token::Queues => calls::read_queues(cx),
            Token::Places => self.gate.read(cx),
            Token::Sealed => self.starts.preloads.read_sealed(cx),
            Token::Terminal => self.signals.tty.check(cx),
            Token::Signals => self.signals.read(cx),
            Token::Exit(serial) => {
                self.exits.worker_ended(cx, &mut self.starts, &self.signals.tty, serial);
            }
            Token::Control => self.control.accept(cx),
            Token::Client(number) => self.control.client(cx, number),
            Token::Metrics => self.endpoint.accept(cx),
            Token::Scraper(number) => self.endpoint.client(cx, number),
            Token::StopTimeout => self.stop_timeout.read(cx),
            Token::Upgrade => self.read_answer(),
        }
    }

    /// Runs the deferred operations that are due.
    fn run_due(&mut self) {
        let now = self.cx.now();
        while let Some(deferred) = self.cx.take_due(now) {
            let (cx, tty) = (&mut self.cx, &mut self.signals.tty);
            match deferred {
                Deferred::Queue(inode) => calls::check_queue(cx, inode),
                Deferred::Pending(inode, checks) => calls::check_pending(cx, inode, checks),
                Deferred::CheckListeners => self.calls.check_listeners(cx),
                Deferred::Sweep(serial) => calls::sweep(cx, serial),
                Deferred::Call(serial, call) => calls::reply_to(cx, serial, &call),
                Deferred::Start(serial, checks) => self.starts.check(cx, serial, checks),
                Deferred::Measuring => self.sampling.begun(cx, tty),
                Deferred::Settle => self.settling.settle(cx, &mut self.starts),
                Deferred::TryPlaces => self.gate.give(cx),
                Deferred::Sample => self.sampling.sample(cx, tty),
                Deferred::Inspection(number) => samples::abandon_inspection(cx, number),
                Deferred::Exit(serial) => self.exits.worker_ended(cx, &mut self.starts, tty, serial),
                Deferred::Reap => self.exits.reap_soon(),
                Deferred::Remains(serial) => self.exits.check_remains(cx, serial),
                Deferred::Background(serial, was_starting) => {
                    self.exits.daemons.check(cx, serial, was_starting);
                }
                Deferred::KillFirst(serial) => cx.workers.kill_first(serial),
                Deferred::Cgroups(attempts) => cx.remove_cgroups(attempts),
                Deferred::Clients => self.control.check_times(cx),
                Deferred::Accept => self.control.accept(cx),
                Deferred::Scrapers => self.endpoint.check_times(cx),
                Deferred::AcceptScrapers => self.endpoint.accept(cx),
                Deferred::Watchdog => self.manager.feed(cx),
                Deferred::ManagerRetry => self.manager.retry(cx),
                Deferred::ManagerStatus => self.manager.status_due(),
                Deferred::ManagerStore => self.manager.store_due(),
                Deferred::StopTimeout => self.stop_timeout.give_up(cx),
                Deferred::Hangup => tty.continue_hang_up(cx),
                Deferred::Stops => tty.handle_stops(cx),
                Deferred::Resume(worker, number) => tty.resume(cx, worker, number),
                Deferred::Upgrade => self.check_upgrade(),
            }
        }
    }

    /// Carries out the policy's actions. Returns true if some may be left for the next round.
    fn carry_out(&mut self) -> bool {
        let mut starts = 0;
        // The ends of workers. They are reported while the kernel executes the programs of the replacements.
        let mut ends = Vec::new();
        while starts < MAX_STARTS_PER_ROUND {
            let now = self.cx.now();
            let action = self.cx.policy.next_action(now);
            match action {
                Some(Action::Launch { .. } | Action::RequestPlace) => {}
                Some(Action::Report(event @ Report::Died { .. })) => {
                    ends.push(event);
                    continue;
                }
                _ => ends.drain(..).for_each(|end| self.report(&end)),
            }
            let cx = &mut self.cx;
            let Some(action) = action else {
                if self.starts.finish_oldest(cx) {
                    continue;
                }
                return false;
            };
            match action {
                Action::Launch { worker, generation } => {
                    starts += 1;
                    let foreground = self.signals.tty.next_worker_is_in_foreground(&cx.workers);
                    self.starts.launch(cx, worker, generation, foreground);
                    ends.drain(..).for_each(|end| self.report(&end));
                }
                Action::Preload { id, generation } => {
                    starts += 1;
                    self.starts.launch_preload(cx, id, generation);
                }
                Action::StopPreload(id) => self.starts.preloads.stop(cx, id),
                Action::KillPreload(id) => self.starts.preloads.kill(cx, id),
                Action::UsePreload(id) => self.starts.use_preload(id),
                Action::RequestPlace => self.gate.give(cx),
                Action::ReleasePlace => self.gate.release(cx),
                Action::Target(target) => cx.broker.set_target(now, target),
                Action::AddToRotation(worker) => calls::add_to_rotation(cx, worker),
                Action::RemoveFromRotation(worker) => cx.broker.set_in_rotation(now, worker.serial, false),
                Action::CheckQueue(worker) => {
                    journal::draining(cx, worker);
                    let queue = cx.broker.queue(worker.serial);
                    cx.event(Event::Queue(worker, queue));
                }
                Action::Stop(worker) => {
                    journal::stopped(cx, worker);
                    cx.broker.set_stopping(now, worker.serial);
                    self.exits.request_stop(cx, worker);
                }
                Action::StopRemains(worker) => self.exits.stop_remains(cx, worker),
                Action::Kill(worker) => self.exits.kill(cx, worker),
                Action::MeasurePss(worker) => samples::inspect(cx, worker, Question::Pss),
                Action::LookAtThreads(worker) => samples::inspect(cx, worker, Question::Threads),
                Action::SignalHigh(worker) => self.sampling.warn_of_memory(cx, worker),
                Action::Report(event) => self.report(&event),
            }
        }
        ends.drain(..).for_each(|end| self.report(&end));
        while self.starts.finish_oldest(&mut self.cx) {}
        true
    }

    fn end(mut self: Box<Self>, outcome: Outcome) -> Ending {
        self.end_remaining_processes();
        self.cx.broker.leave_files_in(&runtime_directories());
        self.signals.tty.restore(&self.cx.workers);
        let has_changed = self.upgrades.exits();
        match (outcome, self.starts.into_failure()) {
            (Outcome::Stopped, _) if has_changed => Ending::Changed,
            (Outcome::CannotStart, Some(failure)) => Ending::CannotStart(failure),
            (Outcome::GaveUp, _) => Ending::GaveUp,
            (Outcome::Stopped | Outcome::CannotStart, _) => Ending::Stopped,
        }
    }

    /// Before the exit, kills the processes that workers left behind, and waits until all of them are gone. Until then
    /// they hold resources that the next supervisor needs, for example an address. The wait is limited, because the
    /// kernel cannot end every process at once.
    fn end_remaining_processes(&mut self) {
        let cx = &mut self.cx;
        let until = cx.now().after(LAST_WAIT);
        while let Some(left) = Some(until.since(cx.now())).filter(|left| !left.is_zero()) {
            self.exits.reap(cx, &mut self.starts, &self.signals.tty);
            if !self.exits.kill_adopted(cx) {
                return;
            }
            // The watch of the signals wakes the supervisor, or this short timeout does: a grandchild can have another
            // parent, which gets its SIGCHLD.
            let (mut ready, pause) = (Vec::new(), left.min(Duration::from_millis(10)));
            if cx.poller.wait(Some(pause), &mut ready).is_err() {
                return;
            }
            if ready.contains(&Token::Signals.encode()) {
                self.signals.read(cx);
            }
        }
        warn!("processes of workers are still there {} after SIGKILL: exiting without them", Span(LAST_WAIT));
    }

    fn report(&mut self, event: &Report) {
        let cx = &mut self.cx;
        if self.starts.reports_preload(cx, event) {
            return;
        }
        let cause = asked(event).map(|asked| cx.causes.take(asked));
        journal::note(cx, &self.starts, event, cause.as_deref().unwrap_or_default());
        if let Report::LaunchFailed { worker, next } = *event {
            return self.starts.report_failure(cx, worker, next);
        }
        if let Some(cause) = cause {
            return report::requested(event, |id| cx.workers.name(id), &cause);
        }
        if report_not_ready(cx, event) {
            return;
        }
        if let Report::Died { worker, .. } | Report::Left { worker, .. } = *event {
            let Some(entry) = cx.workers.take_ended(worker.serial) else {
                return;
            };
            let ended = Named { slot: worker.slot, pid: Some(entry.pid.as_raw_pid()) };
            return report::note(event, |_| ended, &entry.end.unwrap_or_default());
        }
        report::note(event, |id| cx.workers.name(id), &ExitReport::default());
    }
}

/// What somebody has asked for, if a report is the answer to that.
fn asked(event: &Report) -> Option<Asked> {
    match *event {
        Report::Stopping { .. } => Some(Asked::Stop),
        Report::ReloadStarted { generation, .. } => Some(Asked::Reload(generation)),
        Report::Scaled { to, .. } => Some(Asked::Scale(to)),
        Report::RestartStarted { slot, .. } => Some(Asked::Restart(slot)),
        Report::Monitoring { paused } => Some(Asked::Limits(paused)),
        Report::Ready { .. }
        | Report::Died { .. }
        | Report::Left { .. }
        | Report::Slow { .. }
        | Report::Waits { .. }
        | Report::Late { .. }
        | Report::LaunchFailed { .. }
        | Report::NoPlace { .. }
        | Report::Preloaded { .. }
        | Report::PreloadFailed { .. }
        | Report::Overdue { .. }
        | Report::OverLimit { .. }
        | Report::DefaultDisabled { .. }
        | Report::ReplacementCancelled { .. }
        | Report::WatchesItself { .. }
        | Report::SlotReloaded { .. }
        | Report::ReloadDone { .. }
        | Report::ReloadFailed { .. }
        | Report::RestartDone { .. }
        | Report::RestartFailed { .. }
        | Report::Killing { .. }
        | Report::GaveUp { .. } => None,
    }
}

/// Reports workers that are not ready in time, and the addresses on which they do not listen. Returns false if the
/// report is about something else.
fn report_not_ready(cx: &Context, event: &Report) -> bool {
    let missing = |worker: WorkerId| cx.broker.missing(worker.serial);
    match *event {
        Report::Slow { worker, after } => {
            report::slow(cx.workers.name(worker), after, missing(worker).as_ref())
        }
        Report::Waits { worker, after } => {
            report::waits(cx.workers.name(worker), after, missing(worker).as_ref())
        }
        Report::Late { worker, after, next } => {
            report::late(cx.workers.name(worker), after, missing(worker).as_ref(), next);
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
        | Report::NoPlace { .. }
        | Report::Preloaded { .. }
        | Report::PreloadFailed { .. }
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
        | Report::SlotReloaded { .. }
        | Report::RestartStarted { .. }
        | Report::RestartDone { .. }
        | Report::RestartFailed { .. }
        | Report::Scaled { .. }
        | Report::Stopping { .. }
        | Report::Killing { .. }
        | Report::GaveUp { .. } => return false,
    }
    true
}

/// The directories that systemd makes for this service, and removes when it stops: systemd.exec(5).
fn runtime_directories() -> Vec<PathBuf> {
    let all = std::env::var_os("RUNTIME_DIRECTORY").unwrap_or_default();
    std::env::split_paths(&all).filter(|directory| directory.is_absolute()).collect()
}

/// The variable that chooses the poller.
const LOOP: &str = "MASTER_PROCESS_LOOP";

/// The poller of this host.
struct ChosenPoller {
    poller: Poller,
    /// Why it is not io_uring, unless the user chose epoll.
    refused: Option<std::io::Error>,
}

/// io_uring, or epoll if io_uring is unavailable or the user chose epoll.
fn choose_poller(choice: Option<&str>) -> anyhow::Result<ChosenPoller> {
    use anyhow::Context;
    let chosen = |poller| ChosenPoller { poller, refused: None };
    match choice {
        Some("epoll") => return Poller::epoll().map(chosen).context("epoll_create1"),
        Some("io_uring") => {
            return Poller::uring().map(chosen).context("MASTER_PROCESS_LOOP=io_uring: io_uring_setup");
        }
        None | Some("") => {}
        Some(other) => anyhow::bail!("{LOOP}: {other:?} is neither io_uring nor epoll"),
    }
    match Poller::uring() {
        Ok(poller) => Ok(chosen(poller)),
        Err(error) => {
            let poller = Poller::epoll().context("epoll_create1")?;
            Ok(ChosenPoller { poller, refused: Some(error) })
        }
    }
}
