//! The preload command: before which workers it runs, and what its failure changes.

use std::time::Duration;

use super::sim::{Sim, settings};
use crate::config::GiveUp;
use crate::policy::{AfterPreload, Event, LaunchFailure, Outcome, PreloadFailure, Report, Settings};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn preloaded(workers: u32) -> Settings {
    Settings { preload: true, ..settings(workers) }
}

/// All workers of the first generation serve.
fn serving(settings: Settings) -> Sim {
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    sim.pass(10 * SECOND);
    sim
}

/// The reports of failed commands: of which generation, what follows, and whether a reload failed.
fn failures(sim: &Sim) -> Vec<(u32, AfterPreload, bool)> {
    let failure = |note: &Report| {
        if let Report::PreloadFailed { generation, next, reload, .. } = *note {
            Some((generation, next, reload))
        } else {
            None
        }
    };
    sim.notes.iter().filter_map(failure).collect()
}

fn generation_of_command(sim: &Sim) -> Option<u32> {
    sim.command.map(|command| command.generation)
}

#[test]
fn no_worker_starts_before_the_command_is_complete() {
    let mut sim = Sim::new(preloaded(3));
    assert_eq!(generation_of_command(&sim), Some(0));
    sim.launch_command();
    sim.pass(50 * SECOND);
    assert!(sim.processes.is_empty());
    sim.event(Event::ScaleUp);
    assert!(sim.processes.is_empty());
    sim.end_command(true);
    assert_eq!(sim.processes.len(), 4);
    assert_eq!(sim.output, Some(0));
    sim.finish();
}

#[test]
fn without_a_command_none_runs() {
    let sim = Sim::new(settings(3));
    assert_eq!((sim.command, sim.processes.len()), (None, 3));
    sim.finish();
}

#[test]
fn a_reload_runs_the_command_once_and_replaces_nothing_before_it_is_complete() {
    let mut sim = serving(preloaded(2));
    let old = sim.alive();
    sim.event(Event::Reload);
    assert_eq!(generation_of_command(&sim), Some(1));
    sim.launch_command();
    sim.pass(30 * SECOND);
    assert_eq!((sim.alive(), sim.processes.len()), (old, 2));
    assert!(sim.policy.reload_progress().is_some_and(|progress| progress.left == 2), "it is a reload");
    sim.end_command(true);
    assert_eq!(sim.processes.len(), 4);
    sim.run_smoothly();
    assert!(sim.alive().iter().all(|worker| sim.processes[worker].generation == 1));
    let done = |note: &&Report| matches!(note, Report::ReloadDone { generation: 1, .. });
    assert_eq!(sim.notes.iter().filter(done).count(), 1);
    sim.finish();
}

#[test]
fn a_worker_that_crashes_while_the_command_of_a_reload_runs_is_replaced_by_one_of_its_generation() {
    let mut sim = serving(preloaded(2));
    sim.event(Event::Reload);
    sim.launch_command();
    sim.die(sim.alive()[0]);
    assert_eq!(sim.find(|process| !process.running && process.generation == 0).len(), 1);
    sim.launch_all();
    sim.make_all_ready();
    sim.end_command(true);
    assert_eq!(sim.find(|process| !process.running && process.generation == 1).len(), 2);
    sim.finish();
}

#[test]
fn a_failed_command_fails_its_reload_and_the_old_generation_goes_on() {
    let mut sim = serving(preloaded(2));
    let old = sim.alive();
    sim.event(Event::Reload);
    sim.launch_command();
    sim.pass(SECOND);
    sim.end_command(false);
    assert_eq!(failures(&sim), [(1, AfterPreload::Keep(2), true)]);
    sim.pass(100 * SECOND);
    assert_eq!((sim.command, sim.alive()), (None, old), "nothing is tried again");
    assert_eq!(sim.policy.reload_progress(), None);
    sim.die(sim.alive()[0]);
    assert_eq!(sim.find(|process| !process.running && process.generation == 0).len(), 1);
    // The next reload has a number of its own.
    sim.event(Event::Reload);
    assert_eq!(generation_of_command(&sim), Some(2));
    sim.run_smoothly();
    assert!(sim.alive().iter().all(|worker| sim.processes[worker].generation == 2));
    sim.finish();
}

#[test]
fn a_command_that_is_late_fails_the_reload_and_is_stopped_and_then_killed() {
    let mut sim = serving(preloaded(1));
    sim.event(Event::Reload);
    sim.launch_command();
    sim.pass(60 * SECOND - MS);
    assert!(failures(&sim).is_empty());
    sim.pass(MS);
    assert_eq!(failures(&sim), [(1, AfterPreload::Keep(1), true)]);
    assert!(sim.command.is_some_and(|command| command.stopped && !command.killed));
    sim.pass(5 * SECOND);
    assert!(sim.command.is_some_and(|command| command.killed));
    // It has succeeded at the last moment: its reload has failed already.
    sim.end_command(true);
    assert_eq!(sim.output, Some(0));
    sim.finish();
}

#[test]
fn a_reload_during_the_command_starts_the_command_of_the_next_generation_when_that_has_ended() {
    let mut sim = serving(preloaded(1));
    sim.event(Event::Reload);
    sim.launch_command();
    sim.event(Event::Reload);
    assert!(sim.command.is_some_and(|command| command.generation == 1 && command.stopped));
    sim.end_command(false);
    assert_eq!(generation_of_command(&sim), Some(2));
    assert!(failures(&sim).is_empty(), "nobody waits for it");
    sim.run_smoothly();
    assert_eq!(sim.output, Some(2));
    sim.finish();
}

