//! Starts workers, and reports why a start failed.
//!
//! A start takes a fraction of a millisecond, and the loop waits for it. If the program or the directory is on a slow
//! or unresponsive file system, the loop continues and checks the start at intervals.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::process::Pid;
use tracing::{debug, info, warn};

use super::deferred::Deferred;
use super::{Driver, Token};
use crate::policy::{Event, LaunchFailure, Next, Time, WorkerId};
use crate::report;
use crate::sys::cgroup::Cgroup;
use crate::sys::spawn::{FinishedLaunch, Launch, SpawnError, SpawnStep, Spawned};
use crate::sys::{pidfd, seccomp};

/// How long the loop waits for a start. This is many times what a start takes from a warm cache on a busy machine, and
/// short enough for events that wait meanwhile.
const WAIT: Duration = Duration::from_millis(10);

/// The same while another start is late: the next start will probably be late, too.
const WAIT_DURING_LATE_START: Duration = Duration::from_millis(1);

/// A start that takes longer has failed. A disk that spins up and a network file system that lost a packet are faster.
/// A longer limit would delay the failure of a reload.
const LIMIT: Duration = Duration::from_secs(5);

/// The number of starts that may be in progress, including those that hang forever: each one takes a process and some
/// pages.
const MAX_STARTS: usize = 64;

/// A start that is late.
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
    /// When the start began, in ticks since boot.
    started_at: u64,
}

/// All late and abandoned starts, by the worker's serial.
#[derive(Debug, Default)]
pub(super) struct Starts {
    late: HashMap<u64, Start>,
    /// Starts that were killed because they took too long, and whose processes have not ended yet.
    abandoned: HashMap<u64, Abandoned>,
}

/// A start that was abandoned.
#[derive(Debug)]
struct Abandoned {
    launch: Launch,
    /// The cgroup of its child.
    cgroup: Option<Cgroup>,
}

impl Starts {
    /// The start that this child belongs to.
    pub(super) fn serial_of(&self, pid: Pid) -> Option<u64> {
        let late = self.late.iter().map(|(serial, start)| (serial, &start.launch));
        let abandoned = self.abandoned.iter().map(|(serial, start)| (serial, &start.launch));
        let mut all = late.chain(abandoned);
        all.find(|(_, launch)| launch.pid() == pid).map(|(serial, _)| *serial)
    }

    /// Late starts that are finished: the program runs, or the start failed.
    fn over(&self) -> Vec<u64> {
        let over = self.late.iter().filter(|(_, start)| start.launch.is_finished());
        over.map(|(serial, _)| *serial).collect()
    }

    fn is_full(&self) -> bool {
        self.late.len() + self.abandoned.len() >= MAX_STARTS
    }
}

impl Driver {
    /// Starts a worker.
    pub(super) fn launch(&mut self, worker: WorkerId, generation: u32) {
        self.launcher.set_filter(self.broker.calls());
        self.broker.enter(worker, generation);
        if self.starts.is_full() {
            return self.not_launched(worker, SpawnError::new(SpawnStep::Clone, libc::EAGAIN));
        }
        self.meter.expect(worker);
        let since = self.now();
        let cgroup = self.trees.make_cgroup(worker);
        let into = cgroup.as_ref().and_then(|cgroup| cgroup.fd().try_clone_to_owned().ok());
        let foreground = self.next_worker_is_in_foreground();
        let started_at = self.trees.begin_start();
        let started = self.launcher.start(worker, generation, into, foreground);
        self.trees.start_begun(started.as_ref().ok().map(|(launch, _)| launch.pid()));
        self.meter.forked(worker, started.is_ok());
        let (launch, ready_pipe) = match started {
            Ok(started) => started,
            Err(failure) => return self.start_failed(worker, generation, failure),
        };
        let begun = Begun { generation, ready_pipe, cgroup, started_at };
        let wait = if self.starts.late.is_empty() { WAIT } else { WAIT_DURING_LATE_START };
        match launch.wait(wait) {
            Ok(over) => self.start_finished(worker, over, begun),
            Err(launch) => {
                debug!(
                    worker = worker.slot,
                    "{} is slow to start; waiting for it in the background",
                    self.name(worker)
                );
                let start = Start { worker, launch, begun, since };
                self.starts.late.insert(worker.serial, start);
                self.schedule(Deferred::Start(worker.serial, 0));
            }
        }
    }

    /// Checks a start that is late, or was abandoned.
    pub(super) fn look_at_start(&mut self, serial: u64, looks: u32) {
        if let Some(Start { worker, launch, begun, since }) = self.starts.late.remove(&serial) {
            let launch = match launch.wait(Duration::ZERO) {
                Ok(over) => return self.start_finished(worker, over, begun),
                Err(launch) => launch,
            };
            if self.policy.expects_end(worker) {
                // The policy no longer needs the worker.
                let unwanted = SpawnError::new(launch.step(), libc::ECANCELED);
                return self.abandon(worker, launch, begun.cgroup, unwanted);
            }
            if self.now().since(since) >= LIMIT {
                let failure = SpawnError::no_answer(launch.step(), LIMIT);
                return self.abandon(worker, launch, begun.cgroup, failure);
            }
            self.starts.late.insert(serial, Start { worker, launch, begun, since });
            self.schedule(Deferred::Start(serial, looks + 1));
        } else if let Some(Abandoned { launch, cgroup }) = self.starts.abandoned.remove(&serial) {
            match launch.wait(Duration::ZERO) {
                Ok(over) => self.finish_abandoned(over, cgroup),
                Err(launch) => {
                    self.watch(launch.pidfd(), Token::Exit(serial));
                    self.starts.abandoned.insert(serial, Abandoned { launch, cgroup });
                }
            }
        }
    }

