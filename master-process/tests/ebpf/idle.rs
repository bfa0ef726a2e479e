//! Workers that do not run are not measured at each sample, and what becomes of them is seen all the same.

use std::os::unix::fs::FileExt;

use master_process::config::Scope;
use master_process_tests::{TIMEOUT, eventually};

use crate::harness::{Bench, assert_close, bench, resident};

const MIB: u64 = 1 << 20;

/// More samples than an idle worker is not measured at.
const SAMPLES: u64 = 20;

fn let_samples_pass(bench: &Bench) {
    let samples = bench.ebpf.cost().0;
    eventually(TIMEOUT, "samples", || bench.ebpf.cost().0 >= samples + SAMPLES);
}

#[test]
fn what_an_idle_worker_does_is_seen_at_the_next_sample() {
    let mut bench = bench!("what_an_idle_worker_does_is_seen_at_the_next_sample", Scope::Tree);
    let mut worker = bench.start_python(
        "
import os, sys, time
print('ready', flush=True)
sys.stdin.readline()
kept = b'x' * (50 << 20)
print('ready', flush=True)
sys.stdin.readline()
if os.fork() == 0:
    own = b'y' * (50 << 20)
    print(os.getpid(), 'ready', sep='\\n', flush=True)
sys.stdin.readline()
",
    );
    worker.ready();
    let_samples_pass(&bench);
    let before = bench.usage(&worker).expect("a sample");
    worker.tell("allocate");
    worker.ready();
    let usage = bench.usage(&worker).expect("a sample");
    // The kernel adds the pages up for each CPU with a delay.
    assert!(usage.memory >= before.memory + 49 * MIB, "{usage:?} after {before:?}");
    assert_close(usage.memory, worker.resident(), MIB);
    assert!(usage.cpu_ns > before.cpu_ns, "{usage:?} after {before:?}");

    let_samples_pass(&bench);
    worker.tell("fork");
    let child = *worker.ready().last().expect("a child");
    let usage = bench.usage(&worker).expect("a sample");
    assert_close(usage.memory, worker.resident() + resident(child), 2 * MIB);
}

#[test]
fn memory_of_an_idle_worker_that_others_change_is_measured_some_samples_later() {
    let mut bench =
        bench!("memory_of_an_idle_worker_that_others_change_is_measured_some_samples_later", Scope::Tree);
    let mut worker = bench.start_python(
        "
import ctypes, mmap, sys
room = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print(ctypes.addressof(ctypes.c_char.from_buffer(room)), 'ready', sep='\\n', flush=True)
sys.stdin.readline()
",
    );
    let address = worker.ready_at();
    let_samples_pass(&bench);
    let before = bench.usage(&worker).expect("a sample");
    // The kernel allocates the pages in the worker's memory. The worker does not run.
    let memory = std::fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", worker.child.id()));
    memory.and_then(|memory| memory.write_all_at(&vec![1; 8 << 20], address)).expect("a child of ours");
    let_samples_pass(&bench);
    let usage = bench.usage(&worker).expect("a sample");
    assert!(usage.memory >= before.memory + 7 * MIB, "{usage:?} after {before:?}");
    assert_close(usage.memory, worker.resident(), MIB);
    assert_eq!(usage.cpu_ns, before.cpu_ns, "it has not run");
}
