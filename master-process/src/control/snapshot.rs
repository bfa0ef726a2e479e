//! The state of a supervisor as data: what `status --json` prints, and what the metrics are made of.
//!
//! A number has its unit in its name, times are RFC 3339, and what is unknown is absent.

use std::borrow::Cow;
use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::journal::Restarts;

/// The whole state at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The version of this format.
    pub schema: u32,
    /// The name of the instance.
    pub name: String,
    /// The pid of the supervisor.
    pub pid: i32,
    /// The version of the supervisor.
    pub version: String,
    /// The commit that it was built from, if the build knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The command of the workers and its arguments.
    pub command: Vec<String>,
    /// Where the control socket is.
    pub control: String,
    /// Whether all is well.
    pub state: State,
    /// When the supervisor was started.
    pub started_at: String,
    /// How long it has run.
    pub uptime_seconds: f64,
    /// The number of slots that are wanted.
    pub slots_wanted: u32,
    /// The number of slots that have a ready worker.
    pub workers_ready: u32,
    /// The number of reloads so far; the generation of a worker that is started now.
    pub generation: u32,
    /// What measures the workers: `ebpf`, `procfs` or `off`.
    pub monitor: String,
    /// Whether the limits of all workers are paused.
    pub limits_paused: bool,
    /// The CPU time that all workers use now, in CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<f64>,
    /// The resident memory of all workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The connections in the accept queues of all workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_length: Option<u64>,
    /// Whether an accept queue that gets new connections is full.
    #[serde(default)]
    pub queue_full: bool,
    /// The restarts in the last hour that nobody asked for.
    pub restarts_last_hour: u64,
    /// The addresses on which workers listen.
    pub addresses: Vec<String>,
    /// The last reload; absent before the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload: Option<Reload>,
    /// The preload command that runs, or is to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preload: Option<Preload>,
    /// The reloads that have ended, by result.
    #[serde(default)]
    pub reloads_total: ReloadTotals,
    /// How long they took.
    #[serde(default)]
    pub reload_duration_seconds: Durations,
    /// What the supervisor itself uses.
    #[serde(default)]
    pub process: Process,
    /// The limits of the cgroup of each worker; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_limits: Option<CgroupLimits>,
    /// The number of the last event.
    pub last_seq: u64,
    /// The failed starts of one slot after which a reload is given up.
    pub reload_attempts: u32,
    /// The last upgrade in place; absent: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgraded: Option<Upgraded>,
    /// The workers, by slot; a slot without one has a row as well. In a slot, the newest comes first.
    pub workers: Vec<Worker>,
}

/// A time, as RFC 3339 in UTC, with milliseconds. It becomes text when it is written: an answer about a thousand workers has as many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(pub SystemTime);

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(self.0))
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Stamp, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map(Stamp).map_err(serde::de::Error::custom)
    }
}

/// The limits of the cgroup of each worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupLimits {
    /// `--worker-memory-max`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_max_bytes: Option<u64>,
    /// `--worker-memory-high`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_high_bytes: Option<u64>,
    /// `--worker-cpu-max`; 100 is one CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_max_percent: Option<f64>,
    /// `--worker-pids-max`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_max: Option<u32>,
}

/// Whether all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Every slot has a ready worker.
    Ready,
    /// Some slot has none, also while it starts.
    Degraded,
    /// Everything is being stopped.
    Stopping,
}

