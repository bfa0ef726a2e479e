//! The default limits, which are lifted for a program that they do not fit.

use std::time::Duration;

use super::limits::{SECOND, cpu, memory, overs, starting};
use super::sim::{INTERVAL, Sim, settings};
use crate::config::Batch;
use crate::policy::{Busiest, Event, LaunchFailure, Limit, Measured, Report, Settings, WorkerId};

fn defaults(workers: u32) -> Settings {
    let mut settings = settings(workers);
    (settings.limits.cpu_is_default, settings.limits.memory_is_default) = (true, true);
    settings
}

fn judged(settings: Settings) -> Sim {
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    sim.pass(31 * SECOND);
    sim
}

fn disabled(sim: &Sim) -> Vec<(WorkerId, u64)> {
    let disabled = |note: &Report| {
        if let Report::DefaultDisabled { worker, used, most: 1000 } = *note {
            Some((worker, used))
        } else {
            None
        }
    };
    sim.notes.iter().filter_map(disabled).collect()
}

#[test]
fn a_program_above_the_default_memory_limit_from_the_first_is_never_replaced_and_one_line_says_so() {
    let mut sim = judged(defaults(3));
    let workers = sim.alive();
    for _ in 0..1000 {
        workers.iter().for_each(|worker| sim.sample(*worker, 0, 5000));
        sim.pass(INTERVAL);
    }
    assert_eq!((starting(&sim), sim.alive()), (0, workers.clone()));
    assert_eq!(disabled(&sim), [(workers[0], 5000)]);
    assert_eq!(overs(&sim), []);
    sim.finish();
}

#[test]
fn a_memory_limit_that_was_given_holds_for_a_program_that_is_above_it_from_the_first_too() {
    let mut settings = defaults(1);
    settings.limits.memory_is_default = false;
    let mut sim = judged(settings);
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[5000; 10]);
    assert_eq!((starting(&sim), disabled(&sim)), (1, vec![]));
    sim.finish();
}

#[test]
fn a_worker_that_grows_over_the_default_memory_limit_is_replaced() {
    let mut sim = judged(defaults(1));
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[1000]);
    memory(&mut sim, worker, &[1001; 10]);
    assert_eq!((starting(&sim), disabled(&sim)), (1, vec![]));
    sim.finish();
}

#[test]
fn what_a_worker_uses_before_it_is_judged_says_nothing_of_the_default() {
    let mut sim = Sim::new(defaults(1));
    sim.run_smoothly();
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[5000; 10]);
    sim.event(Event::WatchesItself(worker, true));
    memory(&mut sim, worker, &[5000; 20]);
    sim.event(Event::WatchesItself(worker, false));
    memory(&mut sim, worker, &[500]);
    memory(&mut sim, worker, &[5000; 10]);
    assert_eq!((starting(&sim), disabled(&sim)), (1, vec![]));
    sim.finish();
}

#[test]
fn a_pause_of_the_limits_makes_no_sample_the_first_again() {
    let mut sim = judged(defaults(1));
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[500]);
    sim.event(Event::ToggleMonitoring);
    sim.event(Event::ToggleMonitoring);
    memory(&mut sim, worker, &[5000; 10]);
    assert_eq!((starting(&sim), disabled(&sim)), (1, vec![]));
    sim.finish();
}

#[test]
fn a_worker_that_is_on_its_way_out_when_the_limit_is_found_not_to_fit_may_stay() {
    let mut sim = judged(defaults(2));
    let workers = sim.alive();
    memory(&mut sim, workers[0], &[500]);
    memory(&mut sim, workers[0], &[5000; 10]);
    let next = sim.find(|process| !process.running)[0];
    sim.fail_launch(next, LaunchFailure::Passing);
    memory(&mut sim, workers[1], &[5000]);
    assert_eq!(disabled(&sim), [(workers[1], 5000)]);
    assert!(sim.notes.contains(&Report::ReplacementCancelled { worker: workers[0] }));
    sim.pass(60 * SECOND);
    assert_eq!((starting(&sim), sim.alive()), (0, workers));
    sim.finish();
}

#[test]
fn a_reload_is_a_new_program_and_the_default_holds_until_it_does_not_fit_again() {
    let mut sim = judged(defaults(1));
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[5000; 20]);
    sim.event(Event::Reload);
    sim.run_smoothly();
    sim.pass(31 * SECOND);
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[500]);
    memory(&mut sim, worker, &[5000; 10]);
    assert_eq!((starting(&sim), disabled(&sim).len()), (1, 1));
    sim.finish();
}

#[test]
fn after_a_reload_that_failed_the_default_stays_off_for_the_old_workers() {
    let mut settings = defaults(2);
    (settings.reload_batch, settings.reload_attempts) = (Batch::Slots(1), 1);
    let mut sim = judged(settings);
    let workers = sim.alive();
    for worker in &workers {
        memory(&mut sim, *worker, &[5000]);
    }
    sim.event(Event::Reload);
    sim.launch_all();
    let new = sim.find(|process| process.running && !process.ready)[0];
    sim.die(new);
    assert!(sim.notes.iter().any(|note| matches!(note, Report::ReloadFailed { .. })));
    for _ in 0..30 {
        workers.iter().for_each(|worker| sim.sample(*worker, 0, 5000));
        sim.pass(INTERVAL);
    }
    assert_eq!((starting(&sim), sim.alive(), disabled(&sim).len()), (0, workers, 1));
    sim.finish();
}

