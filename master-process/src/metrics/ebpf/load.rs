//! Loading and starting the programs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::linux::fs::MetadataExt;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use master_process_common::{Account, Control, FILTERS, Listener, Params};
use rustix::process::Pid;

use super::btf::Btf;
use super::death_programs::{self, DeathPrograms, HOST_ENTRIES};
use super::id_file::IdFile;
use super::kernel_offsets::{kernel_functions, kernel_offsets};
use super::load_error::LoadError;
use super::object::{self, LoadParams};
use super::offset_cache::{self, KernelTypes};
use super::rows::Row;
use super::sampler::{self, HOST_ROWS, OwnMaps, Sampler, Shared};
use super::{Leaves, Settings};
use crate::config::Scope;
use crate::sys::bpf::{Map, Mapping, Ring, Shared as SharedType};

const BTF: &str = "/sys/kernel/btf/vmlinux";
const NAMESPACE: &str = "/proc/self/ns/pid";
/// The inode of the initial PID namespace: the kernel's `PROC_PID_INIT_INO`.
const FIRST_NAMESPACE: u64 = 0xefff_fffc;

/// The maps and descriptors of the running programs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) accounts: Mapping<Account>,
    pub(super) control: Mapping<Control>,
    pub(super) listeners: Mapping<Listener>,
    /// Readable when a worker has an event.
    pub(super) events: Map,
    pub(super) ring: Ring,
    /// What is known of the signals to workers.
    pub(super) death_programs: DeathPrograms,
    sampler: Sampler,
    row: Row,
    /// The device, in the kernel's encoding, and the inode of this PID namespace.
    pub(super) namespace: [u64; 2],
    /// Whether the pids that the programs use are valid here.
    pub(super) in_first_namespace: bool,
}

/// A process as the programs see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    /// Its pid in the initial PID namespace.
    pub(super) number: u32,
    /// The addresses of its seccomp filters, from the newest on.
    pub(super) filters: [u64; FILTERS],
}

impl Running {
    /// Identifies a process; `None` if there is none with this pid.
    pub(super) fn identify(&self, pid: Pid) -> Option<Identity> {
        let control = self.control.first()?;
        control.translated.store(u64::from(pid.as_raw_pid().cast_unsigned()), Release);
        if let Err(error) = self.sampler.run(&self.row) {
            tracing::debug!("bpf(BPF_PROG_TEST_RUN): {error}");
            return None;
        }
        let number = u32::try_from(control.translated.load(Acquire)).ok().filter(|number| *number != 0)?;
        Some(Identity { number, filters: control.filters.each_ref().map(|filter| filter.load(Acquire)) })
    }

    /// Takes larger maps, for this number of accounts, without what is in those before. The program goes on with these for some
    /// milliseconds.
    pub(super) fn enlarge(&mut self, accounts: u32) -> Result<(), LoadError> {
        let OwnMaps { accounts, listeners, .. } = OwnMaps::new(accounts, listeners(accounts))?;
        (self.accounts, self.listeners) =
            (mapping("ACCOUNTS", &accounts)?, mapping("LISTENERS", &listeners)?);
        let replaced = self.sampler.replace(&self.row, accounts, listeners);
        replaced.map_err(|error| LoadError::new("the larger eBPF maps", error))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // No further sample is taken: others keep the map that the timer is in.
        if let Some(control) = self.control.first() {
            control.interval.store(0, Release);
        }
    }
}

