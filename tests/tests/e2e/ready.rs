//! When a worker counts as ready, and what a reload does with those that never do.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use master_process_tests::{Event, Supervisor, address, always, fixtures, load, patient};
use rustix::process::Signal;

/// Long against a worker's start on a busy machine, short enough to wait for.
const READY_TIMEOUT: &str = "2s";
const LONGER_THAN_READY_TIMEOUT: Duration = Duration::from_millis(2600);

fn started_with(mode: &str, words: &[&str]) -> Supervisor {
    let options = ["--ready", mode, "--ready-timeout", READY_TIMEOUT];
    Supervisor::start(&options, fixtures::worker(words))
}

/// The worker is left in peace after the time-out: it was taken for ready.
fn counts_as_ready(mode: &str, words: &[&str]) {
    let supervisor = started_with(mode, words);
    supervisor.await_events(1, "ready");
    always(LONGER_THAN_READY_TIMEOUT, "a ready worker is not stopped", || {
        supervisor.events_named("term").is_empty()
    });
    assert_eq!(supervisor.events_named("started").len(), 1, "{mode} {words:?}");
    assert_eq!(supervisor.stop(), 0);
}

/// The worker is stopped after the time-out, and another is started.
fn does_not_count_as_ready(mode: &str, words: &[&str]) {
    let start = Instant::now();
    let supervisor = started_with(mode, words);
    let stopped = supervisor.await_events(1, "term").remove(0);
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "{mode} {words:?}: stopped after {:?}",
        start.elapsed()
    );
    supervisor.await_event("it is tried again", |event| event.name == "started" && event.pid != stopped.pid);
}

fn listen() -> String {
    format!("listen={}", address::tcp())
}

#[test]
fn listen_is_ready_in_mode_listen() {
    counts_as_ready("listen", &[&listen()]);
}

#[test]
fn listen_on_a_unix_socket_is_ready_in_mode_listen() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    counts_as_ready("listen", &[&format!("listen={}", folder.path().join("s").display())]);
}

#[test]
fn a_notification_is_not_ready_in_mode_listen() {
    does_not_count_as_ready("listen", &["notify"]);
}

#[test]
fn a_datagram_socket_is_not_ready_in_mode_listen() {
    does_not_count_as_ready("listen", &[&format!("udp={}", address::tcp())]);
}

#[test]
fn a_notification_is_ready_in_mode_notify() {
    counts_as_ready("notify", &["notify"]);
}

#[test]
fn listen_is_not_ready_in_mode_notify() {
    does_not_count_as_ready("notify", &[&listen()]);
}

#[test]
fn a_newline_on_the_descriptor_is_ready_in_mode_notify_fd() {
    counts_as_ready("notify:fd=5", &["notify-fd=5"]);
}

#[test]
fn listen_and_a_notification_are_not_ready_in_mode_notify_fd() {
    does_not_count_as_ready("notify:fd=5", &[&listen()]);
}

#[test]
fn listen_is_ready_in_mode_auto() {
    counts_as_ready("auto", &[&listen()]);
}

#[test]
fn a_notification_is_ready_in_mode_auto() {
    counts_as_ready("auto", &["notify"]);
}

#[test]
fn listen_is_ready_without_port_sharing_too() {
    let options = ["--share", "off", "--ready", "listen", "--ready-timeout", READY_TIMEOUT];
    let supervisor = Supervisor::start(&options, fixtures::worker(&[&listen()]));
    supervisor.await_events(1, "ready");
    always(LONGER_THAN_READY_TIMEOUT, "a ready worker is not stopped", || {
        supervisor.events_named("term").is_empty()
    });
}

/// Reloads, and gives the successor's `ready` and the old one's `term`.
fn handover(mode: &str, words: &[&str]) -> (Event, Event) {
    let supervisor = Supervisor::start(&["--ready", mode], fixtures::worker(words));
    supervisor.await_events(1, "ready");
    supervisor.reload(1);
    let ready = supervisor.await_event("the successor", |event| event.reload == 1 && event.name == "ready");
    let term = supervisor.await_event("the old one", |event| event.reload == 0 && event.name == "term");
    (ready, term)
}

/// The fixture says that it is ready just after it was: that much the old one's end may seem too early.
const BETWEEN_BEING_AND_SAYING: f64 = 0.2;

#[test]
fn an_old_worker_is_stopped_only_when_its_successor_is_ready() {
    let listen = listen();
    for (mode, word) in [
        ("listen", listen.as_str()),
        ("notify", "notify"),
        ("notify:fd=3", "notify-fd=3"),
        ("auto", "notify"),
    ] {
        let (ready, term) = handover(mode, &[word, "from=1:delay=0.8"]);
        assert!(term.at >= ready.at - BETWEEN_BEING_AND_SAYING, "{mode}: {term:?} before {ready:?}");
    }
}

