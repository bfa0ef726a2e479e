//! The preload command: it runs once for each generation, before the first worker of the generation.
//!
//! Until the command of a reload is complete, the current generation goes on as if there was no reload: its crashed workers
//! are replaced by workers of their generation. Only the complete command makes the generation the current one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::supervisor::{Mode, Outcome, Supervisor};
use super::throttle::Throttle;
use super::{Action, LaunchFailure, Report, Time, WorkerId};
use crate::config::MAX_WORKERS;

/// The slot of a preload command in its id, at the gate and among the timers. No worker has it.
pub const PRELOAD: u32 = u32::MAX;

const _: () = assert!(MAX_WORKERS < PRELOAD);

impl WorkerId {
    /// Whether this is the start of a preload command, not of a worker.
    #[must_use]
    pub fn is_preload(self) -> bool {
        self.slot == PRELOAD
    }
}

/// Why a preload command failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PreloadFailure {
    /// It could not be started.
    NotLaunched,
    /// It ended without success, or its output cannot be used.
    Ended,
    /// It did not end in time, and is stopped.
    Late,
}

/// What follows the failure of a preload command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AfterPreload {
    /// It is started again after this delay: no generation can serve.
    Retry(Duration),
    /// The current generation keeps serving, with this number of workers.
    Keep(usize),
    /// Nothing: everything stops.
    Nothing,
}

/// The command of the generation that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Wanted {
    generation: u32,
    /// When the generation was requested.
    since: Time,
    /// Whether a reload waits for the command.
    by_reload: bool,
}

/// A running command.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Process {
    id: WorkerId,
    generation: u32,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Phase {
    /// The driver has not answered yet. `cancelled`: the command is not needed any more.
    Launching { cancelled: bool },
    /// It runs.
    Running { since: Time },
    /// It got the stop signal, and gets SIGKILL at `kill_at`; `None` if it got it.
    Stopping { kill_at: Option<Time> },
}

/// The preload commands. At most one runs at a time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Preload {
    wanted: Option<Wanted>,
    process: Option<Process>,
    /// Whether the command of some generation is complete.
    completed_once: bool,
    throttle: Throttle,
    timer: Option<Time>,
}

impl Preload {
    /// The command of the first generation is to run.
    pub(super) fn first(now: Time) -> Preload {
        let wanted = Some(Wanted { generation: 0, since: now, by_reload: false });
        Preload { wanted, ..Preload::default() }
    }

    /// When its timer expires.
    pub(super) fn timer(&self) -> Option<Time> {
        self.timer
    }

    /// Whether no command is running or being stopped.
    pub(super) fn is_idle(&self) -> bool {
        self.process.is_none()
    }

    /// When the reload that waits for the command was requested.
    pub(super) fn reload_since(&self) -> Option<Time> {
        self.wanted.filter(|wanted| wanted.by_reload).map(|wanted| wanted.since)
    }

    fn is_wanted(&self, process: &Process) -> bool {
        self.wanted.is_some_and(|wanted| wanted.generation == process.generation)
    }
}

impl Supervisor {
    /// Whether workers may start: the command of the current generation is complete, or there is none.
    pub(super) fn is_preloaded(&self) -> bool {
        !self.settings.preload || self.preload.completed_once
    }

    /// The generation whose preload command waits or runs.
    pub fn preloads(&self) -> Option<u32> {
        self.preload.wanted.map(|wanted| wanted.generation)
    }

    /// Whether a preload command is not needed any more, and its end is expected.
    pub(super) fn expects_end_of_preload(&self, id: WorkerId) -> bool {
        let process = self.preload.process.as_ref().filter(|process| process.id == id);
        process.is_none_or(|process| match process.phase {
            Phase::Launching { cancelled } => cancelled,
            Phase::Running { .. } => false,
            Phase::Stopping { .. } => true,
        })
    }

    /// The user requests a reload, which waits for the command of the new generation. What an earlier reload has not
    /// replaced stays as it is.
    pub(super) fn reload_after_preload(&mut self, now: Time) {
        if self.rollout.is_some() {
            self.set_rollout(None);
            self.start_times.reload_ended(false);
        }
        let wanted = Wanted { generation: self.requested_generation, since: now, by_reload: true };
        self.preload.wanted = Some(wanted);
        self.preload.throttle.reset();
        self.reconcile_all(now);
    }

