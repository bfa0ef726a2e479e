//! Reading numbers that the kernel side is writing.

use std::sync::atomic::Ordering::Acquire;

use master_process_common::{Account, Cpu, NONE, Process};

use super::clock::Clock;

/// A worker's account, and the CPUs that it was seen on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) processes: &'a [Process],
    pub(super) cpus: &'a [Cpu],
    pub(super) clock: &'a Clock,
}

/// A CPU that runs a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Busy {
    /// The worker's account.
    pub(super) account: u32,
    /// Which CPU.
    pub(super) cpu: u32,
}

/// How often a worker is read again because one of its CPUs switched in between. A worker with threads on every CPU
/// of a large machine may never hold still; then what it has not been charged for yet waits for the next sample.
const TRIES: u32 = 16;

impl Reading<'_> {
    /// Every CPU that runs a worker, sorted by account.
    pub(super) fn busy(&self, busy: &mut Vec<Busy>) {
        busy.clear();
        for (index, cpu) in self.cpus.iter().enumerate() {
            let account = self.runs_on(cpu);
            if account != NONE {
                busy.extend(
                    narrow(account)
                        .zip(u32::try_from(index).ok())
                        .map(|(account, cpu)| Busy { account, cpu }),
                );
            }
        }
        busy.sort_unstable();
    }

    /// CPU time of a worker until now, in nanoseconds: what it was charged, and what is running on `busy`.
    ///
    /// The kernel side says that it is about to charge a slice, charges it, and says when the next one began. Whoever
    /// finds the same beginning before and after reading the account knows that it does not have this slice.
    pub(super) fn cpu_time(&self, account: &Account, busy: &[Busy]) -> u64 {
        for _ in 0..TRIES {
            let before = self.running(busy);
            let charged = account.cpu_ns.load(Acquire);
            if before.is_some()
                && before.map(|(starts, _)| starts) == self.running(busy).map(|(starts, _)| starts)
            {
                return charged + before.map_or(0, |(_, ns)| ns);
            }
        }
        account.cpu_ns.load(Acquire)
    }

    /// A sum over the beginnings of the slices that run, and how long they have lasted. `None` while one is being charged.
    fn running(&self, busy: &[Busy]) -> Option<(u64, u64)> {
        let (mut starts, mut ns) = (0u64, 0u64);
        for Busy { account, cpu } in busy {
            let cpu = self.cpus.get(*cpu as usize)?;
            let since = cpu.since.load(Acquire);
            if since == 0 {
                return None;
            }
            // Each beginning is later than the one before, so the sum moves with every switch.
            starts = starts.wrapping_add(since);
            if self.runs_on(cpu) == u64::from(*account) {
                ns += self.clock.now().saturating_sub(since);
            }
        }
        Some((starts, ns))
    }

    /// How long the slice has lasted that runs on a CPU, in nanoseconds.
    pub(super) fn slice(&self, cpu: u32) -> u64 {
        let since = self.cpus.get(cpu as usize).map_or(0, |cpu| cpu.since.load(Acquire));
        if since == 0 { 0 } else { self.clock.now().saturating_sub(since) }
    }

    fn runs_on(&self, cpu: &Cpu) -> u64 {
        let place = usize::try_from(cpu.place.load(Acquire)).unwrap_or(0);
        self.processes.get(place).map_or(NONE, |process| process.worker.load(Acquire))
    }
}

/// An account's number as the tables here have it.
pub(super) fn narrow(account: u64) -> Option<u32> {
    u32::try_from(account).ok()
}
