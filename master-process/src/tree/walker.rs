//! The helper thread: it walks over `/proc`, which takes as long as the workers make it, and sends signals to the
//! processes that it finds.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::environments::{Environments, Processes};
use super::ownership::{
    Evidence, Owners, TreeFacts, is_environment_wanted, presumed_owner, proven_owner, read_environment,
};
use super::registry::Registry;
use super::{MAX_MEMBERS, Member};
use crate::sys::cgroup::Cgroup;
use crate::sys::helper::{Helper, Wake};
use crate::sys::holders::{Holds, Search};
use crate::sys::peer::Peer;
use crate::sys::proc_stat::{self, Stat};
use crate::sys::signal_disposition::{self, SignalDisposition};
use crate::sys::{children, pidfd};

/// The number of children of the supervisor that one walk examines. Others are found when some of these are gone.
const MAX_ADOPTED: usize = 16_384;

/// The number of descriptors of one process that are searched for listeners. Listeners are opened early, and the kernel
/// assigns the lowest free number.
const DESCRIPTORS_FOR_LISTENERS: usize = 256;

/// The number of descriptors of one worker's processes that are searched for listeners. This takes a fraction of a
/// second; the loop waits two seconds for the answer.
const DESCRIPTORS_OF_TREE: usize = 100_000;

/// The number of rounds of one walk. A process that forks while it is being killed leaves children, so the walk
/// repeats; a later walk makes further rounds.
const ROUNDS: usize = 8;

/// The number of passes without a result before a tree counts as empty.
const LOOKS_BEFORE_EMPTY: usize = 3;

/// The supervisor and the kernel read different clocks for the start of a process. They may differ by this number of
/// ticks.
const CLOCK_SLACK: u64 = 5;

/// The task of a walk for one worker.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) serial: u64,
    /// The latest question that this answers.
    pub(super) question: u64,
    /// The signal to send. `None`: only list the processes.
    pub(super) signal: Option<i32>,
    pub(super) hints: Vec<Pid>,
    pub(super) sockets: Vec<u64>,
    /// The walk determines which processes have one of these open.
    pub(super) listeners: Vec<u64>,
    pub(super) cgroup: Option<Arc<Cgroup>>,
}

/// One walk, with its tasks and the state that it starts from.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) tasks: Vec<Task>,
    pub(super) trees: Vec<TreeFacts>,
    pub(super) owners: Owners,
    pub(super) environments: Environments,
    pub(super) inherited: HashSet<Pid>,
    pub(super) workers: Arc<Registry>,
    /// The number of starts when the walk was requested.
    pub(super) starts: u64,
    pub(super) asked_at: u64,
    /// The value of the workers' `NOTIFY_SOCKET`.
    pub(super) notify_socket: Arc<[u8]>,
}

/// The result of a walk.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) owners: Owners,
    /// The processes whose environments could not be read in time.
    pub(super) unreadable: Processes,
    pub(super) found: Vec<FoundOf>,
}

/// The result for one worker.
#[derive(Debug)]
pub(super) struct FoundOf {
    pub(super) serial: u64,
    pub(super) question: u64,
    /// The processes that live, after any signal.
    pub(super) members: Vec<Member>,
    /// The processes were sent a signal, and none of them handles it.
    pub(super) unheeded: bool,
}

/// The helper thread, which starts with the first walk.
pub(super) fn walker() -> io::Result<Helper<Walk, Answer>> {
    Ok(Helper::new("trees", 256 * 1024, 1, Wake::new()?, carry_out))
}

fn carry_out(mut walk: Walk) -> Answer {
    let tasks = std::mem::take(&mut walk.tasks);
    let mut adopted = walk.adopted(&tasks);
    let mut found = Vec::with_capacity(tasks.len());
    for task in &tasks {
        let members = match task.signal {
            Some(number) => walk.signal(task, number, &tasks, &mut adopted),
            None => walk.look(task, &tasks, &mut adopted),
        };
        let unheeded = task.signal.is_some_and(|number| is_unheeded(number, &members));
        found.push(FoundOf { serial: task.serial, question: task.question, members, unheeded });
    }
    let present: HashSet<Pid> = adopted.iter().map(|(pid, _)| *pid).collect();
    walk.owners.retain(|pid, _| present.contains(pid));
    let unreadable = walk.environments.into_unreadable(|pid| present.contains(&pid));
    Answer { owners: walk.owners, unreadable, found }
}

