//! The eBPF source: a timer in the kernel measures the workers, and wakes the supervisor only for one that is above a
//! limit, or no longer is.

mod accounts;
mod btf;
mod btf_writer;
mod clock;
mod death_programs;
mod id_file;
mod kernel_offsets;
mod load;
mod load_error;
mod loader;
mod object;
mod offset_cache;
mod rows;
mod runtime;
mod sampler;
mod shared;

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::Duration;

use master_process_common::{ADOPTED, Account, Death, EVENTS_SHIFT, NONE, state};
use rustix::process::Pid;

pub use self::load_error::LoadError;
pub use self::loader::{Loader, Wanted};

use self::accounts::{Accounts, Entry};
use self::clock::Clock;
use self::load::{Identity, Running};
use super::{ExitDetails, Killer};
use crate::config::Scope;
use crate::policy::{Before, Usage, WorkerId};
use crate::sys::children;

/// The limits that the program compares a worker with. A sample above one, and the first one within it again, is an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// CPU nanoseconds per second.
    pub cpu: Option<u64>,
    /// Resident memory in bytes.
    pub memory: Option<u64>,
}

/// The programs and the memory shared with them.
#[derive(Debug)]
pub struct Ebpf {
    running: Running,
    accounts: Accounts,
    clock: Clock,
    settings: Settings,
    /// The number of workers that there is room for.
    workers: u32,
    /// The number of trees that were not measured whole, as it was logged.
    unmeasured: u64,
    /// The number of unknown children of the supervisor at the last call.
    unknown_children: u64,
    /// The number of descriptors of listeners that were found to be closed at the last call.
    closed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    scope: Scope,
    interval: Duration,
    thresholds: Thresholds,
    /// Whether other supervisors can use what this one finds out and attaches.
    leaves: Leaves,
}

/// What other supervisors can use of what this one finds out and attaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaves {
    /// The offsets of the kernel, and the programs.
    Files,
    /// Nothing: the programs are only tried.
    Nothing,
}

/// An ended worker has its account until its end is reported, and a reload doubles the workers.
const ACCOUNTS_PER_WORKER: u32 = 3;
/// The most children of the supervisor that are looked at when a worker has ended: it takes two microseconds for each.
const MOST_CHILDREN: usize = 1024;
const MIN_WORKERS: u32 = 16;
/// The number of accounts in a page.
const PER_PAGE: u32 = 32;

/// The number of workers to make room for.
fn accounts_for(workers: u32) -> u32 {
    workers.saturating_mul(ACCOUNTS_PER_WORKER).max(MIN_WORKERS)
}

/// The number of accounts for this number of workers, and how many of them are for adopted processes: account 0, one for each
/// worker, and about as many for adopted processes, in whole pages.
fn sizes(workers: u32) -> (u32, u32) {
    let accounts = workers.saturating_mul(2).next_multiple_of(PER_PAGE);
    (accounts, accounts - 1 - workers)
}

/// Finds what the programs need in the type information of the kernel.
///
/// # Errors
/// The file is absent, not readable, or lacks something.
pub fn find_kernel_types() -> Result<(), LoadError> {
    load::find_kernel_types()
}

impl Ebpf {
    /// Loads the programs for this number of workers, and takes a sample at each `interval`.
    ///
    /// # Errors
    /// Why they cannot be loaded. The output of the verifier goes to the log at level debug.
    pub fn load(
        scope: Scope,
        workers: u32,
        interval: Duration,
        thresholds: Thresholds,
    ) -> Result<Ebpf, LoadError> {
        Ebpf::load_for(accounts_for(workers), Settings { scope, interval, thresholds, leaves: Leaves::Files })
    }

    /// Loads the programs as [`Self::load`] does, and leaves no file for other supervisors.
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn try_out(
        scope: Scope,
        workers: u32,
        interval: Duration,
        thresholds: Thresholds,
    ) -> Result<Ebpf, LoadError> {
        let settings = Settings { scope, interval, thresholds, leaves: Leaves::Nothing };
        Ebpf::load_for(accounts_for(workers), settings)
    }

    /// Whether kills by the kernel's OOM killer are recorded.
    #[must_use]
    pub fn sees_oom(&self) -> bool {
        self.running.death_programs.sees_oom
    }

