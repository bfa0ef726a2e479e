//! The state of all workers as data: a supervisor that takes over from another one goes on from it.
//!
//! The settings are not part of it. They come from the command line, which the new program reads by itself.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::gate::Gate;
use super::preload::{PRELOAD, Preload};
use super::reload::Rollout;
use super::replacements::ReplacementQueue;
use super::slot::Slot;
use super::start_times::StartTimes;
use super::supervisor::{Mode, Supervisor};
use super::throttle::RestartLimiter;
use super::time::Timers;
use super::{Action, Settings, Time};

/// The state of a [`Supervisor`]. What a writer did not know yet has its default, and what a reader does not know is
/// ignored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    mode: Mode,
    wanted: u32,
    slots: Vec<Slot>,
    generation: u32,
    serial: u64,
    launched_once: bool,
    #[serde(default)]
    rollout: Option<Rollout>,
    /// The early exits that count for `--give-up`.
    #[serde(default)]
    early_deaths: VecDeque<Time>,
    /// The actions that are not carried out yet.
    #[serde(default)]
    actions: VecDeque<Action>,
    #[serde(default)]
    program_signals_ready: bool,
    #[serde(default)]
    start_times: StartTimes,
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    gate: Gate,
    #[serde(default)]
    replacements: ReplacementQueue,
    #[serde(default)]
    no_memory_limit: Vec<u32>,
    /// The generation of the last requested reload; `None`: the current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requested_generation: Option<u32>,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    preload: Preload,
}

impl Saved {
    /// The number of workers, in all slots.
    pub fn count_workers(&self) -> usize {
        self.slots.iter().map(Slot::workers).sum()
    }
}

impl Supervisor {
    /// The state now.
    pub fn save(&self) -> Saved {
        let Supervisor {
            settings: _,
            mode,
            wanted,
            slots,
            generation,
            rollout,
            restart_limiter,
            // The slots have them.
            timers: _,
            actions,
            serial,
            launched_once,
            program_signals_ready,
            start_times,
            paused,
            gate,
            replacements,
            no_memory_limit,
            requested_generation,
            preload,
        } = self;
        Saved {
            mode: *mode,
            wanted: *wanted,
            slots: slots.clone(),
            generation: *generation,
            serial: *serial,
            launched_once: *launched_once,
            rollout: rollout.clone(),
            early_deaths: restart_limiter.deaths().clone(),
            actions: actions.clone(),
            program_signals_ready: *program_signals_ready,
            start_times: *start_times,
            paused: *paused,
            gate: gate.clone(),
            replacements: replacements.clone(),
            no_memory_limit: no_memory_limit.clone(),
            requested_generation: Some(*requested_generation).filter(|requested| requested != generation),
            preload: preload.clone(),
        }
    }

    /// A supervisor that goes on from this state. The times of the state and those that it is called with have the same
    /// epoch.
    pub fn resume(settings: Settings, saved: Saved) -> Supervisor {
        let mut timers = Timers::default();
        for (slot, state) in (0..).zip(&saved.slots) {
            timers.set(slot, None, state.timer);
        }
        timers.set(PRELOAD, None, saved.preload.timer());
        Supervisor {
            mode: saved.mode,
            wanted: saved.wanted,
            slots: saved.slots,
            generation: saved.generation,
            rollout: saved.rollout,
            restart_limiter: RestartLimiter::with_deaths(settings.give_up, saved.early_deaths),
            timers,
            actions: saved.actions,
            serial: saved.serial,
            launched_once: saved.launched_once,
            program_signals_ready: saved.program_signals_ready,
            start_times: saved.start_times,
            paused: saved.paused,
            gate: saved.gate,
            replacements: saved.replacements,
            no_memory_limit: saved.no_memory_limit,
            requested_generation: saved.requested_generation.unwrap_or(saved.generation),
            preload: saved.preload,
            settings,
        }
    }
}
