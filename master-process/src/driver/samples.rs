//! The timer of the samples, and the handling of their results.

use std::time::Duration;

use tracing::warn;

use super::deferred::Deferred;
use super::{Driver, Token};
use crate::metrics::Question;
use crate::policy::{Event, Usage, WorkerId};
use crate::sys::signal_disposition::{self, SignalDisposition};
use crate::sys::signal_names;

/// The number of workers that one log line names. A longer line can exceed the size that a pipe writes atomically, and
/// would lose its end.
const NAMED: usize = 8;

/// The interval of the samples, and their buffer.
#[derive(Debug)]
pub(super) struct Sampling {
    pub(super) interval: Duration,
    /// The buffer is reused, so that ten thousand workers cost no allocation per sample.
    taken: Vec<(WorkerId, Usage)>,
}

impl Sampling {
    pub(super) fn new(interval: Duration) -> Sampling {
        Sampling { interval, taken: Vec::new() }
    }
}

impl Driver {
    /// Starts the timer, if there is a source of samples.
    pub(super) fn start_sampling(&mut self) {
        if self.meter.is_on() {
            self.schedule(Deferred::Sample);
        }
    }

    /// Measures all workers and passes the samples to the policy.
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

    /// Asks the inspector a question about a worker that is over a limit.
    pub(super) fn inspect(&mut self, worker: WorkerId, question: Question) {
        if let Some(answer) = self.inspector.ask(worker, question) {
            self.event(answer);
        }
        self.go_on_inspecting();
    }

    /// Starts the next inspection, if none is in progress.
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

    /// Reads the result of an inspection.
    pub(super) fn read_inspection(&mut self) {
        if let Some(answer) = self.inspector.take() {
            self.event(answer);
        }
        self.go_on_inspecting();
        self.watch_inspector();
    }

    /// Abandons an inspection that takes too long.
    pub(super) fn abandon_inspection(&mut self, number: u64) {
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

    /// Signals a worker that exceeded 80 % of its memory limit. The signal is a warning, so a worker without a handler,
    /// which it would end, does not get it.
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

    /// Passes SIGUSR2 of the user on to the workers that handle it, and pauses or resumes the limits.
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