/// A worker, or a slot that has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Its slot.
    pub slot: u32,
    /// Its pid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Its generation.
    pub generation: u32,
    /// What it does.
    pub state: WorkerState,
    /// How long it has been in a state that is a problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_seconds: Option<f64>,
    /// When it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Stamp>,
    /// How long it has run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime_seconds: Option<f64>,
    /// The CPU time of the slot: the counter goes on when a worker is replaced. It is in the first row of the slot; further
    /// rows have that of their worker alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_seconds_total: Option<f64>,
    /// The CPU time at the last sample, in percent of one CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// The limit that `--max-cpu` gives, in percent of one CPU. The default, which applies to single stuck loops only, is
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit_percent: Option<f64>,
    /// Its resident memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The highest resident memory that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// The limit, if there is one: the smaller one of `--max-memory` and that of its cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// The path of its cgroup, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The connections in its accept queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_length: Option<u64>,
    /// The room in its accept queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_limit: Option<u64>,
    /// The connections that found no room in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_drops_total: Option<u64>,
    /// The address on which it does not accept, if it is hung.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hung_address: Option<String>,
    /// The time until the next start, if the throttle delays it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<f64>,
    /// The failed starts of the slot in a reload or restart that is not over.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failed_starts: u32,
    /// The workers of the slot that were replaced, by reason. In the first row of the slot.
    #[serde(default, skip_serializing_if = "Restarts::is_empty")]
    pub restarts_total: Restarts,
    /// The last end in the slot that nobody asked for. In the first row of the slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end: Option<Box<LastEnd>>,
}

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// It is not ready yet.
    Starting,
    /// It serves.
    Ready,
    /// It is of an earlier generation, and serves.
    Serving,
    /// Connections wait for it, and it does not accept them.
    Hung,
    /// It exceeds a limit, and serves until it is replaced.
    OverLimit,
    /// It gets no new connections.
    Draining,
    /// It has the stop signal.
    Stopping,
    /// There is none: the throttle delays the next start.
    Waiting,
}

impl WorkerState {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            WorkerState::Starting => "starting",
            WorkerState::Ready => "ready",
            WorkerState::Serving => "serving",
            WorkerState::Hung => "hung",
            WorkerState::OverLimit => "over_limit",
            WorkerState::Draining => "draining",
            WorkerState::Stopping => "stopping",
            WorkerState::Waiting => "waiting",
        }
    }
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastEnd {
    /// When.
    pub at: String,
    /// Its pid.
    pub pid: i32,
    /// Why it was replaced.
    pub reason: EndReason,
    /// Its exit code, if it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_name: Option<String>,
    /// Who sent that signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<Sender>,
    /// Whether it left a core dump.
    pub core_dumped: bool,
    /// The limit of its cgroup at which the OOM killer ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_limit_bytes: Option<u64>,
    /// The forks that a limit refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forks_refused: Option<u64>,
    /// How long it waited because it had used the CPU time of its cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_throttled_seconds: Option<f64>,
    /// Its CPU time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// The highest resident memory that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// How long it had run.
    pub uptime_seconds: f64,
    /// The last lines of its standard error, where the supervisor relays it.
    pub output: Vec<String>,
}

impl LastEnd {
    /// The end in one or two words: `exit 1`, `SIGKILL`, `oom`.
    pub fn words(&self) -> String {
        let ended = match (&self.signal_name, self.exit_code) {
            (Some(signal), _) if self.core_dumped => format!("{signal} (core dumped)"),
            (Some(signal), _) => signal.clone(),
            (None, Some(code)) => format!("exit {code}"),
            (None, None) => "ended".to_owned(),
        };
        match self.reason {
            EndReason::Oom => "oom".to_owned(),
            EndReason::Cpu => "over cpu".to_owned(),
            EndReason::Memory => "over memory".to_owned(),
            EndReason::NeverReady => "not ready".to_owned(),
            EndReason::Hung => "hung".to_owned(),
            EndReason::Exit
            | EndReason::Signal
            | EndReason::Reload
            | EndReason::Upgrade
            | EndReason::Request
            | EndReason::Stop => ended,
        }
    }

    /// The stable word for it as the reason of a failure.
    pub fn code(&self) -> &'static str {
        match self.reason {
            EndReason::Oom => "oom",
            EndReason::Cpu | EndReason::Memory => "over_limit",
            EndReason::NeverReady | EndReason::Hung => "never_ready",
            EndReason::Signal => "signaled",
            EndReason::Exit
            | EndReason::Reload
            | EndReason::Upgrade
            | EndReason::Request
            | EndReason::Stop => "exited",
        }
    }
}

