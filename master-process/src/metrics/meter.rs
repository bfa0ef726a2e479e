//! The one source that measures, whichever it is.

use rustix::process::Pid;
use tracing::warn;

use super::LastWords;
use super::choice::{Chosen, decide};
use super::ebpf::{Ebpf, Lost};
use super::inspector::Members;
use super::procfs::Procfs;
use crate::config::{Monitor, Scope};
use crate::policy::{Usage, WorkerId};

/// Measures the workers.
#[derive(Debug)]
pub struct Meter {
    source: Source,
    scope: Scope,
}

#[derive(Debug)]
enum Source {
    /// With those that it has no account for, which procfs measures.
    Ebpf(Box<Ebpf>, Rest),
    Procfs(Box<Procfs>),
    Off,
}

/// What measures the workers that eBPF does not.
#[derive(Debug)]
enum Rest {
    /// There was none yet.
    None,
    Procfs(Box<Procfs>),
    /// It cannot be had either, which was said.
    Impossible,
}

impl Rest {
    fn watch(&mut self, scope: Scope, worker: WorkerId, pid: Pid) {
        if let Rest::None = self {
            *self = Rest::start(scope);
        }
        if let Rest::Procfs(procfs) = self {
            procfs.watch(worker, pid);
        }
    }

    fn start(scope: Scope) -> Rest {
        match Procfs::new(scope) {
            Ok(procfs) => {
                warn!("eBPF maps are full: measuring further workers with procfs");
                Rest::Procfs(Box::new(procfs))
            }
            Err(error) => {
                warn!(
                    "eBPF maps are full and procfs is unavailable: {error}; further workers are not measured"
                );
                Rest::Impossible
            }
        }
    }
}

impl Meter {
    /// Chooses a source for so many workers. Which and why is for the log, once something runs.
    ///
    /// # Errors
    /// The one that was asked for cannot be had.
    pub fn new(wish: Monitor, scope: Scope, workers: u32) -> anyhow::Result<(Meter, Option<String>)> {
        let (mut ebpf, mut procfs) = (None, None);
        let try_ebpf = || {
            ebpf = Some(Box::new(Ebpf::load(scope, workers).map_err(|refusal| refusal.to_string())?));
            Ok(())
        };
        let try_procfs = || {
            procfs = Some(Box::new(Procfs::new(scope).map_err(|error| format!("reading /proc: {error}"))?));
            Ok(())
        };
        let decision = decide(wish, try_ebpf, try_procfs).map_err(|why| {
            anyhow::anyhow!("--monitor {}: {why}", if wish == Monitor::Ebpf { "ebpf" } else { "procfs" })
        })?;
        let source = match decision.chosen {
            Chosen::Ebpf => ebpf.map(|ebpf| Source::Ebpf(ebpf, Rest::None)),
            Chosen::Procfs => procfs.map(Source::Procfs),
            Chosen::Off => None,
        };
        Ok((Meter { source: source.unwrap_or(Source::Off), scope }, decision.says))
    }

    /// Whether anything is measured.
    pub fn is_on(&self) -> bool {
        match self.source {
            Source::Ebpf(..) | Source::Procfs(_) => true,
            Source::Off => false,
        }
    }

    /// The next process that this process forks is this worker.
    pub fn expect(&mut self, worker: WorkerId) {
        if let Source::Ebpf(ebpf, _) = &mut self.source {
            ebpf.arm(worker);
        }
    }

    /// There is such a process, or there is none; said before the next one is expected.
    pub fn forked(&mut self, worker: WorkerId, started: bool) {
        if let Source::Ebpf(ebpf, _) = &mut self.source {
            ebpf.launched(worker, started);
        }
    }

    /// It runs.
    pub fn launched(&mut self, worker: WorkerId, pid: Pid) {
        match &mut self.source {
            Source::Ebpf(ebpf, rest) => {
                if !ebpf.watches(worker) {
                    rest.watch(self.scope, worker, pid);
                }
            }
            Source::Procfs(procfs) => procfs.watch(worker, pid),
            Source::Off => {}
        }
    }

