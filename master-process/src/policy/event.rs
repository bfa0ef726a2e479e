//! The events and the actions of the policy.

use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};

use super::limits::Limit;
use super::preload::{AfterPreload, PreloadFailure};

/// One start of one worker. Unlike a pid, it is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub struct WorkerId {
    /// The slot of the worker, from 0 on.
    pub slot: u32,
    /// The number of this start.
    pub serial: u64,
}

/// As a list, because a state has many of them. It is read in both forms.
impl Serialize for WorkerId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (self.slot, self.serial).serialize(to)
    }
}

/// What a worker used at a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time of all threads since the start, in nanoseconds. It never decreases.
    pub cpu_ns: u64,
    /// Resident memory, in bytes.
    pub memory: u64,
    /// The sample before, from which on the use of CPU time counts; `None` at the first one.
    pub before: Option<Before>,
}

/// The time from the sample before to this one. Samples are not reported while a worker is within its limits, so the one
/// before is usually not known otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// How long ago the sample before was taken.
    pub ago: Duration,
    /// The time between the two, in nanoseconds.
    pub span_ns: u64,
    /// The CPU time in between, in nanoseconds.
    pub used_ns: u64,
}

/// The proportional set size of a worker's processes: shared memory counts divided by the number of processes that
/// share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pss {
    /// In bytes.
    Bytes(u64),
    /// It is unknown.
    Unknown(NoPss),
    /// The queue of inspections is full; it may be requested again.
    Deferred,
}

/// Why a worker's proportional set size is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoPss {
    /// The supervisor may not inspect one of its processes.
    Denied,
    /// This kernel does not report it.
    Unsupported,
    /// It has too many processes.
    TooManyProcesses,
    /// It took too long.
    TimedOut,
    /// Something else failed.
    Failed,
}

/// The busiest thread of a worker's processes between two inspections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busiest {
    /// The time between the inspections, in nanoseconds.
    pub span_ns: u64,
    /// The CPU time of the thread in that time, in nanoseconds.
    pub cpu_ns: u64,
}

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The worker of an [`Action::Launch`] runs.
    Launched(WorkerId),
    /// The worker of an [`Action::Launch`] failed to start.
    LaunchFailed(WorkerId, LaunchFailure),
    /// A worker sent a readiness signal.
    ReadySignal(WorkerId, ReadySignal),
    /// The command of an [`Action::Preload`] runs.
    PreloadLaunched(WorkerId),
    /// The command of an [`Action::Preload`] failed to start.
    PreloadNotLaunched(WorkerId, LaunchFailure),
    /// A preload command has ended, with all its processes. `true`: it succeeded, and its output can be used.
    PreloadEnded(WorkerId, bool),
    /// A place at the gate is ours, for the start that waits for it: [`Action::RequestPlace`].
    PlaceGiven,
    /// The result of an [`Action::CheckQueue`].
    Queue(WorkerId, Queue),
    /// A worker has ended, with all its processes.
    Died(WorkerId),
    /// The first process of a worker has ended, and others are left.
    DiedWithRemains(WorkerId),
    /// No process is left of a worker of an [`Event::DiedWithRemains`].
    RemainsGone(WorkerId),
    /// The processes that a crashed worker left have the stop signal, and none of them handles it.
    RemainsUnheeding(WorkerId),
    /// The first process of a worker has ended, and a daemon that it started continues as the worker. The daemon is
    /// ready when it listens, whatever its age.
    WentIntoBackground(WorkerId),
    /// A sample of a worker.
    Sampled(WorkerId, Usage),
    /// The result of an [`Action::MeasurePss`].
    Pss(WorkerId, Pss),
    /// The result of an [`Action::LookAtThreads`]. `None`: there was no earlier inspection, there are too many threads for
    /// a single one to be stuck, or they cannot be read.
    Threads(WorkerId, Option<Busiest>),
    /// A worker pauses (`true`) or resumes its own limits.
    WatchesItself(WorkerId, bool),
    /// The user pauses or resumes the limits of all workers, whichever they are not.
    ToggleMonitoring,
    /// The user pauses (`true`) or resumes the limits of all workers.
    PauseMonitoring(bool),
    /// The user requests a reload.
    Reload,
    /// The user requests a stop. A second request, some time later, kills the workers.
    Stop,
    /// The terminal is gone: stop, but never kill at once.
    Hangup,
    /// Add a worker.
    ScaleUp,
    /// Remove a worker.
    ScaleDown,
    /// Run this number of workers. Numbers that are not possible have no effect.
    Scale(u32),
    /// Replace the worker of this slot: the new one becomes ready first. Without a worker, the next one starts now.
    Restart(u32),
}

/// Why a worker failed to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchFailure {
    /// The kernel lacks a resource for now (EAGAIN, ENOMEM, EMFILE, ETXTBSY); the program is not at fault.
    Passing,
    /// It fails until the user changes something: no such file, not executable.
    Lasting,
    /// The start did not finish, because a file system does not answer. The next one may.
    NoAnswer,
}

