//! What a worker may use, and what its samples have said.

use std::time::Duration;

use super::{Time, Usage};
use crate::config::Limits;

/// What can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `--max-cpu`.
    Cpu,
    /// `--max-memory`.
    Memory,
}

/// The shortest time from ready in which a worker can come to the limit's last strike.
pub(super) fn shortest(limits: &Limits, limit: Limit) -> Duration {
    let failures = match limit {
        Limit::Cpu => limits.cpu_failures,
        Limit::Memory => limits.memory_failures,
    };
    limits.delay.saturating_add(limits.interval.saturating_mul(failures))
}

/// Samples in a row over one limit.
#[derive(Debug, Clone, Copy, Default)]
struct Strikes {
    count: u32,
    /// When the first of them came.
    since: Option<Time>,
    /// When the first row began that came to the last strike. One that is over its limit with short breaks would look
    /// like one that was within it until now, if the last row counted.
    tripped: Option<Time>,
}

impl Strikes {
    fn count(&mut self, now: Time, over: bool, failures: u32) {
        if over {
            self.count = self.count.saturating_add(1);
            let since = *self.since.get_or_insert(now);
            if self.count >= failures {
                self.tripped.get_or_insert(since);
            }
        } else {
            *self = Strikes { tripped: self.tripped, ..Strikes::default() };
        }
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
        u64::try_from(u128::from(self.used) * NS_PER_SECOND / u128::from(self.span)).unwrap_or(u64::MAX)
    }
}

const NS_PER_SECOND: u128 = 1_000_000_000;

/// What a worker's samples have said since it became ready.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Watch {
    /// The worker itself has asked not to be judged.
    paused: bool,
    /// How often it has changed its mind about that.
    changes: u32,
    /// The last sample's moment and CPU time: the next one's is compared with it.
    last: Option<(Time, u64)>,
    cpu: Strikes,
    memory: Strikes,
    /// It was above 80 % of its memory when it was last looked at.
    high: bool,
}

/// A limit's last strike, and every one after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trip {
    pub(super) limit: Limit,
    /// How long the worker had been judged before it went over the limit for too long, the first time.
    pub(super) calm: Duration,
    /// What it used: CPU nanoseconds in a second, or bytes.
    pub(super) used: u64,
}

/// What one sample amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Verdict {
    /// Memory first. One limit that has to wait for its turn must not hide the other.
    pub(super) trips: [Option<Trip>; 2],
    /// Whether it has just passed 80 % of its memory limit.
    pub(super) passed_high: bool,
}

impl Watch {
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
        let Watch { paused, changes, high, .. } = *self;
        *self = Watch { paused, changes, high, ..Watch::default() };
    }

    /// Whether neither limit has a strike against it.
    pub(super) fn is_calm(&self) -> bool {
        self.cpu.count == 0 && self.memory.count == 0
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
        let memory = limits.max_memory.is_some_and(|most| usage.memory > most);
        self.memory.count(now, memory, limits.memory_failures);
        // A second look at the same moment is no sample.
        if let Some(share) = share {
            let over = limits.max_cpu.is_some_and(|most| share.is_more_than(most));
            self.cpu.count(now, over, limits.cpu_failures);
        }
        let trip = |limit, strikes: Strikes, failures: u32, used| {
            let began = strikes.tripped.filter(|_| strikes.count >= failures)?;
            Some(Trip { limit, calm: began.since(ready_at.after(limits.delay)), used })
        };
        let trips = [
            trip(Limit::Memory, self.memory, limits.memory_failures, usage.memory),
            trip(Limit::Cpu, self.cpu, limits.cpu_failures, share.map_or(0, Share::per_second)),
        ];
        Verdict { trips, passed_high }
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
}
