//! Events as clients see them.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::journal::{seconds, time};
use super::ring::What;
use super::snapshot::{FailedReload, LastEnd};

/// An event. Only the fields that belong to its kind are there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// When it happened.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub time: String,
    /// Its number. The numbers have no gaps; with `missed`, it is that of the last event that was missed.
    pub seq: u64,
    /// What happened: `worker.started` and the like.
    pub event: String,
    /// The slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// The pid of the worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The generation of the worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// The time from the start to ready, or of a whole reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_seconds: Option<f64>,
    /// The pid of the worker that this one replaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces_pid: Option<i32>,
    /// The address on which a worker does not accept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The connections that wait there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_length: Option<u32>,
    /// The limit that was exceeded: `memory` or `cpu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// What was used: bytes, or nanoseconds of CPU time per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// The limit, in the same unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most: Option<u64>,
    /// How a worker ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<LastEnd>,
    /// How long an ended worker served without new connections before the stop signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drained_seconds: Option<f64>,
    /// The time from the stop signal to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped_seconds: Option<f64>,
    /// The time until the next start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<f64>,
    /// The number of the reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload: Option<u32>,
    /// The number of its slots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots_total: Option<u32>,
    /// The newer reload that took its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<u32>,
    /// Why a reload or restart was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<FailedReload>,
    /// Why a worker could not be started, a preload command failed, or another version could not take over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The size of the output of a preload command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The number of workers before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
    /// The number of workers from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<u32>,
    /// Who asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Whether the limits of all workers are paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits_paused: Option<bool>,
    /// What measures the workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<String>,
    /// The version of the program that took over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The version of the program before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_version: Option<String>,
    /// How long no event was handled meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_seconds: Option<f64>,
    /// The number of events that are no longer kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
}

fn millis(ms: u32) -> Option<f64> {
    Some(seconds(Duration::from_millis(ms.into())))
}

fn by(who: &str) -> Option<String> {
    (!who.is_empty()).then(|| who.to_owned())
}

impl Event {
    /// The line for events that a slow reader has missed, up to `seq`.
    pub(super) fn missed(count: u64, seq: u64) -> Event {
        Event { seq, event: "missed".to_owned(), missed: Some(count), ..Event::default() }
    }

    pub(super) fn of(seq: u64, at: SystemTime, what: &What) -> Event {
        let new = |event: &str| Event { time: time(at), seq, event: event.to_owned(), ..Event::default() };
        let of = |event: &str, slot: u32, pid: i32| Event { slot: Some(slot), pid: Some(pid), ..new(event) };
        match what {
            What::Started { slot, pid, generation } => {
                Event { generation: Some(*generation), ..of("worker.started", *slot, *pid) }
            }
            What::Ready { slot, pid, after_ms, replaces } => Event {
                after_seconds: millis(*after_ms),
                replaces_pid: *replaces,
                ..of("worker.ready", *slot, *pid)
            },
            What::Hung { slot, pid, address, queued } => Event {
                address: Some(address.to_string()),
                queue_length: Some(*queued),
                ..of("worker.hung", *slot, *pid)
            },
            What::Accepting { slot, pid } => of("worker.accepting", *slot, *pid),
            What::OverLimit { slot, pid, limit, used, most } => Event {
                limit: Some(limit.to_string()),
                used: Some(*used),
                most: Some(*most),
                ..of("worker.over_limit", *slot, *pid)
            },
            What::Draining { slot, pid } => of("worker.draining", *slot, *pid),
            What::Ended(ended) => Event {
                drained_seconds: ended.drained_ms.and_then(millis),
                stopped_seconds: ended.stopped_ms.and_then(millis),
                end: Some(ended.end.wire(at, ended.pid, ended.reason)),
                ..of("worker.ended", ended.slot, ended.pid)
            },
            What::StartFailed { slot, message } => {
                Event { slot: Some(*slot), message: Some(message.to_string()), ..new("worker.start_failed") }
            }
            What::Throttled { slot, wait_ms } => {
                Event { slot: Some(*slot), wait_seconds: millis(*wait_ms), ..new("worker.throttled") }
            }
            What::Preloaded { generation, bytes, took_ms } => Event {
                generation: Some(*generation),
                bytes: Some(*bytes),
                after_seconds: millis(*took_ms),
                ..new("preload.complete")
            },
            What::PreloadFailed { generation, message } => Event {
                generation: Some(*generation),
                message: Some(message.to_string()),
                ..new("preload.failed")
            },
            What::ReloadBegun { reload, slots, by: who } => {
                Event { reload: Some(*reload), slots_total: Some(*slots), by: by(who), ..new("reload.begun") }
            }
            What::SlotDone { reload, slot } => {
                Event { reload: Some(*reload), slot: Some(*slot), ..new("reload.slot_done") }
            }
            What::ReloadComplete { reload, took_ms } => {
                Event { reload: Some(*reload), after_seconds: millis(*took_ms), ..new("reload.complete") }
            }
            What::ReloadGivenUp { reload, error } => Event {
                reload: Some(*reload),
                slot: error.slot,
                error: Some((**error).clone()),
                ..new("reload.given_up")
            },
            What::ReloadSuperseded { reload, by } => {
                Event { reload: Some(*reload), superseded_by: Some(*by), ..new("reload.superseded") }
            }
            What::RestartBegun { slot, pid, by: who } => {
                Event { slot: Some(*slot), pid: *pid, by: by(who), ..new("restart.begun") }
            }
            What::RestartComplete { slot, pid } => of("restart.complete", *slot, *pid),
            What::RestartGivenUp { error } => {
                Event { slot: error.slot, error: Some((**error).clone()), ..new("restart.given_up") }
            }
            What::Scaled { from, to, by: who } => {
                Event { from: Some(*from), to: Some(*to), by: by(who), ..new("scaled") }
            }
            What::SupervisorStarted => new("supervisor.started"),
            What::UpgradeFailed { message } => {
                Event { message: Some(message.to_string()), ..new("supervisor.upgrade_failed") }
            }
            What::Upgraded { from, to, pause_ms } => Event {
                previous_version: Some(from.to_string()),
                version: Some(to.to_string()),
                pause_seconds: millis(*pause_ms),
                ..new("supervisor.upgraded")
            },
            What::SupervisorStopping { by: who } => Event { by: by(who), ..new("supervisor.stopping") },
            What::LimitsPaused { paused, by: who } => {
                Event { limits_paused: Some(*paused), by: by(who), ..new("monitor.changed") }
            }
            What::Monitor { source } => Event { monitor: Some(source.to_string()), ..new("monitor.changed") },
        }
    }
}
