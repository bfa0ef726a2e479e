//! Measuring the workers with whichever source is available.

use std::os::fd::{BorrowedFd, RawFd};

use rustix::process::Pid;
use tracing::warn;

use super::ExitDetails;
use super::choice::{Chosen, decide};
use super::ebpf::{Ebpf, LoadError, Loader, Thresholds, Wanted};
use super::inspector::Members;
use super::procfs::Procfs;
use crate::config::{Config, Monitor, Scope};
use crate::policy::{Usage, WorkerId};

/// Measures the workers.
#[derive(Debug)]
pub struct Meter {
    source: Source,
    scope: Scope,
    /// What [`Self::begin`] has to do.
    begins: Begins,
}

#[derive(Debug)]
enum Begins {
    /// Load the eBPF programs, if they can be.
    Choosing(Wanted),
    /// A thread loads them.
    Loading(Loader),
    /// Return this text.
    Chosen(String),
    Nothing,
}

/// The procfs source, or why it is unavailable.
pub(super) fn open_procfs(scope: Scope) -> Result<Procfs, String> {
    Procfs::new(scope).map_err(|error| format!("reading /proc: {error}"))
}

#[derive(Debug)]
enum Source {
    /// The kernel takes the samples, and reports those that count.
    Ebpf(Box<Ebpf>),
    /// The supervisor takes them.
    Procfs(Box<Procfs>),
    Off,
}

impl Meter {
    /// A meter for the configured number of workers. A source that was requested is tried now; what is best is chosen by
    /// [`Self::begin`].
    ///
    /// # Errors
    /// The requested source is unavailable.
    pub fn new(config: &Config) -> anyhow::Result<Meter> {
        let Config { monitor: wish, account: scope, workers, limits, .. } = config;
        let (wish, scope) = (*wish, *scope);
        let thresholds = Thresholds { cpu: limits.max_cpu, memory: limits.max_memory };
        let wanted = Wanted { scope, workers: *workers, interval: limits.interval, thresholds };
        let mut meter = Meter { source: Source::Off, scope, begins: Begins::Choosing(wanted) };
        if wish != Monitor::Auto {
            let says = meter.choose(wish, || wanted.load()).map_err(|why| {
                anyhow::anyhow!("--monitor {}: {why}", if wish == Monitor::Ebpf { "ebpf" } else { "procfs" })
            })?;
            meter.begins = says.map_or(Begins::Nothing, Begins::Chosen);
        }
        Ok(meter)
    }

    /// The same for workers that another supervisor has started. eBPF programs are loaded by a thread in any case:
    /// nothing is measured until they run, and the workers do not wait for that.
    ///
    /// # Errors
    /// The requested source is unavailable.
    pub fn resume(config: &Config) -> anyhow::Result<Meter> {
        let monitor = if config.monitor == Monitor::Ebpf { Monitor::Auto } else { config.monitor };
        Meter::new(&Config { monitor, ..config.clone() })
    }

    /// Whether the account of a worker begins when it is watched, and not with its first process.
    pub fn counts_from_watch(&self) -> bool {
        match self.source {
            Source::Ebpf(_) => true,
            Source::Procfs(_) | Source::Off => false,
        }
    }

    fn choose(
        &mut self,
        wish: Monitor,
        load: impl FnOnce() -> Result<Ebpf, LoadError>,
    ) -> Result<Option<String>, String> {
        let (mut ebpf, mut procfs) = (None, None);
        let scope = self.scope;
        let try_ebpf = || {
            ebpf = Some(Box::new(load().map_err(|error| error.to_string())?));
            Ok(())
        };
        let try_procfs = || {
            procfs = Some(Box::new(open_procfs(scope)?));
            Ok(())
        };
        let decision = decide(wish, try_ebpf, try_procfs)?;
        let source = match decision.chosen {
            Chosen::Ebpf => ebpf.map(Source::Ebpf),
            Chosen::Procfs => procfs.map(Source::Procfs),
            Chosen::Off => None,
        };
        self.source = source.unwrap_or(Source::Off);
        Ok(decision.says)
    }

