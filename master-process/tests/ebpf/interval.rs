//! From the shortest interval to the longest.

use std::time::{Duration, Instant};

use master_process_tests::{TIMEOUT, eventually};

use crate::harness::{Bench, assert_close, bench};

const MIB: u64 = 1 << 20;

/// The number of samples that are waited for.
const SAMPLES: u64 = 5;

#[test]
fn samples_are_taken_at_the_interval() {
    for interval in [10, 50, 250, 1000].map(Duration::from_millis) {
        let begun = Instant::now();
        let mut bench = bench!("samples_are_taken_at_the_interval", Bench::with_interval(interval));
        let mut worker = bench.start("hold 50");
        worker.ready();
        let first = bench.ebpf.cost().0;
        eventually(TIMEOUT, "samples", || bench.ebpf.cost().0 >= first + SAMPLES);
        let usage = bench.ebpf.usage(worker.id).expect("a sample");
        assert_close(usage.memory, worker.resident(), MIB);
        let span = usage.before.expect("not the first one").span_ns;
        assert!(u128::from(span) >= interval.as_nanos() / 2, "{span} ns at {interval:?}");
        // One at each multiple of the interval.
        let most = begun.elapsed().as_nanos() / interval.as_nanos() + 1;
        let samples = bench.ebpf.cost().0;
        assert!(u128::from(samples) <= most, "{samples} samples at {interval:?}, at most {most}");
    }
}

#[test]
fn an_interval_of_an_hour_is_one() {
    let mut bench = bench!("an_interval_of_an_hour_is_one", Bench::with_interval(Duration::from_secs(3600)));
    let mut worker = bench.start("hold 10");
    worker.ready();
    std::thread::sleep(Duration::from_millis(300));
    // The hour of the kernel's clock can end meanwhile.
    assert!(bench.ebpf.cost().0 <= 1);
    assert!(bench.ebpf.usage(worker.id).is_none() || bench.ebpf.cost().0 == 1);
}