#[test]
fn in_mode_alive_a_worker_is_ready_when_it_has_lived_that_long() {
    let supervisor = Supervisor::start(&["--ready", "alive:900ms"], fixtures::worker(&["from=1:delay=3600"]));
    supervisor.await_events(1, "ready");
    // Old enough to be ready itself: one that is not would be stopped at once.
    always(Duration::from_millis(1200), "nothing happens", || supervisor.events_named("term").is_empty());
    let start = Instant::now();
    supervisor.signal(Signal::HUP);
    supervisor.await_events(1, "term");
    assert!(start.elapsed() >= Duration::from_millis(900), "after {:?}", start.elapsed());
}

#[test]
fn in_mode_alive_a_worker_that_dies_sooner_was_never_ready() {
    let options =
        ["--ready", "alive:1500ms", "--throttle", "20ms", "--throttle-max", "20ms", "--reload-attempts", "2"];
    let supervisor = Supervisor::start(&options, fixtures::worker(&["from=1:die=0.2"]));
    let old = supervisor.await_events(1, "ready")[0].pid;
    always(Duration::from_millis(1800), "nothing happens", || supervisor.events_named("started").len() == 1);
    supervisor.signal(Signal::HUP);
    await_given_up(&supervisor);
    assert_eq!(supervisor.workers(), BTreeSet::from([old]));
}

#[test]
fn in_mode_none_a_worker_is_ready_at_once() {
    let supervisor = Supervisor::start(&["--ready", "none"], fixtures::worker(&["from=1:delay=3600"]));
    supervisor.await_events(1, "ready");
    supervisor.reload(1);
    assert_eq!(supervisor.events_named("term").len(), 1);
}

#[test]
fn in_mode_auto_a_program_that_never_says_anything_is_ready_after_10_s() {
    let supervisor = Supervisor::start(&[], fixtures::worker(&[]));
    supervisor.await_events(1, "ready");
    always(Duration::from_millis(10_500), "it is left in peace", || {
        supervisor.events_named("term").is_empty()
    });
    let start = Instant::now();
    supervisor.reload(1);
    assert!(start.elapsed() >= Duration::from_secs(10), "replaced after {:?}", start.elapsed());
}

#[test]
fn in_mode_auto_a_program_that_once_listened_is_not_ready_by_age() {
    let listen = listen();
    let supervisor = Supervisor::start(&[], fixtures::worker(&[&listen, "from=1:delay=3600"]));
    let old = supervisor.await_events(1, "ready")[0].pid;
    supervisor.signal(Signal::HUP);
    supervisor.await_events(2, "started");
    always(Duration::from_millis(11_500), "the old one serves", || {
        supervisor.events_named("term").is_empty()
    });
    assert!(supervisor.workers().contains(&old));
}

/// Waits for the one line that tells that a reload was given up.
fn await_given_up(supervisor: &Supervisor) {
    supervisor.eventually("the log tells that the reload was given up", || given_up(supervisor) > 0);
}

fn given_up(supervisor: &Supervisor) -> usize {
    let lines = supervisor.logged(&["reload"]);
    let ways = ["gave up", "given up", "giving up", "gives up"];
    lines.iter().filter(|line| ways.iter().any(|way| line.contains(way))).count()
}