#[test]
fn a_reload_during_a_reload_cancels_its_starting_workers_and_keeps_what_serves() {
    let mut sim = serving(preloaded(2));
    sim.event(Event::Reload);
    sim.launch_command();
    sim.end_command(true);
    sim.launch_all();
    let first = sim.find(|process| process.running && !process.ready)[0];
    sim.make_ready(first);
    sim.event(Event::Reload);
    let serving = sim.alive();
    assert_eq!(serving.len(), 2, "{serving:?}");
    assert!(serving.contains(&first) && serving.iter().any(|worker| sim.processes[worker].generation == 0));
    sim.run_smoothly();
    assert!(sim.alive().iter().all(|worker| sim.processes[worker].generation == 2));
    sim.finish();
}

#[test]
fn a_first_command_that_fails_is_tried_again_by_the_rule_of_the_throttle() {
    let mut sim = Sim::new(preloaded(1));
    for expected in [1, 2, 4, 8] {
        sim.launch_command();
        sim.end_command(false);
        assert_eq!(sim.last_wait, Some(expected * SECOND));
        sim.pass(expected * SECOND - MS);
        assert_eq!(sim.command, None, "too early");
        sim.pass(MS);
    }
    sim.launch_command();
    sim.end_command(true);
    assert_eq!(sim.processes.len(), 1);
    sim.finish();
}

#[test]
fn a_first_command_that_fails_counts_for_giving_up() {
    let give_up = Some(GiveUp { deaths: 2, within: 60 * SECOND });
    let mut sim = Sim::new(Settings { give_up, ..preloaded(1) });
    sim.launch_command();
    sim.end_command(false);
    sim.pass(SECOND);
    sim.launch_command();
    sim.end_command(false);
    assert_eq!(failures(&sim)[1], (0, AfterPreload::Nothing, false));
    assert_eq!(sim.finish(), Outcome::GaveUp);
}

#[test]
fn a_failed_command_of_a_reload_does_not_count_for_giving_up() {
    let give_up = Some(GiveUp { deaths: 1, within: 60 * SECOND });
    let mut sim = serving(Settings { give_up, ..preloaded(1) });
    sim.event(Event::Reload);
    sim.launch_command();
    sim.end_command(false);
    assert_eq!(sim.alive().len(), 1);
    assert_eq!(sim.finish(), Outcome::Stopped);
}

#[test]
fn a_command_that_cannot_be_executed_ends_the_very_first_start_only() {
    let mut first = Sim::new(preloaded(1));
    first.fail_command(LaunchFailure::Lasting);
    assert_eq!(first.finish(), Outcome::CannotStart);

    let mut sim = serving(preloaded(1));
    sim.event(Event::Reload);
    sim.fail_command(LaunchFailure::Lasting);
    assert_eq!(failures(&sim), [(1, AfterPreload::Keep(1), true)]);
    assert_eq!(sim.finish(), Outcome::Stopped);
}

#[test]
fn a_start_that_lacks_a_resource_is_tried_again_without_a_failed_reload() {
    let mut sim = serving(preloaded(1));
    sim.event(Event::Reload);
    sim.fail_command(LaunchFailure::Passing);
    let cause = PreloadFailure::NotLaunched;
    assert!(sim.notes.iter().any(|note| matches!(
        note,
        Report::PreloadFailed { cause: found, reload: false, .. } if *found == cause
    )));
    sim.pass(SECOND);
    assert_eq!(generation_of_command(&sim), Some(1));
    sim.run_smoothly();
    assert_eq!(sim.output, Some(1));
    sim.finish();
}

#[test]
fn a_reload_before_the_first_command_is_complete_supersedes_it() {
    let mut sim = Sim::new(preloaded(1));
    sim.launch_command();
    sim.event(Event::Reload);
    sim.end_command(true);
    assert!(sim.processes.is_empty(), "what was superseded is not used");
    sim.launch_command();
    sim.end_command(false);
    assert_eq!(failures(&sim).last(), Some(&(1, AfterPreload::Retry(SECOND), true)));
    sim.pass(SECOND);
    sim.launch_command();
    sim.end_command(true);
    sim.run_smoothly();
    assert!(sim.alive().iter().all(|worker| sim.processes[worker].generation == 1));
    let done = sim.notes.iter().any(|note| matches!(note, Report::ReloadDone { .. }));
    assert!(!done, "that reload has failed");
    sim.finish();
}

#[test]
fn a_stop_ends_the_command_and_waits_for_it() {
    let mut sim = serving(preloaded(1));
    sim.event(Event::Reload);
    sim.launch_command();
    sim.event(Event::Stop);
    assert!(sim.command.is_some_and(|command| command.stopped));
    sim.leave_all();
    assert_eq!(sim.policy.outcome(), None);
    sim.pass(SECOND);
    sim.event(Event::Stop);
    assert!(sim.command.is_some_and(|command| command.killed), "the second one kills");
    assert_eq!(sim.finish(), Outcome::Stopped);
}

#[test]
fn a_command_takes_a_place_at_the_gate_while_it_runs_and_for_three_seconds_at_most() {
    let mut sim = Sim::new(Settings { start_gate: true, ..preloaded(1) });
    assert_eq!((sim.command, sim.policy.awaits_place()), (None, true));
    sim.free_places = 1;
    sim.give_places();
    sim.launch_command();
    sim.pass(3 * SECOND - MS);
    assert_eq!(sim.held_places, 1);
    sim.pass(MS);
    assert_eq!(sim.held_places, 0);
    sim.end_command(true);
    assert!(sim.policy.awaits_place(), "so does its worker");
    sim.finish();
}
