//! Workers that exceed a limit.

use std::time::Duration;

use super::sim::{INTERVAL, Sim, settings};
use crate::config::Batch;
use crate::policy::{Event, FailedStart, LaunchFailure, Limit, Measured, Next, OverLimit, Report, WorkerId};

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// A worker that has been ready for longer than the delay.
pub(super) fn judged(workers: u32) -> Sim {
    let mut sim = Sim::new(settings(workers));
    sim.run_smoothly();
    sim.pass(31 * SECOND);
    sim
}

/// Samples with this memory, one in each interval.
pub(super) fn memory(sim: &mut Sim, worker: WorkerId, samples: &[u64]) {
    for memory in samples {
        sim.sample(worker, 0, *memory);
        sim.pass(INTERVAL);
    }
}

/// Samples with these CPU percentages, one in each interval, from `used` on; returns the CPU time after them.
pub(super) fn cpu(sim: &mut Sim, worker: WorkerId, mut used: u64, percent: &[u64]) -> u64 {
    for percent in percent {
        sim.pass(INTERVAL);
        used += 2_000_000_000 * percent / 100;
        sim.sample(worker, used, 0);
    }
    used
}

pub(super) fn overs(sim: &Sim) -> Vec<OverLimit> {
    let over = |note: &Report| if let Report::OverLimit { over, .. } = *note { Some(over) } else { None };
    sim.notes.iter().filter_map(over).collect()
}

pub(super) fn starting(sim: &Sim) -> usize {
    sim.find(|process| !process.running).len()
}

#[test]
fn ten_samples_in_a_row_over_the_memory_limit_replace_a_worker_and_the_successor_starts_first() {
    let mut sim = judged(1);
    let old = sim.alive()[0];
    memory(&mut sim, old, &[1001; 9]);
    assert_eq!(starting(&sim), 0, "nine are not enough");
    memory(&mut sim, old, &[1001]);
    assert_eq!(starting(&sim), 1);
    assert!(
        !sim.processes[&old].stopped && !sim.processes[&old].out_of_rotation,
        "it serves until there is another"
    );
    sim.launch_all();
    sim.make_all_ready();
    assert!(sim.processes[&old].out_of_rotation);
    sim.run_smoothly();
    assert!(!sim.processes.contains_key(&old));
    assert_eq!(sim.alive().len(), 1);
    let over = OverLimit {
        limit: Limit::Memory,
        used: 1001,
        most: 1000,
        measured: Measured::Pss,
        samples: 10,
        wait: None,
        queued: false,
        again: false,
    };
    assert_eq!(overs(&sim), [over]);
    sim.finish();
}

#[test]
fn a_sample_within_the_limit_starts_the_count_anew() {
    let mut sim = judged(1);
    let worker = sim.alive()[0];
    for _ in 0..5 {
        memory(&mut sim, worker, &[1001; 9]);
        memory(&mut sim, worker, &[1000]);
    }
    assert_eq!(starting(&sim), 0);
    sim.finish();
}

#[test]
fn cpu_and_memory_are_counted_apart() {
    let mut sim = judged(1);
    let worker = sim.alive()[0];
    let mut used = cpu(&mut sim, worker, 0, &[0]);
    for (percent, memory) in [(100, 0), (0, 2000)].repeat(12) {
        sim.pass(INTERVAL);
        used += 2_000_000_000 * percent / 100;
        sim.sample(worker, used, memory);
    }
    assert_eq!(starting(&sim), 0);
    sim.finish();
}

#[test]
fn cpu_is_the_difference_of_two_samples_over_the_time_between_them() {
    let mut sim = judged(1);
    let worker = sim.alive()[0];
    // The CPU time before the first sample does not count.
    sim.sample(worker, 1_000_000_000_000, 0);
    let used = cpu(&mut sim, worker, 1_000_000_000_000, &[95; 20]);
    assert_eq!(starting(&sim), 0, "at the limit is not over it");
    let used = cpu(&mut sim, worker, used, &[96; 9]);
    assert_eq!(starting(&sim), 0);
    cpu(&mut sim, worker, used, &[300]);
    assert_eq!(starting(&sim), 1);
    let over = OverLimit {
        limit: Limit::Cpu,
        used: 3_000_000_000,
        most: 950_000_000,
        measured: Measured::Cpu,
        samples: 10,
        wait: None,
        queued: false,
        again: false,
    };
    assert_eq!(overs(&sim), [over]);
    sim.finish();
}

