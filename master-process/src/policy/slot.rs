//! One slot: at most one serving worker, at most one starting, and those that are stopping.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::UsageTracker;
use super::replacements::Backoffs;
use super::throttle::Throttle;
use super::{Time, WorkerId};
use crate::config::Limits;

/// A slot and its workers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Slot {
    /// The starting worker. It is boxed because most slots have none, and each sample goes through up to ten thousand
    /// slots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) starting: Option<Box<Starting>>,
    /// The serving worker. While no worker is known to be ready, it may be one that was kept when a reload began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) serving: Option<Serving>,
    /// The previous worker, out of rotation. It returns to rotation if its successor exits early.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) standby: Option<Box<Serving>>,
    /// The end of the serving worker's probation in a reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) probation: Option<Time>,
    /// Workers that are draining, stopping, or killed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) stopping: Vec<Stopping>,
    /// The delay of the next start.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    pub(super) throttle: Throttle,
    /// The delays of replacements for limits.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    pub(super) backoffs: Backoffs,
    /// Whether a worker ever ran in the slot.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    pub(super) has_run: bool,
    /// Whether a worker ever became ready in the slot.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    pub(super) has_been_ready: bool,
    /// The number of failed starts in the current reload or restart.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    pub(super) failed: u32,
    /// Whether the user has requested the replacement of its worker, until the new one has passed its probation.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    pub(super) restarts: bool,
    /// The time that the slot's timer is set to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timer: Option<Time>,
}

/// A starting worker.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Starting {
    pub(super) worker: WorkerId,
    pub(super) generation: u32,
    pub(super) phase: StartPhase,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) tracker: UsageTracker,
}

/// The phase of a start.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum StartPhase {
    /// The driver has not answered yet.
    Launching,
    /// It runs, and counts as ready by its age from `ready_at` on.
    Waiting { since: Time, ready_at: Option<Time>, logged: Logged },
}

/// What was reported about a starting worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Logged {
    /// It takes longer than usual.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    pub(super) long: bool,
    /// It is late.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    pub(super) late: bool,
}

/// Whether a worker is ready.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Readiness {
    /// Ready since this time.
    Since(Time),
    /// Unknown: it may serve a listener that it was handed, without any signal. It counts as ready by its age from
    /// `ready_at` on.
    Unknown { ready_at: Option<Time> },
}

/// A worker that is ready, or is taken to serve because its slot had no other when a reload began.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Serving {
    pub(super) worker: WorkerId,
    pub(super) generation: u32,
    pub(super) since: Time,
    pub(super) readiness: Readiness,
    /// Whether it is to be replaced, for a limit or by request.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) to_be_replaced: bool,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    pub(super) tracker: UsageTracker,
}

/// A worker that is on its way out.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Stopping {
    pub(super) worker: WorkerId,
    pub(super) phase: StopPhase,
}

/// The phase of a stop.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum StopPhase {
    /// Its start was in progress when it was cancelled; the driver's answer decides.
    Launching,
    /// It is out of rotation and drains: until its queue has been empty for a while, or until `until`. `look_at` is
    /// the time of the next check of the queue; `None` while a check is in progress.
    Draining { since: Time, empty_since: Option<Time>, look_at: Option<Time>, until: Time },
    /// It got the stop signal, and gets SIGKILL at `kill_at`.
    Signalled { since: Time, signalled_at: Time, kill_at: Time },
    /// It got SIGKILL, and its end is awaited.
    Killed { since: Time },
    /// Its first process has ended and others are left. They got the stop signal, and get SIGKILL at `kill_at`;
    /// `None` if they got it. `crashed`: the first process was not stopping.
    Remains { signalled_at: Time, kill_at: Option<Time>, crashed: bool },
}

impl StopPhase {
    /// When the worker was started; `None` if it was not.
    pub(super) fn since(self) -> Option<Time> {
        match self {
            StopPhase::Launching | StopPhase::Remains { .. } => None,
            StopPhase::Draining { since, .. }
            | StopPhase::Signalled { since, .. }
            | StopPhase::Killed { since } => Some(since),
        }
    }
}

impl Serving {
    /// When the worker became ready.
    pub(super) fn ready_at(&self) -> Option<Time> {
        match self.readiness {
            Readiness::Since(at) => Some(at),
            Readiness::Unknown { .. } => None,
        }
    }

    /// Its samples are not judged from now on.
    pub(super) fn ends_judging(&mut self, now: Time, limits: &Limits) {
        if let Some(ready_at) = self.ready_at() {
            self.tracker.ends_judging(now, ready_at, limits);
        }
    }

