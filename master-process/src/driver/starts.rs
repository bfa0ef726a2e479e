//! Starts workers, and reports why a start failed.
//!
//! A start takes a fraction of a millisecond, and the loop waits for it. Of many starts some are in progress at a time, so
//! that the kernel executes programs on several CPUs. If the program or the directory is on a slow or unresponsive file system,
//! the loop continues and checks the start at intervals.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::process::Pid;
use tracing::{debug, warn};

use super::context::{Context, Deferred, Token};
use super::launch::Launcher;
use super::preload::Preloads;
use super::{journal, samples};
use crate::control::What;
use crate::policy::{Event, LaunchFailure, Next, Report, Time, WorkerId};
use crate::report;
use crate::sys::cgroup::{Cgroup, Unusable};
use crate::sys::spawn::{FinishedLaunch, Launch, SpawnError, SpawnStep, Spawned};
use crate::sys::{pidfd, seccomp};

/// How long the loop waits for a start. This is many times what a start takes from a warm cache on a busy machine, and
/// short enough for events that wait meanwhile.
const WAIT: Duration = Duration::from_millis(10);

/// The same while another start is late: the next start will probably be late, too.
const WAIT_DURING_LATE_START: Duration = Duration::from_millis(1);

/// The number of starts that are in progress while the loop waits. More bring nothing: all of them go through locks of the
/// supervisor's memory and descriptors.
const MAX_AT_ONCE: usize = 4;

/// How soon a late start is checked. Each further check waits twice as long, up to 64 ms. That is short compared with
/// the time the start has taken by then.
const CHECK_AFTER: Duration = Duration::from_millis(1);
const CHECK_DOUBLINGS: u32 = 6;

/// A start that takes longer has failed. A disk that spins up and a network file system that lost a packet are faster.
/// A longer limit would delay the failure of a reload.
const LIMIT: Duration = Duration::from_secs(5);

/// The number of starts that may be in progress, including those that hang forever: each one takes a process and some
/// pages.
const MAX_STARTS: usize = 64;

/// A start in progress.
#[derive(Debug)]
struct Start {
    worker: WorkerId,
    launch: Launch,
    begun: Begun,
    since: Time,
}

/// The resources that a start has created for its worker.
#[derive(Debug)]
struct Begun {
    generation: u32,
    ready_pipe: Option<OwnedFd>,
    cgroup: Option<Cgroup>,
    foreground: bool,
    /// When the start began, in ticks since boot.
    started_at: u64,
}

/// The starts of workers: those in progress, those that are late or abandoned, by the worker's serial, and the errors of those
/// that failed.
pub(super) struct Starts {
    launcher: Launcher,
    /// The preload commands that run.
    pub(super) preloads: Preloads,
    /// The starts that the loop waits for, the oldest first.
    current: VecDeque<Start>,
    /// Those that it no longer waits for.
    late: HashMap<u64, Start>,
    /// Starts that were killed because they took too long, and whose processes have not ended yet.
    abandoned: HashMap<u64, Abandoned>,
    /// What the log says once the first worker runs.
    greeting: Option<Greeting>,
    /// The errors of failed starts that are not reported yet, by the worker's serial.
    failures: HashMap<u64, SpawnError>,
    /// The error of the first start, if it ends the run.
    first_failure: Option<FirstFailure>,
}

/// What the log says once the first worker runs.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) workers: u32,
    pub(super) shares: bool,
}

/// The start that ended the run.
#[derive(Debug)]
pub struct FirstFailure {
    /// Why it failed.
    pub error: SpawnError,
    /// Whether it was that of the preload command, not of a worker.
    pub is_preload: bool,
}

/// A start that was abandoned.
#[derive(Debug)]
struct Abandoned {
    launch: Launch,
    /// The cgroup of its child.
    cgroup: Option<Cgroup>,
}

impl Starts {
    pub(super) fn new(
        launcher: Launcher,
        greeting: Greeting,
        (preload_max, timeout): (u64, Duration),
    ) -> Starts {
        Starts {
            launcher,
            preloads: Preloads::new(preload_max, timeout),
            current: VecDeque::new(),
            late: HashMap::new(),
            abandoned: HashMap::new(),
            greeting: Some(greeting),
            failures: HashMap::new(),
            first_failure: None,
        }
    }

    /// The error that ended the run, if one did.
    pub(super) fn into_failure(self) -> Option<FirstFailure> {
        let of_worker = |error| FirstFailure { error, is_preload: false };
        self.first_failure.or_else(|| self.failures.into_values().next().map(of_worker))
    }