#[test]
fn no_sample_is_never_a_strike_and_time_alone_replaces_nobody() {
    let mut sim = judged(1);
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[1001; 9]);
    sim.pass(3600 * SECOND);
    assert_eq!(starting(&sim), 0);
    memory(&mut sim, worker, &[1001]);
    assert_eq!(starting(&sim), 1, "nor does it break the row");
    sim.finish();
}

#[test]
fn a_worker_is_judged_from_the_delay_after_ready_on() {
    let mut sim = Sim::new(settings(1));
    sim.launch_all();
    sim.pass(50 * SECOND);
    sim.make_all_ready();
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[2000; 15]);
    assert_eq!(starting(&sim), 0, "the delay counts from ready");
    memory(&mut sim, worker, &[2000; 10]);
    assert_eq!(starting(&sim), 1);
    sim.finish();
}

#[test]
fn without_a_limit_everything_is_allowed() {
    let mut settings = settings(1);
    (settings.limits.max_cpu, settings.limits.max_memory) = (None, None);
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    sim.pass(31 * SECOND);
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[u64::MAX; 20]);
    cpu(&mut sim, worker, 0, &[10_000; 20]);
    assert_eq!(starting(&sim), 0);
    assert_eq!(sim.warned, []);
    sim.finish();
}

/// Lets the only worker exceed its memory limit from its first judged sample on until it is replaced; returns the
/// time since the last replacement.
fn replaced_for_good(sim: &mut Sim) -> Duration {
    let since = sim.now;
    let old = sim.alive()[0];
    for _ in 0..10_000 {
        if starting(sim) > 0 {
            sim.run_smoothly();
            assert_ne!(sim.alive()[0], old);
            return sim.now.since(since);
        }
        sim.sample(old, 0, 2000);
        sim.pass(INTERVAL);
    }
    panic!("never replaced");
}

#[test]
fn a_limit_that_does_not_fit_replaces_less_and_less_often_and_says_so() {
    let mut sim = judged(1);
    replaced_for_good(&mut sim);
    let mut gaps = Vec::new();
    for _ in 0..9 {
        gaps.push(replaced_for_good(&mut sim).as_secs());
    }
    for (gap, expected) in gaps.iter().zip([100, 200, 400, 800, 1600, 3200, 3600, 3600, 3600]) {
        assert!(gap.abs_diff(expected) <= 5, "{gaps:?}");
    }
    let overs = overs(&sim);
    assert!(!overs[0].again && overs[1..].iter().all(|over| over.again), "{overs:?}");
    let announced = overs.iter().filter(|over| over.wait.is_some()).count();
    assert_eq!(announced, 9, "each wait is announced once");
    sim.finish();
}

#[test]
fn a_worker_that_shrinks_again_while_its_turn_is_waited_for_is_left_alone() {
    let mut sim = judged(1);
    replaced_for_good(&mut sim);
    let worker = sim.alive()[0];
    sim.pass(31 * SECOND);
    memory(&mut sim, worker, &[2000; 10]);
    assert_eq!(starting(&sim), 0, "it waits");
    memory(&mut sim, worker, &[500]);
    sim.pass(3600 * SECOND);
    memory(&mut sim, worker, &[2000; 9]);
    assert_eq!(starting(&sim), 0);
    sim.finish();
}

#[test]
fn a_leak_is_replaced_each_time_without_a_wait() {
    let mut sim = judged(1);
    for _ in 0..5 {
        let worker = sim.alive()[0];
        sim.pass(31 * SECOND);
        // A peak during the warm-up is no row.
        memory(&mut sim, worker, &[2000, 500]);
        sim.pass(600 * SECOND);
        memory(&mut sim, worker, &[2000; 10]);
        assert_eq!(starting(&sim), 1);
        sim.run_smoothly();
    }
    assert!(overs(&sim).iter().all(|over| !over.again));
    sim.finish();
}

#[test]
fn a_reload_forgets_that_a_limit_did_not_fit() {
    let mut sim = judged(1);
    for _ in 0..4 {
        replaced_for_good(&mut sim);
    }
    sim.event(Event::Reload);
    sim.run_smoothly();
    let gap = replaced_for_good(&mut sim).as_secs();
    assert!(gap <= 55, "{gap}");
    sim.finish();
}

