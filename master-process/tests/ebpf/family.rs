//! Whose use counts as a worker's.

use std::time::Duration;

use master_process::config::Scope;
use master_process::policy::WorkerId;
use master_process_tests::{TIMEOUT, eventually};

use crate::harness::{assert_close, bench, resident};

const MIB: u64 = 1 << 20;

#[test]
fn a_tree_has_the_memory_of_all_its_processes() {
    let mut bench = bench!("a_tree_has_the_memory_of_all_its_processes", Scope::Tree);
    let mut worker = bench.start("parent hold 100");
    let child = *worker.ready().last().expect("a child");
    let usage = bench.usage(&worker).expect("a sample");
    assert_close(usage.memory, worker.resident() + resident(child), 2 * MIB);
}

#[test]
fn a_worker_alone_has_its_own_memory() {
    let mut bench = bench!("a_worker_alone_has_its_own_memory", Scope::Worker);
    let mut worker = bench.start("parent hold 100");
    worker.ready();
    let usage = bench.usage(&worker).expect("a sample");
    assert_close(usage.memory, worker.resident(), MIB);
}

#[test]
fn short_lives_are_charged_to_the_last_instant() {
    let mut bench = bench!("short_lives_are_charged_to_the_last_instant", Scope::Tree);
    let mut worker = bench.start("many 50");
    worker.ready();
    let usage = bench.usage(&worker).expect("a sample");
    // Fifty times ten milliseconds, and what starting and ending fifty processes takes.
    let ended = of_ended_children(worker.child.id());
    assert!(usage.cpu_ns >= 500_000_000, "{}", usage.cpu_ns);
    assert_close(usage.cpu_ns, worker.scheduled() + ended, 25_000_000);
    assert_close(usage.memory, worker.resident(), MIB);
}

/// CPU time of the children that a process has waited for, in nanoseconds: proc_pid_stat(5), fields 16 and 17.
fn of_ended_children(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its status");
    let (_name, rest) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<u64>().expect("a number");
    (ticks(13) + ticks(14)) * 10_000_000
}

#[test]
fn a_grandchild_whose_parent_is_gone_still_counts() {
    let mut bench = bench!("a_grandchild_whose_parent_is_gone_still_counts", Scope::Tree);
    let mut worker = bench.start("parent abandon hold 100");
    let said = worker.ready();
    let [_worker, parent, orphan] = said[..] else { panic!("{said:?}") };
    std::thread::sleep(Duration::from_millis(200));
    kill(parent);
    eventually(TIMEOUT, "the orphan alone counts", || {
        let memory = bench.usage(&worker).map_or(0, |usage| usage.memory);
        (100 * MIB..130 * MIB).contains(&memory)
    });
    kill(orphan);
}

#[test]
fn a_thread_that_becomes_another_program_stays_the_worker() {
    let mut bench = bench!("a_thread_that_becomes_another_program_stays_the_worker", Scope::Tree);
    let mut worker = bench.start("exec parent hold 50");
    let child = *worker.ready().last().expect("a child");
    let usage = bench.usage(&worker).expect("a sample");
    assert_close(usage.memory, worker.resident() + resident(child), 2 * MIB);
    kill(child);
}

#[test]
fn a_worker_that_ends_leaves_nothing_to_the_next() {
    let mut bench = bench!("a_worker_that_ends_leaves_nothing_to_the_next", Scope::Tree);
    let mut worker = bench.start("abandon hold-and-burn 100");
    let orphan = *worker.ready().last().expect("a child");
    worker.child.kill().expect("a living worker");
    bench.bury(worker);
    // More starts than there are accounts: one of them has that of the first.
    for _ in 0..100 {
        let worker = bench.start("sleep 20");
        let usage = bench.usage(&worker).expect("a sample");
        assert!(usage.cpu_ns < 1_000_000_000, "{usage:?}");
        let words = bench.bury(worker);
        assert!(words.peak_memory.is_some_and(|peak| peak < 50 * MIB), "{words:?}");
    }
    kill(orphan);
}

#[test]
fn a_start_that_came_to_nothing_keeps_no_account() {
    let mut bench = bench!("a_start_that_came_to_nothing_keeps_no_account", Scope::Tree);
    // Many more than there are accounts.
    for serial in 1000..1200 {
        let id = WorkerId { slot: 0, serial };
        bench.ebpf.arm(id);
        bench.ebpf.launched(id, false);
    }
    let mut worker = bench.start("hold 50");
    worker.ready();
    let usage = bench.usage(&worker).expect("a sample");
    assert_close(usage.memory, worker.resident(), MIB);
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a living process");
}
