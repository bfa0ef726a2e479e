//! What the Node module of the same name tested of itself, case by case, with a server that is used as it was there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use master_process_tests::load::{self, Outcome, Target};
use master_process_tests::supervisor::Builder;
use master_process_tests::{Supervisor, address, always, eventually, fixtures, process};
use rustix::process::Signal;

/// A server under the variables of the Node.js module master-process, which are part of what is kept.
fn server(listen: &Target, env: &[(&str, &str)]) -> Builder {
    let listen = match listen {
        Target::Tcp(address) => address.to_string(),
        Target::Unix(path) => path.to_str().expect("UTF-8").to_owned(),
    };
    let builder = Supervisor::builder().command(fixtures::node("server.js")).env("LISTEN", listen);
    env.iter().fold(builder, |builder, (name, value)| builder.env(name, value))
}

fn tcp() -> Target {
    Target::Tcp(address::tcp())
}

fn unix(folder: &Path) -> Target {
    Target::Unix(folder.join("server.sock"))
}

/// The environment of whoever answers.
fn environment(target: &Target) -> serde_json::Value {
    let answer = load::get(target.clone(), "/process");
    let Outcome::Ok(body) = &answer else { panic!("/process: {answer:?}") };
    serde_json::from_str(body).expect("JSON")
}

#[test]
fn term_ends_it_with_exit_0() {
    let supervisor = server(&tcp(), &[]).spawn();
    supervisor.await_events(1, "ready");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_worker_cleans_up_before_it_would_be_killed() {
    let supervisor = server(&tcp(), &[("WORKER_EXIT_DELAY", "600"), ("MAX_KILL_TIMEOUT", "20000")]).spawn();
    supervisor.await_events(1, "ready");
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.events_named("clean_up").len(), 1);
}

#[test]
fn worker_that_ignores_term_is_killed_after_the_timeout() {
    let supervisor = server(&tcp(), &[("WORKER_EXIT_DELAY", "never"), ("MAX_KILL_TIMEOUT", "700")]).spawn();
    supervisor.await_events(1, "ready");
    let start = Instant::now();
    assert_eq!(supervisor.stop(), 0);
    assert!(start.elapsed() >= Duration::from_millis(700), "killed after {:?}", start.elapsed());
    assert_eq!(supervisor.events_named("clean_up").len(), 0);
}

fn is_replaced_after(end: impl FnOnce(&Target, i32)) {
    let target = tcp();
    let supervisor = server(&target, &[("WORKER_THROTTLE", "50")]).spawn();
    let first = supervisor.await_events(1, "ready")[0].pid;
    end(&target, first);
    let second = supervisor.await_events(2, "ready")[1].pid;
    assert_ne!(first, second);
    assert_eq!(load::who(target), Some(second));
    assert_eq!(supervisor.await_workers(1), BTreeSet::from([second]));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_worker_is_replaced_after_exit_0() {
    is_replaced_after(|target, _| drop(load::get(target.clone(), "/exit")));
}

#[test]
fn a_worker_is_replaced_after_exit_1() {
    is_replaced_after(|target, _| drop(load::get(target.clone(), "/exit-1")));
}

#[test]
fn a_worker_is_replaced_after_a_crash() {
    is_replaced_after(|target, _| drop(load::get(target.clone(), "/crash")));
}

#[test]
fn a_worker_is_replaced_after_sigterm() {
    is_replaced_after(|_, pid| process::signal(pid, Signal::TERM));
}

#[test]
fn a_worker_is_replaced_after_sigkill() {
    is_replaced_after(|_, pid| process::signal(pid, Signal::KILL));
}

#[test]
fn a_throttle_of_300_ms_is_honoured() {
    // Not node: it takes a good part of the throttle to start, and the rule is about the time since the start.
    let uptime = fs::read_to_string("/proc/uptime").expect("a proc file system");
    let begun: f64 = uptime.split(' ').next().and_then(|text| text.parse().ok()).expect("seconds");
    let supervisor = Supervisor::builder()
        .command(fixtures::shell(
            "echo started pid=$$ index=$WORKER_INDEX reload=0 at=$(cut -d' ' -f1 /proc/uptime); exit 1",
        ))
        .args(["--throttle-max", "300ms"])
        .env("WORKER_THROTTLE", "300")
        .spawn();
    let starts: Vec<f64> = supervisor.await_events(5, "started").iter().map(|event| event.at).collect();
    for pair in starts.windows(2) {
        assert!(pair[1] - pair[0] < 5.0, "{starts:?}");
    }
    // The shell reads the clock a varying moment after its start, so the time between two readings may be shorter than
    // the throttle. The fifth start is four throttles after the first one. The clock ticks in hundredths.
    assert!(starts[4] - begun > 4.0 * 0.3 - 0.02, "since {begun}: {starts:?}");
}

#[test]
fn a_worker_that_lived_longer_than_the_throttle_is_replaced_at_once() {
    let supervisor = Supervisor::start(&["--throttle", "2s"], fixtures::worker(&[]));
    let first = supervisor.await_events(1, "ready")[0].pid;
    // The throttle is about the time since the start: this one has outlived it.
    always(Duration::from_millis(2100), "it lives", || process::alive(first));
    let killed = Instant::now();
    process::signal(first, Signal::KILL);
    supervisor.await_events(2, "started");
    assert!(killed.elapsed() < Duration::from_millis(1900), "after {:?}", killed.elapsed());
}

#[test]
fn a_stale_unix_socket_is_removed_at_the_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = unix(folder.path());
    drop(UnixListener::bind(folder.path().join("server.sock")).expect("nothing is there yet"));
    let supervisor = server(&target, &[]).spawn();
    supervisor.await_events(1, "ready");
    assert!(load::who(target).is_some());
}

