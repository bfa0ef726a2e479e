//! What the kernel counts of its eBPF programs: runs, and nanoseconds.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

use super::super::stats::ratio;

/// Far more than the kernel takes to free a program.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What one program has cost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    runs: u64,
    ns: u64,
}

impl Cost {
    /// Of each run since `before`, in nanoseconds.
    pub(super) fn each_since(self, before: Cost) -> f64 {
        ratio(self.ns.saturating_sub(before.ns), self.runs.saturating_sub(before.runs).max(1))
    }
}

/// Counts the cost of all programs for as long as it lives; bpf(2), BPF_ENABLE_STATS.
pub(super) fn count() -> Result<OwnedFd> {
    enable_stats(Stats::RunTime).context("bpf(BPF_ENABLE_STATS)")
}

/// Waits until no program of this name is loaded: the kernel takes a supervisor's apart a moment after its end.
pub(super) fn await_none(name: &str) -> Result<()> {
    let deadline = Instant::now() + TIMEOUT;
    while loaded_programs().flatten().any(|program| program.name_as_str() == Some(name)) {
        anyhow::ensure!(Instant::now() < deadline, "another supervisor measures with eBPF on this host");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What the programs of this name have cost since they were loaded, all together; nothing where there is none.
pub(super) fn cost(name: &str) -> Result<Cost> {
    let mut cost = Cost::default();
    for program in loaded_programs() {
        // One that was unloaded while we look.
        let Ok(program) = program else { continue };
        if program.name_as_str() == Some(name) {
            cost.runs += program.run_count();
            cost.ns += u64::try_from(program.run_time().as_nanos()).unwrap_or(u64::MAX);
        }
    }
    Ok(cost)
}

/// A program at the same tracepoint that does nothing: what it costs is the counting's own cost.
pub(super) struct Nothing {
    _program: OwnedFd,
    _link: OwnedFd,
}

/// Its name, as the kernel tells it.
pub(super) const NOTHING: &str = "nothing";

/// bpf(2) has one structure for each command; these are the fields that we set, the rest is zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct Open {
    name: u64,
    prog_fd: u32,
    pad: u32,
}

const BPF_PROG_LOAD: i32 = 5;
const BPF_RAW_TRACEPOINT_OPEN: i32 = 17;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;

impl Nothing {
    pub(super) fn load() -> Result<Nothing> {
        // r0 = 0; exit
        let instructions: [u64; 2] = [0xb7, 0x95];
        let mut load = Load {
            prog_type: BPF_PROG_TYPE_RAW_TRACEPOINT,
            insn_cnt: 2,
            insns: instructions.as_ptr() as u64,
            license: c"MIT".as_ptr() as u64,
            ..Load::default()
        };
        load.prog_name[..NOTHING.len()].copy_from_slice(NOTHING.as_bytes());
        let program = bpf(BPF_PROG_LOAD, &load).context("bpf(BPF_PROG_LOAD)")?;
        let prog_fd = u32::try_from(program.as_raw_fd())?;
        let open = Open { name: c"sched_switch".as_ptr() as u64, prog_fd, pad: 0 };
        let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &open).context("bpf(BPF_RAW_TRACEPOINT_OPEN)")?;
        Ok(Nothing { _program: program, _link: link })
    }
}

fn bpf<T>(command: i32, attributes: &T) -> std::io::Result<OwnedFd> {
    // SAFETY: the structure has the command's layout, its pointers are to memory that outlives the call, and the kernel
    // takes a shorter one than its own as filled up with zeros.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    let Ok(fd) = i32::try_from(fd) else { return Err(std::io::ErrorKind::InvalidData.into()) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
