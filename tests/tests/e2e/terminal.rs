//! In a terminal: its end, its keys, and what wrappers do with signals there.

use std::process::Command;
use std::time::Duration;

use master_process_tests::pty::{INTERRUPT, ITS_TERMINAL, Pty, QUIT, SUSPEND};
use master_process_tests::supervisor::{Builder, await_gone};
use master_process_tests::{Supervisor, TIMEOUT, always, eventually, fixtures, offset, process, skip};
use rustix::process::Signal;

/// A supervisor that leads the terminal's session.
fn in_terminal(pty: &Pty) -> Builder {
    Supervisor::builder().wrap(ITS_TERMINAL).stdin(pty.slave())
}

/// A supervisor that a shell with job control runs in the foreground; `then` is what the shell does when it has stopped or
/// ended.
fn as_a_job(pty: &Pty, then: &str) -> Builder {
    let line = format!("\"$@\"; {then}");
    in_terminal(pty).wrap(["bash", "--norc", "-i", "-c", line.as_str(), "bash"])
}

/// Workers that say when they are ready, and take a moment to clean up.
fn clean() -> Vec<String> {
    fixtures::worker(&["term=clean:0.7:0"])
}

fn idle(builder: Builder, workers: &str) -> Supervisor {
    builder.args(["-w", workers, "--ready", "none"]).command(fixtures::idle()).spawn()
}

fn is_stopped(pid: i32) -> bool {
    process::stat(pid).is_some_and(|found| found.state == 'T')
}

fn ends_clean(supervisor: &Supervisor, workers: usize) {
    assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0));
    assert_eq!(supervisor.events_named("clean_up").len(), workers);
    eventually(TIMEOUT, "nothing is left behind", || supervisor.survivors().is_empty());
}

#[test]
fn closing_the_terminal_is_a_clean_end() {
    let pty = Pty::open();
    let supervisor = in_terminal(&pty).args(["-w", "2", "--kill-timeout", "20s"]).command(clean()).spawn();
    supervisor.await_events(2, "ready");
    drop(pty);
    ends_clean(&supervisor, 2);
}

#[test]
fn closing_the_terminal_at_any_early_moment_is_a_clean_end() {
    for attempt in 0..15_u32 {
        let pty = Pty::open();
        let supervisor = idle(in_terminal(&pty), "2");
        super::signals::await_first_moment(&supervisor, Signal::HUP);
        offset(Duration::from_micros(u64::from(attempt) * 500));
        drop(pty);
        assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0), "attempt {attempt}");
        assert!(supervisor.survivors().is_empty(), "attempt {attempt}");
    }
}

#[test]
fn closing_the_terminal_ends_a_job_in_the_background() {
    let pty = Pty::open();
    let builder = in_terminal(&pty).wrap(["bash", "--norc", "-i", "-c", "\"$@\" & wait", "bash"]);
    let supervisor = builder.args(["-w", "2", "--kill-timeout", "20s"]).command(clean()).spawn();
    supervisor.await_events(2, "ready");
    let pid = supervisor.pid();
    drop(pty);
    // The shell passes the signal on and is gone; so its exit code is not ours.
    await_gone(pid);
    assert_eq!(supervisor.events_named("clean_up").len(), 2);
}

#[test]
fn terminal_closed_just_after_sighup_is_a_clean_end() {
    let pty = Pty::open();
    let supervisor = in_terminal(&pty).args(["-w", "2", "--kill-timeout", "20s"]).command(clean()).spawn();
    supervisor.await_events(2, "ready");
    // As terminal emulators do it.
    supervisor.signal(Signal::HUP);
    drop(pty);
    ends_clean(&supervisor, 2);
    assert_eq!(supervisor.events_named("started").len(), 2, "it was no reload");
}

