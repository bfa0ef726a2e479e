//! What a worker may use, and what its samples have said.

use std::time::Duration;

use super::{Busiest, Time, Usage};
use crate::config::Limits;

/// What can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `--max-cpu`.
    Cpu,
    /// `--max-memory`.
    Memory,
}

/// What all threads of a worker but the busiest may use together, in CPU nanoseconds of a second, if it is to count as a
/// single loop that is stuck: a tenth of a CPU. A stuck loop serves nobody, so the program's other threads have nothing
/// to do but their timers, and garbage collection that helps the loop. A program of several threads that is busy with
/// requests is far above this. Less would take a timer thread for work; more would end programs that do work.
const OTHERS: u64 = 100_000_000;

/// The first pause after the PSS of a worker was within its limit, and the longest: each such look doubles it. A look
/// walks the page tables of every process of the worker, seconds of CPU time for a hundred processes that share many
/// gigabytes. At the longest pause that is below a percent; processes that only stop to share what they have, so that
/// their resident memory does not grow, are noticed so much later.
const PSS_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PSS_PAUSE: Duration = Duration::from_secs(600);

/// The samples in a row above a limit that exceed it.
pub(super) fn failures(limits: &Limits, limit: Limit) -> u32 {
    match limit {
        Limit::Cpu => limits.cpu_failures,
        Limit::Memory => limits.memory_failures,
    }
}

/// The value of a limit; 0 where there is none.
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

/// Samples in a row over one limit.
#[derive(Debug, Clone, Copy, Default)]
struct Strikes {
    count: u32,
    /// When the first of them came.
    since: Option<Time>,
    /// When the first row began that came to the last strike and was found to count. One that is over its limit with
    /// short breaks would look like one that was within it until now, if the last row counted.
    first_exceeded: Option<Time>,
}

impl Strikes {
    fn count(&mut self, now: Time, over: bool) {
        if over {
            self.count = self.count.saturating_add(1);
            self.since.get_or_insert(now);
        } else {
            self.end_row();
        }
    }

    fn end_row(&mut self) {
        *self = Strikes { first_exceeded: self.first_exceeded, ..Strikes::default() };
    }

    /// The row so far counts for nothing; the sample at `now` is the first of another.
    fn begin_anew(&mut self, now: Time) {
        *self = Strikes { count: 1, since: Some(now), first_exceeded: self.first_exceeded };
    }

    /// When the worker began to be over its limit for too long; `None`: it is not.
    fn began(&self, failures: u32) -> Option<Time> {
        self.first_exceeded.or(self.since).filter(|_| self.count >= failures)
    }

    /// The row counts.
    fn confirm(&mut self) {
        self.first_exceeded = self.first_exceeded.or(self.since);
    }
}

/// CPU time over the time in which it was used, both in nanoseconds. Ten thousand workers are compared with their
/// limits at every sample: that takes no division.
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

/// When the PSS of a worker is worth a look.
#[derive(Debug, Clone, Copy, Default)]
struct PssLooks {
    /// A look is under way.
    asked: bool,
    /// So many looks have found it within the limit.
    within: u32,
    /// Not before this, unless it has grown.
    not_before: Option<Time>,
    /// With so much resident memory it has grown by what it was below the limit.
    grown: u64,
}

impl PssLooks {
    fn may_ask(&self, now: Time, resident: u64) -> bool {
        !self.asked && (self.not_before.is_none_or(|at| at <= now) || resident >= self.grown)
    }

    fn found_within(&mut self, now: Time, resident: u64, room: u64) {
        let pause = PSS_PAUSE.saturating_mul(2u32.saturating_pow(self.within)).min(LONGEST_PSS_PAUSE);
        self.within = self.within.saturating_add(1);
        self.not_before = Some(now.after(pause));
        self.grown = resident.saturating_add(room);
    }
}

/// What a worker's samples have said since it became ready.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct UsageTracker {
    /// The worker itself has asked not to be judged.
    paused: bool,
    /// How often it has changed its mind about that.
    changes: u32,
    /// It was judged at least once.
    judged: bool,
    /// The last sample's moment and CPU time: the next one's is compared with it.
    last: Option<(Time, u64)>,
    /// The last sample's memory.
    resident: u64,
    cpu: Strikes,
    /// The CPU time that the row's first sample saw.
    row_cpu: u64,
    /// Whether the row counts against the worker. One over the default limit does so only once its threads were looked at.
    cpu_stands: bool,
    /// A look at its threads is under way.
    looking: bool,
    memory: Strikes,
    pss: PssLooks,
    /// It was above 80 % of its memory when it was last looked at.
    high: bool,
}

/// A limit's last strike, and every one after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LimitExceeded {
    pub(super) limit: Limit,
    /// How long the worker had been judged before it went over the limit for too long, the first time.
    pub(super) time_within_limit: Duration,
    /// What it used: CPU nanoseconds in a second, or bytes that are resident.
    pub(super) used: u64,
}

/// What one sample amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Verdict {
    /// It is over its memory limit for too long, unless its PSS says otherwise.
    pub(super) memory: Option<LimitExceeded>,
    /// It is over its CPU limit for too long.
    pub(super) cpu: Option<LimitExceeded>,
    /// Its threads have to be looked at: a row over the default CPU limit has begun or is complete.
    pub(super) wants_threads: bool,
    /// It exceeds the default memory limit at its first judged sample.
    pub(super) exceeds_default: bool,
    /// Whether it has just passed 80 % of its memory limit.
    pub(super) passed_high: bool,
}

