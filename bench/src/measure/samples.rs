//! What a sample costs in CPU time, from each source: with eBPF the kernel, with procfs the supervisor.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use master_process::config::Scope;
use master_process::metrics::ebpf::{Ebpf, Thresholds};
use master_process::policy::WorkerId;
use rustix::process::Pid;

use super::super::running::Running;
use super::super::stats::ratio;
use super::super::subject::Supervisor;

/// Promised: the kernel takes at most so much for a sample of [`SOME`] workers. It is the time of some twenty cache lines of
/// each, which are in no cache any more after an interval.
const PROMISED_US: f64 = 3000.0;

/// Promised: procfs takes at least so many times as much.
const PROMISED_RATIO: f64 = 5.0;

const SOME: u32 = 1_000;
const MANY: u32 = 10_000;

/// Long against what the supervisor still does after the start.
const AFTER_START: Duration = Duration::from_secs(3);

/// How long the supervisor's CPU time is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// Measures, prints, and returns the broken promises. `procfs` takes samples at `interval`.
pub(super) fn measure(procfs: &Supervisor, interval: Duration, worker: &Path) -> Result<Vec<String>> {
    println!("\n{:<60}{:>10}{:>12}", "CPU time of a sample, µs", "", "promised");
    let ebpf = kernel_us(SOME, worker)?;
    println!("  {:<58}{ebpf:>10.1}{PROMISED_US:>12.1}", format!("eBPF, {SOME} idle workers, in the kernel"));
    let many = kernel_us(MANY, worker)?;
    println!("  {:<58}{many:>10.1}", format!("eBPF, {MANY} idle workers, in the kernel"));
    let procfs = supervisor_us(procfs, interval, worker, SOME)?;
    println!("  {:<58}{procfs:>10.1}", format!("procfs, {SOME} idle workers, in the supervisor"));
    let times = procfs / ebpf;
    println!("  {:<58}{times:>10.1}{PROMISED_RATIO:>12.1}", "procfs / eBPF");
    let mut broken = Vec::new();
    if ebpf > PROMISED_US {
        broken.push(format!("a sample of {SOME} workers takes {ebpf:.1} µs, promised {PROMISED_US}"));
    }
    if times < PROMISED_RATIO {
        broken.push(format!("a sample of procfs costs {times:.1} of eBPF, promised {PROMISED_RATIO}"));
    }
    Ok(broken)
}

/// Processes that end with the benchmark.
struct Idle(Vec<Child>);

impl Drop for Idle {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ended = child.kill();
        }
        for child in &mut self.0 {
            let _status = child.wait();
        }
    }
}

/// The time that the kernel takes for a sample of this many workers at the default interval.
fn kernel_us(workers: u32, worker: &Path) -> Result<f64> {
    let mut ebpf = Ebpf::load(Scope::Tree, workers, Duration::from_secs(2), Thresholds::default())
        .context("loading eBPF")?;
    let mut idle = Idle(Vec::new());
    for serial in 0..u64::from(workers) {
        let child = Command::new(worker).stdout(Stdio::null()).stdin(Stdio::null()).spawn()?;
        ebpf.watch(WorkerId { slot: 0, serial }, Pid::from_child(&child))?;
        idle.0.push(child);
    }
    std::thread::sleep(AFTER_START);
    let before = ebpf.cost();
    std::thread::sleep(WATCHED);
    let after = ebpf.cost();
    let used = u64::try_from((after.1 - before.1).as_nanos())?;
    Ok(ratio(used, 1000 * (after.0 - before.0).max(1)))
}

fn supervisor_us(ours: &Supervisor, interval: Duration, worker: &Path, workers: u32) -> Result<f64> {
    let (running, _) = Running::start(ours, workers, worker)?;
    std::thread::sleep(AFTER_START);
    let before = running.cpu_ns()?;
    std::thread::sleep(WATCHED);
    let used = running.cpu_ns()?.saturating_sub(before);
    running.end()?;
    let samples = WATCHED.as_secs_f64() / interval.as_secs_f64();
    Ok(ratio(used, 1000) / samples)
}
