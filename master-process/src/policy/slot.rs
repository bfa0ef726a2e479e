//! One slot: at most one worker that serves or may serve, at most one that starts, and those that are on their way out.

use std::time::Duration;

use super::limits::UsageTracker;
use super::replacements::Backoffs;
use super::throttle::Throttle;
use super::{Time, WorkerId};

/// A slot and everything in it.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Slot {
    /// The worker that is to serve next. Mostly there is none, and ten thousand slots are gone through at every sample.
    pub(super) starting: Option<Box<Starting>>,
    /// The worker that serves; or, while nobody is known to be ready, the one that may be serving since before a reload.
    pub(super) serving: Option<Serving>,
    /// The worker that served before, out of rotation: it comes back if its successor dies early.
    pub(super) standby: Option<Box<Serving>>,
    /// Until when the worker that serves is on probation in a reload.
    pub(super) probation: Option<Time>,
    /// Workers that were asked to leave and are not gone yet.
    pub(super) stopping: Vec<Stopping>,
    /// How long the next start has to wait.
    pub(super) throttle: Throttle,
    /// When a worker that uses too much may be replaced next.
    pub(super) backoffs: Backoffs,
    /// How many starts have failed in the reload that is under way.
    pub(super) failed: u32,
    /// What the slot's timer is set to.
    pub(super) timer: Option<Time>,
}

/// A worker that is not ready yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Starting {
    pub(super) worker: WorkerId,
    pub(super) generation: u32,
    pub(super) phase: StartPhase,
    pub(super) tracker: UsageTracker,
}

/// How far a start has come.
#[derive(Debug, Clone, Copy)]
pub(super) enum StartPhase {
    /// The driver has not answered yet.
    Launching,
    /// It runs, and counts as ready by its age from `ready_at` on.
    Waiting { since: Time, ready_at: Option<Time>, said: Said },
}

/// What was said of a worker that is not ready yet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Said {
    /// That it takes longer than usual.
    pub(super) long: bool,
    /// That it is late.
    pub(super) late: bool,
}

/// Whether a worker is ready.
#[derive(Debug, Clone, Copy)]
pub(super) enum Readiness {
    /// Since then.
    Since(Time),
    /// Not known: it may serve what it was handed, without a word. It counts as ready by its age from `ready_at` on.
    Unknown { ready_at: Option<Time> },
}

/// A worker that is ready, or that must be taken to serve because its slot had nobody else when a reload began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Serving {
    pub(super) worker: WorkerId,
    pub(super) generation: u32,
    pub(super) since: Time,
    pub(super) readiness: Readiness,
    /// Whether it is to be replaced because of what it uses.
    pub(super) over_limit: bool,
    pub(super) tracker: UsageTracker,
}

/// A worker that nobody counts on any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopping {
    pub(super) worker: WorkerId,
    pub(super) phase: StopPhase,
}

/// How far a leave has come.
#[derive(Debug, Clone, Copy)]
pub(super) enum StopPhase {
    /// Its start was under way when it became unwanted; the driver's answer decides.
    Launching,
    /// It is out of rotation and works off what waits for it: until its queue has been empty for a while, or
    /// `until`. `look_at` is when its queue is looked at next; `None`: a look is under way.
    Draining { since: Time, empty_since: Option<Time>, look_at: Option<Time>, until: Time },
    /// It has the stop signal and until `kill_at` to heed it.
    Signalled { since: Time, signalled_at: Time, kill_at: Time },
    /// It has SIGKILL; only its death is left to wait for.
    Killed { since: Time },
    /// Its first process is gone, and others of its tree are not: they have the stop signal, and SIGKILL from `kill_at` on.
    /// `None`: they have that, too. `crashed`: the first process was not asked to leave.
    Remains { signalled_at: Time, kill_at: Option<Time>, crashed: bool },
}

impl StopPhase {
    /// When the worker was started, where it was.
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
    /// Since when it has been known to be ready.
    pub(super) fn ready_at(&self) -> Option<Time> {
        match self.readiness {
            Readiness::Since(at) => Some(at),
            Readiness::Unknown { .. } => None,
        }
    }

    /// When its age makes it ready, unless it is.
    fn ages_at(&self) -> Option<Time> {
        match self.readiness {
            Readiness::Since(_) => None,
            Readiness::Unknown { ready_at } => ready_at,
        }
    }
}

impl Starting {
    /// How long it has been running.
    pub(super) fn uptime(&self, now: Time) -> Duration {
        match self.phase {
            StartPhase::Launching => Duration::ZERO,
            StartPhase::Waiting { since, .. } => now.since(since),
        }
    }
}

impl Slot {
    /// Whether nothing is left in it.
    pub(super) fn is_empty(&self) -> bool {
        self.workers() == 0
    }

    /// How many processes it stands for.
    pub(super) fn workers(&self) -> usize {
        let one = |here: bool| usize::from(here);
        one(self.starting.is_some())
            + one(self.serving.is_some())
            + one(self.standby.is_some())
            + self.stopping.len()
    }

    /// What the samples of a worker that is wanted have said.
    pub(super) fn tracker_of(&mut self, worker: WorkerId) -> Option<&mut UsageTracker> {
        let starting = self.starting.as_mut().map(|starting| (starting.worker, &mut starting.tracker));
        let ready = [self.serving.as_mut(), self.standby.as_deref_mut()].into_iter().flatten();
        let mut all = ready.map(|ready| (ready.worker, &mut ready.tracker)).chain(starting);
        all.find(|(of, _)| *of == worker).map(|(_, tracker)| tracker)
    }

    /// Takes `worker` out of those that leave.
    pub(super) fn take_stopping(&mut self, worker: WorkerId) -> Option<Stopping> {
        let at = self.stopping.iter().position(|stopping| stopping.worker == worker)?;
        Some(self.stopping.swap_remove(at))
    }

    /// Whether somebody in here is known to be ready, and serves or can serve again.
    pub(super) fn has_ready(&self) -> bool {
        [self.serving.as_ref(), self.standby.as_deref()]
            .into_iter()
            .flatten()
            .any(|worker| worker.ready_at().is_some())
    }

    /// A worker that serves or stands by, and is not known to be ready.
    pub(super) fn kept(&mut self, worker: WorkerId) -> Option<&mut Serving> {
        let mut all = [self.serving.as_mut(), self.standby.as_deref_mut()].into_iter().flatten();
        all.find(|kept| kept.worker == worker && kept.ready_at().is_none())
    }

    /// A reload begins, and the worker that starts in here is all that the slot has. It may serve although nothing says
    /// so: it keeps its place until its successor is ready.
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
        self.serving = Some(Serving { worker, generation, since, readiness, over_limit: false, tracker });
    }

    /// The next moment at which something in here is due. `program_signals_ready` says that age proves nothing; `allowed` how long
    /// a start may take; `wants_launch` that only the throttle holds the next start back.
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
            StartPhase::Waiting { since, ready_at, said } => {
                let long = (has_ready && !said.long).then(|| since.after(unusual));
                let late = (has_ready || !said.late).then(|| since.after(allowed));
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