    /// The start that this child belongs to.
    pub(super) fn serial_of(&self, pid: Pid) -> Option<u64> {
        let late = self.late.iter().map(|(serial, start)| (serial, &start.launch));
        let current = self.current.iter().map(|start| (&start.worker.serial, &start.launch));
        let abandoned = self.abandoned.iter().map(|(serial, start)| (serial, &start.launch));
        let mut all = late.chain(current).chain(abandoned);
        let start = all.find(|(_, launch)| launch.pid() == pid).map(|(serial, _)| *serial);
        start.or_else(|| self.preloads.is_first(pid))
    }

    /// Late starts that are finished: the program runs, or the start failed.
    fn over(&self) -> Vec<u64> {
        let over = self.late.iter().filter(|(_, start)| start.launch.is_finished());
        over.map(|(serial, _)| *serial).collect()
    }

    /// Whether no start is in progress and none has failed without a report.
    pub(super) fn is_idle(&self) -> bool {
        self.current.is_empty()
            && self.late.is_empty()
            && self.abandoned.is_empty()
            && self.failures.is_empty()
            && self.preloads.is_idle()
    }

    /// Starts that go on from those of another supervisor.
    pub(super) fn resume(launcher: Launcher, preload_settings: (u64, Duration)) -> Starts {
        let greeting = Greeting { workers: 0, shares: false };
        Starts { greeting: None, ..Starts::new(launcher, greeting, preload_settings) }
    }

    pub(super) fn launcher(&self) -> &Launcher {
        &self.launcher
    }

    fn is_full(&self) -> bool {
        self.current.len() + self.late.len() + self.abandoned.len() >= MAX_STARTS
    }

    /// Begins to start a worker, in the foreground or the background of the terminal. [`finish_oldest`](Self::finish_oldest)
    /// has to be called until nothing is in progress.
    pub(super) fn launch(&mut self, cx: &mut Context, worker: WorkerId, generation: u32, foreground: bool) {
        self.launcher.set_filter(cx.broker.calls());
        cx.broker.enter(worker, generation);
        if self.is_full() {
            return self.not_launched(cx, worker, SpawnError::new(SpawnStep::Clone, libc::EAGAIN));
        }
        let since = cx.now();
        let cgroup = match cx.trees.make_cgroup(worker) {
            Ok(cgroup) => cgroup,
            Err(error) => return self.not_launched(cx, worker, unconfined(cx, worker, &error)),
        };
        let into = cgroup.as_ref().and_then(|cgroup| cgroup.fd().try_clone_to_owned().ok());
        let started_at = cx.trees.begin_start();
        let started = self.launcher.start(worker, generation, into, foreground);
        cx.trees.start_begun(started.as_ref().ok().map(|(launch, _)| launch.pid()));
        let (launch, ready_pipe) = match started {
            Ok(started) => started,
            Err(failure) => {
                end_cgroup(cx, cgroup, failure.is_passing());
                return self.start_failed(cx, worker, (generation, foreground), failure);
            }
        };
        let begun = Begun { generation, ready_pipe, cgroup, foreground, started_at };
        self.current.push_back(Start { worker, launch, begun, since });
        // If the first start of all fails, there are no others.
        let most = if self.has_greeted() { MAX_AT_ONCE } else { 1 };
        while self.current.len() >= most {
            self.finish_oldest(cx);
        }
    }

