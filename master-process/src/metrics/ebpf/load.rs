//! From nothing to programs that run.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::sync::atomic::Ordering::Acquire;

use master_process_common::{Account, Control, Cpu, Process, Setup};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::btf::Btf;
use super::layout::{layout, tracepoint};
use super::object::{self, Loaded, Terms};
use super::refusal::Refusal;
use super::sizes::Sizes;
use crate::config::Scope;
use crate::sys::bpf::{self, AttachKind, Mapping, Shared};

const BTF: &str = "/sys/kernel/btf/vmlinux";
const NAMESPACE: &str = "/proc/self/ns/pid";
/// The inode of the first PID namespace: the kernel's `PROC_PID_INIT_INO`.
const FIRST_NAMESPACE: u64 = 0xefff_fffc;
const CPUS: &str = "/sys/devices/system/cpu/possible";

/// The program whose arguments are typed: it runs so often that reading them must be cheap.
const TYPED: &str = "sched_switch";
/// The program that is run when we say so, and at no tracepoint.
const REFRESH: &str = "refresh";
/// What a kernel may lack without anything but this being lost: who was killed for want of memory.
const OPTIONAL: [&str; 1] = ["mark_victim"];

/// What is left once everything runs: memory and descriptors.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) processes: Mapping<Process>,
    pub(super) accounts: Mapping<Account>,
    pub(super) cpus: Mapping<Cpu>,
    pub(super) control: Mapping<Control>,
    /// The first place that is not a worker's own.
    first_shared_place: usize,
    /// The program that notes what is resident of whoever runs on a CPU.
    pub(super) refresh: OwnedFd,
    /// Whether the numbers of processes on the kernel side are those that we know: we are in the first PID namespace.
    pub(super) numbers_as_we_do: bool,
    /// Whether it is known whom the kernel kills for want of memory.
    pub(super) sees_oom: bool,
    /// The programs run for as long as these are open.
    #[cfg_attr(not(test), expect(dead_code, reason = "held, not read"))]
    pub(super) links: Vec<OwnedFd>,
}

impl Running {
    /// Every place that was ever in use.
    pub(super) fn used_places(&self) -> impl Iterator<Item = &Process> {
        let highest = self.control.first().map_or(0, |control| control.highest.load(Acquire));
        self.processes.iter().take(usize::try_from(highest).unwrap_or(0) + 1)
    }

    /// Every place that an account's processes can be in: a worker's own, which has the account's number, and those
    /// that are given out to descendants.
    pub(super) fn places_of(&self, account: u32) -> impl Iterator<Item = &Process> {
        let own = self.processes.get(account as usize);
        own.into_iter().chain(self.used_places().skip(self.first_shared_place))
    }
}

/// Loads and attaches everything.
///
/// # Errors
/// What could not be had.
pub(super) fn start(scope: Scope, sizes: Sizes) -> Result<Running, Refusal> {
    let (layout, switch) = {
        let bytes = std::fs::read(BTF).map_err(|error| Refusal::new(BTF, error))?;
        let btf = Btf::parse(&bytes).ok_or_else(|| Refusal::new(BTF, "in a form that is not known"))?;
        let found = layout(&btf).and_then(|layout| Ok((layout, tracepoint(&btf, TYPED)?)));
        found.map_err(|error| Refusal::new(BTF, error))?
    };
    let setup = setup(scope, sizes)?;
    let entries = HashMap::from([
        ("TARGETS", sizes.places()),
        ("PROCESSES", sizes.places()),
        ("ACCOUNTS", sizes.accounts()),
        ("CPUS", possible_cpus()?),
        ("PLACES", sizes.descendants),
    ]);
    let typed = HashMap::from([(TYPED, switch)]);
    let terms = Terms { layout: &layout, setup: &setup, entries: &entries, typed: &typed };
    let loaded = with_locked_memory(|| object::load(&terms))?;
    fill(&loaded, sizes)?;
    attach(loaded, sizes)
}

