//! What the supervisor says, and how.

use master_process_tests::supervisor::Builder;
use master_process_tests::{Supervisor, fixtures, process};
use rustix::process::Signal;

/// A short life with a death, a reload and a clean end; gives what was logged.
fn logged(builder: Builder) -> Vec<String> {
    let options = ["-w", "2", "--throttle", "30ms", "--throttle-max", "30ms", "--ready", "none"];
    let supervisor = builder.args(options).command(fixtures::idle()).spawn();
    let victim = *supervisor.await_workers(2).first().expect("two");
    process::signal(victim, Signal::KILL);
    supervisor.eventually("it is replaced", || {
        let workers = supervisor.workers();
        workers.len() == 2 && !workers.contains(&victim)
    });
    supervisor.reload(2);
    assert_eq!(supervisor.stop(), 0);
    let log = supervisor.log();
    let told =
        log.iter().filter(|line| line.contains(&victim.to_string()) && line.contains("SIGKILL")).count();
    assert_eq!(told, 1, "the death is told in one line: {log:?}");
    log
}

#[test]
fn where_no_terminal_is_there_are_no_colours() {
    let log = logged(Supervisor::builder().args(["--log-format", "pretty"]));
    assert!(log.iter().all(|line| !line.contains('\x1b')), "{log:?}");
}

#[test]
fn json_is_one_object_a_line() {
    for line in logged(Supervisor::builder().args(["--log-format", "json"])) {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(&line);
        assert!(parsed.is_ok_and(|value| value.is_object()), "{line}");
    }
}

#[test]
fn journald_lines_begin_with_their_priority() {
    for line in logged(Supervisor::builder().args(["--log-format", "journald"])) {
        let priority = line.strip_prefix('<').and_then(|rest| rest.split_once('>')).map(|(digit, _)| digit);
        assert!(priority.is_some_and(|digit| ["3", "4", "5", "6", "7"].contains(&digit)), "{line}");
    }
}

#[test]
fn quiet_says_less_and_verbose_says_more() {
    let normal = logged(Supervisor::builder()).len();
    assert!(logged(Supervisor::builder().args(["-q"])).len() < normal, "-q");
    assert!(logged(Supervisor::builder().args(["-v"])).len() > normal, "-v");
    for debug in ["master-process", "*"] {
        assert!(logged(Supervisor::builder().env("DEBUG", debug)).len() > normal, "DEBUG={debug}");
    }
    assert_eq!(
        logged(Supervisor::builder().env("DEBUG", "express")).len(),
        normal,
        "DEBUG of another program"
    );
}
