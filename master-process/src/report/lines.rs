//! One line for each event: what happened, to what, why, and what happens next.

use std::fmt;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::exit_report::{Cause, Used};
use super::{ExitReport, Size, Span};
use crate::policy::{
    FailedStart, Limit, Measured, Next, NoPss, OverLimit, PRELOAD, ReadyBy, ReadySignal, Report, WorkerId,
};
use crate::sys::spawn::SpawnError;

/// A worker as the log names it.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    /// Its slot.
    pub slot: u32,
    /// The pid; `None` if the worker has no process.
    pub pid: Option<i32>,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.slot == PRELOAD {
            return f.write_str("the preload command");
        }
        match self.pid {
            Some(pid) => write!(f, "worker {} (pid {pid})", self.slot),
            None => write!(f, "worker {}", self.slot),
        }
    }
}

/// Logs once, when the first worker runs, what this supervisor does.
pub fn banner(command: &str, workers: u32, shares: bool) {
    let pid = std::process::id();
    let version = env!("CARGO_PKG_VERSION");
    let copies = Workers(usize::try_from(workers).unwrap_or(usize::MAX));
    let addresses = if shares { "addresses are shared" } else { "addresses are not shared" };
    info!(
        pid,
        workers,
        command,
        version,
        "master-process {version} (pid {pid}): running {copies} of {command}; {addresses}"
    );
}

/// A worker failed to start.
pub fn launch_failed(worker: Named, command: &str, failure: &SpawnError, next: Next) {
    let (call, why) = (failure.call(), start_failure(failure, Some(command)));
    let next = Follows(next, "retrying");
    error!(worker = worker.slot, call, errno = failure.errno, "{worker} failed to start: {why}{next}");
}

/// The reason of a failed start: `execve ./app: Permission denied` (without the command if the line names it
/// already), or `interpreter /bin/sh\r of ./app not found`.
pub fn start_failure(failure: &SpawnError, command: Option<&str>) -> String {
    if let Some(within) = failure.within {
        let subject = command.map_or_else(String::new, |command| format!(" {command}"));
        return format!("{}{subject} did not return within {}", failure.call(), Span(within));
    }
    let why = std::io::Error::from_raw_os_error(failure.errno);
    match (&failure.interpreter, command) {
        (Some(interpreter), _) if interpreter.is_absent => format!("{interpreter} not found"),
        (Some(interpreter), _) => format!("{interpreter} cannot be executed: {why}"),
        (None, Some(command)) => format!("{} {command}: {why}", failure.call()),
        (None, None) => format!("{}: {why}", failure.call()),
    }
}

