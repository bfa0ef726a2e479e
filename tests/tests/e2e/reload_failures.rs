//! Reloads whose new workers fail: when the reload ends, and which workers keep serving.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use master_process_tests::messages::{await_failed_reload, failed_reloads};
use master_process_tests::{Supervisor, address, always, fixtures, load, scaled};
use rustix::process::Signal;

/// A reload to bad code, then one to good code.
fn bad_reload_fails_and_a_good_one_works(bad: &str, extra: &[&str]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flag = folder.path().join("broken");
    fs::write(&flag, "").expect("the folder is ours");
    let address = address::tcp();
    let bad = format!("from=1:if={}:{bad}", flag.display());
    let mut options =
        vec!["-w", "2", "--reload-attempts", "2", "--throttle", "20ms", "--throttle-max", "20ms"];
    options.extend(extra);
    let supervisor = Supervisor::start(&options, fixtures::listening(address, &[&bad]));
    let old: BTreeSet<i32> = supervisor.await_ready(2);
    supervisor.signal(Signal::HUP);
    await_failed_reload(&supervisor);
    supervisor.eventually("what is new is gone", || supervisor.workers() == old);
    let starts = || {
        let mut slots = [0, 0];
        for event in supervisor.events_named("started").iter().filter(|event| event.reload == 1) {
            slots[usize::try_from(event.index).expect("not negative")] += 1;
        }
        slots
    };
    let tried = starts();
    assert!(tried.contains(&2) && tried.iter().all(|count| *count <= 2), "two attempts a slot: {tried:?}");
    always(Duration::from_millis(600), "the old ones stay, and nothing is tried again", || {
        supervisor.workers() == old && starts() == tried
    });
    assert_eq!(failed_reloads(&supervisor).len(), 1, "logged once");
    assert!(load::who(address).is_some_and(|pid| old.contains(&pid)), "the old ones serve");
    fs::remove_file(&flag).expect("it is there");
    let new = supervisor.reload(2);
    assert!(load::who(address).is_some_and(|pid| new.contains(&pid)));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn reload_fails_when_new_workers_never_become_ready() {
    // Long enough for a worker to say that it was started.
    let ready_timeout = format!("{}ms", scaled(Duration::from_millis(900)).as_millis());
    bad_reload_fails_and_a_good_one_works("delay=3600", &["--ready-timeout", &ready_timeout]);
}

#[test]
fn reload_fails_when_new_workers_crash() {
    bad_reload_fails_and_a_good_one_works("exit=1", &[]);
}

#[test]
fn reload_fails_when_new_workers_exit_with_0() {
    bad_reload_fails_and_a_good_one_works("exit=0", &[]);
}

#[test]
fn reload_of_one_slot_at_a_time_fails_before_the_next_slot() {
    let options = [
        "-w",
        "3",
        "--reload-batch",
        "1",
        "--reload-attempts",
        "2",
        "--throttle",
        "20ms",
        "--throttle-max",
        "20ms",
    ];
    let supervisor = Supervisor::start(&options, fixtures::listening(address::tcp(), &["from=1:exit=1"]));
    let old: BTreeSet<i32> = supervisor.await_ready(3);
    supervisor.signal(Signal::HUP);
    await_failed_reload(&supervisor);
    let indices: BTreeSet<i32> = supervisor
        .events_named("started")
        .iter()
        .filter(|event| event.reload == 1)
        .map(|event| event.index)
        .collect();
    assert_eq!(indices.len(), 1, "only one slot was tried");
    always(Duration::from_millis(500), "all the old ones serve", || supervisor.workers() == old);
}

#[test]
fn failed_slot_keeps_its_old_worker_beside_new_ones() {
    let options = ["-w", "2", "--reload-attempts", "2", "--throttle", "20ms", "--throttle-max", "20ms"];
    let supervisor =
        Supervisor::start(&options, fixtures::listening(address::tcp(), &["from=1:index=1:exit=1"]));
    let old = supervisor.await_events(2, "ready");
    supervisor.signal(Signal::HUP);
    await_failed_reload(&supervisor);
    let unlucky = old.iter().find(|event| event.index == 1).expect("two slots").pid;
    supervisor.eventually("two workers, the old one of the unlucky slot among them", || {
        let workers = supervisor.workers();
        workers.len() == 2 && workers.contains(&unlucky)
    });
    assert!(supervisor.events_named("term").iter().all(|event| event.pid != unlucky));
}
