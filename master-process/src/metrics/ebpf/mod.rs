//! The eBPF source: programs in the kernel charge workers as they run, and a sample reads memory.

mod btf;
mod clock;
mod layout;
mod load;
mod object;
mod reading;
mod refusal;
mod roster;
mod shared;
mod sizes;

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::Duration;

use master_process_common::{Account, NONE};

pub use self::refusal::{Lost, Refusal};

use self::clock::Clock;
use self::load::Running;
use self::reading::{Busy, Reading, narrow};
use self::roster::Roster;
use self::sizes::Sizes;
use super::{Killer, LastWords};
use crate::config::Scope;
use crate::policy::{Usage, WorkerId};
use crate::sys::bpf;

/// A slice that has lasted this long is interrupted to see what is resident, in nanoseconds: shorter ones end by
/// themselves. On an ordinary CPU even a busy loop that is alone is switched out a few times a second, so this is for
/// CPUs that were taken away from the scheduler.
const STALE: u64 = 1_000_000_000;

/// A wait that our CPU does not get through without a switch, to somebody else or to being idle.
const BLINK: Duration = Duration::from_millis(1);

/// How often that is tried: a wait can be over before it has begun.
const BLINKS: u32 = 5;

/// The programs, and the memory that we share with them.
#[derive(Debug)]
pub struct Ebpf {
    running: Running,
    roster: Roster,
    clock: Clock,
    /// How many switches there had been at the last sample.
    switches: u64,
    /// How many processes had been turned away at the last sample.
    turned_away: u64,
    /// Used by each sample anew: memory by account, and the CPUs that run workers.
    memory: Vec<u64>,
    busy: Vec<Busy>,
}

impl Ebpf {
    /// Loads the programs, to watch so many workers at a time, twice as many in a reload.
    ///
    /// # Errors
    /// Why that is not to be had here. What the verifier says goes to the log at debug level.
    pub fn load(scope: Scope, workers: u32) -> Result<Ebpf, Refusal> {
        let sizes = Sizes::new(scope, workers);
        Ok(Ebpf {
            running: load::start(scope, sizes)?,
            roster: Roster::new(sizes.workers),
            clock: Clock::new(),
            switches: 0,
            turned_away: 0,
            memory: vec![0; sizes.accounts() as usize],
            busy: Vec::new(),
        })
    }

    /// Announces that the next process which this process forks is this worker. Threads do not count.
    pub fn arm(&mut self, worker: WorkerId) {
        let Running { processes, accounts, control, .. } = &self.running;
        let is_vacant = |account: u32| {
            processes.get(account as usize).is_some_and(|process| process.tgid.load(Acquire) == 0)
        };
        let Some(account) = self.roster.enter(worker, is_vacant) else {
            // More than three workers for each that there may be: some were never told to have ended.
            tracing::debug!("worker {} is not watched: no account is free", worker.serial);
            return;
        };
        if let (Some(entry), Some(account)) = (self.roster.entry(account), accounts.get(account as usize)) {
            entry.before = account.cpu_ns.load(Acquire);
            account.peak.store(0, Relaxed);
            account.oom.store(0, Relaxed);
            account.signal.store(0, Relaxed);
        }
        if let Some(control) = control.first() {
            control.armed.store(account.into(), Release);
        }
    }

    /// Says whether that process came to be. One that was not seen is not watched.
    pub fn launched(&mut self, worker: WorkerId, started: bool) {
        let Some(account) = self.roster.account(worker) else { return };
        let armed = u64::from(account);
        let seen = self.running.control.first().is_none_or(|control| {
            // Whoever was watched has taken it back.
            control.armed.compare_exchange(armed, NONE, AcqRel, Acquire).is_err()
        });
        if started && !seen {
            tracing::debug!("worker {} is not watched: its start was not seen", worker.serial);
        }
        if !(started && seen) {
            self.forget(worker);
        }
    }

