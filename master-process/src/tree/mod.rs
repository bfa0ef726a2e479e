//! Who belongs to a worker: everything that descends from its start, whatever group, session or parent it has now.
//!
//! A process whose parent ends becomes a child of the supervisor, which is a subreaper. Whose it was is then told by
//! what it still has of its worker (`ownership.rs`). The walk over `/proc` that finds out is as long as the workers make
//! it, so a helper thread makes it (`walker.rs`); the loop asks and is told.
//!
//! Where a cgroup is delegated to the supervisor, each worker has one below it, and the kernel says who is in there. The
//! rest is for everywhere else, and for what a worker has put into another cgroup.
//!
//! The order of evidence, for a process that was handed to the supervisor:
//! 1. it was seen as this worker's before;
//! 2. it is in the worker's cgroup, or the eBPF account of the worker has it;
//! 3. its process group or session is the worker's first process's;
//! 4. it has one of the worker's listeners open;
//! 5. its environment names the supervisor, the slot and the generation;
//! 6. there is no other worker.
//!
//! What nobody can be named for belongs to no worker, and is ended with the supervisor.

mod daemon;
mod environments;
mod ownership;
mod registry;
mod walker;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;

use crate::policy::WorkerId;
use crate::sys::cgroup::{Cgroup, Removal, Supervisors};
use crate::sys::children;
use crate::sys::helper::Helper;
use crate::sys::holders::Holds;
use crate::sys::proc_stat;
pub use daemon::{Exited, daemon};
use environments::{Environments, Processes};
use ownership::{Owners, TreeFacts};
use registry::Registry;
use walker::{Answer, FoundOf, Task, Walk};

/// Processes of one worker that are looked at. One that has more is ended in several rounds.
const MAX_MEMBERS: usize = 4096;

/// Cgroups that are tried at once, by the loop: each takes two calls.
const REMOVED_AT_ONCE: usize = 64;

/// Steps of a removal that the helper thread makes at once: what one worker has made does not hold up another's.
const STEPS_AT_ONCE: usize = 16;

/// A process of a worker's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub pid: Pid,
    /// Its parent's, when it was looked at.
    pub parent: Option<Pid>,
    /// When it was started, in ticks since the machine was: with its pid it tells a process from all others.
    pub started: u64,
    /// What `ps` calls it.
    pub name: String,
    /// Whether it is a child of the supervisor.
    pub adopted: bool,
    /// Whether it has one of the worker's listeners open.
    pub holds: Holds,
}

impl Member {
    /// Whether its number is still its own.
    pub fn is_there(&self) -> bool {
        proc_stat::is_still(self.pid, self.started)
    }
}

/// What a walk found of one worker.
#[derive(Debug)]
pub struct Found {
    /// Whose.
    pub worker: WorkerId,
    /// The latest question that this answers, and with it all that were asked before; see [`Trees::look`].
    pub question: u64,
    /// Everybody of it who lives, its first process included.
    pub members: Vec<Member>,
    /// They were sent a signal, and none of them handles it.
    pub unheeded: bool,
}

/// What is to be done at the next walk.
#[derive(Debug, Clone, Default)]
struct Request {
    question: u64,
    signal: Option<i32>,
    hints: Vec<Pid>,
    sockets: Vec<u64>,
    listeners: Vec<u64>,
}

/// The trees of all workers, as far as the loop knows them.
#[derive(Debug)]
pub struct Trees {
    trees: BTreeMap<u64, TreeFacts>,
    /// Processes that were handed to us and whose worker is known: when they were started, and its serial.
    owners: Owners,
    /// Processes whose environments did not come in time.
    unreadable: Processes,
    /// Children of whatever this process was before it was exec'ed.
    inherited: HashSet<Pid>,
    workers: Arc<Registry>,
    notify_socket: Arc<[u8]>,
    /// Where the cgroups of workers are made; none: none is delegated to us.
    parent: Option<Supervisors>,
    cgroups: HashMap<u64, Arc<Cgroup>>,
    /// Those of workers that are gone, and that cannot be removed yet: the kernel is still at the end of somebody in there.
    emptied: VecDeque<Arc<Cgroup>>,
    /// Removes what those workers have made below their cgroups.
    remover: Helper<Vec<Arc<Cgroup>>, bool>,
    /// Whether it is at work.
    removes: bool,
    requests: BTreeMap<u64, Request>,
    /// How many questions were ever asked.
    questions: u64,
    /// Whether the owners are to be found out, whoever is asked for.
    surveys: bool,
    /// Whether a walk is under way.
    walks: bool,
    walker: Helper<Walk, Answer>,
}