/// Whether none of these processes handles a signal: those that still live ignore or block it. A process whose
/// disposition is unknown may handle it.
fn is_unheeded(number: i32, members: &[Member]) -> bool {
    let handles = |member: &Member| match signal_disposition::of(member.pid, number) {
        Some(SignalDisposition::Handled) | None => true,
        Some(SignalDisposition::Ignored | SignalDisposition::Default) => false,
    };
    number != libc::SIGKILL && !members.iter().any(handles)
}

/// The adopted processes, each with its worker's serial if that is known.
type Adopted = Vec<(Pid, Option<u64>)>;

impl Walk {
    fn is_first(&self, pid: Pid) -> bool {
        self.trees.iter().any(|tree| tree.first_lives && tree.first == pid)
    }

    /// Returns the living processes of a worker. While the walk reads lists of children, a child whose parent ends at
    /// that moment is in no list. So an empty result counts only if it repeats, and so does a result without a
    /// listener.
    fn look(&mut self, task: &Task, tasks: &[Task], adopted: &mut Adopted) -> Vec<Member> {
        let is_empty = |found: &[Member]| match task.listeners.as_slice() {
            [] => found.is_empty(),
            _some => found.iter().all(|member| member.holds == Holds::No),
        };
        let mut found = self.members(task, adopted);
        for _ in 1..LOOKS_BEFORE_EMPTY {
            if !is_empty(&found) {
                break;
            }
            *adopted = self.adopted(tasks);
            found = self.members(task, adopted);
        }
        found
    }

    /// Sends a signal to all processes of a worker, in as many rounds as are needed for processes that were missed or
    /// started meanwhile.
    fn signal(&mut self, task: &Task, number: i32, tasks: &[Task], adopted: &mut Adopted) -> Vec<Member> {
        let kills = number == libc::SIGKILL;
        let mut signalled = HashSet::new();
        let mut found = Vec::new();
        for _ in 0..ROUNDS {
            if kills && let Some(cgroup) = &task.cgroup {
                // Before Linux 5.14 this fails, and the processes are killed one by one.
                let _killed = cgroup.kill();
            }
            found = self.look(task, tasks, adopted);
            // The loop sends the stop signal to the first process.
            let spared = |member: &Member| !kills && self.is_first(member.pid);
            let new: Vec<&Member> = found
                .iter()
                .filter(|member| !spared(member) && (kills || signalled.insert((member.pid, member.started))))
                .collect();
            if new.is_empty() {
                break;
            }
            new.into_iter().for_each(|member| send(member, number));
            *adopted = self.adopted(tasks);
        }
        found
    }

    /// Returns the adopted processes that live, each with its worker's serial if that is known.
    fn adopted(&mut self, tasks: &[Task]) -> Adopted {
        let others = self.workers.others().into_iter().filter(|child| !self.inherited.contains(child));
        let others: Vec<Pid> = others.take(MAX_ADOPTED).collect();
        let of_task = |task: &Task| {
            let members = task.cgroup.iter().flat_map(|cgroup| cgroup.members(MAX_MEMBERS));
            members.map(|pid| (pid, task.serial)).collect::<Vec<_>>()
        };
        let in_cgroups: HashMap<Pid, u64> = tasks.iter().flat_map(of_task).collect();
        let mut found = Vec::new();
        for pid in others {
            let Some(stat) = stat(pid).filter(|stat| !stat.is_zombie) else { continue };
            let known = self.owners.get(&pid).is_some_and(|(started, _)| *started == stat.started);
            let evidence = Evidence {
                started: stat.started,
                group: stat.group,
                session: stat.session,
                accounted: if known { None } else { accounted(pid, tasks, &in_cgroups) },
                // The process may belong to a worker that was started since the walk was requested, which is not part of this walk.
                is_unsure: stat.started >= self.asked_at && self.workers.starts() != self.starts,
                may_be_unrelated: getpid().as_raw_pid() == 1 || !self.inherited.is_empty(),
            };
            let started_of = |number| self::stat(number).map(|stat| stat.started);
            let owner = proven_owner(pid, &evidence, &self.trees, &self.owners, started_of)
                .or_else(|| self.presumed_owner(pid, &evidence));
            if let Some(serial) = owner {
                self.owners.insert(pid, (stat.started, serial));
            }
            found.push((pid, owner));
        }
        found
    }

