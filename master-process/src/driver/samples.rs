//! The timer of the samples, and what becomes of them.

use std::time::Duration;

use tracing::warn;

use super::deferred::Deferred;
use super::{Driver, Token};
use crate::metrics::Question;
use crate::policy::{Event, Usage, WorkerId};
use crate::sys::signal_disposition::{self, SignalDisposition};
use crate::sys::signal_names;

/// So many workers are named in one line: more than fit into a pipe at once would be cut off with the line's end.
const NAMED: usize = 8;

/// The samples' rhythm, and their place.
#[derive(Debug)]
pub(super) struct Sampling {
    pub(super) interval: Duration,
    /// Kept, so that ten thousand workers cost no allocation a sample.
    taken: Vec<(WorkerId, Usage)>,
}

impl Sampling {
    pub(super) fn new(interval: Duration) -> Sampling {
        Sampling { interval, taken: Vec::new() }
    }
}

impl Driver {
    /// Without a source there is no timer.
    pub(super) fn start_sampling(&mut self) {
        if self.meter.is_on() {
            self.schedule(Deferred::Sample);
        }
    }

    /// Measures all workers and lets the policy judge.
    pub(super) fn sample(&mut self) {
        let mut taken = std::mem::take(&mut self.sampling.taken);
        let alive = self.workers.alive().map(|entry| (entry.id, entry.pid));
        self.meter.sample(alive, &mut |worker, usage| taken.push((worker, usage)));
        let now = self.now();
        for (worker, usage) in taken.drain(..) {
            self.policy.handle(now, Event::Sampled(worker, usage));
        }
        self.sampling.taken = taken;
        if self.meter.sees_orphan() {
            self.trees.survey();
        }
        self.broker.check_listeners();
        self.check_terminal();
        self.start_sampling();
    }

    /// Finds something out about a worker that is over a limit.
    pub(super) fn inspect(&mut self, worker: WorkerId, question: Question) {
        if let Some(answer) = self.inspector.ask(worker, question) {
            self.event(answer);
        }
        self.go_on_inspecting();
    }

    /// Begins with the next question, if none is being looked into.
    fn go_on_inspecting(&mut self) {
        while let Some(worker) = self.inspector.next() {
            let entry = self.workers.get(worker.serial).filter(|entry| entry.end.is_none());
            let members = entry.map(|entry| self.meter.members(worker, entry.pid));
            match self.inspector.start(members) {
                Some(Ok(number)) => self.schedule(Deferred::Inspection(number)),
                Some(Err(answer)) => self.event(answer),
                None => return,
            }
        }
    }

    /// What a look has found.
    pub(super) fn read_inspection(&mut self) {
        if let Some(answer) = self.inspector.take() {
            self.event(answer);
        }
        self.go_on_inspecting();
        self.watch_inspector();
    }

    /// A look takes too long.
    pub(super) fn give_inspection_up(&mut self, number: u64) {
        if let Some(answer) = self.inspector.give_up(number) {
            self.event(answer);
        }
        self.go_on_inspecting();
    }

    pub(super) fn watch_inspector(&mut self) {
        if let Err(error) = self.poller.watch(self.inspector.fd(), Token::Inspected.encode()) {
            warn!("cannot watch the inspector: {error}; workers that exceed a limit may not be replaced");
        }
    }

    /// A worker passes 80 % of its memory limit. The signal is to warn it, not to end it.
    pub(super) fn warn_of_memory(&self, worker: WorkerId) {
        let (Some(number), Some(entry)) = (self.memory_high_signal, self.workers.get(worker.serial)) else {
            return;
        };
        match signal_disposition::of(entry.pid, number) {
            Some(SignalDisposition::Handled) => self.signal(worker, number),
            Some(SignalDisposition::Ignored) => {}
            Some(SignalDisposition::Default) | None => {
                let (name, signal) = (self.name(worker), signal_names::name(number));
                warn!(
                    worker = worker.slot,
                    "{name} exceeded 80 % of --max-memory: {signal} not sent, because it has no handler for it"
                );
            }
        }
    }

    /// The user's SIGUSR2: for the workers that handle it, and for the limits.
    pub(super) fn pass_on_usr2(&mut self) {
        let mut unhandled = Vec::new();
        for entry in self.workers.alive() {
            match signal_disposition::of(entry.pid, libc::SIGUSR2) {
                Some(SignalDisposition::Handled) => self.signal(entry.id, libc::SIGUSR2),
                Some(SignalDisposition::Ignored) => {}
                Some(SignalDisposition::Default) | None => unhandled.push(entry.id),
            }
        }
        if !unhandled.is_empty() {
            unhandled.sort_unstable();
            let workers = unhandled.len();
            let named: Vec<String> =
                unhandled.iter().take(NAMED).map(|worker| self.name(*worker).to_string()).collect();
            let mut names = named.join(", ");
            if workers > NAMED {
                names += &format!(" and {} more", workers - NAMED);
            }
            warn!(workers, "SIGUSR2 not passed on to {names}: without a handler it would end them");
        }
        self.event(Event::ToggleMonitoring);
    }
}
