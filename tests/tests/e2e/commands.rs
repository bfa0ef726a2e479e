//! The commands: what they print, and above all their exit codes.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use master_process_tests::control::{Controlled, Ran, Running, command};
use master_process_tests::supervisor::{Builder, await_gone};
use master_process_tests::{Supervisor, TIMEOUT, eventually, fixtures, process};
use rustix::process::Signal;
use serde_json::Value;

/// A program that does what the file `release` says: serve, exit, or never be ready.
struct Release {
    control: Controlled,
    release: PathBuf,
}

const PROGRAM: &str = "
import os, sys, time
to, release = os.environ['NOTIFY_SOCKET'], open(sys.argv[1]).read().strip()
if release == 'exits': sys.exit(3)
if release == 'serves':
    import socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b'READY=1', '\\0' + to[1:] if to[0] == '@' else to)
while True: time.sleep(60)
";

impl Release {
    fn serving() -> Release {
        let control = Controlled::default();
        let release = control.folder().join("release");
        let of = Release { control, release };
        of.set("serves");
        of
    }

    fn set(&self, what: &str) {
        std::fs::write(&self.release, what).expect("written");
    }

    fn start(&self, options: &[&str]) -> Supervisor {
        let release = self.release.to_str().expect("UTF-8").to_owned();
        let program = [fixtures::python(), "-c".to_owned(), PROGRAM.to_owned(), release];
        let args = ["--ready", "notify", "--throttle", "100ms", "--drain", "0"];
        self.control.on(Supervisor::builder().args(args).args(options).command(program)).spawn()
    }

    fn run(&self, words: &[&str]) -> Ran {
        self.control.run(words)
    }
}

fn idle() -> Builder {
    Supervisor::builder().args(["--ready", "none", "--throttle", "100ms"]).command(fixtures::idle())
}

fn result(ran: &Ran) -> Value {
    let last = ran.out.lines().last().unwrap_or_else(|| panic!("nothing was printed: {ran:?}"));
    serde_json::from_str::<Value>(last).unwrap_or_else(|error| panic!("{last}: {error}"))["result"].take()
}

#[test]
fn the_exit_code_is_the_answer() {
    let of = Release::serving();
    let _supervisor = of.start(&["-w", "2"]);
    of.control.await_ready(2);
    for (words, code) in [
        (&["status"][..], 0),
        (&["status", "--json"], 0),
        (&["status", "-o", "slot,state"], 0),
        (&["reload", "--wait"], 0),
        (&["scale", "3", "--wait"], 0),
        (&["scale", "2", "--wait"], 0),
        (&["restart", "0", "--wait"], 0),
        (&["restart", "1"], 0),
        (&["pause"], 0),
        (&["resume"], 0),
        (&["events"], 0),
        (&["why", "0"], 0),
        (&["status", "-o", "colour"], 2),
        (&["status", "--bogus"], 2),
        (&["scale"], 2),
        (&["scale", "0"], 2),
        (&["scale", "many"], 2),
        (&["scale", "999999999"], 2),
        (&["restart"], 2),
        (&["restart", "7"], 2),
        (&["why", "7"], 2),
        (&["reload", "--timeout", "5s"], 2),
        (&["reload", "--wait", "--timeout", "soon"], 2),
    ] {
        let ran = of.run(words);
        assert_eq!(ran.code, Some(code), "{words:?}: {ran:?}");
        let lines = ran.err.lines().count();
        assert_eq!(lines, usize::from(code != 0), "{words:?}: {ran:?}");
    }
    for (words, what) in [
        (&["scale", "0"][..], "invalid value \"0\" for <N>: expected a number of workers, from 1 on"),
        (&["why", "x"], "invalid value \"x\" for <SLOT>: expected the number of a slot, from 0 on"),
        (
            &["events", "--since", "x"],
            "invalid value \"x\" for --since <SEQ>: expected the number of an event",
        ),
    ] {
        let ran = of.run(words);
        assert!(ran.err.contains(what), "{words:?}: {ran:?}");
    }
    assert_eq!(of.run(&["stop", "--wait"]).code, Some(0));
    for word in ["status", "stop", "pause"] {
        assert_eq!(of.run(&[word]).code, Some(3), "{word}");
    }
}