#[test]
fn a_unix_socket_has_mode_664() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // The Node.js module set it unasked; here the worker's umask holds unless an option changes it.
    let supervisor = server(&unix(folder.path()), &[("MASTER_PROCESS_SOCKET_MODE", "664")]).spawn();
    supervisor.await_events(1, "ready");
    let metadata = folder.path().join("server.sock").metadata().expect("the worker listens");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o664);
}

#[test]
fn a_unix_socket_and_its_mode_outlive_the_only_worker() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = unix(folder.path());
    let path = folder.path().join("server.sock");
    let environment = [("WORKER_THROTTLE", "100"), ("MASTER_PROCESS_SOCKET_MODE", "664")];
    let supervisor = server(&target, &environment).spawn();
    let first = supervisor.await_events(1, "ready")[0].pid;
    let _ = load::get(target.clone(), "/crash");
    let there = || path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o7777 == 0o664);
    supervisor.until("the next worker is ready", || {
        assert!(there(), "the path was gone, or had another mode");
        supervisor.events_named("ready").into_iter().find(|event| event.pid != first)
    });
    assert!(load::who(target).is_some_and(|pid| pid != first));
    assert!(there());
}

#[test]
fn a_unix_socket_is_removed_at_the_end() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let supervisor = server(&unix(folder.path()), &[]).spawn();
    supervisor.await_events(1, "ready");
    assert_eq!(supervisor.stop(), 0);
    assert!(!folder.path().join("server.sock").exists());
}

#[test]
fn ppid_is_the_supervisor() {
    let target = tcp();
    let supervisor = server(&target, &[]).spawn();
    supervisor.await_events(1, "ready");
    assert_eq!(environment(&target)["env"]["PPID"], supervisor.pid().to_string());
}

#[test]
fn reload_index_counts_the_reloads() {
    let target = tcp();
    let supervisor = server(&target, &[]).spawn();
    supervisor.await_events(1, "ready");
    for expected in ["0", "1", "2"] {
        assert_eq!(environment(&target)["env"]["RELOAD_INDEX"], expected);
        supervisor.reload(1);
    }
}

#[test]
fn worker_index_is_the_slot_kept_over_replacement_and_reload() {
    let supervisor = server(&tcp(), &[("WORKERS", "3"), ("WORKER_THROTTLE", "50")]).spawn();
    let first = supervisor.await_events(3, "ready");
    let indices = |events: &[master_process_tests::Event]| {
        events.iter().map(|event| event.index).collect::<BTreeSet<_>>()
    };
    assert_eq!(indices(&first), BTreeSet::from([0, 1, 2]));
    let victim = &first[1];
    process::signal(victim.pid, Signal::KILL);
    let fourth = supervisor.await_events(4, "ready").remove(3);
    assert_eq!(fourth.index, victim.index);
    supervisor.reload(3);
    let reloaded: Vec<_> =
        supervisor.events_named("ready").into_iter().filter(|event| event.reload == 1).collect();
    assert_eq!(reloaded.len(), 3);
    assert_eq!(indices(&reloaded), BTreeSet::from([0, 1, 2]));
}

