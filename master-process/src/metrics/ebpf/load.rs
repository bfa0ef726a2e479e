//! Loading and starting the programs.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use master_process_common::{Account, Control, FILTERS, Listener, Params};
use rustix::process::Pid;

use super::btf::Btf;
use super::death_programs::{self, DeathPrograms, HOST_ENTRIES, Shared};
use super::kernel_offsets::{kernel_functions, kernel_offsets};
use super::load_error::LoadError;
use super::object::{self, LoadParams, Loaded};
use super::offset_cache::{self, KernelTypes};
use super::{Leaves, Settings};
use crate::config::Scope;
use crate::sys::bpf::{self, Map, Mapping, Ring, Shared as SharedType};

const BTF: &str = "/sys/kernel/btf/vmlinux";
const NAMESPACE: &str = "/proc/self/ns/pid";
/// The inode of the initial PID namespace: the kernel's `PROC_PID_INIT_INO`.
const FIRST_NAMESPACE: u64 = 0xefff_fffc;

/// The program that starts the timer, and identifies a process.
const RUN: &str = "run";

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
    /// The timer runs as long as its map is open.
    _timer: Map,
    /// The device, in the kernel's encoding, and the inode of this PID namespace.
    pub(super) namespace: [u64; 2],
    /// The program that identifies a process.
    program: OwnedFd,
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
        if let Err(error) = bpf::run(self.program.as_fd()) {
            tracing::debug!("bpf(BPF_PROG_TEST_RUN): {error}");
            return None;
        }
        let number = u32::try_from(control.translated.load(Acquire)).ok().filter(|number| *number != 0)?;
        Some(Identity { number, filters: control.filters.each_ref().map(|filter| filter.load(Acquire)) })
    }
}

/// Loads the programs, attaches them, and starts the timer.
///
/// # Errors
/// What the kernel refused or lacks.
pub(super) fn start(settings: Settings, accounts: u32) -> Result<Running, LoadError> {
    let Settings { scope, interval, leaves, thresholds: _ } = settings;
    let namespace = std::fs::metadata(NAMESPACE).map_err(|error| LoadError::new(NAMESPACE, error))?;
    let in_first_namespace = namespace.st_ino() == FIRST_NAMESPACE;
    // The kernel's encoding has the minor number in the low 20 bits, unlike that of stat(2).
    let device = namespace.st_dev();
    let device = u64::from(rustix::fs::major(device)) << 20 | u64::from(rustix::fs::minor(device));
    let KernelTypes { offsets, functions } = kernel_types(in_first_namespace, leaves)?;
    let params = Params {
        tree: match scope {
            Scope::Worker => 0,
            Scope::Tree => 1,
        },
        page_shift: rustix::param::page_size().trailing_zeros(),
    };
    let mut shared = Shared::open(object::bytes(), leaves);
    let found = shared.as_mut().and_then(Shared::find);
    let records = if shared.is_some() { HOST_ENTRIES } else { accounts };
    if found.is_some() {
        // Nobody else has to wait while the other programs are loaded.
        shared = None;
    }
    let entries = HashMap::from([
        ("ACCOUNTS", accounts),
        (death_programs::MAP, records),
        ("LISTENERS", listeners(accounts)),
    ]);
    let load_params = LoadParams {
        kernel_offsets: &offsets,
        params: &params,
        entries: &entries,
        functions: &functions,
        run_by_hand: &[RUN],
        timer: "TIMER",
        omitted: if found.is_some() { &death_programs::PROGRAMS } else { &[] },
        omitted_map: found.is_some().then_some(death_programs::MAP),
    };
    let mut loaded = object::load(&load_params)?;
    let death_programs = match found {
        Some(found) => found,
        None => attach(&mut loaded)?,
    };
    if leaves == Leaves::Files
        && let Some(shared) = &mut shared
        && let Err(error) = shared.keep(&death_programs)
    {
        tracing::debug!("the programs that record signals are not shared: {error}");
    }
    drop(shared);
    run(loaded, death_programs, [device, namespace.st_ino()], interval)
}

/// Attaches the programs that record signals.
fn attach(loaded: &mut Loaded) -> Result<DeathPrograms, LoadError> {
    let mut links = Vec::new();
    for name in death_programs::PROGRAMS {
        let Some(program) = loaded.programs.remove(name) else {
            return Err(LoadError::new("the eBPF object", format_args!("no program {name}")));
        };
        let tracepoint = CString::new(name).map_err(|error| LoadError::new(name, error))?;
        match bpf::attach(program.as_fd(), &tracepoint) {
            Ok(link) => links.push(link),
            // This kernel lacks the second tracepoint.
            Err(error) if !links.is_empty() => {
                tracing::debug!("bpf(BPF_RAW_TRACEPOINT_OPEN) {name}: {error}");
            }
            Err(error) => {
                return Err(LoadError::new(format_args!("bpf(BPF_RAW_TRACEPOINT_OPEN) {name}"), error));
            }
        }
    }
    let sees_oom = links.len() == death_programs::PROGRAMS.len();
    Ok(DeathPrograms { records: map(loaded, death_programs::MAP)?, sees_oom, links, tidied: None })
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

fn run(
    mut loaded: Loaded,
    death_programs: DeathPrograms,
    namespace: [u64; 2],
    interval: Duration,
) -> Result<Running, LoadError> {
    let program = loaded
        .programs
        .remove(RUN)
        .ok_or_else(|| LoadError::new("the eBPF object", format_args!("no program {RUN}")))?;
    let control: Mapping<Control> = mapping(&loaded, "CONTROL")?;
    if let Some(control) = control.first() {
        control.interval.store(u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX), Release);
        control.idle_samples.store(idle_samples(interval), Release);
    }
    let events = map(&mut loaded, "EVENTS")?;
    let running = Running {
        accounts: mapping(&loaded, "ACCOUNTS")?,
        control,
        listeners: mapping(&loaded, "LISTENERS")?,
        ring: Ring::new(&events).map_err(|error| LoadError::new("mmap EVENTS", error))?,
        events,
        death_programs,
        _timer: map(&mut loaded, "TIMER")?,
        namespace,
        program,
        in_first_namespace: namespace[1] == FIRST_NAMESPACE,
    };
    bpf::run(running.program.as_fd()).map_err(|error| LoadError::new("bpf(BPF_PROG_TEST_RUN)", error))?;
    let started = running.control.first().map_or(0, |control| control.started.load(Acquire).cast_signed());
    match i32::try_from(started.wrapping_neg()) {
        Ok(-1) => Ok(running),
        Ok(libc::EPROTO) => Err(LoadError::new(BTF, "does not describe the running kernel")),
        Ok(error) => Err(LoadError::new("bpf_timer_start", std::io::Error::from_raw_os_error(error))),
        Err(error) => Err(LoadError::new("bpf_timer_start", error)),
    }
}

fn map(loaded: &mut Loaded, name: &str) -> Result<Map, LoadError> {
    loaded.maps.remove(name).ok_or_else(|| LoadError::new("the eBPF object", format_args!("no map {name}")))
}

fn mapping<T: SharedType>(loaded: &Loaded, name: &str) -> Result<Mapping<T>, LoadError> {
    let map = loaded
        .maps
        .get(name)
        .ok_or_else(|| LoadError::new("the eBPF object", format_args!("no map {name}")))?;
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