#[test]
fn a_successor_that_never_becomes_ready_leaves_the_old_one_serving_and_judged() {
    let mut sim = judged(1);
    let old = sim.alive()[0];
    memory(&mut sim, old, &[2000; 10]);
    sim.launch_all();
    sim.pass(61 * SECOND);
    assert!(sim.notes.iter().any(|note| matches!(note, Report::Late { .. })));
    assert!(!sim.processes[&old].stopped && !sim.processes[&old].out_of_rotation);
    sim.leave_all();
    assert_eq!(starting(&sim), 1, "the next one is tried");
    let next = sim.find(|process| !process.running)[0];
    sim.fail_launch(next, LaunchFailure::Lasting);
    // It is within its limit again before the next attempt, and stays.
    memory(&mut sim, old, &[500]);
    sim.pass(600 * SECOND);
    assert_eq!(starting(&sim), 0);
    assert_eq!(sim.alive(), [old]);
    memory(&mut sim, old, &[2000; 30]);
    assert_eq!(starting(&sim), 1, "it is judged on");
    sim.finish();
}

#[test]
fn a_successor_that_dies_early_gives_its_place_back() {
    let mut sim = judged(1);
    let old = sim.alive()[0];
    memory(&mut sim, old, &[2000; 10]);
    sim.launch_all();
    sim.make_all_ready();
    assert!(sim.processes[&old].out_of_rotation);
    let successor = sim.find(|process| process.ready && !process.out_of_rotation)[0];
    sim.die(successor);
    assert!(!sim.processes[&old].out_of_rotation, "it serves again");
    assert!(
        matches!(sim.notes.last(), Some(Report::Died { next: Next::Restart(_), .. })),
        "{:?}",
        sim.notes.last()
    );
    sim.pass(2 * SECOND);
    sim.run_smoothly();
    assert!(!sim.processes.contains_key(&old));
    sim.finish();
}

#[test]
fn a_replacement_in_a_reload_is_of_the_new_generation_and_the_reload_ends() {
    let mut settings = settings(2);
    settings.reload_batch = Batch::Slots(1);
    settings.limits.memory_failures = 1;
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    sim.pass(31 * SECOND);
    let second = sim.alive()[1];
    sim.event(Event::Reload);
    memory(&mut sim, second, &[2000]);
    sim.run_smoothly();
    assert!(sim.notes.iter().any(|note| matches!(note, Report::ReloadDone { generation: 1, .. })));
    assert!(sim.processes.values().all(|process| process.generation == 1));
    assert!(
        !sim.notes.iter().any(|note| matches!(note, Report::ReloadFailed { cause: FailedStart::Died, .. }))
    );
    sim.finish();
}

#[test]
fn the_high_memory_signal_comes_once_each_time_eighty_percent_are_passed() {
    let mut sim = judged(1);
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[799, 800, 801, 900, 850]);
    assert_eq!(sim.warned, [worker]);
    memory(&mut sim, worker, &[800, 801]);
    assert_eq!(sim.warned, [worker, worker]);
    sim.finish();
}

#[test]
fn paused_limits_replace_nobody_and_resumed_ones_count_from_nothing() {
    let mut sim = judged(1);
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[2000; 9]);
    sim.event(Event::ToggleMonitoring);
    memory(&mut sim, worker, &[2000; 20]);
    sim.event(Event::ToggleMonitoring);
    memory(&mut sim, worker, &[2000; 9]);
    assert_eq!(starting(&sim), 0);
    memory(&mut sim, worker, &[2000]);
    assert_eq!(starting(&sim), 1);
    sim.finish();
}

#[test]
fn a_worker_can_pause_its_own_limits_even_before_it_is_ready() {
    let mut sim = Sim::new(settings(2));
    sim.launch_all();
    let (first, second) = (sim.alive()[0], sim.alive()[1]);
    sim.event(Event::WatchesItself(first, true));
    sim.run_smoothly();
    sim.pass(31 * SECOND);
    for _ in 0..10 {
        sim.sample(first, 0, 2000);
        sim.sample(second, 0, 2000);
        sim.pass(INTERVAL);
    }
    let slots: Vec<u32> = sim.find(|process| !process.running).iter().map(|worker| worker.slot).collect();
    assert_eq!(slots, [second.slot]);
    sim.event(Event::WatchesItself(first, false));
    memory(&mut sim, first, &[2000; 10]);
    assert_eq!(starting(&sim), 2);
    sim.finish();
}