    /// Begins to measure, once the first workers have been started. A thread loads the eBPF programs, so that neither the
    /// workers nor the loop wait for that. Returns a descriptor that is readable when [`Self::take_begun`] has an answer;
    /// `None` if it has one now.
    pub fn begin(&mut self) -> Option<BorrowedFd<'_>> {
        if let Begins::Choosing(wanted) = self.begins
            && let Some(loader) = Loader::start(wanted)
        {
            self.begins = Begins::Loading(loader);
        }
        match &self.begins {
            Begins::Loading(loader) => Some(loader.fd()),
            Begins::Choosing(_) | Begins::Chosen(_) | Begins::Nothing => None,
        }
    }

    /// Whether [`Self::begin`] has come to its end, and, once, which source was chosen, and why, for the log.
    pub fn take_begun(&mut self, alive: impl Iterator<Item = (WorkerId, Pid)>) -> (bool, Option<String>) {
        let loaded = match std::mem::replace(&mut self.begins, Begins::Nothing) {
            Begins::Nothing => return (true, None),
            Begins::Chosen(says) => return (true, Some(says)),
            Begins::Choosing(wanted) => wanted.load(),
            Begins::Loading(mut loader) => match loader.take() {
                Some(loaded) => loaded,
                None => {
                    self.begins = Begins::Loading(loader);
                    return (false, None);
                }
            },
        };
        let says = self.choose(Monitor::Auto, || loaded);
        let alive: Vec<_> = alive.collect();
        for (worker, pid) in &alive {
            self.launched(*worker, *pid, alive.iter().copied());
        }
        (true, says.unwrap_or_else(|why| Some(format!("monitor: off; {why}"))))
    }

    /// Whether anything is measured.
    pub fn is_on(&self) -> bool {
        match self.source {
            Source::Ebpf(_) | Source::Procfs(_) => true,
            Source::Off => false,
        }
    }

    /// The name of the source.
    pub fn source(&self) -> &'static str {
        match self.source {
            Source::Ebpf(_) => "ebpf",
            Source::Procfs(_) => "procfs",
            Source::Off => "off",
        }
    }

    /// What a worker used at the last sample, and its highest memory so far, in bytes. `None`: it was not measured yet. With
    /// eBPF this reads the kernel's own account, and makes no system call.
    pub fn usage(&self, worker: WorkerId) -> Option<(Usage, u64)> {
        match &self.source {
            Source::Ebpf(ebpf) => ebpf.usage_and_peak(worker),
            Source::Procfs(procfs) => procfs.usage_and_peak(worker),
            Source::Off => None,
        }
    }

    /// Whether the supervisor has to take the samples.
    pub fn takes_samples(&self) -> bool {
        match self.source {
            Source::Procfs(_) => true,
            Source::Ebpf(_) | Source::Off => false,
        }
    }

    /// Readable when the kernel has samples to report; `None` if it takes none.
    pub fn events(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Ebpf(ebpf) => Some(ebpf.fd()),
            Source::Procfs(_) | Source::Off => None,
        }
    }

    /// The worker runs as `pid`. If eBPF has no room for it and cannot make some, procfs takes over and watches the
    /// workers in `alive`, of which this is one.
    pub fn launched(&mut self, worker: WorkerId, pid: Pid, alive: impl Iterator<Item = (WorkerId, Pid)>) {
        match &mut self.source {
            Source::Ebpf(ebpf) => {
                if let Err(error) = ebpf.watch(worker, pid) {
                    self.fall_back(&error, alive);
                }
            }
            Source::Procfs(procfs) => procfs.watch(worker, pid),
            Source::Off => {}
        }
    }

    /// The worker continues in a process that it has started.
    pub fn moved(&mut self, worker: WorkerId, pid: Pid) {
        match &mut self.source {
            Source::Ebpf(ebpf) => ebpf.moved(worker, pid),
            Source::Procfs(procfs) => procfs.moved(worker, pid),
            Source::Off => {}
        }
    }

    /// Whether a new child of the supervisor was seen whose worker is unknown: an adopted orphan.
    pub fn sees_orphan(&mut self) -> bool {
        match &mut self.source {
            Source::Ebpf(ebpf) => self.scope == Scope::Tree && ebpf.sees_orphan(),
            Source::Procfs(procfs) => procfs.sees_orphan(),
            Source::Off => false,
        }
    }

    /// An adopted process, which is a child of the supervisor, belongs to this worker. `started` distinguishes it from
    /// other processes with its pid.
    pub fn adopt(&mut self, worker: WorkerId, pid: Pid, started: u64) {
        match &mut self.source {
            Source::Ebpf(ebpf) => {
                if self.scope == Scope::Tree {
                    ebpf.adopt(worker, pid);
                }
            }
            Source::Procfs(procfs) => procfs.adopt(worker, pid, started),
            Source::Off => {}
        }
    }

    /// The processes of a worker that the source knows, apart from its first one.
    pub fn processes_of(&self, worker: WorkerId) -> Vec<Pid> {
        match &self.source {
            Source::Ebpf(ebpf) => ebpf.orphans_of(worker),
            Source::Procfs(procfs) => procfs.descendants_of(worker).collect(),
            Source::Off => Vec::new(),
        }
    }

    /// Takes a sample of every worker, or, with eBPF, reports the samples at which a worker was above a limit and the first
    /// one at which it no longer was. A worker that cannot be measured has no sample.
    pub fn sample(&mut self, each: &mut dyn FnMut(WorkerId, Usage)) {
        match &mut self.source {
            Source::Ebpf(ebpf) => ebpf.events(each),
            Source::Procfs(procfs) => procfs.sample(each),
            Source::Off => {}
        }
    }

    /// The limits were paused or resumed, of all workers or of this one: has its next sample reported.
    pub fn report_anew(&mut self, of: Option<WorkerId>) {
        if let Source::Ebpf(ebpf) = &mut self.source {
            ebpf.report_anew(of);
        }
    }

    /// Whether the kernel takes the samples, and can watch descriptors of listeners besides.
    pub fn watches_listeners(&self) -> bool {
        self.events().is_some()
    }

    /// Watches these descriptors of listeners.
    pub fn watch_listeners(&mut self, places: impl Iterator<Item = (Pid, RawFd)>) {
        if let Source::Ebpf(ebpf) = &mut self.source {
            ebpf.watch_listeners(places);
        }
    }

    /// Whether one of them was closed since the last call.
    pub fn sees_closed(&mut self) -> bool {
        match &mut self.source {
            Source::Ebpf(ebpf) => ebpf.sees_closed(),
            Source::Procfs(_) | Source::Off => false,
        }
    }

    /// The memory of a worker no longer has a limit: it is not reported.
    pub fn lift_memory_limit(&self, worker: WorkerId) {
        if let Source::Ebpf(ebpf) = &self.source {
            ebpf.lift_memory_limit(worker);
        }
    }

    fn fall_back(&mut self, error: &LoadError, alive: impl Iterator<Item = (WorkerId, Pid)>) {
        self.source = match Procfs::new(self.scope) {
            Ok(mut procfs) => {
                warn!("no room for more workers in eBPF maps: {error}: switched to procfs");
                alive.for_each(|(worker, pid)| procfs.watch(worker, pid));
                Source::Procfs(Box::new(procfs))
            }
            Err(unread) => {
                warn!(
                    "no room for more workers in eBPF maps: {error}; procfs is unavailable: {unread}; workers are no \
                     longer measured"
                );
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
            (Source::Ebpf(ebpf), Scope::Tree) => {
                known.extend(ebpf.adopted_by(worker));
                searches = true;
            }
            (Source::Off, _) | (Source::Procfs(_) | Source::Ebpf(_), Scope::Worker) => {}
        }
        Members { known, searches }
    }

    /// The details of a worker's end.
    pub fn ended(&mut self, worker: WorkerId) -> ExitDetails {
        match &mut self.source {
            Source::Ebpf(ebpf) => ebpf.ended(worker),
            Source::Procfs(procfs) => procfs.ended(worker),
            Source::Off => ExitDetails::default(),
        }
    }
}
