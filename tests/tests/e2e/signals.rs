//! The signals table, at any moment.

use std::time::{Duration, Instant};

use master_process_tests::supervisor::binary;
use master_process_tests::{Supervisor, TIMEOUT, always, await_some, fixtures, offset, process, scaled};
use rustix::process::Signal;

fn idle(workers: &str) -> Supervisor {
    Supervisor::start(&["-w", workers, "--ready", "none"], fixtures::idle())
}

#[test]
fn ttin_and_ttou_change_the_number_of_workers() {
    let supervisor = idle("1");
    let first = supervisor.await_workers(1);
    supervisor.signal(Signal::TTIN);
    supervisor.await_workers(2);
    supervisor.signal(Signal::TTIN);
    assert!(supervisor.await_workers(3).is_superset(&first));
    supervisor.signal(Signal::TTOU);
    supervisor.await_workers(2);
    supervisor.signal(Signal::TTOU);
    assert_eq!(supervisor.await_workers(1), first, "the last to come is the first to go");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn ttou_keeps_at_least_one_worker() {
    let supervisor = idle("1");
    let only = supervisor.await_workers(1);
    for _ in 0..3 {
        supervisor.signal(Signal::TTOU);
        always(Duration::from_millis(150), "the only worker stays", || supervisor.workers() == only);
    }
}

#[test]
fn worker_added_by_ttin_is_reloaded_and_replaced() {
    let options = ["--throttle", "20ms", "--throttle-max", "20ms", "--ready", "notify"];
    let supervisor = Supervisor::start(&options, fixtures::worker(&["notify"]));
    supervisor.await_events(1, "ready");
    supervisor.signal(Signal::TTIN);
    let second = supervisor.await_events(2, "ready")[1].clone();
    assert_eq!(second.index, 1);
    process::signal(second.pid, Signal::KILL);
    assert_eq!(supervisor.await_events(3, "ready")[2].index, 1);
    supervisor.reload(2);
}

#[test]
fn int_and_quit_stop_like_term() {
    for signal in [Signal::INT, Signal::QUIT, Signal::TERM] {
        let supervisor =
            Supervisor::start(&["-w", "2", "--kill-timeout", "20s"], fixtures::worker(&["term=clean:0.3:0"]));
        supervisor.await_events(2, "ready");
        supervisor.signal(signal);
        assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0), "{signal:?}");
        assert_eq!(supervisor.events_named("clean_up").len(), 2, "{signal:?}");
        assert!(supervisor.survivors().is_empty());
    }
}

#[test]
fn the_second_stop_signal_kills_at_once() {
    for second in [Signal::TERM, Signal::INT] {
        let supervisor = Supervisor::start(
            &["-w", "2", "--kill-timeout", "10min"],
            fixtures::worker(&["term=ignore", "child"]),
        );
        supervisor.await_events(2, "ready");
        supervisor.signal(Signal::TERM);
        supervisor.await_events(2, "term");
        // Two within half a second are one.
        always(Duration::from_millis(600), "the first signal kills no worker", || {
            supervisor.exited().is_none()
        });
        supervisor.signal(second);
        // Far less than the kill timeout, whatever the machine is busy with.
        assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0), "{second:?}");
        assert!(supervisor.survivors().is_empty(), "not even their children are left");
    }
}

#[test]
fn two_stop_signals_at_once_are_one() {
    let supervisor =
        Supervisor::start(&["-w", "2", "--kill-timeout", "20s"], fixtures::worker(&["term=clean:0.7:0"]));
    supervisor.await_events(2, "ready");
    // Of different kinds, since two of the same may well be one to the kernel already.
    for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
        supervisor.signal(signal);
    }
    assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0));
    assert_eq!(supervisor.events_named("clean_up").len(), 2, "no worker was killed");
    assert!(supervisor.survivors().is_empty());
}

#[test]
fn a_stop_during_a_reload_stops_old_and_new() {
    let supervisor = Supervisor::start(
        &["-w", "2", "--ready", "notify"],
        fixtures::worker(&["notify", "from=1:delay=3600"]),
    );
    supervisor.await_events(2, "ready");
    supervisor.signal(Signal::HUP);
    supervisor.await_events(4, "started");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_hup_during_a_stop_starts_nothing() {
    let supervisor = Supervisor::start(&["--kill-timeout", "20s"], fixtures::worker(&["term=clean:1:0"]));
    supervisor.await_events(1, "ready");
    supervisor.signal(Signal::TERM);
    supervisor.await_events(1, "term");
    for signal in [Signal::HUP, Signal::TTIN, Signal::USR1, Signal::USR2] {
        supervisor.signal(signal);
    }
    assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0));
    assert_eq!(supervisor.events_named("started").len(), 1);
    assert_eq!(supervisor.events_named("clean_up").len(), 1);
}