    /// Begins to start a preload command, as [`launch`](Self::launch) does with a worker.
    pub(super) fn launch_preload(&mut self, cx: &mut Context, id: WorkerId, generation: u32) {
        if self.is_full() {
            return self.not_launched(cx, id, SpawnError::new(SpawnStep::Clone, libc::EAGAIN));
        }
        let since = cx.now();
        let output = match self.preloads.make_output(id) {
            Ok(output) => output,
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EMFILE);
                return self.not_launched(cx, id, SpawnError::new(SpawnStep::Descriptor, errno));
            }
        };
        // Only workers need a cgroup.
        let cgroup = cx.trees.make_cgroup(id).ok().flatten();
        let into = cgroup.as_ref().and_then(|cgroup| cgroup.fd().try_clone_to_owned().ok());
        let started_at = cx.trees.begin_start();
        let started = self.launcher.start_preload(generation, output, into);
        cx.trees.start_begun(started.as_ref().ok().map(Launch::pid));
        match started {
            Ok(launch) => {
                let begun = Begun { generation, ready_pipe: None, cgroup, foreground: false, started_at };
                self.current.push_back(Start { worker: id, launch, begun, since });
                self.finish_oldest(cx);
            }
            Err(failure) => self.not_launched(cx, id, failure),
        }
    }

    /// The next workers get the output of this preload command.
    pub(super) fn use_preload(&mut self, id: WorkerId) {
        if let Some(output) = self.preloads.take_complete(id) {
            self.launcher.use_output(output);
        }
    }

    /// Waits for the oldest start in progress. Returns false if there is none.
    pub(super) fn finish_oldest(&mut self, cx: &mut Context) -> bool {
        let Some(Start { worker, launch, begun, since }) = self.current.pop_front() else {
            self.launcher.rest();
            return false;
        };
        let wait = if self.late.is_empty() { WAIT } else { WAIT_DURING_LATE_START };
        match launch.wait(wait) {
            Ok(over) => self.finish(cx, worker, over, begun),
            Err(launch) => {
                debug!(
                    worker = worker.slot,
                    "{} is slow to start; waiting for it in the background",
                    cx.workers.name(worker)
                );
                self.late.insert(worker.serial, Start { worker, launch, begun, since });
                cx.schedule(CHECK_AFTER, Deferred::Start(worker.serial, 0));
            }
        }
        true
    }

    /// Gives back the memory that starts have needed, if none is in progress. Returns whether that is so.
    pub(super) fn rest(&mut self) -> bool {
        let is_over = self.current.is_empty() && self.late.is_empty();
        if is_over {
            self.launcher.rest();
        }
        is_over
    }

    /// Checks a start that is late, or was abandoned.
    pub(super) fn check(&mut self, cx: &mut Context, serial: u64, checks: u32) {
        if !self.preloads.check(cx, serial) {
            self.check_start(cx, serial, checks);
        }
        self.rest();
    }

    fn check_start(&mut self, cx: &mut Context, serial: u64, checks: u32) {
        if let Some(Start { worker, launch, begun, since }) = self.late.remove(&serial) {
            let launch = match launch.wait(Duration::ZERO) {
                Ok(over) => return self.finish(cx, worker, over, begun),
                Err(launch) => launch,
            };
            if cx.policy.expects_end(worker) {
                // The policy no longer needs the worker.
                let unwanted = SpawnError::new(launch.step(), libc::ECANCELED);
                return self.abandon(cx, worker, (launch, begun.cgroup), unwanted);
            }
            if cx.now().since(since) >= LIMIT {
                let failure = SpawnError::no_answer(launch.step(), LIMIT);
                return self.abandon(cx, worker, (launch, begun.cgroup), failure);
            }
            self.late.insert(serial, Start { worker, launch, begun, since });
            let wait = CHECK_AFTER * 2u32.saturating_pow((checks + 1).min(CHECK_DOUBLINGS));
            cx.schedule(wait, Deferred::Start(serial, checks + 1));
        } else if let Some(Abandoned { launch, cgroup }) = self.abandoned.remove(&serial) {
            match launch.wait(Duration::ZERO) {
                Ok(over) => self.finish_abandoned(cx, over, cgroup),
                Err(launch) => {
                    cx.watch(launch.pidfd(), Token::Exit(serial));
                    self.abandoned.insert(serial, Abandoned { launch, cgroup });
                }
            }
        }
    }

    /// Completes the starts that are finished. A worker must be registered before its messages are handled, and its
    /// program may have run since the last check.
    pub(super) fn catch_up(&mut self, cx: &mut Context) {
        for serial in self.over() {
            self.check(cx, serial, 0);
        }
    }

    /// Cleans up after an abandoned start whose process has ended.
    fn finish_abandoned(&mut self, cx: &mut Context, over: FinishedLaunch, cgroup: Option<Cgroup>) {
        cx.trees.start_failed(over.pid());
        // If the start failed, `result` reaps the process. It closes the listener in any case.
        if let Ok(spawned) = self.launcher.result(over) {
            end(&spawned);
        }
        end_cgroup(cx, cgroup, true);
    }

    /// Abandons a start. Its child is killed, and its record is kept until the kernel has ended the child.
    fn abandon(
        &mut self,
        cx: &mut Context,
        worker: WorkerId,
        (launch, cgroup): (Launch, Option<Cgroup>),
        failure: SpawnError,
    ) {
        if let Err(error) = launch.kill()
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            warn!("cannot signal {}: pidfd_send_signal: {error}", cx.workers.name(worker));
        }
        cx.watch(launch.pidfd(), Token::Exit(worker.serial));
        self.abandoned.insert(worker.serial, Abandoned { launch, cgroup });
        self.not_launched(cx, worker, failure);
    }

    fn finish(&mut self, cx: &mut Context, worker: WorkerId, over: FinishedLaunch, begun: Begun) {
        let pid = over.pid();
        match self.launcher.result(over) {
            Ok(spawned) => match confine(cx, worker, &spawned, begun.cgroup.as_ref()) {
                Ok(is_in) => {
                    let begun = Begun { cgroup: begun.cgroup.filter(|_| is_in), ..begun };
                    self.register(cx, worker, spawned, begun);
                }
                Err(failure) => {
                    cx.trees.start_failed(pid);
                    end(&spawned);
                    end_cgroup(cx, begun.cgroup, false);
                    self.not_launched(cx, worker, failure);
                }
            },
            Err(failure) => {
                cx.trees.start_failed(pid);
                end_cgroup(cx, begun.cgroup, true);
                self.start_failed(cx, worker, (begun.generation, begun.foreground), failure);
            }
        }
    }

    /// Registers a worker whose program runs.
    fn register(&mut self, cx: &mut Context, worker: WorkerId, spawned: Spawned, begun: Begun) {
        let Begun { generation, ready_pipe, cgroup, foreground: _, started_at } = begun;
        self.greet();
        let (serial, pid) = (worker.serial, spawned.pid);
        if worker.is_preload() {
            self.first_failure = None;
            let cgroup = cgroup.filter(|cgroup| spawned.in_cgroup || cgroup.enter(pid).is_ok());
            cx.trees.started(worker, generation, pid, cgroup, started_at);
            return self.preloads.launched(cx, worker, pid, spawned.pidfd);
        }
        cx.watch(spawned.pidfd.as_fd(), Token::Exit(serial));
        if let Some(pipe) = &ready_pipe {
            cx.watch(pipe.as_fd(), Token::ReadyPipe(serial));
        }
        if let Some(listener) = spawned.listener {
            seccomp::answer_on_callers_cpu(listener.as_fd());
            cx.watch(listener.as_fd(), Token::Calls(serial));
            cx.call_listeners.insert(worker, listener);
        }
        let now = cx.now();
        cx.workers.insert((worker, generation, now), pid, spawned.pidfd, ready_pipe);
        cx.journal.record(What::Started { slot: worker.slot, pid: pid.as_raw_pid(), generation });
        cx.broker.launched(worker, pid);
        samples::measure(cx, worker, pid);
        cx.trees.started(worker, generation, pid, cgroup, started_at);
        debug!(worker = worker.slot, generation, "{} started", cx.workers.name(worker));
        cx.event(Event::Launched(worker));
    }

    fn start_failed(
        &mut self,
        cx: &mut Context,
        worker: WorkerId,
        (generation, foreground): (u32, bool),
        failure: SpawnError,
    ) {
        if failure.step == SpawnStep::Seccomp && !failure.is_passing() {
            cx.broker.leave(cx.now(), worker.serial, true);
            self.launcher.disable_filter(&failure);
            cx.broker.give_up_restored(cx.now());
            return self.launch(cx, worker, generation, foreground);
        }
        self.not_launched(cx, worker, failure);
    }

    fn not_launched(&mut self, cx: &mut Context, worker: WorkerId, failure: SpawnError) {
        let kind = match failure.within {
            Some(_) => LaunchFailure::NoAnswer,
            None if failure.is_passing() => LaunchFailure::Passing,
            None => LaunchFailure::Lasting,
        };
        if worker.is_preload() {
            let why = report::start_failure(&failure, Some(self.launcher.preload_command()));
            self.preloads.not_launched(worker, format!("failed to start: {why}"));
            if !self.has_greeted() {
                // If it ends the run, `main` reports it.
                self.first_failure = Some(FirstFailure { error: failure, is_preload: true });
            }
            return cx.event(Event::PreloadNotLaunched(worker, kind));
        }
        cx.broker.leave(cx.now(), worker.serial, true);
        cx.broker.forget(worker.serial);
        if !cx.policy.expects_end(worker) {
            self.failures.insert(worker.serial, failure);
        }
        cx.event(Event::LaunchFailed(worker, kind));
    }

    fn greet(&mut self) {
        if let Some(greeting) = self.greeting.take() {
            report::banner(self.launcher.command(), greeting.workers, greeting.shares);
        }
    }

    /// Whether a worker has been started.
    pub(super) fn has_greeted(&self) -> bool {
        self.greeting.is_none()
    }

    /// Why a worker could not be started, until that is reported.
    pub(super) fn failure(&self, worker: WorkerId) -> Option<String> {
        let failure = self.failures.get(&worker.serial)?;
        Some(report::start_failure(failure, Some(self.launcher.command())))
    }

    /// The same, of the last worker of a slot: the one that ended a reload.
    pub(super) fn last_failure(&self) -> Option<String> {
        let (_, failure) = self.failures.iter().max_by_key(|(serial, _)| **serial)?;
        Some(report::start_failure(failure, Some(self.launcher.command())))
    }

    /// Reports the end of a preload command. Returns false if the report is about something else.
    pub(super) fn reports_preload(&mut self, cx: &mut Context, event: &Report) -> bool {
        if let Report::Preloaded { id, generation, took } = *event {
            self.preloads.report_complete(cx, id, generation, took);
        } else if let Report::PreloadFailed { id, generation, cause, next, reload } = *event {
            let error = self.preloads.report_failure(cx, id, generation, (cause, next));
            if reload {
                journal::fail_reload(cx, generation, error);
            }
        } else {
            return false;
        }
        true
    }

    /// Reports why a worker could not be started.
    pub(super) fn report_failure(&mut self, cx: &Context, worker: WorkerId, next: Next) {
        let Some(failure) = self.failures.remove(&worker.serial) else { return };
        if next == Next::Nothing {
            // `main` reports the failure of the first start, and exits with the matching code.
            self.first_failure = Some(FirstFailure { error: failure, is_preload: false });
            return;
        }
        let in_directory = failure.step == SpawnStep::Directory;
        let subject = if in_directory { self.launcher.directory() } else { self.launcher.command() };
        report::launch_failed(cx.workers.name(worker), subject, &failure, next);
    }
}

