//! When a worker counts as ready in each mode of `--ready`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use master_process_tests::messages::{await_failed_reload, late, ready};
use master_process_tests::{Supervisor, address, always, fixtures};
use rustix::process::Signal;

/// Long against a worker's start on a busy machine, short enough to wait for.
const READY_TIMEOUT: &str = "2s";

const LONGER_THAN_READY_TIMEOUT: Duration = Duration::from_millis(2600);

fn started_with(mode: &str, words: &[&str]) -> Supervisor {
    let options = ["--ready", mode, "--ready-timeout", READY_TIMEOUT];
    Supervisor::start(&options, fixtures::worker(words))
}

/// The worker is not stopped after the time-out: it counts as ready.
fn counts_as_ready(mode: &str, words: &[&str]) {
    let supervisor = started_with(mode, words);
    supervisor.await_events(1, "ready");
    always(LONGER_THAN_READY_TIMEOUT, "a ready worker is not stopped", || {
        supervisor.events_named("term").is_empty()
    });
    assert_eq!(supervisor.events_named("started").len(), 1, "{mode} {words:?}");
    assert_eq!(supervisor.stop(), 0);
}

/// The worker is logged as late after the time-out, and does not count as ready.
fn does_not_count_as_ready(mode: &str, words: &[&str]) {
    let start = Instant::now();
    let supervisor = started_with(mode, words);
    supervisor.eventually("one line warns", || !late(&supervisor).is_empty());
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "{mode} {words:?}: logged after {:?}",
        start.elapsed()
    );
    assert_eq!(ready(&supervisor).len(), 0, "{mode} {words:?}: {:?}", supervisor.log());
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
    await_failed_reload(&supervisor);
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
fn in_mode_auto_a_program_without_readiness_signal_is_ready_after_10_s() {
    let supervisor = Supervisor::start(&[], fixtures::worker(&[]));
    supervisor.await_events(1, "ready");
    always(Duration::from_millis(10_500), "it is not stopped", || supervisor.events_named("term").is_empty());
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