    /// Completes the starts that are finished. A worker must be registered before its messages are handled, and its
    /// program may have run since the last check.
    pub(super) fn catch_up_with_starts(&mut self) {
        for serial in self.starts.over() {
            self.look_at_start(serial, 0);
        }
    }

    /// Cleans up after an abandoned start whose process has ended.
    fn finish_abandoned(&mut self, over: FinishedLaunch, cgroup: Option<Cgroup>) {
        self.trees.start_failed(over.pid());
        // If the start failed, `result` reaps the process. It closes the listener in any case.
        if let Ok(spawned) = self.launcher.result(over) {
            // The program may have run for a moment, and may have started processes.
            let _group_is_empty = pidfd::kill_group(spawned.pidfd.as_fd(), spawned.pid);
            let _death = pidfd::wait(spawned.pidfd.as_fd());
        }
        if let Some(cgroup) = cgroup {
            self.trees.end_cgroup(cgroup);
            self.remove_cgroups_later();
        }
    }

    /// Abandons a start. Its child is killed, and its record is kept until the kernel has ended the child.
    fn abandon(&mut self, worker: WorkerId, launch: Launch, cgroup: Option<Cgroup>, failure: SpawnError) {
        if let Err(error) = launch.kill()
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            warn!("cannot signal {}: pidfd_send_signal: {error}", self.name(worker));
        }
        self.watch(launch.pidfd(), Token::Exit(worker.serial));
        self.starts.abandoned.insert(worker.serial, Abandoned { launch, cgroup });
        self.not_launched(worker, failure);
    }

    fn start_finished(&mut self, worker: WorkerId, over: FinishedLaunch, begun: Begun) {
        let pid = over.pid();
        match self.launcher.result(over) {
            Ok(spawned) => self.launched(worker, spawned, begun),
            Err(failure) => {
                self.trees.start_failed(pid);
                self.start_failed(worker, begun.generation, failure);
            }
        }
    }

    fn launched(&mut self, worker: WorkerId, spawned: Spawned, begun: Begun) {
        let Begun { generation, ready_pipe, cgroup, started_at } = begun;
        self.greet();
        let (serial, pid) = (worker.serial, spawned.pid);
        self.watch(spawned.pidfd.as_fd(), Token::Exit(serial));
        if let Some(pipe) = &ready_pipe {
            self.watch(pipe.as_fd(), Token::ReadyPipe(serial));
        }
        if let Some(listener) = spawned.listener {
            seccomp::answer_on_callers_cpu(listener.as_fd());
            self.watch(listener.as_fd(), Token::Calls(serial));
            self.listeners.insert(worker, listener);
        }
        self.workers.insert(worker, pid, spawned.pidfd, ready_pipe);
        self.broker.launched(worker, pid);
        self.meter.launched(worker, pid);
        // If clone3(2) is denied, the supervisor moves the process into the cgroup before the process has had time to
        // fork.
        let cgroup = cgroup.filter(|cgroup| spawned.in_cgroup || cgroup.enter(pid).is_ok());
        self.trees.started(worker, generation, pid, cgroup, started_at);
        debug!(worker = worker.slot, generation, "{} started", self.name(worker));
        self.event(Event::Launched(worker));
    }

    fn start_failed(&mut self, worker: WorkerId, generation: u32, failure: SpawnError) {
        if failure.step == SpawnStep::Seccomp && !failure.is_passing() {
            self.meter.not_launched(worker);
            self.broker.leave(self.now(), worker.serial, true);
            self.launcher.disable_filter(&failure);
            return self.launch(worker, generation);
        }
        self.not_launched(worker, failure);
    }

    fn not_launched(&mut self, worker: WorkerId, failure: SpawnError) {
        self.meter.not_launched(worker);
        self.broker.leave(self.now(), worker.serial, true);
        self.broker.forget(worker.serial);
        let kind = match failure.within {
            Some(_) => LaunchFailure::NoAnswer,
            None if failure.is_passing() => LaunchFailure::Passing,
            None => LaunchFailure::Lasting,
        };
        if !self.policy.expects_end(worker) {
            self.failures.insert(worker.serial, failure);
        }
        self.event(Event::LaunchFailed(worker, kind));
    }

    fn greet(&mut self) {
        if let Some(greeting) = self.greeting.take() {
            report::banner(self.launcher.command(), greeting.workers, greeting.shares);
            if let Some(measures) = greeting.measures {
                info!("{measures}");
            }
        }
    }

    /// Reports why a worker could not be started.
    pub(super) fn report_launch_failure(&mut self, worker: WorkerId, next: Next) {
        let Some(failure) = self.failures.remove(&worker.serial) else { return };
        if next == Next::Nothing {
            // `main` reports the failure of the first start, and exits with the matching code.
            self.first_failure = Some(failure);
            return;
        }
        let in_directory = failure.step == SpawnStep::Directory;
        let subject = if in_directory { self.launcher.directory() } else { self.launcher.command() };
        report::launch_failed(self.name(worker), subject, &failure, next);
    }
}
