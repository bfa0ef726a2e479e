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

mod ownership;
mod registry;
mod walker;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;

use crate::policy::WorkerId;
use crate::sys::cgroup::{Cgroup, Supervisors};
use crate::sys::children;
use crate::sys::helper::Helper;
use crate::sys::proc_stat;
use ownership::TreeFacts;
use registry::Registry;
use walker::{Answer, Task, Walk};

/// Processes of one worker that are looked at. One that has more is ended in several rounds.
const MAX_MEMBERS: usize = 4096;

/// A process of a worker's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub pid: Pid,
    /// When it was started, in ticks since the machine was: with its pid it tells a process from all others.
    pub started: u64,
    /// What `ps` calls it.
    pub name: String,
    /// Whether it is a child of the supervisor.
    pub adopted: bool,
    /// Whether it has one of the worker's listeners open.
    pub listens: bool,
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
    /// Everybody of it who lives, its first process included.
    pub members: Vec<Member>,
}

/// What is to be done at the next walk.
#[derive(Debug, Clone, Default)]
struct Request {
    signal: Option<i32>,
    hints: Vec<Pid>,
    sockets: Vec<u64>,
}

/// The trees of all workers, as far as the loop knows them.
#[derive(Debug)]
pub struct Trees {
    trees: BTreeMap<u64, TreeFacts>,
    /// Processes that were handed to us and whose worker is known: when they were started, and its serial.
    owners: HashMap<Pid, (u64, u64)>,
    /// Children of whatever this process was before it was exec'ed.
    inherited: HashSet<Pid>,
    workers: Arc<Registry>,
    notify_socket: Arc<[u8]>,
    /// Where the cgroups of workers are made; none: none is delegated to us.
    parent: Option<Supervisors>,
    cgroups: HashMap<u64, Arc<Cgroup>>,
    /// Those of workers that are gone, and that cannot be removed yet: the kernel is still at the end of somebody in there.
    emptied: Vec<Arc<Cgroup>>,
    requests: BTreeMap<u64, Request>,
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
        Ok(Trees {
            trees: BTreeMap::new(),
            owners: HashMap::new(),
            inherited: children::ours().into_iter().collect(),
            workers: Arc::default(),
            notify_socket: notify_socket.into(),
            parent,
            cgroups: HashMap::new(),
            emptied: Vec::new(),
            requests: BTreeMap::new(),
            surveys: false,
            walks: false,
            walker: walker::walker()?,
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
        self.emptied.retain(|cgroup| !cgroup.remove());
        !self.emptied.is_empty()
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
            (tree.first, tree.first_started, tree.first_lives) = (first, started, true);
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

    /// The processes that were handed to us and whose worker is known.
    pub fn owned(&self) -> impl Iterator<Item = (Pid, WorkerId)> {
        self.owners.iter().filter_map(|(pid, (_, serial))| {
            let slot = self.trees.get(serial)?.slot;
            Some((*pid, WorkerId { slot, serial: *serial }))
        })
    }

    /// Asks who lives of a worker. `hints` are processes that are known to be its own, `sockets` its listeners.
    pub fn look(&mut self, serial: u64, hints: Vec<Pid>, sockets: Vec<u64>) {
        if self.trees.contains_key(&serial) {
            let request = self.requests.entry(serial).or_default();
            request.hints.extend(hints);
            request.sockets = sockets;
            self.walk();
        }
    }

    /// Sends a signal to everybody of a worker.
    pub fn signal(&mut self, serial: u64, number: i32, hints: Vec<Pid>) {
        if self.trees.contains_key(&serial) {
            let request = self.requests.entry(serial).or_default();
            // What ends a process for sure is not taken back by a milder wish that comes later.
            if request.signal != Some(libc::SIGKILL) {
                request.signal = Some(number);
            }
            request.hints.extend(hints);
            self.walk();
        }
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
                signal: request.signal,
                hints: request.hints,
                sockets: request.sockets,
                cgroup: self.cgroups.get(&serial).cloned(),
            })
            .collect();
        let walk = Walk {
            tasks,
            trees: self.trees.values().copied().collect(),
            owners: self.owners.clone(),
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
            // One that is gone meanwhile owns nothing.
            let trees = &self.trees;
            self.owners.retain(|_, (_, serial)| trees.contains_key(serial));
            for (serial, members) in answer.members {
                if let Some(tree) = self.trees.get(&serial) {
                    found.push(Found { worker: WorkerId { slot: tree.slot, serial }, members });
                }
            }
        }
        self.remove_cgroups();
        self.walk();
        found
    }
}

/// The moment that it is, as `/proc/PID/stat` counts starts.
fn ticks_since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let since =
        Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
    let ticks = since.as_nanos() * u128::from(rustix::param::clock_ticks_per_second()) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}