    fn load_for(workers: u32, settings: Settings) -> Result<Ebpf, LoadError> {
        let (accounts, adopted) = sizes(workers);
        Ok(Ebpf {
            running: load::start(settings, accounts)?,
            accounts: Accounts::new(workers, adopted),
            clock: Clock::new(),
            settings,
            workers,
            unmeasured: 0,
            unknown_children: 0,
            closed: 0,
        })
    }

    /// Readable when [`Self::events`] has something to report.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.running.events.as_fd()
    }

    /// Watches a worker until [`Self::ended`] is called, which must be before the kernel can reuse its pid. If there is no
    /// room, the maps are replaced, by maps for twice as many workers.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn watch(&mut self, worker: WorkerId, pid: Pid) -> Result<(), LoadError> {
        let Some(Identity { number, filters }) = self.running.identify(pid) else {
            // It has ended already.
            return Ok(());
        };
        let filter = filters.first().copied().unwrap_or(0);
        self.watch_as(worker, pid, number, filter)
    }

    fn watch_as(&mut self, worker: WorkerId, pid: Pid, number: u32, filter: u64) -> Result<(), LoadError> {
        let account = match self.accounts.enter(worker, pid, number, filter) {
            Some(account) => account,
            None => {
                self.grow()?;
                let full = || LoadError::new("the eBPF maps", "no account is free");
                self.accounts.enter(worker, pid, number, filter).ok_or_else(full)?
            }
        };
        self.open(account, number, false);
        self.record_signals(number);
        Ok(())
    }

    /// Makes room for twice as many workers. What they have used until now is not counted again.
    fn grow(&mut self) -> Result<(), LoadError> {
        let workers = self.workers.saturating_mul(2);
        let (accounts, adopted) = sizes(workers);
        let listeners: Vec<u64> =
            self.running.listeners.iter().map(|listener| listener.place.load(Acquire)).collect();
        self.running.enlarge(accounts)?;
        self.workers = workers;
        let mut before = std::mem::replace(&mut self.accounts, Accounts::new(workers, adopted));
        for (worker, entry) in before.iter_mut() {
            self.watch_as(worker, entry.pid, entry.number, entry.filter)?;
            for (pid, _) in &entry.adopted {
                self.adopt(worker, *pid);
            }
        }
        for (listener, place) in self.running.listeners.iter().zip(listeners) {
            listener.place.store(place, Release);
        }
        Ok(())
    }

    /// Clears an account and gives it a process.
    fn open(&self, account: u32, number: u32, is_adopted: bool) {
        let Some(of) = self.running.accounts.get(account as usize) else { return };
        let Thresholds { cpu, memory } = self.settings.thresholds;
        let Account {
            process,
            only_thread,
            thread_cpu,
            next,
            state: counted,
            sampled_at,
            span,
            used,
            max_cpu,
            max_memory,
            tree_cpu,
            tree_memory,
            summed,
            cpu_ns,
            memory: resident,
            peak,
        } = of;
        process.store(0, Release);
        for word in [only_thread, thread_cpu, next, counted, sampled_at, span, used] {
            word.store(0, Relaxed);
        }
        for word in [tree_cpu, tree_memory, summed, cpu_ns, resident, peak] {
            word.store(0, Relaxed);
        }
        max_cpu.store(cpu.map_or(0, |cpu| (cpu / 1000).max(1)), Relaxed);
        max_memory.store(memory.unwrap_or(0), Relaxed);
        if let Some(control) = self.running.control.first() {
            control.highest.fetch_max(account.into(), AcqRel);
        }
        process.store(u64::from(number) | if is_adopted { ADOPTED } else { 0 }, Release);
    }

    fn record_signals(&mut self, number: u32) {
        let Running { namespace, in_first_namespace, death_programs, .. } = &mut self.running;
        death_programs.record(number, *namespace, *in_first_namespace);
    }

    /// The worker continues in a process that it has started.
    pub fn moved(&mut self, worker: WorkerId, pid: Pid) {
        let Some(Identity { number, .. }) = self.running.identify(pid) else { return };
        let Some(entry) = self.accounts.of_mut(worker) else { return };
        entry.pid = pid;
        let (before, account) = (std::mem::replace(&mut entry.number, number), entry.account);
        self.running.death_programs.forget(before);
        if let Some(account) = self.running.accounts.get(account as usize) {
            account.process.store(number.into(), Release);
            account.only_thread.store(0, Release);
        }
        self.record_signals(number);
    }

    /// An adopted process belongs to this worker.
    pub fn adopt(&mut self, worker: WorkerId, pid: Pid) {
        if self.accounts.of(worker).is_some_and(|entry| entry.pid == pid) {
            return;
        }
        self.release_gone();
        let Some(Identity { number, .. }) = self.running.identify(pid) else { return };
        let Some((before, account)) = self.accounts.adopt(worker, pid) else { return };
        self.open(account, number, true);
        if let Some(before) = self.running.accounts.get(before as usize) {
            before.next.store(account.into(), Release);
        }
    }

    /// The worker that a process descends from, by the seccomp filter that the worker was started with. A process cannot
    /// get rid of its filters.
    pub fn owner_of(&self, pid: Pid) -> Option<WorkerId> {
        self.accounts.with_filter(&self.running.identify(pid)?.filters)
    }

    /// Watches these descriptors of listeners instead of those before.
    pub fn watch_listeners(&mut self, places: impl Iterator<Item = (Pid, RawFd)>) {
        let Some(control) = self.running.control.first() else { return };
        control.listeners.store(0, Release);
        let mut count = 0;
        // Beyond the end of the map, a listener that is closed is noticed when a client connects.
        for (listener, (pid, fd)) in self.running.listeners.iter().zip(places) {
            let number = if self.running.in_first_namespace {
                pid.as_raw_pid().cast_unsigned()
            } else {
                self.running.identify(pid).map_or(0, |identity| identity.number)
            };
            let place = u64::from(number) << 32 | u64::from(fd.cast_unsigned());
            if listener.place.load(Acquire) != place {
                listener.place.store(0, Release);
                listener.file.store(0, Release);
                listener.place.store(place, Release);
            }
            count += 1;
        }
        control.listeners.store(count, Release);
    }

    /// Whether a watched descriptor of a listener was closed since the last call.
    pub fn sees_closed(&mut self) -> bool {
        let closed = self.running.control.first().map_or(0, |control| control.closed.load(Acquire));
        std::mem::replace(&mut self.closed, closed) != closed
    }

    /// Frees the accounts of adopted processes that are gone.
    fn release_gone(&mut self) {
        let accounts = &self.running.accounts;
        let of = |number: u32| accounts.get(number as usize);
        let is_gone = |number| of(number).is_some_and(|account| account.process.load(Acquire) == 0);
        for linked in self.accounts.release_gone(is_gone) {
            let next = linked.iter().skip(1).copied().map(u64::from).chain([NONE]);
            for (account, next) in linked.iter().filter_map(|number| of(*number)).zip(next) {
                account.next.store(next, Release);
            }
        }
    }

    /// Whether the supervisor has more children without an account than at the last call: orphans that it has adopted.
    pub fn sees_orphan(&mut self) -> bool {
        let unknown_children =
            self.running.control.first().map_or(0, |control| control.unknown_children.load(Acquire));
        let more = unknown_children > self.unknown_children;
        self.unknown_children = unknown_children;
        more
    }

    /// The memory of a worker no longer has a limit.
    pub fn lift_memory_limit(&self, worker: WorkerId) {
        if let Some(account) = self.account(worker) {
            account.max_memory.store(0, Release);
        }
    }

    /// Has the next sample reported, of each worker or of this one.
    pub fn report_anew(&mut self, of: Option<WorkerId>) {
        for (_, entry) in self.accounts.iter_mut().filter(|(worker, _)| of.is_none_or(|of| of == *worker)) {
            if let Some(account) = self.running.accounts.get(entry.account as usize) {
                // If the program writes it at the same instant, one of both is lost.
                account.state.fetch_or(state::ANEW, AcqRel);
            }
        }
    }

    /// The children of the supervisor that descend from a worker, apart from its first process: those that were adopted, also
    /// since the last sample.
    pub(super) fn orphans_of(&self, worker: WorkerId) -> Vec<Pid> {
        let children = children::ours().into_iter().take(MOST_CHILDREN);
        // When a thousand workers stop, each of them asks.
        let first: HashSet<Pid> = self.accounts.pids().collect();
        children.filter(|pid| !first.contains(pid) && self.owner_of(*pid) == Some(worker)).collect()
    }

    /// The adopted processes of a worker.
    pub(super) fn adopted_by(&self, worker: WorkerId) -> impl Iterator<Item = Pid> {
        self.accounts.of(worker).into_iter().flat_map(|entry| entry.adopted.iter().map(|(pid, _)| *pid))
    }

    /// Reports each worker that had an event since the last call.
    pub fn events(&mut self, each: &mut dyn FnMut(WorkerId, Usage)) {
        self.running.ring.skip();
        self.report_unmeasured();
        let now = self.clock.now();
        for (worker, entry) in self.accounts.iter_mut() {
            let Some(account) = self.running.accounts.get(entry.account as usize) else { continue };
            let events = account.state.load(Acquire) >> EVENTS_SHIFT;
            if std::mem::replace(&mut entry.events, events) != events {
                each(worker, usage(account, now));
            }
        }
    }

    /// What a worker used at the last sample; `None` before its first one.
    pub fn usage(&self, worker: WorkerId) -> Option<Usage> {
        self.usage_and_peak(worker).map(|(usage, _)| usage)
    }

    /// The same, with the highest memory so far, in bytes.
    pub(super) fn usage_and_peak(&self, worker: WorkerId) -> Option<(Usage, u64)> {
        let account = self.account(worker).filter(|account| account.sampled_at.load(Acquire) != 0)?;
        let peak = account.peak.load(Acquire);
        Some((usage(account, self.clock.now()), peak))
    }

    /// The number of samples that were taken, and the time that this took in the kernel.
    pub fn cost(&self) -> (u64, Duration) {
        let control = self.running.control.first();
        control.map_or((0, Duration::ZERO), |control| {
            (control.samples.load(Acquire), Duration::from_nanos(control.run_time.load(Acquire)))
        })
    }

    fn account(&self, worker: WorkerId) -> Option<&Account> {
        self.running.accounts.get(self.accounts.of(worker)?.account as usize)
    }

    /// Logs trees that were not measured whole, once.
    fn report_unmeasured(&mut self) {
        let unmeasured = self.running.control.first().map_or(0, |control| control.unmeasured.load(Relaxed));
        if self.unmeasured == 0 && unmeasured > 0 {
            tracing::debug!(
                "the processes of a worker change too fast, or are too many, to be measured whole"
            );
        }
        self.unmeasured = unmeasured;
    }

    /// The details of a worker's end. The processes that it leaves are no longer measured.
    pub fn ended(&mut self, worker: WorkerId) -> ExitDetails {
        let Some(Entry { account, number, adopted, .. }) = self.accounts.leave(worker) else {
            return ExitDetails::default();
        };
        let accounts = &self.running.accounts;
        for account in adopted.iter().map(|(_, account)| *account).chain([account]) {
            if let Some(account) = accounts.get(account as usize) {
                account.process.store(0, Release);
                account.next.store(NONE, Release);
            }
        }
        let peak = accounts.get(account as usize).map_or(0, |account| account.peak.load(Acquire));
        let death = self.running.death_programs.take(number);
        ExitDetails {
            peak_memory: (peak > 0).then_some(peak),
            killer: death.as_ref().and_then(killer),
            oom: death.filter(|_| self.running.death_programs.sees_oom).map(|death| death.oom != 0),
        }
    }
}

/// The number of times that an account is read again because the program writes it.
const TRIES: u32 = 1000;

/// What an account holds. The program marks the time of the sample while it writes the rest.
fn usage(account: &Account, now: u64) -> Usage {
    let mut usage = Usage::default();
    for _ in 0..TRIES {
        let at = account.sampled_at.load(Acquire);
        let (span_ns, used_ns) = (account.span.load(Acquire), account.used.load(Acquire));
        let ago = Duration::from_nanos(now.saturating_sub(at.saturating_sub(span_ns)));
        usage = Usage {
            cpu_ns: account.cpu_ns.load(Acquire),
            memory: account.memory.load(Acquire),
            before: (span_ns > 0).then_some(Before { ago, span_ns, used_ns }),
        };
        if at != 0 && account.sampled_at.load(Acquire) == at {
            break;
        }
        std::hint::spin_loop();
    }
    usage
}

fn killer(death: &Death) -> Option<Killer> {
    let signal = i32::try_from(death.signal).ok().filter(|signal| *signal != 0)?;
    let pid = i32::try_from(death.sender).ok().filter(|pid| *pid != 0);
    let name = death.comm.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(Killer { signal, pid, uid: death.uid, name: String::from_utf8_lossy(name).into_owned() })
}
