//! Samples: their timer, their way to the policy, and the inspection of a worker that is over a limit.

use std::time::Duration;

use rustix::process::Pid;
use tracing::{info, warn};

use super::context::{Context, Deferred, RETRY_AFTER, Token};
use super::signals::Tty;
use crate::config::Config;
use crate::control::What;
use crate::metrics::{Question, TIME_OUT};
use crate::policy::{Event, Usage, WorkerId};
use crate::sys::signal_disposition::{self, SignalDisposition};
use crate::sys::signal_names;

/// The interval of the samples, and their buffer.
#[derive(Debug)]
pub(super) struct Sampling {
    interval: Duration,
    /// The signal to a worker that comes close to its memory limit.
    memory_high_signal: Option<i32>,
    /// The buffer is reused, so that ten thousand workers cost no allocation per sample.
    taken: Vec<(WorkerId, Usage)>,
}

impl Sampling {
    pub(super) fn new(config: &Config) -> Sampling {
        let memory_high_signal = config.memory_high_signal.map(|signal| signal.0);
        Sampling { interval: config.limits.interval, memory_high_signal, taken: Vec::new() }
    }

    /// Begins to measure. To be called once; see [`Meter::begin`](crate::metrics::Meter::begin).
    pub(super) fn begin(&mut self, cx: &mut Context, tty: &Tty) {
        let watched = cx.meter.begin().map(|fd| cx.poller.watch(fd, Token::Measuring.encode()));
        match watched {
            Some(Ok(())) => {}
            // Without a watch, the answer is waited for at the next event.
            Some(Err(_)) | None => self.begun(cx, tty),
        }
    }

    /// The source of the samples may have been chosen.
    pub(super) fn begun(&mut self, cx: &mut Context, tty: &Tty) {
        let alive = cx.workers.alive().map(|entry| (entry.id, entry.pid));
        let (has_begun, says) = cx.meter.take_begun(alive);
        if !has_begun {
            cx.schedule(RETRY_AFTER, Deferred::Measuring);
            return;
        }
        if let Some(says) = says {
            info!("{says}");
        }
        for (pid, started, worker) in cx.trees.owned() {
            cx.meter.adopt(worker, pid, started);
        }
        let source = cx.meter.source().into();
        cx.journal.record(What::Monitor { source });
        watch_samples(cx);
        self.start_timer(cx, tty);
    }

    /// Starts the timer, if the supervisor takes the samples, or if there is a terminal to be checked.
    fn start_timer(&self, cx: &mut Context, tty: &Tty) {
        if cx.meter.takes_samples() || cx.meter.is_on() && tty.has_terminal() {
            cx.schedule(self.interval, Deferred::Sample);
        }
    }

    /// Passes the samples to the policy. The terminal and the listeners are checked at the same time, so that they need no
    /// timer of their own.
    pub(super) fn sample(&mut self, cx: &mut Context, tty: &mut Tty) {
        self.pass_on(cx);
        cx.broker.check_listeners();
        tty.check(cx);
        self.start_timer(cx, tty);
    }

    /// Reads the samples that the kernel reports.
    pub(super) fn read(&mut self, cx: &mut Context) {
        self.pass_on(cx);
        watch_samples(cx);
    }

    fn pass_on(&mut self, cx: &mut Context) {
        cx.meter.sample(&mut |worker, usage| self.taken.push((worker, usage)));
        let now = cx.now();
        for (worker, usage) in self.taken.drain(..) {
            cx.policy.handle(now, Event::Sampled(worker, usage));
            if !cx.policy.limits_memory_of(worker) {
                cx.meter.lift_memory_limit(worker);
            }
        }
        if cx.meter.sees_orphan() {
            cx.trees.survey();
        }
        if cx.meter.sees_closed() {
            cx.broker.listener_closed(cx.now());
        }
    }

    /// Signals a worker that exceeded 80 % of its memory limit. The signal is a warning, so a worker without a handler,
    /// which it would end, does not get it.
    pub(super) fn warn_of_memory(&self, cx: &Context, worker: WorkerId) {
        let (Some(number), Some(entry)) = (self.memory_high_signal, cx.workers.get(worker.serial)) else {
            return;
        };
        match signal_disposition::of(entry.pid, number) {
            Some(SignalDisposition::Handled) => cx.workers.signal(worker, number),
            Some(SignalDisposition::Ignored) => {}
            Some(SignalDisposition::Default) | None => {
                let (name, signal) = (cx.workers.name(worker), signal_names::name(number));
                warn!(
                    worker = worker.slot,
                    "{name} exceeded 80 % of --max-memory: {signal} not sent, because it has no handler for it"
                );
            }
        }
    }
}

fn watch_samples(cx: &mut Context) {
    let watched = cx.meter.events().map(|fd| cx.poller.watch(fd, Token::Samples.encode()));
    if let Some(Err(error)) = watched {
        warn!("cannot watch the samples: {error}; workers that exceed a limit may not be replaced");
    }
}

/// The worker runs as `pid`: it is measured from now on.
pub(super) fn measure(cx: &mut Context, worker: WorkerId, pid: Pid) {
    let took_samples = cx.meter.takes_samples();
    let alive = cx.workers.alive().map(|entry| (entry.id, entry.pid));
    cx.meter.launched(worker, pid, alive);
    if cx.meter.takes_samples() && !took_samples {
        cx.schedule(Duration::ZERO, Deferred::Sample);
    }
}

/// Requests an inspection of a worker that is over a limit.
pub(super) fn inspect(cx: &mut Context, worker: WorkerId, question: Question) {
    if let Some(answer) = cx.inspector.ask(worker, question) {
        cx.event(answer);
    }
    start_next_inspection(cx);
}

/// Starts the next inspection, if none is in progress.
fn start_next_inspection(cx: &mut Context) {
    while let Some(worker) = cx.inspector.next() {
        let entry = cx.workers.get(worker.serial).filter(|entry| entry.end.is_none());
        let members = entry.map(|entry| cx.meter.members(worker, entry.pid));
        match cx.inspector.start(members) {
            Some(Ok(number)) => cx.schedule(TIME_OUT, Deferred::Inspection(number)),
            Some(Err(answer)) => cx.event(answer),
            None => return,
        }
    }
}

/// Reads the result of an inspection.
pub(super) fn read_inspection(cx: &mut Context) {
    if let Some(answer) = cx.inspector.take() {
        cx.event(answer);
    }
    start_next_inspection(cx);
    watch_inspector(cx);
}

/// Abandons an inspection that takes too long.
pub(super) fn abandon_inspection(cx: &mut Context, number: u64) {
    if let Some(answer) = cx.inspector.give_up(number) {
        cx.event(answer);
    }
    start_next_inspection(cx);
}

pub(super) fn watch_inspector(cx: &mut Context) {
    if let Err(error) = cx.poller.watch(cx.inspector.fd(), Token::Inspected.encode()) {
        warn!("cannot watch the inspector: {error}; workers that exceed a limit may not be replaced");
    }
}
