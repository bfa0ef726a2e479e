//! One slot: at most one worker that serves or may serve, at most one that starts, and those that are on their way out.

use std::time::Duration;

use super::limits::Watch;
use super::monitor::Backoffs;
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
    /// Until when the worker that serves is on trial in a reload.
    pub(super) trial: Option<Time>,
    /// Workers that were asked to leave and are not gone yet.
    pub(super) leaving: Vec<Leaving>,
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
    pub(super) watch: Watch,
}

/// How far a start has come.
#[derive(Debug, Clone, Copy)]
pub(super) enum StartPhase {
    /// The driver has not answered yet.
    Launching,
    /// It runs, and counts as ready by its age from `ready_at` on. `warned`: it is late, and that was said.
    Waiting { since: Time, ready_at: Option<Time>, warned: bool },
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
    pub(super) recycled: bool,
    pub(super) watch: Watch,
}

/// A worker that nobody counts on any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaving {
    pub(super) worker: WorkerId,
    pub(super) phase: LeavePhase,
}

/// How far a leave has come.
#[derive(Debug, Clone, Copy)]
pub(super) enum LeavePhase {
    /// Its start was under way when it became unwanted; the driver's answer decides.
    Launching,
    /// It is out of rotation and works off what waits for it: until its queue has been empty for a while, or
    /// `until`. `look_at` is when its queue is looked at next; `None`: a look is under way.
    Draining { since: Time, empty_since: Option<Time>, look_at: Option<Time>, until: Time },
    /// It has the stop signal and until `kill_at` to heed it.
    Asked { since: Time, asked_at: Time, kill_at: Time },
    /// It has SIGKILL; only its death is left to wait for.
    Killed { since: Time },
    /// Its first process is gone, and others of its tree are not: they have the stop signal, and SIGKILL from `kill_at` on.
    /// `None`: they have that, too. `crashed`: the first process was not asked to leave.
    Remains { asked_at: Time, kill_at: Option<Time>, crashed: bool },
}

impl LeavePhase {
    /// When the worker was started, where it was.
    pub(super) fn since(self) -> Option<Time> {
        match self {
            LeavePhase::Launching | LeavePhase::Remains { .. } => None,
            LeavePhase::Draining { since, .. }
            | LeavePhase::Asked { since, .. }
            | LeavePhase::Killed { since } => Some(since),
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
            + self.leaving.len()
    }

    /// What the samples of a worker that is wanted have said.
    pub(super) fn watch_of(&mut self, worker: WorkerId) -> Option<&mut Watch> {
        let starting = self.starting.as_mut().map(|starting| (starting.worker, &mut starting.watch));
        let ready = [self.serving.as_mut(), self.standby.as_deref_mut()].into_iter().flatten();
        let mut all = ready.map(|ready| (ready.worker, &mut ready.watch)).chain(starting);
        all.find(|(of, _)| *of == worker).map(|(_, watch)| watch)
    }

    /// Takes `worker` out of those that leave.
    pub(super) fn take_leaving(&mut self, worker: WorkerId) -> Option<Leaving> {
        let at = self.leaving.iter().position(|leaving| leaving.worker == worker)?;
        Some(self.leaving.swap_remove(at))
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
        let Some(Starting { worker, generation, phase: StartPhase::Waiting { since, ready_at, .. }, watch }) =
            self.starting.as_deref().copied()
        else {
            return;
        };
        self.starting = None;
        let readiness = Readiness::Unknown { ready_at };
        self.serving = Some(Serving { worker, generation, since, readiness, recycled: false, watch });
    }

    /// The next moment at which something in here is due. `known_to_sign` says that age proves nothing; `allowed` how long
    /// a start may take; `wants_launch` that only the throttle holds the next start back.
    pub(super) fn next_due(
        &self,
        known_to_sign: bool,
        allowed: Duration,
        wants_launch: bool,
    ) -> Option<Time> {
        let by_age = |ready_at: Option<Time>| ready_at.filter(|_| !known_to_sign);
        let has_ready = self.has_ready();
        let starting = self.starting.iter().filter_map(|starting| match starting.phase {
            StartPhase::Launching => None,
            StartPhase::Waiting { since, ready_at, warned } => {
                let late = (has_ready || !warned).then(|| since.after(allowed));
                [late, by_age(ready_at)].into_iter().flatten().min()
            }
        });
        let serving = self.serving.iter().filter_map(|serving| by_age(serving.ages_at()));
        let leaving = self.leaving.iter().filter_map(|leaving| match leaving.phase {
            LeavePhase::Launching | LeavePhase::Killed { .. } => None,
            LeavePhase::Draining { look_at, .. } => look_at,
            LeavePhase::Asked { kill_at, .. } => Some(kill_at),
            LeavePhase::Remains { kill_at, .. } => kill_at,
        });
        let launch = self.throttle.not_before().filter(|_| wants_launch);
        starting.chain(serving).chain(leaving).chain(launch).chain(self.trial).min()
    }
}
