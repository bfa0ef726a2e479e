//! Starts: from what the policy wants to a worker that runs, or the reason why not.
//!
//! A start takes a fraction of a millisecond, and the loop waits for it. Where the program or the directory is on a file
//! system that takes its time, or does not answer at all, the loop goes on, and looks after the start now and then.

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

/// What a start may hold the loop up: many times what it takes from a warm cache on a busy machine, and little enough for
/// those who wait meanwhile.
const USUAL: Duration = Duration::from_millis(10);

/// The same while another start is late: the next one will be, too.
const BESIDE_A_LATE_ONE: Duration = Duration::from_millis(1);

/// A start that takes longer has failed. A disk that spins up and a network file system that lost a packet are
/// faster; a longer time would let a reload wait in vain.
const LIMIT: Duration = Duration::from_secs(5);

/// Starts that may be under way, those that hang for good included: each takes a process and some pages.
const MOST: usize = 64;

/// A start that is late.
#[derive(Debug)]
struct Start {
    worker: WorkerId,
    launch: Launch,
    begun: Begun,
    since: Time,
}

/// What a worker has from its start.
#[derive(Debug)]
struct Begun {
    generation: u32,
    ready_pipe: Option<OwnedFd>,
    cgroup: Option<Cgroup>,
    /// In ticks since the machine was started.
    started_at: u64,
}

/// All of them, by the worker's serial.
#[derive(Debug, Default)]
pub(super) struct Starts {
    late: HashMap<u64, Start>,
    /// Killed because they took too long, and not dead yet.
    abandoned: HashMap<u64, Abandoned>,
}

/// A start that was given up.
#[derive(Debug)]
struct Abandoned {
    launch: Launch,
    /// Its child is in there.
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

    /// Late starts whose programs run by now, or have failed to.
    fn over(&self) -> Vec<u64> {
        let over = self.late.iter().filter(|(_, start)| start.launch.is_finished());
        over.map(|(serial, _)| *serial).collect()
    }

    fn is_full(&self) -> bool {
        self.late.len() + self.abandoned.len() >= MOST
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
        let patience = if self.starts.late.is_empty() { USUAL } else { BESIDE_A_LATE_ONE };
        match launch.wait(patience) {
            Ok(over) => self.start_is_over(worker, over, begun),
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

    /// Looks after a start that is late, or was killed because of that.
    pub(super) fn look_at_start(&mut self, serial: u64, looks: u32) {
        if let Some(Start { worker, launch, begun, since }) = self.starts.late.remove(&serial) {
            let launch = match launch.wait(Duration::ZERO) {
                Ok(over) => return self.start_is_over(worker, over, begun),
                Err(launch) => launch,
            };
            if self.policy.expects_end(worker) {
                // Nobody wants it any more.
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
                Ok(over) => self.bury(over, cgroup),
                Err(launch) => {
                    self.watch(launch.pidfd(), Token::Exit(serial));
                    self.starts.abandoned.insert(serial, Abandoned { launch, cgroup });
                }
            }
        }
    }

    /// A worker must be known before anything that its program says: it can have been running for as long as the next
    /// look is away.
    pub(super) fn catch_up_with_starts(&mut self) {
        for serial in self.starts.over() {
            self.look_at_start(serial, 0);
        }
    }

    /// What was killed because its start took too long is dead.
    fn bury(&mut self, over: FinishedLaunch, cgroup: Option<Cgroup>) {
        self.trees.start_failed(over.pid());
        // Where it failed by itself, it is reaped there. Its listener is closed in any case.
        if let Ok(spawned) = self.launcher.result(over) {
            // It may have run for a moment.
            let _nobody_left = pidfd::kill_group(spawned.pidfd.as_fd(), spawned.pid);
            let _death = pidfd::wait(spawned.pidfd.as_fd());
        }
        if let Some(cgroup) = cgroup {
            self.trees.bury_cgroup(cgroup);
            self.remove_cgroups_later();
        }
    }

    /// Gives a start up. Its child is killed, and stays with us for as long as the kernel keeps it.
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

    fn start_is_over(&mut self, worker: WorkerId, over: FinishedLaunch, begun: Begun) {
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
        // Where clone3(2) is denied, it is put there before it has had time to fork.
        let cgroup = cgroup.filter(|cgroup| spawned.in_cgroup || cgroup.enter(pid).is_ok());
        self.trees.started(worker, generation, pid, cgroup, started_at);
        debug!(worker = worker.slot, generation, "{} started", self.name(worker));
        self.event(Event::Launched(worker));
    }

    fn start_failed(&mut self, worker: WorkerId, generation: u32, failure: SpawnError) {
        if failure.step == SpawnStep::Seccomp && !failure.is_passing() {
            self.meter.not_launched(worker);
            self.broker.leave(self.now(), worker.serial, true);
            self.launcher.do_without_filter(&failure);
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

    /// Tells why a worker could not be started.
    pub(super) fn report_launch_failure(&mut self, worker: WorkerId, next: Next) {
        let Some(failure) = self.failures.remove(&worker.serial) else { return };
        if next == Next::Nothing {
            // The very first start is main's to explain, with the exit code that goes with it.
            self.first_failure = Some(failure);
            return;
        }
        let in_directory = failure.step == SpawnStep::Directory;
        let subject = if in_directory { self.launcher.directory() } else { self.launcher.command() };
        report::launch_failed(self.name(worker), subject, &failure, next);
    }
}