    /// The command of an [`Action::Preload`] runs.
    pub(super) fn preload_launched(&mut self, now: Time, id: WorkerId) {
        let Some(process) = self.preload.process.as_mut().filter(|process| process.id == id) else { return };
        match process.phase {
            Phase::Launching { cancelled: false } => process.phase = Phase::Running { since: now },
            Phase::Launching { cancelled: true } => self.stop_preload(now),
            Phase::Running { .. } | Phase::Stopping { .. } => {}
        }
        self.reconcile_preload(now);
    }

    /// The command of an [`Action::Preload`] failed to start.
    pub(super) fn preload_not_launched(&mut self, now: Time, id: WorkerId, failure: LaunchFailure) {
        let Some(process) = self.preload.process.take_if(|process| process.id == id) else { return };
        if matches!(process.phase, Phase::Launching { cancelled: false }) {
            match failure {
                LaunchFailure::Passing => {
                    let wait = self.preload.throttle.launch_delayed(now, &self.settings);
                    let (generation, cause) = (process.generation, PreloadFailure::NotLaunched);
                    let next = AfterPreload::Retry(wait);
                    self.push(Report::PreloadFailed { id, generation, cause, next, reload: false });
                }
                LaunchFailure::Lasting if !self.launched_once && !self.preload.completed_once => {
                    let (generation, cause) = (process.generation, PreloadFailure::NotLaunched);
                    let reload = self.preload.reload_since().is_some();
                    let next = AfterPreload::Nothing;
                    self.push(Report::PreloadFailed { id, generation, cause, next, reload });
                    return self.shut_down(now, Outcome::CannotStart);
                }
                LaunchFailure::Lasting | LaunchFailure::NoAnswer => {
                    self.preload_failed(now, process, PreloadFailure::NotLaunched, Duration::ZERO);
                }
            }
        }
        self.reconcile_preload(now);
    }

    /// The command has ended, with all its processes. `complete`: it succeeded, and its output can be used.
    pub(super) fn preload_ended(&mut self, now: Time, id: WorkerId, complete: bool) {
        let Some(process) = self.preload.process.take_if(|process| process.id == id) else { return };
        let Phase::Running { since } = process.phase else {
            return self.reconcile_preload(now);
        };
        let took = now.since(since);
        if !complete {
            self.preload_failed(now, process, PreloadFailure::Ended, took);
            return self.reconcile_preload(now);
        }
        let Some(wanted) = self.preload.wanted.take() else { return self.reconcile_preload(now) };
        self.preload.throttle.reset();
        self.preload.completed_once = true;
        self.actions.push_back(Action::UsePreload(id));
        self.push(Report::Preloaded { id, generation: wanted.generation, took });
        if wanted.by_reload {
            self.begin_generation(wanted.generation, wanted.since, now);
        } else {
            self.generation = wanted.generation;
            self.reconcile_all(now);
        }
    }

    /// A command failed. It fails its reload. If no generation can serve, it is tried again by the throttle's rule, and
    /// counts as an early exit of a worker.
    fn preload_failed(&mut self, now: Time, process: Process, cause: PreloadFailure, uptime: Duration) {
        let (id, generation) = (process.id, process.generation);
        let reload = self.preload.reload_since().is_some();
        if self.preload.completed_once {
            self.preload.wanted = None;
            let next = AfterPreload::Keep(self.slots.iter().filter(|slot| slot.serving.is_some()).count());
            return self.push(Report::PreloadFailed { id, generation, cause, next, reload });
        }
        if let Some(wanted) = &mut self.preload.wanted {
            wanted.by_reload = false;
        }
        let throttle = &mut self.preload.throttle;
        let wait = match cause {
            PreloadFailure::NotLaunched => throttle.launch_failed(now, &self.settings),
            PreloadFailure::Ended | PreloadFailure::Late => throttle.late(now, uptime, &self.settings),
        };
        let gives_up = self.mode == Mode::Running && self.restart_limiter.is_next_last(now);
        let next = if gives_up { AfterPreload::Nothing } else { AfterPreload::Retry(wait) };
        self.push(Report::PreloadFailed { id, generation, cause, next, reload });
        self.count_early_death(now);
    }