/// A thread that uses this percentage of a CPU for two seconds.
fn thread(percent: u64) -> Option<Busiest> {
    Some(Busiest { span_ns: 2_000_000_000, cpu_ns: 20_000_000 * percent })
}

/// Samples of a worker whose busiest thread uses this part of its CPU time. The look at the first sample of a row has
/// no earlier look to compare with.
fn busy(sim: &mut Sim, worker: WorkerId, samples: u64, percent: u64, busiest: u64) {
    let mut used = 0;
    for _ in 0..samples {
        sim.pass(INTERVAL);
        used += 20_000_000 * percent;
        sim.sample(worker, used, 0);
        let first = sim.thread_requests.len() == 1 && starting(sim) == 0 && used <= 3 * 20_000_000 * percent;
        sim.answer_threads(if first { None } else { thread(busiest) });
    }
}

#[test]
fn the_default_cpu_limit_replaces_a_single_loop_that_is_stuck() {
    let mut sim = judged(defaults(1));
    let worker = sim.alive()[0];
    // CPU time is a difference, so the first sample has none.
    busy(&mut sim, worker, 10, 100, 100);
    assert_eq!(starting(&sim), 0, "a row of nine");
    busy(&mut sim, worker, 11, 100, 100);
    assert_eq!(starting(&sim), 1);
    let over = overs(&sim)[0];
    assert_eq!((over.limit, over.used, over.measured), (Limit::Cpu, 1_000_000_000, Measured::Cpu));
    sim.finish();
}

#[test]
fn the_default_cpu_limit_replaces_no_program_of_several_busy_threads() {
    for (percent, busiest) in [(190, 95), (200, 100), (150, 100), (111, 100), (400, 100), (96, 90), (100, 50)]
    {
        let mut sim = judged(defaults(1));
        let worker = sim.alive()[0];
        busy(&mut sim, worker, 100, percent, busiest);
        assert_eq!((starting(&sim), overs(&sim)), (0, vec![]), "{busiest} of {percent}");
        sim.finish();
    }
    // The timers of its other threads still run.
    let mut sim = judged(defaults(1));
    let worker = sim.alive()[0];
    busy(&mut sim, worker, 12, 108, 100);
    assert_eq!(starting(&sim), 1);
    sim.finish();
}

#[test]
fn a_cpu_limit_that_was_given_asks_for_no_threads() {
    let mut sim = judged(settings(1));
    let worker = sim.alive()[0];
    cpu(&mut sim, worker, 0, &[200; 12]);
    assert_eq!((starting(&sim), sim.thread_requests.len()), (1, 0));
    sim.finish();
}

#[test]
fn threads_are_looked_at_when_a_row_begins_and_when_it_is_complete_and_no_more_often() {
    let mut sim = judged(defaults(1));
    let worker = sim.alive()[0];
    let (mut used, mut looks) = (0, Vec::new());
    for sample in 0..40 {
        sim.pass(INTERVAL);
        used += 4_000_000_000;
        sim.sample(worker, used, 0);
        if !sim.thread_requests.is_empty() {
            looks.push(sample);
        }
        sim.answer_threads(thread(100));
    }
    assert_eq!(looks, [1, 10, 19, 28, 37]);
    sim.finish();
}

#[test]
fn where_threads_cannot_be_looked_at_the_default_cpu_limit_replaces_nobody() {
    let mut sim = judged(defaults(1));
    let worker = sim.alive()[0];
    let mut used = 0;
    for _ in 0..100 {
        sim.pass(INTERVAL);
        used += 2_000_000_000;
        sim.sample(worker, used, 0);
        sim.answer_threads(None);
    }
    assert_eq!((starting(&sim), overs(&sim)), (0, vec![]));
    sim.finish();
}

#[test]
fn a_loop_that_moves_on_before_its_threads_are_seen_is_left_alone() {
    let mut sim = judged(defaults(1));
    let worker = sim.alive()[0];
    let used = cpu(&mut sim, worker, 0, &[100; 2]);
    sim.answer_threads(None);
    let used = cpu(&mut sim, worker, used, &[100; 9]);
    assert_eq!(sim.thread_requests, [worker]);
    let used = cpu(&mut sim, worker, used, &[10]);
    sim.answer_threads(thread(100));
    assert_eq!(starting(&sim), 0);
    // Samples from before the pause do not count either.
    let used = cpu(&mut sim, worker, used, &[100]);
    sim.answer_threads(None);
    cpu(&mut sim, worker, used, &[100; 9]);
    assert_eq!(sim.thread_requests, [worker]);
    sim.event(Event::ToggleMonitoring);
    sim.answer_threads(thread(100));
    assert_eq!((starting(&sim), overs(&sim)), (0, vec![]));
    sim.finish();
}

#[test]
fn busy_threads_do_not_keep_a_replacement_that_another_limit_has_called_off() {
    let mut sim = judged(defaults(1));
    let worker = sim.alive()[0];
    let mut used = 0;
    let mut step = |sim: &mut Sim, memory| {
        sim.sample(worker, used, memory);
        sim.answer_threads(thread(100));
        used += 4_000_000_000;
    };
    step(&mut sim, 500);
    for _ in 0..10 {
        sim.pass(INTERVAL);
        step(&mut sim, 5000);
    }
    sim.launch_all();
    let next = sim.find(|process| process.running && !process.ready)[0];
    sim.die(next);
    step(&mut sim, 500);
    assert!(sim.notes.contains(&Report::ReplacementCancelled { worker }));
    sim.pass(Duration::from_secs(60));
    assert_eq!((starting(&sim), sim.alive()), (0, vec![worker]));
    sim.finish();
}
