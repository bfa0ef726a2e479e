//! All short histories of events.

use std::time::Duration;

use super::sim::{Command, Sim, settings};
use crate::config::{Batch, GiveUp};
use crate::policy::{Event, LaunchFailure, Pss, Queue, Settings, WorkerId};

#[derive(Debug, Clone, Copy)]
enum Step {
    Launch,
    LaunchFails,
    ReadyOldest,
    ReadyNewest,
    DieOldest,
    DieNewest,
    Leave,
    QueueEmpty,
    QueueWaits,
    Reload,
    Stop,
    Hangup,
    ScaleUp,
    ScaleDown,
    TooMuch,
    Little,
    IsShared,
    IsNotShared,
    PauseLimits,
    PlaceGiven,
    CommandStarts,
    CommandFails,
    CommandEnds,
    CommandSucceeds,
    Restart,
    UntilDue,
    LongTime,
}

const STEPS: [Step; 16] = [
    Step::Launch,
    Step::LaunchFails,
    Step::ReadyOldest,
    Step::ReadyNewest,
    Step::DieOldest,
    Step::DieNewest,
    Step::Leave,
    Step::QueueEmpty,
    Step::QueueWaits,
    Step::Reload,
    Step::Stop,
    Step::ScaleUp,
    Step::ScaleDown,
    Step::TooMuch,
    Step::UntilDue,
    Step::LongTime,
];

/// The steps for a worker that exceeds its limit, whose PSS is requested and reported later.
const OVER_LIMIT: [Step; 18] = [
    Step::Launch,
    Step::LaunchFails,
    Step::ReadyOldest,
    Step::DieOldest,
    Step::DieNewest,
    Step::Leave,
    Step::Reload,
    Step::Hangup,
    Step::ScaleUp,
    Step::ScaleDown,
    Step::TooMuch,
    Step::Little,
    Step::IsShared,
    Step::IsNotShared,
    Step::PauseLimits,
    Step::Restart,
    Step::UntilDue,
    Step::LongTime,
];

/// The steps for starts that wait for places.
const GATED: [Step; 12] = [
    Step::Launch,
    Step::LaunchFails,
    Step::ReadyOldest,
    Step::DieOldest,
    Step::DieNewest,
    Step::Leave,
    Step::Reload,
    Step::ScaleUp,
    Step::ScaleDown,
    Step::PlaceGiven,
    Step::UntilDue,
    Step::LongTime,
];

/// The steps for generations that a preload command precedes.
const PRELOADED: [Step; 15] = [
    Step::Launch,
    Step::ReadyOldest,
    Step::DieOldest,
    Step::Leave,
    Step::Reload,
    Step::Stop,
    Step::ScaleUp,
    Step::ScaleDown,
    Step::Restart,
    Step::CommandStarts,
    Step::CommandFails,
    Step::CommandEnds,
    Step::CommandSucceeds,
    Step::UntilDue,
    Step::LongTime,
];