/// Logs a report of the policy. `named` adds the pids, `exit` how the worker ended.
pub fn note(note: &Report, named: impl Fn(WorkerId) -> Named, exit: &ExitReport) {
    match *note {
        Report::Ready { worker, after, by, replaces } => {
            ready(named(worker), after, by, replaces.map(&named))
        }
        Report::Died { worker, uptime, next } => died(named(worker), uptime, exit, next),
        Report::Left { worker, uptime } => left(named(worker), uptime, exit),
        // The driver logs these: it has the error, the missing addresses, or who asked for it.
        Report::LaunchFailed { .. }
        | Report::Stopping { .. }
        | Report::ReloadStarted { .. }
        | Report::Preloaded { .. }
        | Report::PreloadFailed { .. }
        | Report::Scaled { .. }
        | Report::RestartStarted { .. }
        | Report::Monitoring { .. }
        | Report::Slow { .. }
        | Report::Waits { .. }
        | Report::Late { .. }
        | Report::ReloadFailed { .. } => {}
        Report::NoPlace { slot, after } => {
            let after = Span(after);
            let start = slot.map_or("the preload command".to_owned(), |slot| format!("worker {slot}"));
            info!(worker = slot, "no place at the start gate within {after}: starting {start} without one");
        }
        Report::Overdue { worker, after } => {
            let (worker, after) = (named(worker), Span(after));
            warn!(
                worker = worker.slot,
                pid = worker.pid,
                "{worker} did not stop within {after}: sending SIGKILL"
            );
        }
        Report::OverLimit { worker, over } => over_limit(named(worker), over),
        Report::DefaultDisabled { worker, used, most } => default_disabled(named(worker), used, most),
        Report::ReplacementCancelled { worker } => {
            let worker = named(worker);
            info!(
                worker = worker.slot,
                pid = worker.pid,
                "{worker} is back within its limits: replacement cancelled"
            );
        }
        Report::WatchesItself { worker, paused, often } => {
            let worker = named(worker);
            let did = if paused { "paused" } else { "resumed" };
            if often {
                // A worker that does so around each job would fill the log.
                debug!(worker = worker.slot, pid = worker.pid, "{worker} {did} its resource limits");
            } else {
                info!(worker = worker.slot, pid = worker.pid, "{worker} {did} its resource limits");
            }
        }
        Report::ReloadDone { generation, took } => {
            info!(generation, took_ms = millis(took), "reload {generation} complete after {}", Span(took));
        }
        Report::SlotReloaded { generation, slot } => {
            debug!(generation, slot, "reload {generation}: slot {slot} done");
        }
        Report::RestartDone { worker } => {
            let worker = named(worker);
            debug!(worker = worker.slot, pid = worker.pid, "restart of slot {} complete", worker.slot);
        }
        Report::RestartFailed { slot, attempts, cause } => restart_failed(slot, attempts, cause),
        Report::Killing { workers } => {
            warn!(workers, "second stop signal: killing {}", Workers(workers))
        }
        Report::GaveUp { deaths, within } => error!(
            deaths,
            within_ms = millis(within),
            "giving up: {deaths} workers exited early within {} (--give-up): stopping all workers",
            Span(within)
        ),
    }
}

/// A requested restart failed.
fn restart_failed(slot: u32, attempts: u32, cause: FailedStart) {
    let times = if attempts == 1 { "once".to_owned() } else { format!("{attempts} times") };
    let why = match cause {
        FailedStart::Died => "exited early",
        FailedStart::Late(_) => "was not ready in time",
        FailedStart::NotLaunched => "failed to start",
    };
    error!(
        worker = slot,
        attempts, "restart of slot {slot} failed: the new worker {why} {times}; the old worker keeps serving"
    );
}

fn ready(worker: Named, after: Duration, by: ReadyBy, replaces: Option<Named>) {
    let by = match by {
        ReadyBy::Signal(ReadySignal::Listen | ReadySignal::ListenPartly) => "listening",
        ReadyBy::Signal(ReadySignal::Notify) => "notified",
        ReadyBy::Age => "no readiness signal, but running long enough",
        ReadyBy::Launch => "no readiness check",
    };
    let instead = replaces.and_then(|old| old.pid).map(|old| format!(", replacing pid {old}"));
    let instead = instead.unwrap_or_default();
    let after_ms = millis(after);
    info!(
        worker = worker.slot,
        pid = worker.pid,
        after_ms,
        "{worker} ready after {}: {by}{instead}",
        Span(after)
    );
}

/// A worker exceeded a limit: it is replaced, now or later.
fn over_limit(worker: Named, over: OverLimit) {
    let flag = match over.limit {
        Limit::Cpu => "--max-cpu",
        Limit::Memory => "--max-memory",
    };
    let (compared, measured) = match over.measured {
        Measured::Cpu => {
            (format!("{:.0} % > {:.0} % of a CPU", cpu_percent(over.used), cpu_percent(over.most)), None)
        }
        Measured::Pss => (format!("PSS {} > {}", Size(over.used), Size(over.most)), Some("pss")),
        Measured::Resident(why) => {
            let why = NoPssReason(why);
            let compared =
                format!("resident {} > {}, PSS unavailable: {why}", Size(over.used), Size(over.most));
            (compared, Some("resident"))
        }
    };
    let hint = if over.again {
        format!("; the previous worker did, too: {flag} may not fit this program")
    } else {
        String::new()
    };
    let next = match over.wait {
        None if over.queued => "replacement queued (--reload-batch)".to_owned(),
        None => "replacing it".to_owned(),
        Some(wait) => format!("replacing it in {} if it still does", Span(wait)),
    };
    let wait_ms = over.wait.map(millis);
    warn!(
        worker = worker.slot,
        pid = worker.pid,
        limit = flag,
        used = over.used,
        measured,
        wait_ms,
        "{worker} exceeded {flag} ({compared}) in {} samples: {next}{hint}",
        over.samples
    );
}

