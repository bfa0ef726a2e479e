//! The process tree of each worker: every process that descends from the worker's start, whatever its process group,
//! session or parent is now.
//!
//! A process whose parent ends becomes a child of the supervisor, which is a subreaper. The supervisor then determines
//! the worker by the traces of it that the process still has (`ownership.rs`). This takes a walk over `/proc`, whose length
//! depends on the workers, so a helper thread makes it (`walker.rs`). The loop sends requests and receives answers.
//!
//! If a cgroup is delegated to the supervisor, each worker has its own cgroup below it, and the kernel lists the
//! processes. The other evidence serves hosts without delegation, and processes that a worker moved into another
//! cgroup.
//!
//! The evidence for the worker of an adopted process, strongest first:
//! 1. An earlier walk found it as a process of this worker.
//! 2. It is in the worker's cgroup, or in the eBPF account of the worker.
//! 3. Its process group or session is that of the worker's first process.
//! 4. It has one of the worker's listeners open.
//! 5. Its environment names the supervisor, the slot and the generation.
//! 6. There is no other worker.
//!
//! A process without such evidence belongs to no worker, and is killed when the supervisor ends.

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
use serde::{Deserialize, Serialize};

use crate::config::CgroupLimits;
use crate::policy::WorkerId;
use crate::sys::cgroup::{
    Cgroup, LimitsMet, Removal, SavedCgroup, SavedSlots, SavedSupervisors, SavingSlots, Slot, Supervisors,
    Unusable,
};
use crate::sys::children;
use crate::sys::handover::{Incoming, Outgoing};
use crate::sys::helper::Helper;
use crate::sys::holders::Holds;
use crate::sys::proc_stat;
pub use daemon::{Exited, daemon};
use environments::{Environments, Processes};
use ownership::{Owners, TreeFacts};
use registry::Registry;
use walker::{Answer, FoundOf, Task, Walk};

/// The number of processes of one worker that one walk examines. A worker with more processes is ended in several
/// rounds.
const MAX_MEMBERS: usize = 4096;

/// The number of cgroups that the loop tries to remove at once. Each attempt takes two system calls.
const REMOVED_AT_ONCE: usize = 64;

/// The number of removal steps that the helper thread makes at once, so that the cgroups of one worker do not delay
/// those of another.
const STEPS_AT_ONCE: usize = 16;

/// A process of a worker's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its pid.
    pub pid: Pid,
    /// The pid of its parent at the time of the walk.
    pub parent: Option<Pid>,
    /// Its start time, in ticks since boot. Together with the pid it identifies the process.
    pub started: u64,
    /// Its name, as `ps` shows it.
    pub name: String,
    /// Whether it is a child of the supervisor.
    pub adopted: bool,
    /// Whether it has one of the worker's listeners open.
    pub holds: Holds,
}

impl Member {
    /// Whether the process still exists.
    pub fn is_there(&self) -> bool {
        proc_stat::is_still(self.pid, self.started)
    }
}

/// The result of a walk for one worker.
#[derive(Debug)]
pub struct Found {
    /// The worker.
    pub worker: WorkerId,
    /// The latest question that this answers. It also answers all earlier questions; see [`Trees::look`].
    pub question: u64,
    /// The living processes of the worker, including its first process.
    pub members: Vec<Member>,
    /// The processes were sent a signal, and none of them handles it.
    pub unheeded: bool,
}

/// The task of the next walk for one worker.
#[derive(Debug, Clone, Default)]
struct Request {
    question: u64,
    signal: Option<i32>,
    hints: Vec<Pid>,
    sockets: Vec<u64>,
    listeners: Vec<u64>,
}

/// The process trees as a supervisor hands them over.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Saved {
    trees: Vec<TreeFacts>,
    /// Pid, start time and the worker's serial.
    owners: Vec<(i32, u64, u64)>,
    inherited: Vec<i32>,
    parent: Option<SavedSupervisors>,
    cgroups: Vec<(u64, SavedCgroup)>,
    emptied: Vec<SavedEmptied>,
    /// The signals that no walk has sent yet, with the hints.
    signals: Vec<(u64, i32, Vec<i32>)>,
    questions: u64,
    surveys: bool,
    /// The cgroups with limits.
    #[serde(default)]
    limited: SavedSlots,
    /// Those of them that the next workers of their slots get.
    #[serde(default)]
    kept: Vec<usize>,
    /// The slots that are wanted, as far as that is known.
    #[serde(default)]
    slots: Option<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedEmptied {
    #[serde(flatten)]
    cgroup: SavedCgroup,
    #[serde(default)]
    slot_is_settled: bool,
}

