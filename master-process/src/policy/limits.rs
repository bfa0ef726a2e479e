//! The limits of a worker, and what its samples have shown.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Before, Busiest, Time, Usage};
use crate::config::Limits;

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    /// `--max-cpu`.
    Cpu,
    /// `--max-memory`.
    Memory,
}

/// The CPU time, in nanoseconds per second, that all threads but the busiest may use together for a worker to count
/// as a single stuck loop: a tenth of a CPU. A stuck loop serves no requests, so the other threads run only timers
/// and the garbage collection for the loop. A program whose threads handle requests is far above this. With a lower
/// value, a timer thread would count as work; with a higher one, the limit would end programs that work.
const OTHERS: u64 = 100_000_000;

/// The first pause after the PSS of a worker was within its limit, and the longest one: each such inspection doubles the
/// pause. An inspection walks the page tables of all processes of the worker, which takes seconds of CPU time for a hundred
/// processes that share many gigabytes. At the longest pause that is below a percent. Processes that stop sharing
/// memory, so that their resident memory does not grow, are noticed that much later.
const PSS_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PSS_PAUSE: Duration = Duration::from_secs(600);

/// The number of samples in a row above a limit that exceed it.
pub(super) fn failures(limits: &Limits, limit: Limit) -> u32 {
    match limit {
        Limit::Cpu => limits.cpu_failures,
        Limit::Memory => limits.memory_failures,
    }
}

/// The value of a limit; 0 if there is none.
pub(super) fn most(limits: &Limits, limit: Limit) -> u64 {
    match limit {
        Limit::Cpu => limits.max_cpu,
        Limit::Memory => limits.max_memory,
    }
    .unwrap_or(0)
}

/// The shortest time from ready in which a worker can exceed a limit.
pub(super) fn shortest(limits: &Limits, limit: Limit) -> Duration {
    limits.delay.saturating_add(limits.interval.saturating_mul(failures(limits, limit)))
}

/// The samples in a row above one limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Violations {
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    count: u32,
    /// The time of the first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<Time>,
    /// The start of the first row that was long enough and was confirmed. If the last row counted instead, a worker
    /// that is above its limit with short breaks would seem to have been within it until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_exceeded: Option<Time>,
}

impl Violations {
    fn count(&mut self, now: Time, over: bool) {
        if over {
            self.count = self.count.saturating_add(1);
            self.since.get_or_insert(now);
        } else {
            self.end_row();
        }
    }

    fn end_row(&mut self) {
        *self = Violations { first_exceeded: self.first_exceeded, ..Violations::default() };
    }

    /// Discards the row; the sample at `now` is the first of a new one.
    fn begin_anew(&mut self, now: Time) {
        *self = Violations { count: 1, since: Some(now), first_exceeded: self.first_exceeded };
    }

    /// When the worker began to exceed its limit; `None` if it does not.
    fn began(&self, failures: u32) -> Option<Time> {
        self.first_exceeded.or(self.since).filter(|_| self.count >= failures)
    }

    /// Confirms the row.
    fn confirm(&mut self) {
        self.first_exceeded = self.first_exceeded.or(self.since);
    }
}

/// CPU time and the time span in which it was used, in nanoseconds. Ten thousand workers are compared with their
/// limits at each sample, so the comparison does not divide.
#[derive(Debug, Clone, Copy)]
struct Share {
    used: u64,
    span: u64,
}

impl Share {
    fn is_more_than(self, per_second: u64) -> bool {
        u128::from(self.used) * NS_PER_SECOND > u128::from(per_second) * u128::from(self.span)
    }

    /// CPU nanoseconds in a second.
    fn per_second(self) -> u64 {
        let span = u128::from(self.span.max(1));
        u64::try_from(u128::from(self.used) * NS_PER_SECOND / span).unwrap_or(u64::MAX)
    }
}

const NS_PER_SECOND: u128 = 1_000_000_000;

/// When to measure the PSS of a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct PssLooks {
    /// The PSS is being measured.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    requested: bool,
    /// The number of inspections that found it within the limit.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    within: u32,
    /// The earliest time of the next inspection, unless the worker has grown.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<Time>,
    /// The resident memory at which the worker has grown by what it was below the limit.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    grown: u64,
}

impl PssLooks {
    fn may_ask(&self, now: Time, resident: u64) -> bool {
        !self.requested && (self.not_before.is_none_or(|at| at <= now) || resident >= self.grown)
    }

    fn found_within(&mut self, now: Time, resident: u64, room: u64) {
        let pause = PSS_PAUSE.saturating_mul(2u32.saturating_pow(self.within)).min(LONGEST_PSS_PAUSE);
        self.within = self.within.saturating_add(1);
        self.not_before = Some(now.after(pause));
        self.grown = resident.saturating_add(room);
    }
}