#[test]
fn hup_reloads_while_the_terminal_exists() {
    let pty = Pty::open();
    let supervisor = idle(in_terminal(&pty), "2");
    supervisor.await_workers(2);
    // From a process above us, which waits for the terminal, and from one that is not.
    let old = supervisor.reload(2);
    let line = format!("kill -HUP {}", supervisor.pid());
    assert!(Command::new("sh").args(["-c", &line]).status().is_ok_and(|status| status.success()));
    supervisor.eventually("a second reload", || {
        let workers = supervisor.workers();
        workers.len() == 2 && workers.is_disjoint(&old)
    });
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn hup_reloads_without_a_terminal() {
    let supervisor = idle(Supervisor::builder().wrap(["setsid"]), "2");
    supervisor.await_workers(2);
    supervisor.reload(2);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn nohup_survives_the_terminal_and_reloads_later() {
    let pty = Pty::open();
    let supervisor = idle(in_terminal(&pty).wrap(["nohup"]), "2");
    let workers = supervisor.await_workers(2);
    supervisor.await_rest();
    drop(pty);
    supervisor.eventually("it is logged", || !supervisor.logged(&["sighup", "terminal is gone"]).is_empty());
    always(Duration::from_millis(2500), "no worker is replaced", || supervisor.workers() == workers);
    supervisor.reload(2);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn closing_the_terminal_of_sudo_is_a_clean_end() {
    let sudo = || Command::new("sudo").args(["-n", "true"]).status().is_ok_and(|status| status.success());
    if !process::is_root() || !sudo() {
        skip!("it takes root and sudo");
    }
    let pty = Pty::open();
    let builder = in_terminal(&pty).wrap(["sudo", "-n", "-E"]).args(["-w", "2", "--kill-timeout", "20s"]);
    let supervisor = builder.command(clean()).spawn();
    supervisor.await_events(2, "ready");
    let pid = supervisor.pid();
    drop(pty);
    await_gone(pid);
    assert_eq!(supervisor.events_named("clean_up").len(), 2);
    assert_eq!(supervisor.events_named("started").len(), 2, "it was no reload");
}

#[test]
fn terminal_keys_stop_the_supervisor() {
    for key in [INTERRUPT, QUIT] {
        let pty = Pty::open();
        let supervisor =
            in_terminal(&pty).args(["-w", "2", "--kill-timeout", "20s"]).command(clean()).spawn();
        supervisor.await_events(2, "ready");
        pty.press(key);
        ends_clean(&supervisor, 2);
    }
}

#[test]
fn double_signal_of_timeout_kills_no_worker() {
    let builder = Supervisor::builder().wrap(["timeout", "1000"]).args(["-w", "2", "--kill-timeout", "20s"]);
    let supervisor = builder.command(clean()).spawn();
    supervisor.await_events(2, "ready");
    let timeout = process::stat(supervisor.pid()).expect("it runs").ppid;
    process::signal(timeout, Signal::TERM);
    ends_clean(&supervisor, 2);
}

/// Workers that count, so that one that runs can be distinguished from one that is stopped.
fn counters() -> Vec<String> {
    fixtures::shell("while :; do echo tick $$; sleep 0.05; done")
}

fn ticks(supervisor: &Supervisor) -> usize {
    supervisor.output().iter().filter(|line| line.starts_with("tick")).count()
}

#[test]
fn suspend_stops_supervisor_and_workers_and_fg_continues_them() {
    let pty = Pty::open();
    let builder = as_a_job(&pty, "echo stopped; read -r go; fg >/dev/null; echo back");
    // Both are shorter than the time in which nothing runs: no time-out may have passed.
    let options = ["-w", "2", "--ready", "alive:1s", "--ready-timeout", "1500ms", "--throttle", "1s"];
    let supervisor = builder.args(options).command(counters()).spawn();
    let workers = supervisor.await_workers(2);
    supervisor.eventually("they run", || ticks(&supervisor) > 4);
    let pid = supervisor.pid();
    pty.press(SUSPEND);
    supervisor
        .eventually("the shell has seen it stopped", || supervisor.output().contains(&"stopped".into()));
    assert!(is_stopped(pid));
    supervisor.eventually("so are its workers", || workers.iter().all(|worker| is_stopped(*worker)));
    let before = ticks(&supervisor);
    always(Duration::from_secs(2), "no worker runs", || ticks(&supervisor) <= before + 2);
    let before = ticks(&supervisor);
    pty.press("go\n");
    supervisor.eventually("they run again", || ticks(&supervisor) > before + 4);
    supervisor.eventually("they become ready", || supervisor.logged(&[": no readiness signal"]).len() == 2);
    assert_eq!(supervisor.workers(), workers, "{:?}", supervisor.log());
    pty.press(INTERRUPT);
    assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0));
    assert!(supervisor.output().contains(&"back".into()), "the shell has seen the end");
}

#[test]
fn suspend_is_ignored_in_an_orphaned_process_group() {
    let pty = Pty::open();
    let supervisor = in_terminal(&pty).args(["-w", "2", "--ready", "none"]).command(counters()).spawn();
    supervisor.await_workers(2);
    supervisor.await_rest();
    pty.press(SUSPEND);
    supervisor.signal(Signal::TSTP);
    let pid = supervisor.pid();
    always(Duration::from_millis(300), "it goes on", || !is_stopped(pid));
    let before = ticks(&supervisor);
    supervisor.eventually("its workers too", || ticks(&supervisor) > before + 4);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn closed_log_pipe_does_not_stop_the_supervisor() {
    let line = "\"$@\" 2>&1 | head -1 >/dev/null";
    let builder = Supervisor::builder().wrap(["sh", "-c", line, "sh"]);
    let supervisor = idle(builder, "2");
    supervisor.await_workers(2);
    supervisor.reload(2);
    supervisor.reload(2);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn worker_stopped_by_tostop_is_logged_and_continued() {
    let pty = Pty::open();
    pty.set_tostop();
    let line = "for i in 1 2 3; do echo line $i > /dev/tty; done; echo written; exec sleep infinity";
    let supervisor =
        in_terminal(&pty).args(["-w", "2", "--ready", "none"]).command(fixtures::shell(line)).spawn();
    let workers = supervisor.await_workers(2);
    supervisor.eventually("all have written", || supervisor.output() == ["written", "written"]);
    let named = supervisor.logged(&["sigttou"]);
    assert!(!named.is_empty() && named.len() <= 2, "{named:?}");
    assert!(workers.iter().any(|pid| named[0].contains(&format!("pid {pid}"))), "{named:?}");
    assert_eq!(supervisor.workers(), workers);
    // The terminal's keys are still ours, and it is left as it was.
    pty.press(INTERRUPT);
    assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0));
    assert!(pty.has_tostop(), "the terminal is left as it was");
}

#[test]
fn worker_that_reads_the_terminal_in_the_background_is_logged() {
    let pty = Pty::open();
    let line = "trap 'echo goes on' CONT; read -r line < /dev/tty; echo got $line; exec sleep infinity";
    let supervisor =
        in_terminal(&pty).args(["-w", "2", "--ready", "none"]).command(fixtures::shell(line)).spawn();
    let workers = supervisor.await_workers(2);
    supervisor.eventually("both are named", || supervisor.logged(&["sigttin", "--stdin inherit"]).len() == 2);
    assert_eq!(supervisor.workers(), workers);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn worker_stopped_by_sigstop_stays_stopped() {
    let pty = Pty::open();
    let supervisor =
        as_a_job(&pty, "fg >/dev/null").args(["-w", "2", "--ready", "none"]).command(counters()).spawn();
    let workers: Vec<i32> = supervisor.await_workers(2).into_iter().collect();
    supervisor.eventually("they run", || ticks(&supervisor) > 4);
    process::freeze(workers[0]);
    supervisor.await_rest();
    always(Duration::from_millis(300), "it is left alone", || is_stopped(workers[0]));
    pty.press(SUSPEND);
    let log = || supervisor.output().iter().filter(|line| **line == format!("tick {}", workers[1])).count();
    let before = log();
    supervisor.eventually("the other goes on when the shell continues the job", || log() > before + 4);
    assert!(is_stopped(workers[0]), "it does not");
    assert_eq!(supervisor.stop(), 0);
}

/// Reads a line, prints it, and waits for the next.
const READER: &str = "while read -r line; do echo got $line; done; echo end";

#[test]
fn single_worker_reads_the_terminal() {
    let pty = Pty::open();
    let builder = in_terminal(&pty).args(["--stdin", "inherit", "--ready", "none"]);
    let supervisor = builder.command(fixtures::shell(READER)).spawn();
    let first = supervisor.await_workers(1);
    pty.press("one\n");
    supervisor.eventually("it reads", || supervisor.output().contains(&"got one".into()));
    // Its successor reads after it, in a reload too.
    let second = supervisor.reload(1);
    pty.press("two\n");
    supervisor.eventually("its successor reads", || supervisor.output().contains(&"got two".into()));
    assert_ne!(first, second);
    for signal in [Signal::TTIN, Signal::KILL] {
        let pids = supervisor.workers();
        if signal == Signal::TTIN {
            supervisor.signal(signal);
            supervisor
                .eventually("it is refused", || !supervisor.logged(&["sigttin", "only one"]).is_empty());
            assert_eq!(supervisor.workers(), pids, "a second could not read it");
        } else {
            pids.iter().for_each(|pid| process::signal(*pid, signal));
            supervisor.eventually("it is replaced", || supervisor.workers().is_disjoint(&pids));
        }
    }
    supervisor.await_workers(1);
    pty.press("three\n");
    supervisor.eventually("and after a crash", || supervisor.output().contains(&"got three".into()));
    assert!(supervisor.logged(&["was stopped by"]).is_empty(), "{:?}", supervisor.log());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn ctrl_c_stops_the_foreground_worker_and_the_supervisor() {
    for line in ["exec cat", "trap 'exit 130' INT; while :; do read -r line; done"] {
        let pty = Pty::open();
        let builder = in_terminal(&pty).args(["--stdin", "inherit", "--ready", "none"]);
        let supervisor = builder.command(fixtures::shell(line)).spawn();
        let worker = *supervisor.await_workers(1).first().expect("one");
        supervisor.eventually("it has the terminal", || foreground(worker) == Some(worker));
        // In the first instant a shell has not set its trap.
        supervisor.eventually("it reads", || process::stat(worker).is_some_and(|found| found.state == 'S'));
        pty.press(INTERRUPT);
        assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0), "{line}");
        assert!(supervisor.logged(&["restarting"]).is_empty(), "{line}");
        assert!(supervisor.survivors().is_empty());
    }
}

/// The process group in the foreground of a process's terminal: the eighth field of proc_pid_stat(5).
fn foreground(pid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text[text.rfind(')')? + 1..].split_whitespace().nth(5)?.parse().ok()
}

#[test]
fn suspend_and_fg_work_for_a_foreground_worker() {
    let pty = Pty::open();
    let builder = as_a_job(&pty, "echo stopped; read -r go; fg >/dev/null; echo back");
    let builder = builder.args(["--stdin", "inherit", "--ready", "none"]);
    let supervisor = builder.command(fixtures::shell(READER)).spawn();
    let worker = *supervisor.await_workers(1).first().expect("one");
    pty.press("one\n");
    supervisor.eventually("it reads", || supervisor.output().contains(&"got one".into()));
    let pid = supervisor.pid();
    pty.press(SUSPEND);
    supervisor
        .eventually("the shell has seen it stopped", || supervisor.output().contains(&"stopped".into()));
    assert!(is_stopped(pid) && is_stopped(worker));
    pty.press("go\n");
    supervisor.eventually("the job goes on", || !is_stopped(pid) && !is_stopped(worker));
    supervisor.eventually("it has the terminal", || foreground(worker) == Some(worker));
    pty.press("two\n");
    supervisor.eventually("it reads again", || supervisor.output().contains(&"got two".into()));
    pty.press(INTERRUPT);
    assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0));
    assert!(supervisor.output().contains(&"back".into()), "the shell has its terminal again");
}

