//! What measures on this host, without a supervisor: `doctor` reports it.

use super::choice::{Chosen, decide};
use super::ebpf::{Ebpf, Thresholds};
use super::meter::open_procfs;
use crate::config::{Limits, Monitor, Scope};

/// The source that a supervisor with these options would take, and what was found out on the way.
#[derive(Debug)]
pub struct Examination {
    /// The source; `Err`: the requested one is unavailable, and the supervisor does not start.
    pub source: Result<Chosen, String>,
    /// What eBPF gives, or why it is unavailable; `None`: it was not tried.
    pub ebpf: Option<Result<EbpfFacts, String>>,
    /// Whether procfs works, or why not; `None`: it was not tried.
    pub procfs: Option<Result<(), String>>,
}

/// What the loaded programs give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EbpfFacts {
    /// Kills by the OOM killer are recorded. (The senders of signals always are.)
    pub sees_oom: bool,
}

/// Tries the sources in the order and in the way of [`Meter`](super::Meter). Nothing stays loaded.
#[must_use]
pub fn examine(wish: Monitor, scope: Scope, workers: u32, limits: &Limits) -> Examination {
    let (mut ebpf, mut procfs) = (None, None);
    let try_ebpf = || {
        let thresholds = Thresholds { cpu: limits.max_cpu, memory: limits.max_memory };
        let loaded = Ebpf::try_out(scope, workers, limits.interval, thresholds);
        let facts = loaded.map(|loaded| EbpfFacts { sees_oom: loaded.sees_oom() });
        let facts = ebpf.insert(facts.map_err(|error| error.to_string()));
        facts.as_ref().map(|_| ()).map_err(Clone::clone)
    };
    let try_procfs = || procfs.insert(open_procfs(scope).map(drop)).clone();
    let source = decide(wish, try_ebpf, try_procfs).map(|decision| decision.chosen);
    Examination { source, ebpf, procfs }
}
