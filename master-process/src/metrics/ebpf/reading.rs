//! Reading numbers while the programs write them.

use std::sync::atomic::Ordering::Acquire;

use master_process_common::{Account, Cpu, Process};

use super::clock::Clock;

/// The memory that holds what runs on each CPU, and the clock.
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
    pub(super) account: usize,
    /// Which CPU.
    pub(super) cpu: usize,
}

/// The time slices that are running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slices {
    /// The sum of their start times. Each start on a CPU is later than the previous one, so every switch changes the
    /// sum.
    starts: u64,
    /// Their total length so far, in nanoseconds.
    ns: u64,
}

/// How often a worker is read again because one of its CPUs switched meanwhile. A worker with threads on every CPU of
/// a large machine may never be read without a switch. Its running slices then count in the next sample.
const TRIES: u32 = 16;

impl Reading<'_> {
    /// The CPUs that run a worker, sorted by account.
    pub(super) fn busy(&self, busy: &mut Vec<Busy>) {
        busy.clear();
        let all =
            self.cpus.iter().enumerate().map(|(index, cpu)| Busy { account: self.runs_on(cpu), cpu: index });
        busy.extend(all.filter(|busy| busy.account != 0));
        busy.sort_unstable();
    }

    /// The CPU time of a worker until now, in nanoseconds: what it was charged, and its running slices on `busy`.
    ///
    /// The program marks the slice as being charged, charges it, and records the start of the next one. A reader that
    /// finds the same start before and after reading the account knows that the account does not include the slice.
    pub(super) fn cpu_time(&self, account: &Account, busy: &[Busy]) -> u64 {
        for _ in 0..TRIES {
            let Some(running) = self.running(busy) else { continue };
            let charged = account.cpu_ns.load(Acquire);
            if self.running(busy).is_some_and(|later| later.starts == running.starts) {
                return charged + running.ns;
            }
        }
        account.cpu_ns.load(Acquire)
    }

    /// The running slices of one worker; `None` while one of them is being charged.
    fn running(&self, busy: &[Busy]) -> Option<Slices> {
        let mut slices = Slices { starts: 0, ns: 0 };
        for Busy { account, cpu } in busy {
            let cpu = self.cpus.get(*cpu)?;
            let since = cpu.since.load(Acquire);
            if since == 0 {
                return None;
            }
            slices.starts = slices.starts.wrapping_add(since);
            // The worker may have been switched out and charged in the meantime.
            if self.runs_on(cpu) == *account {
                slices.ns += self.clock.now().saturating_sub(since);
            }
        }
        Some(slices)
    }

    /// The length of the slice that runs on a CPU so far, in nanoseconds.
    pub(super) fn slice(&self, cpu: usize) -> u64 {
        let since = self.cpus.get(cpu).map_or(0, |cpu| cpu.since.load(Acquire));
        if since == 0 { 0 } else { self.clock.now().saturating_sub(since) }
    }

    /// The account that is charged for what runs on a CPU; 0 if there is none.
    fn runs_on(&self, cpu: &Cpu) -> usize {
        let index = usize::try_from(cpu.index.load(Acquire)).unwrap_or(0);
        let worker = self.processes.get(index).map_or(0, |process| process.worker.load(Acquire));
        usize::try_from(worker).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::{Relaxed, Release};
    use std::time::Duration;

    use master_process_common::{Account, Cpu, Process};

    use super::{Busy, Clock, Reading};

    /// Worker 1 at index 1, worker 2 at index 2.
    fn processes() -> Vec<Process> {
        let processes: Vec<Process> = (0..3).map(|_| Process::default()).collect();
        processes[1].worker.store(1, Relaxed);
        processes[2].worker.store(2, Relaxed);
        processes
    }

    fn cpu(index: u64, since: u64) -> Cpu {
        let cpu = Cpu::default();
        cpu.index.store(index, Relaxed);
        cpu.since.store(since, Relaxed);
        cpu
    }

    #[test]
    fn what_runs_is_added_to_what_was_charged() {
        let (processes, clock, account) = (processes(), Clock::new(), Account::default());
        let second_ago = clock.now() - 1_000_000_000;
        let cpus = [cpu(0, second_ago), cpu(1, second_ago), cpu(2, second_ago), cpu(1, second_ago)];
        let reading = Reading { processes: &processes, cpus: &cpus, clock: &clock };
        let mut busy = Vec::new();
        reading.busy(&mut busy);
        assert_eq!(
            busy,
            [Busy { account: 1, cpu: 1 }, Busy { account: 1, cpu: 3 }, Busy { account: 2, cpu: 2 }]
        );
        account.cpu_ns.store(5_000_000_000, Relaxed);
        let found = reading.cpu_time(&account, &busy[..2]);
        assert!((7_000_000_000..7_500_000_000).contains(&found), "{found}");
    }

    #[test]
    fn a_worker_that_has_left_its_cpu_has_been_charged() {
        let (processes, clock, account) = (processes(), Clock::new(), Account::default());
        let cpus = [cpu(2, 1)];
        let reading = Reading { processes: &processes, cpus: &cpus, clock: &clock };
        assert_eq!(reading.cpu_time(&account, &[Busy { account: 1, cpu: 0 }]), 0);
    }

    #[test]
    fn a_cpu_that_never_holds_still_is_not_waited_for() {
        let (processes, clock, account) = (processes(), Clock::new(), Account::default());
        account.cpu_ns.store(3, Relaxed);
        let cpus = [cpu(1, 0)];
        let reading = Reading { processes: &processes, cpus: &cpus, clock: &clock };
        assert_eq!(reading.cpu_time(&account, &[Busy { account: 1, cpu: 0 }]), 3);
    }

    #[test]
    fn no_slice_is_counted_twice_or_left_out() {
        let (processes, clock, account) = (processes(), Clock::new(), Account::default());
        let begun = clock.now();
        let cpus = [cpu(1, begun)];
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // What the program does, in its order, for a worker that is switched out and in at once.
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    let (now, since) = (clock.now(), cpus[0].since.load(Relaxed));
                    cpus[0].since.store(0, Release);
                    account.cpu_ns.fetch_add(now - since, Release);
                    cpus[0].since.store(now, Release);
                    std::hint::spin_loop();
                }
            });
            let reading = Reading { processes: &processes, cpus: &cpus, clock: &clock };
            let until = begun + u64::try_from(Duration::from_millis(200).as_nanos()).expect("a moment");
            let mut last = 0;
            while clock.now() < until {
                let before = clock.now() - begun;
                let found = reading.cpu_time(&account, &[Busy { account: 1, cpu: 0 }]);
                let after = clock.now() - begun;
                assert!(found <= after, "{found} of {after}");
                // If no read succeeds without a switch, only what was charged is reported.
                if found >= before {
                    assert!(found >= last, "{found} after {last}");
                    last = found;
                }
            }
            done.store(true, Relaxed);
            assert!(last > 0, "it never held still");
        });
    }
}