impl UsageTracker {
    /// Starts or stops the judging of this one worker, and says how often that was done; what it has done so far is
    /// forgotten. `None` where that was so already: a worker that says it with each job must not be let off.
    pub(super) fn pause(&mut self, paused: bool) -> Option<u32> {
        if self.paused == paused {
            return None;
        }
        self.paused = paused;
        self.changes = self.changes.saturating_add(1);
        self.forget();
        Some(self.changes)
    }

    /// Forgets the strikes: what comes next does not follow on what came before.
    pub(super) fn forget(&mut self) {
        let UsageTracker { paused, changes, judged, looking, pss, high, .. } = *self;
        *self = UsageTracker { paused, changes, judged, looking, pss, high, ..UsageTracker::default() };
    }

    /// Whether neither limit has a strike against it.
    pub(super) fn is_within_limits(&self) -> bool {
        !self.cpu_stands && self.memory.count == 0
    }

    /// Takes one more sample of a worker that became ready at `ready_at`. CPU counts from the second sample on: it is
    /// a difference.
    pub(super) fn judge(&mut self, now: Time, usage: Usage, ready_at: Time, limits: &Limits) -> Verdict {
        if self.paused {
            return Verdict::default();
        }
        let share = self.share_of_cpu(now, usage.cpu_ns);
        let passed_high = self.passed_high(usage.memory, limits);
        if now.since(ready_at) < limits.delay {
            return Verdict { passed_high, ..Verdict::default() };
        }
        let is_first = !std::mem::replace(&mut self.judged, true);
        let is_above = limits.max_memory.is_some_and(|most| usage.memory > most);
        let exceeds_default = is_above && is_first && limits.memory_gives_way;
        self.resident = usage.memory;
        self.memory.count(now, is_above && !exceeds_default);
        // A second look at the same moment is no sample.
        let is_busy = share.is_some_and(|share| limits.max_cpu.is_some_and(|most| share.is_more_than(most)));
        if share.is_some() {
            self.count_cpu(now, usage.cpu_ns, is_busy, limits);
        }
        let is_row = self.cpu.count == 1 || self.cpu.count >= limits.cpu_failures;
        let used = share.map_or(0, Share::per_second);
        Verdict {
            memory: self.exceeded(Limit::Memory, ready_at, limits, usage.memory),
            cpu: self.exceeded(Limit::Cpu, ready_at, limits, used).filter(|_| !limits.cpu_gives_way),
            wants_threads: limits.cpu_gives_way && is_busy && is_row && !self.looking,
            exceeds_default,
            passed_high,
        }
    }

    fn count_cpu(&mut self, now: Time, cpu_ns: u64, is_busy: bool, limits: &Limits) {
        self.cpu.count(now, is_busy);
        if self.cpu.count == 1 {
            self.row_cpu = cpu_ns;
        }
        self.cpu_stands = is_busy && (self.cpu_stands || !limits.cpu_gives_way);
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

    /// What it used of the CPUs since the last sample.
    fn share_of_cpu(&mut self, now: Time, cpu_ns: u64) -> Option<Share> {
        let (before, had) = self.last.replace((now, cpu_ns))?;
        let span = now.nanoseconds_since(before);
        (span > 0).then(|| Share { used: cpu_ns.saturating_sub(had), span })
    }

    fn passed_high(&mut self, memory: u64, limits: &Limits) -> bool {
        let high = limits.max_memory.is_some_and(|most| u128::from(memory) * 10 > u128::from(most) * 8);
        let was = std::mem::replace(&mut self.high, high);
        high && !was
    }

    /// A look at its threads begins.
    pub(super) fn look_at_threads(&mut self) {
        self.looking = true;
    }

    /// What became of that. The exceeded, if a single thread has been over the limit since the row began; else, and where
    /// that cannot be told, the row counts for nothing. The look that comes with a row's first sample is there for the
    /// next one to be compared with.
    pub(super) fn threads_seen(
        &mut self,
        busiest: Option<Busiest>,
        ready_at: Time,
        limits: &Limits,
    ) -> Option<LimitExceeded> {
        self.looking = false;
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

    /// Whether its PSS is to be looked at; that look begins then.
    pub(super) fn look_at_pss(&mut self, now: Time) -> bool {
        let may_ask = self.pss.may_ask(now, self.resident);
        self.pss.asked |= may_ask;
        may_ask
    }

    /// That look is over, whatever came of it. The exceeded that it was made for, if it holds still.
    pub(super) fn pss_seen(&mut self, ready_at: Time, limits: &Limits) -> Option<LimitExceeded> {
        self.pss.asked = false;
        self.exceeded(Limit::Memory, ready_at, limits, self.resident).filter(|_| !self.paused)
    }

    /// Its PSS is within the limit, by so much: the strikes start anew.
    pub(super) fn is_within_by_pss(&mut self, now: Time, room: u64) {
        self.memory.end_row();
        self.pss.found_within(now, self.resident, room);
    }

    /// The strikes against its memory count.
    pub(super) fn confirm_memory(&mut self) {
        self.memory.confirm();
    }

    /// Its memory has no limit any more.
    pub(super) fn forget_memory(&mut self) {
        self.memory = Strikes::default();
    }
}

/// Whether a worker, of which all threads and children together used `all`, was one loop and hardly anything else.
fn is_single_loop(all: Share, busiest: Busiest, limits: &Limits) -> bool {
    let Busiest { span_ns, cpu_ns } = busiest;
    let (all_ns, loop_ns) = (all.per_second(), Share { used: cpu_ns, span: span_ns }.per_second());
    let others = all_ns.saturating_sub(loop_ns);
    all.span > 0 && span_ns > 0 && limits.max_cpu.is_some_and(|most| loop_ns >= most) && others < OTHERS
}
