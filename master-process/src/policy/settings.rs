//! The part of the configuration on which decisions depend.

use std::time::Duration;

use crate::config::{Batch, Config, GiveUp, Limits, ReadyMode};

/// The settings of the policy; each field is as in [`Config`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// The number of workers at the start.
    pub workers: u32,
    /// See [`Config::throttle`].
    pub throttle: Duration,
    /// See [`Config::throttle_max`].
    pub throttle_max: Duration,
    /// See [`Config::give_up`].
    pub give_up: Option<GiveUp>,
    /// See [`Config::kill_timeout`].
    pub kill_timeout: Duration,
    /// See [`Config::drain`].
    pub drain: Duration,
    /// See [`Config::ready`].
    pub ready: ReadyMode,
    /// See [`Config::ready_timeout`].
    pub ready_timeout: Duration,
    /// See [`Config::reload_batch`].
    pub reload_batch: Batch,
    /// See [`Config::reload_attempts`].
    pub reload_attempts: u32,
    /// Whether starts wait for the places of the host: see [`Config::start_gate`].
    pub start_gate: bool,
    /// Whether a command runs before the first worker of each generation: see [`Config::preload`].
    pub preload: bool,
    /// See [`Limits`].
    pub limits: Limits,
    /// Whether a worker gets a signal when it uses much memory.
    pub signals_high_memory: bool,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Settings {
        Settings {
            workers: config.workers,
            throttle: config.throttle,
            throttle_max: config.throttle_max,
            give_up: config.give_up,
            kill_timeout: config.kill_timeout,
            drain: config.drain,
            ready: config.ready.clone(),
            ready_timeout: config.ready_timeout,
            reload_batch: config.reload_batch,
            reload_attempts: config.reload_attempts,
            start_gate: config.start_gate.is_some(),
            preload: config.preload.is_some(),
            limits: config.limits,
            signals_high_memory: config.memory_high_signal.is_some(),
        }
    }
}

impl Settings {
    /// The number of slots that a reload replaces at a time, out of `slots`; at least 1.
    pub(super) fn batch_of(&self, slots: usize) -> usize {
        self.reload_batch.of(slots)
    }
}
