//! What measuring costs a context switch, of somebody else's and of a worker's.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::super::running::Running;
use super::super::stats::{ratio, summary};
use super::super::subject::Supervisor;
use super::programs::{self, NOTHING, Nothing, cost};

/// Promised: at most so much for a switch of a task that is nobody's worker, the kernel's counting subtracted.
const PROMISED_OTHERS_NS: f64 = 100.0;

/// Promised: at most so much for one of a worker's.
const PROMISED_OURS_NS: f64 = 200.0;

/// Enough for half a second on one CPU.
const ROUND_TRIPS: u64 = 100_000;

/// Pairs of runs, with and without.
const PAIRS: usize = 7;

/// The program that charges.
const CHARGE: &str = "sched_switch";

/// Measures, prints, and gives the broken promises.
pub(super) fn measure(ours: &Supervisor, worker: &Path, pingpong: &Path) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    let mut keep = |what: &str, value: f64, promised: f64| {
        println!("  {what:<58}{value:>10.3}{promised:>12.3}");
        if value > promised {
            broken.push(format!("{what}: {value:.3}, promised {promised}"));
        }
    };
    println!("\n{:<60}{:>10}{:>12}", "eBPF, a context switch", "", "promised");
    // Shown and not promised. The first is the worst case: two processes on one CPU that do nothing but wake each other;
    // most of it is what the kernel takes for any program at that tracepoint. The second goes up and down by a tenth
    // where the two are on different CPUs of a virtual machine.
    let worst = with_and_without(ours, worker, || round_trip(pingpong))?;
    println!("  {:<58}{worst:>10.3}", "round trip of two processes on one CPU, with / without");
    let perf = with_and_without(ours, worker, perf_bench)?;
    println!("  {:<58}{perf:>10.3}", "perf bench sched pipe, with / without");
    keep("of somebody else, ns", others(ours, worker, pingpong)?, PROMISED_OTHERS_NS);
    keep("of a worker, ns", workers(ours, pingpong)?, PROMISED_OURS_NS);
    Ok(broken)
}

/// The nanoseconds of a round trip.
fn round_trip(pingpong: &Path) -> Result<u64> {
    let output = Command::new(pingpong).arg(ROUND_TRIPS.to_string()).output().context("starting pingpong")?;
    String::from_utf8_lossy(&output.stdout).trim().parse().context("pingpong says no number")
}

fn others(ours: &Supervisor, worker: &Path, pingpong: &Path) -> Result<f64> {
    programs::await_none(CHARGE)?;
    let (running, _) = Running::start(ours, 1, worker)?;
    let counted = counted(|| round_trip(pingpong).map(drop))?;
    running.end()?;
    Ok(counted)
}

fn workers(ours: &Supervisor, pingpong: &Path) -> Result<f64> {
    let mut command = Command::new(&ours.program);
    command.args(["-w", "1", "--ready", "none"]).args(ours.options).arg("--").arg(pingpong);
    command.args([ROUND_TRIPS.to_string(), "stay".to_owned()]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    programs::await_none(CHARGE)?;
    let mut child = None;
    let counted = counted(|| {
        let mut started = command.spawn().context("starting the supervisor")?;
        let mut line = String::new();
        let output = started.stdout.take().context("it is a pipe")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
        line.trim().parse::<u64>().context("pingpong says no number")?;
        child = Some(started);
        Ok(())
    });
    if let Some(mut child) = child {
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::TERM,
        )?;
        child.wait()?;
    }
    counted
}

/// Nanoseconds of each run of the charging program while `work` runs, less what an empty one takes.
fn counted(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let _counting = programs::count()?;
    let _nothing = Nothing::load()?;
    let before = (cost(CHARGE)?, cost(NOTHING)?);
    work()?;
    let after = (cost(CHARGE)?, cost(NOTHING)?);
    let (charge, nothing) = (after.0.each_since(before.0), after.1.each_since(before.1));
    anyhow::ensure!(charge > 0.0 && nothing > 0.0, "the programs have not run");
    println!("  (counted {charge:.1} ns, of which {nothing:.1} ns are the counting)");
    Ok(charge - nothing)
}

/// What `perf bench sched pipe` says: nanoseconds of an operation, on whichever CPUs the kernel likes.
fn perf_bench() -> Result<u64> {
    let words = ["bench", "--format", "simple", "sched", "pipe", "--loop", "100000"];
    let output = Command::new("perf").args(words).output().context("starting perf")?;
    let seconds: f64 =
        String::from_utf8_lossy(&output.stdout).trim().parse().context("perf says no number of seconds")?;
    Ok(ns_of_each(seconds, 100_000))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds at most")]
fn ns_of_each(seconds: f64, count: u32) -> u64 {
    (seconds * 1e9 / f64::from(count)) as u64
}

fn with_and_without(ours: &Supervisor, worker: &Path, bench: impl Fn() -> Result<u64>) -> Result<f64> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let (running, _) = Running::start(ours, 1, worker)?;
        with.push(bench()?);
        running.end()?;
        without.push(bench()?);
    }
    let median = |values| summary(values).map_or(0, |summary| summary.median);
    Ok(ratio(median(with), median(without)))
}
