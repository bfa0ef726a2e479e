//! What a sample costs the supervisor, in CPU time, from each source.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::super::running::Running;
use super::super::stats::ratio;
use super::super::subject::Supervisor;

/// Promised: procfs takes at least so many times as much.
const PROMISED_RATIO: f64 = 50.0;

/// Promised: at most so much CPU time in a second at the default interval, with [`MANY`] workers.
const PROMISED_US_PER_SECOND: f64 = 500.0;

const SOME: u32 = 1_000;
const MANY: u32 = 10_000;

/// Long against the start's last chores.
const SETTLE: Duration = Duration::from_secs(3);

/// How long the supervisor's CPU time is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// Measures, prints, and gives the broken promises. `sources` are eBPF with samples at `fast`, procfs likewise, and
/// eBPF at the default interval.
pub(super) fn measure(sources: &Sources, worker: &Path) -> Result<Vec<String>> {
    println!("\n{:<60}{:>10}{:>12}", "CPU time of a sample, µs", "", "promised");
    // What it takes to be woken, which on a virtual machine is most of it: that depends on nothing that is measured.
    let wake = sample_us(&sources.ebpf, sources.fast, worker, 1)?;
    println!("  {:<58}{wake:>10.1}", "to be woken, and one worker");
    let ebpf = sample_us(&sources.ebpf, sources.fast, worker, SOME)?;
    println!("  {:<58}{ebpf:>10.1}", format!("eBPF, {SOME} workers"));
    let procfs = sample_us(&sources.procfs, sources.fast, worker, SOME)?;
    println!("  {:<58}{procfs:>10.1}", format!("procfs, {SOME} workers"));
    let times = (procfs - wake) / (ebpf - wake).max(1.0);
    println!("  {:<58}{times:>10.1}{PROMISED_RATIO:>12.1}", "procfs / eBPF, without that");
    println!("  {:<58}{:>10.1}", "procfs / eBPF, with it", procfs / ebpf);
    let default = Duration::from_secs(2);
    let second = sample_us(&sources.default, default, worker, MANY)? / default.as_secs_f64();
    let what = format!("eBPF, {MANY} workers, a second at the default interval");
    println!("  {what:<58}{second:>10.1}{PROMISED_US_PER_SECOND:>12.1}");
    let mut broken = Vec::new();
    if times < PROMISED_RATIO {
        broken.push(format!("a sample of procfs costs {times:.1} of eBPF, promised {PROMISED_RATIO}"));
    }
    if second > PROMISED_US_PER_SECOND {
        broken.push(format!("{what}: {second:.1} µs, promised {PROMISED_US_PER_SECOND}"));
    }
    Ok(broken)
}

/// The supervisors that are compared.
pub(super) struct Sources {
    pub(super) ebpf: Supervisor,
    pub(super) procfs: Supervisor,
    pub(super) default: Supervisor,
    /// The interval of the first two.
    pub(super) fast: Duration,
}

fn sample_us(ours: &Supervisor, interval: Duration, worker: &Path, workers: u32) -> Result<f64> {
    let (running, _) = Running::start(ours, workers, worker)?;
    std::thread::sleep(SETTLE);
    let before = running.cpu_ns()?;
    std::thread::sleep(WATCHED);
    let used = running.cpu_ns()?.saturating_sub(before);
    running.end()?;
    let samples = WATCHED.as_secs_f64() / interval.as_secs_f64();
    Ok(ratio(used, 1000) / samples)
}
