//! Replacements for limits, as many at a time as in a reload.

use super::limits::{SECOND, overs, starting};
use super::sim::{INTERVAL, Sim, settings};
use crate::config::Batch;
use crate::policy::{Event, Report, WorkerId};

/// Workers that are judged, of which this number may be replaced at a time.
fn judged(workers: u32, batch: Batch) -> Sim {
    let mut settings = settings(workers);
    settings.reload_batch = batch;
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    sim.pass(31 * SECOND);
    sim
}

/// Samples with this memory for each of them.
fn memory(sim: &mut Sim, workers: &[WorkerId], samples: &[u64]) {
    for memory in samples {
        for worker in
            workers.iter().filter(|worker| sim.processes.contains_key(worker)).copied().collect::<Vec<_>>()
        {
            sim.sample(worker, 0, *memory);
        }
        sim.pass(INTERVAL);
    }
}

/// The slots in which a successor is starting or on probation.
fn replaced(sim: &Sim) -> Vec<u32> {
    sim.find(|process| !process.ready).iter().map(|worker| worker.slot).collect()
}

#[test]
fn one_slot_at_a_time_is_replaced_where_a_reload_replaces_one() {
    let mut sim = judged(3, Batch::Slots(1));
    let old = sim.alive();
    memory(&mut sim, &old, &[2000; 10]);
    assert_eq!(replaced(&sim), [0]);
    let queued: Vec<bool> = overs(&sim).iter().map(|over| over.queued).collect();
    assert_eq!(queued, [false, true, true]);
    for slot in 0..3 {
        sim.launch_all();
        assert_eq!(replaced(&sim), [slot], "its turn");
        memory(&mut sim, &old[slot as usize + 1..], &[2000]);
        assert_eq!(replaced(&sim), [slot], "only its own");
        sim.make_all_ready();
        // It is ready, and can still exit early.
        if sim.policy.deadline().is_some_and(|at| at > sim.now) {
            sim.pass(2 * SECOND);
        }
    }
    sim.run_smoothly();
    assert!(old.iter().all(|worker| !sim.processes.contains_key(worker)));
    sim.finish();
}

#[test]
fn a_successor_on_trial_keeps_the_turn() {
    let mut sim = judged(2, Batch::Slots(1));
    let old = sim.alive();
    memory(&mut sim, &old, &[2000; 10]);
    sim.launch_all();
    sim.make_all_ready();
    assert!(replaced(&sim).is_empty(), "it is ready, and on probation for a second");
    memory(&mut sim, &old[1..], &[]);
    sim.pass(SECOND * 9 / 10);
    assert!(replaced(&sim).is_empty());
    sim.pass(SECOND / 5);
    assert_eq!(replaced(&sim), [1]);
    sim.finish();
}

#[test]
fn as_many_at_a_time_as_the_batch_has() {
    for (batch, at_a_time) in [(Batch::Slots(2), 2), (Batch::Percent(50), 3), (Batch::All, 6)] {
        let mut sim = judged(6, batch);
        let old = sim.alive();
        memory(&mut sim, &old, &[2000; 10]);
        assert_eq!(starting(&sim), at_a_time, "{batch:?}");
        sim.run_smoothly();
        sim.pass(60 * SECOND);
        sim.run_smoothly();
        assert!(
            old.iter().all(|worker| !sim.processes.contains_key(worker)),
            "{batch:?}: all had their turn"
        );
        sim.finish();
    }
}

#[test]
fn a_replacement_that_is_called_off_ends_its_turn() {
    let mut sim = judged(2, Batch::Slots(1));
    let old = sim.alive();
    memory(&mut sim, &old, &[2000; 10]);
    sim.launch_all();
    // The first successor is late; before the next one, the worker is within its limit again.
    memory(&mut sim, &old[..1], &[500]);
    sim.pass(61 * SECOND);
    assert!(sim.notes.contains(&Report::ReplacementCancelled { worker: old[0] }));
    sim.leave_all();
    assert_eq!(replaced(&sim), [1]);
    sim.finish();
}

#[test]
fn a_worker_that_behaves_again_while_it_waits_for_its_turn_is_not_replaced() {
    let mut sim = judged(3, Batch::Slots(1));
    let old = sim.alive();
    memory(&mut sim, &old, &[2000; 10]);
    memory(&mut sim, &old[1..2], &[500]);
    assert!(sim.notes.contains(&Report::ReplacementCancelled { worker: old[1] }));
    sim.run_smoothly();
    sim.pass(5 * SECOND);
    sim.run_smoothly();
    assert!(sim.processes.contains_key(&old[1]));
    assert!(!sim.processes.contains_key(&old[0]) && !sim.processes.contains_key(&old[2]));
    sim.finish();
}

#[test]
fn a_slot_whose_starts_all_fail_lets_the_others_have_their_turns() {
    let mut sim = judged(3, Batch::Slots(1));
    let old = sim.alive();
    memory(&mut sim, &old, &[2000; 10]);
    for _ in 0..200 {
        sim.launch_all();
        for worker in sim.find(|process| process.running && !process.ready && !process.stopped) {
            if worker.slot == 0 {
                sim.die(worker);
            } else {
                sim.make_ready(worker);
            }
        }
        sim.leave_all();
        sim.answer_queue_requests(crate::policy::Queue::None);
        assert!(replaced(&sim).len() <= 1, "{:?}", replaced(&sim));
        memory(&mut sim, &old, &[2000]);
    }
    assert!(sim.processes.contains_key(&old[0]), "it serves on");
    assert!(!sim.processes.contains_key(&old[1]) && !sim.processes.contains_key(&old[2]));
    sim.finish();
}

#[test]
fn a_worker_that_dies_while_another_slot_has_its_turn_is_replaced_at_once() {
    let mut sim = judged(2, Batch::Slots(1));
    let old = sim.alive();
    memory(&mut sim, &old, &[2000; 10]);
    sim.die(old[1]);
    assert_eq!(replaced(&sim), [0, 1], "no worker serves there");
    sim.run_smoothly();
    sim.finish();
}

#[test]
fn a_reload_and_the_limits_together_replace_no_more_slots_at_a_time() {
    let mut sim = judged(3, Batch::Slots(1));
    let old = sim.alive();
    sim.event(Event::Reload);
    memory(&mut sim, &old, &[2000; 20]);
    assert_eq!(replaced(&sim), [0], "the reload's");
    assert_eq!(overs(&sim), [], "a slot that waits for the reload is replaced by it");
    sim.run_smoothly();
    sim.pass(5 * SECOND);
    sim.run_smoothly();
    assert!(sim.notes.iter().any(|note| matches!(note, Report::ReloadDone { .. })));
    assert!(sim.processes.values().all(|process| process.generation == 1));
    sim.finish();
}

#[test]
fn a_reload_takes_those_over_that_wait_for_their_turn() {
    let mut sim = judged(3, Batch::Slots(1));
    let old = sim.alive();
    memory(&mut sim, &old, &[2000; 10]);
    sim.event(Event::Reload);
    sim.run_smoothly();
    sim.pass(60 * SECOND);
    sim.run_smoothly();
    assert!(sim.processes.values().all(|process| process.generation == 1));
    assert_eq!(sim.alive().len(), 3);
    sim.finish();
}
