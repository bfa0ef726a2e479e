//! Shared memory: it counts once for each process until the PSS is measured.

use std::time::Duration;

use super::limits::{SECOND, judged, memory, overs, starting};
use super::sim::{INTERVAL, Sim};
use crate::policy::{Event, Measured, NoPss, Pss, Report};

#[test]
fn a_worker_whose_pss_is_within_the_limit_is_not_replaced() {
    let mut sim = judged(1);
    sim.pss = Some(Pss::Bytes(1000));
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[5000; 3000]);
    assert_eq!((starting(&sim), sim.alive()), (0, vec![worker]));
    assert_eq!(overs(&sim), []);
    sim.finish();
}

#[test]
fn a_worker_whose_pss_is_over_the_limit_is_replaced_and_the_report_has_that_number() {
    let mut sim = judged(1);
    sim.pss = Some(Pss::Bytes(1001));
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[5000; 10]);
    assert_eq!(starting(&sim), 1);
    let over = overs(&sim)[0];
    assert_eq!((over.used, over.measured), (1001, Measured::Pss));
    sim.finish();
}

#[test]
fn where_there_is_no_pss_what_is_resident_decides_and_the_report_says_why() {
    for why in [NoPss::Denied, NoPss::Unsupported, NoPss::TooManyProcesses, NoPss::TimedOut, NoPss::Failed] {
        let mut sim = judged(1);
        sim.pss = Some(Pss::Unknown(why));
        let worker = sim.alive()[0];
        memory(&mut sim, worker, &[5000; 10]);
        assert_eq!(starting(&sim), 1);
        let over = overs(&sim)[0];
        assert_eq!((over.used, over.measured), (5000, Measured::Resident(why)));
        sim.finish();
    }
}

#[test]
fn nobody_is_replaced_before_the_look_is_answered_and_it_is_asked_for_once() {
    let mut sim = judged(1);
    sim.answers_later = true;
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[5000; 9]);
    assert_eq!(sim.pss_requests, []);
    // The simulation rejects a second request before the answer.
    memory(&mut sim, worker, &[5000; 20]);
    assert_eq!((sim.pss_requests.len(), starting(&sim)), (1, 0));
    sim.answer_pss(Pss::Bytes(5000));
    assert_eq!(starting(&sim), 1);
    sim.finish();
}

#[test]
fn an_answer_that_comes_after_the_worker_has_shrunk_says_nothing() {
    let mut sim = judged(1);
    sim.answers_later = true;
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[5000; 10]);
    memory(&mut sim, worker, &[500]);
    sim.answer_pss(Pss::Bytes(5000));
    assert_eq!((starting(&sim), overs(&sim)), (0, vec![]));
    // Nor while the limits are paused.
    memory(&mut sim, worker, &[5000; 10]);
    sim.event(Event::ToggleMonitoring);
    sim.answer_pss(Pss::Bytes(5000));
    sim.event(Event::ToggleMonitoring);
    assert_eq!((starting(&sim), overs(&sim)), (0, vec![]));
    memory(&mut sim, worker, &[5000; 10]);
    sim.answer_pss(Pss::Bytes(5000));
    assert_eq!(starting(&sim), 1, "it is requested again");
    sim.finish();
}

#[test]
fn a_question_without_room_is_asked_again_with_the_next_sample() {
    let mut sim = judged(1);
    sim.pss = Some(Pss::Deferred);
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[5000; 12]);
    assert_eq!(starting(&sim), 0);
    sim.pss = None;
    memory(&mut sim, worker, &[5000]);
    assert_eq!(starting(&sim), 1);
    sim.finish();
}

/// Takes samples with this memory until the PSS is requested, and answers that it is within the limit; returns the
/// time that it took.
fn until_asked(sim: &mut Sim, resident: u64) -> u64 {
    let (worker, since) = (sim.alive()[0], sim.now);
    for _ in 0..1000 {
        sim.sample(worker, 0, resident);
        if !sim.pss_requests.is_empty() {
            sim.answer_pss(Pss::Bytes(800));
            return sim.now.since(since).as_secs();
        }
        sim.pass(INTERVAL);
    }
    panic!("never requested");
}

#[test]
fn a_worker_that_was_found_within_is_looked_at_less_and_less_often_but_at_least_each_ten_minutes() {
    let mut sim = judged(1);
    sim.answers_later = true;
    let gaps: Vec<u64> = (0..8).map(|_| until_asked(&mut sim, 5000)).collect();
    assert_eq!(gaps, [18, 30, 60, 120, 240, 480, 600, 600]);
    sim.finish();
}

#[test]
fn a_worker_that_has_grown_by_what_was_left_is_looked_at_without_a_pause() {
    let mut sim = judged(1);
    sim.answers_later = true;
    for _ in 0..8 {
        until_asked(&mut sim, 5000);
    }
    // Of 1000 it had 800.
    assert_eq!(until_asked(&mut sim, 5199), 600);
    assert_eq!(until_asked(&mut sim, 5399), 18, "a row, and no pause");
    sim.finish();
}

#[test]
fn a_leak_in_processes_that_share_is_replaced_once_it_is_over_the_limit() {
    let mut sim = judged(1);
    let worker = sim.alive()[0];
    let mut leaked = 0;
    while starting(&sim) == 0 {
        leaked += 1;
        assert!(leaked < 1000, "never replaced");
        sim.pss = Some(Pss::Bytes(500 + leaked));
        memory(&mut sim, worker, &[5000 + leaked]);
    }
    assert!((501..530).contains(&leaked), "{leaked}");
    sim.finish();
}

#[test]
fn a_worker_that_waits_for_its_turn_is_looked_at_again_when_that_comes() {
    let mut sim = judged(1);
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[5000; 10]);
    sim.run_smoothly();
    let next = sim.alive()[0];
    sim.pass(31 * SECOND);
    memory(&mut sim, next, &[5000; 10]);
    assert!(overs(&sim).last().is_some_and(|over| over.wait.is_some()), "{:?}", overs(&sim));
    // By then others have what it has.
    sim.pss = Some(Pss::Bytes(900));
    for _ in 0..1000 {
        memory(&mut sim, next, &[5000]);
    }
    assert_eq!(starting(&sim), 0);
    assert_eq!(overs(&sim).len(), 2);
    sim.finish();
}

#[test]
fn a_worker_that_is_gone_or_stands_by_is_not_replaced_for_a_late_answer() {
    let mut sim = judged(1);
    sim.answers_later = true;
    let worker = sim.alive()[0];
    memory(&mut sim, worker, &[5000; 10]);
    sim.event(Event::Reload);
    sim.launch_all();
    sim.make_all_ready();
    sim.answer_pss(Pss::Bytes(5000));
    sim.run_smoothly();
    sim.pass(Duration::from_secs(10));
    assert_eq!(overs(&sim), []);
    assert_eq!(sim.alive().len(), 1);
    assert!(!sim.notes.iter().any(|note| matches!(note, Report::ReplacementCancelled { .. })));
    sim.finish();
}
