//! The eBPF source: programs in the kernel charge workers as they run, and a sample reads memory.

mod btf;
#[cfg(test)]
mod btf_maker;
mod clock;
mod layout;
mod load;
mod object;
mod reading;
mod refusal;
mod roster;
mod sample;
mod shared;
mod sizes;

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use master_process_common::{Account, NONE};
use rustix::process::Pid;

pub use self::refusal::{Lost, Refusal};

use self::clock::Clock;
use self::load::Running;
use self::reading::Busy;
use self::roster::Roster;
use self::sizes::Sizes;
use super::{Killer, LastWords};
use crate::config::Scope;
use crate::policy::WorkerId;

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
        Ebpf::load_sized(scope, Sizes::new(scope, workers))
    }

    fn load_sized(scope: Scope, sizes: Sizes) -> Result<Ebpf, Refusal> {
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
            tracing::debug!(
                "worker with serial {} is not measured by eBPF: no account is free",
                worker.serial
            );
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

    /// Says whether that process came to be. False where it is not watched: there was no account left for it, or it was
    /// not seen.
    pub fn launched(&mut self, worker: WorkerId, started: bool) -> bool {
        let Some(account) = self.roster.account(worker) else { return false };
        let armed = u64::from(account);
        let seen = self.running.control.first().is_none_or(|control| {
            // Whoever was watched has taken it back.
            control.armed.compare_exchange(armed, NONE, AcqRel, Acquire).is_err()
        });
        if started && !seen {
            tracing::debug!(
                "worker with serial {} is not measured by eBPF: its start was not seen",
                worker.serial
            );
        }
        let watched = started && seen;
        if !watched {
            self.forget(worker);
        }
        watched
    }

    /// Whether it measures this worker.
    pub fn watches(&self, worker: WorkerId) -> bool {
        self.roster.account(worker).is_some()
    }

    /// The processes that are charged to a worker; `None` where we cannot tell, because the kernel side numbers them as
    /// the first PID namespace does, and we are in another one.
    pub fn processes_of(&self, worker: WorkerId) -> Option<impl Iterator<Item = Pid>> {
        let account = self.roster.account(worker).filter(|_| self.running.numbers_as_we_do)?;
        let places = self.running.places_of(account);
        let of_worker = places.filter(move |process| process.worker.load(Acquire) == u64::from(account));
        Some(
            of_worker.filter(|process| process.ended.load(Acquire) == 0).filter_map(|process| {
                narrow(&process.tgid).and_then(|tgid| Pid::from_raw(tgid.cast_signed()))
            }),
        )
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
        for process in self.running.places_of(account) {
            // Only from this worker: the place can have become somebody else's.
            let _somebody_elses = process.worker.compare_exchange(account.into(), NONE, AcqRel, Relaxed);
        }
    }
}

#[cfg(test)]
impl Ebpf {
    /// With room for so many workers.
    pub(super) fn load_for(scope: Scope, workers: u32) -> Result<Ebpf, Refusal> {
        Ebpf::load_sized(scope, Sizes { workers, descendants: 1 })
    }

    /// What somebody does who removes the programs.
    pub(super) fn detach(&mut self) {
        self.running.links.clear();
    }
}

fn killer(account: &Account) -> Option<Killer> {
    let signal = narrow(&account.signal).map(u32::cast_signed).filter(|signal| *signal != 0)?;
    let pid = narrow(&account.sender).map(u32::cast_signed).filter(|pid| *pid != 0);
    let uid = narrow(&account.uid).unwrap_or(u32::MAX);
    let comm = account.comm.each_ref().map(|half| half.load(Acquire).to_ne_bytes());
    let name = comm.as_flattened().split(|byte| *byte == 0).next().unwrap_or_default();
    Some(Killer { signal, pid, uid, name: String::from_utf8_lossy(name).into_owned() })
}

/// Everything shared is 64 bits wide, whatever is in it.
fn narrow(number: &AtomicU64) -> Option<u32> {
    u32::try_from(number.load(Acquire)).ok()
}
