//! Measuring the workers with whichever source is available.

use rustix::process::Pid;
use tracing::warn;

use super::ExitDetails;
use super::choice::{Chosen, decide};
use super::ebpf::{Ebpf, ProgramsDetached};
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
    /// With procfs for the workers for which eBPF has no account.
    Ebpf(Box<Ebpf>, Rest),
    Procfs(Box<Procfs>),
    Off,
}

/// The source for the workers that eBPF does not measure.
#[derive(Debug)]
enum Rest {
    /// There are no such workers yet.
    None,
    Procfs(Box<Procfs>),
    /// There is none; this was logged.
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
    /// Chooses a source for this number of workers. The text is for the log, after the first start.
    ///
    /// # Errors
    /// The requested source is unavailable.
    pub fn new(wish: Monitor, scope: Scope, workers: u32) -> anyhow::Result<(Meter, Option<String>)> {
        let (mut ebpf, mut procfs) = (None, None);
        let try_ebpf = || {
            ebpf = Some(Box::new(Ebpf::load(scope, workers).map_err(|error| error.to_string())?));
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

    /// Announces that the next process that the supervisor forks is this worker.
    pub fn expect(&mut self, worker: WorkerId) {
        if let Source::Ebpf(ebpf, _) = &mut self.source {
            ebpf.arm(worker);
        }
    }

    /// Whether the announced process was forked. Called before the next one is announced.
    pub fn forked(&mut self, worker: WorkerId, started: bool) {
        if let Source::Ebpf(ebpf, _) = &mut self.source {
            ebpf.launched(worker, started);
        }
    }

    /// The worker runs as `pid`.
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

    /// The worker continues in a process that it has started.
    pub fn moved(&mut self, worker: WorkerId, pid: Pid) {
        if let Some(procfs) = self.procfs() {
            procfs.moved(worker, pid);
        }
    }

    /// Whether a new child of the supervisor was seen whose worker is unknown: an adopted orphan. eBPF needs no such
    /// notice, because it sees each fork.
    pub fn sees_orphan(&mut self) -> bool {
        self.procfs().is_some_and(Procfs::sees_orphan)
    }

    /// An adopted process belongs to this worker. `started` distinguishes it from other processes with its pid.
    pub fn adopt(&mut self, worker: WorkerId, pid: Pid, started: u64) {
        if let Some(procfs) = self.procfs() {
            procfs.adopt(worker, pid, started);
        }
    }

    fn procfs(&mut self) -> Option<&mut Procfs> {
        match &mut self.source {
            Source::Procfs(procfs) | Source::Ebpf(_, Rest::Procfs(procfs)) => Some(procfs),
            Source::Ebpf(_, Rest::None | Rest::Impossible) | Source::Off => None,
        }
    }

    /// The processes of a worker that the source knows.
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

    /// The worker failed to start.
    pub fn not_launched(&mut self, worker: WorkerId) {
        if let Source::Ebpf(ebpf, _) = &mut self.source {
            ebpf.launched(worker, false);
        }
    }

    /// Measures every worker. A worker that cannot be measured has no sample. If the eBPF programs were detached,
    /// procfs takes over at the next sample and watches the workers in `alive`.
    pub fn sample(
        &mut self,
        alive: impl Iterator<Item = (WorkerId, Pid)>,
        each: &mut dyn FnMut(WorkerId, Usage),
    ) {
        match &mut self.source {
            Source::Ebpf(ebpf, rest) => {
                if let Err(detached) = ebpf.sample(each) {
                    return self.fall_back(&detached, alive);
                }
                if let Rest::Procfs(procfs) = rest {
                    procfs.sample(each);
                }
            }
            Source::Procfs(procfs) => procfs.sample(each),
            Source::Off => {}
        }
    }

    fn fall_back(&mut self, detached: &ProgramsDetached, alive: impl Iterator<Item = (WorkerId, Pid)>) {
        self.source = match Procfs::new(self.scope) {
            Ok(mut procfs) => {
                warn!("{detached}: switched to procfs");
                alive.for_each(|(worker, pid)| procfs.watch(worker, pid));
                Source::Procfs(Box::new(procfs))
            }
            Err(error) => {
                warn!("{detached} and procfs is unavailable: {error}; workers are no longer measured");
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

    /// The details of a worker's end.
    pub fn ended(&mut self, worker: WorkerId) -> ExitDetails {
        match &mut self.source {
            Source::Ebpf(_, Rest::Procfs(procfs)) if procfs.watches(worker) => procfs.ended(worker),
            Source::Ebpf(ebpf, _) => ebpf.ended(worker),
            Source::Procfs(procfs) => procfs.ended(worker),
            Source::Off => ExitDetails::default(),
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
            Err(error) => {
                master_process_tests::skip!("procfs_takes_over_where_the_programs_are_gone", error)
            }
        };
        let mut child = Command::new("sleep").arg("60").spawn().expect("a process");
        let pid = Pid::from_child(&child);
        let worker = WorkerId { slot: 0, serial: 1 };
        ebpf.detach();
        let mut meter = Meter { source: Source::Ebpf(ebpf, Rest::None), scope: Scope::Worker };
        let mut samples = Vec::new();
        // eBPF watches no process here. The kernel may run the programs for a moment longer.
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
            Err(error) => master_process_tests::skip!(name, error),
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
