//! The processes of the policy's workers: their names in the log, the signals to them, and the descriptors on which
//! their intercepted calls arrive.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::by_number::ByNumber;
use crate::control::EndReason;
use crate::policy::{Time, WorkerId};
use crate::report::{ExitReport, Named};
use crate::sys::handover::{Fd, Incoming, Outgoing};
use crate::sys::pidfd;

/// A worker's process.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: WorkerId,
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) ready_pipe: Option<OwnedFd>,
    /// Whether it was stopped deliberately with SIGSTOP, and must stay stopped.
    pub(super) is_held: bool,
    /// The number of times that the terminal has stopped it.
    pub(super) stops: u32,
    /// Whether its process is reaped. From then on, its pid may belong to another process.
    pub(super) reaped: bool,
    /// Whether a daemon has replaced the process that was started.
    pub(super) in_background: bool,
    /// The process that last reported the worker as ready.
    pub(super) notifier: Option<Pid>,
    /// Its generation.
    pub(super) generation: u32,
    /// When it was started.
    pub(super) started: (Time, SystemTime),
    /// What the supervisors before this one have measured: the CPU time, and the peak of the memory in bytes.
    pub(super) measured_before: (Duration, u64),
    /// What others see of it besides.
    pub(super) history: History,
    /// Set once the end is known.
    pub(super) end: Option<Box<ExitReport>>,
}

/// What has happened to a worker that `status` and the events tell.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct History {
    /// Since when it does not accept connections, and where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) hung: Option<Box<(Time, String)>>,
    /// Why it is being replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) replaced_for: Option<EndReason>,
    /// When it began to drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) draining: Option<Time>,
    /// When it got the stop signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stopped: Option<Time>,
}