#[test]
fn usr1_and_usr2_kill_no_worker() {
    let supervisor = idle("2");
    let workers = supervisor.await_workers(2);
    let pid = supervisor.pid();
    for signal in [Signal::USR1, Signal::USR2, Signal::USR1, Signal::USR2, Signal::CHILD, Signal::PIPE] {
        supervisor.signal(signal);
        always(Duration::from_millis(150), "everybody lives", || supervisor.workers() == workers);
    }
    assert_eq!(supervisor.pid(), pid);
    assert_eq!(supervisor.stop(), 0);
}

/// The moment from which a signal must do what the table says: the program runs and has seen to it. Before, between
/// `execve` and its first system call, no program in the world can.
pub(super) fn await_first_moment(supervisor: &Supervisor, signal: Signal) -> i32 {
    let bit = 1_u64 << (signal.as_raw() - 1);
    let start = Instant::now();
    // Without the pause of the other waits: the moment is what this is about.
    while start.elapsed() < scaled(TIMEOUT) {
        let pid = supervisor.pid();
        let ready = |set: &str| process::signal_set(pid, set).is_some_and(|signals| signals & bit != 0);
        // Looked at before the set: while the binary is not executed yet, the set is the starter's.
        if process::executable(pid) == Some(binary()) && (ready("SigBlk") || ready("SigCgt")) {
            return pid;
        }
    }
    panic!("{signal:?} is never blocked or handled");
}

#[test]
fn hup_at_any_early_moment_does_not_kill() {
    for attempt in 0..25_u32 {
        let supervisor = idle("2");
        let pid = await_first_moment(&supervisor, Signal::HUP);
        offset(Duration::from_micros(u64::from(attempt) * 800));
        process::signal(pid, Signal::HUP);
        supervisor.await_workers(2);
        assert_eq!(supervisor.stop(), 0, "attempt {attempt}");
    }
}

#[test]
fn term_at_any_early_moment_is_a_clean_end() {
    for attempt in 0..25_u32 {
        let supervisor = idle("2");
        let pid = await_first_moment(&supervisor, Signal::TERM);
        offset(Duration::from_micros(u64::from(attempt) * 800));
        process::signal(pid, Signal::TERM);
        assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0), "attempt {attempt}");
        assert!(supervisor.survivors().is_empty(), "attempt {attempt}");
    }
}

#[test]
fn number_of_workers_is_right_after_many_signals() {
    let supervisor = Supervisor::start(
        &["-w", "3", "--ready", "notify", "--throttle", "20ms", "--throttle-max", "20ms"],
        fixtures::worker(&["notify"]),
    );
    supervisor.await_events(3, "ready");
    let pid = supervisor.pid();
    for round in 0..60_u64 {
        process::signal(pid, Signal::HUP);
        if round % 3 == 0
            && let Some(victim) = supervisor.workers().first()
        {
            process::signal(*victim, Signal::KILL);
        }
        // Uneven steps, so that signals meet every stage of a start.
        offset(Duration::from_millis(round * 7 % 40));
    }
    // Quiet: three workers, all of one generation, and they stay.
    let replaced = await_some(TIMEOUT, "three workers of one generation", || {
        let workers = supervisor.workers();
        let started = supervisor.events_named("started");
        let of: Vec<i32> =
            started.iter().filter(|event| workers.contains(&event.pid)).map(|event| event.reload).collect();
        (of.len() == 3 && workers.len() == 3 && of.iter().all(|reload| *reload == of[0])).then_some(workers)
    });
    always(Duration::from_secs(1), "they stay", || supervisor.workers() == replaced);
    let mut indices: Vec<i32> = supervisor
        .events_named("started")
        .iter()
        .filter(|event| replaced.contains(&event.pid))
        .map(|event| event.index)
        .collect();
    indices.sort_unstable();
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn the_sender_of_a_stop_signal_is_named() {
    let supervisor = Supervisor::start(&["-w", "2", "--ready", "none"], fixtures::idle());
    supervisor.await_workers(2);
    supervisor.signal(Signal::TERM);
    let sender = format!("(pid {}, uid {})", std::process::id(), rustix::process::getuid().as_raw());
    supervisor.eventually("the log names the sender", || {
        supervisor.logged(&["stopping 2 workers: sigterm from ", &sender]).len() == 1
    });
    assert_eq!(supervisor.wait_exit(Duration::from_secs(10)).code(), Some(0));
}
