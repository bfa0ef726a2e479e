//! Processes that are left when the first process of a worker has ended.

use std::time::Duration;

use super::sim::{Sim, settings};
use crate::policy::{Event, Outcome, Report, WorkerId};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// Whether the remaining processes got the stop signal, and whether they were killed.
fn remains(sim: &Sim, worker: WorkerId) -> (bool, bool) {
    sim.remains[&worker]
}

/// The only worker has crashed, and processes of it are left.
fn crashed_with_remains() -> (Sim, WorkerId) {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    sim.pass(2 * SECOND);
    let crashed = sim.alive()[0];
    sim.die_with_remains(crashed);
    (sim, crashed)
}

#[test]
fn what_a_crashed_worker_leaves_behind_has_the_kill_timeout_and_nobody_waits_for_it() {
    let (mut sim, crashed) = crashed_with_remains();
    assert_eq!(remains(&sim, crashed), (true, false));
    sim.launch_all();
    sim.make_all_ready();
    assert_eq!(sim.alive().len(), 1, "the replacement does not wait");
    sim.pass(4999 * MS);
    assert!(!remains(&sim, crashed).1, "too early");
    sim.pass(MS);
    assert_eq!(remains(&sim, crashed), (true, true));
    sim.end_remains(crashed);
    assert_eq!(sim.finish(), Outcome::Stopped);
}

#[test]
fn what_a_crashed_worker_leaves_behind_has_a_second_where_none_of_it_handles_the_stop_signal() {
    let (mut sim, crashed) = crashed_with_remains();
    sim.launch_all();
    sim.make_all_ready();
    sim.pass(200 * MS);
    sim.event(Event::RemainsUnheeding(crashed));
    sim.pass(799 * MS);
    assert!(!remains(&sim, crashed).1, "too early");
    sim.pass(MS);
    assert_eq!(remains(&sim, crashed), (true, true));
    sim.end_remains(crashed);
    assert_eq!(sim.finish(), Outcome::Stopped);
}

/// The worker that was started last, and runs.
fn newest(sim: &Sim) -> WorkerId {
    sim.alive().into_iter().max_by_key(|worker| worker.serial).expect("one runs")
}

#[test]
fn what_a_crashed_worker_leaves_behind_has_a_second_where_its_replacement_dies_early() {
    let mut sim = Sim::new(settings(2));
    sim.run_smoothly();
    sim.pass(2 * SECOND);
    let [crashed, other] = sim.alive()[..] else { panic!("two") };
    for worker in [crashed, other] {
        sim.die_with_remains(worker);
        sim.launch_all();
        sim.make_all_ready();
    }
    sim.pass(300 * MS);
    let replacement = sim.alive().into_iter().find(|worker| worker.slot == crashed.slot);
    sim.die(replacement.expect("it was started"));
    sim.pass(699 * MS);
    assert!(!remains(&sim, crashed).1, "it may write a file");
    sim.pass(MS);
    assert!(remains(&sim, crashed).1);
    assert!(!remains(&sim, other).1, "it blocks no start");
    sim.end_remains(crashed);
    sim.end_remains(other);
    sim.run_smoothly();
    assert_eq!(sim.finish(), Outcome::Stopped);
}

#[test]
fn what_a_worker_that_was_asked_to_leave_leaves_behind_has_its_time_whoever_dies_early() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    sim.pass(2 * SECOND);
    let old = sim.alive()[0];
    sim.event(Event::Reload);
    sim.launch_all();
    sim.make_all_ready();
    sim.pass(2 * SECOND);
    sim.answer_queue_requests(crate::policy::Queue::None);
    assert!(sim.processes[&old].stopped);
    sim.die_with_remains(old);
    for _ in 0..2 {
        let new = newest(&sim);
        sim.die(new);
        sim.launch_all();
        sim.make_all_ready();
    }
    sim.pass(4 * SECOND);
    assert!(!remains(&sim, old).1, "too early");
    sim.pass(SECOND);
    assert!(remains(&sim, old).1);
    sim.end_remains(old);
    sim.run_smoothly();
    sim.finish();
}

#[test]
fn what_a_worker_that_left_as_asked_leaves_behind_has_the_rest_of_the_kill_timeout() {
    let mut sim = Sim::new(settings(2));
    sim.run_smoothly();
    sim.event(Event::Stop);
    let worker = sim.find(|process| process.stopped)[0];
    sim.pass(3 * SECOND);
    sim.die_with_remains(worker);
    assert_eq!(remains(&sim, worker), (true, false));
    sim.pass(1999 * MS);
    assert!(!remains(&sim, worker).1, "too early");
    sim.pass(MS);
    assert!(remains(&sim, worker).1);
    assert!(sim.notes.contains(&Report::Overdue { worker, after: 5 * SECOND }));
    sim.leave_all();
    assert_eq!(sim.policy.outcome(), None, "a process is left");
    sim.end_remains(worker);
    assert_eq!(sim.policy.outcome(), Some(Outcome::Stopped));
}

#[test]
fn what_a_killed_worker_leaves_behind_is_killed_at_once() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    sim.event(Event::Stop);
    sim.pass(5 * SECOND);
    let worker = sim.find(|process| process.killed)[0];
    sim.die_with_remains(worker);
    assert_eq!(remains(&sim, worker), (true, true));
    sim.end_remains(worker);
    assert_eq!(sim.finish(), Outcome::Stopped);
}

#[test]
fn a_reload_is_complete_while_something_remains_of_an_old_worker() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    sim.pass(2 * SECOND);
    sim.event(Event::Reload);
    let old = sim.alive()[0];
    sim.launch_all();
    sim.make_all_ready();
    sim.pass(2 * SECOND);
    sim.answer_queue_requests(crate::policy::Queue::None);
    assert!(sim.processes[&old].stopped);
    sim.die_with_remains(old);
    sim.run_smoothly();
    assert!(sim.notes.iter().any(|note| matches!(note, Report::ReloadDone { .. })));
    sim.end_remains(old);
    sim.finish();
}

#[test]
fn a_slot_that_was_scaled_away_is_kept_for_what_remains_in_it() {
    let mut sim = Sim::new(settings(2));
    sim.run_smoothly();
    sim.event(Event::ScaleDown);
    sim.answer_queue_requests(crate::policy::Queue::None);
    let worker = sim.find(|process| process.stopped)[0];
    sim.die_with_remains(worker);
    sim.pass(5 * SECOND);
    assert_eq!(remains(&sim, worker), (true, true));
    sim.end_remains(worker);
    assert_eq!(sim.finish(), Outcome::Stopped);
}