    /// When the worker becomes ready by its age; `None` if it is ready.
    fn ages_at(&self) -> Option<Time> {
        match self.readiness {
            Readiness::Since(_) => None,
            Readiness::Unknown { ready_at } => ready_at,
        }
    }
}

impl Starting {
    /// The uptime of the worker.
    pub(super) fn uptime(&self, now: Time) -> Duration {
        match self.phase {
            StartPhase::Launching => Duration::ZERO,
            StartPhase::Waiting { since, .. } => now.since(since),
        }
    }
}

impl Slot {
    /// Whether the slot has no worker.
    pub(super) fn is_empty(&self) -> bool {
        self.workers() == 0
    }

    /// The number of workers in the slot.
    pub(super) fn workers(&self) -> usize {
        let one = |here: bool| usize::from(here);
        one(self.starting.is_some())
            + one(self.serving.is_some())
            + one(self.standby.is_some())
            + self.stopping.len()
    }

    /// The samples of a worker that is starting or serving.
    pub(super) fn tracker_of(&mut self, worker: WorkerId) -> Option<&mut UsageTracker> {
        let starting = self.starting.as_mut().map(|starting| (starting.worker, &mut starting.tracker));
        let ready = [self.serving.as_mut(), self.standby.as_deref_mut()].into_iter().flatten();
        let mut all = ready.map(|ready| (ready.worker, &mut ready.tracker)).chain(starting);
        all.find(|(of, _)| *of == worker).map(|(_, tracker)| tracker)
    }

    /// Removes `worker` from those that are stopping.
    pub(super) fn take_stopping(&mut self, worker: WorkerId) -> Option<Stopping> {
        let at = self.stopping.iter().position(|stopping| stopping.worker == worker)?;
        Some(self.stopping.swap_remove(at))
    }

    /// Whether the slot has a worker that is known to be ready, and serves or can serve again.
    pub(super) fn has_ready(&self) -> bool {
        [self.serving.as_ref(), self.standby.as_deref()]
            .into_iter()
            .flatten()
            .any(|worker| worker.ready_at().is_some())
    }

    /// A worker that serves or is on standby, and is not known to be ready.
    pub(super) fn kept(&mut self, worker: WorkerId) -> Option<&mut Serving> {
        let mut all = [self.serving.as_mut(), self.standby.as_deref_mut()].into_iter().flatten();
        all.find(|kept| kept.worker == worker && kept.ready_at().is_none())
    }

    /// A replacement begins, and the starting worker is the only one of the slot. It may serve without a readiness signal,
    /// so it is kept until its successor is ready.
    pub(super) fn keep_starting(&mut self) {
        if self.serving.is_some() {
            return;
        }
        let Some(Starting {
            worker,
            generation,
            phase: StartPhase::Waiting { since, ready_at, .. },
            tracker,
        }) = self.starting.as_deref().copied()
        else {
            return;
        };
        self.starting = None;
        let readiness = Readiness::Unknown { ready_at };
        self.serving = Some(Serving { worker, generation, since, readiness, to_be_replaced: false, tracker });
    }

    /// The next time at which the slot has something to do. `program_signals_ready`: age does not count. `allowed`:
    /// the time that a start may take. `wants_launch`: only the throttle delays the next start.
    pub(super) fn next_due(
        &self,
        program_signals_ready: bool,
        (unusual, allowed): (Duration, Duration),
        wants_launch: bool,
    ) -> Option<Time> {
        let by_age = |ready_at: Option<Time>| ready_at.filter(|_| !program_signals_ready);
        let has_ready = self.has_ready();
        let starting = self.starting.iter().filter_map(|starting| match starting.phase {
            StartPhase::Launching => None,
            StartPhase::Waiting { since, ready_at, logged } => {
                let long = (has_ready && !logged.long).then(|| since.after(unusual));
                let late = (has_ready || !logged.late).then(|| since.after(allowed));
                [long, late, by_age(ready_at)].into_iter().flatten().min()
            }
        });
        let serving = self.serving.iter().filter_map(|serving| by_age(serving.ages_at()));
        let stopping = self.stopping.iter().filter_map(|stopping| match stopping.phase {
            StopPhase::Launching | StopPhase::Killed { .. } => None,
            StopPhase::Draining { look_at, .. } => look_at,
            StopPhase::Signalled { kill_at, .. } => Some(kill_at),
            StopPhase::Remains { kill_at, .. } => kill_at,
        });
        let launch = self.throttle.not_before().filter(|_| wants_launch);
        starting.chain(serving).chain(stopping).chain(launch).chain(self.probation).min()
    }
}