#[test]
fn two_hups_in_a_row_leave_one_worker_the_newest() {
    let target = tcp();
    let supervisor = server(&target, &[]).spawn();
    supervisor.await_events(1, "ready");
    supervisor.signal(Signal::HUP);
    // Signals of one kind merge while they are pending: the first must have been taken for the second to count.
    supervisor
        .await_event("the first reload has begun", |event| event.name == "started" && event.reload == 1);
    supervisor.signal(Signal::HUP);
    let newest =
        supervisor.await_event("the second is done", |event| event.name == "ready" && event.reload == 2);
    supervisor.eventually("only the newest is left", || supervisor.workers() == BTreeSet::from([newest.pid]));
    always(Duration::from_millis(700), "it stays the only one", || {
        supervisor.workers() == BTreeSet::from([newest.pid])
    });
    assert_eq!(environment(&target)["env"]["RELOAD_INDEX"], "2");
}

#[test]
fn hup_replaces_the_worker() {
    let target = tcp();
    let supervisor = server(&target, &[]).spawn();
    let old = supervisor.await_events(1, "ready")[0].pid;
    let new = supervisor.reload(1);
    assert!(!new.contains(&old));
    assert_eq!(load::who(target), new.first().copied());
}

#[test]
fn a_new_worker_stops_its_own_predecessor_only() {
    let delays = [("WORKERS", "2"), ("DELAY_LISTEN", "0,1500"), ("DELAY_LISTEN_FROM", "1")];
    let supervisor = server(&tcp(), &delays).spawn();
    let old = supervisor.await_events(2, "ready");
    supervisor.signal(Signal::HUP);
    supervisor
        .await_event("the quick one of the new is ready", |event| event.name == "ready" && event.reload == 1);
    let stopped = supervisor.await_event("its predecessor is stopped", |event| event.name == "term");
    assert_eq!(stopped.index, 0);
    let other = old.iter().find(|event| event.index == 1).expect("two slots").pid;
    assert!(process::alive(other), "the predecessor of the slow one was stopped as well");
    let slow = supervisor.await_event("the slow one is ready", |event| {
        event.name == "ready" && event.reload == 1 && event.index == 1
    });
    let late =
        supervisor.await_event("now the other is stopped", |event| event.name == "term" && event.index == 1);
    assert_eq!(late.pid, other);
    assert!(late.at >= slow.at - 0.02, "stopped before its successor was ready: {late:?} {slow:?}");
}

#[test]
fn hup_waits_for_the_clean_up_of_the_old_worker() {
    let supervisor = server(&tcp(), &[("WORKER_EXIT_DELAY", "800"), ("MAX_KILL_TIMEOUT", "20000")]).spawn();
    let old = supervisor.await_events(1, "ready")[0].pid;
    supervisor.reload(1);
    let cleaned = supervisor.events_named("clean_up");
    assert_eq!(cleaned.iter().map(|event| event.pid).collect::<Vec<_>>(), [old]);
}

#[test]
fn term_waits_for_the_clean_up_of_every_worker() {
    let env = [("WORKER_EXIT_DELAY", "800"), ("MAX_KILL_TIMEOUT", "20000"), ("WORKERS", "3")];
    let supervisor = server(&tcp(), &env).spawn();
    supervisor.await_events(3, "ready");
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.events_named("clean_up").len(), 3);
}

#[test]
fn worker_that_ignores_term_is_replaced_on_hup() {
    let supervisor = server(&tcp(), &[("WORKER_EXIT_DELAY", "never"), ("MAX_KILL_TIMEOUT", "500")]).spawn();
    let old = supervisor.await_events(1, "ready")[0].pid;
    let start = Instant::now();
    let new = supervisor.reload(1);
    assert!(start.elapsed() >= Duration::from_millis(500));
    assert!(!new.contains(&old));
    eventually(Duration::from_secs(5), "the old one is gone", || !process::alive(old));
}
