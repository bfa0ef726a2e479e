//! Who descends from the workers, as far as `/proc` tells.

use std::collections::{HashMap, HashSet};
use std::io;

use rustix::process::{Pid, getpid};

use crate::policy::WorkerId;
use crate::sys::proc_stat::{self, Stat, StatFile};

/// After so many looks everybody is looked at anew: the pid of a stranger may be a descendant's by now.
const LOOKS_UNTIL_ANEW: u32 = 30;

/// A process that descends from a worker.
#[derive(Debug)]
pub(super) struct Relative {
    pub(super) worker: WorkerId,
    /// `None`: it is opened for each look.
    file: Option<StatFile>,
    /// What was read last.
    pub(super) last: Stat,
}

impl Relative {
    /// Looks how it is. False where it is gone; one that cannot be looked at is as it was.
    fn refresh(&mut self, pid: Pid) -> bool {
        let read = match &self.file {
            Some(file) => file.read(),
            None => proc_stat::of(pid),
        };
        match read {
            Ok(stat) if stat.started == self.last.started => {
                self.last = stat;
                true
            }
            Ok(_somebody_else) => false,
            Err(error) => !is_gone(&error),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// All of them. A look costs one pass over the names in `/proc`, three calls for each process that was not there before,
/// and one for each descendant, or three for those whose files cannot be kept open.
#[derive(Debug, Default)]
pub(super) struct Family {
    relatives: HashMap<Pid, Relative>,
    strangers: HashSet<Pid>,
    /// Whether a child of ours was among them that no look had seen before: a worker may have left it to us.
    sees_orphan: bool,
    looks: u32,
    /// So many files may stay open.
    files: usize,
}

impl Family {
    pub(super) fn new(files: usize) -> Family {
        Family { files, ..Family::default() }
    }

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
            if let Ok(stat) = proc_stat::of(pid) {
                new.insert(pid, stat);
            }
        }
        let mut room =
            self.files.saturating_sub(self.relatives.values().filter(|r| r.file.is_some()).count());
        for (pid, stat) in &new {
            match self.owner(stat, &new, &worker_of) {
                Some(worker) => {
                    let file = if room > 0 { StatFile::open(*pid).ok() } else { None };
                    room -= usize::from(file.is_some());
                    self.relatives.insert(*pid, Relative { worker, file, last: *stat });
                }
                None => {
                    self.sees_orphan |= stat.parent == Some(getpid());
                    self.strangers.insert(*pid);
                }
            }
        }
    }

    /// Whether a child of ours was seen since this was asked last whose worker is not known.
    pub(super) fn take_sees_orphan(&mut self) -> bool {
        std::mem::take(&mut self.sees_orphan)
    }

    /// A process that was handed to us belongs to this worker.
    pub(super) fn adopt(&mut self, pid: Pid, worker: WorkerId) {
        if !self.strangers.remove(&pid) {
            return;
        }
        let read = StatFile::open(pid).and_then(|file| Ok((file.read()?, file)));
        if let Ok((last, file)) = read {
            let open = self.relatives.values().filter(|relative| relative.file.is_some()).count();
            let file = (open < self.files).then_some(file);
            self.relatives.insert(pid, Relative { worker, file, last });
            // Whoever descends from it was a stranger, too.
            self.strangers.clear();
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

    /// Looks at every descendant and hands it to `each`, with whether it is still there; those that are not are forgotten.
    pub(super) fn refresh(&mut self, mut each: impl FnMut(&Relative, bool)) {
        self.relatives.retain(|pid, relative| {
            let lives = relative.refresh(*pid);
            each(relative, lives);
            lives
        });
    }

    /// A process is a worker's own from now on, and is counted as that.
    pub(super) fn is_worker(&mut self, pid: Pid) {
        self.relatives.remove(&pid);
        self.strangers.remove(&pid);
    }

    /// The descendants of a worker.
    pub(super) fn of(&self, worker: WorkerId) -> impl Iterator<Item = Pid> {
        self.relatives.iter().filter(move |(_, relative)| relative.worker == worker).map(|(pid, _)| *pid)
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