impl Trees {
    /// `notify_socket` is what our workers find as `NOTIFY_SOCKET`.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new(parent: Option<Supervisors>, notify_socket: &[u8]) -> io::Result<Trees> {
        let walker = walker::walker()?;
        Ok(Trees {
            trees: BTreeMap::new(),
            owners: Owners::new(),
            unreadable: Processes::new(),
            inherited: children::ours().into_iter().collect(),
            workers: Arc::default(),
            notify_socket: notify_socket.into(),
            parent,
            cgroups: HashMap::new(),
            emptied: VecDeque::new(),
            remover: Helper::new("cgroups", 64 * 1024, 1, walker.wake().clone(), remove_some),
            removes: false,
            requests: BTreeMap::new(),
            questions: 0,
            surveys: false,
            walks: false,
            walker,
        })
    }

    /// Readable when [`take`](Self::take) has something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.walker.wake().fd()
    }

    /// Children of whatever this process was before it was exec'ed.
    pub fn inherited(&self) -> &HashSet<Pid> {
        &self.inherited
    }

    /// A cgroup for a worker that is about to be started.
    pub fn make_cgroup(&self, worker: WorkerId) -> Option<Cgroup> {
        let made = self.parent.as_ref()?.create(worker.serial);
        made.inspect_err(|error| {
            tracing::debug!("cannot make a cgroup: {error}; worker {} starts without one", worker.slot);
        })
        .ok()
    }

    /// Removes the cgroups of workers that are gone, as far as nobody is in there. True where some are left.
    pub fn remove_cgroups(&mut self) -> bool {
        let _of_an_earlier_try = self.removal_advanced();
        self.try_cgroups(true);
        self.has_emptied()
    }

    /// Whether cgroups of workers that are gone are left.
    pub fn has_emptied(&self) -> bool {
        !self.emptied.is_empty()
    }

    /// Whether the helper thread has removed a part of those, and would get further.
    fn removal_advanced(&mut self) -> bool {
        let answers = self.remover.take();
        self.removes &= answers.is_empty();
        answers.contains(&true)
    }

    /// What others are below takes longer, and is the helper thread's, if that is asked.
    fn try_cgroups(&mut self, asks: bool) {
        let mut divided = Vec::new();
        for _ in 0..self.emptied.len().min(REMOVED_AT_ONCE) {
            let Some(cgroup) = self.emptied.pop_front() else { break };
            match cgroup.remove() {
                Removal::Gone => continue,
                Removal::Divided => divided.push(Arc::clone(&cgroup)),
                Removal::InUse => {}
            }
            self.emptied.push_back(cgroup);
        }
        if asks && !self.removes && !divided.is_empty() {
            self.removes = self.remover.ask(divided);
        }
    }

    /// A start was given up, and its child is gone: whoever that has started in its cgroup is killed.
    pub fn bury_cgroup(&mut self, cgroup: Cgroup) {
        let _before_linux_5_14 = cgroup.kill();
        self.emptied.push_back(Arc::new(cgroup));
        self.remove_cgroups();
    }

    /// Kills whoever is in the cgroup of a worker, where it has one.
    pub fn kill_cgroup(&self, serial: u64) {
        if let Some(cgroup) = self.cgroups.get(&serial) {
            let _before_linux_5_14 = cgroup.kill();
        }
    }

    /// Whether anybody is in the cgroup of a worker; none: it has none, or that cannot be known.
    pub fn is_populated(&self, serial: u64) -> Option<bool> {
        self.cgroups.get(&serial)?.is_populated().ok()
    }

    /// A worker is about to be started. When that is, in ticks since the machine was started.
    pub fn begin_start(&self) -> u64 {
        self.workers.begin();
        ticks_since_boot()
    }

    /// It has this pid; none: it could not be started.
    pub fn start_begun(&self, pid: Option<Pid>) {
        self.workers.begun(pid);
    }

    /// It is gone before it was a worker.
    pub fn start_failed(&self, pid: Pid) {
        self.workers.remove(pid);
    }

    /// A worker runs.
    /// `begun` is what [`begin_start`](Self::begin_start) gave: it may have taken its time since.
    pub fn started(
        &mut self,
        worker: WorkerId,
        generation: u32,
        first: Pid,
        cgroup: Option<Cgroup>,
        begun: u64,
    ) {
        self.cgroups.extend(cgroup.map(|cgroup| (worker.serial, Arc::new(cgroup))));
        let tree = TreeFacts {
            serial: worker.serial,
            slot: worker.slot,
            generation,
            first,
            started: begun,
            first_started: begun,
            first_lives: true,
            former: Vec::new(),
        };
        self.trees.insert(worker.serial, tree);
    }

    /// The first process of a worker is gone, and reaped.
    pub fn first_ended(&mut self, serial: u64) {
        if let Some(tree) = self.trees.get_mut(&serial) {
            tree.first_lives = false;
            self.workers.remove(tree.first);
        }
    }

    /// Another process of a worker takes the place of its first one, which is gone.
    pub fn replaced(&mut self, serial: u64, first: Pid, started: u64) {
        if let Some(tree) = self.trees.get_mut(&serial) {
            tree.replace_first(first, started);
            self.workers.insert(first);
        }
    }

    /// Nobody of a worker is left.
    pub fn gone(&mut self, serial: u64) {
        self.trees.remove(&serial);
        self.requests.remove(&serial);
        self.emptied.extend(self.cgroups.remove(&serial));
        self.remove_cgroups();
        self.owners.retain(|_, (_, owner)| *owner != serial);
    }

    /// Whether anybody of a worker may live.
    pub fn has(&self, serial: u64) -> bool {
        self.trees.contains_key(&serial)
    }

    /// The worker of a process that was handed to us, where a walk has found it.
    pub fn owner(&self, pid: Pid) -> Option<u64> {
        self.owners.get(&pid).map(|(_, serial)| *serial)
    }

    /// Asks whose the processes are that were handed to us.
    pub fn survey(&mut self) {
        self.surveys = true;
        self.walk();
    }

    /// When those were started that were handed to us and whose worker is known, and its serial.
    pub fn owners(&self) -> &HashMap<Pid, (u64, u64)> {
        &self.owners
    }

    /// The processes that were handed to us and whose worker is known, with the start of each.
    pub fn owned(&self) -> impl Iterator<Item = (Pid, u64, WorkerId)> {
        self.owners.iter().filter_map(|(pid, (started, serial))| {
            let slot = self.trees.get(serial)?.slot;
            Some((*pid, *started, WorkerId { slot, serial: *serial }))
        })
    }

    /// Asks who lives of a worker. `hints` are processes that are known to be its own, `sockets` those that no other worker
    /// has. Which of its processes have one of the `listeners` is found out as well. The number of the question tells its
    /// answer from those of walks that began before it.
    pub fn look(&mut self, serial: u64, hints: Vec<Pid>, sockets: Vec<u64>, listeners: Vec<u64>) -> u64 {
        if let Some(request) = self.request(serial) {
            request.hints.extend(hints);
            (request.sockets, request.listeners) = (sockets, listeners);
            self.walk();
        }
        self.questions
    }

    /// Sends a signal to everybody of a worker.
    pub fn signal(&mut self, serial: u64, number: i32, hints: Vec<Pid>) {
        if let Some(request) = self.request(serial) {
            // What ends a process for sure is not taken back by a milder wish that comes later.
            if request.signal != Some(libc::SIGKILL) {
                request.signal = Some(number);
            }
            request.hints.extend(hints);
            self.walk();
        }
    }

    /// What the next walk is to do about a worker; none: nobody of it lives.
    fn request(&mut self, serial: u64) -> Option<&mut Request> {
        self.questions += 1;
        self.trees.contains_key(&serial).then(|| {
            let request = self.requests.entry(serial).or_default();
            request.question = self.questions;
            request
        })
    }

    /// One walk answers all that was asked until then.
    fn walk(&mut self) {
        if self.walks || (self.requests.is_empty() && !self.surveys) {
            return;
        }
        self.surveys = false;
        let tasks: Vec<Task> = std::mem::take(&mut self.requests)
            .into_iter()
            .map(|(serial, request)| Task {
                serial,
                question: request.question,
                signal: request.signal,
                hints: request.hints,
                sockets: request.sockets,
                listeners: request.listeners,
                cgroup: self.cgroups.get(&serial).cloned(),
            })
            .collect();
        let walk = Walk {
            tasks,
            trees: self.trees.values().cloned().collect(),
            owners: self.owners.clone(),
            environments: Environments::new(self.unreadable.clone()),
            inherited: self.inherited.clone(),
            workers: Arc::clone(&self.workers),
            starts: self.workers.starts(),
            asked_at: ticks_since_boot(),
            notify_socket: Arc::clone(&self.notify_socket),
        };
        self.walks = self.walker.ask(walk);
        if !self.walks {
            tracing::warn!("cannot start a helper thread: processes that workers leave behind are not found");
        }
    }

    /// What walks have found since this was called last.
    pub fn take(&mut self) -> Vec<Found> {
        let mut found = Vec::new();
        self.walker.wake().clear();
        for answer in self.walker.take() {
            self.walks = false;
            self.owners = answer.owners;
            self.unreadable = answer.unreadable;
            // One that is gone meanwhile owns nothing.
            let trees = &self.trees;
            self.owners.retain(|_, (_, serial)| trees.contains_key(serial));
            for FoundOf { serial, question, members, unheeded } in answer.found {
                if let Some(tree) = self.trees.get(&serial) {
                    let worker = WorkerId { slot: tree.slot, serial };
                    found.push(Found { worker, question, members, unheeded });
                }
            }
        }
        let advanced = self.removal_advanced();
        self.try_cgroups(advanced);
        self.walk();
        found
    }
}