/// Loads the programs, or opens those of another supervisor, and has the timer take samples.
///
/// # Errors
/// What the kernel refused or lacks.
pub(super) fn start(settings: Settings, accounts: u32) -> Result<Running, LoadError> {
    let namespace = std::fs::metadata(NAMESPACE).map_err(|error| LoadError::new(NAMESPACE, error))?;
    // The kernel's encoding has the minor number in the low 20 bits, unlike that of stat(2).
    let device = namespace.st_dev();
    let device = u64::from(rustix::fs::major(device)) << 20 | u64::from(rustix::fs::minor(device));
    let namespace = [device, namespace.st_ino()];
    let own = OwnMaps::new(accounts, listeners(accounts))?;
    let mut file = IdFile::open(object::bytes(), namespace[1], settings.leaves);
    if let Some(found) = file.as_ref().and_then(find) {
        // Nobody else has to wait.
        file = None;
        if let Some(row) = found.shared.take_row()? {
            return run(settings, namespace, own, found, row);
        }
    }
    let is_kept = file.is_some() && settings.leaves == Leaves::Files;
    let rows = if is_kept { HOST_ROWS } else { 1 };
    let records = if is_kept { HOST_ENTRIES } else { accounts };
    let entries: HashMap<&str, u32> = own.by_name().iter().map(|(name, _)| (*name, rows)).collect();
    let entries: HashMap<&str, u32> = entries.into_iter().chain([(death_programs::MAP, records)]).collect();
    let KernelTypes { offsets, functions } = kernel_types(namespace[1] == FIRST_NAMESPACE, settings.leaves)?;
    let mut loaded = object::load(&LoadParams {
        kernel_offsets: &offsets,
        params: &Params { page_shift: rustix::param::page_size().trailing_zeros(), rows },
        entries: &entries,
        functions: &functions,
        inner: &own.by_name(),
        run_by_hand: sampler::PROGRAM,
        ticker: sampler::TICKER,
    })?;
    let programs = Programs {
        death_programs: DeathPrograms::attach(&mut loaded)?,
        shared: Shared::new(&mut loaded, rows)?,
    };
    if is_kept
        && let Some(file) = &mut file
        && let Err(error) = keep(file, &programs)
    {
        tracing::debug!("the eBPF programs are not shared: {error}");
    }
    drop(file);
    let row = programs.shared.take_row()?;
    let row = row.ok_or_else(|| LoadError::new("the eBPF maps", "no row is free"))?;
    run(settings, namespace, own, programs, row)
}

/// The loaded programs.
#[derive(Debug)]
struct Programs {
    death_programs: DeathPrograms,
    shared: Shared,
}

/// The number of ids in the file.
const IDS: usize = death_programs::IDS + sampler::IDS;

/// The programs that another supervisor has loaded; `None` if there are none.
fn find(file: &IdFile) -> Option<Programs> {
    let ids: [u32; IDS] = file.read()?;
    let (of_deaths, of_sampler) = ids.split_first_chunk()?;
    let open = || {
        let death_programs = DeathPrograms::open(*of_deaths)?;
        Ok(Programs { death_programs, shared: Shared::open(*of_sampler.first_chunk().unwrap_or(&[0; _]))? })
    };
    open().inspect_err(|error: &io::Error| tracing::debug!("the shared eBPF programs: {error}")).ok()
}

/// Keeps the ids of the programs for other supervisors.
fn keep(file: &mut IdFile, programs: &Programs) -> io::Result<()> {
    let ids = [&programs.death_programs.ids()?[..], &programs.shared.ids()?[..]].concat();
    file.write(&ids)
}

/// Looks up what the programs need to know of the kernel.
pub(super) fn find_kernel_types() -> Result<(), LoadError> {
    let namespace = std::fs::metadata(NAMESPACE).map_err(|error| LoadError::new(NAMESPACE, error))?;
    kernel_types(namespace.st_ino() == FIRST_NAMESPACE, Leaves::Nothing).map(drop)
}

/// The offsets of this kernel, from the last supervisor that looked them up, or from the kernel's type information.
fn kernel_types(in_first_namespace: bool, leaves: Leaves) -> Result<KernelTypes, LoadError> {
    let refused = |error: &dyn std::fmt::Display| LoadError::new(BTF, error);
    let mut file = File::open(BTF).map_err(|error| refused(&error))?;
    let key = offset_cache::key(&file, object::bytes(), in_first_namespace);
    let kept = key.as_deref().and_then(offset_cache::read);
    if let Some(kept) = kept {
        return Ok(kept);
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| refused(&error))?;
    let btf = Btf::parse(&bytes).ok_or_else(|| refused(&"in a form that is not known"))?;
    let functions = kernel_functions(&btf, in_first_namespace).map_err(|error| refused(&error))?;
    let offsets = kernel_offsets(&btf).map_err(|error| refused(&error))?;
    let types = KernelTypes { offsets, functions };
    if leaves == Leaves::Files
        && let Some(key) = &key
    {
        offset_cache::write(key, &types);
    }
    Ok(types)
}

