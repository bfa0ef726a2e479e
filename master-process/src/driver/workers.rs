//! The processes behind the policy's workers.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::process::Pid;

use crate::policy::WorkerId;
use crate::report::ExitReport;

/// A worker's process.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: WorkerId,
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) ready_pipe: Option<OwnedFd>,
    /// Whether somebody has stopped it with SIGSTOP, and wants it stopped.
    pub(super) is_held: bool,
    /// How often the terminal has stopped it.
    pub(super) stops: u32,
    /// Whether its process is reaped: from then on its pid may be somebody else's.
    pub(super) reaped: bool,
    /// Whether a daemon has taken the place of the process that was started.
    pub(super) in_background: bool,
    /// The process that has said last that the worker is ready.
    pub(super) notifier: Option<Pid>,
    /// Set once it is known how it ended.
    pub(super) end: Option<Box<ExitReport>>,
}

/// All of them, by serial; and by pid while they are not reaped.
#[derive(Debug, Default)]
pub(super) struct Workers {
    entries: HashMap<u64, Entry>,
    by_pid: HashMap<Pid, u64>,
}

impl Workers {
    pub(super) fn insert(&mut self, id: WorkerId, pid: Pid, pidfd: OwnedFd, ready_pipe: Option<OwnedFd>) {
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

    /// Those that are not reaped.
    pub(super) fn alive(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| !entry.reaped)
    }

    pub(super) fn serial_of(&self, pid: Pid) -> Option<u64> {
        self.by_pid.get(&pid).copied()
    }

    /// A process was reaped: its pid is free.
    pub(super) fn reaped(&mut self, serial: u64) {
        if let Some(entry) = self.entries.get_mut(&serial) {
            self.by_pid.remove(&entry.pid);
            entry.reaped = true;
        }
    }

    /// A worker has ended in this way.
    pub(super) fn ended(&mut self, serial: u64, end: ExitReport) {
        if let Some(entry) = self.entries.get_mut(&serial) {
            entry.end = Some(Box::new(end));
        }
    }

    /// A process of a worker has said that it is ready.
    pub(super) fn notified(&mut self, serial: u64, by: Option<Pid>) {
        if let Some(entry) = self.entries.get_mut(&serial) {
            entry.notifier = by;
        }
    }

    /// Another process is the worker from now on.
    pub(super) fn replace_process(&mut self, serial: u64, pid: Pid, pidfd: OwnedFd) {
        if let Some(entry) = self.entries.get_mut(&serial) {
            (entry.pid, entry.pidfd, entry.reaped) = (pid, pidfd, false);
            entry.in_background = true;
            self.by_pid.insert(pid, serial);
        }
    }

    /// Forgets a worker whose end is being reported.
    pub(super) fn take_ended(&mut self, serial: u64) -> Option<Entry> {
        self.entries.remove(&serial)
    }
}