/// The cgroup of a worker that is gone.
#[derive(Debug)]
struct Emptied {
    cgroup: Arc<Cgroup>,
    /// Whether the cgroup with the limits was kept for another worker, if that can use it.
    slot_is_settled: bool,
}

impl Emptied {
    fn new(cgroup: Arc<Cgroup>) -> Emptied {
        Emptied { cgroup, slot_is_settled: false }
    }
}

/// The process trees of all workers, as the loop sees them.
#[derive(Debug)]
pub struct Trees {
    trees: BTreeMap<u64, TreeFacts>,
    /// The adopted processes whose worker is known, with their start time and the worker's serial.
    owners: Owners,
    /// The processes whose environments could not be read in time.
    unreadable: Processes,
    /// The children that this process had before it was exec'ed as the supervisor.
    inherited: HashSet<Pid>,
    workers: Arc<Registry>,
    notify_socket: Arc<[u8]>,
    cgroups: HashMap<u64, Arc<Cgroup>>,
    /// The cgroups of workers that are gone which cannot be removed yet: the kernel is still ending a process in them.
    emptied: VecDeque<Emptied>,
    /// For each slot the cgroup with the limits that its next worker gets.
    kept: BTreeMap<u32, Arc<Slot>>,
    /// The slots that are wanted, as far as that is known.
    slots: u32,
    /// The parent of the workers' cgroups, which is removed after them. `None`: the supervisor has no cgroup.
    parent: Option<Supervisors>,
    /// Removes the cgroups that those workers have made below their own.
    remover: Helper<Vec<Arc<Cgroup>>, bool>,
    /// Whether the remover is busy.
    removes: bool,
    requests: BTreeMap<u64, Request>,
    /// The number of questions so far.
    questions: u64,
    /// Whether the next walk determines the owners of adopted processes, whatever workers it was requested for.
    surveys: bool,
    /// Whether a walk is in progress.
    walks: bool,
    /// Whether no further walk begins for now.
    is_held: bool,
    walker: Helper<Walk, Answer>,
}