/// What a worker's samples have shown since it became ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct UsageTracker {
    /// The worker has paused its limits.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    paused: bool,
    /// The number of times it has paused or resumed them.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    changes: u32,
    /// It was judged at least once.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    judged: bool,
    /// Samples count from here on: one whose predecessor is older is the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Time>,
    /// The time and the CPU time of the last sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<(Time, u64)>,
    /// The memory at the last sample.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    resident: u64,
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    cpu: Violations,
    /// The CPU time at the first sample of the row.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    row_cpu: u64,
    /// Whether the row counts against the worker. Above the default limit it does so only after its threads were
    /// examined.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    cpu_stands: bool,
    /// Its threads are being examined.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    inspecting: bool,
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    memory: Violations,
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    pss: PssLooks,
    /// It was above 80 % of its memory limit at the last sample.
    #[serde(skip_serializing_if = "crate::forms::is_default")]
    high: bool,
}

/// A worker exceeds a limit: at the sample that completes the row, and at each one after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LimitExceeded {
    pub(super) limit: Limit,
    /// How long the worker was judged before it first exceeded the limit.
    pub(super) time_within_limit: Duration,
    /// What it used: CPU nanoseconds per second, or bytes of resident memory.
    pub(super) used: u64,
}

/// The result of one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Verdict {
    /// It exceeds its memory limit, unless its PSS is within it.
    pub(super) memory: Option<LimitExceeded>,
    /// It exceeds its CPU limit.
    pub(super) cpu: Option<LimitExceeded>,
    /// Its threads have to be examined: a row above the default CPU limit has begun or is complete.
    pub(super) wants_threads: bool,
    /// It exceeds the default memory limit at its first judged sample.
    pub(super) exceeds_default: bool,
    /// It has just exceeded 80 % of its memory limit.
    pub(super) passed_high: bool,
}

impl UsageTracker {
    /// Pauses or resumes the limits of this worker, discards its samples, and returns the number of such changes.
    /// Returns `None` if nothing changes: a worker that sends the message with each job must not escape its limits.
    pub(super) fn pause(&mut self, now: Time, paused: bool) -> Option<u32> {
        if self.paused == paused {
            return None;
        }
        self.paused = paused;
        self.changes = self.changes.saturating_add(1);
        self.forget(now);
        Some(self.changes)
    }

    /// The samples are not judged from now on. A sample was taken in each interval until now, also if it was not reported.
    pub(super) fn ends_judging(&mut self, now: Time, ready_at: Time, limits: &Limits) {
        let from = ready_at.after(limits.delay);
        let from = self.from.map_or(from, |resumed| resumed.max(from));
        self.judged |= !self.paused && now >= from.after(limits.interval);
    }

    /// Discards the rows: the next samples do not continue them.
    pub(super) fn forget(&mut self, now: Time) {
        let UsageTracker { paused, changes, judged, inspecting, pss, high, .. } = *self;
        let from = Some(now);
        *self =
            UsageTracker { from, paused, changes, judged, inspecting, pss, high, ..UsageTracker::default() };
    }

    /// Whether no sample counts against the worker.
    pub(super) fn is_within_limits(&self) -> bool {
        !self.cpu_stands && self.memory.count == 0
    }

    /// Judges a sample of a worker that became ready at `ready_at`. CPU time is a difference, so it counts from the
    /// second sample on. Samples within the limits may be missing, but for the first one after a sample above them.
    pub(super) fn judge(&mut self, now: Time, usage: Usage, ready_at: Time, limits: &Limits) -> Verdict {
        if self.paused {
            return Verdict::default();
        }
        let before = usage.before.map(|before| (now.before(before.ago), before));
        let from = self.from.map_or(ready_at, |from| from.max(ready_at));
        let share = before.filter(|(at, _)| *at >= from).and_then(|(_, before)| share_of_cpu(before));
        self.last = Some((now, usage.cpu_ns));
        let passed_high = self.passed_high(usage.memory, limits);
        if now.since(ready_at) < limits.delay {
            return Verdict { passed_high, ..Verdict::default() };
        }
        // The sample before was judged, and was within the limit, if it was taken after the delay.
        let judged_before = before.is_some_and(|(at, _)| at >= from.max(ready_at.after(limits.delay)));
        let is_first = !std::mem::replace(&mut self.judged, true) && !judged_before;
        let is_above = limits.max_memory.is_some_and(|most| usage.memory > most);
        let exceeds_default = is_above && is_first && limits.memory_is_default;
        self.resident = usage.memory;
        self.memory.count(now, is_above && !exceeds_default);
        // A second sample at the same time does not count.
        let is_busy = share.is_some_and(|share| limits.max_cpu.is_some_and(|most| share.is_more_than(most)));
        if share.is_some() {
            self.count_cpu(now, usage.cpu_ns, is_busy, limits);
        }
        let is_row = self.cpu.count == 1 || self.cpu.count >= limits.cpu_failures;
        let used = share.map_or(0, Share::per_second);
        Verdict {
            memory: self.exceeded(Limit::Memory, ready_at, limits, usage.memory),
            cpu: self.exceeded(Limit::Cpu, ready_at, limits, used).filter(|_| !limits.cpu_is_default),
            wants_threads: limits.cpu_is_default && is_busy && is_row && !self.inspecting,
            exceeds_default,
            passed_high,
        }
    }