#[test]
fn a_limit_that_has_to_wait_for_its_turn_does_not_hide_the_other_one() {
    let mut sim = judged(1);
    replaced_for_good(&mut sim);
    let worker = sim.alive()[0];
    sim.pass(31 * SECOND);
    memory(&mut sim, worker, &[2000; 12]);
    assert_eq!(starting(&sim), 0, "it waits");
    let mut used = 0;
    for _ in 0..11 {
        used += 6_000_000_000;
        sim.sample(worker, used, 2000);
        sim.pass(INTERVAL);
    }
    assert_eq!(starting(&sim), 1);
    assert_eq!(overs(&sim).last().map(|over| (over.limit, over.wait)), Some((Limit::Cpu, None)));
    sim.finish();
}

#[test]
fn a_limit_that_does_not_fit_is_recognised_through_short_breaks_as_well() {
    let mut sim = judged(1);
    for _ in 0..4 {
        replaced_for_good(&mut sim);
    }
    // It may be replaced again 800 s after the last time. It exceeds its limit for a third of the time, but not in
    // the minute after that. If the last row alone counted, it would have been within the limit for long enough by
    // then.
    let worker = sim.alive()[0];
    sim.pass(56 * SECOND);
    for _ in 0..15 {
        memory(&mut sim, worker, &[[2000; 11].as_slice(), &[500; 19]].concat());
        sim.run_smoothly();
    }
    assert!(!sim.processes.contains_key(&worker), "it was its turn");
    assert!(overs(&sim)[1..].iter().all(|over| over.again), "{:?}", overs(&sim));
    sim.finish();
}

#[test]
fn a_wait_is_announced_once_however_often_the_worker_is_over_its_limit_meanwhile() {
    let mut sim = judged(1);
    for _ in 0..5 {
        replaced_for_good(&mut sim);
    }
    let before = overs(&sim).len();
    let worker = sim.alive()[0];
    sim.pass(31 * SECOND);
    for _ in 0..10 {
        memory(&mut sim, worker, &[[2000; 11].as_slice(), &[500]].concat());
    }
    assert_eq!(overs(&sim).len(), before + 1);
    sim.finish();
}

/// A worker that exceeds its limit and whose successor is late.
fn failing_to_be_replaced() -> (Sim, WorkerId) {
    let mut sim = judged(1);
    let old = sim.alive()[0];
    memory(&mut sim, old, &[2000; 10]);
    sim.launch_all();
    (sim, old)
}

/// Lets two ready time-outs pass in which each successor starts and none becomes ready; returns the number of
/// successors.
fn late_successors(sim: &mut Sim, old: WorkerId, samples: &[u64]) -> usize {
    let before = sim.notes.iter().filter(|note| matches!(note, Report::Late { .. })).count();
    for _ in 0..65 {
        memory(sim, old, samples);
        sim.launch_all();
        sim.leave_all();
        sim.pass(INTERVAL.saturating_sub(INTERVAL * u32::try_from(samples.len()).expect("few")));
    }
    sim.notes.iter().filter(|note| matches!(note, Report::Late { .. })).count() - before
}

#[test]
fn a_worker_that_behaves_again_while_its_successor_starts_gets_no_other_one() {
    let (mut sim, old) = failing_to_be_replaced();
    assert_eq!(late_successors(&mut sim, old, &[2000]), 2);
    assert_eq!(late_successors(&mut sim, old, &[500]), 1, "the one that was on the way");
    assert_eq!((starting(&sim), sim.alive()), (0, vec![old]));
    assert!(sim.notes.contains(&Report::ReplacementCancelled { worker: old }));
    sim.finish();
}

