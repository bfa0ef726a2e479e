//! Unrelated processes that hold an address which a worker binds: the search for them, and, with `--takeover`, the
//! end of those that an earlier supervisor has left.
//!
//! The search scans the descriptors of all processes of the host, so a helper thread makes it. A call that binds the
//! address waits for it only with `--takeover`.

mod search;
mod verdict;

use std::time::Duration;

use rustix::process::Pid;

use super::address::Key;
use super::report::Report;
use super::scans::WaitingCall;
use crate::config::Config;
use crate::policy::Time;
use crate::sys::helper::{Helper, Wake};

/// How long the result of a search holds. The holder is reported once in this time, however often a worker binds the
/// address.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The number of addresses to search in that time, which also bounds the log lines. For a worker that tries all
/// ports, only the first ones are searched.
const MAX_ADDRESSES: usize = 32;

/// The number of searches that may wait.
const MAX_QUEUED: usize = 8;

/// How long calls wait for a search that another call has begun, in addition to the time for ending processes.
const SEARCH_TAKES: Duration = Duration::from_secs(10);

/// The longest time from the stop signal to SIGKILL for a process that was left behind. New workers wait for it.
const LONGEST_STOP: Duration = Duration::from_secs(1);

/// How processes that an earlier supervisor has left are ended.
#[derive(Debug, Clone, Copy)]
pub struct Takeover {
    /// The stop signal.
    pub(super) signal: i32,
    /// The time from the stop signal to SIGKILL.
    pub(super) kill_after: Duration,
}

impl Takeover {
    /// The takeover that the configuration requests, if any.
    #[must_use]
    pub fn of(config: &Config) -> Option<Takeover> {
        let kill_after = config.kill_timeout.min(LONGEST_STOP);
        config.takeover.then_some(Takeover { signal: config.stop_signal.0, kill_after })
    }
}

/// An address that another process holds.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) key: Key,
    /// The server that answers at a path.
    pub(super) answerer: Option<Answerer>,
}

/// A server that answers at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answerer {
    /// The process that called `listen`; it may have ended.
    pub(super) listener: Option<Pid>,
    /// Device and inode number of its file.
    pub(super) file: (u64, u64),
}

/// The result of a search.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The processes that still hold the address; `None`: there are none, or they cannot be identified.
    pub(super) holders: Option<String>,
    /// A line for each process that was ended, or could not be ended.
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

/// Searches for the holders of an address, and ends those that may be ended. This blocks, so the supervisor's loop
/// must not call it.
pub(super) fn find(wanted: &Wanted, takeover: Option<Takeover>) -> Outcome {
    search::run(wanted, takeover)
}

/// What a call to a held address does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seeking {
    /// Wait until its search has ended.
    Await,
    /// Wait a moment: a search of another call is in progress.
    Wait,
    /// Continue: the kernel refuses the bind.
    GoOn,
}

#[derive(Debug)]
struct Task {
    wanted: Wanted,
    call: Option<WaitingCall>,
    takeover: Option<Takeover>,
}

#[derive(Debug)]
struct Answer {
    key: Key,
    call: Option<WaitingCall>,
    outcome: Outcome,
}

#[derive(Debug)]
struct Search {
    key: Key,
    begun: Time,
    is_over: bool,
}

/// The helper thread, which starts with the first search.
#[derive(Debug)]
pub(super) struct Occupants {
    takeover: Option<Takeover>,
    helper: Helper<Task, Answer>,
    searches: Vec<Search>,
    /// The calls that wait for one.
    waiting: Vec<WaitingCall>,
}

impl Occupants {
    /// Searches whose answers are signalled by `wake`.
    pub(super) fn new(wake: Wake) -> Occupants {
        let helper = Helper::new("occupants", 256 * 1024, MAX_QUEUED, wake, answer);
        Occupants { takeover: None, helper, searches: Vec::new(), waiting: Vec::new() }
    }

    pub(super) fn set_takeover(&mut self, takeover: Option<Takeover>) {
        self.takeover = takeover;
    }

    /// Starts a search for the holders of an address, unless a recent result exists.
    pub(super) fn seek(&mut self, now: Time, wanted: Wanted, call: WaitingCall) -> Seeking {
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
        self.waiting.extend(takeover.map(|_| call));
        if takeover.is_some() { Seeking::Await } else { Seeking::GoOn }
    }

    /// The calls that wait for a search.
    pub(super) fn waiting_calls(&self) -> impl Iterator<Item = WaitingCall> {
        self.waiting.iter().copied()
    }

    /// The results since the last call, and the calls that waited for them.
    pub(super) fn take(&mut self) -> (Vec<Report>, Vec<WaitingCall>) {
        let (mut reports, mut calls) = (Vec::new(), Vec::new());
        for answer in self.helper.take() {
            let search = self.searches.iter_mut().find(|search| search.key.matches(&answer.key));
            search.into_iter().for_each(|search| search.is_over = true);
            reports.extend(answer.outcome.reports(&answer.key));
            self.waiting.retain(|waiting| Some(*waiting) != answer.call);
            calls.extend(answer.call);
        }
        (reports, calls)
    }
}

fn answer(Task { wanted, call, takeover }: Task) -> Answer {
    let outcome = find(&wanted, takeover);
    Answer { key: wanted.key, call, outcome }
}
