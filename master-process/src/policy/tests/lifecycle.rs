//! Starts, exits, throttling, giving up, stopping and scaling.

use std::time::Duration;

use super::sim::{Sim, settings};
use crate::config::{GiveUp, ReadyMode};
use crate::policy::{Event, LaunchFailure, Outcome, ReadyBy, ReadySignal, Report};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// The delay of the last reported restart.
fn last_wait(sim: &Sim) -> Duration {
    sim.last_wait.expect("a restart was announced")
}

#[test]
fn a_worker_that_dies_early_is_replaced_when_the_throttle_has_passed_since_its_start() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    sim.pass(300 * MS);
    sim.die(sim.alive()[0]);
    assert_eq!(last_wait(&sim), 700 * MS);
    sim.pass(699 * MS);
    assert!(sim.processes.is_empty(), "too early");
    sim.pass(MS);
    assert_eq!(sim.processes.len(), 1);
    sim.finish();
}

#[test]
fn a_worker_that_lived_longer_than_the_throttle_is_replaced_at_once() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    sim.pass(SECOND);
    sim.die(sim.alive()[0]);
    assert_eq!(sim.processes.len(), 1);
    sim.finish();
}

#[test]
fn consecutive_early_deaths_double_the_delay_up_to_the_maximum() {
    let mut sim = Sim::new(settings(1));
    for expected in [1, 2, 4, 8, 16, 30, 30] {
        sim.launch_all();
        sim.die(sim.alive()[0]);
        assert_eq!(last_wait(&sim), expected * SECOND);
        sim.pass(expected * SECOND);
    }
    sim.finish();
}

#[test]
fn a_worker_that_is_ready_and_lives_resets_the_doubling() {
    let mut sim = Sim::new(settings(1));
    for _ in 0..3 {
        sim.launch_all();
        sim.die(sim.alive()[0]);
        sim.pass(30 * SECOND);
    }
    sim.run_smoothly();
    sim.pass(2 * SECOND);
    sim.die(sim.alive()[0]);
    sim.launch_all();
    sim.die(sim.alive()[0]);
    assert_eq!(last_wait(&sim), SECOND);
    sim.finish();
}

#[test]
fn a_worker_that_lives_but_is_never_ready_does_not_reset_the_doubling() {
    let mut sim = Sim::new(settings(1));
    for uptime in [0, 2] {
        sim.launch_all();
        sim.pass(uptime * SECOND);
        sim.die(sim.alive()[0]);
        sim.pass(30 * SECOND);
    }
    sim.launch_all();
    sim.die(sim.alive()[0]);
    assert_eq!(last_wait(&sim), 2 * SECOND);
    sim.finish();
}

#[test]
fn a_throttle_equal_to_its_maximum_is_a_constant_delay() {
    let mut settings = settings(1);
    settings.throttle_max = settings.throttle;
    let mut sim = Sim::new(settings);
    for _ in 0..5 {
        sim.launch_all();
        sim.die(sim.alive()[0]);
        assert_eq!(last_wait(&sim), SECOND);
        sim.pass(SECOND);
    }
    sim.finish();
}

/// The number of reports that a late worker keeps starting.
fn slow(sim: &Sim) -> usize {
    sim.notes.iter().filter(|note| matches!(note, Report::Slow { .. })).count()
}

#[test]
fn a_worker_that_is_late_and_alone_is_warned_of_once_and_goes_on_starting() {
    let mut settings = settings(1);
    settings.give_up = Some(GiveUp { deaths: 1, within: 3600 * SECOND });
    let mut sim = Sim::new(settings);
    sim.launch_all();
    let late = sim.alive()[0];
    sim.pass(60 * SECOND - MS);
    assert_eq!(slow(&sim), 0);
    sim.pass(MS);
    assert_eq!(sim.notes, [Report::Slow { worker: late, after: 60 * SECOND }]);
    assert_eq!(sim.policy.deadline(), None, "nothing else is to come");
    sim.pass(3600 * SECOND);
    assert_eq!((slow(&sim), sim.alive()), (1, vec![late]), "it is no early death either");
    sim.make_ready(late);
    assert!(matches!(sim.notes[..], [_, Report::Ready { .. }]), "{:?}", sim.notes);
    sim.finish();
}

#[test]
fn a_program_that_needs_longer_than_the_time_out_comes_back_after_each_crash() {
    let mut sim = Sim::new(settings(1));
    for _ in 0..3 {
        sim.launch_all();
        let worker = sim.alive()[0];
        sim.pass(75 * SECOND);
        assert_eq!(sim.alive(), [worker], "it is not stopped");
        sim.make_ready(worker);
        sim.pass(10 * SECOND);
        sim.die(worker);
    }
    assert_eq!(slow(&sim), 1, "from then on it is known to need that long: {:?}", sim.notes);
    sim.finish();
}