#[test]
fn paused_limits_let_nobody_else_be_started_for_a_worker_that_was_over_one() {
    let (mut sim, old) = failing_to_be_replaced();
    assert_eq!(late_successors(&mut sim, old, &[2000]), 2);
    sim.event(Event::ToggleMonitoring);
    assert_eq!(late_successors(&mut sim, old, &[2000]), 1, "the one that was on the way");
    assert_eq!((starting(&sim), sim.alive()), (0, vec![old]));
    sim.event(Event::ToggleMonitoring);
    memory(&mut sim, old, &[2000; 9]);
    assert_eq!(starting(&sim), 0, "and then it counts from nothing");
    sim.finish();

    let (mut sim, old) = failing_to_be_replaced();
    sim.event(Event::WatchesItself(old, true));
    assert_eq!(late_successors(&mut sim, old, &[2000]), 1);
    assert_eq!((starting(&sim), sim.alive()), (0, vec![old]));
    sim.finish();
}

#[test]
fn a_worker_that_says_again_what_holds_already_is_neither_let_off_nor_reported() {
    let mut sim = judged(1);
    let worker = sim.alive()[0];
    for _ in 0..10 {
        sim.event(Event::WatchesItself(worker, false));
        memory(&mut sim, worker, &[2000]);
    }
    assert_eq!(starting(&sim), 1);
    let said =
        |sim: &Sim| sim.notes.iter().filter(|note| matches!(note, Report::WatchesItself { .. })).count();
    assert_eq!(said(&sim), 0);
    for _ in 0..10 {
        sim.event(Event::WatchesItself(worker, true));
    }
    assert_eq!(said(&sim), 1);
    sim.finish();
}

#[test]
fn a_worker_that_pauses_its_limits_around_each_job_says_so_once_to_everybody() {
    let mut sim = judged(1);
    let worker = sim.alive()[0];
    for _ in 0..5 {
        sim.event(Event::WatchesItself(worker, true));
        sim.event(Event::WatchesItself(worker, false));
    }
    let often =
        |note: &Report| if let Report::WatchesItself { often, .. } = *note { Some(often) } else { None };
    let said: Vec<bool> = sim.notes.iter().filter_map(often).collect();
    assert_eq!(said, [[false; 2].as_slice(), &[true; 8]].concat());
    sim.finish();
}

#[test]
fn a_worker_that_only_warms_up_is_no_leak_however_short_the_interval_is() {
    let mut settings = settings(1);
    settings.limits.delay = Duration::ZERO;
    settings.limits.memory_failures = 1;
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    // A pause is at least 4 s, and each worker takes 10 s to grow.
    for _ in 0..3 {
        let worker = sim.alive()[0];
        memory(&mut sim, worker, &[[500; 5].as_slice(), &[2000]].concat());
        sim.run_smoothly();
    }
    let again: Vec<bool> = overs(&sim).iter().map(|over| over.again).collect();
    assert_eq!(again, [false, true, true]);
    sim.finish();
}

#[test]
fn a_slot_that_comes_anew_does_not_wait_for_what_the_old_one_used() {
    let mut sim = judged(2);
    let old = sim.alive()[1];
    memory(&mut sim, old, &[2000; 10]);
    sim.launch_all();
    sim.make_all_ready();
    sim.event(Event::ScaleDown);
    // Before its last worker has ended.
    sim.event(Event::ScaleUp);
    sim.run_smoothly();
    sim.pass(31 * SECOND);
    let new = *sim.alive().last().expect("two");
    assert_eq!(new.slot, old.slot);
    memory(&mut sim, new, &[2000; 10]);
    assert!(overs(&sim).iter().all(|over| !over.again && over.wait.is_none()), "{:?}", overs(&sim));
    sim.finish();
}

#[test]
fn a_worker_that_a_reload_replaces_anyway_is_not_reported() {
    let mut sim = judged(1);
    let worker = sim.alive()[0];
    sim.event(Event::Reload);
    memory(&mut sim, worker, &[2000; 20]);
    assert_eq!(overs(&sim), []);
    sim.finish();
}

#[test]
fn a_worker_that_stays_above_eighty_percent_is_not_warned_again_after_a_pause() {
    let mut sim = judged(1);
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[900]);
    sim.event(Event::WatchesItself(worker, true));
    sim.event(Event::WatchesItself(worker, false));
    memory(&mut sim, worker, &[900]);
    sim.event(Event::ToggleMonitoring);
    sim.event(Event::ToggleMonitoring);
    memory(&mut sim, worker, &[900]);
    assert_eq!(sim.warned, [worker]);
    sim.finish();
}