impl Trees {
    /// `notify_socket` is the value of the workers' `NOTIFY_SOCKET`.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new(parent: Option<Supervisors>, notify_socket: &[u8]) -> io::Result<Trees> {
        Trees::with(parent, children::ours().into_iter().collect(), notify_socket)
    }

    fn with(parent: Option<Supervisors>, inherited: HashSet<Pid>, notify_socket: &[u8]) -> io::Result<Trees> {
        let walker = walker::walker()?;
        Ok(Trees {
            trees: BTreeMap::new(),
            owners: Owners::new(),
            unreadable: Processes::new(),
            inherited,
            workers: Arc::default(),
            notify_socket: notify_socket.into(),
            cgroups: HashMap::new(),
            emptied: VecDeque::new(),
            kept: BTreeMap::new(),
            slots: u32::MAX,
            parent,
            remover: Helper::new("cgroups", 64 * 1024, 1, walker.wake().clone(), remove_some),
            removes: false,
            requests: BTreeMap::new(),
            questions: 0,
            surveys: false,
            walks: false,
            is_held: false,
            walker,
        })
    }

    /// Begins no further walk, or goes on. A walk that is in progress ends.
    pub fn hold(&mut self, held: bool) {
        self.is_held = held;
        self.walk();
    }

    /// Whether no helper thread is at work.
    pub fn is_idle(&self) -> bool {
        !self.walks && !self.removes
    }

    /// The state, while no helper thread is at work. The questions that no walk has answered yet are not part of it: who
    /// has asked them asks again.
    pub fn save(&self, out: &mut Outgoing) -> Saved {
        let number = |pid: &Pid| pid.as_raw_pid();
        let signals = self.requests.iter().filter_map(|(serial, request)| {
            Some((*serial, request.signal?, request.hints.iter().map(number).collect()))
        });
        let mut limited = SavingSlots::default();
        let cgroups = self.cgroups.iter().map(|(serial, cgroup)| (*serial, cgroup.save(&mut limited, out)));
        let cgroups = cgroups.collect();
        let emptied = self.emptied.iter().map(|emptied| SavedEmptied {
            cgroup: emptied.cgroup.save(&mut limited, out),
            slot_is_settled: emptied.slot_is_settled,
        });
        let emptied: Vec<SavedEmptied> = emptied.collect();
        let kept = self.kept.values().map(|slot| limited.index(slot)).collect();
        Saved {
            trees: self.trees.values().cloned().collect(),
            owners: self.owners.iter().map(|(pid, (at, serial))| (number(pid), *at, *serial)).collect(),
            inherited: self.inherited.iter().map(number).collect(),
            parent: self.parent.as_ref().map(|parent| parent.save(out)),
            cgroups,
            emptied,
            signals: signals.collect(),
            questions: self.questions,
            surveys: self.surveys,
            kept,
            limited: limited.save(out),
            slots: Some(self.slots),
        }
    }

    /// Trees that go on from this state, with these limits of the workers' cgroups. They are held: no walk begins.
    pub fn resume(saved: Saved, limits: CgroupLimits, notify_socket: &[u8], from: &mut Incoming) -> Trees {
        let pids = |numbers: Vec<i32>| numbers.into_iter().filter_map(Pid::from_raw);
        let made = Trees::with(None, pids(saved.inherited).collect(), notify_socket);
        let mut trees = from.need(made, "eventfd");
        trees.is_held = true;
        trees.questions = saved.questions;
        for tree in saved.trees {
            if tree.first_lives {
                trees.workers.insert(tree.first);
            }
            trees.trees.insert(tree.serial, tree);
        }
        let known = |(pid, at, serial)| Some((Pid::from_raw(pid)?, (at, serial)));
        trees.owners = saved.owners.into_iter().filter_map(known).collect();
        trees.parent = saved.parent.map(|parent| Supervisors::resume(parent, limits, from));
        let limited = saved.limited.resume(limits, from);
        for (serial, cgroup) in saved.cgroups {
            trees.cgroups.insert(serial, Arc::new(Cgroup::resume(cgroup, &limited, from)));
        }
        for SavedEmptied { cgroup, slot_is_settled } in saved.emptied {
            let cgroup = Arc::new(Cgroup::resume(cgroup, &limited, from));
            trees.emptied.push_back(Emptied { cgroup, slot_is_settled });
        }
        let kept = saved.kept.into_iter().filter_map(|index| limited.get(index));
        trees.kept = kept.map(|slot| (slot.number(), Arc::clone(slot))).collect();
        trees.slots = saved.slots.unwrap_or(trees.slots);
        for (serial, signal, hints) in saved.signals {
            trees.signal(serial, signal, pids(hints).collect());
        }
        if saved.surveys {
            trees.survey();
        }
        trees
    }

    /// Readable when [`take`](Self::take) returns results.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.walker.wake().fd()
    }

    /// The children that this process had before it was exec'ed as the supervisor.
    pub fn inherited(&self) -> &HashSet<Pid> {
        &self.inherited
    }

    /// Makes a cgroup for a worker that is about to be started. Its limits are those of a cgroup that an earlier worker of the
    /// slot had, if there is one.
    ///
    /// # Errors
    /// The worker has limits, and there is no cgroup with them.
    pub fn make_cgroup(&mut self, worker: WorkerId) -> Result<Option<Cgroup>, Unusable> {
        if self.limits().is_some() && !self.emptied.is_empty() && !self.kept.contains_key(&worker.slot) {
            self.remove_cgroups();
        }
        let Some(parent) = &self.parent else { return Ok(None) };
        let made = if worker.is_preload() {
            parent.create_unlimited("preload")
        } else {
            parent.create(worker.slot, worker.serial, self.kept.remove(&worker.slot))
        };
        match made {
            Ok(cgroup) => Ok(Some(cgroup)),
            Err(error) if self.limits().is_some() && !worker.is_preload() => Err(error),
            Err(error) => {
                tracing::debug!("cannot make a cgroup: {error}; worker {} starts without one", worker.slot);
                Ok(None)
            }
        }
    }

    /// The limits of the cgroups of the workers, if there are any.
    pub fn limits(&self) -> Option<&CgroupLimits> {
        let limits = self.parent.as_ref()?.limits();
        (*limits != CgroupLimits::default()).then_some(limits)
    }

    /// The path of the cgroup of a worker.
    pub fn cgroup_path(&self, serial: u64) -> Option<String> {
        Some(self.parent.as_ref()?.path_of(self.cgroups.get(&serial)?))
    }

    /// What a worker has met at the limits of its cgroup.
    pub fn limits_met(&self, serial: u64) -> LimitsMet {
        let cgroup = self.cgroups.get(&serial).filter(|_| self.limits().is_some());
        cgroup.map(|cgroup| cgroup.limits_met()).unwrap_or_default()
    }

    /// Removes the cgroups of workers that are gone, as far as they contain no process. Returns true if some are left.
    pub fn remove_cgroups(&mut self) -> bool {
        let _of_an_earlier_try = self.removal_advanced();
        self.try_cgroups(true);
        self.has_emptied()
    }

    /// Whether cgroups of workers that are gone are left.
    pub fn has_emptied(&self) -> bool {
        !self.emptied.is_empty()
    }

    /// Whether the helper thread has removed some of them, and would make further progress.
    fn removal_advanced(&mut self) -> bool {
        let answers = self.remover.take();
        self.removes &= answers.is_empty();
        answers.contains(&true)
    }

    /// Tries to remove the cgroups. A cgroup with others below it takes longer, and is passed to the helper thread if
    /// `delegates` is set.
    fn try_cgroups(&mut self, delegates: bool) {
        let mut divided = Vec::new();
        for _ in 0..self.emptied.len().min(REMOVED_AT_ONCE) {
            let Some(mut emptied) = self.emptied.pop_front() else { break };
            let removal = emptied.cgroup.remove();
            if removal != Removal::InUse {
                self.keep_slot(&mut emptied);
            }
            match removal {
                Removal::Gone => continue,
                Removal::Divided => divided.push(Arc::clone(&emptied.cgroup)),
                Removal::InUse => {}
            }
            self.emptied.push_back(emptied);
        }
        if delegates && !self.removes && !divided.is_empty() {
            self.removes = self.remover.ask(divided);
        }
    }

    /// Keeps the cgroup with the limits of a worker of which no process is left for the next worker of its slot, if there is
    /// none yet.
    fn keep_slot(&mut self, emptied: &mut Emptied) {
        if std::mem::replace(&mut emptied.slot_is_settled, true) {
            return;
        }
        if let Some(slot) = emptied.cgroup.reusable_slot()
            && slot.number() < self.slots
        {
            self.kept.entry(slot.number()).or_insert_with(|| Arc::clone(slot));
        }
    }

    /// Kills the processes in the cgroup of a start that failed or was abandoned, and whose child has ended. `is_sound`: the
    /// cgroup was not the reason.
    pub fn end_cgroup(&mut self, cgroup: Cgroup, is_sound: bool) {
        let _before_linux_5_14 = cgroup.kill();
        self.emptied.push_back(Emptied { slot_is_settled: !is_sound, ..Emptied::new(Arc::new(cgroup)) });
        self.remove_cgroups();
    }

    /// Kills the processes in the cgroup of a worker, if it has one.
    pub fn kill_cgroup(&self, serial: u64) {
        if let Some(cgroup) = self.cgroups.get(&serial) {
            let _before_linux_5_14 = cgroup.kill();
        }
    }

    /// Whether the cgroup of a worker contains a process. `None`: the worker has no cgroup, or this is unknown.
    pub fn is_populated(&self, serial: u64) -> Option<bool> {
        self.cgroups.get(&serial)?.is_populated().ok()
    }

    /// Whether a child of the supervisor may be a process that a worker has left behind. When a worker's first process has ended,
    /// and was waited for, all its children are the supervisor's, and their descendants descend from these: if the supervisor has
    /// no child but workers, no process of that worker is left. To be called by the thread that starts the workers.
    pub fn may_have_adopted(&self) -> bool {
        let are_known =
            |children: Vec<Pid>| self.workers.has_all(&children, |pid| self.inherited.contains(pid));
        !children::of_first_thread().is_some_and(are_known)
    }

    /// Begins the start of a worker. Returns the current time, in ticks since boot.
    pub fn begin_start(&self) -> u64 {
        self.workers.begin();
        ticks_since_boot()
    }

    /// Registers the pid of the started worker. `None`: it could not be started.
    pub fn start_begun(&self, pid: Option<Pid>) {
        self.workers.begun(pid);
    }

    /// Removes a process that ended before it became a worker.
    pub fn start_failed(&self, pid: Pid) {
        self.workers.remove(pid);
    }

    /// Adds a running worker. `begun` is the result of [`begin_start`](Self::begin_start); the start may have taken a
    /// long time since.
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

    /// Records that the first process of a worker has ended and is reaped.
    pub fn first_ended(&mut self, serial: u64) {
        if let Some(tree) = self.trees.get_mut(&serial) {
            tree.first_lives = false;
            self.workers.remove(tree.first);
        }
    }

    /// Makes another process of a worker its first process. The earlier one has ended.
    pub fn replaced(&mut self, serial: u64, first: Pid, started: u64) {
        if let Some(tree) = self.trees.get_mut(&serial) {
            tree.replace_first(first, started);
            self.workers.insert(first);
        }
    }

    /// Forgets a worker of which no process is left. `slots`: the number that is wanted.
    pub fn gone(&mut self, serial: u64, slots: u32) {
        self.slots = slots;
        drop(self.kept.split_off(&slots));
        self.trees.remove(&serial);
        self.requests.remove(&serial);
        self.emptied.extend(self.cgroups.remove(&serial).map(Emptied::new));
        self.remove_cgroups();
        self.owners.retain(|_, (_, owner)| *owner != serial);
    }

    /// Whether a process of a worker may live.
    pub fn has(&self, serial: u64) -> bool {
        self.trees.contains_key(&serial)
    }

    /// The worker of an adopted process, if a walk has found it.
    pub fn owner(&self, pid: Pid) -> Option<u64> {
        self.owners.get(&pid).map(|(_, serial)| *serial)
    }

    /// Requests the workers of the adopted processes.
    pub fn survey(&mut self) {
        self.surveys = true;
        self.walk();
    }

    /// The adopted processes whose worker is known: start time and serial of the worker, by pid.
    pub fn owners(&self) -> &HashMap<Pid, (u64, u64)> {
        &self.owners
    }

    /// The adopted processes whose worker is known, each with its start time.
    pub fn owned(&self) -> impl Iterator<Item = (Pid, u64, WorkerId)> {
        self.owners.iter().filter_map(|(pid, (started, serial))| {
            let slot = self.trees.get(serial)?.slot;
            Some((*pid, *started, WorkerId { slot, serial: *serial }))
        })
    }

    /// Requests the living processes of a worker. `hints` are processes that belong to it; `sockets` are
    /// those that no other worker has. The answer also contains which of the processes have one of the `listeners` open.
    /// Returns the number of the question, which distinguishes its answer from those of walks that began before it.
    pub fn look(&mut self, serial: u64, hints: Vec<Pid>, sockets: Vec<u64>, listeners: Vec<u64>) -> u64 {
        if let Some(request) = self.request(serial) {
            request.hints.extend(hints);
            (request.sockets, request.listeners) = (sockets, listeners);
            self.walk();
        }
        self.questions
    }

    /// Sends a signal to all processes of a worker.
    pub fn signal(&mut self, serial: u64, number: i32, hints: Vec<Pid>) {
        if let Some(request) = self.request(serial) {
            // A later signal does not replace a SIGKILL.
            if request.signal != Some(libc::SIGKILL) {
                request.signal = Some(number);
            }
            request.hints.extend(hints);
            self.walk();
        }
    }

    /// The task of the next walk for a worker. `None`: no process of the worker lives.
    fn request(&mut self, serial: u64) -> Option<&mut Request> {
        self.questions += 1;
        self.trees.contains_key(&serial).then(|| {
            let request = self.requests.entry(serial).or_default();
            request.question = self.questions;
            request
        })
    }

    /// Starts a walk, if none is in progress. One walk answers all requests until then.
    fn walk(&mut self) {
        if self.walks || self.is_held || (self.requests.is_empty() && !self.surveys) {
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

    /// Returns what walks have found since the last call.
    pub fn take(&mut self) -> Vec<Found> {
        let mut found = Vec::new();
        self.walker.wake().clear();
        for answer in self.walker.take() {
            self.walks = false;
            self.owners = answer.owners;
            self.unreadable = answer.unreadable;
            // A worker that is gone meanwhile owns no process.
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

/// Removes cgroups in a bounded number of steps. Returns true if another call would make progress.
fn remove_some(cgroups: Vec<Arc<Cgroup>>) -> bool {
    let mut unfinished = cgroups;
    for _ in 0..STEPS_AT_ONCE {
        unfinished.retain(|cgroup| cgroup.remove_some());
    }
    !unfinished.is_empty()
}

/// The current time, in the ticks since boot in which `/proc/PID/stat` gives start times.
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
    fn an_answer_names_its_question() {
        let worker = WorkerId { slot: 0, serial: 1 };
        let mut trees = Trees::new(None, b"/run/a/notify").expect("an eventfd");
        let begun = trees.begin_start();
        let mut child = Command::new("sleep").arg("1000").spawn().expect("a process");
        let pid = Pid::from_child(&child);
        trees.start_begun(Some(pid));
        trees.started(worker, 0, pid, None, begun);
        // The walk for this question is in progress, or finished, when the worker ends.
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
