//! The gate: which starts wait for a place, for how long, and how long they keep it.

use std::time::Duration;

use super::sim::{Sim, settings};
use crate::config::{Batch, ReadyMode};
use crate::policy::{Event, LaunchFailure, Report, Settings, WorkerId};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn gated(workers: u32) -> Settings {
    Settings { start_gate: true, ..settings(workers) }
}

/// All workers serve, and no place is free any more.
fn serving(settings: Settings) -> Sim {
    let mut sim = Sim::new(settings);
    sim.free_places = 1;
    sim.run_smoothly();
    sim.pass(10 * SECOND);
    assert_eq!((sim.held_places, sim.free_places), (0, 1), "all have given theirs back");
    sim.free_places = 0;
    sim
}

fn starting(sim: &Sim) -> Vec<WorkerId> {
    sim.find(|process| !process.running)
}

#[test]
fn a_start_waits_for_a_place_and_keeps_it_until_the_worker_is_ready() {
    let mut sim = Sim::new(gated(3));
    assert!(starting(&sim).is_empty());
    sim.free_places = 2;
    sim.give_places();
    assert_eq!(starting(&sim).len(), 2);
    sim.launch_all();
    assert_eq!(sim.held_places, 2);
    sim.make_ready(sim.alive()[0]);
    assert_eq!((sim.held_places, sim.free_places), (1, 1));
    sim.give_places();
    assert_eq!(starting(&sim).len(), 1);
    sim.finish();
}

#[test]
fn without_the_gate_no_place_is_needed() {
    let sim = Sim::new(settings(3));
    assert_eq!(starting(&sim).len(), 3);
    assert!(!sim.policy.awaits_place());
    sim.finish();
}

#[test]
fn a_start_that_ends_gives_its_place_back() {
    let mut sim = Sim::new(gated(2));
    sim.free_places = 2;
    sim.give_places();
    let (first, second) = (starting(&sim)[0], starting(&sim)[1]);
    sim.launch(first);
    sim.die(first);
    assert_eq!(sim.held_places, 1);
    sim.fail_launch(second, LaunchFailure::Passing);
    assert_eq!(sim.held_places, 0);
    sim.finish();
}

#[test]
fn a_worker_that_does_not_become_ready_keeps_its_place_for_three_seconds() {
    let mut sim = Sim::new(gated(1));
    sim.free_places = 1;
    sim.give_places();
    sim.launch_all();
    sim.pass(3 * SECOND - MS);
    assert_eq!(sim.held_places, 1);
    sim.pass(MS);
    assert_eq!(sim.held_places, 0);
    assert_eq!(sim.alive().len(), 1, "it goes on starting");
    sim.finish();
}

#[test]
fn a_program_that_is_not_known_to_signal_keeps_its_place_for_a_tenth_of_a_second() {
    for ready in [ReadyMode::Auto, ReadyMode::Alive(5 * SECOND)] {
        let mut sim = Sim::new(Settings { ready, ..gated(1) });
        sim.free_places = 1;
        sim.give_places();
        sim.launch_all();
        sim.pass(99 * MS);
        assert_eq!(sim.held_places, 1);
        sim.pass(MS);
        assert_eq!(sim.held_places, 0);
        sim.finish();
    }
    // Once a worker of the program has signalled, others are expected to.
    let mut sim = serving(Settings { ready: ReadyMode::Auto, ..gated(1) });
    sim.event(Event::Reload);
    sim.free_places = 1;
    sim.give_places();
    sim.launch_all();
    sim.pass(2 * SECOND);
    assert_eq!(sim.held_places, 1);
    sim.finish();
}

#[test]
fn first_starts_and_those_of_a_reload_wait_for_two_minutes_at_most() {
    let mut first = Sim::new(gated(2));
    let mut reload = serving(gated(2));
    reload.event(Event::Reload);
    let mut scaled = serving(gated(1));
    scaled.event(Event::ScaleUp);
    for (sim, count) in [(&mut first, 2), (&mut reload, 2), (&mut scaled, 1)] {
        sim.pass(120 * SECOND - MS);
        assert!(starting(sim).is_empty());
        sim.pass(MS);
        assert_eq!(starting(sim).len(), count);
        assert_eq!(sim.held_places, 0);
        let said = |note: &&Report| matches!(note, Report::NoPlace { after, .. } if *after == 120 * SECOND);
        assert_eq!(sim.notes.iter().filter(said).count(), count);
    }
    first.finish();
    reload.finish();
    scaled.finish();
}