/// The default memory limit does not fit this program.
fn default_disabled(worker: Named, used: u64, most: u64) {
    warn!(
        worker = worker.slot,
        pid = worker.pid,
        limit = "--max-memory",
        used,
        most,
        "{worker} exceeded the default of --max-memory at its first sample ({} > {}): the default is disabled for this \
         program; set --max-memory to limit it",
        Size(used),
        Size(most)
    );
}

/// The reason why a PSS is unknown, as part of a sentence.
struct NoPssReason(NoPss);

impl fmt::Display for NoPssReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            NoPss::Denied => "permission denied",
            NoPss::Unsupported => "this kernel has no smaps_rollup",
            NoPss::TooManyProcesses => "too many processes",
            NoPss::TimedOut => "reading it timed out",
            NoPss::Failed => "reading it failed",
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a person reads it, without decimals")]
fn cpu_percent(ns_per_second: u64) -> f64 {
    ns_per_second as f64 / 10_000_000.0
}

/// Logs an end: all its details as fields, then further fields, then the message.
macro_rules! end {
    ($level:ident, $worker:expr, $end:expr, $uptime:expr, $($rest:tt)+) => {{
        let killer = $end.killer();
        $level!(
            worker = $worker.slot,
            pid = $worker.pid,
            code = $end.code(),
            signal = $end.signal().map(|(number, _)| number),
            core_dumped = $end.signal().map(|(_, dumped)| dumped),
            uptime_ms = millis($uptime),
            cpu_ms = $end.cpu_ms(),
            peak_memory = $end.peak_memory(),
            oom_killed = $end.oom(),
            oom_limit = $end.oom_limit(),
            forks_refused = $end.forks_refused(),
            killer_pid = killer.and_then(|killer| killer.pid),
            killer_uid = killer.map(|killer| killer.uid),
            killer = killer.map(|killer| killer.name.as_str()),
            $($rest)+
        );
    }};
}

fn died(worker: Named, uptime: Duration, end: &ExitReport, next: Next) {
    let restart_in_ms = match next {
        Next::Restart(wait) => Some(millis(wait)),
        Next::Successor | Next::Predecessor | Next::Nothing => None,
    };
    let (age, used, next) = (Span(uptime), Used(end), Follows(next, "restarting"));
    end!(warn, worker, end, uptime, restart_in_ms, "{worker} {end} after {age}{used}{next}");
}

fn left(worker: Named, uptime: Duration, end: &ExitReport) {
    let (age, how, used) = (Span(uptime), Cause(end), Used(end));
    end!(info, worker, end, uptime, "{worker} stopped after {age}: {how}{used}");
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// `1 worker`, `4 workers`.
pub(super) struct Workers(pub(super) usize);

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} worker{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

/// What happens next, as the end of a sentence.
pub(super) struct Follows(pub(super) Next, pub(super) &'static str);

impl fmt::Display for Follows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Follows(next, again) = self;
        match next {
            Next::Restart(Duration::ZERO) => write!(f, "; {again} now"),
            Next::Restart(wait) => write!(f, "; {again} in {}", Span(*wait)),
            Next::Successor => f.write_str("; its replacement is already starting"),
            Next::Predecessor => f.write_str("; the old worker keeps serving"),
            Next::Nothing => Ok(()),
        }
    }
}
