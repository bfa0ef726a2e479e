//! The descendants of the workers, as far as `/proc` shows them.

use std::collections::{HashMap, HashSet};
use std::io;

use rustix::process::{Pid, getpid};

use crate::policy::WorkerId;
use crate::sys::proc_stat::{self, Stat, StatFile};

/// After this number of looks the unrelated processes are examined again: the kernel may have given such a pid to a
/// descendant.
const LOOKS_UNTIL_RESET: u32 = 30;

/// A process that descends from a worker.
#[derive(Debug)]
pub(super) struct Descendant {
    pub(super) worker: WorkerId,
    /// `None`: opened for each look.
    file: Option<StatFile>,
    /// The last values read.
    pub(super) last: Stat,
}

impl Descendant {
    /// Reads the process. Returns `false` if it has ended; a process that cannot be read keeps its last values.
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

/// The descendants of all workers. A look takes one pass over the names in `/proc`, three calls for each new process,
/// and one for each descendant, or three for those whose files are not kept open.
#[derive(Debug, Default)]
pub(super) struct ProcessTree {
    descendants: HashMap<Pid, Descendant>,
    /// With the start time of each, in ticks since the machine was started.
    unrelated: HashMap<Pid, u64>,
    /// Whether the next look examines the unrelated processes again: they may descend from an adopted process.
    looks_again: bool,
    /// Whether a new child of the supervisor was seen whose worker is unknown: possibly an orphan of a worker.
    sees_orphan: bool,
    looks: u32,
    /// The number of files that may stay open.
    files: usize,
}

impl ProcessTree {
    pub(super) fn new(files: usize) -> ProcessTree {
        ProcessTree { files, ..ProcessTree::default() }
    }

    /// Lists the processes. `worker_of` knows the workers' own ones.
    pub(super) fn look(&mut self, worker_of: impl Fn(Pid) -> Option<WorkerId>) {
        self.looks += 1;
        if std::mem::take(&mut self.looks_again) || self.looks.is_multiple_of(LOOKS_UNTIL_RESET) {
            self.unrelated.clear();
        }
        let present = processes();
        let here: HashSet<Pid> = present.iter().copied().collect();
        self.unrelated.retain(|pid, _| here.contains(pid));
        let mut new = HashMap::new();
        for pid in present {
            if worker_of(pid).is_some()
                || self.descendants.contains_key(&pid)
                || self.unrelated.contains_key(&pid)
            {
                continue;
            }
            if let Ok(stat) = proc_stat::of(pid) {
                new.insert(pid, stat);
            }
        }
        let mut room = self
            .files
            .saturating_sub(self.descendants.values().filter(|descendant| descendant.file.is_some()).count());
        for (pid, stat) in &new {
            match self.owner(stat, &new, &worker_of) {
                Some(worker) => {
                    let file = if room > 0 { StatFile::open(*pid).ok() } else { None };
                    room -= usize::from(file.is_some());
                    self.descendants.insert(*pid, Descendant { worker, file, last: *stat });
                }
                None => {
                    self.sees_orphan |= stat.parent == Some(getpid());
                    self.unrelated.insert(*pid, stat.started);
                }
            }
        }
    }

    /// Whether such a child was seen since the last call.
    pub(super) fn take_sees_orphan(&mut self) -> bool {
        std::mem::take(&mut self.sees_orphan)
    }

    /// An adopted process, which was started at that time, belongs to this worker.
    pub(super) fn adopt(&mut self, pid: Pid, started: u64, worker: WorkerId) {
        if self.unrelated.get(&pid) != Some(&started) {
            return;
        }
        self.unrelated.remove(&pid);
        let read = StatFile::open(pid).and_then(|file| Ok((file.read()?, file)));
        if let Ok((last, file)) = read
            && last.started == started
        {
            let open = self.descendants.values().filter(|descendant| descendant.file.is_some()).count();
            let file = (open < self.files).then_some(file);
            self.descendants.insert(pid, Descendant { worker, file, last });
            // Its descendants were taken for unrelated, too. The next look finds them: more processes may be adopted first.
            self.looks_again = true;
        }
    }