#[test]
fn a_replacement_of_a_crashed_worker_waits_for_the_throttle_at_most() {
    let mut sim = serving(gated(2));
    sim.die(sim.alive()[0]);
    assert!(starting(&sim).is_empty() && sim.policy.awaits_place(), "it tries to get a place");
    sim.pass(SECOND - MS);
    assert!(starting(&sim).is_empty());
    sim.pass(MS);
    assert_eq!(starting(&sim).len(), 1);
    sim.finish();

    let mut unthrottled = serving(Settings { throttle: Duration::ZERO, ..gated(1) });
    unthrottled.die(unthrottled.alive()[0]);
    assert_eq!(starting(&unthrottled).len(), 1, "without a throttle, at once");
    unthrottled.finish();
}

#[test]
fn a_slot_whose_worker_crashes_while_its_successor_waits_is_filled_at_once() {
    let mut sim = serving(gated(1));
    sim.event(Event::Reload);
    sim.pass(50 * SECOND);
    assert!(starting(&sim).is_empty());
    sim.die(sim.alive()[0]);
    assert_eq!(starting(&sim).len(), 1);
    sim.finish();
}

#[test]
fn the_replacement_of_a_crashed_worker_comes_before_the_starts_of_a_reload() {
    let mut sim = serving(gated(3));
    sim.event(Event::Reload);
    let crashed = sim.alive()[2];
    sim.die(crashed);
    sim.free_places = 1;
    sim.give_places();
    assert_eq!(starting(&sim).iter().map(|worker| worker.slot).collect::<Vec<_>>(), [crashed.slot]);
    sim.finish();
}

#[test]
fn the_time_to_readiness_begins_after_the_wait() {
    let mut sim = serving(gated(1));
    sim.event(Event::Reload);
    sim.pass(100 * SECOND);
    sim.free_places = 1;
    sim.give_places();
    sim.launch_all();
    sim.pass(59 * SECOND);
    assert!(!sim.notes.iter().any(|note| matches!(note, Report::Late { .. })));
    sim.pass(SECOND);
    assert!(sim.notes.iter().any(|note| matches!(note, Report::Late { .. })));
    sim.finish();
}

#[test]
fn a_start_that_is_not_wanted_any_more_wants_no_place() {
    let mut stopped = serving(gated(2));
    stopped.event(Event::Reload);
    stopped.event(Event::Stop);
    assert!(!stopped.policy.awaits_place());
    let mut scaled = serving(gated(1));
    scaled.event(Event::ScaleUp);
    scaled.event(Event::ScaleDown);
    assert!(!scaled.policy.awaits_place());
    // One that was on its way is given back.
    scaled.free_places = 1;
    scaled.give_place();
    assert_eq!((scaled.held_places, scaled.free_places), (0, 1));
    assert!(starting(&scaled).is_empty());
    stopped.finish();
    scaled.finish();
}

#[test]
fn a_reload_during_the_wait_starts_the_newest_generation() {
    let mut sim = serving(gated(1));
    sim.event(Event::Reload);
    sim.pass(SECOND);
    sim.event(Event::Reload);
    sim.free_places = 1;
    sim.give_places();
    assert_eq!(starting(&sim).iter().map(|id| sim.processes[id].generation).collect::<Vec<_>>(), [2]);
    sim.finish();
}

#[test]
fn a_batch_waits_for_places_and_the_next_one_for_the_batch() {
    let mut sim = serving(Settings { reload_batch: Batch::Slots(1), throttle: Duration::ZERO, ..gated(2) });
    sim.event(Event::Reload);
    sim.free_places = 2;
    sim.give_places();
    assert_eq!(starting(&sim).len(), 1);
    sim.launch_all();
    sim.make_all_ready();
    sim.give_places();
    assert_eq!(starting(&sim).len(), 1);
    sim.finish();
}
