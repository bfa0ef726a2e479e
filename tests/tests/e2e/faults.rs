//! The faults of the Node.js module master-process, each by its number, each shown to be gone. Those of its monitoring (10 and 11) belong to a
//! part that is not here yet.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use master_process_tests::load::{self, Connections, Load};
use master_process_tests::{Supervisor, address, always, fixtures, process};
use rustix::process::Signal;

#[test]
fn fault_01_failure_on_term_does_not_shorten_the_stop_of_others() {
    let words = ["index=0:term=exit:3", "index=1:term=clean:0.8:0", "index=2:term=clean:0.8:0"];
    let supervisor = Supervisor::start(&["-w", "3", "--kill-timeout", "20s"], fixtures::worker(&words));
    supervisor.await_events(3, "ready");
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.events_named("clean_up").len(), 2);
}

#[test]
fn fault_02_hup_during_a_throttle_delay_leaves_no_duplicate() {
    let options = ["--throttle", "3s", "--throttle-max", "3s", "--ready", "notify"];
    let supervisor = Supervisor::start(&options, fixtures::worker(&["notify"]));
    let first = supervisor.await_events(1, "ready")[0].pid;
    process::signal(first, Signal::KILL);
    supervisor.eventually("the slot is empty", || supervisor.workers().is_empty());
    supervisor.signal(Signal::HUP);
    supervisor.await_events(2, "ready");
    // Longer than the delay: a timer left over would have come by its end.
    always(Duration::from_millis(3300), "one worker, not two", || supervisor.workers().len() <= 1);
    assert_eq!(supervisor.await_workers(1).len(), 1);
    assert_eq!(supervisor.events_named("ready").len(), 2, "nothing was started beside it");
}

#[test]
fn fault_03_an_old_worker_that_crashes_during_a_reload_leaves_no_duplicate() {
    let options = ["--throttle", "100ms", "--ready", "notify"];
    let supervisor = Supervisor::start(&options, fixtures::worker(&["notify", "from=1:delay=1"]));
    let old = supervisor.await_events(1, "ready")[0].pid;
    supervisor.signal(Signal::HUP);
    let successor = supervisor.await_event("the successor starts", |event| event.reload == 1).pid;
    process::signal(old, Signal::KILL);
    supervisor.await_event("some successor is ready", |event| event.reload == 1 && event.name == "ready");
    supervisor.eventually("one worker is left", || supervisor.workers().len() == 1);
    always(Duration::from_secs(2), "one worker, not two", || supervisor.workers().len() == 1);
    assert_eq!(supervisor.workers(), BTreeSet::from([successor]), "the one that was starting is the one");
}

#[test]
fn fault_04_nothing_is_started_after_term() {
    let options = ["-w", "2", "--throttle", "2s", "--throttle-max", "2s", "--kill-timeout", "20s"];
    // One slot waits for its throttle while the other cleans up for longer than that.
    let supervisor =
        Supervisor::start(&options, fixtures::worker(&["index=0:term=default", "index=1:term=clean:3:0"]));
    let ready = supervisor.await_events(2, "ready");
    let victim = ready.iter().find(|event| event.index == 0).expect("two slots").pid;
    process::signal(victim, Signal::KILL);
    supervisor.eventually("it is dead", || !process::alive(victim));
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.events_named("started").len(), 2);
    assert_eq!(supervisor.events_named("clean_up").len(), 1);
}

#[test]
fn fault_05_workers_that_never_listen_do_not_pile_up() {
    for mode in ["auto", "listen"] {
        let supervisor = Supervisor::start(&["--ready", mode], fixtures::worker(&[]));
        supervisor.await_events(1, "ready");
        for reload in 1..=5 {
            supervisor.signal(Signal::HUP);
            supervisor.await_event("the reload starts its worker", |event| event.reload == reload);
        }
        supervisor.eventually("at most one serves and one starts", || supervisor.workers().len() <= 2);
        always(Duration::from_secs(1), "at most one serves and one starts", || {
            supervisor.workers().len() <= 2
        });
        let newest = supervisor.events_named("started").into_iter().find(|event| event.reload == 5);
        assert!(
            supervisor.workers().contains(&newest.expect("waited for").pid),
            "{mode}: the newest is among them"
        );
    }
}