#[test]
fn early_deaths_over_all_slots_within_the_time_give_up() {
    let mut settings = settings(3);
    settings.give_up = Some(GiveUp { deaths: 3, within: 10 * SECOND });
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    let workers = sim.alive();
    sim.die(workers[0]);
    sim.pass(500 * MS);
    sim.die(workers[1]);
    assert!(!sim.notes.iter().any(|note| matches!(note, Report::GaveUp { .. })));
    sim.die(workers[2]);
    assert!(sim.notes.contains(&Report::GaveUp { deaths: 3, within: 10 * SECOND }));
    assert_eq!(sim.finish(), Outcome::GaveUp);
}

#[test]
fn early_deaths_that_lie_far_apart_do_not_give_up() {
    let mut settings = settings(1);
    settings.give_up = Some(GiveUp { deaths: 2, within: SECOND });
    let mut sim = Sim::new(settings);
    for _ in 0..4 {
        sim.launch_all();
        sim.die(sim.alive()[0]);
        sim.pass(30 * SECOND);
    }
    assert_eq!(sim.finish(), Outcome::Stopped);
}

#[test]
fn the_very_first_start_that_fails_for_good_ends_everything() {
    let mut sim = Sim::new(settings(3));
    let first = sim.find(|process| !process.running)[0];
    sim.fail_launch(first, LaunchFailure::Lasting);
    assert_eq!(sim.finish(), Outcome::CannotStart);
}

#[test]
fn a_later_start_that_fails_for_good_is_tried_again_with_patience() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    sim.pass(2 * SECOND);
    sim.die(sim.alive()[0]);
    for expected in [1, 2, 4] {
        let worker = sim.find(|process| !process.running)[0];
        sim.fail_launch(worker, LaunchFailure::Lasting);
        assert_eq!(last_wait(&sim), expected * SECOND);
        sim.pass(expected * SECOND);
    }
    sim.finish();
}

#[test]
fn a_start_that_comes_to_no_end_is_tried_again_with_patience_even_the_very_first() {
    let mut sim = Sim::new(settings(1));
    for expected in [1, 2, 4] {
        let worker = sim.find(|process| !process.running)[0];
        sim.pass(5 * SECOND);
        sim.fail_launch(worker, LaunchFailure::NoAnswer);
        assert_eq!(last_wait(&sim), expected * SECOND);
        sim.pass(expected * SECOND);
    }
    sim.run_smoothly();
    assert_eq!(sim.alive().len(), 1);
    sim.finish();
}

#[test]
fn a_start_that_fails_for_a_passing_cause_is_tried_again_even_the_very_first() {
    let mut sim = Sim::new(settings(1));
    for _ in 0..5 {
        let worker = sim.find(|process| !process.running)[0];
        sim.fail_launch(worker, LaunchFailure::Passing);
        assert_eq!(last_wait(&sim), SECOND, "nothing doubles: it is not the program's fault");
        sim.pass(SECOND);
    }
    sim.run_smoothly();
    assert_eq!(sim.alive().len(), 1);
    sim.finish();
}

#[test]
fn a_failing_start_without_throttle_does_not_spin() {
    let mut settings = settings(1);
    (settings.throttle, settings.throttle_max) = (Duration::ZERO, Duration::ZERO);
    let mut sim = Sim::new(settings);
    for failure in [LaunchFailure::Passing, LaunchFailure::Passing] {
        let worker = sim.find(|process| !process.running)[0];
        sim.fail_launch(worker, failure);
        assert!(last_wait(&sim) >= 100 * MS);
        sim.pass(last_wait(&sim));
    }
    sim.finish();
}

#[test]
fn a_program_that_never_signs_is_ready_at_ten_seconds_until_one_of_its_workers_signs() {
    let mut settings = settings(2);
    settings.ready = ReadyMode::Auto;
    let mut sim = Sim::new(settings);
    sim.launch_all();
    sim.pass(10 * SECOND);
    let by_age = |note: &&Report| matches!(note, Report::Ready { by: ReadyBy::Age, .. });
    assert_eq!(sim.notes.iter().filter(by_age).count(), 2);
    sim.event(Event::ReadySignal(sim.alive()[0], ReadySignal::Notify));
    sim.event(Event::Reload);
    sim.launch_all();
    sim.pass(30 * SECOND);
    assert_eq!(sim.notes.iter().filter(by_age).count(), 2, "from then on its age proves nothing");
    sim.finish();
}

