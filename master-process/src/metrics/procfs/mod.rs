//! The source that reads `/proc`: two to three calls for each worker and sample, and for descendants a pass over the
//! names in `/proc`.

mod family;

use std::collections::HashMap;
use std::io;

use rustix::process::{Pid, Resource, getpid, getrlimit};

use super::LastWords;
use crate::config::Scope;
use crate::policy::{Usage, WorkerId};
use crate::sys::proc_stat::StatFile;
use family::Family;

/// The workers' files may take this part of the descriptors that we may have, and those of their descendants as much
/// again. The rest is for the workers themselves: one that forks without end must not keep others from starting.
const PART: u64 = 4;

/// Reads what the workers use.
#[derive(Debug)]
pub struct Procfs {
    workers: HashMap<WorkerId, Watched>,
    by_pid: HashMap<Pid, WorkerId>,
    /// `None`: descendants do not count.
    family: Option<Family>,
    /// So many workers' files may stay open.
    files: usize,
}

#[derive(Debug)]
struct Watched {
    pid: Pid,
    /// Opened at the first sample: a start must not pay for it.
    file: Option<StatFile>,
    /// What descendants had used that are gone.
    gone_ns: u64,
    peak: u64,
    now: Usage,
}

impl Procfs {
    /// A source without workers.
    ///
    /// # Errors
    /// `/proc` is not mounted, or does not show this process.
    pub fn new(scope: Scope) -> io::Result<Procfs> {
        StatFile::open(getpid())?.read()?;
        let limit = getrlimit(Resource::Nofile).current;
        let files = limit.map_or(usize::MAX, |limit| usize::try_from(limit / PART).unwrap_or(usize::MAX));
        let family = match scope {
            Scope::Tree => Some(Family::new(files)),
            Scope::Worker => None,
        };
        Ok(Procfs { workers: HashMap::new(), by_pid: HashMap::new(), family, files })
    }

    /// Measures a worker from now on, until [`Self::ended`] is called, which must be before its pid can be somebody
    /// else's and looked at again.
    pub fn watch(&mut self, worker: WorkerId, pid: Pid) {
        self.by_pid.insert(pid, worker);
        let watched = Watched { pid, file: None, gone_ns: 0, peak: 0, now: Usage::default() };
        self.workers.insert(worker, watched);
    }

    /// Another process is the worker from now on.
    pub fn moved(&mut self, worker: WorkerId, pid: Pid) {
        let Some(watched) = self.workers.get_mut(&worker) else { return };
        self.by_pid.remove(&watched.pid);
        self.by_pid.insert(pid, worker);
        (watched.pid, watched.file) = (pid, None);
        if let Some(family) = &mut self.family {
            family.is_worker(pid);
        }
    }

    /// Whether a child of ours was seen whose worker is not known.
    pub fn sees_orphan(&mut self) -> bool {
        self.family.as_mut().is_some_and(Family::take_sees_orphan)
    }

    /// A process that was handed to us is a worker's. `started` tells it from others that have had its pid.
    pub fn adopt(&mut self, worker: WorkerId, pid: Pid, started: u64) {
        if let Some(family) = self.family.as_mut().filter(|_| self.workers.contains_key(&worker)) {
            family.adopt(pid, started, worker);
        }
    }

    /// Whether it measures this worker.
    pub fn watches(&self, worker: WorkerId) -> bool {
        self.workers.contains_key(&worker)
    }

    /// Measures every worker. One that cannot be read has no sample.
    pub fn sample(&mut self, each: &mut dyn FnMut(WorkerId, Usage)) {
        self.workers.values_mut().for_each(|watched| watched.now = Usage::default());
        self.sample_descendants();
        let keep = self.workers.len() <= self.files;
        for (worker, watched) in &mut self.workers {
            if let Some(usage) = watched.read(keep) {
                each(*worker, usage);
            }
        }
    }

    fn sample_descendants(&mut self) {
        let Some(family) = &mut self.family else { return };
        family.look(|pid| self.by_pid.get(&pid).copied());
        family.refresh(|relative, lives| {
            let Some(watched) = self.workers.get_mut(&relative.worker) else { return };
            if lives {
                watched.now.cpu_ns += relative.last.cpu_ns;
                watched.now.memory += relative.last.memory;
            } else {
                watched.gone_ns += relative.last.cpu_ns;
            }
        });
    }

    /// A worker's descendants, as of the last sample.
    pub(super) fn descendants_of(&self, worker: WorkerId) -> impl Iterator<Item = Pid> {
        self.family.iter().flat_map(move |family| family.of(worker))
    }

    /// A worker's process is gone.
    pub fn ended(&mut self, worker: WorkerId) -> LastWords {
        let Some(watched) = self.workers.remove(&worker) else { return LastWords::default() };
        self.by_pid.remove(&watched.pid);
        if let Some(family) = &mut self.family {
            family.disown(worker);
        }
        LastWords { peak_memory: (watched.peak > 0).then_some(watched.peak), ..LastWords::default() }
    }
}

/// Who descends from a process, as far as `/proc` tells just now: one whose parents are gone is known by its group alone.
pub(super) fn descendants(root: Pid) -> Vec<Pid> {
    let mut family = Family::default();
    // Any will do: there is no other.
    let worker = WorkerId { slot: 0, serial: 0 };
    family.look(|pid| (pid == root).then_some(worker));
    family.of(worker).collect()
}

impl Watched {
    /// Its own use on top of its descendants'. The pid is its own for as long as it is watched.
    fn read(&mut self, keep: bool) -> Option<Usage> {
        let file = match self.file.take() {
            Some(file) => file,
            None => StatFile::open(self.pid).ok()?,
        };
        let own = file.read();
        self.file = keep.then_some(file);
        let own = own.ok()?;
        self.now.cpu_ns += own.cpu_ns + self.gone_ns;
        self.now.memory += own.memory;
        self.peak = self.peak.max(self.now.memory);
        Some(self.now)
    }
}