/// Ends a worker whose program may have run for a moment, and may have started processes.
fn end(spawned: &Spawned) {
    let _group_is_empty = pidfd::kill_group(spawned.pidfd.as_fd(), spawned.pid);
    let _death = pidfd::wait(spawned.pidfd.as_fd());
}

/// Ends what is left in the cgroup of a start that came to nothing. If the cgroup was the reason (`is_sound` is false), the next
/// start has another one: a worker with enough rights can spoil it.
fn end_cgroup(cx: &mut Context, cgroup: Option<Cgroup>, is_sound: bool) {
    if let Some(cgroup) = cgroup {
        cx.trees.end_cgroup(cgroup, is_sound);
        cx.schedule_cgroup_removal();
    }
}

/// Makes sure that a worker whose program runs is in its cgroup, and sets the limits of that. Returns false if it is not in
/// it; this is an error if there are limits.
fn confine(
    cx: &Context,
    worker: WorkerId,
    spawned: &Spawned,
    cgroup: Option<&Cgroup>,
) -> Result<bool, SpawnError> {
    let Some(cgroup) = cgroup else { return Ok(false) };
    // If clone3(2) is denied, the supervisor moves the process into the cgroup before the process has had time to fork.
    let entered = if spawned.in_cgroup { Ok(()) } else { cgroup.enter(spawned.pid) };
    match entered {
        Err(_) if cx.trees.limits().is_none() => return Ok(false),
        Err(error) => {
            return Err(unconfined(cx, worker, &Unusable::Failed("cgroup.procs".to_owned(), error)));
        }
        Ok(()) => {}
    }
    cgroup.limit().map(|()| true).map_err(|error| unconfined(cx, worker, &error))
}

/// The failure of a start for which there is no cgroup with the limits. The log has the details.
fn unconfined(cx: &Context, worker: WorkerId, error: &Unusable) -> SpawnError {
    warn!(worker = worker.slot, "cannot set the limits of {}: {error}", cx.workers.name(worker));
    let errno = match error {
        Unusable::Failed(_, error) => error.raw_os_error(),
        Unusable::Undelegated(_)
        | Unusable::NotCgroup(_)
        | Unusable::NoController(..)
        | Unusable::Occupied(..) => None,
    };
    SpawnError::new(SpawnStep::Cgroup, errno.unwrap_or(libc::EBUSY))
}
