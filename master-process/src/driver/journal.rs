//! What the policy and the sharing core report, as the journal keeps it: events, ends and counters.

use std::time::{Duration, SystemTime};

use super::context::Context;
use super::starts::Starts;
use super::workers::Entry;
use crate::control::{End, EndReason, Ended, FailedReload, ReloadRecord, ReloadState, What};
use crate::policy::{FailedStart, Limit, Next, Report, WorkerId};
use crate::report::Span;
use crate::share;

/// Milliseconds of an event: 49 days fit.
fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

fn pid_of(cx: &Context, worker: WorkerId) -> i32 {
    cx.workers.name(worker).pid.unwrap_or_default()
}

/// Keeps what the policy reports. `cause`: who asked for it.
pub(super) fn note(cx: &mut Context, starts: &Starts, report: &Report, cause: &str) {
    match *report {
        Report::Ready { worker, after, replaces, .. } => ready(cx, worker, after, replaces),
        Report::Died { worker, uptime, next } => {
            died(cx, worker, uptime, next);
            throttled(cx, worker.slot, next);
        }
        Report::Left { worker, uptime } => left(cx, worker, uptime),
        Report::Late { worker, next, .. } => {
            replaced_for(cx, worker, EndReason::NeverReady);
            throttled(cx, worker.slot, next);
        }
        Report::LaunchFailed { worker, next } => {
            if let Some(message) = starts.failure(worker) {
                cx.journal.record(What::StartFailed { slot: worker.slot, message: message.into() });
            }
            throttled(cx, worker.slot, next);
        }
        Report::OverLimit { worker, over } => {
            let (limit, reason) = match over.limit {
                Limit::Cpu => ("cpu", EndReason::Cpu),
                Limit::Memory => ("memory", EndReason::Memory),
            };
            let (slot, pid, limit) = (worker.slot, pid_of(cx, worker), limit.into());
            cx.journal.record(What::OverLimit { slot, pid, limit, used: over.used, most: over.most });
            if over.wait.is_none() {
                cx.journal.to_be_replaced(slot, reason);
            }
        }
        Report::ReplacementCancelled { worker } => _ = cx.journal.take_replaced_for(worker.slot),
        Report::ReloadStarted { generation, slots } => reload_started(cx, generation, slots, cause),
        Report::SlotReloaded { generation, slot } => {
            cx.journal.record(What::SlotDone { reload: generation, slot });
        }
        Report::ReloadDone { generation, took } => {
            end_reload(cx, ReloadState::Complete, took, None);
            cx.journal.record(What::ReloadComplete { reload: generation, took_ms: millis(took) });
        }
        Report::ReloadFailed { generation, slot, attempts, cause, .. } => {
            let error = failure(cx, starts, slot, attempts, cause);
            fail_reload(cx, generation, error);
        }
        Report::RestartStarted { slot, worker } => {
            if worker.is_some() {
                cx.journal.to_be_replaced(slot, EndReason::Request);
            }
            let pid = worker.and_then(|worker| cx.workers.name(worker).pid);
            cx.journal.record(What::RestartBegun { slot, pid, by: cause.into() });
        }
        Report::RestartDone { worker } => {
            let pid = pid_of(cx, worker);
            cx.journal.record(What::RestartComplete { slot: worker.slot, pid });
        }
        Report::RestartFailed { slot, attempts, cause } => {
            let error = Box::new(failure(cx, starts, slot, attempts, cause));
            _ = cx.journal.take_replaced_for(slot);
            cx.journal.record(What::RestartGivenUp { error });
        }
        Report::Scaled { from, to } => cx.journal.record(What::Scaled { from, to, by: cause.into() }),
        Report::Stopping { .. } => stopping(cx, cause),
        Report::GaveUp { .. } => stopping(cx, "--give-up"),
        Report::Monitoring { paused } => {
            cx.journal.record(What::LimitsPaused { paused, by: cause.into() });
        }
        Report::Slow { .. }
        | Report::Waits { .. }
        | Report::NoPlace { .. }
        | Report::Preloaded { .. }
        | Report::PreloadFailed { .. }
        | Report::Overdue { .. }
        | Report::DefaultDisabled { .. }
        | Report::WatchesItself { .. }
        | Report::Killing { .. } => {}
    }
}

