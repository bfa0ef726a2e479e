//! Loading and attaching the programs.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::sync::atomic::Ordering::Acquire;

use master_process_common::{Account, Control, Cpu, Params, Process};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::btf::Btf;
use super::kernel_offsets::{kernel_offsets, tracepoint};
use super::load_error::LoadError;
use super::object::{self, LoadParams, Loaded};
use super::sizes::Sizes;
use crate::config::Scope;
use crate::sys::bpf::{self, AttachKind, Mapping, Shared};

const BTF: &str = "/sys/kernel/btf/vmlinux";
const NAMESPACE: &str = "/proc/self/ns/pid";
/// The inode of the initial PID namespace: the kernel's `PROC_PID_INIT_INO`.
const FIRST_NAMESPACE: u64 = 0xefff_fffc;
const CPUS: &str = "/sys/devices/system/cpu/possible";

/// The program with typed arguments. It runs so often that reading them must be cheap.
const TYPED: &str = "sched_switch";
/// The program that the supervisor runs itself; it has no tracepoint.
const REFRESH: &str = "refresh";
/// Programs that a kernel may lack. Without this one, OOM kills are not recognised.
const OPTIONAL: [&str; 1] = ["mark_victim"];

/// The maps and descriptors of the running programs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) processes: Mapping<Process>,
    pub(super) accounts: Mapping<Account>,
    pub(super) cpus: Mapping<Cpu>,
    pub(super) control: Mapping<Control>,
    /// The first index that is not reserved for a worker's own process.
    first_shared_index: usize,
    /// The program that records the resident memory of the process on a CPU.
    pub(super) refresh: OwnedFd,
    /// Whether the pids that the programs see are valid here: this is the initial PID namespace.
    pub(super) in_initial_namespace: bool,
    /// Whether OOM kills are recognised.
    pub(super) sees_oom: bool,
    /// The programs stay attached while these are open.
    #[cfg_attr(not(test), expect(dead_code, reason = "held, not read"))]
    pub(super) links: Vec<OwnedFd>,
}

impl Running {
    /// All entries that were ever in use.
    pub(super) fn used_processes(&self) -> impl Iterator<Item = &Process> {
        let highest = self.control.first().map_or(0, |control| control.highest.load(Acquire));
        self.processes.iter().take(usize::try_from(highest).unwrap_or(0) + 1)
    }

    /// All entries that can belong to an account: that of the worker's own process, and those of descendants.
    pub(super) fn processes_of_account(&self, account: u32) -> impl Iterator<Item = &Process> {
        let own = self.processes.get(account as usize);
        own.into_iter().chain(self.used_processes().skip(self.first_shared_index))
    }
}

/// Loads and attaches the programs.
///
/// # Errors
/// What the kernel refused or lacks.
pub(super) fn start(scope: Scope, sizes: Sizes) -> Result<Running, LoadError> {
    let (kernel_offsets, switch) = {
        let bytes = std::fs::read(BTF).map_err(|error| LoadError::new(BTF, error))?;
        let btf = Btf::parse(&bytes).ok_or_else(|| LoadError::new(BTF, "in a form that is not known"))?;
        let found =
            kernel_offsets(&btf).and_then(|kernel_offsets| Ok((kernel_offsets, tracepoint(&btf, TYPED)?)));
        found.map_err(|error| LoadError::new(BTF, error))?
    };
    let params = params(scope, sizes)?;
    let entries = HashMap::from([
        ("TARGETS", sizes.max_processes()),
        ("PROCESSES", sizes.max_processes()),
        ("ACCOUNTS", sizes.accounts()),
        ("CPUS", possible_cpus()?),
        ("FREE_INDEXES", sizes.descendants),
    ]);
    let typed = HashMap::from([(TYPED, switch)]);
    let load_params =
        LoadParams { kernel_offsets: &kernel_offsets, params: &params, entries: &entries, typed: &typed };
    let loaded = with_locked_memory(|| object::load(&load_params))?;
    fill(&loaded, sizes)?;
    attach(loaded, sizes)
}

