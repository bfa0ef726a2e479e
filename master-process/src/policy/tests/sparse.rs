//! Samples that are not reported, as with eBPF: the policy does the same as if it had seen all of them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::sim::{INTERVAL, Sim, settings};
use crate::policy::{Event, Report, WorkerId};

/// A small generator of numbers, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// What the kernel keeps of a worker: its CPU time, and the state at its last sample.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    cpu_ns: u64,
    state: Option<(bool, bool, bool)>,
    anew: bool,
}

/// Runs a supervisor of two workers whose use comes in phases, and returns its reports. If `all` is false, only the samples
/// are reported at which a worker is above a limit, or the first ones at which it is no longer.
fn run(seed: u64, default: bool, all: bool) -> (Vec<Report>, Vec<WorkerId>, usize) {
    let mut with = settings(2);
    (with.limits.memory_is_default, with.limits.delay) = (default, Duration::from_secs(30));
    let mut sim = Sim::new(with);
    sim.run_smoothly();
    let mut random = Random(seed);
    let mut kept: BTreeMap<WorkerId, Kept> = BTreeMap::new();
    let (mut percent, mut memory, mut left, mut reported) = (0, 0, 0, 0);
    for _ in 0..600 {
        if left == 0 {
            left = 1 + random.below(25);
            percent = [5, 94, 96, 100][usize::try_from(random.below(4)).expect("small")];
            memory = [100, 790, 810, 1001, 2000][usize::try_from(random.below(5)).expect("small")];
            let event = match random.below(12) {
                0 => Some(Event::ToggleMonitoring),
                1 => Some(Event::WatchesItself(sim.alive()[0], random.below(2) == 0)),
                _ => None,
            };
            if let Some(event) = event {
                sim.event(event);
                // The driver has the next sample reported then.
                kept.values_mut().for_each(|of| of.anew = true);
            }
        }
        left -= 1;
        for worker in sim.alive() {
            let of = kept.entry(worker).or_default();
            of.cpu_ns += 2_000_000_000 * percent / 100;
            let cpu_ns = of.cpu_ns;
            let is_first = of.state.is_none();
            let state = (!is_first && percent > 95, memory > 1000, memory > 800);
            let before = of.state.replace(state).unwrap_or_default();
            if std::mem::take(&mut of.anew) || all || state.0 || state.1 || state != before {
                reported += 1;
                sim.sample(worker, cpu_ns, memory);
            } else {
                sim.samples.insert(worker, (sim.now, cpu_ns));
            }
        }
        sim.pass(INTERVAL);
        sim.run_smoothly();
    }
    (sim.notes.clone(), sim.warned.clone(), reported)
}

#[test]
fn samples_within_the_limits_need_not_be_reported() {
    let (mut replaced, mut fewer) = (0, 0);
    for seed in 0..200 {
        for default in [false, true] {
            let (every, sparse) = (run(seed, default, true), run(seed, default, false));
            let differs = every.0.iter().zip(&sparse.0).find(|(one, other)| one != other);
            assert_eq!(differs, None, "seed {seed}, default {default}");
            assert_eq!(every.0.len(), sparse.0.len(), "seed {seed}, default {default}");
            assert_eq!(every.1, sparse.1, "seed {seed}, default {default}: the warnings of memory");
            replaced += every.0.iter().filter(|report| matches!(report, Report::OverLimit { .. })).count();
            fewer += every.2 - sparse.2;
        }
    }
    assert!(replaced > 500 && fewer > 10_000, "the histories have nothing in them: {replaced}, {fewer}");
}