impl History {
    /// Whether nothing has happened.
    fn is_empty(&self) -> bool {
        let History { hung, replaced_for, draining, stopped } = self;
        hung.is_none() && replaced_for.is_none() && draining.is_none() && stopped.is_none()
    }
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

fn since_1970(time: SystemTime) -> u64 {
    nanoseconds(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// All workers, by serial, and by pid while they are not reaped.
#[derive(Debug, Default)]
pub(super) struct Workers {
    entries: ByNumber<u64, Entry>,
    by_pid: HashMap<Pid, u64>,
}

/// A worker as a supervisor hands it over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedWorker {
    id: WorkerId,
    #[serde(with = "crate::forms::pid")]
    pid: Pid,
    pidfd: Fd,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ready_pipe: Option<Fd>,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    is_held: bool,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    stops: u32,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    reaped: bool,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    in_background: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    notifier: Option<i32>,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    generation: u32,
    /// The second one in nanoseconds since 1970.
    started: (Time, u64),
    /// The first one in nanoseconds.
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    measured_before: (u64, u64),
    #[serde(default, skip_serializing_if = "History::is_empty")]
    history: History,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<Box<ExitReport>>,
}

impl Workers {
    /// All of them. `measured` is what is measured of a worker now.
    pub(super) fn save(
        &self,
        measured: impl Fn(&Entry) -> (Duration, u64),
        out: &mut Outgoing,
    ) -> Vec<SavedWorker> {
        let save = |entry: &Entry| SavedWorker {
            id: entry.id,
            pid: entry.pid,
            pidfd: out.keep(entry.pidfd.as_fd()),
            ready_pipe: entry.ready_pipe.as_ref().map(|pipe| out.keep(pipe.as_fd())),
            is_held: entry.is_held,
            stops: entry.stops,
            reaped: entry.reaped,
            in_background: entry.in_background,
            notifier: entry.notifier.map(Pid::as_raw_pid),
            generation: entry.generation,
            started: (entry.started.0, since_1970(entry.started.1)),
            measured_before: {
                let (cpu, peak) = measured(entry);
                (nanoseconds(cpu), peak)
            },
            history: entry.history.clone(),
            end: entry.end.clone(),
        };
        self.entries.values().map(save).collect()
    }

    pub(super) fn resume(saved: Vec<SavedWorker>, from: &mut Incoming) -> Workers {
        let mut workers = Workers::default();
        for of in saved {
            let entry = Entry {
                id: of.id,
                pid: of.pid,
                pidfd: from.take(of.pidfd),
                ready_pipe: of.ready_pipe.map(|pipe| from.take(pipe)),
                is_held: of.is_held,
                stops: of.stops,
                reaped: of.reaped,
                in_background: of.in_background,
                notifier: of.notifier.and_then(Pid::from_raw),
                generation: of.generation,
                started: (of.started.0, SystemTime::UNIX_EPOCH + Duration::from_nanos(of.started.1)),
                measured_before: (Duration::from_nanos(of.measured_before.0), of.measured_before.1),
                history: of.history,
                end: of.end,
            };
            if !entry.reaped {
                workers.by_pid.insert(entry.pid, entry.id.serial);
            }
            workers.entries.insert(entry.id.serial, entry);
        }
        workers
    }

    pub(super) fn insert(
        &mut self,
        (id, generation, now): (WorkerId, u32, Time),
        pid: Pid,
        pidfd: OwnedFd,
        ready_pipe: Option<OwnedFd>,
    ) {
        self.by_pid.insert(pid, id.serial);
        let entry = Entry {
            id,
            pid,
            pidfd,
            ready_pipe,
            is_held: false,
            stops: 0,
            reaped: false,
            in_background: false,
            notifier: None,
            generation,
            started: (now, SystemTime::now()),
            measured_before: (Duration::ZERO, 0),
            history: History::default(),
            end: None,
        };
        self.entries.insert(id.serial, entry);
    }

    pub(super) fn get(&self, serial: u64) -> Option<&Entry> {
        self.entries.get(&serial)
    }

    pub(super) fn get_mut(&mut self, serial: u64) -> Option<&mut Entry> {
        self.entries.get_mut(&serial)
    }

    /// The worker of a slot whose end is the last one that is not reported yet.
    pub(super) fn last_ended_in(&self, slot: u32) -> Option<&Entry> {
        let ended = self.entries.values().filter(|entry| entry.id.slot == slot && entry.end.is_some());
        ended.max_by_key(|entry| entry.id.serial)
    }

    /// The workers that are not reaped.
    pub(super) fn alive(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| !entry.reaped)
    }

    pub(super) fn serial_of(&self, pid: Pid) -> Option<u64> {
        self.by_pid.get(&pid).copied()
    }

    /// Records that the process was reaped, so its pid is free.
    pub(super) fn reaped(&mut self, serial: u64) {
        if let Some(entry) = self.entries.get_mut(&serial) {
            self.by_pid.remove(&entry.pid);
            entry.reaped = true;
        }
    }

    /// Records how a worker ended.
    pub(super) fn ended(&mut self, serial: u64, end: ExitReport) {
        if let Some(entry) = self.entries.get_mut(&serial) {
            entry.end = Some(Box::new(end));
        }
    }

    /// Records the process that reported the worker as ready.
    pub(super) fn notified(&mut self, serial: u64, by: Option<Pid>) {
        if let Some(entry) = self.entries.get_mut(&serial) {
            entry.notifier = by;
        }
    }

    /// Makes another process the worker.
    pub(super) fn replace_process(&mut self, serial: u64, pid: Pid, pidfd: OwnedFd) {
        if let Some(entry) = self.entries.get_mut(&serial) {
            (entry.pid, entry.pidfd, entry.reaped) = (pid, pidfd, false);
            entry.in_background = true;
            self.by_pid.insert(pid, serial);
        }
    }

    /// Removes a worker whose end is being reported.
    pub(super) fn take_ended(&mut self, serial: u64) -> Option<Entry> {
        self.entries.remove(&serial)
    }

    /// The worker as messages name it.
    pub(super) fn name(&self, worker: WorkerId) -> Named {
        let pid = self.get(worker.serial).map(|entry| entry.pid.as_raw_pid());
        Named { slot: worker.slot, pid }
    }

    /// Signals the first process of a worker.
    pub(super) fn signal(&self, worker: WorkerId, number: i32) {
        let Some(entry) = self.get(worker.serial) else { return };
        if let Err(error) = pidfd::signal(entry.pidfd.as_fd(), number) {
            self.failed_to_signal(worker, &error);
        }
    }

    /// Signals the process group of a worker.
    pub(super) fn signal_group(&self, worker: WorkerId, signal: Signal) {
        let Some(entry) = self.get(worker.serial).filter(|entry| !entry.reaped) else { return };
        if let Err(error) = pidfd::signal_group(entry.pidfd.as_fd(), entry.pid, signal) {
            self.failed_to_signal(worker, &error);
        }
    }

    /// Kills the first process of a worker, and its process group. The process is killed separately because it may have
    /// left the group.
    pub(super) fn kill_first(&self, serial: u64) {
        let Some(entry) = self.get(serial).filter(|entry| !entry.reaped) else { return };
        let worker = entry.id;
        if let Err(error) = pidfd::kill_group(entry.pidfd.as_fd(), entry.pid) {
            self.failed_to_signal(worker, &error);
        }
        self.signal(worker, libc::SIGKILL);
    }

    fn failed_to_signal(&self, worker: WorkerId, error: &io::Error) {
        // The process is already gone, and the event of its end follows.
        if error.raw_os_error() != Some(libc::ESRCH) {
            warn!("cannot signal {}: pidfd_send_signal: {error}", self.name(worker));
        }
    }
}

/// The descriptors on which the calls of the workers' filters arrive. A descriptor stays open after its worker has
/// ended, until the last descendant has ended: without it, `bind` in the descendants would fail with ENOSYS.
#[derive(Debug, Default)]
pub(super) struct CallListeners {
    open: HashMap<u64, (WorkerId, OwnedFd)>,
    /// Workers whose process trees are empty according to the kernel, and whose ends are not handled yet.
    hung_up: HashSet<u64>,
}

/// The same as a supervisor hands it over.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct SavedCallListeners {
    open: Vec<(WorkerId, Fd)>,
    hung_up: Vec<u64>,
}

