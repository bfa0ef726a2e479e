//! What a sample costs in CPU time, from each source: with eBPF the kernel, with procfs the supervisor.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use master_process::config::Scope;
use master_process::metrics::ebpf::{Ebpf, Thresholds};
use master_process::policy::WorkerId;
use rustix::process::{Pid, Signal, kill_process};

use super::super::running::Running;
use super::super::stats::ratio;
use super::super::subject::Supervisor;

/// Promised: the kernel takes at most so much for a sample of [`SOME`] idle workers. It is the time of one cache line of each,
/// which is in no cache any more after an interval, and of the few that are measured although they are idle; three times
/// what was measured.
const PROMISED_US: f64 = 1000.0;

/// Promised: procfs takes at least so many times as much.
const PROMISED_RATIO: f64 = 20.0;

const SOME: u32 = 1_000;
const MANY: u32 = 10_000;

/// Long against what the supervisor still does after the start.
const AFTER_START: Duration = Duration::from_secs(3);

/// How long the supervisor's CPU time is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// The default interval: what the samples read is in no cache any more.
const USUAL: Duration = Duration::from_secs(2);

/// An interval after which much of it still is.
const SHORT: Duration = Duration::from_millis(10);

/// What the workers of a row do.
#[derive(Clone, Copy, PartialEq)]
enum Workers {
    /// Nothing.
    Idle,
    /// Each runs for an instant between two samples.
    Awake,
}

/// Measures, prints, and returns the broken promises. `procfs` takes samples at `interval`.
pub(super) fn measure(procfs: &Supervisor, interval: Duration, worker: &Path) -> Result<Vec<String>> {
    println!("\n{:<60}{:>10}{:>12}", "CPU time of a sample, µs", "", "promised");
    let row = |what: &str, us: f64, promised: &str| println!("  {what:<58}{us:>10.1}{promised:>12}");
    let ebpf = kernel_us(SOME, USUAL, Workers::Idle, worker)?;
    row(&format!("eBPF, {SOME} idle workers, in the kernel"), ebpf, &format!("{PROMISED_US:.1}"));
    let warm = kernel_us(SOME, SHORT, Workers::Idle, worker)?;
    row("  the same every 10 ms, with warm caches", warm, "");
    let awake = kernel_us(SOME, USUAL, Workers::Awake, worker)?;
    row("  the same every 2 s, and each has run since the last one", awake, "");
    let many = kernel_us(MANY, USUAL, Workers::Idle, worker)?;
    row(&format!("eBPF, {MANY} idle workers, in the kernel"), many, "");
    let procfs = supervisor_us(procfs, interval, worker, SOME)?;
    row(&format!("procfs, {SOME} idle workers, in the supervisor"), procfs, "");
    let times = procfs / ebpf;
    row("procfs / eBPF", times, &format!("{PROMISED_RATIO:.1}"));
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

impl Idle {
    /// Has each run for an instant.
    fn wake(&self) -> Result<()> {
        for child in &self.0 {
            let pid = Pid::from_child(child);
            kill_process(pid, Signal::STOP)?;
            kill_process(pid, Signal::CONT)?;
        }
        Ok(())
    }
}

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

/// The time that the kernel takes for a sample of this many workers.
fn kernel_us(count: u32, interval: Duration, workers: Workers, worker: &Path) -> Result<f64> {
    let mut ebpf = Ebpf::load(Scope::Tree, count, interval, Thresholds::default()).context("loading eBPF")?;
    let mut idle = Idle(Vec::new());
    for serial in 0..u64::from(count) {
        let child = Command::new(worker).stdout(Stdio::null()).stdin(Stdio::null()).spawn()?;
        ebpf.watch(WorkerId { slot: 0, serial }, Pid::from_child(&child))?;
        idle.0.push(child);
    }
    std::thread::sleep(AFTER_START);
    let before = ebpf.cost();
    let until = Instant::now() + WATCHED;
    while Instant::now() < until {
        if workers == Workers::Awake {
            idle.wake()?;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
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
