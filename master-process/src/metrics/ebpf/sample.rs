//! One sample: what every worker uses, read from memory.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use super::Ebpf;
use super::reading::{Busy, Reading};
use super::refusal::Lost;
use crate::policy::{Usage, WorkerId};
use crate::sys::bpf;

/// A slice that has lasted this long is interrupted to see what is resident, in nanoseconds: it was noted when the worker
/// last left a CPU. In this time a worker gets some hundred pages; in a whole slice it can get hundreds of megabytes.
const STALE: u64 = 100_000;

/// A wait that our CPU does not get through without a switch, to somebody else or to being idle.
const BLINK: Duration = Duration::from_millis(1);

/// How often that is tried: a wait can be over before it has begun.
const BLINKS: u32 = 5;

impl Ebpf {
    /// What every worker uses that has an account. No system call, but one for each CPU that runs a worker just now,
    /// and one where nothing seems to run any more.
    ///
    /// # Errors
    /// The programs do not run any more; the numbers would be those of the last sample for ever.
    pub fn sample(&mut self, each: &mut dyn FnMut(WorkerId, Usage)) -> Result<(), Lost> {
        self.look_for_life()?;
        self.look_for_turned_away();
        let reading =
            Reading { processes: &self.running.processes, cpus: &self.running.cpus, clock: &self.clock };
        reading.busy(&mut self.busy);
        for Busy { cpu, .. } in &self.busy {
            if reading.slice(*cpu) >= STALE {
                // A CPU that has gone offline since runs nobody; and a sample without this is only a little older.
                let _best_effort = bpf::run_on(*cpu, self.running.refresh.as_fd());
            }
        }

        self.memory.fill(0);
        for process in self.running.used_places() {
            let account = usize::try_from(process.worker.load(Acquire)).unwrap_or(0);
            let lives = account != 0 && process.ended.load(Acquire) == 0;
            if let Some(memory) = self.memory.get_mut(account).filter(|_| lives) {
                *memory += process.rss.load(Acquire);
            }
        }

        let mut busy = self.busy.as_slice();
        let accounts = self.running.accounts.iter().zip(&self.memory);
        for (number, (entry, (account, memory))) in self.roster.entries().zip(accounts).enumerate() {
            // Both are in the order of the accounts, and who has left an account may still be running.
            let end = busy.partition_point(|busy| busy.account <= number);
            let (until_here, rest) = busy.split_at(end);
            busy = rest;
            let Some(entry) = entry else { continue };
            let start = until_here.partition_point(|busy| busy.account < number);
            let cpu_ns = reading.cpu_time(account, until_here.get(start..).unwrap_or_default());
            // A slice that could not be told from a charged one comes with the next sample; what was said stays said.
            entry.reported = cpu_ns.saturating_sub(entry.before).max(entry.reported);
            entry.peak = entry.peak.max(*memory);
            each(entry.worker, Usage { cpu_ns: entry.reported, memory: *memory });
        }
        Ok(())
    }

    /// Between two samples our own CPU has switched at least twice: from us, and back.
    fn look_for_life(&mut self) -> Result<(), Lost> {
        let cpus = &self.running.cpus;
        let switches = || cpus.iter().fold(0u64, |sum, cpu| sum.wrapping_add(cpu.switches.load(Relaxed)));
        let mut now = switches();
        for _ in 0..BLINKS {
            if now != self.switches {
                break;
            }
            // Unless nobody has waited in between; so we do.
            std::thread::sleep(BLINK);
            now = switches();
        }
        if now == self.switches {
            return Err(Lost);
        }
        self.switches = now;
        Ok(())
    }

    /// What is not watched is missing in every number: worth a line, once for each time that it happens.
    fn look_for_turned_away(&mut self) {
        let turned_away = self.running.control.first().map_or(0, |control| control.turned_away.load(Relaxed));
        if turned_away != self.turned_away {
            let more = turned_away - self.turned_away;
            tracing::warn!("{more} processes of workers are not measured: too many at a time");
            self.turned_away = turned_away;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::Ebpf;
    use crate::config::Scope;
    use crate::metrics::ebpf::Lost;

    #[test]
    fn programs_that_are_gone_are_missed() {
        let mut ebpf = match Ebpf::load(Scope::Worker, 1) {
            Ok(ebpf) => ebpf,
            Err(refusal) => master_process_tests::skip!("programs_that_are_gone_are_missed", refusal),
        };
        // One right after the other, without any wait in between.
        for _ in 0..100 {
            assert_eq!(ebpf.sample(&mut |_, _| ()), Ok(()));
        }
        ebpf.detach();
        // The kernel may run them for a moment more.
        let deadline = Instant::now() + Duration::from_secs(10);
        while ebpf.sample(&mut |_, _| ()) == Ok(()) {
            assert!(Instant::now() < deadline, "nobody misses them");
        }
        assert_eq!(ebpf.sample(&mut |_, _| ()), Err(Lost));
    }
}
