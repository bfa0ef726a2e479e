//! When a worker counts as ready, and what a reload does with those that never do.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use master_process_tests::load::{Connections, Kept, Load, Outcome};
use master_process_tests::script::{script, started};
use master_process_tests::traffic::{nothing_is_lost, pass};
use master_process_tests::{Event, Supervisor, address, always, fixtures, load, process, scaled};
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

/// The lines that say that a worker is ready.
fn taken_for_ready(supervisor: &Supervisor) -> usize {
    let ways = [": listening", ": notified", ": no readiness signal"];
    ways.iter().map(|way| supervisor.logged(&["worker", way]).len()).sum()
}

/// The lines that warn of a worker that is late.
fn warned(supervisor: &Supervisor) -> Vec<String> {
    supervisor.logged(&["is not ready after", "--ready-timeout"])
}

/// The worker is told of after the time-out, and is not taken for ready.
fn does_not_count_as_ready(mode: &str, words: &[&str]) {
    let start = Instant::now();
    let supervisor = started_with(mode, words);
    supervisor.eventually("one line warns", || !warned(&supervisor).is_empty());
    assert!(start.elapsed() >= Duration::from_secs(2), "{mode} {words:?}: told after {:?}", start.elapsed());
    assert_eq!(taken_for_ready(&supervisor), 0, "{mode} {words:?}: {:?}", supervisor.log());
    assert!(supervisor.events_named("term").is_empty(), "it goes on starting");
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
    // Old enough to be ready itself.
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
    supervisor.logged(&["reload", "failed: "]).len()
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
    let ready_timeout = format!("{}ms", scaled(Duration::from_millis(900)).as_millis());
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

/// A program that is slow: it listens after three times the time-out.
#[test]
fn a_server_that_is_later_than_the_time_out_starts_comes_back_after_a_crash_and_is_reloaded() {
    let address = address::tcp();
    let listen = format!("listen={address}");
    let options = ["--ready-timeout", "1s", "--throttle", "100ms", "--reload-attempts", "1"];
    let supervisor = Supervisor::start(&options, fixtures::worker(&[&listen, "delay=3"]));
    let first = supervisor.await_events(1, "ready")[0].pid;
    assert_eq!(warned(&supervisor).len(), 1, "{:?}", supervisor.log());
    assert_eq!(supervisor.events_named("started").len(), 1, "it was left in peace");
    assert_eq!(load::who(address), Some(first));
    process::signal(first, Signal::KILL);
    let second = supervisor.await_events(2, "ready")[1].pid;
    assert_eq!(load::who(address), Some(second));
    let third = supervisor.reload(1);
    assert_eq!(supervisor.events_named("started").len(), 3, "each start was left in peace");
    assert!(load::who(address).is_some_and(|pid| third.contains(&pid)));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_worker_that_accepts_without_a_word_is_not_stopped_by_a_reload_in_its_first_second() {
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

/// Opens a port beside its own at once, and its own after `sleep`. What it does from its first reload on is `new`.
fn side_port_first(sleep: &str, new: &str) -> String {
    format!(
        "
import threading
side = bound(HOST, PORT + 50); side.listen(64)
threading.Thread(target=serve, args=(side,), daemon=True).start()
say('side', INDEX, PID)
if RELOAD > 0:
    {new}
time.sleep({sleep})
own = bound(HOST, PORT); own.listen(64)
say('own', INDEX, PID)
serve(own)"
    )
}

/// The lines that the workers have said about this port.
fn said_of(supervisor: &Supervisor, port: &str) -> usize {
    supervisor.output().iter().filter(|line| line.starts_with(port)).count()
}

/// Longer than a reload needs that does not wait for the second port, with a throttle of 100 ms.
const LATER: &str = "2";

#[test]
fn a_side_port_that_opens_first_does_not_make_a_new_worker_ready() {
    let address = address::tcp();
    let text = side_port_first("6", "pass");
    // The load itself must not hold an old worker for longer: it drains until its queue is empty, or for this time.
    let options = ["-w", "2", "--throttle", "100ms", "--kill-timeout", "500ms"];
    let supervisor = started(&options, &text, address);
    supervisor.eventually("both serve", || said_of(&supervisor, "own") == 2);
    let clients = Load::start(address, 4, Connections::Fresh);
    pass(&supervisor, &clients, 50);
    supervisor.reload(2);
    pass(&supervisor, &clients, 50);
    let tally = clients.stop();
    assert_eq!(tally.inexcusable(), 0, "{tally}");
    assert_eq!(supervisor.logged(&["no worker listens on it"]).len(), 0, "{:?}", supervisor.log());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn the_debugger_of_node_does_not_make_a_new_worker_ready() {
    let (address, inspect) = (address::tcp(), address::tcp());
    let mut command = fixtures::node("server.js");
    command.insert(1, format!("--inspect={inspect}"));
    let builder = Supervisor::builder().args(["--throttle", "100ms"]).command(command);
    let supervisor = builder.env("LISTEN", address.to_string()).env("DELAY_LISTEN", "4000").spawn();
    supervisor.await_events(1, "ready");
    let clients = Load::start(address, 4, Connections::Fresh);
    pass(&supervisor, &clients, 50);
    supervisor.reload(1);
    pass(&supervisor, &clients, 50);
    let tally = clients.stop();
    assert_eq!(tally.inexcusable(), 0, "{tally}");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_crash_of_a_worker_with_a_side_port_refuses_nobody() {
    let address = address::tcp();
    let text = side_port_first(LATER, "pass");
    let supervisor = started(&["--throttle", "100ms"], &text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    let clients = Load::start(address, 4, Connections::Fresh);
    pass(&supervisor, &clients, 50);
    let victim = *supervisor.await_workers(1).first().expect("one");
    process::signal(victim, Signal::KILL);
    supervisor.eventually("another one serves", || said_of(&supervisor, "own") == 2);
    pass(&supervisor, &clients, 50);
    let tally = clients.stop();
    assert_eq!(tally.inexcusable(), 0, "{tally}");
    assert_eq!(supervisor.stop(), 0);
}

/// After how many seconds each worker listened, as the log says.
fn listened_after(supervisor: &Supervisor) -> Vec<f64> {
    let seconds = |line: &String| {
        let after = line.split("ready after ").nth(1).and_then(|rest| rest.split(':').next())?;
        match after.strip_suffix("ms") {
            Some(milliseconds) => milliseconds.parse::<f64>().map(|milliseconds| milliseconds / 1000.0).ok(),
            None => after.strip_suffix('s')?.parse().ok(),
        }
    };
    supervisor.logged(&["ready after", "listening"]).iter().filter_map(seconds).collect()
}

#[test]
fn the_successor_of_a_worker_that_left_a_child_behind_is_ready_when_it_listens_wherever_that_did() {
    let address = address::tcp();
    let child = "
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)";
    let text = format!("{child}{}", side_port_first(LATER, "pass"));
    let supervisor = started(&["--throttle", "100ms"], &text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    let victim = *supervisor.await_workers(1).first().expect("one");
    process::signal(victim, Signal::KILL);
    let after = supervisor.until("its successor is ready", || {
        Some(listened_after(&supervisor)).filter(|after| after.len() == 2)
    });
    assert_eq!(supervisor.logged(&["left 1 process behind"]).len(), 1, "{:?}", supervisor.log());
    let needed: f64 = LATER.parse().expect("seconds");
    assert!(after[1] >= needed, "ready with its side port alone: {after:?}");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_release_that_never_opens_its_port_fails_and_the_missing_address_is_named() {
    let address = address::tcp();
    let text = side_port_first("0", "signal.pause()");
    let timeout = format!("{}ms", scaled(Duration::from_secs(2)).as_millis());
    let options = ["-w", "2", "--ready-timeout", &timeout, "--reload-attempts", "1", "--throttle", "100ms"];
    let supervisor = started(&options, &text, address);
    supervisor.eventually("both serve", || said_of(&supervisor, "own") == 2);
    let old = supervisor.await_workers(2);
    let clients = Load::start(address, 4, Connections::Fresh);
    pass(&supervisor, &clients, 50);
    supervisor.signal(Signal::HUP);
    await_given_up(&supervisor);
    let why = format!("listen on {address}, which the old worker serves");
    let told = supervisor.logged(&[
        "reload 1 failed: ",
        &why,
        "2 old workers keep serving",
        "ready=1",
        "--ready listen:addr",
    ]);
    assert_eq!(told.len(), 1, "{:?}", supervisor.log());
    supervisor.eventually("so does the line of the worker", || {
        !supervisor.logged(&["was not ready within", &why]).is_empty()
    });
    supervisor.eventually("the new ones are gone", || supervisor.workers() == old);
    pass(&supervisor, &clients, 50);
    nothing_is_lost(clients);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_reload_that_waits_for_an_address_says_so() {
    let address = address::tcp();
    let text = side_port_first("0", "time.sleep(11)");
    let supervisor = started(&["--throttle", "100ms"], &text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    supervisor.signal(Signal::HUP);
    let missing = format!("it does not listen on {address}, which the old worker serves");
    let told = || supervisor.logged(&["is not ready after", &missing, "waiting for it"]).len();
    supervisor.eventually("one line says what the reload waits for", || told() == 1);
    supervisor.eventually("the reload is complete", || supervisor.logged(&["complete after"]).len() == 1);
    assert_eq!(told(), 1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_release_that_has_dropped_an_address_says_so_itself() {
    let address = address::tcp();
    let text = side_port_first("0", "notify(); signal.pause()");
    let supervisor = started(&["--throttle", "100ms"], &text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    for _ in 0..2 {
        supervisor.reload(1);
    }
    assert_eq!(supervisor.logged(&["complete after"]).len(), 2, "{:?}", supervisor.log());
    supervisor.eventually("the address is closed", || load::get(address, "/") == Outcome::Refused);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn what_a_release_has_dropped_waits_for_the_end_of_its_trial_though_the_old_worker_crashes() {
    let address = address::tcp();
    let text = side_port_first("0", "notify(); signal.pause()");
    let supervisor = started(&["--throttle", "5s", "--throttle-max", "5s"], &text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    let old = *supervisor.await_workers(1).first().expect("one");
    let begun = Instant::now();
    supervisor.signal(Signal::HUP);
    supervisor.eventually("the new one is ready", || !supervisor.logged(&[": notified"]).is_empty());
    process::signal(old, Signal::KILL);
    supervisor.eventually("the old one is gone", || !process::alive(old));
    while begun.elapsed() < Duration::from_secs(4) {
        // Nobody takes them, and the queue is not endless: not too many.
        assert!(Kept::open(address).is_ok(), "refused on trial: {:?}", supervisor.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    supervisor.eventually("the address is closed", || load::get(address, "/") == Outcome::Refused);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_port_that_the_old_worker_has_closed_is_not_waited_for() {
    let address = address::tcp();
    let text = "
if RELOAD == 0:
    closing = bound(HOST, PORT + 50); closing.listen(64)
own = bound(HOST, PORT); own.listen(64)
if RELOAD == 0:
    closing.close()
say('own', INDEX, PID)
serve(own)";
    let supervisor = started(&["--throttle", "100ms"], text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    let clients = Load::start(address, 4, Connections::Fresh);
    supervisor.reload(1);
    nothing_is_lost(clients);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_socket_whose_name_has_the_pid_in_it_is_not_waited_for_by_name() {
    let address = address::tcp();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = "
diagnostics = socket.socket(socket.AF_UNIX)
diagnostics.bind(f'{sys.argv[2]}/diagnostics-{PID}'); diagnostics.listen(8)
time.sleep(1.5)
own = bound(HOST, PORT); own.listen(64)
say('own', INDEX, PID)
serve(own)";
    let mut command = script(text, address);
    command.push(folder.path().to_str().expect("UTF-8").to_owned());
    let options = ["--throttle", "100ms", "--kill-timeout", "500ms"];
    let supervisor = Supervisor::start(&options, command);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    let clients = Load::start(address, 4, Connections::Fresh);
    for _ in 0..2 {
        pass(&supervisor, &clients, 50);
        supervisor.reload(1);
    }
    let tally = clients.stop();
    assert_eq!(tally.inexcusable(), 0, "{tally}");
    assert_eq!(supervisor.stop(), 0);
}

/// Its first worker starts a daemon in a session of its own, as Erlang does with epmd; the next ones find it.
pub(crate) const STARTS_A_DAEMON: &str = "
def answers():
    try:
        socket.create_connection((HOST, PORT + 50)).close()
        return True
    except OSError:
        return False
if not answers():
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0: os._exit(0)
        daemon = bound(HOST, PORT + 50); daemon.listen(8)
        say('daemon', os.getpid())
        serve(daemon)
    os.wait()
    while not answers(): time.sleep(0.01)
own = bound(HOST, PORT); own.listen(64)
say('own', INDEX, PID)
serve(own)";

#[test]
fn a_daemon_that_only_the_first_worker_starts_is_not_waited_for() {
    let address = address::tcp();
    let supervisor = started(&["--throttle", "100ms"], STARTS_A_DAEMON, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    let clients = Load::start(address, 4, Connections::Fresh);
    pass(&supervisor, &clients, 50);
    supervisor.signal(Signal::HUP);
    supervisor.eventually("the reload is complete", || supervisor.logged(&["complete after"]).len() == 1);
    nothing_is_lost(clients);
    assert_eq!(said_of(&supervisor, "daemon"), 1, "the second one found it");
    supervisor.eventually("it ends with the worker that started it", || {
        supervisor.logged(&["worker 0 left 1 process behind", "python3"]).len() == 1
    });
    assert_eq!(supervisor.stop(), 0);
}

/// In mode `listen:ADDR` a worker is ready when it listens there, and not before.
fn is_ready_where_it_is_named(options: &[&str], named: &str, text: &str, argument: Option<&str>) {
    let address = address::tcp();
    let named = named.replace("PORT", &address.port().to_string()).replace("IP", &address.ip().to_string());
    let mode = format!("listen:{named}");
    let mut command = script(text, address);
    command.extend(argument.map(str::to_owned));
    let args = [&["--ready", &mode, "--ready-timeout", "1s"], options].concat();
    let supervisor = Supervisor::start(&args, command);
    supervisor.eventually("it listens beside, and one line warns", || {
        said_of(&supervisor, "side") == 1 && warned(&supervisor).len() == 1
    });
    assert_eq!(supervisor.logged(&["it does not listen on", "which --ready names"]).len(), 1, "{mode}");
    supervisor.eventually("it is ready", || taken_for_ready(&supervisor) == 1);
    // Its own line comes by another way than ours.
    supervisor.eventually("it listens where it is named", || said_of(&supervisor, "own") == 1);
    let log = supervisor.log();
    let at = |words: &str| log.iter().position(|line| line.contains(words));
    assert!(at("is not ready after") < at(": listening"), "{mode}: {log:?}");
    assert_eq!(supervisor.stop(), 0);
}

/// Listens beside at once, and after two seconds as `own` does.
fn beside_and(own: &str) -> String {
    format!(
        "
side = bound(HOST, PORT + 50); side.listen(8)
say('side', INDEX, PID)
time.sleep(2)
{own}
own.listen(8)
say('own', INDEX, PID)
while True: signal.pause()"
    )
}

/// The same for each kind of address.
fn is_ready_wherever_it_is_named(share: &str) {
    let tcp = beside_and("own = bound(HOST, PORT)");
    let wildcard = beside_and("own = bound('0.0.0.0', PORT)");
    let path = beside_and("own = socket.socket(socket.AF_UNIX); own.bind(sys.argv[2])");
    let relative = beside_and(
        "os.chdir(os.path.dirname(sys.argv[2])); own = socket.socket(socket.AF_UNIX); own.bind('./app.sock')",
    );
    let name = beside_and("own = socket.socket(socket.AF_UNIX); own.bind('\\0' + sys.argv[2])");
    let options = ["--share", share];
    is_ready_where_it_is_named(&options, "PORT", &tcp, None);
    is_ready_where_it_is_named(&options, "IP:PORT", &wildcard, None);
    let (_folder, file) = address::unix();
    let file = file.to_str().expect("UTF-8");
    is_ready_where_it_is_named(&options, &format!("unix:{file}"), &path, Some(file));
    let (_folder, file) = address::unix();
    let file = file.to_str().expect("UTF-8");
    is_ready_where_it_is_named(&options, file, &relative, Some(file));
    is_ready_where_it_is_named(&options, &format!("@{file}"), &name, Some(file));
}

#[test]
fn in_mode_listen_a_worker_is_ready_at_the_address_that_is_named() {
    is_ready_wherever_it_is_named("slots");
}

#[test]
fn in_mode_listen_a_worker_is_ready_at_the_named_address_that_all_workers_share() {
    is_ready_wherever_it_is_named("shared");
}

#[test]
fn in_mode_listen_a_worker_is_ready_at_the_named_address_without_sharing_too() {
    is_ready_wherever_it_is_named("off");
}

#[test]
fn in_mode_listen_a_release_may_drop_what_is_not_named() {
    let address = address::tcp();
    let text = "
if RELOAD == 0:
    side = bound(HOST, PORT + 50); side.listen(8)
own = bound(HOST, PORT); own.listen(64)
say('own', INDEX, PID)
serve(own)";
    let mode = format!("listen:{}", address.port());
    let supervisor = started(&["--ready", &mode, "--throttle", "100ms"], text, address);
    supervisor.eventually("it serves", || said_of(&supervisor, "own") == 1);
    let clients = Load::start(address, 4, Connections::Fresh);
    supervisor.reload(1);
    nothing_is_lost(clients);
    assert_eq!(supervisor.stop(), 0);
}