/// Which process we are, as the kernel side can tell.
fn setup(scope: Scope, sizes: Sizes) -> Result<Setup, Refusal> {
    let namespace = std::fs::metadata(NAMESPACE).map_err(|error| Refusal::new(NAMESPACE, error))?;
    // The kernel has the minor number in the low 20 bits, what it tells us has not.
    let device = namespace.st_dev();
    let device = u64::from(rustix::fs::major(device)) << 20 | u64::from(rustix::fs::minor(device));
    Ok(Setup {
        namespace: [device, namespace.st_ino()],
        supervisor: std::process::id(),
        tree: match scope {
            Scope::Worker => 0,
            Scope::Tree => 1,
        },
        first_shared_place: sizes.first_shared_place(),
        page_shift: rustix::param::page_size().trailing_zeros(),
    })
}

fn is_in_first_namespace() -> bool {
    std::fs::metadata(NAMESPACE).is_ok_and(|namespace| namespace.st_ino() == FIRST_NAMESPACE)
}

/// How many entries an array needs that is indexed by CPU.
fn possible_cpus() -> Result<u32, Refusal> {
    let text = std::fs::read_to_string(CPUS).map_err(|error| Refusal::new(CPUS, error))?;
    // Ranges in ascending order: `0-7`, or `0`, or `0-3,8-11`.
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u32>().ok());
    last.map(|last| last + 1).ok_or_else(|| Refusal::new(CPUS, "in a form that is not known"))
}

/// Before Linux 5.11 maps and programs count as locked memory, of which little is allowed by default; they are counted
/// when they are made. Where we may not raise the limit, it may do as it is.
fn with_locked_memory<T>(work: impl FnOnce() -> T) -> T {
    let before = getrlimit(Resource::Memlock);
    let raised = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_ok();
    let result = work();
    if raised {
        let _was_allowed_before = setrlimit(Resource::Memlock, before);
    }
    result
}

/// Gives the kernel side the places that it gives out.
fn fill(loaded: &Loaded, sizes: Sizes) -> Result<(), Refusal> {
    let places = map(loaded, "PLACES")?;
    for place in sizes.shared_places() {
        let pushed = places.update(&[], &place.to_ne_bytes());
        pushed.map_err(|error| Refusal::new("bpf(BPF_MAP_UPDATE_ELEM) PLACES", error))?;
    }
    Ok(())
}

fn attach(mut loaded: Loaded, sizes: Sizes) -> Result<Running, Refusal> {
    let refresh =
        loaded.programs.remove(REFRESH).ok_or_else(|| Refusal::new("the eBPF object", "no refresh"))?.fd;
    let mut links = Vec::new();
    let mut sees_oom = true;
    for (name, program) in &loaded.programs {
        let tracepoint = CString::new(name.as_str()).map_err(|error| Refusal::new(name, error))?;
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
                return Err(Refusal::new(format_args!("bpf(BPF_RAW_TRACEPOINT_OPEN) {name}"), error));
            }
        }
    }
    Ok(Running {
        processes: mapping(&loaded, "PROCESSES")?,
        accounts: mapping(&loaded, "ACCOUNTS")?,
        cpus: mapping(&loaded, "CPUS")?,
        control: mapping(&loaded, "CONTROL")?,
        first_shared_place: sizes.first_shared_place() as usize,
        refresh,
        numbers_as_we_do: is_in_first_namespace(),
        sees_oom,
        links,
    })
}

fn map<'a>(loaded: &'a Loaded, name: &str) -> Result<&'a bpf::Map, Refusal> {
    loaded.maps.get(name).ok_or_else(|| Refusal::new("the eBPF object", format_args!("no map {name}")))
}

fn mapping<T: Shared>(loaded: &Loaded, name: &str) -> Result<Mapping<T>, Refusal> {
    Mapping::new(map(loaded, name)?).map_err(|error| Refusal::new(format_args!("mmap {name}"), error))
}
