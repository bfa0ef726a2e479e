//! What having it costs the supervisor.

use std::time::{Duration, Instant};

use master_process::config::Scope;

use crate::harness::bench;

/// Our memory, in KiB, with what is shared counted by its share: proc_pid_smaps(5).
fn memory() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("our own memory");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("a sum");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn loading_leaves_little_behind() {
    // The first time, what it takes is in the numbers that the allocator keeps.
    let before = memory();
    let begun = Instant::now();
    let mut bench = bench!("loading_leaves_little_behind", Scope::Tree);
    let took = begun.elapsed();
    bench.ebpf.sample(&mut |_, _| ()).expect("a sample");
    let more = memory().saturating_sub(before);
    println!("{more} KiB, {took:?}");
    assert!(more <= 2048, "{more} KiB");
    // The kernel's types read the ordinary way take longer than that in an unoptimized build.
    assert!(took < Duration::from_secs(1), "{took:?}");
}