    /// The worker that a process descends from. If its parent has ended, its group decides.
    fn owner(
        &self,
        stat: &Stat,
        new: &HashMap<Pid, Stat>,
        worker_of: &impl Fn(Pid) -> Option<WorkerId>,
    ) -> Option<WorkerId> {
        let known =
            |pid: Pid| worker_of(pid).or_else(|| self.descendants.get(&pid).map(|known| known.worker));
        let mut at = *stat;
        // No chain of ancestors is longer than the number of processes; it can change while it is read.
        for _ in 0..=new.len() {
            if let Some(worker) = at.parent.and_then(known).or_else(|| at.group.and_then(worker_of)) {
                return Some(worker);
            }
            at = *new.get(&at.parent?)?;
        }
        None
    }

    /// Reads every descendant and passes it to `each`, with whether it is still there. Removes those that have ended.
    pub(super) fn refresh(&mut self, mut each: impl FnMut(&Descendant, bool)) {
        self.descendants.retain(|pid, descendant| {
            let lives = descendant.refresh(*pid);
            each(descendant, lives);
            lives
        });
    }

    /// A process became a worker's own process, and counts as such.
    pub(super) fn is_worker(&mut self, pid: Pid) {
        self.descendants.remove(&pid);
        self.unrelated.remove(&pid);
    }

    /// The descendants of a worker.
    pub(super) fn of(&self, worker: WorkerId) -> impl Iterator<Item = Pid> {
        self.descendants
            .iter()
            .filter(move |(_, descendant)| descendant.worker == worker)
            .map(|(pid, _)| *pid)
    }

    /// Removes a worker that has ended, and its remaining processes.
    pub(super) fn remove_worker(&mut self, worker: WorkerId) {
        self.descendants.retain(|_, descendant| descendant.worker != worker);
    }
}

fn processes() -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn sleeper() -> (Child, Pid, u64) {
        let child = Command::new("sleep").arg("60").spawn().expect("a process");
        let pid = Pid::from_child(&child);
        let started = proc_stat::of(pid).expect("it lives").started;
        (child, pid, started)
    }

    fn worker(serial: u64) -> WorkerId {
        WorkerId { slot: 0, serial }
    }

    #[test]
    fn several_orphans_are_adopted_after_one_look() {
        let mut tree = ProcessTree::new(16);
        let (mut one, mut other) = (sleeper(), sleeper());
        tree.look(|_| None);
        assert!(tree.take_sees_orphan());
        tree.adopt(one.1, one.2, worker(1));
        tree.adopt(other.1, other.2, worker(2));
        assert_eq!(tree.of(worker(1)).collect::<Vec<_>>(), [one.1]);
        assert_eq!(tree.of(worker(2)).collect::<Vec<_>>(), [other.1]);
        for child in [&mut one.0, &mut other.0] {
            let _killed = child.kill().and_then(|()| child.wait());
        }
    }

    #[test]
    fn who_descends_from_an_adopted_process_is_found_by_the_next_look() {
        let mut tree = ProcessTree::new(16);
        let line = "sleep 60 & echo; wait";
        let mut parent = Command::new("sh")
            .args(["-c", line])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("a process");
        let mut said = [0u8; 1];
        std::io::Read::read_exact(parent.stdout.as_mut().expect("a pipe"), &mut said).expect("it is there");
        let pid = Pid::from_child(&parent);
        let started = proc_stat::of(pid).expect("it lives").started;
        tree.look(|_| None);
        tree.adopt(pid, started, worker(1));
        assert_eq!(tree.of(worker(1)).collect::<Vec<_>>(), [pid]);
        tree.look(|_| None);
        let children: Vec<Pid> = tree.of(worker(1)).filter(|of| *of != pid).collect();
        assert_eq!(children.len(), 1);
        for process in children.into_iter().chain([pid]) {
            let _gone = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
        let _reaped = parent.wait();
    }

    #[test]
    fn a_process_that_has_the_pid_of_an_orphan_by_now_is_not_adopted() {
        let mut tree = ProcessTree::new(16);
        let (mut child, pid, started) = sleeper();
        tree.look(|_| None);
        tree.adopt(pid, started - 1, worker(1));
        assert_eq!(tree.of(worker(1)).count(), 0, "another process had its number");
        // The one that was seen is gone since, and its number is used again.
        tree.unrelated.insert(pid, started - 1);
        tree.adopt(pid, started - 1, worker(1));
        assert_eq!(tree.of(worker(1)).count(), 0);
        let _killed = child.kill().and_then(|()| child.wait());
    }
}