/// True: another time gets further.
fn remove_some(cgroups: Vec<Arc<Cgroup>>) -> bool {
    let mut unfinished = cgroups;
    for _ in 0..STEPS_AT_ONCE {
        unfinished.retain(|cgroup| cgroup.remove_some());
    }
    !unfinished.is_empty()
}

/// The moment that it is, as `/proc/PID/stat` counts starts.
fn ticks_since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let since =
        Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
    let ticks = since.as_nanos() * u128::from(rustix::param::clock_ticks_per_second()) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    #[test]
    fn an_answer_tells_which_question_it_is_to() {
        let worker = WorkerId { slot: 0, serial: 1 };
        let mut trees = Trees::new(None, b"/run/a/notify").expect("an eventfd");
        let begun = trees.begin_start();
        let mut child = Command::new("sleep").arg("1000").spawn().expect("a process");
        let pid = Pid::from_child(&child);
        trees.start_begun(Some(pid));
        trees.started(worker, 0, pid, None, begun);
        // The walk for this one is under way, or over, when the worker ends.
        let before = trees.look(1, Vec::new(), Vec::new(), Vec::new());
        child.kill().and_then(|()| child.wait()).expect("it is ours");
        trees.first_ended(1);
        let after = trees.look(1, Vec::new(), Vec::new(), Vec::new());
        assert!(before < after);
        let mut found = Vec::new();
        while found.len() < 2 {
            let mut state = [PollFd::from_borrowed_fd(trees.fd(), PollFlags::IN)];
            let count = poll(&mut state, Some(&Timespec { tv_sec: 30, tv_nsec: 0 })).expect("an eventfd");
            assert_eq!(count, 1, "an answer comes");
            found.extend(trees.take());
        }
        let questions: Vec<u64> = found.iter().map(|found| found.question).collect();
        assert_eq!(questions, [before, after]);
        assert!(found[1].members.is_empty(), "{:?}", found[1].members);
    }
}
