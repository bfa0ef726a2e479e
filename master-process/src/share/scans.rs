//! Scans of descriptor tables. A worker controls how long a table is, so a helper thread makes the scans.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::core::SocketId;
use crate::sys::epoll_entries::{self, Entry};
use crate::sys::helper::{Helper, Wake};
use crate::sys::holders::{self, Holder, Whose};
use crate::sys::inet_diag;
use crate::sys::peer::Peer;
use crate::sys::proc_stat;
use crate::sys::seccomp::Notification;

/// The number of scans that may wait. A further one is not made, and the socket counts as open.
const MAX_QUEUED: usize = 256;

/// The number of scans of one worker that may wait. A scan takes time in proportion to the worker's descriptors, and
/// delays the scans for other workers.
const MAX_PER_WORKER: usize = 2;

/// The same for scans that no call waits for. Each check of listeners requests some, and a worker may have closed
/// hundreds at once.
const MAX_CHECKS_PER_WORKER: usize = 32;

/// The state of a requested scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Requested {
    /// The result will come.
    Sent,
    /// The worker has the maximum number of scans in progress.
    Busy,
    /// The queue is full, the thread could not be started, or no process of the worker lives.
    Impossible,
}

/// What a scan looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// Which process of a worker's tree has this socket open?
    Holder(SocketId),
    /// With which epoll instances has this thread registered this descriptor?
    Epoll(Pid, RawFd),
    /// Which connections to the address of this socket are not accepted yet?
    Unaccepted(SocketId, SocketAddr),
    /// Which TCP listeners does the worker have?
    Listeners,
    /// Does the kernel list the queues of Unix listeners?
    UnixQueues,
}

/// A call that waits for a scan, and the serial of the worker that makes it.
pub(super) type WaitingCall = (u64, Notification);

/// Adopted processes whose worker is known: pid, start time and the worker's serial.
pub(super) type Owners = HashMap<Pid, (u64, u64)>;

/// A scan of the processes of one worker.
#[derive(Debug, Clone)]
pub(super) struct Scan {
    pub(super) serial: u64,
    pub(super) question: Question,
    /// Its first process; `None`: that has ended, and others of its process tree live.
    root: Option<Pid>,
    /// The other workers' processes.
    workers: Vec<Pid>,
    owners: Arc<Owners>,
    /// `None`: no call waits for the result.
    pub(super) call: Option<WaitingCall>,
}

impl Scan {
    fn whose(&self, child: Pid) -> Whose {
        if self.workers.contains(&child) {
            return Whose::Another;
        }
        match self.owners.get(&child) {
            Some((started, serial)) if proc_stat::is_still(child, *started) => {
                if *serial == self.serial {
                    Whose::Scanned
                } else {
                    Whose::Another
                }
            }
            Some(_) | None => Whose::Unknown,
        }
    }
}

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    Holder(SocketId, Holder),
    Epoll(Vec<Entry>),
    /// `None`: the kernel does not list them.
    Unaccepted(SocketId, Option<HashSet<u64>>),
    Listeners(Vec<(SocketId, SocketAddr)>),
    UnixQueues(bool),
}

/// The result of a scan.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) scan: Scan,
    pub(super) found: Found,
}

/// The processes of a worker, as far as scans need them.
#[derive(Debug, Default)]
struct Processes {
    /// The first process.
    first: Option<Pid>,
    /// Whether the worker has ended; descendants of it may be left.
    ended: bool,
    /// Whether the first process has ended while others of the process tree live.
    remains: bool,
}

/// The helper thread, which starts with the first scan, and the processes that it scans.
#[derive(Debug)]
pub(super) struct Scans {
    helper: Helper<Scan, Answer>,
    /// The scans in progress.
    in_progress: Vec<(u64, Question, Option<WaitingCall>)>,
    /// The workers, by serial.
    workers: HashMap<u64, Processes>,
    owners: Arc<Owners>,
    /// Whether a scan has found a socket in an adopted process whose worker is unknown.
    found_unowned: bool,
    /// The results of scans, for calls that still wait.
    holders: Vec<(WaitingCall, SocketId, Holder)>,
    /// The registrations with epoll of sockets that waiting calls will replace.
    registrations: Vec<(WaitingCall, Vec<Entry>)>,
}

/// The processes that scans need, as a supervisor hands them over.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct SavedScans {
    workers: Vec<SavedProcesses>,
    /// Pid, start time and the worker's serial.
    owners: Vec<(i32, u64, u64)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SavedProcesses {
    serial: u64,
    first: Option<i32>,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    ended: bool,
    #[serde(default, skip_serializing_if = "crate::forms::is_default")]
    remains: bool,
}

