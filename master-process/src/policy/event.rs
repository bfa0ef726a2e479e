//! What can happen, and what can be done about it: both closed.

use std::time::Duration;

use super::limits::Limit;

/// One start of one worker: never used again, unlike a pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId {
    /// The slot that it fills, from 0 on.
    pub slot: u32,
    /// Counts every start of this supervisor.
    pub serial: u64,
}

/// What a worker uses, as a sample saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Time on a CPU since its start, of all threads together, in nanoseconds. It only grows.
    pub cpu_ns: u64,
    /// Resident memory, in bytes.
    pub memory: u64,
}

/// What a worker's processes have in memory, what they share divided by how many share it: its proportional set size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pss {
    /// So many bytes.
    Bytes(u64),
    /// It cannot be had.
    Unknown(NoPss),
    /// There is no room for another look: it may be asked for again.
    Deferred,
}

/// Why a worker's proportional set size cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPss {
    /// We may not look at one of its processes.
    Denied,
    /// This kernel does not tell.
    Unsupported,
    /// It has too many processes.
    TooManyProcesses,
    /// It took too long.
    TimedOut,
    /// Something else failed.
    Failed,
}

/// The busiest thread of a worker's processes between two looks at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busiest {
    /// From one look to the other, in nanoseconds.
    pub span_ns: u64,
    /// What the thread used meanwhile, in nanoseconds.
    pub cpu_ns: u64,
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The worker of an [`Action::Launch`] runs.
    Launched(WorkerId),
    /// The worker of an [`Action::Launch`] could not be started.
    LaunchFailed(WorkerId, LaunchFailure),
    /// A worker said in its own way that it is ready.
    ReadySignal(WorkerId, ReadySignal),
    /// What an [`Action::CheckQueue`] saw.
    Queue(WorkerId, Queue),
    /// A worker is gone, with everybody of its tree.
    Died(WorkerId),
    /// The first process of a worker is gone, and others of its tree are not.
    DiedWithRemains(WorkerId),
    /// Nobody is left of a worker of which [`Event::DiedWithRemains`] was said.
    RemainsGone(WorkerId),
    /// The first process of a worker has ended, and what it has started is the worker from now on: a daemon. It is ready
    /// when it listens, whatever its age.
    WentIntoBackground(WorkerId),
    /// A worker was measured.
    Sampled(WorkerId, Usage),
    /// What an [`Action::MeasurePss`] came to.
    Pss(WorkerId, Pss),
    /// What an [`Action::LookAtThreads`] came to; `None`: there was no look before to compare it with, there are too many
    /// threads for a single one to be stuck, or they cannot be looked at.
    Threads(WorkerId, Option<Busiest>),
    /// A worker wants to be left alone with its limits (`true`), or to be judged again.
    WatchesItself(WorkerId, bool),
    /// The user pauses the limits of all workers, or lets them hold again.
    ToggleMonitoring,
    /// The user wants every worker replaced.
    Reload,
    /// The user wants the end; said again later than a moment after that, at once.
    Stop,
    /// The terminal is gone: the end, but never at once.
    Hangup,
    /// One worker more.
    ScaleUp,
    /// One worker fewer.
    ScaleDown,
}

/// Why a worker could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchFailure {
    /// The kernel lacks something just now (EAGAIN, ENOMEM, EMFILE, ETXTBSY): nobody's fault.
    Passing,
    /// It will fail again until somebody changes something: no such file, not executable.
    Lasting,
    /// It did not come to an end: a file system does not answer. Nobody knows whether it will the next time.
    NoAnswer,
}

/// The connections that wait for one worker alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// It has no queue of its own: nothing is lost when it goes.
    None,
    /// Nobody waits.
    Empty,
    /// Somebody does.
    Waiting,
}

/// How a worker says that it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadySignal {
    /// It called `listen(2)` on a stream socket, and listens wherever it is to serve.
    Listen,
    /// It called `listen(2)`, and does not listen yet on an address that its predecessor serves, or that was named.
    ListenPartly,
    /// It sent `READY=1`, or the newline of `notify:fd=N`.
    Notify,
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "an action that nobody carries out is a worker that never starts or never stops"]
pub enum Action {
    /// Start this worker; answered by `Launched` or `LaunchFailed`.
    Launch {
        /// Which.
        worker: WorkerId,
        /// Of which generation: its `RELOAD_INDEX`.
        generation: u32,
    },
    /// A reload to this generation is under way from now on; `None`: none is. In its place among the others: who serves
    /// by the end of a reload serves before it.
    Target(Option<u32>),
    /// Let connections come to this worker.
    AddToRotation(WorkerId),
    /// Let no new connection come to this worker.
    RemoveFromRotation(WorkerId),
    /// See who waits for this worker; answered by [`Event::Queue`].
    CheckQueue(WorkerId),
    /// Ask this worker to leave.
    Stop(WorkerId),
    /// Ask what a worker has left behind to leave, unless it was asked with its first process.
    StopRemains(WorkerId),
    /// Kill this worker and everybody of its tree.
    Kill(WorkerId),
    /// Measure the proportional set size of this worker; answered by [`Event::Pss`].
    MeasurePss(WorkerId),
    /// Look at the threads of this worker; answered by [`Event::Threads`].
    LookAtThreads(WorkerId),
    /// Send this worker the signal that warns of much memory.
    SignalHigh(WorkerId),
    /// Tell the user.
    Report(Report),
}