/// The supervisor's process, in the terms of the programs.
fn params(scope: Scope, sizes: Sizes) -> Result<Params, LoadError> {
    let namespace = std::fs::metadata(NAMESPACE).map_err(|error| LoadError::new(NAMESPACE, error))?;
    // The kernel's encoding has the minor number in the low 20 bits, unlike that of stat(2).
    let device = namespace.st_dev();
    let device = u64::from(rustix::fs::major(device)) << 20 | u64::from(rustix::fs::minor(device));
    Ok(Params {
        namespace: [device, namespace.st_ino()],
        supervisor: std::process::id(),
        tree: match scope {
            Scope::Worker => 0,
            Scope::Tree => 1,
        },
        first_shared_index: sizes.first_shared_index(),
        page_shift: rustix::param::page_size().trailing_zeros(),
    })
}

fn is_in_first_namespace() -> bool {
    std::fs::metadata(NAMESPACE).is_ok_and(|namespace| namespace.st_ino() == FIRST_NAMESPACE)
}

/// The number of entries of an array that is indexed by CPU.
fn possible_cpus() -> Result<u32, LoadError> {
    let text = std::fs::read_to_string(CPUS).map_err(|error| LoadError::new(CPUS, error))?;
    // Ranges in ascending order: `0-7`, or `0`, or `0-3,8-11`.
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u32>().ok());
    last.map(|last| last + 1).ok_or_else(|| LoadError::new(CPUS, "in a form that is not known"))
}

/// Raises the limit on locked memory for the call. Before Linux 5.11, maps and programs count as locked memory when
/// they are made, and the default limit is low. If raising it is not permitted, the limit may still suffice.
fn with_locked_memory<T>(work: impl FnOnce() -> T) -> T {
    let before = getrlimit(Resource::Memlock);
    let raised = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_ok();
    let result = work();
    if raised {
        let _was_allowed_before = setrlimit(Resource::Memlock, before);
    }
    result
}

/// Fills the stack of free indexes.
fn fill(loaded: &Loaded, sizes: Sizes) -> Result<(), LoadError> {
    let indexes = map(loaded, "FREE_INDEXES")?;
    for index in sizes.shared_indexes() {
        let pushed = indexes.update(&[], &index.to_ne_bytes());
        pushed.map_err(|error| LoadError::new("bpf(BPF_MAP_UPDATE_ELEM) FREE_INDEXES", error))?;
    }
    Ok(())
}

fn attach(mut loaded: Loaded, sizes: Sizes) -> Result<Running, LoadError> {
    let refresh =
        loaded.programs.remove(REFRESH).ok_or_else(|| LoadError::new("the eBPF object", "no refresh"))?.fd;
    let mut links = Vec::new();
    let mut sees_oom = true;
    for (name, program) in &loaded.programs {
        let tracepoint = CString::new(name.as_str()).map_err(|error| LoadError::new(name, error))?;
        let tracepoint = match program.attach_kind {
            AttachKind::RawTracepoint => Some(tracepoint.as_c_str()),
            AttachKind::BtfTracepoint(_) => None,
        };
        match bpf::attach(program.fd.as_fd(), tracepoint) {
            Ok(link) => links.push(link),
            Err(error) if OPTIONAL.contains(&name.as_str()) => {
                tracing::debug!("bpf(BPF_RAW_TRACEPOINT_OPEN) {name}: {error}");
                sees_oom = false;
            }
            Err(error) => {
                return Err(LoadError::new(format_args!("bpf(BPF_RAW_TRACEPOINT_OPEN) {name}"), error));
            }
        }
    }
    Ok(Running {
        processes: mapping(&loaded, "PROCESSES")?,
        accounts: mapping(&loaded, "ACCOUNTS")?,
        cpus: mapping(&loaded, "CPUS")?,
        control: mapping(&loaded, "CONTROL")?,
        first_shared_index: sizes.first_shared_index() as usize,
        refresh,
        in_initial_namespace: is_in_first_namespace(),
        sees_oom,
        links,
    })
}

fn map<'a>(loaded: &'a Loaded, name: &str) -> Result<&'a bpf::Map, LoadError> {
    loaded.maps.get(name).ok_or_else(|| LoadError::new("the eBPF object", format_args!("no map {name}")))
}

fn mapping<T: Shared>(loaded: &Loaded, name: &str) -> Result<Mapping<T>, LoadError> {
    Mapping::new(map(loaded, name)?).map_err(|error| LoadError::new(format_args!("mmap {name}"), error))
}
