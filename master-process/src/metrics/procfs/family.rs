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
    /// With the start of each, in ticks since the machine was started.
    strangers: HashMap<Pid, u64>,
    /// Whether strangers are looked at anew next: they may descend from a process that has been adopted.
    looks_anew: bool,
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
        if std::mem::take(&mut self.looks_anew) || self.looks.is_multiple_of(LOOKS_UNTIL_ANEW) {
            self.strangers.clear();
        }
        let present = processes();
        let here: HashSet<Pid> = present.iter().copied().collect();
        self.strangers.retain(|pid, _| here.contains(pid));
        let mut new = HashMap::new();
        for pid in present {
            if worker_of(pid).is_some()
                || self.relatives.contains_key(&pid)
                || self.strangers.contains_key(&pid)
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
                    self.strangers.insert(*pid, stat.started);
                }
            }
        }
    }

    /// Whether a child of ours was seen since this was asked last whose worker is not known.
    pub(super) fn take_sees_orphan(&mut self) -> bool {
        std::mem::take(&mut self.sees_orphan)
    }

    /// A process that was handed to us, and was started then, belongs to this worker.
    pub(super) fn adopt(&mut self, pid: Pid, started: u64, worker: WorkerId) {
        if self.strangers.get(&pid) != Some(&started) {
            return;
        }
        self.strangers.remove(&pid);
        let read = StatFile::open(pid).and_then(|file| Ok((file.read()?, file)));
        if let Ok((last, file)) = read
            && last.started == started
        {
            let open = self.relatives.values().filter(|relative| relative.file.is_some()).count();
            let file = (open < self.files).then_some(file);
            self.relatives.insert(pid, Relative { worker, file, last });
            // Whoever descends from it was a stranger, too. Not now: others may be adopted after it.
            self.looks_anew = true;
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
        let mut family = Family::new(16);
        let (mut one, mut other) = (sleeper(), sleeper());
        family.look(|_| None);
        assert!(family.take_sees_orphan());
        family.adopt(one.1, one.2, worker(1));
        family.adopt(other.1, other.2, worker(2));
        assert_eq!(family.of(worker(1)).collect::<Vec<_>>(), [one.1]);
        assert_eq!(family.of(worker(2)).collect::<Vec<_>>(), [other.1]);
        for child in [&mut one.0, &mut other.0] {
            let _killed = child.kill().and_then(|()| child.wait());
        }
    }

    #[test]
    fn who_descends_from_an_adopted_process_is_found_by_the_next_look() {
        let mut family = Family::new(16);
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
        family.look(|_| None);
        family.adopt(pid, started, worker(1));
        assert_eq!(family.of(worker(1)).collect::<Vec<_>>(), [pid]);
        family.look(|_| None);
        let children: Vec<Pid> = family.of(worker(1)).filter(|of| *of != pid).collect();
        assert_eq!(children.len(), 1);
        for process in children.into_iter().chain([pid]) {
            let _gone = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
        let _reaped = parent.wait();
    }

    #[test]
    fn a_process_that_has_the_pid_of_an_orphan_by_now_is_not_adopted() {
        let mut family = Family::new(16);
        let (mut child, pid, started) = sleeper();
        family.look(|_| None);
        family.adopt(pid, started - 1, worker(1));
        assert_eq!(family.of(worker(1)).count(), 0, "another process had its number");
        // The one that was seen is gone since, and its number is used again.
        family.strangers.insert(pid, started - 1);
        family.adopt(pid, started - 1, worker(1));
        assert_eq!(family.of(worker(1)).count(), 0);
        let _killed = child.kill().and_then(|()| child.wait());
    }
}
