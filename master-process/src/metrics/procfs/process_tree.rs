//! The descendants of the workers, as far as `/proc` shows them.

use std::collections::{HashMap, HashSet};
use std::io;

use rustix::process::Pid;

use crate::policy::WorkerId;
use crate::sys::children;
use crate::sys::proc_stat::{self, Stat, StatFile};

/// After this number of looks the children of the supervisor that belong to no worker are examined again: the kernel may
/// have given such a pid to an orphan of a worker.
const LOOKS_UNTIL_RESET: u32 = 30;

/// The number of threads and processes of a look. It takes some microseconds for each, and the loop waits. What is beyond has
/// its turn at the next look.
const MOST_AT_ONCE: usize = 4096;

/// The number of descendants that are measured.
const MOST_DESCENDANTS: usize = 8192;

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

/// The descendants of all workers. A look takes three calls for each thread of a worker and of its descendants and three for
/// each new process; reading them again takes one for each descendant, or three for those whose files are not kept open.
#[derive(Debug, Default)]
pub(super) struct ProcessTree {
    descendants: HashMap<Pid, Descendant>,
    /// Children of the supervisor that belong to no worker, with the start time of each, in ticks since the machine was
    /// started.
    unrelated: HashMap<Pid, u64>,
    /// Whether a new child of the supervisor was seen whose worker is unknown: possibly an orphan of a worker.
    sees_orphan: bool,
    looks: u32,
    /// The number of children of the supervisor, in their order, that the last look did without: it had no room left.
    resumes_at: usize,
    /// The number of files that may stay open, and of those that are, counted at each look.
    files: usize,
    open: usize,
}

impl ProcessTree {
    pub(super) fn new(files: usize) -> ProcessTree {
        ProcessTree { files, ..ProcessTree::default() }
    }

    /// Follows the children of the supervisor. `worker_of` knows the workers' own processes.
    pub(super) fn look(&mut self, worker_of: impl Fn(Pid) -> Option<WorkerId>) {
        self.look_with(MOST_AT_ONCE, children::ours(), worker_of);
    }

    fn look_with(
        &mut self,
        mut room: usize,
        mut ours: Vec<Pid>,
        worker_of: impl Fn(Pid) -> Option<WorkerId>,
    ) {
        self.looks += 1;
        self.open = self.descendants.values().filter(|descendant| descendant.file.is_some()).count();
        if self.looks.is_multiple_of(LOOKS_UNTIL_RESET) {
            self.unrelated.clear();
        }
        let here: HashSet<Pid> = ours.iter().copied().collect();
        self.unrelated.retain(|pid, _| here.contains(pid));
        let first = std::mem::take(&mut self.resumes_at).min(ours.len());
        ours.rotate_left(first);
        for (number, child) in ours.iter().enumerate() {
            if room == 0 {
                self.resumes_at = (first + number) % ours.len();
                return;
            }
            let worker = worker_of(*child).or_else(|| self.worker_of_child(*child, &worker_of, &mut room));
            if let Some(worker) = worker {
                self.descend(*child, worker, &worker_of, &mut room);
            }
        }
    }

    /// The worker that a child of the supervisor belongs to that is no worker's own process. Only its group shows that.
    fn worker_of_child(
        &mut self,
        child: Pid,
        worker_of: &impl Fn(Pid) -> Option<WorkerId>,
        room: &mut usize,
    ) -> Option<WorkerId> {
        if let Some(known) = self.descendants.get(&child) {
            return Some(known.worker);
        }
        if self.unrelated.contains_key(&child) {
            return None;
        }
        *room -= 1;
        let stat = proc_stat::of(child).ok()?;
        let Some(worker) = stat.group.and_then(worker_of) else {
            self.sees_orphan = true;
            self.unrelated.insert(child, stat.started);
            return None;
        };
        self.insert(child, stat, worker);
        Some(worker)
    }

    /// Finds the descendants of a process.
    fn descend(
        &mut self,
        from: Pid,
        worker: WorkerId,
        worker_of: &impl Fn(Pid) -> Option<WorkerId>,
        room: &mut usize,
    ) {
        let mut parents = vec![from];
        let mut found = Vec::new();
        while let Some(parent) = parents.pop().filter(|_| *room > 0) {
            // A process that has ended meanwhile has no children.
            children::add(parent, room, &mut found);
            for child in found.drain(..).filter(|child| worker_of(*child).is_none()) {
                if !self.descendants.contains_key(&child) {
                    let Ok(stat) = proc_stat::of(child) else { continue };
                    self.insert(child, stat, worker);
                }
                parents.push(child);
            }
        }
    }

    fn insert(&mut self, pid: Pid, stat: Stat, worker: WorkerId) {
        if self.descendants.len() >= MOST_DESCENDANTS {
            return;
        }
        let file = if self.open < self.files { StatFile::open(pid).ok() } else { None };
        self.open += usize::from(file.is_some());
        self.descendants.insert(pid, Descendant { worker, file, last: stat });
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
        // Its descendants are found by the next look.
        if let Ok(stat) = proc_stat::of(pid)
            && stat.started == started
        {
            self.insert(pid, stat, worker);
        }
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

/// The descendants of a process. A descendant whose parent has ended is recognised by its group alone.
pub(in crate::metrics) fn descendants(root: Pid) -> Vec<Pid> {
    let mut tree = ProcessTree::default();
    // Any worker will do: there is no other.
    let worker = WorkerId { slot: 0, serial: 0 };
    let mut ours = children::ours();
    if !ours.contains(&root) {
        ours.push(root);
    }
    tree.look_with(MOST_AT_ONCE, ours, |pid| (pid == root).then_some(worker));
    tree.of(worker).collect()
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
    fn a_look_is_bounded_and_the_next_one_goes_on_where_it_ended() {
        let mut tree = ProcessTree::new(0);
        let mut parents: Vec<Child> = (0..2)
            .map(|_| {
                let line = "for i in 1 2 3; do sleep 60 & done; echo; wait";
                let mut shell = Command::new("sh");
                let mut parent =
                    shell.args(["-c", line]).stdout(std::process::Stdio::piped()).spawn().expect("a process");
                let mut said = [0u8; 1];
                std::io::Read::read_exact(parent.stdout.as_mut().expect("a pipe"), &mut said)
                    .expect("it is there");
                parent
            })
            .collect();
        let pids: Vec<Pid> = parents.iter().map(Pid::from_child).collect();
        let of = |pid: Pid| pids.iter().position(|of| *of == pid).map(|number| worker(number as u64));
        // One thread and three children of the first; the second has its turn at the second look.
        let mut counts = Vec::new();
        for _ in 0..2 {
            tree.look_with(4, pids.clone(), of);
            counts.push((tree.of(worker(0)).count(), tree.of(worker(1)).count()));
        }
        assert_eq!(counts, [(3, 0), (3, 3)]);
        let all: Vec<Pid> = tree.descendants.keys().copied().chain(pids.iter().copied()).collect();
        for pid in all {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        for parent in &mut parents {
            let _reaped = parent.wait();
        }
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