    /// What every worker uses that has an account. No system call, but one for each CPU that a worker has had to itself
    /// for a second, and one where nothing seems to run any more.
    ///
    /// # Errors
    /// The programs do not run any more; the numbers would be those of the last sample for ever.
    pub fn sample(&mut self, each: &mut dyn FnMut(WorkerId, Usage)) -> Result<(), Lost> {
        self.look_for_life()?;
        let Running { processes, accounts, cpus, control, refresh, .. } = &self.running;
        let reading = Reading { processes, cpus, clock: &self.clock };

        reading.busy(&mut self.busy);
        for Busy { cpu, .. } in &self.busy {
            if reading.slice(*cpu) >= STALE {
                // A CPU that has gone offline since runs nobody; and a sample without this is only a little older.
                let _best_effort = bpf::run_on(*cpu, refresh.as_fd());
            }
        }

        let highest = control.first().map_or(0, |control| control.highest.load(Acquire));
        self.memory.fill(0);
        for process in processes.iter().take(usize::try_from(highest).unwrap_or(0) + 1) {
            let account = usize::try_from(process.worker.load(Acquire)).unwrap_or(0);
            let lives = account != 0 && process.ended.load(Acquire) == 0;
            if let Some(memory) = self.memory.get_mut(account).filter(|_| lives) {
                *memory += process.rss.load(Acquire);
            }
        }

        let watched: Vec<u32> = self.roster.accounts().collect();
        for number in watched {
            let index = number as usize;
            let (Some(entry), Some(account)) = (self.roster.entry(number), accounts.get(index)) else {
                continue;
            };
            let memory = self.memory.get(index).copied().unwrap_or(0);
            let first = self.busy.partition_point(|busy| busy.account < number);
            let end = self.busy.partition_point(|busy| busy.account <= number);
            let cpu_ns = reading.cpu_time(account, self.busy.get(first..end).unwrap_or_default());
            // A slice that could not be told from a charged one comes with the next sample; what was said stays said.
            entry.reported = cpu_ns.saturating_sub(entry.before).max(entry.reported);
            entry.peak = entry.peak.max(memory);
            each(entry.worker, Usage { cpu_ns: entry.reported, memory });
        }
        Ok(())
    }

    /// What is known of a worker whose process has ended. Whatever it leaves behind is nobody's from now on.
    pub fn ended(&mut self, worker: WorkerId) -> LastWords {
        let sees_oom = self.running.sees_oom;
        let words = self.roster.account(worker).and_then(|number| {
            let account = self.running.accounts.get(number as usize)?;
            let peak = account.peak.load(Acquire).max(self.roster.entry(number)?.peak);
            Some(LastWords {
                peak_memory: (peak > 0).then_some(peak),
                killer: killer(account),
                oom: sees_oom.then(|| account.oom.load(Acquire) != 0),
            })
        });
        self.forget(worker);
        words.unwrap_or_default()
    }

    /// Takes a worker's account from it and from its processes.
    fn forget(&mut self, worker: WorkerId) {
        let Some((account, _entry)) = self.roster.leave(worker) else { return };
        let highest = self.running.control.first().map_or(0, |control| control.highest.load(Acquire));
        for process in self.running.processes.iter().take(usize::try_from(highest).unwrap_or(0) + 1) {
            // Only from this worker: the place can have become somebody else's.
            let _somebody_elses = process.worker.compare_exchange(account.into(), NONE, AcqRel, Relaxed);
        }
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
        if let Some(control) = self.running.control.first() {
            let turned_away = control.turned_away.load(Relaxed);
            if turned_away != self.turned_away {
                tracing::debug!(
                    "{} descendants are not watched: no place is free",
                    turned_away - self.turned_away
                );
                self.turned_away = turned_away;
            }
        }
        Ok(())
    }
}

fn killer(account: &Account) -> Option<Killer> {
    let signal = i32::try_from(account.signal.load(Acquire)).ok().filter(|signal| *signal != 0)?;
    let pid = narrow(account.sender.load(Acquire)).map(u32::cast_signed).filter(|pid| *pid != 0);
    let uid = narrow(account.uid.load(Acquire)).unwrap_or(u32::MAX);
    let comm = account.comm.each_ref().map(|half| half.load(Acquire).to_ne_bytes());
    let name = comm.as_flattened().split(|byte| *byte == 0).next().unwrap_or_default();
    Some(Killer { signal, pid, uid, name: String::from_utf8_lossy(name).into_owned() })
}
