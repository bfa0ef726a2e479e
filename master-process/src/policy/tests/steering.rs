//! Restarting one slot, scaling to a number, and what others see of the state.

use super::limits::SECOND;
use super::sim::{Sim, settings};
use crate::policy::{Event, FailedStart, LaunchFailure, Report, WorkerId, WorkerState};

fn running(workers: u32) -> Sim {
    let mut sim = Sim::new(settings(workers));
    sim.run_smoothly();
    sim.pass(10 * SECOND);
    sim.notes.clear();
    sim
}

fn states(sim: &Sim, slot: u32) -> Vec<WorkerState> {
    sim.policy.workers_of(slot).iter().map(|view| view.state).collect()
}

fn in_slot(sim: &Sim, slot: u32) -> Vec<WorkerId> {
    sim.find(|process| process.running).into_iter().filter(|worker| worker.slot == slot).collect()
}

#[test]
fn a_restart_replaces_one_worker_and_the_new_one_is_ready_first() {
    let mut sim = running(3);
    let old = sim.alive();
    sim.event(Event::Restart(1));
    sim.launch_all();
    assert_eq!(states(&sim, 1), [WorkerState::Starting, WorkerState::Ready]);
    assert!(sim.alive().contains(&old[1]), "it serves until its successor is ready");
    sim.make_all_ready();
    assert_eq!(states(&sim, 1), [WorkerState::Ready, WorkerState::Standby]);
    sim.run_smoothly();
    let new = sim.alive();
    assert_eq!((new[0], new[1]), (old[0], old[2]), "the others stay");
    assert_eq!(new[2].slot, 1);
    assert!(sim.notes.contains(&Report::RestartDone { worker: new[2] }));
    assert_eq!(sim.policy.generation(), 0, "it is no reload");
    sim.finish();
}

#[test]
fn a_worker_that_is_restarted_stays_whatever_its_samples_say() {
    let mut sim = running(1);
    let old = sim.alive()[0];
    sim.pass(30 * SECOND);
    sim.event(Event::Restart(0));
    for _ in 0..3 {
        sim.sample(old, 0, 10);
        sim.pass(2 * SECOND);
    }
    sim.run_smoothly();
    assert!(!sim.alive().contains(&old), "within its limits, and replaced all the same");
    sim.finish();
}

#[test]
fn a_restart_is_given_up_after_as_many_failures_as_a_reload() {
    let mut sim = running(2);
    let old = sim.alive();
    sim.event(Event::Restart(0));
    for _ in 0..3 {
        sim.pass(31 * SECOND);
        sim.launch_all();
        let new = in_slot(&sim, 0).into_iter().find(|worker| !old.contains(worker)).expect("it starts");
        sim.die(new);
    }
    let failed = Report::RestartFailed { slot: 0, attempts: 3, cause: FailedStart::Died };
    assert!(sim.notes.contains(&failed), "{:?}", sim.notes);
    sim.pass(100 * SECOND);
    assert_eq!(sim.alive(), old, "nothing else is started");
    sim.finish();
}

#[test]
fn a_program_that_cannot_be_executed_fails_a_restart_as_well() {
    let mut sim = running(1);
    let old = sim.alive();
    sim.event(Event::Restart(0));
    for _ in 0..3 {
        sim.pass(31 * SECOND);
        let new = sim.find(|process| !process.running)[0];
        sim.fail_launch(new, LaunchFailure::Lasting);
    }
    let failed = Report::RestartFailed { slot: 0, attempts: 3, cause: FailedStart::NotLaunched };
    assert!(sim.notes.contains(&failed), "{:?}", sim.notes);
    assert_eq!(sim.alive(), old);
    sim.finish();
}

#[test]
fn a_restart_of_a_throttled_slot_starts_it_now() {
    let mut sim = running(1);
    while sim.policy.waits_until(0).is_none() {
        let worker = sim.alive()[0];
        sim.die(worker);
        sim.launch_all();
    }
    assert!(sim.policy.waits_until(0).is_some() && states(&sim, 0).is_empty(), "it waits");
    sim.event(Event::Restart(0));
    assert_eq!(sim.policy.waits_until(0), None);
    sim.launch_all();
    assert_eq!(states(&sim, 0), [WorkerState::Starting]);
    sim.make_all_ready();
    sim.finish();
}

#[test]
fn a_reload_takes_a_restart_over() {
    let mut sim = running(2);
    sim.event(Event::Restart(0));
    sim.launch_all();
    sim.event(Event::Reload);
    sim.run_smoothly();
    assert!(!sim.notes.iter().any(|note| matches!(note, Report::RestartDone { .. })));
    assert!(sim.notes.iter().any(|note| matches!(note, Report::ReloadDone { generation: 1, .. })));
    assert_eq!(sim.alive().len(), 2);
    sim.finish();
}

#[test]
fn a_slot_that_does_not_exist_is_not_restarted() {
    let mut sim = running(2);
    sim.event(Event::Restart(2));
    sim.run_smoothly();
    assert!(sim.notes.is_empty(), "{:?}", sim.notes);
    sim.finish();
}

#[test]
fn scaling_to_a_number_is_one_step() {
    let mut sim = running(2);
    sim.event(Event::Scale(5));
    sim.run_smoothly();
    assert_eq!(sim.alive().len(), 5);
    sim.event(Event::Scale(1));
    sim.run_smoothly();
    assert_eq!(sim.alive().len(), 1);
    let scaled: Vec<_> = sim.notes.iter().filter(|note| matches!(note, Report::Scaled { .. })).collect();
    assert_eq!(scaled, [&Report::Scaled { from: 2, to: 5 }, &Report::Scaled { from: 5, to: 1 }]);
    sim.finish();
}

#[test]
fn numbers_that_are_not_possible_change_nothing() {
    let mut sim = running(2);
    for workers in [2, u32::MAX] {
        sim.event(Event::Scale(workers));
        assert_eq!(sim.policy.wanted(), 2);
    }
    assert!(sim.notes.is_empty(), "{:?}", sim.notes);
}

#[test]
fn pause_and_resume_set_what_the_signal_toggles() {
    let mut sim = running(1);
    let expected = [
        (Event::PauseMonitoring(true), true),
        (Event::PauseMonitoring(true), true),
        (Event::ToggleMonitoring, false),
        (Event::PauseMonitoring(false), false),
        (Event::ToggleMonitoring, true),
        (Event::PauseMonitoring(false), false),
    ];
    for (event, paused) in expected {
        sim.event(event);
        assert_eq!(sim.policy.is_paused(), paused, "{event:?}");
    }
    assert_eq!(sim.notes.len(), 4, "only changes are reported: {:?}", sim.notes);
}

#[test]
fn a_reload_shows_how_far_it_is() {
    let mut sim = running(3);
    assert_eq!(sim.policy.reload_progress(), None);
    sim.event(Event::Reload);
    assert_eq!(sim.policy.reload_progress().map(|progress| progress.left), Some(3));
    sim.launch_all();
    let first = sim.find(|process| !process.ready)[0];
    sim.make_ready(first);
    sim.pass(2 * SECOND);
    assert_eq!(sim.policy.reload_progress().map(|progress| progress.left), Some(2));
    assert!(sim.notes.contains(&Report::SlotReloaded { generation: 1, slot: first.slot }));
    sim.run_smoothly();
    assert_eq!(sim.policy.reload_progress(), None);
    sim.finish();
}