/// Why a worker was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// It exited.
    Exit,
    /// A signal ended it.
    Signal,
    /// The kernel's OOM killer ended it.
    Oom,
    /// It exceeded `--max-cpu`.
    Cpu,
    /// It exceeded `--max-memory`.
    Memory,
    /// It did not accept connections.
    Hung,
    /// A reload.
    Reload,
    /// An upgrade of the supervisor.
    Upgrade,
    /// `master-process restart`.
    Request,
    /// It was not ready in time.
    NeverReady,
    /// The supervisor stops, or the slot was removed.
    Stop,
}

/// The sender of a signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// Its pid; absent if it is outside the PID namespace of the supervisor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Its name.
    pub comm: String,
    /// Its user.
    pub uid: u32,
}

/// A preload command that runs, or is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preload {
    /// The generation that it precedes.
    pub generation: u32,
    /// The pid of its first process; absent if it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
}

/// A reload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reload {
    /// Its number: the generation that it starts.
    pub number: u32,
    /// How far it is.
    pub state: ReloadState,
    /// The slots that were replaced.
    pub slots_done: u32,
    /// All slots.
    pub slots_total: u32,
    /// When it began.
    pub started_at: String,
    /// How long it took, or has taken until now.
    pub duration_seconds: f64,
    /// Who asked for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// Why it was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<FailedReload>,
}

/// The reloads that have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadTotals {
    /// Those after which every slot had a ready worker of the reload.
    pub complete: u64,
    /// Those that failed.
    pub given_up: u64,
    /// Those that a newer one replaced.
    pub superseded: u64,
}

/// How long the complete and the given up reloads took: a histogram.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Durations {
    /// The sum, in seconds.
    pub sum: f64,
    /// Their number.
    pub count: u64,
    /// Those of [`Durations::BOUNDS`], each without those of the one before.
    pub buckets: [u64; Durations::BOUNDS.len()],
}

impl Durations {
    /// The upper bounds of the buckets, in seconds. What takes longer is only in the count.
    pub const BOUNDS: [f64; 9] = [0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

    /// Adds one.
    pub fn add(&mut self, seconds: f64) {
        self.sum += seconds;
        self.count += 1;
        if let Some(at) = Durations::BOUNDS.iter().position(|bound| seconds <= *bound) {
            self.buckets[at] += 1;
        }
    }
}

/// What the supervisor itself uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Its CPU time.
    pub cpu_seconds_total: f64,
    /// Its resident memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Its address space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_memory_bytes: Option<u64>,
    /// Its open descriptors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_fds: Option<u64>,
    /// The most that it may open; absent if there is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_fds: Option<u64>,
}

/// How far a reload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReloadState {
    /// Workers are being replaced.
    Running,
    /// Every slot has a ready worker of it.
    Complete,
    /// It has failed: the workers that were not replaced serve.
    GivenUp,
    /// The supervisor stops.
    Stopping,
}

impl ReloadState {
    /// The words for it.
    pub fn words(self) -> &'static str {
        match self {
            ReloadState::Running => "running",
            ReloadState::Complete => "complete",
            ReloadState::GivenUp => "given up",
            ReloadState::Stopping => "stopping",
        }
    }
}

/// The last upgrade in place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Upgraded {
    /// How many there have been.
    pub count: u64,
    /// When.
    pub at: String,
    /// The version before.
    pub previous_version: String,
    /// How long no event was handled.
    pub pause_seconds: f64,
}

/// Why a reload or a restart was given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailedReload {
    /// `preload_failed`, `preload_late`, `exec_failed`, `exited`, `signaled`, `oom`, `never_ready`, `over_limit`, `superseded` or `stopping`.
    pub code: String,
    /// The slot that failed; absent if a preload command did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// The failed starts.
    pub attempts: u32,
    /// The failure of the last one.
    pub message: String,
    /// The last lines of its standard error, where the supervisor relays it.
    pub output: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