    fn count_cpu(&mut self, now: Time, cpu_ns: u64, is_busy: bool, limits: &Limits) {
        self.cpu.count(now, is_busy);
        if self.cpu.count == 1 {
            self.row_cpu = cpu_ns;
        }
        self.cpu_stands = is_busy && (self.cpu_stands || !limits.cpu_is_default);
        if self.cpu_stands && self.cpu.count >= limits.cpu_failures {
            self.cpu.confirm();
        }
    }

    fn exceeded(&self, limit: Limit, ready_at: Time, limits: &Limits, used: u64) -> Option<LimitExceeded> {
        let began = match limit {
            Limit::Cpu => self.cpu.began(limits.cpu_failures),
            Limit::Memory => self.memory.began(limits.memory_failures),
        }?;
        Some(LimitExceeded { limit, time_within_limit: began.since(ready_at.after(limits.delay)), used })
    }

    fn passed_high(&mut self, memory: u64, limits: &Limits) -> bool {
        let high = limits.max_memory.is_some_and(|most| u128::from(memory) * 10 > u128::from(most) * 8);
        let was = std::mem::replace(&mut self.high, high);
        high && !was
    }

    /// The examination of its threads begins.
    pub(super) fn look_at_threads(&mut self) {
        self.inspecting = true;
    }

    /// Handles the result of examining the threads. If a single thread has exceeded the limit since the row began,
    /// returns that. If not, or if it is unknown, the row is discarded. The inspection at the first sample of a row is the
    /// one to compare with.
    pub(super) fn threads_seen(
        &mut self,
        busiest: Option<Busiest>,
        ready_at: Time,
        limits: &Limits,
    ) -> Option<LimitExceeded> {
        self.inspecting = false;
        if self.paused || self.cpu.count < limits.cpu_failures {
            return None;
        }
        let ((at, cpu_ns), since) = (self.last?, self.cpu.since?);
        let all = Share { used: cpu_ns.saturating_sub(self.row_cpu), span: at.nanoseconds_since(since) };
        if !busiest.is_some_and(|busiest| is_single_loop(all, busiest, limits)) {
            self.cpu.begin_anew(at);
            (self.row_cpu, self.cpu_stands) = (cpu_ns, false);
            return None;
        }
        self.cpu_stands = true;
        self.cpu.confirm();
        self.exceeded(Limit::Cpu, ready_at, limits, all.per_second())
    }

    /// Whether its PSS has to be measured now; if so, the inspection begins.
    pub(super) fn look_at_pss(&mut self, now: Time) -> bool {
        let may_ask = self.pss.may_ask(now, self.resident);
        self.pss.requested |= may_ask;
        may_ask
    }

    /// The inspection has ended. Returns the limit that it was made for, if the worker still exceeds it.
    pub(super) fn pss_seen(&mut self, ready_at: Time, limits: &Limits) -> Option<LimitExceeded> {
        self.pss.requested = false;
        self.exceeded(Limit::Memory, ready_at, limits, self.resident).filter(|_| !self.paused)
    }

    /// Its PSS is within the limit by `room` bytes: the row is discarded.
    pub(super) fn is_within_by_pss(&mut self, now: Time, room: u64) {
        self.memory.end_row();
        self.pss.found_within(now, self.resident, room);
    }

    /// Confirms the row above the memory limit.
    pub(super) fn confirm_memory(&mut self) {
        self.memory.confirm();
    }

    /// Its memory no longer has a limit.
    pub(super) fn forget_memory(&mut self) {
        self.memory = Violations::default();
    }
}

/// The CPU time since the sample before.
fn share_of_cpu(before: Before) -> Option<Share> {
    let Before { span_ns, used_ns, .. } = before;
    (span_ns > 0).then_some(Share { used: used_ns, span: span_ns })
}

/// Whether a worker whose threads and children used `all` together was a single loop and hardly anything else.
fn is_single_loop(all: Share, busiest: Busiest, limits: &Limits) -> bool {
    let Busiest { span_ns, cpu_ns } = busiest;
    let (all_ns, loop_ns) = (all.per_second(), Share { used: cpu_ns, span: span_ns }.per_second());
    let others = all_ns.saturating_sub(loop_ns);
    all.span > 0 && span_ns > 0 && limits.max_cpu.is_some_and(|most| loop_ns >= most) && others < OTHERS
}