fn ready(cx: &mut Context, worker: WorkerId, after: Duration, replaces: Option<WorkerId>) {
    let slot = worker.slot;
    let generation = cx.workers.get(worker.serial).map(|entry| entry.generation);
    let old = replaces.and_then(|old| cx.workers.get(old.serial));
    let (old_pid, old_generation) = (old.map(|old| old.pid.as_raw_pid()), old.map(|old| old.generation));
    cx.journal.record(What::Ready {
        slot,
        pid: pid_of(cx, worker),
        after_ms: millis(after),
        replaces: old_pid,
    });
    let Some(old) = replaces else { return };
    let requested = cx.journal.take_replaced_for(slot);
    let reason =
        if old_generation < generation { EndReason::Reload } else { requested.unwrap_or(EndReason::Request) };
    let uptime = cx.journal.uptime();
    cx.journal.count_restart(slot, reason, uptime);
    if let Some(entry) = cx.workers.get_mut(old.serial) {
        entry.history.replaced_for = Some(reason);
    }
}

/// The worker is stopped for this reason.
fn replaced_for(cx: &mut Context, worker: WorkerId, reason: EndReason) {
    let uptime = cx.journal.uptime();
    cx.journal.count_restart(worker.slot, reason, uptime);
    if let Some(entry) = cx.workers.get_mut(worker.serial) {
        entry.history.replaced_for = Some(reason);
    }
}

fn throttled(cx: &mut Context, slot: u32, next: Next) {
    if let Next::Restart(wait) = next
        && !wait.is_zero()
    {
        cx.journal.record(What::Throttled { slot, wait_ms: millis(wait) });
    }
}

fn died(cx: &mut Context, worker: WorkerId, uptime: Duration, next: Next) {
    let Some(entry) = cx.workers.get(worker.serial) else { return };
    let end = end_of(entry, uptime);
    let (reason, pid) = (end.reason(), entry.pid.as_raw_pid());
    if let Next::Restart(_) = next {
        let uptime = cx.journal.uptime();
        cx.journal.count_restart(worker.slot, reason, uptime);
    }
    cx.journal.keep_end(worker.slot, end.wire(SystemTime::now(), pid, reason));
    let ended = Ended { slot: worker.slot, pid, reason, end, drained_ms: None, stopped_ms: None };
    cx.journal.record(What::Ended(Box::new(ended)));
}

/// A worker that was asked to stop has ended. What replaced it may be worth keeping.
fn left(cx: &mut Context, worker: WorkerId, uptime: Duration) {
    let now = cx.now();
    let Some(entry) = cx.workers.get(worker.serial) else { return };
    let reason = entry.history.replaced_for.unwrap_or(EndReason::Stop);
    let (end, pid) = (end_of(entry, uptime), entry.pid.as_raw_pid());
    let stopped_at = entry.history.stopped;
    let drained =
        entry.history.draining.map(|draining| stopped_at.unwrap_or(now).since(draining)).map(millis);
    let stopped = stopped_at.map(|stopped| millis(now.since(stopped)));
    match reason {
        EndReason::Cpu | EndReason::Memory | EndReason::Hung | EndReason::NeverReady => {
            cx.journal.keep_end(worker.slot, end.wire(SystemTime::now(), pid, reason));
        }
        EndReason::Exit
        | EndReason::Signal
        | EndReason::Oom
        | EndReason::Reload
        | EndReason::Upgrade
        | EndReason::Request
        | EndReason::Stop => {}
    }
    let ended = Ended { slot: worker.slot, pid, reason, end, drained_ms: drained, stopped_ms: stopped };
    cx.journal.record(What::Ended(Box::new(ended)));
}

fn end_of(entry: &Entry, uptime: Duration) -> End {
    entry.end.as_deref().map(|end| end.as_end(uptime)).unwrap_or_else(|| End { uptime, ..End::default() })
}

fn reload_started(cx: &mut Context, generation: u32, slots: usize, cause: &str) {
    let slots = u32::try_from(slots).unwrap_or(u32::MAX);
    if let Some(reload) = cx.journal.reload.as_ref().filter(|reload| reload.ended.is_none()) {
        let reload = reload.number;
        cx.journal.count_superseded();
        cx.journal.record(What::ReloadSuperseded { reload, by: generation });
    }
    cx.journal.record(What::ReloadBegun { reload: generation, slots, by: cause.into() });
    cx.journal.reload = Some(ReloadRecord {
        number: generation,
        slots,
        began: SystemTime::now(),
        by: cause.to_owned(),
        ended: None,
        error: None,
    });
}