/// A worker that does not run is measured at least as often as this, because others can change its memory: the kernel takes
/// pages away from it, or joins them into large ones.
const MEASURE_IDLE_EVERY: Duration = Duration::from_secs(32);
/// And at one of this many samples.
const MOST_IDLE_SAMPLES: u64 = 16;

/// The bits of [`Control::idle_samples`].
fn idle_samples(interval: Duration) -> u64 {
    let samples = MEASURE_IDLE_EVERY.as_nanos() / interval.as_nanos().max(1);
    let samples = u64::try_from(samples).unwrap_or(u64::MAX).clamp(1, MOST_IDLE_SAMPLES);
    (1 << samples.ilog2()) - 1
}

/// The number of listeners that can be watched: some for each worker, or as many as fill one page.
fn listeners(accounts: u32) -> u32 {
    accounts.saturating_mul(2).clamp(256, 4096)
}

/// Has the timer take the samples of a row, with these maps.
fn run(
    settings: Settings,
    namespace: [u64; 2],
    own: OwnMaps,
    programs: Programs,
    row: Row,
) -> Result<Running, LoadError> {
    let Settings { scope, interval, .. } = settings;
    let Programs { death_programs, shared } = programs;
    let control: Mapping<Control> = mapping("CONTROL", &own.control)?;
    if let Some(control) = control.first() {
        let tree = match scope {
            Scope::Worker => 0,
            Scope::Tree => 1,
        };
        control.tree.store(tree, Release);
        control.interval.store(u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX), Release);
        control.idle_samples.store(idle_samples(interval), Release);
    }
    let sampler = shared.enter(&row, &own)?;
    let running = Running {
        accounts: mapping("ACCOUNTS", &own.accounts)?,
        control,
        listeners: mapping("LISTENERS", &own.listeners)?,
        ring: Ring::new(&own.events).map_err(|error| LoadError::new("mmap EVENTS", error))?,
        events: own.events,
        death_programs,
        sampler,
        row,
        namespace,
        in_first_namespace: namespace[1] == FIRST_NAMESPACE,
    };
    start_timer(&running)?;
    Ok(running)
}

/// The waits between the attempts to start the timer, as powers of two of a millisecond: one second in all.
const WAITS: std::ops::Range<u32> = 0..10;

/// Starts the timer. `bpf_timer_init` does not wait for memory (`kmalloc_nolock` in mm/slub.c): it fails with ENOMEM where all slabs
/// of the size are full, or another CPU is about to change them. That is over when anybody allocates or frees in them.
fn start_timer(running: &Running) -> Result<(), LoadError> {
    let mut waits = WAITS.map(|power| Duration::from_millis(1 << power));
    loop {
        let ran = running.sampler.run(&running.row);
        ran.map_err(|error| LoadError::new("bpf(BPF_PROG_TEST_RUN)", error))?;
        let started =
            running.control.first().map_or(0, |control| control.started.load(Acquire).cast_signed());
        match (i32::try_from(started.wrapping_neg()), waits.next()) {
            (Ok(-1), _) => return Ok(()),
            (Ok(libc::EPROTO), _) => return Err(LoadError::new(BTF, "does not describe the running kernel")),
            (Ok(libc::ENOMEM), Some(wait)) => std::thread::sleep(wait),
            (Ok(error), _) => {
                return Err(LoadError::new("bpf_timer_init", io::Error::from_raw_os_error(error)));
            }
            (Err(error), _) => return Err(LoadError::new("bpf_timer_init", error)),
        }
    }
}

fn mapping<T: SharedType>(name: &str, map: &Map) -> Result<Mapping<T>, LoadError> {
    Mapping::new(map).map_err(|error| LoadError::new(format_args!("mmap {name}"), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_worker_is_measured_every_32_seconds_or_sixteenth_sample() {
        let every = |interval| idle_samples(interval) + 1;
        assert_eq!(every(Duration::from_millis(10)), 16);
        assert_eq!(every(Duration::from_secs(2)), 16);
        assert_eq!(every(Duration::from_secs(3)), 8);
        assert_eq!(every(Duration::from_secs(16)), 2);
        assert_eq!(every(Duration::from_secs(3600)), 1, "at each sample");
        assert_eq!(every(Duration::ZERO), 16, "measuring is off");
    }
}
