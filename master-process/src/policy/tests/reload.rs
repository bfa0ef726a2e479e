//! Reloads.

use std::time::Duration;

use super::sim::{Sim, settings};
use crate::config::{Batch, ReadyMode};
use crate::policy::{Event, FailedStart, LaunchFailure, Next, Queue, ReadySignal, Report, Settings};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// Settings without a throttle, so that no worker is on probation.
fn without_trial(workers: u32) -> Settings {
    Settings { throttle: Duration::ZERO, ..settings(workers) }
}

fn generations(sim: &Sim) -> Vec<u32> {
    sim.alive().iter().map(|worker| sim.processes[worker].generation).collect()
}

#[test]
fn an_old_worker_is_asked_to_leave_only_when_its_own_successor_is_ready() {
    let mut sim = Sim::new(without_trial(2));
    sim.run_smoothly();
    let old = sim.alive();
    sim.event(Event::Reload);
    sim.launch_all();
    let new = sim.find(|process| process.generation == 1);
    assert_eq!(new.len(), 2, "all start at once");
    assert!(!sim.processes[&old[0]].out_of_rotation && !sim.processes[&old[1]].out_of_rotation);
    sim.make_ready(new[1]);
    sim.answer_queue_requests(Queue::None);
    assert!(!sim.processes[&old[0]].out_of_rotation, "the other slot's");
    assert!(sim.processes[&old[1]].stopped, "its own, at once, since no connection can wait for it");
    sim.finish();
}

#[test]
fn a_reload_in_batches_waits_for_the_whole_batch() {
    let mut settings = without_trial(5);
    settings.reload_batch = Batch::Percent(30);
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    sim.event(Event::Reload);
    for expected in [2, 2, 1] {
        let starting = sim.find(|process| !process.running);
        assert_eq!(starting.len(), expected);
        sim.launch_all();
        sim.make_ready(starting[0]);
        if expected > 1 {
            assert!(sim.find(|process| !process.running).is_empty(), "half a batch is no batch");
            sim.make_ready(starting[1]);
        }
    }
    assert!(
        matches!(sim.notes.last(), Some(Report::ReloadDone { generation: 1, .. })),
        "{:?}",
        sim.notes.last()
    );
    sim.finish();
}

#[test]
fn a_reload_whose_workers_die_is_given_up_and_the_old_ones_serve_on() {
    let mut sim = Sim::new(settings(2));
    sim.run_smoothly();
    sim.pass(5 * SECOND);
    sim.event(Event::Reload);
    for _ in 0..3 {
        sim.launch_all();
        let new = sim.find(|process| process.generation == 1 && process.running && !process.stopped);
        sim.die(new.into_iter().find(|worker| worker.slot == 0).expect("slot 0 tries again"));
        sim.pass(30 * SECOND);
    }
    sim.leave_all();
    let failed =
        Report::ReloadFailed { generation: 1, slot: 0, attempts: 3, cause: FailedStart::Died, kept: 2 };
    assert!(sim.notes.contains(&failed), "{:?}", sim.notes);
    assert_eq!(generations(&sim), [0, 0]);
    assert_eq!(sim.policy.deadline(), None, "nothing is tried any more");
    sim.finish();
}

#[test]
fn a_reload_whose_workers_are_late_is_given_up() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    sim.event(Event::Reload);
    for _ in 0..3 {
        sim.launch_all();
        sim.pass(60 * SECOND);
        sim.leave_all();
    }
    assert!(sim.notes.iter().any(|note| matches!(
        note,
        Report::ReloadFailed { attempts: 3, cause: FailedStart::Late(_), kept: 1, .. }
    )));
    assert!(sim.notes.iter().any(|note| matches!(note, Report::Late { next: Next::Predecessor, .. })));
    assert_eq!(generations(&sim), [0]);
    sim.finish();
}