/// Plays a step if it is possible, and returns whether it was.
fn play(sim: &mut Sim, step: Step) -> bool {
    let launching = sim.find(|process| !process.running);
    let unready = sim.find(|process| process.running && !process.ready);
    let running = sim.find(|process| process.running);
    let stopping = sim.find(|process| process.running && process.stopped);
    let several = |of: &[WorkerId]| if of.len() > 1 { of.last().copied() } else { None };
    let to = |sim: &mut Sim, worker: Option<WorkerId>, what: fn(&mut Sim, WorkerId)| {
        worker.inspect(|worker| what(sim, *worker)).is_some()
    };
    match step {
        Step::Launch => to(sim, launching.first().copied(), Sim::launch),
        Step::LaunchFails => to(sim, launching.last().copied(), |sim, worker| {
            sim.fail_launch(worker, LaunchFailure::Passing);
        }),
        Step::ReadyOldest => to(sim, unready.first().copied(), Sim::make_ready),
        Step::ReadyNewest => to(sim, several(&unready), Sim::make_ready),
        Step::DieOldest => to(sim, running.first().copied(), Sim::die),
        Step::DieNewest => to(sim, several(&running), Sim::die),
        Step::Leave => to(sim, stopping.first().copied(), Sim::die),
        Step::QueueEmpty => answer_queue(sim, Queue::Empty),
        Step::QueueWaits => answer_queue(sim, Queue::Waiting),
        Step::Reload => happens(sim, Event::Reload),
        Step::Stop => happens(sim, Event::Stop),
        Step::Hangup => happens(sim, Event::Hangup),
        Step::ScaleUp => happens(sim, Event::ScaleUp),
        Step::ScaleDown => happens(sim, Event::ScaleDown),
        Step::TooMuch => samples(sim, &running, 2000),
        Step::Little => samples(sim, &running, 10),
        Step::IsShared => finds(sim, 10),
        Step::IsNotShared => finds(sim, 2000),
        Step::PauseLimits => happens(sim, Event::ToggleMonitoring),
        // At any moment, also when no start waits any more.
        Step::PlaceGiven => sim.free_places > 0 && gives_place(sim),
        Step::CommandStarts => of_command(sim, |command| !command.running, Sim::launch_command),
        Step::CommandFails => {
            of_command(sim, |command| !command.running, |sim| sim.fail_command(LaunchFailure::NoAnswer))
        }
        Step::CommandEnds => of_command(sim, |command| command.running, |sim| sim.end_command(false)),
        Step::CommandSucceeds => of_command(sim, |command| command.running, |sim| sim.end_command(true)),
        Step::Restart => happens(sim, Event::Restart(0)),
        Step::UntilDue => sim.policy.deadline().is_some_and(|at| passes(sim, at.since(sim.now))),
        Step::LongTime => passes(sim, Duration::from_secs(20)),
    }
}

fn of_command(sim: &mut Sim, is_possible: impl Fn(&Command) -> bool, what: impl Fn(&mut Sim)) -> bool {
    let possible = sim.command.as_ref().is_some_and(is_possible);
    if possible {
        what(sim);
    }
    possible
}

fn samples(sim: &mut Sim, running: &[WorkerId], memory: u64) -> bool {
    running.iter().for_each(|worker| sim.sample(*worker, 0, memory));
    !running.is_empty()
}

fn finds(sim: &mut Sim, pss: u64) -> bool {
    let requested = !sim.pss_requests.is_empty();
    sim.answer_pss(Pss::Bytes(pss));
    requested
}

fn happens(sim: &mut Sim, event: Event) -> bool {
    sim.event(event);
    true
}

fn answer_queue(sim: &mut Sim, queue: Queue) -> bool {
    let requested = !sim.queue_requests.is_empty();
    sim.answer_queue_requests(queue);
    requested
}

fn gives_place(sim: &mut Sim) -> bool {
    sim.give_place();
    true
}

fn passes(sim: &mut Sim, span: Duration) -> bool {
    sim.pass(span);
    true
}

/// Plays every history of up to `depth` steps from `sim` on; each must end cleanly.
fn walk(sim: &Sim, steps: &[Step], depth: usize, walked: &mut u64) {
    *walked += 1;
    if depth == 0 {
        sim.clone().finish();
        return;
    }
    for step in steps {
        let mut next = sim.clone();
        if play(&mut next, *step) {
            walk(&next, steps, depth - 1, walked);
        }
    }
}

fn walk_all(mut settings: Settings, warm: bool, depth: usize) {
    // One sample exceeds the limit, so that a short history has room for what follows.
    settings.limits.memory_failures = 1;
    settings.limits.delay = Duration::ZERO;
    let mut sim = Sim::new(settings);
    if warm {
        sim.run_smoothly();
    }
    let mut walked = 0;
    walk(&sim, &STEPS, depth, &mut walked);
    assert!(walked > 10_000, "only {walked} histories: the walk does not walk");
}

#[test]
fn every_short_history_from_the_first_start_keeps_the_invariants() {
    walk_all(settings(1), false, 6);
}

#[test]
fn every_short_history_of_two_serving_slots_keeps_the_invariants() {
    walk_all(settings(2), true, 6);
}