/// The connections that wait for one worker alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// It has no queue of its own: its end loses no connection.
    None,
    /// No connection waits.
    Empty,
    /// Connections wait.
    Waiting,
}

/// A readiness signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadySignal {
    /// It called `listen(2)` on a stream socket, and listens on all addresses that it is to serve.
    Listen,
    /// It called `listen(2)`, and does not listen yet on an address that its predecessor serves, or that was named.
    ListenPartly,
    /// It sent `READY=1`, or the newline of `notify:fd=N`.
    Notify,
}

/// An action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "an action that is not carried out is a worker that never starts or never stops"]
pub enum Action {
    /// Start this worker; answered by `Launched` or `LaunchFailed`.
    Launch {
        /// Which one.
        worker: WorkerId,
        /// The generation: its `RELOAD_INDEX`.
        generation: u32,
    },
    /// Run the preload command of this generation; answered by `PreloadLaunched` or `PreloadNotLaunched`, and by
    /// `PreloadEnded`.
    Preload {
        /// Its id.
        id: WorkerId,
        /// The generation: its `RELOAD_INDEX`.
        generation: u32,
    },
    /// Send all processes of this preload command the stop signal: it is not needed any more.
    StopPreload(WorkerId),
    /// Kill all processes of this preload command.
    KillPreload(WorkerId),
    /// Pass the output of this preload command to the next workers, in the place of the earlier one.
    UsePreload(WorkerId),
    /// A start waits for a place at the gate. Answered by [`Event::PlaceGiven`] as soon as there is one, and again as long as
    /// [`Supervisor::awaits_place`](super::Supervisor::awaits_place).
    RequestPlace,
    /// A place at the gate is not needed any more.
    ReleasePlace,
    /// A reload to this generation is in progress; `None`: none is. It is in order with the other actions: a worker
    /// that serves at the end of a reload is added to the rotation before it.
    Target(Option<u32>),
    /// Route new connections to this worker.
    AddToRotation(WorkerId),
    /// Route no new connections to this worker.
    RemoveFromRotation(WorkerId),
    /// Check the queue of this worker; answered by [`Event::Queue`].
    CheckQueue(WorkerId),
    /// Send this worker the stop signal.
    Stop(WorkerId),
    /// Send the stop signal to the processes that a worker left, unless they got it with the first one.
    StopRemains(WorkerId),
    /// Kill all processes of this worker.
    Kill(WorkerId),
    /// Measure the proportional set size of this worker; answered by [`Event::Pss`].
    MeasurePss(WorkerId),
    /// Examine the threads of this worker; answered by [`Event::Threads`].
    LookAtThreads(WorkerId),
    /// Send this worker the signal about high memory use.
    SignalHigh(WorkerId),
    /// Log this.
    Report(Report),
}