#[test]
fn a_start_of_a_reload_that_takes_longer_than_usual_is_told_of_once() {
    let mut sim = Sim::new(settings(1));
    sim.launch_all();
    // It takes four seconds to become ready.
    sim.pass(4 * SECOND);
    sim.make_ready(sim.alive()[0]);
    sim.event(Event::Reload);
    sim.launch_all();
    let new = sim.find(|process| process.generation == 1)[0];
    let logged = |sim: &Sim| sim.notes.iter().filter(|note| matches!(note, Report::Waits { .. })).count();
    sim.pass(10 * SECOND - MS);
    assert_eq!(logged(&sim), 0);
    sim.pass(MS);
    assert_eq!(sim.notes.last(), Some(&Report::Waits { worker: new, after: 10 * SECOND }));
    sim.pass(40 * SECOND);
    assert_eq!(logged(&sim), 1);
    sim.make_ready(new);
    sim.leave_all();
    // The next one took fifty seconds: twice that is unusual then, and is the time-out as well.
    sim.pass(10 * SECOND);
    sim.event(Event::Reload);
    sim.launch_all();
    sim.pass(99 * SECOND);
    assert_eq!(logged(&sim), 1);
    sim.finish();
}

#[test]
fn a_reload_whose_command_is_gone_is_given_up() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    sim.event(Event::Reload);
    for _ in 0..3 {
        let worker = sim.find(|process| !process.running)[0];
        sim.fail_launch(worker, LaunchFailure::Lasting);
        sim.pass(30 * SECOND);
    }
    assert!(sim.notes.iter().any(|note| matches!(note, Report::ReloadFailed { .. })));
    assert_eq!(generations(&sim), [0]);
    sim.finish();
}

#[test]
fn an_old_worker_that_dies_after_a_failed_reload_is_replaced_in_the_current_generation() {
    let mut settings = settings(1);
    settings.reload_attempts = 1;
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    sim.pass(5 * SECOND);
    sim.event(Event::Reload);
    sim.launch_all();
    sim.die(sim.find(|process| process.generation == 1)[0]);
    sim.die(sim.alive()[0]);
    sim.pass(SECOND);
    sim.run_smoothly();
    assert_eq!(generations(&sim), [1]);
    sim.finish();
}

#[test]
fn a_reload_during_a_throttle_delay_leaves_one_worker_and_starts_it_at_once() {
    let mut sim = Sim::new(settings(1));
    sim.launch_all();
    sim.die(sim.alive()[0]);
    sim.event(Event::Reload);
    sim.run_smoothly();
    sim.pass(60 * SECOND);
    assert_eq!(generations(&sim), [1]);
    sim.finish();
}

#[test]
fn an_old_worker_that_crashes_while_its_successor_starts_leaves_no_duplicate() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    let old = sim.alive()[0];
    sim.event(Event::Reload);
    sim.launch_all();
    sim.die(old);
    sim.pass(30 * SECOND);
    assert_eq!(sim.processes.len(), 1);
    sim.run_smoothly();
    assert_eq!(generations(&sim), [1]);
    sim.finish();
}

#[test]
fn a_reload_during_a_reload_stops_the_starting_workers_of_the_one_in_between_at_once() {
    let mut sim = Sim::new(settings(2));
    sim.run_smoothly();
    sim.event(Event::Reload);
    sim.launch_all();
    sim.event(Event::Reload);
    let between = sim.find(|process| process.generation == 1);
    assert!(between.iter().all(|worker| sim.processes[worker].stopped));
    sim.run_smoothly();
    assert_eq!(generations(&sim), [2, 2]);
    sim.finish();
}

#[test]
fn workers_that_never_get_ready_do_not_pile_up() {
    let mut sim = Sim::new(settings(1));
    sim.launch_all();
    let first = sim.alive()[0];
    for round in 1..=10 {
        sim.event(Event::Reload);
        sim.launch_all();
        sim.leave_all();
        assert_eq!(sim.alive()[0], first, "it may be serving");
        assert_eq!(generations(&sim), [0, round]);
    }
    sim.finish();
}

/// A reload while the only worker of each slot has sent no readiness signal.
fn reloaded_while_starting(settings: Settings) -> Sim {
    let mut sim = Sim::new(settings);
    sim.launch_all();
    sim.pass(SECOND);
    sim.event(Event::Reload);
    sim.launch_all();
    sim
}