/// Something that the user may want to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    /// A worker counts as ready.
    Ready {
        /// Which.
        worker: WorkerId,
        /// How long after its start.
        after: Duration,
        /// Why it counts.
        by: ReadyBy,
        /// The worker of an earlier generation that it takes over from.
        replaces: Option<WorkerId>,
    },
    /// A worker ended that nobody had asked to.
    Died {
        /// Which.
        worker: WorkerId,
        /// How long it had lived.
        uptime: Duration,
        /// What follows.
        next: Next,
    },
    /// A worker that was asked to leave is gone.
    Left {
        /// Which.
        worker: WorkerId,
        /// How long it had lived.
        uptime: Duration,
    },
    /// A worker is not ready in time. Its slot has no other that is, and so it goes on starting.
    Slow {
        /// Which.
        worker: WorkerId,
        /// How long it has been running.
        after: Duration,
    },
    /// A worker takes longer than usual to become ready. Another one serves in its slot.
    Waits {
        /// Which.
        worker: WorkerId,
        /// How long it has been running.
        after: Duration,
    },
    /// A worker was not ready in time and is being stopped: another one serves in its slot.
    Late {
        /// Which.
        worker: WorkerId,
        /// How long it had been given.
        after: Duration,
        /// What follows.
        next: Next,
    },
    /// A worker could not be started.
    LaunchFailed {
        /// Which.
        worker: WorkerId,
        /// What follows.
        next: Next,
    },
    /// A worker did not leave in time and is killed.
    Overdue {
        /// Which.
        worker: WorkerId,
        /// How long after the stop signal.
        after: Duration,
    },
    /// A worker uses more than it may.
    OverLimit {
        /// Which.
        worker: WorkerId,
        /// How, and what follows.
        over: OverLimit,
    },
    /// A worker exceeds the default memory limit from the first: the limit is off for this program.
    DefaultDisabled {
        /// Which.
        worker: WorkerId,
        /// What it used at its first judged sample, in bytes.
        used: u64,
        /// The limit, in bytes.
        most: u64,
    },
    /// A worker that was to be replaced may stay: no limit holds against it any more.
    ReplacementCancelled {
        /// Which.
        worker: WorkerId,
    },
    /// The limits of all workers are paused, or hold again.
    Monitoring {
        /// Which of both.
        paused: bool,
    },
    /// A worker has paused its own limits, or lets them hold again.
    WatchesItself {
        /// Which.
        worker: WorkerId,
        /// Which of both.
        paused: bool,
        /// It has done both before.
        often: bool,
    },
    /// A reload began.
    ReloadStarted {
        /// The new generation.
        generation: u32,
        /// How many slots it concerns.
        slots: usize,
    },
    /// Every slot has a ready worker of this generation.
    ReloadDone {
        /// The generation.
        generation: u32,
        /// How long it took.
        took: Duration,
    },
    /// A reload was given up.
    ReloadFailed {
        /// The generation.
        generation: u32,
        /// The slot whose workers failed.
        slot: u32,
        /// How many did.
        attempts: u32,
        /// What became of the last one.
        cause: FailedStart,
        /// How many workers of earlier generations serve on.
        kept: usize,
    },
    /// The number of workers changed.
    Scaled {
        /// From.
        from: u32,
        /// To.
        to: u32,
    },
    /// Every worker is asked to leave.
    Stopping {
        /// How many there are.
        workers: usize,
    },
    /// Every worker that is left is killed, because the user said so twice.
    Killing {
        /// How many there are.
        workers: usize,
    },
    /// Too many early deaths: everything is stopped.
    GaveUp {
        /// How many.
        deaths: u32,
        /// Within which time.
        within: Duration,
    },
}

/// A limit that a worker is over for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverLimit {
    /// Which.
    pub limit: Limit,
    /// What the worker used when it was last measured: CPU nanoseconds in a second, or bytes.
    pub used: u64,
    /// The limit, in the same unit.
    pub most: u64,
    /// Which number `used` is.
    pub measured: Measured,
    /// How many samples in a row were above the limit.
    pub samples: u32,
    /// When it is replaced, if it is still over it then; `None`: now.
    pub wait: Option<Duration>,
    /// As many as may be replaced at a time are: it waits for them.
    pub queued: bool,
    /// The worker before it was replaced for the same limit, which may not fit the program.
    pub again: bool,
}

/// What the number says that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// CPU time.
    Cpu,
    /// The proportional set size.
    Pss,
    /// What is resident, added up over its processes, because the proportional set size cannot be had.
    Resident(NoPss),
}

/// How a new worker of a reload came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedStart {
    /// It died before it was ready, or early.
    Died,
    /// This one was not ready in time.
    Late(WorkerId),
    /// It could not be started.
    NotLaunched,
}

/// Why a worker counts as ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadyBy {
    /// It said so.
    Signal(ReadySignal),
    /// It has lived long enough.
    Age,
    /// Nothing is asked of it.
    Launch,
}

/// What follows a worker's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A replacement after this delay.
    Restart(Duration),
    /// Its successor is on its way already.
    Successor,
    /// The worker that it was to replace serves on.
    Predecessor,
    /// Nothing: everything stops, or its slot is gone.
    Nothing,
}
