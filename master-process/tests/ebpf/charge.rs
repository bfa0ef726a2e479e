//! What a worker uses is what it is charged.

use std::time::Duration;

use master_process::config::Scope;

use crate::harness::bench;

#[test]
fn a_busy_loop_uses_its_cpu() {
    let mut bench = bench!("a_busy_loop_uses_its_cpu", Scope::Worker);
    let worker = bench.start("burn 60000");
    std::thread::sleep(Duration::from_millis(200));
    for _ in 0..4 {
        let rate = bench.rate(&worker, Duration::from_millis(500));
        println!("rate {rate}");
    }
}

#[test]
fn memory_is_what_proc_says() {
    let mut bench = bench!("memory_is_what_proc_says", Scope::Worker);
    let mut worker = bench.start("hold 100");
    worker.ready();
    std::thread::sleep(Duration::from_millis(100));
    let usage = bench.usage(&worker).expect("a sample");
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", worker.child.id())).expect("statm");
    println!("{usage:?} {statm}");
}