#[test]
fn a_worker_that_may_be_serving_stays_until_its_successor_is_ready() {
    let mut settings = without_trial(1);
    settings.ready = ReadyMode::Auto;
    let mut sim = reloaded_while_starting(settings);
    let (old, new) = (sim.alive()[0], sim.alive()[1]);
    // A program without readiness signals: both become ready by their age, the old worker first.
    sim.pass(9 * SECOND);
    assert!(
        matches!(sim.notes.last(), Some(Report::Ready { worker, .. }) if *worker == old),
        "{:?}",
        sim.notes
    );
    assert_eq!(sim.alive(), [old, new]);
    sim.pass(SECOND);
    let replaces = |note: &Report| matches!(note, Report::Ready { worker, replaces: Some(other), .. } if *worker == new && *other == old);
    assert!(sim.notes.iter().any(replaces), "{:?}", sim.notes);
    sim.answer_queue_requests(Queue::None);
    assert!(sim.processes[&old].stopped);
    sim.run_smoothly();
    assert_eq!(generations(&sim), [1]);
    sim.finish();
}

#[test]
fn a_worker_that_may_be_serving_is_replaced_by_one_that_is_ready_first() {
    let mut sim = reloaded_while_starting(settings(1));
    let (old, new) = (sim.alive()[0], sim.alive()[1]);
    sim.make_ready(new);
    assert!(sim.processes[&old].out_of_rotation && !sim.processes[&old].stopped, "it is on standby");
    sim.die(new);
    assert!(!sim.processes[&old].stopped, "and is all that the slot has, again");
    sim.pass(SECOND * 30);
    sim.launch_all();
    sim.make_ready(old);
    assert!(
        matches!(sim.notes.last(), Some(Report::Ready { worker, .. }) if *worker == old),
        "{:?}",
        sim.notes
    );
    sim.run_smoothly();
    assert_eq!(generations(&sim), [1]);
    sim.finish();
}

#[test]
fn a_successor_is_late_only_where_the_worker_before_it_is_ready() {
    let mut sim = reloaded_while_starting(settings(1));
    let (old, new) = (sim.alive()[0], sim.alive()[1]);
    sim.pass(SECOND * 60);
    assert_eq!(sim.notes.last(), Some(&Report::Slow { worker: new, after: SECOND * 60 }), "both are slow");
    sim.make_ready(old);
    assert_eq!(sim.alive(), [old, new], "the one has needed 61 s: so may the other");
    sim.pass(SECOND * 62);
    assert!(sim.processes[&new].stopped, "{:?}", sim.notes);
    assert!(!sim.processes[&old].stopped);
    sim.finish();
}

#[test]
fn workers_that_may_be_serving_count_for_the_batches_of_a_reload() {
    let mut settings = without_trial(3);
    settings.reload_batch = Batch::Slots(1);
    let mut sim = reloaded_while_starting(settings);
    assert_eq!(sim.find(|process| process.generation == 1).len(), 1);
    sim.run_smoothly();
    assert_eq!(generations(&sim), [1, 1, 1]);
    sim.finish();
}

#[test]
fn the_time_that_the_program_has_needed_so_far_is_given_twice_to_a_reload() {
    let mut settings = settings(1);
    settings.reload_attempts = 1;
    let mut sim = Sim::new(settings);
    sim.launch_all();
    sim.pass(SECOND * 75);
    sim.make_all_ready();
    sim.pass(SECOND * 5);
    sim.event(Event::Reload);
    sim.launch_all();
    sim.pass(SECOND * 150 - MS);
    assert!(!sim.notes.iter().any(|note| matches!(note, Report::Late { .. })), "{:?}", sim.notes);
    sim.pass(MS);
    assert!(matches!(
        sim.notes[sim.notes.len() - 2..],
        [Report::ReloadFailed { cause: FailedStart::Late(_), kept: 1, .. }, Report::Late { .. }]
    ));
    sim.finish();
}

