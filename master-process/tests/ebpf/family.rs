//! Whose use counts as a worker's.

use master_process::config::Scope;
use master_process_tests::{TIMEOUT, eventually};

use crate::harness::{assert_close, bench, pid_of, resident};

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
fn an_orphan_that_was_adopted_counts_and_one_that_was_not_is_noticed() {
    let mut bench = bench!("an_orphan_that_was_adopted_counts_and_one_that_was_not_is_noticed", Scope::Tree);
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("a subreaper");
    let mut worker = bench.start("parent abandon parent hold 100");
    let said = worker.ready();
    let [_worker, parent, orphan, child] = said[..] else { panic!("{said:?}") };
    let of_children = || resident(orphan) + resident(child);
    assert!(bench.usage(&worker).is_some_and(|usage| usage.memory > of_children()));
    assert!(!bench.ebpf.sees_orphan());
    kill(parent);
    eventually(TIMEOUT, "the orphan is noticed", || bench.ebpf.sees_orphan());
    assert!(
        bench.usage(&worker).is_some_and(|usage| usage.memory < of_children()),
        "it is not the worker's yet"
    );
    bench.ebpf.adopt(worker.id, pid_of(orphan));
    let usage = bench.usage(&worker).expect("a sample");
    assert_close(usage.memory, worker.resident() + of_children(), 2 * MIB);
    assert!(!bench.ebpf.sees_orphan());
    kill(child);
    kill(orphan);
    let status = rustix::process::waitpid(Some(pid_of(orphan)), rustix::process::WaitOptions::empty());
    assert!(status.is_ok_and(|status| status.is_some()), "this process has adopted it");
    let usage = bench.usage(&worker).expect("a sample");
    assert_close(usage.memory, worker.resident(), MIB);
}

#[test]
fn a_child_in_the_memory_of_its_parent_counts_once() {
    let mut bench = bench!("a_child_in_the_memory_of_its_parent_counts_once", Scope::Tree);
    let mut worker = bench.start("hold-and-vfork 100");
    worker.ready();
    let usage = bench.usage(&worker).expect("a sample");
    assert_close(usage.memory, worker.resident(), 2 * MIB);
}

#[test]
fn a_tree_two_hundred_deep_is_measured_whole() {
    let mut bench = bench!("a_tree_two_hundred_deep_is_measured_whole", Scope::Tree);
    let mut worker = bench.start("chain 200");
    let numbers = worker.ready();
    let all: u64 = children_of(worker.child.id()).into_iter().map(resident).sum::<u64>() + worker.resident();
    let usage = bench.usage(&worker).expect("a sample");
    assert_eq!(numbers.len(), 1, "the others have forked without a line");
    // The kernel counts pages for each CPU, and adds them up with a delay: small processes may lack a fifth.
    assert_close(usage.memory, all, all / 4);
}

#[test]
fn a_worker_that_forks_without_end_delays_nothing() {
    let mut bench = bench!("a_worker_that_forks_without_end_delays_nothing", Scope::Tree);
    let mut bomb = bench.start("fork 60000");
    let mut other = bench.start("hold 50");
    bomb.ready();
    other.ready();
    let (before, cost) = (bench.ebpf.cost(), std::time::Instant::now());
    eventually(TIMEOUT, "fifty samples", || bench.ebpf.cost().0 >= before.0 + 50);
    let took = bench.ebpf.cost().1 - before.1;
    // Unlike its wall time, its share of one CPU hardly depends on what else runs.
    assert!(took < cost.elapsed() / 4, "{took:?} of {:?}", cost.elapsed());
    assert_close(bench.usage(&other).expect("a sample").memory, other.resident(), MIB);
}

/// All descendants of a process.
fn children_of(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            next.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        found.push(pid);
    }
    found.split_off(1)
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
        // On a busy machine it may have ended before its first sample.
        assert!(words.peak_memory.is_none_or(|peak| peak < 50 * MIB), "{words:?}");
    }
    kill(orphan);
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a living process");
}
