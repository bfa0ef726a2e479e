//! Who descends from the workers, as far as `/proc` tells.

use std::collections::{HashMap, HashSet};

use rustix::process::Pid;

use crate::policy::WorkerId;
use crate::sys::proc_stat::{Stat, StatFile};

/// After so many looks everybody is looked at anew: the pid of a stranger may be a descendant's by now.
const LOOKS_UNTIL_ANEW: u32 = 30;

/// A process that descends from a worker.
#[derive(Debug)]
pub(super) struct Relative {
    pub(super) worker: WorkerId,
    pub(super) file: StatFile,
    /// What it had used when it was last seen.
    pub(super) cpu_ns: u64,
}

/// All of them. A look costs one pass over the names in `/proc`, and two calls for each process that was not there
/// before.
#[derive(Debug, Default)]
pub(super) struct Family {
    relatives: HashMap<Pid, Relative>,
    strangers: HashSet<Pid>,
    looks: u32,
}

impl Family {
    /// Looks who is there. `worker_of` knows the workers' own processes.
    pub(super) fn look(&mut self, worker_of: impl Fn(Pid) -> Option<WorkerId>) {
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS_UNTIL_ANEW) {
            self.strangers.clear();
        }
        let present = processes();
        let here: HashSet<Pid> = present.iter().copied().collect();
        self.strangers.retain(|pid| here.contains(pid));
        let mut new = HashMap::new();
        for pid in present {
            if worker_of(pid).is_some() || self.relatives.contains_key(&pid) || self.strangers.contains(&pid)
            {
                continue;
            }
            if let Ok(file) = StatFile::open(pid)
                && let Ok(stat) = file.read()
            {
                new.insert(pid, (file, stat));
            }
        }
        let stats: HashMap<Pid, Stat> = new.iter().map(|(pid, (_, stat))| (*pid, *stat)).collect();
        for (pid, (file, stat)) in new {
            match self.owner(&stat, &stats, &worker_of) {
                Some(worker) => {
                    self.relatives.insert(pid, Relative { worker, file, cpu_ns: stat.cpu_ns });
                }
                None => {
                    self.strangers.insert(pid);
                }
            }
        }
    }

    /// The worker that a process descends from. One whose parent is gone is known by its group.
    fn owner(
        &self,
        stat: &Stat,
        new: &HashMap<Pid, Stat>,
        worker_of: &impl Fn(Pid) -> Option<WorkerId>,
    ) -> Option<WorkerId> {
        let known = |pid: Pid| worker_of(pid).or_else(|| self.relatives.get(&pid).map(|known| known.worker));
        let mut at = *stat;
        // No line of ancestors is longer than there are processes; the kernel may have changed it while we read.
        for _ in 0..=new.len() {
            if let Some(worker) = at.parent.and_then(known).or_else(|| at.group.and_then(worker_of)) {
                return Some(worker);
            }
            at = *new.get(&at.parent?)?;
        }
        None
    }

    /// Hands every descendant to `each`, which says whether it is still there.
    pub(super) fn retain(&mut self, mut each: impl FnMut(&mut Relative) -> bool) {
        self.relatives.retain(|_, relative| each(relative));
    }

    /// A worker is gone, and whoever is left of it belongs to nobody.
    pub(super) fn disown(&mut self, worker: WorkerId) {
        self.relatives.retain(|_, relative| relative.worker != worker);
    }
}

fn processes() -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)).collect()
}