#[test]
fn a_socket_that_nobody_answers_is_unknown() {
    let control = Controlled::default();
    let _mute = UnixListener::bind(&control.path).expect("bound");
    let ran = control.run(&["status"]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(ran.err.contains("does not answer"), "{ran:?}");
}

#[test]
fn a_slot_without_a_ready_worker_is_degraded() {
    let of = Release::serving();
    of.set("hangs");
    let supervisor = of.start(&[]);
    supervisor.await_workers(1);
    _ = of.control.client();
    let ran = of.run(&["status"]);
    assert_eq!(ran.code, Some(150), "{ran:?}");
    assert!(ran.out.contains("degraded: 0 of 1 ready") && ran.out.contains(" starting "), "{ran:?}");
}

#[test]
fn a_reload_that_waits_ends_when_no_old_worker_is_left() {
    let of = Release::serving();
    let supervisor = of.start(&["-w", "3"]);
    of.control.await_ready(3);
    let old = supervisor.workers();
    let ran = of.run(&["reload", "--wait"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let new = supervisor.workers();
    assert!(new.len() == 3 && new.is_disjoint(&old), "{ran:?}");
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines[0], "reload 1 of example, 3 slots, 3 at a time");
    assert_eq!(lines.len(), 5, "{ran:?}");
    assert!(lines[1..4].iter().all(|line| line.contains(" > ") && line.contains("  left ")), "{ran:?}");
    assert!(lines[4].starts_with("complete after "), "{ran:?}");
    assert!(!ran.out.contains('\x1b'), "it is no terminal: {ran:?}");
}

#[test]
fn a_release_that_exits_fails_the_reload_with_its_reason() {
    let of = Release::serving();
    let supervisor = of.start(&["-w", "2", "--reload-batch", "1"]);
    of.control.await_ready(2);
    let old = supervisor.workers();
    of.set("exits");
    let ran = of.run(&["reload", "--wait"]);
    assert_eq!(ran.code, Some(151), "{ran:?}");
    assert!(ran.out.contains("slot 0  failed, 3 of 3: exit 3 after "), "{ran:?}");
    assert!(
        ran.out.ends_with(": slots 0 1 stay as they were\nsee: master-process why 0 --name example\n"),
        "{ran:?}"
    );
    assert_eq!(supervisor.workers(), old, "the old ones serve");
    let status = of.control.status();
    assert_eq!(status["reload"]["state"], "given_up");
    let error = &status["reload"]["error"];
    assert_eq!(
        (&error["code"], &error["slot"], &error["attempts"]),
        (&"exited".into(), &0.into(), &3.into())
    );
    assert_eq!(status["workers"][0]["state"], "serving");
    assert_eq!(of.run(&["status"]).code, Some(0), "every slot has a ready worker");
    let why = of.run(&["why", "0", "--json"]);
    let why: Value = serde_json::from_str(&why.out).expect("JSON");
    assert_eq!(why["ends"].as_array().map(Vec::len), Some(3), "{why}");
    assert_eq!(why["ends"][0]["exit_code"], 3);
}

#[test]
fn a_release_that_is_never_ready_fails_the_reload() {
    let of = Release::serving();
    let _supervisor = of.start(&["--ready-timeout", "1s", "--reload-attempts", "1"]);
    of.control.await_ready(1);
    of.set("hangs");
    let ran = of.run(&["reload", "--wait", "--json"]);
    assert_eq!(ran.code, Some(151), "{ran:?}");
    let result = result(&ran);
    assert_eq!((&result["outcome"], &result["error"]["code"]), (&"given_up".into(), &"never_ready".into()));
}

#[test]
fn a_program_that_cannot_be_executed_fails_the_reload() {
    let control = Controlled::default();
    let program = control.folder().join("program");
    std::fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).expect("ours");
    let builder =
        Supervisor::builder().args(["--ready", "none", "--throttle", "50ms", "--reload-attempts", "2"]);
    let _supervisor = control.on(builder.command([&program])).spawn();
    control.await_ready(1);
    std::fs::remove_file(&program).expect("removed");
    let ran = control.run(&["reload", "--wait", "--json"]);
    assert_eq!(ran.code, Some(151), "{ran:?}");
    assert_eq!(result(&ran)["error"]["code"], "exec_failed", "{ran:?}");
}

#[test]
fn a_newer_reload_supersedes_one_that_waits() {
    let of = Release::serving();
    let supervisor = of.start(&[]);
    of.control.await_ready(1);
    of.set("hangs");
    let first = of.control.begin(&["reload", "--wait"]);
    supervisor.eventually("the reload has begun", || of.control.status()["reload"]["number"] == 1);
    of.set("serves");
    let second = of.run(&["reload", "--wait"]);
    assert_eq!(second.code, Some(0), "{second:?}");
    let first = first.wait();
    assert_eq!(first.code, Some(153), "{first:?}");
    assert!(first.out.contains("superseded by reload 2"), "{first:?}");
}

#[test]
fn a_time_out_leaves_the_reload_going_on() {
    let of = Release::serving();
    let _supervisor = of.start(&[]);
    of.control.await_ready(1);
    of.set("hangs");
    let ran = of.run(&["reload", "--wait", "--timeout", "300ms"]);
    assert_eq!(ran.code, Some(154), "{ran:?}");
    assert_eq!(of.control.status()["reload"]["state"], "running");
}

#[test]
fn a_stop_ends_a_reload_that_waits() {
    let of = Release::serving();
    let supervisor = of.start(&[]);
    of.control.await_ready(1);
    of.set("hangs");
    let waiting = of.control.begin(&["reload", "--wait"]);
    supervisor.eventually("the reload has begun", || of.control.status()["reload"]["number"] == 1);
    assert_eq!(of.run(&["stop"]).code, Some(0));
    let ran = waiting.wait();
    assert_eq!(ran.code, Some(151), "{ran:?}");
    assert!(ran.out.contains("the supervisor is stopping"), "{ran:?}");
}

#[test]
fn two_hundred_workers_are_a_line_for_each_batch() {
    let control = Controlled::default();
    let builder = idle().args(["-w", "200", "--reload-batch", "50", "--drain", "0", "--monitor", "off"]);
    let supervisor = control.on(builder).spawn();
    control.await_ready(200);
    let ran = control.run(&["reload", "--wait"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines[0], "reload 1 of example, 200 slots, 50 at a time");
    assert!(
        lines[1..].iter().all(|line| line.contains("of 200 slots done") || line.starts_with("complete")),
        "{ran:?}"
    );
    assert!((3..=10).contains(&lines.len()), "{ran:?}");
    assert_eq!(supervisor.await_workers(200).len(), 200);
}

#[test]
fn a_restart_replaces_the_one_slot() {
    let of = Release::serving();
    let supervisor = of.start(&["-w", "3"]);
    of.control.await_ready(3);
    let pids = |status: &Value| -> Vec<Value> {
        status["workers"].as_array().expect("rows").iter().map(|row| row["pid"].clone()).collect()
    };
    let before = pids(&of.control.status());
    let ran = of.run(&["restart", "1", "--wait"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let status = of.control.status();
    let after = pids(&status);
    assert_eq!((&after[0], &after[2]), (&before[0], &before[2]));
    assert_ne!(after[1], before[1]);
    assert_eq!(status["generation"], 0);
    assert_eq!(status["workers"][1]["restarts_total"]["request"], 1);
    assert!(
        !supervisor.logged(&["restarting slot 1", "requested by", "uid 0"]).is_empty() || !process::is_root()
    );
    of.set("exits");
    let ran = of.run(&["restart", "1", "--wait"]);
    assert_eq!(ran.code, Some(151), "{ran:?}");
    assert!(ran.out.contains("exit 3"), "{ran:?}");
    assert_eq!(pids(&of.control.status()), after, "the old worker serves");
}

#[test]
fn scaling_up_a_program_that_exits_fails_and_goes_on() {
    let of = Release::serving();
    let _supervisor = of.start(&[]);
    of.control.await_ready(1);
    of.set("exits");
    let ran = of.run(&["scale", "2", "--wait"]);
    assert_eq!(ran.code, Some(151), "{ran:?}");
    of.set("serves");
    of.control.await_ready(2);
}

#[test]
fn a_death_is_explained() {
    let control = Controlled::default();
    let supervisor = control.on(idle()).spawn();
    control.await_ready(1);
    let victim = *supervisor.await_workers(1).first().expect("one");
    process::signal(victim, Signal::KILL);
    await_gone(victim);
    supervisor
        .eventually("it is replaced", || control.status()["workers"][0]["restarts_total"]["signal"] == 1);
    let status = control.status();
    let end = &status["workers"][0]["last_end"];
    assert_eq!(
        (&end["pid"], &end["reason"], &end["signal_name"]),
        (&victim.into(), &"signal".into(), &"SIGKILL".into())
    );
    assert_eq!(status["restarts_last_hour"], 1);
    let ran = control.run(&["why", "0"]);
    assert!(ran.out.contains("1 replacement: 1 signal") && ran.out.contains("SIGKILL after "), "{ran:?}");
    let page = control.run(&["status"]);
    assert!(page.out.contains(" SIGKILL "), "{page:?}");
}

#[test]
fn counters_go_on_over_replacements() {
    let control = Controlled::default();
    let busy = "import time\nsum(i * i for i in range(1500000))\ntime.sleep(1000)";
    let command = [fixtures::python(), "-c".to_owned(), busy.to_owned()];
    let args =
        ["--ready", "none", "--throttle", "100ms", "--monitor", "procfs", "--monitor-interval", "50ms"];
    let supervisor = control.on(Supervisor::builder().args(args).command(command)).spawn();
    control.await_ready(1);
    let cpu = || control.status()["workers"][0]["cpu_seconds_total"].as_f64().unwrap_or_default();
    supervisor.eventually("it has used CPU time", || cpu() > 0.05);
    let before = cpu();
    let old = *supervisor.await_workers(1).first().expect("one");
    process::signal(old, Signal::KILL);
    supervisor.eventually("it is replaced", || supervisor.workers().iter().any(|pid| *pid != old));
    assert!(cpu() >= before, "{} after {before}", cpu());
    supervisor.eventually("it grows", || cpu() > before + 0.05);
}

#[test]
fn without_a_name_it_is_the_only_one_or_the_list() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = |words: &[&str]| {
        let mut command = command(words);
        command.env("RUNTIME_DIRECTORY", folder.path());
        Running::of(command).wait()
    };
    let start = |name: &str| idle().args(["--name", name]).env("RUNTIME_DIRECTORY", folder.path()).spawn();
    let _one = start("mp-test-one");
    eventually(TIMEOUT, "it is found by its name", || {
        run(&["status", "--name", "mp-test-one"]).code == Some(0)
    });
    let _two = start("mp-test-two");
    eventually(TIMEOUT, "so is the other", || run(&["status", "--name", "mp-test-two"]).code == Some(0));
    // Other instances of this host may run beside the tests.
    let ran = run(&["status"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(
        ran.err.contains("mp-test-one") && ran.err.contains("mp-test-two") && ran.err.contains("--name"),
        "{ran:?}"
    );
    let list = run(&["ls"]);
    for name in ["mp-test-one", "mp-test-two"] {
        let line = list
            .out
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{name}: {list:?}"));
        assert!(line.contains(" 1/1 ") && line.ends_with("ready"), "{line}");
    }
    let json: Value = serde_json::from_str(&run(&["ls", "--json"]).out).expect("JSON");
    let names: Vec<&str> =
        json["instances"].as_array().expect("a list").iter().filter_map(|one| one["name"].as_str()).collect();
    assert!(names.contains(&"mp-test-one") && names.contains(&"mp-test-two"), "{names:?}");
    assert_eq!(run(&["status", "--name", "mp-test-none"]).code, Some(3));
    assert_eq!(run(&["status", "--name", "a/b"]).code, Some(2));
    // One that is found nowhere but in the list of the kernel.
    let control = Controlled::default();
    let _third = control.on(idle()).spawn();
    control.await_ready(1);
    assert!(run(&["ls"]).out.lines().any(|line| line.starts_with("example")), "{:?}", run(&["ls"]));
}

#[test]
fn pausing_is_what_the_signal_toggles() {
    let control = Controlled::default();
    let supervisor = control.on(idle()).spawn();
    control.await_ready(1);
    let paused = || control.status()["limits_paused"].as_bool();
    for _twice in 0..2 {
        assert_eq!(control.run(&["pause"]).code, Some(0));
        assert_eq!(paused(), Some(true));
    }
    supervisor.signal(Signal::USR2);
    supervisor.eventually("it is resumed", || paused() == Some(false));
    supervisor
        .eventually("who it was", || !supervisor.logged(&["resumed", "sigusr2 from", "uid"]).is_empty());
    assert_eq!(supervisor.logged(&["limits of all workers paused"]).len(), 1, "only a change is logged");
}

#[test]
fn signals_name_their_sender() {
    let control = Controlled::default();
    let supervisor = control.on(idle()).spawn();
    control.await_ready(1);
    let by = format!("(pid {}, uid ", std::process::id());
    for (signal, line, name) in [
        (Signal::HUP, "reload 1: replacing", "sighup from"),
        (Signal::TTIN, "scaled from 1 to 2", "sigttin from"),
        (Signal::TTOU, "scaled from 2 to 1", "sigttou from"),
        (Signal::TERM, "stopping", "sigterm from"),
    ] {
        supervisor.signal(signal);
        supervisor.until(line, || {
            (!supervisor.logged(&[line, name, &by]).is_empty() || supervisor.exited().is_some()).then_some(())
        });
        assert!(!supervisor.logged(&[line, name, &by]).is_empty(), "{line}");
    }
}

#[test]
fn events_are_followed_until_the_end() {
    let control = Controlled::default();
    let supervisor = control.on(idle()).spawn();
    control.await_ready(1);
    let following = control.begin(&["events", "-f", "--json"]);
    assert_eq!(control.run(&["scale", "2", "--wait"]).code, Some(0));
    assert_eq!(supervisor.stop(), 0);
    let ran = following.wait();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let events: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let numbers: Vec<u64> = events.iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert_eq!(numbers, (1..=u64::try_from(numbers.len()).expect("few")).collect::<Vec<_>>());
    for name in ["supervisor.started", "worker.ready", "scaled", "supervisor.stopping"] {
        assert!(events.iter().any(|event| event["event"] == name), "{name}: {ran:?}");
    }
}