impl Scans {
    pub(super) fn save(&self) -> SavedScans {
        let workers = self.workers.iter().map(|(serial, worker)| SavedProcesses {
            serial: *serial,
            first: worker.first.map(Pid::as_raw_pid),
            ended: worker.ended,
            remains: worker.remains,
        });
        let owners = self.owners.iter().map(|(pid, (started, serial))| (pid.as_raw_pid(), *started, *serial));
        SavedScans { workers: workers.collect(), owners: owners.collect() }
    }

    /// The scans that were in progress are requested again by the calls that waited for them.
    pub(super) fn resume(saved: SavedScans) -> io::Result<Scans> {
        let mut scans = Scans::new()?;
        for SavedProcesses { serial, first, ended, remains } in saved.workers {
            let first = first.and_then(Pid::from_raw);
            scans.workers.insert(serial, Processes { first, ended, remains });
        }
        let known = |(pid, started, serial)| Some((Pid::from_raw(pid)?, (started, serial)));
        scans.owners = Arc::new(saved.owners.into_iter().filter_map(known).collect());
        Ok(scans)
    }

    /// The calls that wait for a scan.
    pub(super) fn waiting_calls(&self) -> impl Iterator<Item = WaitingCall> {
        self.in_progress.iter().filter_map(|(_, _, call)| *call)
    }

    /// # Errors
    /// Those of eventfd(2).
    pub(super) fn new() -> io::Result<Scans> {
        Ok(Scans {
            helper: Helper::new("scans", 128 * 1024, MAX_QUEUED, Wake::new()?, answer),
            in_progress: Vec::new(),
            workers: HashMap::new(),
            owners: Arc::default(),
            found_unowned: false,
            holders: Vec::new(),
            registrations: Vec::new(),
        })
    }

    /// Signals that there are results.
    pub(super) fn wake(&self) -> &Wake {
        self.helper.wake()
    }

    /// Readable when there are results.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.helper.wake().fd()
    }

    /// A worker is about to start.
    pub(super) fn enter(&mut self, serial: u64) {
        self.workers.insert(serial, Processes::default());
    }

    /// A worker's process has started.
    pub(super) fn launched(&mut self, serial: u64, pid: Pid) {
        if let Some(worker) = self.workers.get_mut(&serial) {
            (worker.first, worker.remains) = (Some(pid), false);
        }
    }

    /// The first process of a worker has ended, and others of its process tree live.
    pub(super) fn first_ended(&mut self, serial: u64) {
        if let Some(worker) = self.workers.get_mut(&serial) {
            (worker.first, worker.remains) = (None, true);
        }
    }

    /// A worker has ended; a descendant of it may be left.
    pub(super) fn worker_ended(&mut self, serial: u64) {
        self.holders.retain(|((of, _), ..)| *of != serial);
        self.registrations.retain(|((of, _), _)| *of != serial);
        if let Some(worker) = self.workers.get_mut(&serial) {
            worker.ended = true;
        }
    }

    /// A worker's whole process tree has ended. Returns false if the worker is not known to have ended.
    pub(super) fn forget(&mut self, serial: u64) -> bool {
        let has_ended = self.workers.get(&serial).is_some_and(|worker| worker.ended);
        if has_ended {
            self.workers.remove(&serial);
        }
        has_ended
    }

    /// The first process of a worker, while it lives.
    pub(super) fn first_process(&self, serial: u64) -> Option<Pid> {
        self.workers.get(&serial).and_then(|worker| worker.first)
    }

    /// Whether the first process of a worker has ended while others of its process tree live.
    pub(super) fn has_remains(&self, serial: u64) -> bool {
        self.workers.get(&serial).is_some_and(|worker| worker.remains)
    }

    /// Sets the known workers of adopted processes.
    pub(super) fn set_owners(&mut self, owners: Owners) {
        self.owners = Arc::new(owners);
    }

    /// Whether, since the last call, a scan found a socket in an adopted process whose worker is unknown. Until the
    /// worker is known, the socket counts as open.
    pub(super) fn take_found_unowned(&mut self) -> bool {
        std::mem::take(&mut self.found_unowned)
    }

    /// Requests a scan of a worker's descriptors, unless the same scan is in progress.
    pub(super) fn request(
        &mut self,
        serial: u64,
        question: Question,
        call: Option<WaitingCall>,
    ) -> Requested {
        if self.in_progress.contains(&(serial, question, call)) {
            return Requested::Sent;
        }
        let Some(worker) = self.workers.get(&serial) else { return Requested::Impossible };
        let root = worker.first;
        if root.is_none() && !worker.remains {
            return Requested::Impossible;
        }
        // A scan counts against the worker that makes the call, even if it is about another worker.
        let counts_for = |serial: u64, call: Option<WaitingCall>| call.map_or(serial, |(caller, _)| caller);
        let by = counts_for(serial, call);
        let is_check = call.is_none();
        let of_worker = |(of, _, call): &&(u64, Question, Option<WaitingCall>)| {
            counts_for(*of, *call) == by && call.is_none() == is_check
        };
        let most = if is_check { MAX_CHECKS_PER_WORKER } else { MAX_PER_WORKER };
        if self.in_progress.iter().filter(of_worker).count() >= most {
            return Requested::Busy;
        }
        let others = self.workers.iter().filter(|(other, worker)| **other != serial && !worker.ended);
        let workers = others.filter_map(|(_, worker)| worker.first).collect();
        let owners = Arc::clone(&self.owners);
        if !self.helper.ask(Scan { serial, question, root, workers, owners, call }) {
            return Requested::Impossible;
        }
        self.in_progress.push((serial, question, call));
        Requested::Sent
    }

    /// Requests a scan for a process of a worker's tree that has a socket open.
    pub(super) fn request_holder(&mut self, serial: u64, id: SocketId) {
        self.request(serial, Question::Holder(id), None);
    }

    /// Whether a call waits for a result.
    pub(super) fn is_awaited_by(&self, call: &Notification) -> bool {
        self.in_progress.iter().any(|(_, _, waiting)| waiting.is_some_and(|(_, waiting)| waiting == *call))
    }

    /// The process that has a socket open, if the scan for this call has ended.
    pub(super) fn holder(&self, call: &Notification, id: SocketId) -> Option<Holder> {
        let mut of_call = self.holders.iter().filter(|((_, waiting), ..)| waiting == call);
        of_call.find(|(_, socket, _)| *socket == id).map(|(_, _, holder)| *holder)
    }

    /// The registrations with epoll of the call's descriptor, if the scan for this call has ended.
    pub(super) fn registrations(&self, call: &Notification) -> Option<Vec<Entry>> {
        let mut of_call = self.registrations.iter().filter(|((_, waiting), _)| waiting == call);
        of_call.next().map(|(_, entries)| entries.clone())
    }

    /// Forgets the results for a call that is answered.
    pub(super) fn forget_call(&mut self, call: &Notification) {
        self.holders.retain(|((_, of), ..)| of != call);
        self.registrations.retain(|((_, of), _)| of != call);
    }

    /// Takes the results since the last call: the calls that waited for one, and the results that no call waited for.
    pub(super) fn take(&mut self) -> (Vec<WaitingCall>, Vec<Answer>) {
        self.helper.wake().clear();
        let (mut calls, mut others) = (Vec::new(), Vec::new());
        for answer in self.helper.take() {
            let key = (answer.scan.serial, answer.scan.question, answer.scan.call);
            if let Some(at) = self.in_progress.iter().position(|scan| *scan == key) {
                self.in_progress.swap_remove(at);
            }
            self.found_unowned |= matches!(answer.found, Found::Holder(_, Holder::Unowned));
            match (answer.found, answer.scan.call) {
                (Found::Holder(id, holder), Some(call)) => {
                    self.holders.push((call, id, holder));
                    calls.push(call);
                }
                (Found::Epoll(entries), Some(call)) => {
                    self.registrations.push((call, entries));
                    calls.push(call);
                }
                (found, _) => others.push(Answer { found, scan: answer.scan }),
            }
        }
        (calls, others)
    }
}