    /// Reads the environment only if nothing stronger decides: a process can make the read take arbitrarily long.
    fn presumed_owner(&mut self, pid: Pid, evidence: &Evidence) -> Option<u64> {
        let environment = if is_environment_wanted(evidence, &self.trees) {
            let found = self.environments.of(pid, evidence.started);
            found.and_then(|found| read_environment(&found, getpid(), &self.notify_socket))
        } else {
            None
        };
        presumed_owner(evidence, environment, &self.trees)
    }

    /// The living processes of one worker.
    fn members(&self, task: &Task, adopted: &[(Pid, Option<u64>)]) -> Vec<Member> {
        let mut found = Vec::new();
        let mut search = Search::new(&task.listeners, DESCRIPTORS_OF_TREE);
        let first = self.trees.iter().find(|tree| tree.serial == task.serial && tree.first_lives);
        if let Some(tree) = first
            && let Some(stat) = stat(tree.first)
            && !stat.is_zombie
            && stat.parent == Some(getpid())
            && stat.started.abs_diff(tree.first_started) <= CLOCK_SLACK
        {
            found.push(member(tree.first, &stat, false, &mut search));
        }
        for (pid, _) in adopted.iter().filter(|(_, owner)| *owner == Some(task.serial)) {
            let is_ours = |stat: &Stat| !stat.is_zombie && stat.parent == Some(getpid());
            if let Some(stat) = stat(*pid).filter(is_ours) {
                found.push(member(*pid, &stat, true, &mut search));
            }
        }
        let mut seen: HashSet<Pid> = found.iter().map(|member| member.pid).collect();
        let in_cgroup = task.cgroup.iter().flat_map(|cgroup| cgroup.members(MAX_MEMBERS));
        for pid in in_cgroup {
            if let Some(stat) = stat(pid).filter(|stat| !stat.is_zombie)
                && seen.insert(pid)
            {
                let adopted = stat.parent == Some(getpid());
                found.push(member(pid, &stat, adopted, &mut search));
            }
        }
        let mut at = 0;
        while let Some(parent) = found.get(at).map(|parent| (parent.pid, parent.started))
            && found.len() < MAX_MEMBERS
        {
            at += 1;
            for (pid, stat) in children_of(parent) {
                if found.len() < MAX_MEMBERS && seen.insert(pid) {
                    found.push(member(pid, &stat, false, &mut search));
                }
            }
        }
        if found.len() >= MAX_MEMBERS && !task.listeners.is_empty() {
            // Processes that were not examined may have them open.
            let without = found.iter_mut().filter(|member| member.holds == Holds::No);
            without.for_each(|member| member.holds = Holds::Unknown);
        }
        found
    }
}

/// The living children of a process. They count only if the process still exists after they were read: if its pid was
/// reused, they are children of an unrelated process.
fn children_of((pid, started): (Pid, u64)) -> Vec<(Pid, Stat)> {
    let children = children::of(pid).unwrap_or_default();
    let living: Vec<(Pid, Stat)> = children
        .into_iter()
        .take(MAX_MEMBERS)
        .filter_map(|child| Some((child, stat(child)?)))
        .filter(|(_, stat)| !stat.is_zombie && stat.parent == Some(pid))
        .collect();
    if proc_stat::is_still(pid, started) { living } else { Vec::new() }
}

fn member(pid: Pid, stat: &Stat, adopted: bool, search: &mut Search) -> Member {
    let name = proc_stat::name(pid).unwrap_or_else(|| "?".to_owned());
    let (parent, started) = (stat.parent, stat.started);
    Member { pid, parent, started, name, adopted, holds: search.process(pid) }
}

fn stat(pid: Pid) -> Option<Stat> {
    proc_stat::of(pid).ok()
}

