//! A supervisor that takes over goes on from the state of the one before, whatever that was doing.

use std::time::Duration;

use super::sim::{Sim, settings};
use crate::config::GiveUp;
use crate::policy::{Event, Queue, Saved, Supervisor, WorkerState};

/// The state of an earlier version: it must stay readable. A version with another form of the state adds a file.
const GOLDEN: &str = include_str!("saved-1.json");

/// The same in the form of this version.
const NEWEST: &str = include_str!("saved-2.json");

/// Two slots in the middle of a reload that replaces one at a time: the first one drains its old worker, the second one
/// has begun. A third slot waits for its throttle after its worker has crashed twice.
fn in_the_middle() -> Sim {
    let mut settings = settings(3);
    settings.reload_batch = crate::config::Batch::Slots(1);
    settings.give_up = Some(GiveUp { deaths: 10, within: Duration::from_secs(60) });
    let mut sim = Sim::new(settings);
    sim.run_smoothly();
    sim.event(Event::Reload);
    sim.launch_all();
    let new = sim.find(|process| process.generation == 1).into_iter().find(|worker| worker.slot == 0);
    sim.make_ready(new.expect("it starts"));
    sim.pass(Duration::from_millis(1100));
    for _ in 0..2 {
        sim.launch_all();
        let crashing = sim.find(|process| process.running).into_iter().rfind(|worker| worker.slot == 2);
        sim.die(crashing.expect("it runs"));
    }
    sim
}

fn states(policy: &Supervisor) -> Vec<Vec<WorkerState>> {
    let of = |slot| policy.workers_of(slot).iter().map(|view| view.state).collect();
    (0..policy.count_slots()).map(of).collect()
}

#[test]
fn a_state_in_the_middle_of_a_reload_survives() {
    let mut sim = in_the_middle();
    let before = states(&sim.policy);
    assert!(before[0].contains(&WorkerState::Draining), "{before:?}");
    let written = serde_json::to_string(&sim.policy.save()).expect("it can be written");
    sim.take_over();
    assert_eq!(states(&sim.policy), before);
    assert_eq!(serde_json::to_string(&sim.policy.save()).expect("it can be written"), written);
    sim.answer_queue_requests(Queue::Empty);
    sim.finish();
}

#[test]
fn the_state_of_an_earlier_version_is_read() {
    for golden in [GOLDEN, NEWEST] {
        let saved: Saved = serde_json::from_str(golden).expect("it is readable for ever");
        let mut sim = in_the_middle();
        sim.policy = Supervisor::resume(sim.policy.settings.clone(), saved);
        sim.answer_queue_requests(Queue::Empty);
        sim.finish();
    }
}

#[test]
fn the_form_of_the_state_has_not_changed() {
    let now = serde_json::to_value(in_the_middle().policy.save()).expect("it can be written");
    let golden: serde_json::Value = serde_json::from_str(NEWEST).expect("JSON");
    assert!(
        now == golden,
        "add a file with this form beside saved-2.json, and keep the others readable: {now}"
    );
}

#[test]
fn fields_of_a_later_version_are_ignored_and_those_of_an_earlier_one_have_defaults() {
    let mut value: serde_json::Value = serde_json::from_str(GOLDEN).expect("JSON");
    let fields = value.as_object_mut().expect("an object");
    fields.insert("of_a_later_version".to_owned(), serde_json::json!({ "a": [1] }));
    for field in ["gate", "early_deaths", "replacements", "start_times", "no_memory_limit"] {
        fields.remove(field).expect("it is there");
    }
    let saved: Saved = serde_json::from_value(value).expect("it is readable");
    assert_eq!(saved.count_workers(), 4);
}
