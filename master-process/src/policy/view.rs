//! The state of the policy as others see it, for `status` and the like.

use super::slot::{Readiness, Serving, Slot, StartPhase, StopPhase};
use super::supervisor::{Mode, Supervisor, index};
use super::{Time, WorkerId};

/// A worker and what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerView {
    /// Which one.
    pub worker: WorkerId,
    /// Its state.
    pub state: WorkerState,
}

/// What a worker does, as far as the policy knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerState {
    /// It is not known to be ready.
    Starting,
    /// It serves.
    Ready,
    /// It serves until its replacement for a limit is ready.
    OverLimit,
    /// It is out of rotation, and returns if its successor exits early.
    Standby,
    /// It is out of rotation, and serves what it has.
    Draining,
    /// It has the stop signal, or SIGKILL.
    Stopping,
}

/// How far a reload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The number of slots that are not replaced yet.
    pub left: usize,
    /// When it began.
    pub since: Time,
}

impl Supervisor {
    /// The number of workers that is wanted.
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    /// The number of reloads so far.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The generation of the last requested reload, which is not the current one while its preload command runs.
    pub fn requested_generation(&self) -> u32 {
        self.requested_generation
    }

    /// Whether the limits of all workers are paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether everything is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.mode != Mode::Running
    }

    /// The failed starts after which a reload or a restart is given up.
    pub fn attempts(&self) -> u32 {
        self.settings.reload_attempts
    }

    /// How many slots a reload replaces at a time.
    pub fn reload_batch(&self) -> usize {
        self.settings.batch_of(index(self.wanted))
    }

    /// The reload in progress.
    pub fn reload_progress(&self) -> Option<Progress> {
        let preloads = self.preload.reload_since().map(|since| Progress { left: index(self.wanted), since });
        let rollout = self.rollout.as_ref();
        preloads.or(rollout.map(|rollout| Progress { left: rollout.count_left(), since: rollout.since }))
    }

    /// The number of slots, of which those from [`Self::wanted`] on are being removed.
    pub fn count_slots(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    /// Whether a worker that serves is known to be ready in this slot.
    pub fn is_ready(&self, slot: u32) -> bool {
        let serving = self.slots.get(index(slot)).and_then(|slot| slot.serving);
        serving.is_some_and(|serving| serving.ready_at().is_some())
    }

    /// Whether a worker ever became ready in this slot.
    pub fn has_been_ready(&self, slot: u32) -> bool {
        self.slots.get(index(slot)).is_some_and(|slot| slot.has_been_ready)
    }

    /// The failed starts of a slot in a reload or restart that is not over.
    pub fn failed_starts(&self, slot: u32) -> u32 {
        let state = self.slots.get(index(slot)).filter(|slot| self.rollout.is_some() || slot.restarts);
        state.map_or(0, |slot| slot.failed)
    }

    /// The time of the next start in a slot, if the throttle delays it.
    pub fn waits_until(&self, slot: u32) -> Option<Time> {
        let state = self.slots.get(index(slot))?;
        state.throttle.not_before().filter(|_| self.wants_launch(slot))
    }

    /// The workers of a slot that have a process: the one that starts or serves the current generation first.
    pub fn workers_of(&self, slot: u32) -> Vec<WorkerView> {
        self.views_of(slot).collect()
    }

    /// The same one by one.
    pub fn views_of(&self, slot: u32) -> impl Iterator<Item = WorkerView> {
        self.slots.get(index(slot)).into_iter().flat_map(Slot::view)
    }
}

impl Slot {
    fn view(&self) -> impl Iterator<Item = WorkerView> {
        let starting = self.starting.as_deref().and_then(|starting| match starting.phase {
            StartPhase::Launching => None,
            StartPhase::Waiting { .. } => {
                Some(WorkerView { worker: starting.worker, state: WorkerState::Starting })
            }
        });
        let serving = self.serving.map(|serving| self.view_of(&serving));
        let standby = self.standby.as_deref();
        let standby = standby.map(|of| WorkerView { worker: of.worker, state: WorkerState::Standby });
        let stopping = self.stopping.iter().filter_map(|stopping| {
            let state = match stopping.phase {
                StopPhase::Launching | StopPhase::Remains { .. } => return None,
                StopPhase::Draining { .. } => WorkerState::Draining,
                StopPhase::Signalled { .. } | StopPhase::Killed { .. } => WorkerState::Stopping,
            };
            Some(WorkerView { worker: stopping.worker, state })
        });
        starting.into_iter().chain(serving).chain(standby).chain(stopping)
    }

    fn view_of(&self, serving: &Serving) -> WorkerView {
        let state = match serving.readiness {
            Readiness::Unknown { .. } => WorkerState::Starting,
            Readiness::Since(_) if serving.to_be_replaced && !self.restarts => WorkerState::OverLimit,
            Readiness::Since(_) => WorkerState::Ready,
        };
        WorkerView { worker: serving.worker, state }
    }
}