/// The worker that has a process in its cgroup or account, or one of whose listeners the process has open.
fn accounted(pid: Pid, tasks: &[Task], in_cgroups: &HashMap<Pid, u64>) -> Option<u64> {
    let others = || tasks.iter().find(|task| task.hints.contains(&pid) || has_any(pid, &task.sockets));
    in_cgroups.get(&pid).copied().or_else(|| others().map(|task| task.serial))
}

/// Whether a process has one of these sockets open.
fn has_any(pid: Pid, sockets: &[u64]) -> bool {
    if sockets.is_empty() {
        return false;
    }
    let open = Peer::open(pid).and_then(|peer| peer.sockets(DESCRIPTORS_FOR_LISTENERS));
    open.is_ok_and(|open| open.iter().any(|(_, inode)| sockets.contains(inode)))
}

/// Sends a signal, and SIGCONT after it: a process that is stopped, by a terminal for example, must run to receive the
/// signal. A process that has ended meanwhile, or whose pid was reused, gets none.
fn send(member: &Member, number: i32) {
    let Ok(handle) = pidfd_open(member.pid, PidfdFlags::empty()) else { return };
    if member.is_there() {
        let _gone_or_not_ours_to_signal = pidfd::signal(handle.as_fd(), number);
        if number != libc::SIGKILL {
            let _likewise = pidfd::signal(handle.as_fd(), libc::SIGCONT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};
    use std::sync::Mutex;
    use std::time::Duration;

    use crate::sys::peer::Environment;

    /// A process in the process group of another one, or in its own.
    struct Process(Child);

    impl Process {
        fn start(group: Option<Pid>) -> Process {
            let group = group.map_or(0, Pid::as_raw_pid);
            Process(Command::new("sleep").arg("1000").process_group(group).spawn().expect("a process"))
        }

        fn pid(&self) -> Pid {
            Pid::from_child(&self.0)
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            let _ended = self.0.kill().and_then(|()| self.0.wait());
        }
    }

    fn tree(serial: u64, first: Pid) -> TreeFacts {
        let started = stat(first).expect("it lives").started;
        TreeFacts {
            serial,
            slot: u32::try_from(serial).expect("small"),
            generation: 0,
            first,
            started,
            first_started: started,
            first_lives: true,
            former: Vec::new(),
        }
    }

    #[test]
    fn an_environment_is_read_only_without_stronger_evidence() {
        static READ: Mutex<Vec<Pid>> = Mutex::new(Vec::new());
        let workers = Arc::new(Registry::default());
        // Children of other tests do not belong to this one.
        let inherited = children::ours().into_iter().collect();
        let (first, second) = (Process::start(None), Process::start(None));
        [&first, &second].into_iter().for_each(|worker| workers.insert(worker.pid()));
        let in_group = Process::start(Some(first.pid()));
        let (accounted, alone) = (Process::start(None), Process::start(None));
        let task = |serial, hints| Task {
            serial,
            question: 1,
            signal: None,
            hints,
            sockets: Vec::new(),
            listeners: Vec::new(),
            cgroup: None,
        };
        let read = |pid| {
            READ.lock().expect("no test panics with it").push(pid);
            Ok(Environment::new(b"NOTIFY_SOCKET=/run/a/notify\0WORKER_INDEX=2\0RELOAD_INDEX=0\0"))
        };
        let answer = carry_out(Walk {
            tasks: vec![task(1, Vec::new()), task(2, vec![accounted.pid()])],
            trees: vec![tree(1, first.pid()), tree(2, second.pid())],
            owners: HashMap::new(),
            environments: Environments::read_by(read, Duration::from_secs(60), Processes::new()),
            inherited,
            starts: workers.starts(),
            workers,
            asked_at: u64::MAX,
            notify_socket: b"/run/a/notify".as_slice().into(),
        });
        let found = |serial| -> HashSet<Pid> {
            let of_it = answer.found.iter().filter(|found| found.serial == serial);
            of_it.flat_map(|found| found.members.iter().map(|member| member.pid)).collect()
        };
        assert_eq!(found(1), HashSet::from([first.pid(), in_group.pid()]));
        assert_eq!(found(2), HashSet::from([second.pid(), accounted.pid(), alone.pid()]));
        assert_eq!(*READ.lock().expect("no test panics with it"), [alone.pid()]);
    }
}
