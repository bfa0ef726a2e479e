//! The eBPF source: programs in the kernel charge the workers as they run, and a sample reads shared memory.

mod account_table;
mod btf;
#[cfg(test)]
mod btf_maker;
mod clock;
mod kernel_offsets;
mod load;
mod load_error;
mod object;
mod reading;
mod sample;
mod shared;
mod sizes;

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use master_process_common::{Account, NONE};
use rustix::process::Pid;

pub use self::load_error::{LoadError, ProgramsDetached};

use self::account_table::AccountTable;
use self::clock::Clock;
use self::load::Running;
use self::reading::Busy;
use self::sizes::Sizes;
use super::{ExitDetails, Killer};
use crate::config::Scope;
use crate::policy::WorkerId;

/// The programs and the memory shared with them.
#[derive(Debug)]
pub struct Ebpf {
    running: Running,
    account_table: AccountTable,
    clock: Clock,
    /// The number of context switches at the last sample.
    switches: u64,
    /// The number of unwatched processes at the last sample.
    dropped: u64,
    /// Buffers that each sample reuses: memory by account, and the CPUs that run workers.
    memory: Vec<u64>,
    busy: Vec<Busy>,
}

impl Ebpf {
    /// Loads the programs for this number of workers; a reload doubles it.
    ///
    /// # Errors
    /// Why they cannot be loaded. The output of the verifier goes to the log at level debug.
    pub fn load(scope: Scope, workers: u32) -> Result<Ebpf, LoadError> {
        Ebpf::load_sized(scope, Sizes::new(scope, workers))
    }

    fn load_sized(scope: Scope, sizes: Sizes) -> Result<Ebpf, LoadError> {
        Ok(Ebpf {
            running: load::start(scope, sizes)?,
            account_table: AccountTable::new(sizes.workers),
            clock: Clock::new(),
            switches: 0,
            dropped: 0,
            memory: vec![0; sizes.accounts() as usize],
            busy: Vec::new(),
        })
    }

    /// Announces that the next process that this process forks is this worker. Threads do not count.
    pub fn arm(&mut self, worker: WorkerId) {
        let Running { processes, accounts, control, .. } = &self.running;
        let is_vacant = |account: u32| {
            processes.get(account as usize).is_some_and(|process| process.tgid.load(Acquire) == 0)
        };
        let Some(account) = self.account_table.enter(worker, is_vacant) else {
            // There are more than three workers for each slot: the ends of some were not reported.
            tracing::debug!(
                "worker with serial {} is not measured by eBPF: no account is free",
                worker.serial
            );
            return;
        };
        if let (Some(entry), Some(account)) =
            (self.account_table.entry(account), accounts.get(account as usize))
        {
            entry.before = account.cpu_ns.load(Acquire);
            account.peak.store(0, Relaxed);
            account.oom.store(0, Relaxed);
            account.signal.store(0, Relaxed);
        }
        if let Some(control) = control.first() {
            control.armed.store(account.into(), Release);
        }
    }

    /// Whether the announced process was forked. Returns `false` if it is not watched: no account was free, or its
    /// fork was not seen.
    pub fn launched(&mut self, worker: WorkerId, started: bool) -> bool {
        let Some(account) = self.account_table.account(worker) else { return false };
        let armed = u64::from(account);
        let seen = self.running.control.first().is_none_or(|control| {
            // If a child is watched, the program has cleared it.
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

    /// Whether this source measures the worker.
    pub fn watches(&self, worker: WorkerId) -> bool {
        self.account_table.account(worker).is_some()
    }

    /// The processes that are charged to a worker; `None` outside the initial PID namespace, whose pids the programs
    /// see.
    pub fn processes_of(&self, worker: WorkerId) -> Option<impl Iterator<Item = Pid>> {
        let account = self.account_table.account(worker).filter(|_| self.running.in_initial_namespace)?;
        let processes = self.running.processes_of_account(account);
        let of_worker = processes.filter(move |process| process.worker.load(Acquire) == u64::from(account));
        Some(
            of_worker.filter(|process| process.ended.load(Acquire) == 0).filter_map(|process| {
                narrow(&process.tgid).and_then(|tgid| Pid::from_raw(tgid.cast_signed()))
            }),
        )
    }

    /// The details of a worker's end. The processes that it leaves are no longer charged.
    pub fn ended(&mut self, worker: WorkerId) -> ExitDetails {
        let sees_oom = self.running.sees_oom;
        let words = self.account_table.account(worker).and_then(|number| {
            let account = self.running.accounts.get(number as usize)?;
            let peak = account.peak.load(Acquire).max(self.account_table.entry(number)?.peak);
            Some(ExitDetails {
                peak_memory: (peak > 0).then_some(peak),
                killer: killer(account),
                oom: sees_oom.then(|| account.oom.load(Acquire) != 0),
            })
        });
        self.forget(worker);
        words.unwrap_or_default()
    }

    /// Frees a worker's account, and detaches its processes from it.
    fn forget(&mut self, worker: WorkerId) {
        let Some((account, _entry)) = self.account_table.leave(worker) else { return };
        for process in self.running.processes_of_account(account) {
            // The entry may have been reused for another worker.
            let _somebody_elses = process.worker.compare_exchange(account.into(), NONE, AcqRel, Relaxed);
        }
    }
}

#[cfg(test)]
impl Ebpf {
    /// With room for this number of workers.
    pub(super) fn load_for(scope: Scope, workers: u32) -> Result<Ebpf, LoadError> {
        Ebpf::load_sized(scope, Sizes { workers, descendants: 1 })
    }

    /// Detaches the programs, as another program can.
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

/// All shared fields have 64 bits, whatever they hold.
fn narrow(number: &AtomicU64) -> Option<u32> {
    u32::try_from(number.load(Acquire)).ok()
}