/// A reload failed with this error.
pub(super) fn fail_reload(cx: &mut Context, generation: u32, error: FailedReload) {
    let began = cx.journal.reload.as_ref().map(|reload| reload.began);
    let took = began.and_then(|began| began.elapsed().ok()).unwrap_or_default();
    end_reload(cx, ReloadState::GivenUp, took, Some(error.clone()));
    cx.journal.record(What::ReloadGivenUp { reload: generation, error: Box::new(error) });
}

fn end_reload(cx: &mut Context, state: ReloadState, took: Duration, error: Option<FailedReload>) {
    cx.journal.count_reload(state, took);
    if let Some(reload) = &mut cx.journal.reload {
        reload.ended = Some((state, took));
        reload.error = error;
    }
}

fn stopping(cx: &mut Context, cause: &str) {
    if let Some(reload) = cx.journal.reload.as_mut().filter(|reload| reload.ended.is_none()) {
        reload.ended = Some((ReloadState::Stopping, reload.began.elapsed().unwrap_or_default()));
    }
    cx.journal.record(What::SupervisorStopping { by: cause.into() });
}

/// Why a new worker failed, so that a reload or restart was given up.
fn failure(cx: &Context, starts: &Starts, slot: u32, attempts: u32, cause: FailedStart) -> FailedReload {
    let (code, message) = match cause {
        FailedStart::Died => match cx.workers.last_ended_in(slot) {
            Some(entry) => {
                let uptime = cx.now().since(entry.started.0);
                let end = end_of(entry, uptime);
                let end = end.wire(SystemTime::now(), entry.pid.as_raw_pid(), end.reason());
                (end.code(), format!("{} after {}", end.words(), Span(uptime)))
            }
            None => ("exited", "exited early".to_owned()),
        },
        FailedStart::Late(worker) => {
            let missing = cx.broker.missing(worker.serial);
            let what = missing.map(|missing| format!("not ready in time: it does not listen on {missing}"));
            ("never_ready", what.unwrap_or_else(|| "not ready in time".to_owned()))
        }
        FailedStart::NotLaunched => {
            ("exec_failed", starts.last_failure().unwrap_or_else(|| "failed to start".to_owned()))
        }
    };
    FailedReload { code: code.to_owned(), slot: Some(slot), attempts, message, output: Vec::new() }
}

/// A worker gets no new connections, and is about to be stopped.
pub(super) fn draining(cx: &mut Context, worker: WorkerId) {
    let now = cx.now();
    let Some(entry) = cx.workers.get_mut(worker.serial) else { return };
    // Its queue is checked again until it is empty.
    if entry.history.draining.is_none() {
        entry.history.draining = Some(now);
        let pid = entry.pid.as_raw_pid();
        cx.journal.record(What::Draining { slot: worker.slot, pid });
    }
}

/// A worker gets the stop signal.
pub(super) fn stopped(cx: &mut Context, worker: WorkerId) {
    let now = cx.now();
    if let Some(entry) = cx.workers.get_mut(worker.serial) {
        entry.history.stopped = Some(now);
    }
}

/// A worker does not accept connections, or accepts them again.
pub(super) fn sharing(cx: &mut Context, report: &share::Report) {
    let now = cx.now();
    if let share::Report::Stalled { worker, address, waiting } = report
        && let Some(entry) = cx.workers.get_mut(worker.serial)
    {
        entry.history.hung = Some(Box::new((now, address.clone())));
        let (slot, pid) = (worker.slot, entry.pid.as_raw_pid());
        let address = address.as_str().into();
        cx.journal.record(What::Hung { slot, pid, address, queued: *waiting });
    } else if let share::Report::Accepts { worker, .. } = report
        && let Some(entry) = cx.workers.get_mut(worker.serial)
    {
        entry.history.hung = None;
        let (slot, pid) = (worker.slot, entry.pid.as_raw_pid());
        cx.journal.record(What::Accepting { slot, pid });
    }
}
