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
    Ebpf(Box<Ebpf>),
    Procfs(Box<Procfs>),
    Off,
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
            Chosen::Ebpf => ebpf.map(Source::Ebpf),
            Chosen::Procfs => procfs.map(Source::Procfs),
            Chosen::Off => None,
        };
        Ok((Meter { source: source.unwrap_or(Source::Off), scope }, decision.says))
    }

    /// Whether anything is measured.
    pub fn is_on(&self) -> bool {
        match self.source {
            Source::Ebpf(_) | Source::Procfs(_) => true,
            Source::Off => false,
        }
    }

    /// The next process that this process forks is this worker.
    pub fn expect(&mut self, worker: WorkerId) {
        if let Source::Ebpf(ebpf) = &mut self.source {
            ebpf.arm(worker);
        }
    }

    /// It runs.
    pub fn launched(&mut self, worker: WorkerId, pid: Pid) {
        match &mut self.source {
            Source::Ebpf(ebpf) => ebpf.launched(worker, true),
            Source::Procfs(procfs) => procfs.watch(worker, pid),
            Source::Off => {}
        }
    }

    /// Another process is the worker from now on: one that it has started.
    pub fn moved(&mut self, worker: WorkerId, pid: Pid) {
        if let Source::Procfs(procfs) = &mut self.source {
            procfs.moved(worker, pid);
        }
    }

    /// Processes that are known to be a worker's, as far as the source knows.
    pub fn processes_of(&self, worker: WorkerId) -> Vec<Pid> {
        match &self.source {
            Source::Ebpf(ebpf) => ebpf.processes_of(worker).into_iter().flatten().collect(),
            Source::Procfs(procfs) => procfs.descendants_of(worker).collect(),
            Source::Off => Vec::new(),
        }
    }

    /// It could not be started.
    pub fn not_launched(&mut self, worker: WorkerId) {
        if let Source::Ebpf(ebpf) = &mut self.source {
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
            Source::Ebpf(ebpf) => {
                if let Err(lost) = ebpf.sample(each) {
                    self.fall_back(&lost, alive);
                }
            }
            Source::Procfs(procfs) => procfs.sample(each),
            Source::Off => {}
        }
    }

    fn fall_back(&mut self, lost: &Lost, alive: impl Iterator<Item = (WorkerId, Pid)>) {
        self.source = match Procfs::new(self.scope) {
            Ok(mut procfs) => {
                warn!("{lost}: measuring with procfs from now on");
                alive.for_each(|(worker, pid)| procfs.watch(worker, pid));
                Source::Procfs(Box::new(procfs))
            }
            Err(error) => {
                warn!("{lost}, and procfs cannot be read ({error}): nothing is measured from now on");
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
            (Source::Ebpf(ebpf), Scope::Tree) => match ebpf.processes_of(worker) {
                Some(processes) => known.extend(processes.filter(|other| *other != pid)),
                None => searches = true,
            },
            (Source::Off, _) | (Source::Procfs(_) | Source::Ebpf(_), Scope::Worker) => {}
        }
        Members { known, searches }
    }

    /// A worker's process is gone: what there is to say about its end.
    pub fn ended(&mut self, worker: WorkerId) -> LastWords {
        match &mut self.source {
            Source::Ebpf(ebpf) => ebpf.ended(worker),
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
        let mut meter = Meter { source: Source::Ebpf(ebpf), scope: Scope::Worker };
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
}