    /// Compares the command with what is wanted.
    pub(super) fn reconcile_preload(&mut self, now: Time) {
        if !self.settings.preload {
            return;
        }
        if self.mode != Mode::Running {
            self.preload.wanted = None;
        }
        self.reconcile_preload_process(now);
        self.release_place(PRELOAD, now);
        self.launch_preload_if_wanted(now);
        let process = self.preload.process.as_ref().and_then(|process| match process.phase {
            Phase::Launching { .. } => None,
            Phase::Running { since } => Some(since.after(self.settings.ready_timeout)),
            Phase::Stopping { kill_at } => kill_at,
        });
        let launch = self.preload.throttle.not_before().filter(|_| self.wants_preload());
        let due = [process, launch, self.gate.next_due(PRELOAD)].into_iter().flatten().min();
        self.timers.set(PRELOAD, self.preload.timer, due);
        self.preload.timer = due;
    }

    /// The timer of the command has expired.
    pub(super) fn preload_due(&mut self, now: Time) {
        self.preload.timer = None;
        self.reconcile_preload(now);
    }

    fn reconcile_preload_process(&mut self, now: Time) {
        let kill_now = matches!(self.mode, Mode::Stopping { kill: true, .. });
        let Some(process) = self.preload.process else { return };
        match process.phase {
            Phase::Launching { .. } => {
                let cancelled = !self.preload.is_wanted(&process);
                self.preload.process = Some(Process { phase: Phase::Launching { cancelled }, ..process });
            }
            Phase::Running { .. } if !self.preload.is_wanted(&process) => self.stop_preload(now),
            Phase::Running { since } if since.after(self.settings.ready_timeout) <= now => {
                self.stop_preload(now);
                self.preload_failed(now, process, PreloadFailure::Late, now.since(since));
            }
            Phase::Running { .. } => {}
            Phase::Stopping { kill_at: Some(at) } if kill_now || at <= now => {
                self.preload.process = Some(Process { phase: Phase::Stopping { kill_at: None }, ..process });
                self.actions.push_back(Action::KillPreload(process.id));
            }
            Phase::Stopping { .. } => {}
        }
    }

    fn stop_preload(&mut self, now: Time) {
        if let Some(process) = &mut self.preload.process {
            process.phase = Phase::Stopping { kill_at: Some(now.after(self.settings.kill_timeout)) };
            self.actions.push_back(Action::StopPreload(process.id));
        }
    }

    /// Whether a command is to start, which only the throttle and the gate may delay.
    pub(super) fn wants_preload(&self) -> bool {
        self.mode == Mode::Running && self.preload.wanted.is_some() && self.preload.process.is_none()
    }

    fn launch_preload_if_wanted(&mut self, now: Time) {
        let throttled = self.preload.throttle.not_before().is_some_and(|at| at > now);
        if throttled || !self.wants_preload() {
            return self.leave_gate(PRELOAD);
        }
        self.preload.throttle.clear_delay();
        if !self.waits_at_gate(PRELOAD, now) {
            self.launch_preload();
        }
    }

    /// Starts the command that is wanted.
    pub(super) fn launch_preload(&mut self) -> WorkerId {
        self.serial += 1;
        let id = WorkerId { slot: PRELOAD, serial: self.serial };
        let generation = self.preload.wanted.map_or(self.generation, |wanted| wanted.generation);
        self.preload.process = Some(Process { id, generation, phase: Phase::Launching { cancelled: false } });
        self.actions.push_back(Action::Preload { id, generation });
        id
    }

    /// Whether this command has a place at the gate because its start is not over.
    pub(super) fn is_preload_starting(&self, id: WorkerId) -> bool {
        self.preload
            .process
            .is_some_and(|process| process.id == id && !matches!(process.phase, Phase::Stopping { .. }))
    }

    /// Drops a start that was cancelled before it was carried out. Returns whether it was.
    pub(super) fn drop_cancelled_preload(&mut self, now: Time, id: WorkerId) -> bool {
        let is_cancelled = self.expects_end_of_preload(id);
        if is_cancelled {
            self.preload.process.take_if(|process| process.id == id);
            self.reconcile_preload(now);
        }
        is_cancelled
    }
}
