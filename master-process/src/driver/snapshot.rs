//! The state of everything at one moment, put together from the policy, the processes, the samples and the sockets.

use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use super::context::Context;
use super::workers::Entry;
use crate::config;
use crate::control::{
    CgroupLimits, Preload, Process, Reload, ReloadState, Restarts, SCHEMA, Snapshot, Stamp, State, Worker,
    WorkerState, seconds, time,
};
use crate::policy::{self, Time, WorkerView};
use crate::share::{AcceptQueues, QueueTotals};
use crate::sys::self_usage;

/// What does not change while the supervisor runs.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) command: Vec<String>,
    pub(super) control: String,
    pub(super) memory_limit: Option<u64>,
    /// In percent of one CPU.
    pub(super) cpu_limit: Option<f64>,
}

/// The state now.
pub(super) fn snapshot(cx: &mut Context, identity: &Identity) -> Snapshot {
    let preload = cx.policy.preloads().map(|generation| Preload { generation, pid: cx.preload_pid });
    let uptime = cx.journal.uptime();
    let queues = cx.broker.accept_queues(cx.now());
    let (workers, sums) = workers(cx, identity, &queues);
    let (wanted, generation) = (cx.policy.wanted(), cx.policy.generation());
    let ready = (0..wanted).filter(|slot| cx.policy.is_ready(*slot) && !sums.hung.contains(slot)).count();
    let workers_ready = u32::try_from(ready).unwrap_or(u32::MAX);
    let state = if cx.policy.is_stopping() {
        State::Stopping
    } else if workers_ready == wanted {
        State::Ready
    } else {
        State::Degraded
    };
    Snapshot {
        schema: SCHEMA,
        name: identity.name.clone(),
        pid: std::process::id().cast_signed(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("MASTER_PROCESS_COMMIT").map(str::to_owned),
        command: identity.command.clone(),
        control: identity.control.clone(),
        state,
        started_at: time(cx.journal.started),
        uptime_seconds: seconds(uptime),
        slots_wanted: wanted,
        workers_ready,
        generation,
        monitor: cx.meter.source().to_owned(),
        limits_paused: cx.policy.is_paused(),
        cpu_cores: sums.cpu_percent.map(|percent| (percent * 10.0).round() / 1000.0),
        memory_bytes: sums.memory,
        // A queue that several workers share counts once.
        queue_length: sums.has_queue.then_some(queues.length),
        queue_full: queues.is_any_full,
        restarts_last_hour: cx.journal.restarts_last_hour(uptime),
        addresses: cx.broker.addresses(),
        reload: reload(cx),
        preload,
        reloads_total: cx.journal.reloads().0,
        reload_duration_seconds: cx.journal.reloads().1,
        process: process(),
        cgroup_limits: cx.trees.limits().map(cgroup_limits),
        last_seq: cx.journal.last_seq(),
        reload_attempts: cx.policy.attempts(),
        upgraded: cx.journal.upgraded().cloned(),
        workers,
    }
}

/// What the supervisor itself uses.
fn process() -> Process {
    let memory = self_usage::memory();
    Process {
        cpu_seconds_total: seconds(self_usage::cpu_time()),
        memory_bytes: memory.map(|memory| memory.resident),
        virtual_memory_bytes: memory.map(|memory| memory.virtual_size),
        open_fds: self_usage::open_descriptors(),
        max_fds: getrlimit(Resource::Nofile).current,
    }
}

fn reload(cx: &Context) -> Option<Reload> {
    let record = cx.journal.reload.as_ref()?;
    let progress = cx.policy.reload_progress();
    let left = progress.map_or(0, |progress| u32::try_from(progress.left).unwrap_or(u32::MAX));
    let (state, took) = match record.ended {
        Some(ended) => ended,
        None => (ReloadState::Running, record.began.elapsed().unwrap_or_default()),
    };
    let slots_done = match state {
        ReloadState::Running => record.slots.saturating_sub(left),
        ReloadState::Complete => record.slots,
        ReloadState::GivenUp | ReloadState::Stopping => {
            let of =
                |slot: &u32| cx.policy.workers_of(*slot).iter().any(|view| serves(cx, view, record.number));
            u32::try_from((0..cx.policy.wanted()).filter(of).count()).unwrap_or(u32::MAX)
        }
    };
    Some(Reload {
        number: record.number,
        state,
        slots_done,
        slots_total: record.slots,
        started_at: time(record.began),
        duration_seconds: seconds(took),
        by: record.by.clone(),
        error: record.error.clone(),
    })
}

/// Whether a worker of this generation serves.
fn serves(cx: &Context, view: &WorkerView, generation: u32) -> bool {
    let is_of = cx.workers.get(view.worker.serial).is_some_and(|entry| entry.generation == generation);
    is_of && matches!(view.state, policy::WorkerState::Ready | policy::WorkerState::OverLimit)
}

/// What all rows have together. It is summed up while they are made: each is several lines of memory.
#[derive(Default)]
struct Sums {
    /// The slots whose worker hangs.
    hung: Vec<u32>,
    memory: Option<u64>,
    cpu_percent: Option<f64>,
    has_queue: bool,
}

impl Sums {
    fn add(&mut self, row: &Worker) {
        self.hung.extend((row.state == WorkerState::Hung).then_some(row.slot));
        if let Some(memory) = row.memory_bytes {
            self.memory = Some(self.memory.unwrap_or(0).saturating_add(memory));
        }
        if let Some(percent) = row.cpu_percent {
            self.cpu_percent = Some(self.cpu_percent.unwrap_or(0.0) + percent);
        }
        self.has_queue |= row.queue_length.is_some();
    }
}

fn workers(cx: &Context, identity: &Identity, queues: &AcceptQueues) -> (Vec<Worker>, Sums) {
    let (now, mut sums) = (cx.now(), Sums::default());
    let mut rows = Vec::with_capacity(usize::try_from(cx.policy.count_slots()).unwrap_or_default());
    for slot in 0..cx.policy.count_slots() {
        let first = rows.len();
        for view in cx.policy.views_of(slot) {
            if let Some(entry) = cx.workers.get(view.worker.serial) {
                let queue = queues.worker(view.worker.serial);
                let row = row(cx, now, identity, &view, entry, queue);
                sums.add(&row);
                rows.push(row);
            }
        }
        if rows.len() == first && slot < cx.policy.wanted() {
            rows.push(empty(cx, now, slot));
        }
        if let Some(row) = rows.get_mut(first) {
            add_slot(cx, row, queues.slot(slot));
        }
    }
    (rows, sums)
}

/// What belongs to the slot, not to one of its workers.
fn add_slot(cx: &Context, row: &mut Worker, queue: Option<&QueueTotals>) {
    row.queue_drops_total = queue.and_then(|queue| queue.drops);
    let before = cx.journal.cpu_of(row.slot);
    if row.cpu_seconds_total.is_some() || !before.is_zero() {
        row.cpu_seconds_total = Some(row.cpu_seconds_total.unwrap_or_default() + seconds(before));
    }
    row.restarts_total = cx.journal.restarts_of(row.slot);
    row.last_end = cx.journal.ends_of(row.slot).next().cloned().map(Box::new);
    row.failed_starts = cx.policy.failed_starts(row.slot);
}

fn row(
    cx: &Context,
    now: Time,
    identity: &Identity,
    view: &WorkerView,
    entry: &Entry,
    queue: Option<&QueueTotals>,
) -> Worker {
    let used = cx.meter.usage(view.worker);
    let (cpu_before, peak_before) = cx.measured_before(entry);
    let usage = used.map(|(usage, _)| usage);
    let percent = usage.and_then(|usage| usage.before).filter(|before| before.span_ns > 0).map(|before| {
        let used = Duration::from_nanos(before.used_ns).as_secs_f64();
        (used / Duration::from_nanos(before.span_ns).as_secs_f64() * 1000.0).round() / 10.0
    });
    let hung = entry.history.hung.as_deref();
    let (state, since) = match view.state {
        policy::WorkerState::Starting => (WorkerState::Starting, None),
        policy::WorkerState::OverLimit => (WorkerState::OverLimit, None),
        policy::WorkerState::Ready if hung.is_some() => (WorkerState::Hung, hung.map(|(since, _)| *since)),
        policy::WorkerState::Ready if entry.generation < cx.policy.generation() => {
            (WorkerState::Serving, None)
        }
        policy::WorkerState::Ready => (WorkerState::Ready, None),
        policy::WorkerState::Standby | policy::WorkerState::Draining => {
            (WorkerState::Draining, entry.history.draining)
        }
        policy::WorkerState::Stopping => (WorkerState::Stopping, entry.history.stopped),
    };
    Worker {
        pid: Some(entry.pid.as_raw_pid()),
        generation: entry.generation,
        state,
        state_seconds: since.map(|since| seconds(now.since(since))),
        started_at: Some(Stamp(entry.started.1)),
        uptime_seconds: Some(seconds(now.since(entry.started.0))),
        cpu_seconds_total: usage.map(|usage| seconds(cpu_before + Duration::from_nanos(usage.cpu_ns))),
        cpu_percent: percent,
        cpu_limit_percent: identity.cpu_limit,
        memory_bytes: usage.map(|usage| usage.memory),
        memory_peak_bytes: used.map(|(usage, peak)| peak.max(usage.memory).max(peak_before)),
        memory_limit_bytes: memory_limit(cx, identity, view),
        cgroup: cx.trees.cgroup_path(view.worker.serial),
        queue_length: queue.map(|queue| queue.length),
        queue_limit: queue.map(|queue| u64::from(queue.fullest.limit)),
        hung_address: hung.filter(|_| state == WorkerState::Hung).map(|(_, address)| address.clone()),
        ..none(view.worker.slot)
    }
}

/// The memory with which a worker is replaced by the supervisor or killed by the kernel, whichever comes first.
fn memory_limit(cx: &Context, identity: &Identity, view: &WorkerView) -> Option<u64> {
    let replaced = identity.memory_limit.filter(|_| cx.policy.limits_memory_of(view.worker));
    let killed = cx.trees.limits().and_then(|limits| limits.memory_max);
    [replaced, killed].into_iter().flatten().min()
}

fn cgroup_limits(limits: &config::CgroupLimits) -> CgroupLimits {
    CgroupLimits {
        memory_max_bytes: limits.memory_max,
        memory_high_bytes: limits.memory_high,
        cpu_max_percent: limits.cpu_max.map(|ns| Duration::from_nanos(ns).as_secs_f64() * 100.0),
        pids_max: limits.pids_max,
    }
}

/// The row of a slot that has no process.
fn empty(cx: &Context, now: Time, slot: u32) -> Worker {
    let wait = cx.policy.waits_until(slot).map(|until| seconds(until.since(now)));
    let state = if wait.is_some() { WorkerState::Waiting } else { WorkerState::Starting };
    Worker { generation: cx.policy.generation(), state, wait_seconds: wait, ..none(slot) }
}

fn none(slot: u32) -> Worker {
    Worker {
        slot,
        pid: None,
        generation: 0,
        state: WorkerState::Starting,
        state_seconds: None,
        started_at: None,
        uptime_seconds: None,
        cpu_seconds_total: None,
        cpu_percent: None,
        cpu_limit_percent: None,
        memory_bytes: None,
        memory_peak_bytes: None,
        memory_limit_bytes: None,
        cgroup: None,
        queue_length: None,
        queue_limit: None,
        queue_drops_total: None,
        hung_address: None,
        wait_seconds: None,
        failed_starts: 0,
        restarts_total: Restarts::default(),
        last_end: None,
    }
}