#[test]
fn fault_06_a_working_directory_removed_by_a_deploy_does_no_harm() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let app = scratch.path().join("app");
    fs::create_dir(&app).expect("the folder is new");
    let address = address::tcp();
    let options = ["--chdir", app.to_str().expect("UTF-8"), "--throttle", "50ms", "--throttle-max", "50ms"];
    let supervisor = Supervisor::start(&options, fixtures::listening(address, &[]));
    let old = supervisor.await_events(1, "ready")[0].pid;
    fs::remove_dir(&app).expect("it is empty");
    supervisor.signal(Signal::HUP);
    supervisor.eventually("the failure is logged", || {
        supervisor.log().iter().any(|line| line.contains(app.to_str().expect("UTF-8")))
    });
    assert_eq!(load::who(address), Some(old), "the old one serves on");
    fs::create_dir(&app).expect("it was removed");
    let new = supervisor.reload(1);
    let cwd = fs::read_link(format!("/proc/{}/cwd", new.first().expect("one"))).expect("it runs");
    assert_eq!(cwd, app.canonicalize().expect("it exists"), "in the new folder");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn fault_06_removed_working_directory_of_the_supervisor_does_no_harm() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let app = scratch.path().join("app");
    fs::create_dir(&app).expect("the folder is new");
    let supervisor = Supervisor::builder().command(fixtures::worker(&["notify"])).cwd(&app).spawn();
    supervisor.await_events(1, "ready");
    fs::remove_dir(&app).expect("it is empty");
    supervisor.reload(1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn fault_07_int_leaves_no_socket_file_behind() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    let supervisor = Supervisor::start(&[], fixtures::listening(path.display(), &[]));
    supervisor.await_events(1, "ready");
    supervisor.signal(Signal::INT);
    assert_eq!(supervisor.wait_exit(Duration::from_secs(20)).code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn fault_08_usr2_kills_no_worker_without_a_handler() {
    let supervisor = Supervisor::start(&["-w", "2", "--ready", "none"], fixtures::idle());
    let workers = supervisor.await_workers(2);
    for _ in 0..2 {
        supervisor.signal(Signal::USR2);
        always(Duration::from_millis(300), "the same workers run", || supervisor.workers() == workers);
    }
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn fault_09_only_a_dead_socket_is_removed_from_the_path() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    fs::write(&path, "precious").expect("the folder is ours");
    let options = ["--throttle", "200ms", "--throttle-max", "200ms"];
    let supervisor = Supervisor::start(&options, fixtures::listening(path.display(), &[]));
    supervisor.await_events(2, "started");
    supervisor.eventually("the log names the file", || {
        supervisor.log().iter().any(|line| line.contains("app.sock"))
    });
    assert_eq!(fs::read_to_string(&path).expect("it is still there"), "precious");
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(fs::read_to_string(&path).expect("it is still there"), "precious");
}

#[test]
fn fault_12_program_changed_on_disk_loses_no_request() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let program = scratch.path().join("app.py");
    fs::copy(fixtures::folder().join("worker.py"), &program).expect("the folder is ours");
    let address = address::tcp();
    let listen = format!("listen={address}");
    let command =
        [fixtures::python(), program.to_str().expect("UTF-8").to_owned(), listen, "term=clean:0.3:0".into()];
    let supervisor = Supervisor::start(&["-w", "2", "--throttle", "50ms"], command);
    let before: Vec<i32> = supervisor.await_ready(2).into_iter().collect();
    fs::write(scratch.path().join("package.json"), r#"{"version": "2.0.0"}"#).expect("the folder is ours");
    let text = fs::read_to_string(&program).expect("it is there");
    fs::write(&program, text + "# version 2\n").expect("the folder is ours");

    process::signal(before[0], Signal::KILL);
    let replacement = supervisor.await_events(3, "ready").remove(2).pid;
    supervisor.await_workers(2);
    always(Duration::from_millis(500), "only the dead one was replaced", || {
        supervisor.workers() == BTreeSet::from([before[1], replacement])
    });
    let clients = Load::start(address, 4, Connections::Fresh);
    supervisor.reload(2);
    let tally = clients.stop();
    assert_eq!(tally.inexcusable() + tally.lost(), 0, "{tally}");
}

/// For programs that finish what they have accepted. What one that does not may lose while all share one socket is
/// bounded in `reload.rs`.
#[test]
fn fault_13_no_downtime_while_old_and_new_overlap() {
    let address = address::tcp();
    let listen = format!("listen={address}");
    let words = [listen.as_str(), "from=1:delay=0.3", "term=clean:0.5:0"];
    let supervisor = Supervisor::start(&["-w", "2"], fixtures::worker(&words));
    supervisor.await_events(2, "ready");
    let clients = Load::start(address, 6, Connections::Fresh);
    for _ in 0..4 {
        supervisor.reload(2);
    }
    let tally = clients.stop();
    assert_eq!(tally.inexcusable() + tally.lost(), 0, "{tally}");
    assert!(tally.ok.len() >= 6, "several generations answered: {tally}");
}

#[test]
fn fault_14_a_negative_worker_count_is_an_error() {
    let finished = Supervisor::builder().command(["true"]).env("WORKERS", "-1").run();
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stdout.is_empty());
}

fn usable_cpus() -> usize {
    std::thread::available_parallelism().expect("Linux says").get()
}

#[test]
fn fault_14_max_and_auto_count_the_cpus_in_any_case() {
    let max = usable_cpus();
    let auto = (max - 1).max(1);
    for (text, expected) in [("max", max), ("MAX", max), ("Max", max), ("auto", auto), ("AUTO", auto)] {
        let supervisor =
            Supervisor::builder().args(["--ready", "none"]).command(fixtures::idle()).env("WORKERS", text);
        let supervisor = supervisor.spawn();
        supervisor.await_workers(expected);
        always(Duration::from_millis(200), text, || supervisor.workers().len() == expected);
    }
    let pinned = ["taskset", "--cpu-list", "0"];
    let builder = Supervisor::builder().wrap(pinned).args(["-w", "max", "--ready", "none"]);
    let supervisor = builder.command(fixtures::idle()).spawn();
    supervisor.await_workers(1);
    always(Duration::from_millis(300), "one CPU is one worker", || supervisor.workers().len() == 1);
}

#[test]
fn fault_15_a_bare_number_is_milliseconds() {
    let supervisor = Supervisor::builder()
        .command(fixtures::worker(&["term=clean:0.5:0"]))
        .env("MAX_KILL_TIMEOUT", "20000")
        .spawn();
    supervisor.await_events(1, "ready");
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.events_named("clean_up").len(), 1, "20000 is not 20000 of anything shorter");

    let supervisor = Supervisor::builder()
        .command(fixtures::worker(&["term=ignore"]))
        .env("MAX_KILL_TIMEOUT", "600")
        .spawn();
    supervisor.await_events(1, "ready");
    let start = Instant::now();
    assert_eq!(supervisor.stop(), 0);
    assert!((600..25_000).contains(&start.elapsed().as_millis()), "killed after {:?}", start.elapsed());
}

#[test]
fn fault_15_a_time_out_that_cannot_be_read_is_an_error() {
    let finished = Supervisor::builder().command(["true"]).env("MAX_KILL_TIMEOUT", "soon").run();
    assert_eq!(finished.code, Some(2), "{finished:?}");
}