fn answer(scan: Scan) -> Answer {
    let found = match scan.question {
        Question::Holder(id) => Found::Holder(id, holders::find(id, scan.root, |child| scan.whose(child))),
        Question::Epoll(thread, fd) => {
            let peer = Peer::open(thread);
            Found::Epoll(peer.and_then(|peer| epoll_entries::find(&peer, fd)).unwrap_or_default())
        }
        Question::Unaccepted(id, address) => Found::Unaccepted(id, inet_diag::unaccepted(address).ok()),
        Question::Listeners => Found::Listeners(scan.root.map_or_else(Vec::new, holders::tcp_listeners)),
        Question::UnixQueues => Found::UnixQueues(inet_diag::unix_queues(|_| false).is_ok()),
    };
    Answer { scan, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adopted_process_belongs_to_its_worker_until_its_pid_is_reused() {
        let pid = |number| Pid::from_raw(number).expect("not 0");
        let me = rustix::process::getpid();
        let started = proc_stat::of(me).expect("we are there").started;
        let scan = |owner: (u64, u64)| Scan {
            serial: 1,
            question: Question::Listeners,
            root: Some(pid(1)),
            workers: vec![pid(2)],
            owners: Arc::new(HashMap::from([(me, owner)])),
            call: None,
        };
        assert_eq!(scan((started, 1)).whose(me), Whose::Scanned);
        assert_eq!(scan((started, 7)).whose(me), Whose::Another);
        assert_eq!(scan((started + 1, 7)).whose(me), Whose::Unknown, "the pid was reused");
        assert_eq!(scan((started, 7)).whose(pid(2)), Whose::Another, "a worker");
        assert_eq!(scan((started, 7)).whose(pid(3)), Whose::Unknown);
    }
}