#[test]
fn alive_and_none_need_no_sign() {
    let mut settings = settings(1);
    settings.ready = ReadyMode::Alive(3 * SECOND);
    let mut sim = Sim::new(settings.clone());
    sim.launch_all();
    sim.pass(3 * SECOND - MS);
    assert!(sim.notes.is_empty());
    sim.pass(MS);
    assert!(matches!(sim.notes[..], [Report::Ready { by: ReadyBy::Age, .. }]));
    sim.finish();

    settings.ready = ReadyMode::None;
    let mut sim = Sim::new(settings);
    sim.launch_all();
    assert!(matches!(sim.notes[..], [Report::Ready { by: ReadyBy::Launch, .. }]));
    sim.finish();
}

#[test]
fn a_stop_asks_and_kills_when_the_time_is_over() {
    let mut sim = Sim::new(settings(2));
    sim.run_smoothly();
    sim.event(Event::Stop);
    assert_eq!(sim.find(|process| process.stopped && !process.killed).len(), 2);
    sim.pass(5 * SECOND);
    assert_eq!(sim.find(|process| process.killed).len(), 2);
    assert_eq!(sim.finish(), Outcome::Stopped);
}

#[test]
fn a_second_stop_kills_at_once() {
    let mut sim = Sim::new(settings(2));
    sim.run_smoothly();
    sim.event(Event::Stop);
    sim.pass(501 * MS);
    sim.event(Event::Stop);
    assert_eq!(sim.find(|process| process.killed).len(), 2);
    assert_eq!(sim.finish(), Outcome::Stopped);
}

#[test]
fn stops_that_come_together_are_one() {
    let mut sim = Sim::new(settings(2));
    sim.run_smoothly();
    for _ in 0..5 {
        sim.event(Event::Stop);
        sim.pass(100 * MS);
    }
    sim.event(Event::Stop);
    assert_eq!(sim.find(|process| process.stopped && !process.killed).len(), 2, "500 ms after the first");
    sim.pass(MS);
    sim.event(Event::Stop);
    assert_eq!(sim.find(|process| process.killed).len(), 2, "it is the first that counts");
    assert_eq!(sim.finish(), Outcome::Stopped);
}

#[test]
fn the_first_stop_after_giving_up_kills_nobody() {
    let mut settings = settings(2);
    settings.give_up = Some(GiveUp { deaths: 1, within: 10 * SECOND });
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    sim.die(sim.alive()[0]);
    sim.pass(SECOND);
    sim.event(Event::Stop);
    assert!(sim.find(|process| process.killed).is_empty(), "this is the first stop signal");
    sim.pass(SECOND);
    sim.event(Event::Stop);
    assert_eq!(sim.find(|process| process.killed).len(), 1);
    assert_eq!(sim.finish(), Outcome::GaveUp);
}

#[test]
fn the_terminals_end_stops_and_never_kills() {
    let mut sim = Sim::new(settings(2));
    sim.run_smoothly();
    sim.event(Event::Hangup);
    sim.pass(SECOND);
    sim.event(Event::Hangup);
    assert_eq!(sim.find(|process| process.stopped && !process.killed).len(), 2);
    sim.event(Event::Stop);
    assert!(sim.find(|process| process.killed).is_empty(), "this is the first stop signal");
    assert_eq!(sim.finish(), Outcome::Stopped);
}

#[test]
fn a_stop_ends_a_throttle_delay() {
    let mut sim = Sim::new(settings(1));
    sim.launch_all();
    sim.die(sim.alive()[0]);
    assert_eq!(sim.finish(), Outcome::Stopped);
}

#[test]
fn scaling_adds_the_next_slot_and_takes_the_last_one_but_never_the_only_one() {
    let mut sim = Sim::new(settings(1));
    sim.run_smoothly();
    sim.event(Event::ScaleUp);
    sim.run_smoothly();
    assert_eq!(sim.alive().iter().map(|worker| worker.slot).max(), Some(1));
    sim.event(Event::ScaleDown);
    sim.event(Event::ScaleDown);
    sim.run_smoothly();
    assert_eq!(sim.alive().iter().map(|worker| worker.slot).collect::<Vec<_>>(), [0]);
    sim.finish();
}

#[test]
fn a_slot_that_comes_back_does_not_wait_for_who_leaves_it() {
    let mut sim = Sim::new(settings(2));
    sim.run_smoothly();
    sim.event(Event::ScaleDown);
    sim.event(Event::ScaleUp);
    sim.launch_all();
    sim.make_all_ready();
    assert_eq!(sim.alive().len(), 2);
    assert_eq!(sim.find(|process| process.out_of_rotation).len(), 1, "the old one takes its time");
    sim.finish();
}