/// A report for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// A worker became ready.
    Ready {
        /// Which one.
        worker: WorkerId,
        /// The time since its start.
        after: Duration,
        /// The reason.
        by: ReadyBy,
        /// The worker of an earlier generation that it replaces.
        replaces: Option<WorkerId>,
    },
    /// A worker ended that was not being stopped.
    Died {
        /// Which one.
        worker: WorkerId,
        /// Its uptime.
        uptime: Duration,
        /// What happens next.
        next: Next,
    },
    /// A worker that was being stopped has ended.
    Left {
        /// Which one.
        worker: WorkerId,
        /// Its uptime.
        uptime: Duration,
    },
    /// A worker is not ready in time. No other worker serves its slot, so its start goes on.
    Slow {
        /// Which one.
        worker: WorkerId,
        /// Its uptime.
        after: Duration,
    },
    /// A worker takes longer than usual to become ready. Another one serves its slot.
    Waits {
        /// Which one.
        worker: WorkerId,
        /// Its uptime.
        after: Duration,
    },
    /// A worker was not ready in time and is stopped: another one serves its slot.
    Late {
        /// Which one.
        worker: WorkerId,
        /// The time that it was given.
        after: Duration,
        /// What happens next.
        next: Next,
    },
    /// A worker failed to start.
    LaunchFailed {
        /// Which one.
        worker: WorkerId,
        /// What happens next.
        next: Next,
    },
    /// The preload command of a generation is complete: the workers of the generation can start.
    Preloaded {
        /// The command.
        id: WorkerId,
        /// The generation.
        generation: u32,
        /// Its duration.
        took: Duration,
    },
    /// A preload command failed.
    PreloadFailed {
        /// The command.
        id: WorkerId,
        /// The generation.
        generation: u32,
        /// The kind of the failure.
        cause: PreloadFailure,
        /// What happens next.
        next: AfterPreload,
        /// Whether the reload to this generation has failed with it.
        reload: bool,
    },
    /// A start has waited for a place at the gate for long enough, and begins without one.
    NoPlace {
        /// The slot of the start; `None`: a preload command.
        slot: Option<u32>,
        /// The time that it waited.
        after: Duration,
    },
    /// A worker did not stop in time and is killed.
    Overdue {
        /// Which one.
        worker: WorkerId,
        /// The time since the stop signal.
        after: Duration,
    },
    /// A worker exceeded a limit.
    OverLimit {
        /// Which one.
        worker: WorkerId,
        /// The details.
        over: OverLimit,
    },
    /// A worker exceeded the default memory limit at its first sample: the limit is disabled for this program.
    DefaultDisabled {
        /// Which one.
        worker: WorkerId,
        /// The memory at its first judged sample, in bytes.
        used: u64,
        /// The limit, in the same unit.
        most: u64,
    },
    /// The replacement of a worker is cancelled, because it no longer exceeds a limit.
    ReplacementCancelled {
        /// Which one.
        worker: WorkerId,
    },
    /// The limits of all workers were paused or resumed.
    Monitoring {
        /// Whether they are paused.
        paused: bool,
    },
    /// A worker paused or resumed its own limits.
    WatchesItself {
        /// Which one.
        worker: WorkerId,
        /// Whether they are paused.
        paused: bool,
        /// It has done both before.
        often: bool,
    },
    /// A reload began.
    ReloadStarted {
        /// The new generation.
        generation: u32,
        /// The number of slots to replace.
        slots: usize,
    },
    /// A slot was replaced: its new worker has passed its probation.
    SlotReloaded {
        /// The generation.
        generation: u32,
        /// The slot.
        slot: u32,
    },
    /// Every slot has a ready worker of this generation.
    ReloadDone {
        /// The generation.
        generation: u32,
        /// The duration of the reload.
        took: Duration,
    },
    /// A reload failed.
    ReloadFailed {
        /// The generation.
        generation: u32,
        /// The slot whose workers failed.
        slot: u32,
        /// The number of failed workers.
        attempts: u32,
        /// The failure of the last one.
        cause: FailedStart,
        /// The number of workers of earlier generations that keep serving.
        kept: usize,
    },
    /// The user has requested that the worker of a slot is replaced.
    RestartStarted {
        /// The slot.
        slot: u32,
        /// The worker that is to be replaced; `None` if the slot has none, and a start follows.
        worker: Option<WorkerId>,
    },
    /// A requested replacement is complete: the new worker has passed its probation.
    RestartDone {
        /// The new worker.
        worker: WorkerId,
    },
    /// A requested replacement failed: the old worker keeps serving.
    RestartFailed {
        /// The slot.
        slot: u32,
        /// The number of failed workers.
        attempts: u32,
        /// The failure of the last one.
        cause: FailedStart,
    },
    /// The number of workers changed.
    Scaled {
        /// The old number.
        from: u32,
        /// The new number.
        to: u32,
    },
    /// All workers get the stop signal.
    Stopping {
        /// The number of workers.
        workers: usize,
    },
    /// All remaining workers are killed after a second stop signal.
    Killing {
        /// The number of workers.
        workers: usize,
    },
    /// Too many early exits: everything stops.
    GaveUp {
        /// The number of early exits.
        deaths: u32,
        /// The time in which they happened.
        within: Duration,
    },
}

/// An exceeded limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverLimit {
    /// Which one.
    pub limit: Limit,
    /// What the worker used when it was last measured: CPU nanoseconds per second, or bytes.
    pub used: u64,
    /// The limit, in the same unit.
    pub most: u64,
    /// What `used` measures.
    pub measured: Measured,
    /// How many samples in a row were above the limit.
    pub samples: u32,
    /// The delay of the replacement, if the worker still exceeds the limit then; `None`: it is replaced now.
    pub wait: Option<Duration>,
    /// The replacement waits for others: as many slots as allowed are being replaced.
    pub queued: bool,
    /// The previous worker was replaced for the same limit, which may not fit the program.
    pub again: bool,
}

/// What was compared with the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Measured {
    /// CPU time.
    Cpu,
    /// The proportional set size.
    Pss,
    /// Resident memory, added up over the processes, because the proportional set size is unknown.
    Resident(NoPss),
}

/// How a new worker of a reload failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailedStart {
    /// It ended before it was ready, or early.
    Died,
    /// It was not ready in time.
    Late(WorkerId),
    /// It failed to start.
    NotLaunched,
}

/// Why a worker counts as ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadyBy {
    /// It sent a readiness signal.
    Signal(ReadySignal),
    /// It has run long enough.
    Age,
    /// There is no readiness check.
    Launch,
}

/// What happens after a worker's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Next {
    /// It is restarted after this delay.
    Restart(Duration),
    /// Its successor is already starting.
    Successor,
    /// The worker that it was to replace keeps serving.
    Predecessor,
    /// Nothing: everything stops, or its slot was removed.
    Nothing,
}