    /// Another process is the worker from now on: one that it has started.
    pub fn moved(&mut self, worker: WorkerId, pid: Pid) {
        if let Some(procfs) = self.procfs() {
            procfs.moved(worker, pid);
        }
    }

    /// Whether a child of ours was seen whose worker is not known: it was handed to us. The kernel side needs no telling:
    /// it has seen the birth.
    pub fn sees_orphan(&mut self) -> bool {
        self.procfs().is_some_and(Procfs::sees_orphan)
    }

    /// A process that was handed to us is a worker's.
    pub fn adopt(&mut self, worker: WorkerId, pid: Pid) {
        if let Some(procfs) = self.procfs() {
            procfs.adopt(worker, pid);
        }
    }

    fn procfs(&mut self) -> Option<&mut Procfs> {
        match &mut self.source {
            Source::Procfs(procfs) | Source::Ebpf(_, Rest::Procfs(procfs)) => Some(procfs),
            Source::Ebpf(_, Rest::None | Rest::Impossible) | Source::Off => None,
        }
    }

    /// Processes that are known to be a worker's, as far as the source knows.
    pub fn processes_of(&self, worker: WorkerId) -> Vec<Pid> {
        match &self.source {
            Source::Ebpf(_, Rest::Procfs(procfs)) if procfs.watches(worker) => {
                procfs.descendants_of(worker).collect()
            }
            Source::Ebpf(ebpf, _) => ebpf.processes_of(worker).into_iter().flatten().collect(),
            Source::Procfs(procfs) => procfs.descendants_of(worker).collect(),
            Source::Off => Vec::new(),
        }
    }

    /// It could not be started.
    pub fn not_launched(&mut self, worker: WorkerId) {
        if let Source::Ebpf(ebpf, _) = &mut self.source {
            ebpf.launched(worker, false);
        }
    }

    /// Measures every worker. One that could not be measured is passed over. Where the kernel does not measure any more,
    /// procfs takes over, from the next sample on: `alive` is whom it watches then.
    pub fn sample(
        &mut self,
        alive: impl Iterator<Item = (WorkerId, Pid)>,
        each: &mut dyn FnMut(WorkerId, Usage),
    ) {
        match &mut self.source {
            Source::Ebpf(ebpf, rest) => {
                if let Err(lost) = ebpf.sample(each) {
                    return self.fall_back(&lost, alive);
                }
                if let Rest::Procfs(procfs) = rest {
                    procfs.sample(each);
                }
            }
            Source::Procfs(procfs) => procfs.sample(each),
            Source::Off => {}
        }
    }

    fn fall_back(&mut self, lost: &Lost, alive: impl Iterator<Item = (WorkerId, Pid)>) {
        self.source = match Procfs::new(self.scope) {
            Ok(mut procfs) => {
                warn!("{lost}: switched to procfs");
                alive.for_each(|(worker, pid)| procfs.watch(worker, pid));
                Source::Procfs(Box::new(procfs))
            }
            Err(error) => {
                warn!("{lost} and procfs is unavailable: {error}; workers are no longer measured");
                Source::Off
            }
        };
    }

    /// The processes of a worker that runs as `pid`.
    pub fn members(&self, worker: WorkerId, pid: Pid) -> Members {
        let mut known = vec![pid];
        let mut searches = false;
        match (&self.source, self.scope) {
            (Source::Procfs(procfs), Scope::Tree) => known.extend(procfs.descendants_of(worker)),
            (Source::Ebpf(_, Rest::Procfs(procfs)), Scope::Tree) if procfs.watches(worker) => {
                known.extend(procfs.descendants_of(worker));
            }
            (Source::Ebpf(ebpf, _), Scope::Tree) => match ebpf.processes_of(worker) {
                Some(processes) => known.extend(processes.filter(|other| *other != pid)),
                None => searches = true,
            },
            (Source::Off, _) | (Source::Procfs(_) | Source::Ebpf(..), Scope::Worker) => {}
        }
        Members { known, searches }
    }

