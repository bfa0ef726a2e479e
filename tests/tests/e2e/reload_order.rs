//! The order of a reload: how many slots at a time, and when an old worker is stopped.

use std::collections::BTreeSet;

use master_process_tests::load::{Connections, Load};
use master_process_tests::messages::late;
use master_process_tests::traffic::{nothing_is_lost, pass};
use master_process_tests::{Event, Supervisor, address, fixtures, load, process};
use rustix::process::Signal;

/// Reloads, and gives the successor's `ready` and the old one's `term`.
fn handover(mode: &str, words: &[&str]) -> (Event, Event) {
    let supervisor = Supervisor::start(&["--ready", mode], fixtures::worker(words));
    supervisor.await_events(1, "ready");
    supervisor.reload(1);
    let ready = supervisor.await_event("the successor", |event| event.reload == 1 && event.name == "ready");
    let term = supervisor.await_event("the old one", |event| event.reload == 0 && event.name == "term");
    (ready, term)
}

/// The fixture prints that it is ready just after it was: the end of the old worker may seem too early by this.
const BETWEEN_BEING_AND_SAYING: f64 = 0.2;

#[test]
fn old_worker_is_stopped_after_its_successor_is_ready() {
    let listen = format!("listen={}", address::tcp());
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
fn reload_batch_limits_concurrent_starts() {
    for (batch, workers, expected) in [("1", 3, 1), ("50%", 4, 2), ("all", 3, 3), ("34%", 3, 2)] {
        let count = workers.to_string();
        let options = ["-w", count.as_str(), "--reload-batch", batch];
        let supervisor =
            Supervisor::start(&options, fixtures::listening(address::tcp(), &["from=1:delay=0.7"]));
        supervisor.await_events(workers, "ready");
        supervisor.reload(workers);
        assert_eq!(most_starting_at_once(&supervisor), expected, "--reload-batch {batch}");
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn hup_during_a_reload_stops_the_intermediate_generation() {
    let (supervisor, _, ready) = fixtures::listening_workers(2, &[], &["from=1:delay=2"]);
    let old: BTreeSet<i32> = ready.iter().map(|event| event.pid).collect();
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

/// A program that is slow: it listens after three times the time-out.
#[test]
fn server_slower_than_ready_timeout_starts_recovers_and_reloads() {
    let address = address::tcp();
    let options = ["--ready-timeout", "1s", "--throttle", "100ms", "--reload-attempts", "1"];
    let supervisor = Supervisor::start(&options, fixtures::listening(address, &["delay=3"]));
    let first = supervisor.await_events(1, "ready")[0].pid;
    assert_eq!(late(&supervisor).len(), 1, "{:?}", supervisor.log());
    assert_eq!(supervisor.events_named("started").len(), 1, "it was not stopped");
    assert_eq!(load::who(address), Some(first));
    process::signal(first, Signal::KILL);
    let second = supervisor.await_events(2, "ready")[1].pid;
    assert_eq!(load::who(address), Some(second));
    let third = supervisor.reload(1);
    assert_eq!(supervisor.events_named("started").len(), 3, "no start was stopped");
    assert!(load::who(address).is_some_and(|pid| third.contains(&pid)));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn worker_without_readiness_signal_serves_until_its_successor_is_ready() {
    let address = address::tcp();
    let listen = address.to_string();
    let words = ["accept=3", "from=1:delay=2"];
    let supervisor = Supervisor::start(&["--listen", &listen], fixtures::worker(&words));
    supervisor.await_events(1, "ready");
    let clients = Load::start(address, 4, Connections::Fresh);
    pass(&supervisor, &clients, 50);
    supervisor.reload(1);
    pass(&supervisor, &clients, 50);
    nothing_is_lost(clients);
    let of = |name: &str| supervisor.events_named(name);
    let (ready, term) = (of("ready").remove(1), of("term").remove(0));
    assert_eq!((ready.reload, term.reload), (1, 0));
    assert!(term.at >= ready.at, "the old one served until the new one did: {term:?} {ready:?}");
}
