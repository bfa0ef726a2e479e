//! The procfs source. A sample takes two or three calls for each worker, and for descendants one pass over the names
//! in `/proc`.

mod process_tree;

use std::collections::HashMap;
use std::io;
use std::time::Instant;

use rustix::process::{Pid, Resource, getpid, getrlimit};

use super::ExitDetails;
use crate::config::Scope;
use crate::policy::{Before, Usage, WorkerId};
use crate::sys::proc_stat::StatFile;
use process_tree::ProcessTree;

/// The part of the descriptors that the open files of workers may take, and again those of descendants. The rest is
/// for the workers' own descriptors: a worker that forks without end must not keep others from starting.
const PART: u64 = 4;

/// Measures workers by reading `/proc`.
#[derive(Debug)]
pub struct Procfs {
    workers: HashMap<WorkerId, Watched>,
    by_pid: HashMap<Pid, WorkerId>,
    /// `None`: descendants are not counted.
    tree: Option<ProcessTree>,
    /// The number of workers' files that may stay open.
    files: usize,
}

#[derive(Debug)]
struct Watched {
    pid: Pid,
    /// Opened at the first sample, so that it does not delay the start.
    file: Option<StatFile>,
    /// The CPU time of descendants that have ended.
    gone_ns: u64,
    peak: u64,
    now: Usage,
    /// The time and the CPU time of the last sample.
    last: Option<(Instant, u64)>,
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
        let tree = match scope {
            Scope::Tree => Some(ProcessTree::new(files)),
            Scope::Worker => None,
        };
        Ok(Procfs { workers: HashMap::new(), by_pid: HashMap::new(), tree, files })
    }

    /// Watches a worker until [`Self::ended`] is called, which must be before the kernel can reuse its pid.
    pub fn watch(&mut self, worker: WorkerId, pid: Pid) {
        self.by_pid.insert(pid, worker);
        let watched = Watched { pid, file: None, gone_ns: 0, peak: 0, now: Usage::default(), last: None };
        self.workers.insert(worker, watched);
    }

    /// The worker continues in another process.
    pub fn moved(&mut self, worker: WorkerId, pid: Pid) {
        let Some(watched) = self.workers.get_mut(&worker) else { return };
        self.by_pid.remove(&watched.pid);
        self.by_pid.insert(pid, worker);
        (watched.pid, watched.file) = (pid, None);
        if let Some(tree) = &mut self.tree {
            tree.is_worker(pid);
        }
    }

    /// Whether a child of the supervisor was seen whose worker is unknown.
    pub fn sees_orphan(&mut self) -> bool {
        self.tree.as_mut().is_some_and(ProcessTree::take_sees_orphan)
    }

    /// An adopted process belongs to this worker. `started` distinguishes it from other processes with its pid.
    pub fn adopt(&mut self, worker: WorkerId, pid: Pid, started: u64) {
        if let Some(tree) = self.tree.as_mut().filter(|_| self.workers.contains_key(&worker)) {
            tree.adopt(pid, started, worker);
        }
    }

    /// Whether this source measures the worker.
    pub fn watches(&self, worker: WorkerId) -> bool {
        self.workers.contains_key(&worker)
    }

    /// Measures every worker. A worker that cannot be read has no sample.
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

    /// What a worker used at the last sample, and its highest memory so far, in bytes.
    pub(super) fn usage_and_peak(&self, worker: WorkerId) -> Option<(Usage, u64)> {
        let watched = self.workers.get(&worker)?;
        watched.last.map(|_sampled| (watched.now, watched.peak))
    }

    fn sample_descendants(&mut self) {
        let Some(tree) = &mut self.tree else { return };
        tree.look(|pid| self.by_pid.get(&pid).copied());
        tree.refresh(|descendant, lives| {
            let Some(watched) = self.workers.get_mut(&descendant.worker) else { return };
            if lives {
                watched.now.cpu_ns += descendant.last.cpu_ns;
                watched.now.memory += descendant.last.memory;
            } else {
                watched.gone_ns += descendant.last.cpu_ns;
            }
        });
    }

    /// The descendants of a worker at the last sample.
    pub(super) fn descendants_of(&self, worker: WorkerId) -> impl Iterator<Item = Pid> {
        self.tree.iter().flat_map(move |tree| tree.of(worker))
    }

    /// A worker has ended.
    pub fn ended(&mut self, worker: WorkerId) -> ExitDetails {
        let Some(watched) = self.workers.remove(&worker) else { return ExitDetails::default() };
        self.by_pid.remove(&watched.pid);
        if let Some(tree) = &mut self.tree {
            tree.remove_worker(worker);
        }
        ExitDetails { peak_memory: (watched.peak > 0).then_some(watched.peak), ..ExitDetails::default() }
    }
}

/// The descendants of a process. A descendant whose parent has ended is recognised by its group alone.
pub(super) fn descendants(root: Pid) -> Vec<Pid> {
    let mut tree = ProcessTree::default();
    // Any worker will do: there is no other.
    let worker = WorkerId { slot: 0, serial: 0 };
    tree.look(|pid| (pid == root).then_some(worker));
    tree.of(worker).collect()
}

impl Watched {
    /// Adds the worker's own use to that of its descendants. The pid is valid while the worker is watched.
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
        let now = Instant::now();
        self.now.before = self.last.replace((now, self.now.cpu_ns)).map(|(at, had)| {
            let ago = now.saturating_duration_since(at);
            let span_ns = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX);
            Before { ago, span_ns, used_ns: self.now.cpu_ns.saturating_sub(had) }
        });
        self.peak = self.peak.max(self.now.memory);
        Some(self.now)
    }
}