    /// A worker's process is gone: what there is to say about its end.
    pub fn ended(&mut self, worker: WorkerId) -> LastWords {
        match &mut self.source {
            Source::Ebpf(_, Rest::Procfs(procfs)) if procfs.watches(worker) => procfs.ended(worker),
            Source::Ebpf(ebpf, _) => ebpf.ended(worker),
            Source::Procfs(procfs) => procfs.ended(worker),
            Source::Off => LastWords::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn procfs_takes_over_where_the_programs_are_gone() {
        let mut ebpf = match Ebpf::load(Scope::Worker, 1) {
            Ok(ebpf) => Box::new(ebpf),
            Err(refusal) => {
                master_process_tests::skip!("procfs_takes_over_where_the_programs_are_gone", refusal)
            }
        };
        let mut child = Command::new("sleep").arg("60").spawn().expect("a process");
        let pid = Pid::from_child(&child);
        let worker = WorkerId { slot: 0, serial: 1 };
        ebpf.detach();
        let mut meter = Meter { source: Source::Ebpf(ebpf, Rest::None), scope: Scope::Worker };
        let mut samples = Vec::new();
        // Nobody is watched by eBPF here. The kernel may run the programs for a moment more.
        let deadline = Instant::now() + Duration::from_secs(10);
        while samples.is_empty() && Instant::now() < deadline {
            meter.sample([(worker, pid)].into_iter(), &mut |worker, usage| {
                samples.push((worker, usage.memory))
            });
        }
        let _killed = child.kill().and_then(|()| child.wait());
        assert!(matches!(meter.source, Source::Procfs(_)));
        assert!(samples.iter().any(|(of, memory)| *of == worker && *memory > 0), "{samples:?}");
    }

    #[test]
    fn procfs_measures_those_that_ebpf_has_no_room_for() {
        let name = "procfs_measures_those_that_ebpf_has_no_room_for";
        let ebpf = match Ebpf::load_for(Scope::Worker, 1) {
            Ok(ebpf) => Box::new(ebpf),
            Err(refusal) => master_process_tests::skip!(name, refusal),
        };
        let mut meter = Meter { source: Source::Ebpf(ebpf, Rest::None), scope: Scope::Worker };
        let workers = [1, 2, 3].map(|serial| WorkerId { slot: 0, serial });
        let mut children = workers.map(|worker| {
            meter.expect(worker);
            let child = Command::new("sleep").arg("60").spawn().expect("a process");
            meter.forked(worker, true);
            meter.launched(worker, Pid::from_child(&child));
            child
        });
        let mut measured = std::collections::BTreeMap::new();
        let deadline = Instant::now() + Duration::from_secs(10);
        while measured.len() < 3 && Instant::now() < deadline {
            meter.sample(std::iter::empty(), &mut |worker, usage| {
                if usage.memory > 0 {
                    measured.insert(worker.serial, usage.memory);
                }
            });
            std::thread::sleep(Duration::from_millis(10));
        }
        for child in &mut children {
            let _killed = child.kill().and_then(|()| child.wait());
        }
        assert_eq!(measured.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
        let Source::Ebpf(_, Rest::Procfs(procfs)) = &meter.source else { unreachable!("{meter:?}") };
        let by_procfs = workers.map(|worker| procfs.watches(worker));
        assert_eq!(by_procfs, [false, true, true]);
        assert!(workers.map(|worker| meter.ended(worker).peak_memory).iter().all(Option::is_some));
        meter.sample(std::iter::empty(), &mut |worker, _| unreachable!("{worker:?} is gone"));
    }
}
