//! What having it costs the supervisor.

use std::time::Duration;

use master_process::config::Scope;
use rustix::time::{ClockId, clock_gettime};

use crate::harness::bench;

/// Our memory, in KiB, with what is shared counted by its share: proc_pid_smaps(5).
fn memory() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").expect("our own memory");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("a sum");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// What this process has used of its CPUs, the kernel's work for it included.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("less than a second"))
}

#[test]
fn loading_leaves_little_behind() {
    // The first time, what it takes is in the numbers that the allocator keeps.
    let before = memory();
    let begun = cpu_time();
    let mut bench = bench!("loading_leaves_little_behind", Scope::Tree);
    let took = cpu_time() - begun;
    bench.ebpf.events(&mut |_, _| ());
    let more = memory().saturating_sub(before);
    println!("{more} KiB, {took:?}");
    assert!(more <= 2048, "{more} KiB");
    // A tenth of it, unoptimized and on an ordinary machine; the kernel's types read the ordinary way take more.
    assert!(took < Duration::from_millis(300), "{took:?}");
}