#[test]
fn every_short_history_of_a_reload_slot_by_slot_keeps_the_invariants() {
    let mut settings = settings(2);
    settings.reload_batch = Batch::Slots(1);
    settings.reload_attempts = 1;
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    sim.event(Event::Reload);
    let mut walked = 0;
    walk(&sim, &STEPS, 5, &mut walked);
    assert!(walked > 10_000, "only {walked} histories");
}

#[test]
fn every_short_history_of_a_worker_that_is_being_replaced_keeps_the_invariants() {
    let mut settings = settings(1);
    settings.limits.memory_failures = 1;
    settings.limits.delay = Duration::ZERO;
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    assert!(play(&mut sim, Step::TooMuch));
    sim.answers_later = true;
    let mut walked = 0;
    walk(&sim, &OVER_LIMIT, 5, &mut walked);
    assert!(walked > 10_000, "only {walked} histories");
}

#[test]
fn every_short_history_of_two_workers_that_are_replaced_in_turn_keeps_the_invariants() {
    let mut settings = settings(2);
    settings.limits.memory_failures = 1;
    settings.limits.delay = Duration::ZERO;
    settings.reload_batch = Batch::Slots(1);
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    assert!(play(&mut sim, Step::TooMuch));
    sim.answers_later = true;
    let mut walked = 0;
    walk(&sim, &OVER_LIMIT, 5, &mut walked);
    assert!(walked > 10_000, "only {walked} histories");
}

#[test]
fn every_short_history_of_starts_that_wait_for_a_place_keeps_the_invariants() {
    for warm in [false, true] {
        let mut settings = settings(2);
        settings.start_gate = true;
        let mut sim = Sim::new(settings);
        sim.free_places = 1;
        if warm {
            sim.run_smoothly();
        }
        let mut walked = 0;
        walk(&sim, &GATED, 6, &mut walked);
        assert!(walked > 10_000, "only {walked} histories");
    }
}

#[test]
fn every_short_history_of_generations_with_a_preload_command_keeps_the_invariants() {
    for warm in [false, true] {
        let mut settings = settings(2);
        (settings.preload, settings.reload_attempts) = (true, 1);
        let mut sim = Sim::new(settings);
        if warm {
            sim.run_smoothly();
            sim.event(Event::Reload);
        }
        let mut walked = 0;
        walk(&sim, &PRELOADED, 5, &mut walked);
        assert!(walked > 10_000, "only {walked} histories");
    }
}

#[test]
fn every_short_history_of_a_preload_command_that_waits_for_a_place_keeps_the_invariants() {
    let mut settings = settings(1);
    (settings.preload, settings.start_gate) = (true, true);
    let mut sim = Sim::new(settings);
    sim.free_places = 1;
    let steps = [&PRELOADED[..], &[Step::PlaceGiven]].concat();
    let mut walked = 0;
    walk(&sim, &steps, 6, &mut walked);
    assert!(walked > 10_000, "only {walked} histories");
}

#[test]
fn at_every_step_of_a_short_history_another_supervisor_can_take_over() {
    fn walk(sim: &Sim, steps: &[Step], depth: usize, walked: &mut u64) {
        *walked += 1;
        let mut taken = sim.clone();
        taken.take_over();
        for step in steps.iter().filter(|_| depth > 0) {
            let mut next = taken.clone();
            if play(&mut next, *step) {
                walk(&next, steps, depth - 1, walked);
            }
        }
        taken.finish();
    }
    let mut walked = 0;
    for preload in [false, true] {
        let mut settings = settings(2);
        settings.limits.memory_failures = 1;
        settings.limits.delay = Duration::ZERO;
        settings.start_gate = true;
        settings.give_up = Some(GiveUp { deaths: 100, within: Duration::from_secs(60) });
        settings.preload = preload;
        let mut sim = Sim::new(settings);
        sim.free_places = 1;
        sim.run_smoothly();
        sim.answers_later = true;
        let steps: &[&[Step]] = if preload { &[&PRELOADED] } else { &[&STEPS, &OVER_LIMIT, &GATED] };
        for steps in steps {
            walk(&sim, steps, 3, &mut walked);
        }
    }
    assert!(walked > 2000, "only {walked} histories");
}