#[test]
fn background_job_that_reads_the_terminal_stops_until_fg() {
    let pty = Pty::open();
    let line = "\"$@\" & until jobs -s | grep -q .; do sleep 0.02; done; echo stopped; fg >/dev/null";
    let builder = in_terminal(&pty).wrap(["bash", "--norc", "-i", "-c", line, "bash"]);
    let builder = builder.args(["--stdin", "inherit", "--ready", "none"]);
    let supervisor = builder.command(fixtures::shell(READER)).spawn();
    supervisor
        .eventually("the shell has seen it stopped", || supervisor.output().contains(&"stopped".into()));
    pty.press("one\n");
    supervisor.eventually("it reads", || supervisor.output().contains(&"got one".into()));
    assert_eq!(supervisor.workers().len(), 1);
    pty.press(INTERRUPT);
    assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0));
}

#[test]
fn hup_long_after_the_terminal_closed_is_a_reload() {
    let pty = Pty::open();
    // The shell lets the job go, and its own end takes the terminal.
    let builder =
        in_terminal(&pty).wrap(["bash", "--norc", "-i", "-c", "\"$@\" & disown; read -r go", "bash"]);
    let options = ["-w", "2", "--ready", "none", "--monitor", "procfs", "--monitor-interval", "100ms"];
    let supervisor = builder.args(options).command(fixtures::idle()).spawn();
    supervisor.await_workers(2);
    let pid = supervisor.pid();
    let workers = || process::children(pid).into_iter().map(|child| child.pid).collect::<Vec<_>>();
    let old = workers();
    pty.press("go\n");
    eventually(TIMEOUT, "the shell has ended", || supervisor.exited().is_some());
    // A signal that comes sooner is about the terminal.
    always(Duration::from_millis(10_500), "it goes on", || process::alive(pid));
    process::signal(pid, Signal::HUP);
    let replaced = || workers().len() == 2 && !workers().iter().any(|worker| old.contains(worker));
    eventually(TIMEOUT, "it is a reload", replaced);
    process::signal(pid, Signal::TERM);
    await_gone(pid);
}

#[test]
fn several_workers_cannot_read_one_terminal() {
    let pty = Pty::open();
    let builder = in_terminal(&pty).args(["--stdin", "inherit", "-w", "2"]);
    let finished = builder.command(["echo", "started"]).run();
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.len() == 1 && finished.stderr[0].contains("--stdin"), "{finished:?}");
    assert!(finished.stdout.is_empty(), "{finished:?}");
}