/// A reload to bad code, then one to good code.
fn a_bad_reload_is_given_up_and_a_good_one_works(bad: &str, extra: &[&str]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let flag = folder.path().join("broken");
    fs::write(&flag, "").expect("the folder is ours");
    let address = address::tcp();
    let listen = format!("listen={address}");
    let bad = format!("from=1:if={}:{bad}", flag.display());
    let mut options =
        vec!["-w", "2", "--reload-attempts", "2", "--throttle", "20ms", "--throttle-max", "20ms"];
    options.extend(extra);
    let supervisor = Supervisor::start(&options, fixtures::worker(&[&listen, &bad]));
    let old: BTreeSet<i32> = supervisor.await_events(2, "ready").iter().map(|event| event.pid).collect();
    supervisor.signal(Signal::HUP);
    await_given_up(&supervisor);
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
    assert_eq!(given_up(&supervisor), 1, "told once");
    assert!(load::who(address).is_some_and(|pid| old.contains(&pid)), "the old ones serve");
    fs::remove_file(&flag).expect("it is there");
    let new = supervisor.reload(2);
    assert!(load::who(address).is_some_and(|pid| new.contains(&pid)));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_reload_whose_workers_never_get_ready_is_given_up() {
    // Long enough for a worker to say that it was started.
    let ready_timeout = format!("{}ms", patient(Duration::from_millis(900)).as_millis());
    a_bad_reload_is_given_up_and_a_good_one_works("delay=3600", &["--ready-timeout", &ready_timeout]);
}

#[test]
fn a_reload_whose_workers_crash_is_given_up() {
    a_bad_reload_is_given_up_and_a_good_one_works("exit=1", &[]);
}

#[test]
fn a_reload_whose_workers_leave_with_0_is_given_up() {
    a_bad_reload_is_given_up_and_a_good_one_works("exit=0", &[]);
}

#[test]
fn a_reload_one_at_a_time_is_given_up_before_the_next_slot() {
    let listen = listen();
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
    let supervisor = Supervisor::start(&options, fixtures::worker(&[&listen, "from=1:exit=1"]));
    let old: BTreeSet<i32> = supervisor.await_events(3, "ready").iter().map(|event| event.pid).collect();
    supervisor.signal(Signal::HUP);
    await_given_up(&supervisor);
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
fn a_slot_that_fails_leaves_its_old_worker_beside_the_new_ones() {
    let listen = listen();
    let options = ["-w", "2", "--reload-attempts", "2", "--throttle", "20ms", "--throttle-max", "20ms"];
    let supervisor = Supervisor::start(&options, fixtures::worker(&[&listen, "from=1:index=1:exit=1"]));
    let old = supervisor.await_events(2, "ready");
    supervisor.signal(Signal::HUP);
    await_given_up(&supervisor);
    let unlucky = old.iter().find(|event| event.index == 1).expect("two slots").pid;
    supervisor.eventually("two workers, the old one of the unlucky slot among them", || {
        let workers = supervisor.workers();
        workers.len() == 2 && workers.contains(&unlucky)
    });
    assert!(supervisor.events_named("term").iter().all(|event| event.pid != unlucky));
}

/// How many new workers were starting at the same time, at most, by their own account.
fn most_starting_at_once(supervisor: &Supervisor) -> usize {
    let of_the_reload = |name: &str| -> Vec<Event> {
        supervisor.events_named(name).into_iter().filter(|event| event.reload == 1).collect()
    };
    let (started, ready) = (of_the_reload("started"), of_the_reload("ready"));
    let starting_at = |moment: f64| {
        let begun = started.iter().filter(|event| event.at <= moment).count();
        // One that was just ready may not have said so when the next was started already.
        begun - ready.iter().filter(|event| event.at <= moment + BETWEEN_BEING_AND_SAYING).count().min(begun)
    };
    started.iter().map(|event| starting_at(event.at)).max().unwrap_or_default()
}

#[test]
fn a_reload_replaces_as_many_at_a_time_as_it_is_told() {
    for (batch, workers, expected) in [("1", 3, 1), ("50%", 4, 2), ("all", 3, 3), ("34%", 3, 2)] {
        let listen = listen();
        let count = workers.to_string();
        let options = ["-w", count.as_str(), "--reload-batch", batch];
        let supervisor = Supervisor::start(&options, fixtures::worker(&[&listen, "from=1:delay=0.7"]));
        supervisor.await_events(workers, "ready");
        supervisor.reload(workers);
        assert_eq!(most_starting_at_once(&supervisor), expected, "--reload-batch {batch}");
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn a_hup_during_a_reload_stops_those_in_between_at_once() {
    let listen = listen();
    let words = [listen.as_str(), "from=1:delay=2"];
    let supervisor = Supervisor::start(&["-w", "2"], fixtures::worker(&words));
    let old: BTreeSet<i32> = supervisor.await_events(2, "ready").iter().map(|event| event.pid).collect();
    supervisor.signal(Signal::HUP);
    supervisor.until("both new ones start", || {
        (supervisor.events_named("started").iter().filter(|event| event.reload == 1).count() == 2)
            .then_some(())
    });
    supervisor.signal(Signal::HUP);
    supervisor.until("the next generation is ready", || {
        let workers = supervisor.workers();
        // Per slot one serves and one starts, besides those on their way out; the old ones serve to the last.
        let newest = supervisor.events_named("ready").iter().filter(|event| event.reload == 2).count();
        assert!(
            newest > 0 || old.is_subset(&workers),
            "an old one was stopped before its successor was ready"
        );
        (newest == 2).then_some(())
    });
    supervisor.await_workers(2);
    let in_between = supervisor.events_named("ready").iter().filter(|event| event.reload == 1).count();
    assert_eq!(in_between, 0, "those in between were stopped before they were ready");
}
