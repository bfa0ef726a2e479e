//! The one source that measures, whichever it is.

use rustix::process::Pid;

use super::LastWords;
use super::choice::{Chosen, decide};
use super::procfs::Procfs;
use crate::config::{Monitor, Scope};
use crate::policy::{Usage, WorkerId};

/// Measures the workers.
#[derive(Debug)]
pub struct Meter {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Procfs(Procfs),
    Off,
}

impl Meter {
    /// Chooses a source. Which and why is for the log, once something runs.
    ///
    /// # Errors
    /// The one that was asked for cannot be had.
    pub fn new(wish: Monitor, scope: Scope) -> anyhow::Result<(Meter, Option<String>)> {
        let mut procfs = None;
        let try_procfs = || {
            procfs = Some(Procfs::new(scope).map_err(|error| format!("reading /proc: {error}"))?);
            Ok(())
        };
        let decision = decide(wish, || Err("not built".to_owned()), try_procfs).map_err(|why| {
            anyhow::anyhow!("--monitor {}: {why}", if wish == Monitor::Ebpf { "ebpf" } else { "procfs" })
        })?;
        let source = match (decision.chosen, procfs) {
            (Chosen::Procfs, Some(procfs)) => Source::Procfs(procfs),
            (Chosen::Ebpf | Chosen::Procfs | Chosen::Off, _) => Source::Off,
        };
        Ok((Meter { source }, decision.says))
    }

    /// Whether anything is measured.
    pub fn is_on(&self) -> bool {
        match self.source {
            Source::Procfs(_) => true,
            Source::Off => false,
        }
    }

    /// A worker runs.
    pub fn launched(&mut self, worker: WorkerId, pid: Pid) {
        match &mut self.source {
            Source::Procfs(procfs) => procfs.watch(worker, pid),
            Source::Off => {}
        }
    }

    /// Measures every worker. One that could not be measured is passed over.
    pub fn sample(&mut self, each: &mut dyn FnMut(WorkerId, Usage)) {
        match &mut self.source {
            Source::Procfs(procfs) => procfs.sample(each),
            Source::Off => {}
        }
    }

    /// A worker's process is gone: what there is to say about its end.
    pub fn ended(&mut self, worker: WorkerId) -> LastWords {
        match &mut self.source {
            Source::Procfs(procfs) => procfs.ended(worker),
            Source::Off => LastWords::default(),
        }
    }
}