#[test]
fn a_new_worker_that_listens_on_a_part_is_waited_for_until_it_is_late() {
    let mut settings = without_trial(1);
    settings.reload_attempts = 1;
    for complete in [true, false] {
        let mut sim = Sim::new(settings.clone());
        sim.run_smoothly();
        sim.event(Event::Reload);
        sim.launch_all();
        let new = sim.find(|process| process.generation == 1)[0];
        sim.event(Event::ReadySignal(new, ReadySignal::ListenPartly));
        sim.pass(SECOND * 59);
        assert_eq!(generations(&sim), [0, 1], "the old one serves on");
        if complete {
            sim.make_ready(new);
        } else {
            sim.pass(SECOND);
        }
        sim.answer_queue_requests(Queue::None);
        assert_eq!(generations(&sim), [u32::from(complete)]);
        sim.finish();
    }
}

#[test]
fn a_stop_during_a_reload_stops_old_and_new() {
    let mut sim = Sim::new(settings(2));
    sim.run_smoothly();
    sim.event(Event::Reload);
    sim.launch_all();
    sim.event(Event::Stop);
    assert!(sim.alive().is_empty());
    sim.finish();
}

#[test]
fn a_new_worker_that_is_ready_and_dies_early_counts_as_a_failed_start() {
    let mut settings = settings(3);
    settings.reload_batch = Batch::Slots(1);
    settings.reload_attempts = 1;
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    sim.pass(5 * SECOND);
    sim.event(Event::Reload);
    sim.launch_all();
    let new = sim.find(|process| process.generation == 1)[0];
    sim.make_ready(new);
    sim.launch_all();
    sim.die(new);
    assert!(sim.notes.contains(&Report::ReloadFailed {
        generation: 1,
        slot: 0,
        attempts: 1,
        cause: FailedStart::Died,
        kept: 3
    }));
    sim.leave_all();
    sim.pass(SECOND);
    sim.run_smoothly();
    let mut left = generations(&sim);
    left.sort_unstable();
    assert_eq!(left, [0, 0, 0], "all that is old serves, and nothing is tried any more");
    sim.finish();
}

#[test]
fn scaling_down_a_slot_whose_turn_it_is_lets_the_reload_go_on() {
    let mut settings = settings(3);
    settings.reload_batch = Batch::Slots(2);
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    sim.event(Event::Reload);
    sim.launch_all();
    sim.event(Event::ScaleDown);
    sim.event(Event::ScaleDown);
    sim.run_smoothly();
    assert_eq!(generations(&sim), [1]);
    assert!(matches!(sim.notes.last(), Some(Report::Left { .. } | Report::ReloadDone { .. })));
    assert!(sim.notes.iter().any(|note| matches!(note, Report::ReloadDone { .. })));
    sim.finish();
}

#[test]
fn an_old_worker_drains_until_its_queue_has_been_empty_for_the_drain_time() {
    let mut sim = Sim::new(without_trial(1));
    sim.run_smoothly();
    let old = sim.alive()[0];
    sim.event(Event::Reload);
    sim.launch_all();
    sim.make_all_ready();
    assert!(sim.processes[&old].out_of_rotation && !sim.processes[&old].stopped, "out of rotation first");
    sim.answer_queue_requests(Queue::Waiting);
    sim.pass(MS * 10);
    sim.answer_queue_requests(Queue::Empty);
    sim.pass(MS * 199);
    assert!(sim.queue_requests.is_empty() && !sim.processes[&old].stopped);
    sim.pass(MS);
    sim.answer_queue_requests(Queue::Empty);
    assert!(sim.processes[&old].stopped);
    sim.finish();
}

#[test]
fn a_connection_that_comes_late_to_a_draining_worker_starts_the_drain_time_anew() {
    let mut sim = Sim::new(without_trial(1));
    sim.run_smoothly();
    let old = sim.alive()[0];
    sim.event(Event::Reload);
    sim.launch_all();
    sim.make_all_ready();
    sim.answer_queue_requests(Queue::Empty);
    sim.pass(MS * 200);
    sim.answer_queue_requests(Queue::Waiting);
    sim.pass(MS * 10);
    sim.answer_queue_requests(Queue::Empty);
    assert!(!sim.processes[&old].stopped);
    sim.pass(MS * 200);
    sim.answer_queue_requests(Queue::Empty);
    assert!(sim.processes[&old].stopped);
    sim.finish();
}

