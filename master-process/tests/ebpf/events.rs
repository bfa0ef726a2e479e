//! Which samples are reported.

use std::time::Duration;

use master_process::config::Scope;
use master_process::metrics::ebpf::Thresholds;
use master_process::policy::Usage;
use master_process_tests::{TIMEOUT, eventually};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::harness::{Bench, INTERVAL, Worker, bench};

const MIB: u64 = 1 << 20;

/// The events of a worker since the last call, if the descriptor is readable.
fn events(bench: &mut Bench, worker: &Worker) -> Vec<Usage> {
    let mut found = Vec::new();
    if is_readable(bench) {
        bench.ebpf.events(&mut |id, usage| {
            if id == worker.id {
                found.push(usage);
            }
        });
    }
    found
}

fn is_readable(bench: &Bench) -> bool {
    let mut watched = [PollFd::from_borrowed_fd(bench.ebpf.fd(), PollFlags::IN)];
    let wait = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut watched, Some(&wait)).expect("a map that can be polled") > 0
}

/// Waits for the next event.
fn next_event(bench: &mut Bench, worker: &Worker) -> Usage {
    let mut found = Vec::new();
    eventually(TIMEOUT, "an event", || {
        found = events(bench, worker);
        !found.is_empty()
    });
    found[0]
}

fn limited(thresholds: Thresholds) -> Result<Bench, master_process::metrics::ebpf::LoadError> {
    Bench::with_limits(Scope::Tree, thresholds)
}

#[test]
fn a_worker_within_its_limits_is_measured_and_never_reported() {
    let thresholds = Thresholds { cpu: Some(900_000_000), memory: Some(200 * MIB) };
    let mut bench = bench!("a_worker_within_its_limits_is_measured_and_never_reported", limited(thresholds));
    let mut worker = bench.start("hold 50");
    worker.ready();
    // What it did until it was ready may have been above a limit.
    bench.usage(&worker).expect("a sample");
    bench.usage(&worker).expect("a sample");
    events(&mut bench, &worker);
    let samples = bench.ebpf.cost().0;
    eventually(TIMEOUT, "ten samples", || bench.ebpf.cost().0 >= samples + 10);
    assert_eq!(events(&mut bench, &worker), []);
    assert!(bench.usage(&worker).is_some_and(|usage| usage.memory > 50 * MIB));
}

#[test]
fn each_sample_above_the_limit_of_memory_is_reported_and_the_first_one_within_it() {
    let thresholds = Thresholds { cpu: None, memory: Some(60 * MIB) };
    let mut bench = bench!(
        "each_sample_above_the_limit_of_memory_is_reported_and_the_first_one_within_it",
        limited(thresholds)
    );
    let mut worker = bench.start("breathe 100");
    worker.ready();
    for _ in 0..2 {
        let mut above = 0;
        loop {
            let usage = next_event(&mut bench, &worker);
            if usage.memory > 60 * MIB {
                above += 1;
            } else if above > 0 && usage.memory < 48 * MIB {
                break;
            }
        }
        assert!(above > 3, "a second has fifty samples: {above}");
        // It is within the limit for a second.
        let samples = bench.ebpf.cost().0;
        eventually(TIMEOUT, "five samples", || bench.ebpf.cost().0 >= samples + 5);
        assert!(events(&mut bench, &worker).is_empty() || bench.ebpf.cost().0 > samples + 30);
    }
}

#[test]
fn a_sample_above_the_limit_of_cpu_time_has_the_time_that_it_covers() {
    let thresholds = Thresholds { cpu: Some(10_000_000), memory: None };
    let mut bench =
        bench!("a_sample_above_the_limit_of_cpu_time_has_the_time_that_it_covers", limited(thresholds));
    let mut worker = bench.start("burn 60000");
    worker.ready();
    next_event(&mut bench, &worker);
    for _ in 0..5 {
        // On a busy machine it does not run in some samples, and the next one is an event as well.
        let mut before = next_event(&mut bench, &worker).before.expect("not the first one");
        while before.used_ns * 100 <= before.span_ns {
            before = next_event(&mut bench, &worker).before.expect("not the first one");
        }
        assert!(
            before.span_ns >= 1_000_000 && before.ago >= Duration::from_nanos(before.span_ns),
            "{before:?}"
        );
        assert!(u128::from(before.span_ns) <= INTERVAL.as_nanos() * 50, "{before:?}");
    }
}

#[test]
fn a_limit_of_memory_that_was_lifted_is_not_reported() {
    let thresholds = Thresholds { cpu: None, memory: Some(20 * MIB) };
    let mut bench = bench!("a_limit_of_memory_that_was_lifted_is_not_reported", limited(thresholds));
    let mut worker = bench.start("hold 50");
    worker.ready();
    next_event(&mut bench, &worker);
    bench.ebpf.lift_memory_limit(worker.id);
    bench.usage(&worker).expect("a sample");
    events(&mut bench, &worker);
    bench.usage(&worker).expect("a sample");
    assert_eq!(events(&mut bench, &worker), []);
}

#[test]
fn the_programs_are_loaded_anew_when_there_are_more_workers_than_accounts() {
    let mut bench = bench!(
        "the_programs_are_loaded_anew_when_there_are_more_workers_than_accounts",
        limited(Thresholds::default())
    );
    let mut workers: Vec<Worker> = (0..40).map(|_| bench.start("hold 1")).collect();
    for worker in &mut workers {
        worker.ready();
    }
    for worker in &workers {
        let usage = bench.usage(worker).expect("it is measured");
        assert!(usage.memory > MIB, "{usage:?}");
    }
    let first = workers.swap_remove(0);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &format!("kill -9 {}", first.child.id())]).status().expect("a shell");
    let details = bench.bury(first);
    assert_eq!(details.killer.map(|killer| killer.signal), Some(9));
}
