//! Taking a sample: reading what every worker uses from shared memory.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use super::Ebpf;
use super::load_error::ProgramsDetached;
use super::reading::{Busy, Reading};
use crate::policy::{Usage, WorkerId};
use crate::sys::bpf;

/// The length, in nanoseconds, from which a running slice is interrupted to record the resident memory, which was
/// last recorded when the worker was switched out. In this time a worker can get some hundred pages; in a whole
/// slice, hundreds of megabytes.
const STALE: u64 = 100_000;

/// A sleep during which this CPU switches, to another task or to idle.
const BLINK: Duration = Duration::from_millis(1);

/// The number of such sleeps: a sleep can be over before it has begun.
const BLINKS: u32 = 5;

impl Ebpf {
    /// Reports what every worker with an account uses. This makes one system call for each CPU that runs a worker,
    /// and a sleep if no switch was seen since the last sample.
    ///
    /// # Errors
    /// The programs were detached, so the numbers no longer change.
    pub fn sample(&mut self, each: &mut dyn FnMut(WorkerId, Usage)) -> Result<(), ProgramsDetached> {
        self.check_attached()?;
        self.report_dropped();
        let reading =
            Reading { processes: &self.running.processes, cpus: &self.running.cpus, clock: &self.clock };
        reading.busy(&mut self.busy);
        for Busy { cpu, .. } in &self.busy {
            if reading.slice(*cpu) >= STALE {
                // A CPU that went offline runs nothing. A sample without this is only slightly older.
                let _best_effort = bpf::run_on(*cpu, self.running.refresh.as_fd());
            }
        }

        self.memory.fill(0);
        for process in self.running.used_processes() {
            let account = usize::try_from(process.worker.load(Acquire)).unwrap_or(0);
            let lives = account != 0 && process.ended.load(Acquire) == 0;
            if let Some(memory) = self.memory.get_mut(account).filter(|_| lives) {
                *memory += process.rss.load(Acquire);
            }
        }

        let mut busy = self.busy.as_slice();
        let accounts = self.running.accounts.iter().zip(&self.memory);
        for (number, (entry, (account, memory))) in self.account_table.entries().zip(accounts).enumerate() {
            // Both are in the order of the accounts. A process whose worker has ended may still be running.
            let end = busy.partition_point(|busy| busy.account <= number);
            let (until_here, rest) = busy.split_at(end);
            busy = rest;
            let Some(entry) = entry else { continue };
            let start = until_here.partition_point(|busy| busy.account < number);
            let cpu_ns = reading.cpu_time(account, until_here.get(start..).unwrap_or_default());
            // A slice that could not be separated from the charged time counts in the next sample. The reported time
            // never decreases.
            entry.reported = cpu_ns.saturating_sub(entry.before).max(entry.reported);
            entry.peak = entry.peak.max(*memory);
            each(entry.worker, Usage { cpu_ns: entry.reported, memory: *memory });
        }
        Ok(())
    }

    /// Checks that the programs run. Between two samples this CPU has switched at least twice: away from the
    /// supervisor, and back.
    fn check_attached(&mut self) -> Result<(), ProgramsDetached> {
        let cpus = &self.running.cpus;
        let switches = || cpus.iter().fold(0u64, |sum, cpu| sum.wrapping_add(cpu.switches.load(Relaxed)));
        let mut now = switches();
        for _ in 0..BLINKS {
            if now != self.switches {
                break;
            }
            // The supervisor may not have slept in between, so it does now.
            std::thread::sleep(BLINK);
            now = switches();
        }
        if now == self.switches {
            return Err(ProgramsDetached);
        }
        self.switches = now;
        Ok(())
    }

    /// Logs unwatched processes, once for each sample in which there are more: they are missing in every number.
    fn report_dropped(&mut self) {
        let dropped = self.running.control.first().map_or(0, |control| control.dropped.load(Relaxed));
        if dropped != self.dropped {
            let more = dropped - self.dropped;
            tracing::warn!("{more} processes of workers are not measured: too many at a time");
            self.dropped = dropped;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Ebpf;
    use crate::config::Scope;
    use crate::metrics::ebpf::ProgramsDetached;

    #[test]
    fn programs_that_are_gone_are_missed() {
        let mut ebpf = match Ebpf::load(Scope::Worker, 1) {
            Ok(ebpf) => ebpf,
            Err(error) => master_process_tests::skip!("programs_that_are_gone_are_missed", error),
        };
        // Without any sleep in between.
        for _ in 0..100 {
            assert_eq!(ebpf.sample(&mut |_, _| ()), Ok(()));
        }
        ebpf.detach();
        // The kernel may run the programs for a moment longer.
        let deadline = Instant::now() + Duration::from_secs(10);
        while ebpf.sample(&mut |_, _| ()) == Ok(()) {
            assert!(Instant::now() < deadline, "nobody misses them");
        }
        assert_eq!(ebpf.sample(&mut |_, _| ()), Err(ProgramsDetached));
    }
}
