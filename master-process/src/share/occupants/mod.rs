//! Processes that are no workers of ours and hold an address that these want: who they are, and, with `--takeover`, the
//! end of those that an earlier supervisor has left behind.
//!
//! The search is a walk over the descriptors of the whole host, so a thread of its own makes it; a call that wants the address
//! waits for it only with `--takeover`.

mod search;
mod verdict;

use std::time::Duration;

use rustix::process::Pid;

use super::address::Key;
use super::looks::Caller;
use super::report::Report;
use crate::config::Config;
use crate::policy::Time;
use crate::sys::helper::{Helper, Wake};

/// How soon an address is searched again: who holds it is told once in this time, however often a worker binds it.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Addresses that are searched in that time, which also bounds the lines. Who tries all ports of a host is told of the first.
const MAX_ADDRESSES: usize = 32;

/// Searches that may wait.
const MAX_WAITING: usize = 8;

/// How long calls wait for a search that another one has begun, beyond what the end of processes takes.
const SEARCH_TAKES: Duration = Duration::from_secs(10);

/// The longest that a process which was left behind has from the stop signal to SIGKILL: the new workers wait.
const LONGEST_STOP: Duration = Duration::from_secs(1);

/// How what an earlier supervisor has left behind is ended.
#[derive(Debug, Clone, Copy)]
pub struct Takeover {
    /// What asks it to stop.
    pub(super) signal: i32,
    /// From that to SIGKILL.
    pub(super) kill_after: Duration,
}

impl Takeover {
    /// As the user wants it, if so.
    #[must_use]
    pub fn of(config: &Config) -> Option<Takeover> {
        let kill_after = config.kill_timeout.min(LONGEST_STOP);
        config.takeover.then_some(Takeover { signal: config.stop_signal.0, kill_after })
    }
}

/// An address that is held.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) key: Key,
    /// For a path: who answers there.
    pub(super) answerer: Option<Answerer>,
}

/// A server that answers at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answerer {
    /// The process that has called `listen`, which may be gone by now.
    pub(super) listener: Option<Pid>,
    /// Device and inode number of its file.
    pub(super) file: (u64, u64),
}

/// What was found, and done about it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Who holds the address still; none: nobody, or it cannot be told.
    pub(super) holders: Option<String>,
    /// A line for each process that was ended, or was to be.
    pub(super) ended: Vec<String>,
}

impl Outcome {
    pub(super) fn reports(self, key: &Key) -> Vec<Report> {
        let address = key.to_string();
        let held = self.holders.map(|by| Report::Held { address: address.clone(), by });
        let ended = self.ended.into_iter();
        ended.map(|what| Report::TakenOver { address: address.clone(), what }).chain(held).collect()
    }
}

/// Finds out who holds an address, and ends what may be ended. Not for the loop.
pub(super) fn look(wanted: &Wanted, takeover: Option<Takeover>) -> Outcome {
    search::look(wanted, takeover)
}

/// What a call has to do that wants an address which is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seeking {
    /// Wait until its search has ended.
    Await,
    /// Wait a moment: another call's search goes on.
    Wait,
    /// Go on: the kernel will refuse it.
    GoOn,
}

#[derive(Debug)]
struct Task {
    wanted: Wanted,
    call: Option<Caller>,
    takeover: Option<Takeover>,
}

#[derive(Debug)]
struct Answer {
    key: Key,
    call: Option<Caller>,
    outcome: Outcome,
}

#[derive(Debug)]
struct Search {
    key: Key,
    begun: Time,
    is_over: bool,
}

/// The thread, from the first search on.
#[derive(Debug)]
pub(super) struct Occupants {
    takeover: Option<Takeover>,
    helper: Helper<Task, Answer>,
    searches: Vec<Search>,
}

impl Occupants {
    /// `wake` tells when an answer is there.
    pub(super) fn new(wake: Wake) -> Occupants {
        let helper = Helper::new("occupants", 256 * 1024, MAX_WAITING, wake, answer);
        Occupants { takeover: None, helper, searches: Vec::new() }
    }

    pub(super) fn set_takeover(&mut self, takeover: Option<Takeover>) {
        self.takeover = takeover;
    }

    /// Searches who holds an address, unless that was done a moment ago.
    pub(super) fn seek(&mut self, now: Time, wanted: Wanted, call: Caller) -> Seeking {
        let takeover = self.takeover;
        self.searches.retain(|search| now.since(search.begun) < AGAIN_AFTER);
        if let Some(search) = self.searches.iter().find(|search| search.key.matches(&wanted.key)) {
            let waits = takeover.map(|takeover| takeover.kill_after + SEARCH_TAKES);
            let goes_on = !search.is_over && waits.is_some_and(|limit| now.since(search.begun) < limit);
            return if goes_on { Seeking::Wait } else { Seeking::GoOn };
        }
        if self.searches.len() >= MAX_ADDRESSES {
            return Seeking::GoOn;
        }
        let key = wanted.key.clone();
        let task = Task { wanted, call: takeover.map(|_| call), takeover };
        if !self.helper.ask(task) {
            return Seeking::GoOn;
        }
        self.searches.push(Search { key, begun: now, is_over: false });
        if takeover.is_some() { Seeking::Await } else { Seeking::GoOn }
    }

    /// What was found since this was called last, and the calls that have waited for it.
    pub(super) fn take(&mut self) -> (Vec<Report>, Vec<Caller>) {
        let (mut reports, mut calls) = (Vec::new(), Vec::new());
        for answer in self.helper.take() {
            let search = self.searches.iter_mut().find(|search| search.key.matches(&answer.key));
            search.into_iter().for_each(|search| search.is_over = true);
            reports.extend(answer.outcome.reports(&answer.key));
            calls.extend(answer.call);
        }
        (reports, calls)
    }
}

fn answer(Task { wanted, call, takeover }: Task) -> Answer {
    let outcome = look(&wanted, takeover);
    Answer { key: wanted.key, call, outcome }
}