#[test]
fn a_hung_worker_that_never_empties_its_queue_is_asked_to_leave_in_the_end() {
    let mut sim = Sim::new(without_trial(1));
    sim.run_smoothly();
    let old = sim.alive()[0];
    sim.event(Event::Reload);
    sim.launch_all();
    sim.make_all_ready();
    for _ in 0..501 {
        sim.answer_queue_requests(Queue::Waiting);
        sim.pass(MS * 10);
    }
    assert!(sim.processes[&old].stopped);
    sim.finish();
}

#[test]
fn a_stop_ends_a_drain() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    sim.event(Event::Reload);
    sim.launch_all();
    sim.make_all_ready();
    sim.answer_queue_requests(Queue::Empty);
    sim.event(Event::Stop);
    assert_eq!(sim.find(|process| process.stopped).len(), 2);
    sim.finish();
}

#[test]
fn the_successor_of_a_crashed_worker_that_listens_on_a_part_goes_on_starting() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    sim.pass(SECOND * 2);
    sim.die(sim.alive()[0]);
    sim.launch_all();
    let worker = sim.alive()[0];
    sim.event(Event::ReadySignal(worker, ReadySignal::ListenPartly));
    sim.pass(SECOND * 3600);
    assert_eq!(sim.notes.last(), Some(&Report::Slow { worker, after: SECOND * 60 }));
    sim.make_ready(worker);
    assert!(matches!(sim.notes.last(), Some(Report::Ready { .. })), "{:?}", sim.notes);
    sim.finish();
}

#[test]
fn a_new_worker_that_is_ready_and_dies_early_gives_its_place_back() {
    let mut settings = settings(2);
    settings.reload_attempts = 2;
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    sim.pass(SECOND * 5);
    let old = sim.alive();
    sim.event(Event::Reload);
    for _ in 0..2 {
        sim.launch_all();
        sim.make_all_ready();
        assert!(
            sim.processes[&old[0]].out_of_rotation && !sim.processes[&old[0]].stopped,
            "it is on standby"
        );
        let new = sim.find(|process| process.generation == 1 && process.ready && !process.out_of_rotation);
        sim.die(new.into_iter().find(|worker| worker.slot == 0).expect("slot 0 has a new worker"));
        assert!(!sim.processes[&old[0]].out_of_rotation, "it serves again");
        sim.pass(SECOND * 3);
    }
    assert!(sim.notes.contains(&Report::ReloadFailed {
        generation: 1,
        slot: 0,
        attempts: 2,
        cause: FailedStart::Died,
        kept: 1
    }));
    sim.answer_queue_requests(Queue::None);
    sim.leave_all();
    let mut left = generations(&sim);
    left.sort_unstable();
    assert_eq!(left, [0, 1], "the other slot has passed");
    sim.finish();
}

#[test]
fn a_new_worker_that_outlives_the_throttle_lets_its_predecessor_go() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    let old = sim.alive()[0];
    sim.event(Event::Reload);
    sim.launch_all();
    sim.make_all_ready();
    sim.pass(MS * 999);
    assert!(
        !sim.processes[&old].stopped
            && !sim.notes.iter().any(|note| matches!(note, Report::ReloadDone { .. }))
    );
    sim.pass(MS);
    sim.answer_queue_requests(Queue::None);
    assert!(sim.processes[&old].stopped);
    assert!(sim.notes.iter().any(|note| matches!(note, Report::ReloadDone { .. })));
    sim.finish();
}

#[test]
fn a_reload_while_a_worker_stands_by_needs_it_no_more_when_the_next_is_ready() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    for _ in 0..3 {
        sim.event(Event::Reload);
        sim.launch_all();
        sim.make_all_ready();
        sim.answer_queue_requests(Queue::None);
    }
    assert_eq!(sim.find(|process| !process.stopped).len(), 2, "one serves, one stands by");
    sim.run_smoothly();
    sim.finish();
}