impl CallListeners {
    pub(super) fn save(&self, out: &mut Outgoing) -> SavedCallListeners {
        let open = self.open.values().map(|(worker, listener)| (*worker, out.keep(listener.as_fd())));
        SavedCallListeners { open: open.collect(), hung_up: self.hung_up.iter().copied().collect() }
    }

    pub(super) fn resume(saved: SavedCallListeners, from: &mut Incoming) -> CallListeners {
        let mut listeners =
            CallListeners { open: HashMap::new(), hung_up: saved.hung_up.into_iter().collect() };
        for (worker, listener) in saved.open {
            listeners.insert(worker, from.take(listener));
        }
        listeners
    }

    /// All of them, with the serials of their workers.
    pub(super) fn all(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        self.open.iter().map(|(serial, (_, listener))| (*serial, listener.as_fd()))
    }

    /// Whether a process of the worker's tree may still make a call.
    pub(super) fn has(&self, serial: u64) -> bool {
        self.open.contains_key(&serial)
    }

    /// Whether the worker's process tree is empty according to the kernel.
    pub(super) fn has_hung_up(&self, serial: u64) -> bool {
        self.hung_up.contains(&serial)
    }

    /// Forgets a worker whose end is handled.
    pub(super) fn forget(&mut self, serial: u64) {
        self.hung_up.remove(&serial);
    }

    /// The worker, and its descriptor.
    pub(super) fn get(&self, serial: u64) -> Option<(WorkerId, BorrowedFd<'_>)> {
        self.open.get(&serial).map(|(worker, listener)| (*worker, listener.as_fd()))
    }

    /// Closes the descriptor of a worker without processes. `is_handled`: its end is handled already.
    pub(super) fn close(&mut self, serial: u64, is_handled: bool) {
        self.open.remove(&serial);
        if !is_handled {
            self.hung_up.insert(serial);
        }
    }

    pub(super) fn insert(&mut self, worker: WorkerId, listener: OwnedFd) {
        self.open.insert(worker.serial, (worker, listener));
    }
}
