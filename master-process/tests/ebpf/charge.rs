//! What a worker uses is what it is charged.

use std::time::{Duration, Instant};

use master_process::config::Scope;

use crate::harness::{assert_close, bench};

const MIB: u64 = 1 << 20;
const MILLISECOND: u64 = 1_000_000;

#[test]
fn cpu_time_of_a_busy_loop_is_the_schedulers() {
    let mut bench = bench!("cpu_time_of_a_busy_loop_is_the_schedulers", Scope::Worker);
    let worker = bench.start("burn 60000");
    std::thread::sleep(Duration::from_millis(200));
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(300));
        let (before, usage, after) = (worker.scheduled(), bench.usage(&worker), worker.scheduled());
        let found = usage.expect("a sample").cpu_ns;
        assert_between(found, before, after);
    }
}

#[test]
fn cpu_time_of_threads_adds_up_and_never_goes_back() {
    let mut bench = bench!("cpu_time_of_threads_adds_up_and_never_goes_back", Scope::Worker);
    let worker = bench.start("threads 8");
    std::thread::sleep(Duration::from_millis(200));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let (begun, first) = (Instant::now(), bench.usage(&worker).expect("a sample").cpu_ns);
    let mut last = first;
    while begun.elapsed() < Duration::from_secs(1) {
        let before = worker.scheduled();
        let now = bench.usage(&worker).expect("a sample").cpu_ns;
        assert!(now >= last, "{now} after {last}");
        let most = cpus * u64::try_from(begun.elapsed().as_nanos()).expect("a second") + 5 * MILLISECOND;
        assert!(now - first <= most, "{} of {most}", now - first);
        assert_between(now, before, worker.scheduled());
        last = now;
    }
}

/// Asserts that a number lies between what the scheduler says before and after. It adds up at its ticks only, ten
/// milliseconds apart at most. What a hypervisor takes at the moment of a switch, one charges to who goes and the other
/// to who comes.
fn assert_between(found: u64, before: u64, after: u64) {
    let least = before - before / 50;
    let most = after + after / 50;
    let margin = 12 * MILLISECOND;
    assert!(
        (least..=most + margin).contains(&(found + margin / 4)),
        "{found} is not from {before} to {after}"
    );
}

#[test]
fn memory_is_what_proc_says() {
    let mut bench = bench!("memory_is_what_proc_says", Scope::Worker);
    let mut worker = bench.start("hold 100");
    worker.ready();
    let usage = bench.usage(&worker).expect("a sample");
    assert_close(usage.memory, worker.resident(), MIB);
}

#[test]
fn memory_of_a_loop_without_system_calls_is_seen_too() {
    let mut bench = bench!("memory_of_a_loop_without_system_calls_is_seen_too", Scope::Worker);
    let mut worker = bench.start("hold-and-burn 100");
    worker.ready();
    std::thread::sleep(Duration::from_millis(1100));
    let usage = bench.usage(&worker).expect("a sample");
    assert_close(usage.memory, worker.resident(), MIB);
}

#[test]
fn the_supervisors_memory_is_not_its_childs() {
    let mut bench = bench!("the_supervisors_memory_is_not_its_childs", Scope::Worker);
    // A child runs in its parent's memory until it calls `exec`.
    let ours = vec![1u8; 300 << 20];
    for _ in 0..20 {
        let worker = bench.start("sleep 0");
        let words = bench.bury(worker);
        let peak = words.peak_memory.unwrap_or(0);
        assert!(peak < 100 * MIB, "{peak}");
    }
    drop(ours);
}

#[test]
fn the_peak_of_a_short_life_is_known() {
    let mut bench = bench!("the_peak_of_a_short_life_is_known", Scope::Worker);
    let mut worker = bench.start("hold 50");
    worker.ready();
    let resident = worker.resident();
    bench.usage(&worker).expect("a sample");
    worker.child.kill().expect("a living worker");
    let peak = bench.bury(worker).peak_memory.expect("a peak");
    // It can have let go of some in the meantime.
    assert!((resident - MIB..resident + 8 * MIB).contains(&peak), "{peak} of {resident}");
}
