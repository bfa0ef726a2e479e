//! The helper thread for scans of descriptor tables, whose length a worker controls.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;

use rustix::process::Pid;

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

/// The result of [`Looks::ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asking {
    /// The answer will come.
    Sent,
    /// The worker has the maximum number of scans in progress.
    Busy,
    /// The queue is full, or the thread could not be started.
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
}

/// A call that waits for an answer, and the serial of the worker that makes it.
pub(super) type Caller = (u64, Notification);

/// Adopted processes whose worker is known: pid, start time and the worker's serial.
pub(super) type Owners = HashMap<Pid, (u64, u64)>;

/// A question about one worker.
#[derive(Debug, Clone)]
pub(super) struct Look {
    pub(super) serial: u64,
    pub(super) question: Question,
    /// Its first process; `None`: that has ended, and others of its process tree live.
    pub(super) root: Option<Pid>,
    /// The other workers' processes.
    pub(super) workers: Vec<Pid>,
    pub(super) owners: Arc<Owners>,
    /// `None`: the supervisor itself asks.
    pub(super) call: Option<Caller>,
}

impl Look {
    fn whose(&self, child: Pid) -> Whose {
        if self.workers.contains(&child) {
            return Whose::Another;
        }
        match self.owners.get(&child) {
            Some((started, serial)) if proc_stat::is_still(child, *started) => {
                if *serial == self.serial {
                    Whose::Asked
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
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) look: Look,
    pub(super) found: Found,
}

/// The thread, which starts with the first question.
#[derive(Debug)]
pub(super) struct Looks {
    helper: Helper<Look, Answer>,
    /// The questions without an answer yet.
    asked: Vec<(u64, Question, Option<Caller>)>,
}

impl Looks {
    /// # Errors
    /// Those of eventfd(2).
    pub(super) fn new() -> io::Result<Looks> {
        let helper = Helper::new("looks", 128 * 1024, MAX_QUEUED, Wake::new()?, answer);
        Ok(Looks { helper, asked: Vec::new() })
    }

    /// Readable when there are answers.
    pub(super) fn wake(&self) -> &Wake {
        self.helper.wake()
    }

    /// Whether this question is in progress.
    pub(super) fn is_asked(
        &self,
        serial: u64,
        question: Question,
        call: Option<(u64, Notification)>,
    ) -> bool {
        self.asked.contains(&(serial, question, call))
    }

    /// Whether a call waits for an answer.
    pub(super) fn is_awaited_by(&self, call: &Notification) -> bool {
        self.asked.iter().any(|(_, _, caller)| caller.is_some_and(|(_, waiting)| waiting == *call))
    }

    /// Requests a scan.
    pub(super) fn ask(&mut self, look: Look) -> Asking {
        // A scan counts against the worker that makes the call, even if it is about another worker.
        let blamed = |serial: u64, call: Option<Caller>| call.map_or(serial, |(caller, _)| caller);
        let by = blamed(look.serial, look.call);
        let is_check = look.call.is_none();
        let under_way = |(of, _, call): &&(u64, Question, Option<Caller>)| {
            blamed(*of, *call) == by && call.is_none() == is_check
        };
        let most = if is_check { MAX_CHECKS_PER_WORKER } else { MAX_PER_WORKER };
        if self.asked.iter().filter(under_way).count() >= most {
            return Asking::Busy;
        }
        let key = (look.serial, look.question, look.call);
        if !self.helper.ask(look) {
            return Asking::Impossible;
        }
        self.asked.push(key);
        Asking::Sent
    }

    /// The answers since the last call.
    pub(super) fn take(&mut self) -> Vec<Answer> {
        self.helper.wake().clear();
        let answers = self.helper.take();
        for answer in &answers {
            let key = (answer.look.serial, answer.look.question, answer.look.call);
            if let Some(at) = self.asked.iter().position(|asked| *asked == key) {
                self.asked.swap_remove(at);
            }
        }
        answers
    }
}

fn answer(look: Look) -> Answer {
    let found = match look.question {
        Question::Holder(id) => Found::Holder(id, holders::find(id, look.root, |child| look.whose(child))),
        Question::Epoll(thread, fd) => {
            let peer = Peer::open(thread);
            Found::Epoll(peer.and_then(|peer| epoll_entries::find(&peer, fd)).unwrap_or_default())
        }
        Question::Unaccepted(id, address) => Found::Unaccepted(id, inet_diag::unaccepted(address).ok()),
        Question::Listeners => Found::Listeners(look.root.map_or_else(Vec::new, holders::tcp_listeners)),
    };
    Answer { look, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adopted_process_belongs_to_its_worker_until_its_pid_is_reused() {
        let pid = |number| Pid::from_raw(number).expect("not 0");
        let me = rustix::process::getpid();
        let started = proc_stat::of(me).expect("we are there").started;
        let look = |owner: (u64, u64)| Look {
            serial: 1,
            question: Question::Listeners,
            root: Some(pid(1)),
            workers: vec![pid(2)],
            owners: Arc::new(HashMap::from([(me, owner)])),
            call: None,
        };
        assert_eq!(look((started, 1)).whose(me), Whose::Asked);
        assert_eq!(look((started, 7)).whose(me), Whose::Another);
        assert_eq!(look((started + 1, 7)).whose(me), Whose::Unknown, "the pid was reused");
        assert_eq!(look((started, 7)).whose(pid(2)), Whose::Another, "a worker");
        assert_eq!(look((started, 7)).whose(pid(3)), Whose::Unknown);
    }
}
