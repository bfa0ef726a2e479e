//! One line an event: what happened, to whom, and what follows.

use std::fmt;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::Span;
use crate::policy::{FailedStart, Next, Note, ReadyBy, Sign, WorkerId};
use crate::sys::pidfd::Exit;
use crate::sys::signals;
use crate::sys::spawn::SpawnError;

/// A worker as the log names it.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    /// Its slot.
    pub slot: u32,
    /// Its process, where it has one.
    pub pid: Option<i32>,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "worker {} (pid {pid})", self.slot),
            None => write!(f, "worker {}", self.slot),
        }
    }
}

/// Says once, when the first worker runs, what this supervisor does.
pub fn banner(command: &str, workers: u32, shares: bool) {
    let pid = std::process::id();
    let version = env!("CARGO_PKG_VERSION");
    let copies = Workers(usize::try_from(workers).unwrap_or(usize::MAX));
    let addresses = if shares { "sharing its addresses" } else { "each with addresses of its own" };
    info!(
        pid,
        workers,
        command,
        version,
        "master-process {version} (pid {pid}) runs {copies} of {command}, {addresses}"
    );
}

/// A worker could not be started.
pub fn launch_failed(worker: Named, command: &str, failure: &SpawnError, next: Next) {
    let why = std::io::Error::from_raw_os_error(failure.errno);
    let call = failure.call();
    let next = Follows(next, "trying again");
    error!(
        worker = worker.slot,
        call,
        errno = failure.errno,
        "{worker} could not be started: {call} {command}: {why}{next}"
    );
}

/// Writes what the policy noted; `named` knows the pids, `exit` how a dead worker ended.
pub fn note(note: &Note, named: impl Fn(WorkerId) -> Named, exit: Option<Exit>) {
    match *note {
        Note::Ready { worker, after, by, replaces } => ready(named(worker), after, by, replaces.map(&named)),
        Note::Died { worker, uptime, next } => died(named(worker), uptime, exit, next),
        Note::Left { worker, uptime } => left(named(worker), uptime, exit),
        Note::Late { worker, after, next } => {
            let (worker, after, next) = (named(worker), Span(after), Follows(next, "starting another"));
            warn!(
                worker = worker.slot,
                pid = worker.pid,
                "{worker} was not ready within {after} and is stopped{next}"
            );
        }
        // The driver knows the error, and has said it.
        Note::LaunchFailed { .. } => {}
        Note::Overdue { worker, after } => {
            let (worker, after) = (named(worker), Span(after));
            warn!(
                worker = worker.slot,
                pid = worker.pid,
                "{worker} did not leave within {after} and is killed"
            );
        }
        Note::ReloadStarted { generation, slots } => {
            info!(generation, slots, "reload {generation} begins: {slots} to replace");
        }
        Note::ReloadDone { generation, took } => {
            info!(generation, took_ms = millis(took), "reload {generation} is complete after {}", Span(took));
        }
        Note::ReloadFailed { generation, slot, attempts, cause, kept } => {
            let times = if attempts == 1 { "once".to_owned() } else { format!("{attempts} times") };
            let why = match cause {
                FailedStart::Died => "died early",
                FailedStart::Late => "was not ready in time",
                FailedStart::NotLaunched => "could not be started",
            };
            let keep = if kept == 1 { "keeps" } else { "keep" };
            let old = Workers(kept);
            error!(
                generation,
                worker = slot,
                attempts,
                kept,
                "reload {generation} is given up: the new worker {slot} {why}, {times}; {old} of before {keep} serving"
            );
        }
        Note::Scaled { from, to } => info!(from, to, "workers: {from} before, {to} from now on"),
        Note::Stopping { workers } => info!(workers, "stopping {}", Workers(workers)),
        Note::Killing { workers } => {
            warn!(workers, "asked to stop again: killing {}", Workers(workers))
        }
        Note::GaveUp { deaths, within } => error!(
            deaths,
            within_ms = millis(within),
            "giving up: {deaths} workers died early within {}, stopping everything",
            Span(within)
        ),
    }
}

fn ready(worker: Named, after: Duration, by: ReadyBy, replaces: Option<Named>) {
    let by = match by {
        ReadyBy::Sign(Sign::Listen | Sign::ListenFirst) => "listens",
        ReadyBy::Sign(Sign::Notify) => "says that it is ready",
        ReadyBy::Age => "has lived long enough to count as ready",
        ReadyBy::Launch => "runs",
    };
    let instead = replaces.and_then(|old| old.pid).map(|old| format!(", in the place of pid {old}"));
    let instead = instead.unwrap_or_default();
    let after_ms = millis(after);
    info!(worker = worker.slot, pid = worker.pid, after_ms, "{worker} {by} after {}{instead}", Span(after));
}

fn died(worker: Named, uptime: Duration, exit: Option<Exit>, next: Next) {
    let (code, signal) = parts(exit);
    let restart_in_ms = match next {
        Next::Restart(wait) => Some(millis(wait)),
        Next::Successor | Next::Predecessor | Next::Nothing => None,
    };
    warn!(
        worker = worker.slot,
        pid = worker.pid,
        code,
        signal,
        uptime_ms = millis(uptime),
        restart_in_ms,
        "{worker} {} after {}{}",
        Ended(exit),
        Span(uptime),
        Follows(next, "restarting")
    );
}

fn left(worker: Named, uptime: Duration, exit: Option<Exit>) {
    let (code, signal) = parts(exit);
    let (slot, pid, uptime_ms) = (worker.slot, worker.pid, millis(uptime));
    let (ended, uptime) = (Ended(exit), Span(uptime));
    debug!(worker = slot, pid, code, signal, uptime_ms, "{worker} left as asked: it {ended} after {uptime}");
}

fn parts(exit: Option<Exit>) -> (Option<i32>, Option<i32>) {
    match exit {
        Some(Exit::Code(code)) => (Some(code), None),
        Some(Exit::Signal { number, .. }) => (None, Some(number)),
        None => (None, None),
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// `1 worker`, `4 workers`.
struct Workers(usize);

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} worker{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

/// How a process ended, as the predicate of a sentence.
struct Ended(Option<Exit>);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Exit::Code(code)) => write!(f, "exited with code {code}"),
            Some(Exit::Signal { number, dumped }) => {
                write!(f, "was killed by {}", signals::name(number))?;
                if dumped { f.write_str(" (core dumped)") } else { Ok(()) }
            }
            None => f.write_str("ended"),
        }
    }
}

/// What follows an end, as the rest of a sentence.
struct Follows(Next, &'static str);

impl fmt::Display for Follows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Follows(next, again) = self;
        match next {
            Next::Restart(Duration::ZERO) => write!(f, ", {again} now"),
            Next::Restart(wait) => write!(f, ", {again} in {}", Span(*wait)),
            Next::Successor => f.write_str(", its successor is starting already"),
            Next::Predecessor => f.write_str(", the worker before it keeps serving"),
            Next::Nothing => Ok(()),
        }
    }
}
