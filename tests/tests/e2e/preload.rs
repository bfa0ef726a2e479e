//! `--preload`: a command that runs before the workers of a generation, and whose output all of them get.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use master_process_tests::control::Controlled;
use master_process_tests::gate::Gate;
use master_process_tests::messages::await_failed_reload;
use master_process_tests::script::{said, script};
use master_process_tests::supervisor::Builder;
use master_process_tests::{Supervisor, address, fixtures, load, needs_root, process, profile, scaled};
use rustix::process::Signal;

/// A worker that says what it got, and serves.
const READS: &str = "
path = os.environ['PRELOAD_FILE']
say('got', INDEX, RELOAD, open(path).read())
made = bound(HOST, PORT); made.listen(64); serve(made)";

/// A command line for `--preload` that runs a shell.
fn shell(text: &str) -> String {
    assert!(!text.contains('\''), "{text}");
    format!("sh -c '{text}'")
}

fn preloading(text: &str) -> Builder {
    Supervisor::builder().args(["--throttle", "20ms", "--throttle-max", "20ms", "--preload", &shell(text)])
}

/// A folder for every user.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("ours");
    folder
}

fn lines(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

#[test]
fn every_worker_of_a_generation_gets_the_output_of_one_run() {
    let runs = folder();
    let count = runs.path().join("runs");
    let address = address::tcp();
    let text = format!("echo run >> {}; printf \"of %s\" $RELOAD_INDEX", count.display());
    let supervisor = preloading(&text).args(["-w", "3"]).command(script(READS, address)).spawn();
    assert_eq!(said(&supervisor, 3), lines(&["got 0 0 of 0", "got 1 0 of 0", "got 2 0 of 0"]));
    let victim = *supervisor.await_workers(3).first().expect("three");
    process::signal(victim, Signal::KILL);
    supervisor.eventually("the replacement has the same", || supervisor.output().len() == 4);
    let new = supervisor.reload(3);
    assert!(load::who(address).is_some_and(|pid| new.contains(&pid)));
    let output: Vec<String> = supervisor.output().into_iter().skip(4).collect();
    assert!(output.iter().all(|line| line.ends_with(" 1 of 1")), "{output:?}");
    assert_eq!(fs::read_to_string(count).expect("it ran").lines().count(), 2, "once for each generation");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn the_descriptor_comes_after_those_of_the_sockets() {
    let text = "
path = os.environ['PRELOAD_FILE']
first = os.read(int(path.rsplit('/')[-1]), 100).decode()
import fcntl
say(path, os.environ['LISTEN_FDS'], first, fcntl.fcntl(5, fcntl.F_GETFL) & os.O_ACCMODE, sorted(map(int, os.listdir('/proc/self/fd')))[:6])
while True: signal.pause()";
    let command = script(text, address::tcp());
    let options = ["-w", "2", "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--ready", "none"];
    let supervisor = preloading("printf x").args(options).command(command).spawn();
    // Each reads from the start: the position is its own.
    assert_eq!(said(&supervisor, 2), lines(&["/proc/self/fd/5 2 x 0 [0, 1, 2, 3, 4, 5]"]));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn the_descriptor_of_the_readiness_pipe_is_spared() {
    let text = "
say(os.environ['PRELOAD_FILE'], open(os.environ['PRELOAD_FILE']).read())
os.write(3, b'\\n')
while True: signal.pause()";
    let command = script(text, address::tcp());
    let supervisor = preloading("printf x").args(["--ready", "notify:fd=3"]).command(command).spawn();
    assert_eq!(said(&supervisor, 1), lines(&["/proc/self/fd/4 x"]));
    supervisor.eventually("it is ready", || !supervisor.logged(&[": notified"]).is_empty());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn nobody_can_change_the_file() {
    let text = "
import mmap
path = os.environ['PRELOAD_FILE']
def change(flags):
    os.write(os.open(path, flags), b'y')
def map_for_writing():
    mmap.mmap(os.open(path, os.O_RDWR), 1, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
shared = mmap.mmap(os.open(path, os.O_RDONLY), 1, mmap.MAP_SHARED, mmap.PROT_READ)
say(shared[:1].decode(), attempt(lambda: change(os.O_WRONLY)), attempt(map_for_writing), attempt(lambda: os.truncate(path, 0)))
while True: signal.pause()";
    let supervisor =
        preloading("printf x").args(["--ready", "none"]).command(script(text, address::tcp())).spawn();
    let found = said(&supervisor, 1).pop_first().expect("a line");
    let denied = found.strip_prefix("x ").expect("it can be mapped for reading").split(' ');
    assert!(denied.clone().all(|error| ["EPERM", "EACCES"].contains(&error)), "{found}");
    assert_eq!(denied.count(), 3);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_failing_command_fails_the_reload_with_its_reason_and_the_old_generation_serves() {
    let bad = folder();
    let flag = bad.path().join("bad");
    let address = address::tcp();
    let text = format!("printf $RELOAD_INDEX; [ ! -e {} ] || exit 3", flag.display());
    let control = Controlled::default();
    let supervisor = control.on(preloading(&text)).args(["-w", "2"]).command(script(READS, address)).spawn();
    let old = supervisor.await_workers(2);
    said(&supervisor, 2);
    fs::write(&flag, "").expect("the folder is ours");
    let ran = control.run(&["reload", "--wait"]);
    assert_eq!(ran.code, Some(151), "{ran:?}");
    assert!(ran.out.contains("the preload command exited with code 3 after"), "{ran:?}");
    let failed = supervisor.logged(&["reload 1 failed: the preload command exited with code 3"]);
    assert!(failed[0].contains("2 old workers keep serving"), "{failed:?}");
    assert_eq!(supervisor.workers(), old);
    // A replacement of the old generation has the old file.
    process::signal(*old.first().expect("two"), Signal::KILL);
    supervisor.eventually("it is replaced", || supervisor.output().len() == 3);
    assert!(supervisor.output()[2].ends_with(" 0 0"), "{:?}", supervisor.output());
    fs::remove_file(&flag).expect("it is there");
    let ran = control.run(&["reload", "--wait"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(supervisor.output().iter().filter(|line| line.ends_with(" 2 2")).count() == 2);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_late_command_fails_the_reload_and_is_stopped_with_its_processes() {
    let late = folder();
    let (flag, pids) = (late.path().join("late"), late.path().join("pids"));
    let text = format!(
        "[ ! -e {} ] && exit; trap : TERM; setsid sleep 1000 & echo $$ $! > {}; sleep 1000; sleep 1000",
        flag.display(),
        pids.display()
    );
    let timeout = format!("{}ms", scaled(Duration::from_millis(1500)).as_millis());
    let options = ["--ready-timeout", &timeout, "--kill-timeout", "100ms"];
    let supervisor =
        preloading(&text).args(options).command(fixtures::idle()).args(["--ready", "none"]).spawn();
    let old = supervisor.await_workers(1);
    fs::write(&flag, "").expect("the folder is ours");
    supervisor.signal(Signal::HUP);
    await_failed_reload(&supervisor);
    let said = supervisor.logged(&["the preload command did not end within", "--ready-timeout"]);
    assert_eq!(said.len(), 1, "{:?}", supervisor.log());
    let pids = fs::read_to_string(pids).expect("it ran");
    for pid in pids.split_whitespace().map(|pid| pid.parse().expect("a pid")) {
        supervisor.eventually("it is gone", || process::stat(pid).is_none());
    }
    assert_eq!(supervisor.workers(), old);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn processes_that_the_command_leaves_behind_are_killed() {
    let left = folder();
    let pid = left.path().join("pid");
    // Neither its group nor its session nor its parent names the command.
    let text =
        format!("(setsid sh -c \"echo \\$\\$ > {}; exec sleep 1000\" &); sleep 0.1; printf x", pid.display());
    let supervisor = preloading(&text).args(["-w", "2"]).command(script(READS, address::tcp())).spawn();
    assert_eq!(said(&supervisor, 2), lines(&["got 0 0 x", "got 1 0 x"]));
    let pid = fs::read_to_string(pid).expect("it ran").trim().parse().expect("a pid");
    assert!(process::stat(pid).is_none(), "the workers were started after it was gone");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn an_output_that_is_too_large_fails() {
    let builder = preloading("exec head -c 2000000 /dev/zero").args(["--preload-max", "1MiB"]);
    let options = ["--give-up", "1/1min", "--ready", "none"];
    let finished = builder.args(options).command(fixtures::idle()).run();
    assert_eq!(finished.code, Some(70), "{finished:?}");
    let failed = finished.stderr.iter().find(|line| line.contains("preload 0 failed")).expect("it is logged");
    assert!(failed.contains("more than 1.0 MiB (--preload-max)"), "{failed}");
}

#[test]
fn at_the_first_start_a_failing_command_is_tried_again_until_the_supervisor_gives_up() {
    let runs = folder();
    let count = runs.path().join("runs");
    let builder = preloading(&format!("echo run >> {}; exit 1", count.display()));
    let finished = builder.args(["--give-up", "3/1min", "--ready", "none"]).command(fixtures::idle()).run();
    assert_eq!(finished.code, Some(70), "{finished:?}");
    assert_eq!(fs::read_to_string(count).expect("it ran").lines().count(), 3);
    assert!(finished.stdout.is_empty(), "no worker was started: {finished:?}");
}

#[test]
fn a_command_that_does_not_exist_ends_the_first_start() {
    let builder = Supervisor::builder().args(["--preload", "/no/such --thing"]);
    let finished = builder.command(fixtures::idle()).run();
    assert_eq!(finished.code, Some(127), "{finished:?}");
    assert!(finished.stderr.iter().any(|line| line.contains("/no/such cannot be started")), "{finished:?}");
}

#[test]
fn a_reload_while_the_command_runs_starts_that_of_the_next_generation() {
    let gate = Gate::new();
    let text = format!(
        "[ $RELOAD_INDEX = 1 ] && while [ ! -e {} ]; do sleep 0.01; done; printf $RELOAD_INDEX",
        gate.path().display()
    );
    let control = Controlled::default();
    let supervisor =
        control.on(preloading(&text)).args(["-w", "2"]).command(script(READS, address::tcp())).spawn();
    said(&supervisor, 2);
    let first = control.begin(&["reload", "--wait"]);
    supervisor.eventually("its command runs", || {
        control.run(&["status"]).out.contains("reload 1 running: preload command ")
    });
    let second = control.run(&["reload", "--wait"]);
    assert_eq!((first.wait().code, second.code), (Some(153), Some(0)));
    let output = supervisor.output();
    assert!(output.iter().all(|line| line.ends_with(" 0 0") || line.ends_with(" 2 2")), "{output:?}");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_stop_ends_the_command() {
    let supervisor = preloading("exec sleep 1000").command(fixtures::idle()).spawn();
    let children = || process::children(supervisor.pid()).len();
    supervisor
        .eventually("it runs", || children() == 1 && !supervisor.logged(&["running 1 worker"]).is_empty());
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn the_command_has_the_user_the_directory_and_the_environment_of_the_workers() {
    needs_root!();
    let (here, user) = (folder(), profile::ordinary_user().to_string());
    let place = here.path().to_str().expect("UTF-8").to_owned();
    let text = "echo $(id -u) $(pwd) $(umask) $RELOAD_INDEX ${WORKER_INDEX-none} ${LISTEN_FDS-none} ${NOTIFY_SOCKET-none} $OWN";
    let options =
        ["--user", &user, "--group", &user, "--chdir", &place, "--umask", "027", "--listen", "127.0.0.1:0"];
    let builder = preloading(text).args(options).args(["--ready", "none"]).env("OWN", "given");
    let worker = "
say(open(os.environ['PRELOAD_FILE']).read().strip())
while True: signal.pause()";
    let supervisor = builder.command(script(worker, address::tcp())).spawn();
    assert_eq!(said(&supervisor, 1), lines(&[&format!("{user} {place} 0027 0 none none none given")]));
    assert_eq!(supervisor.stop(), 0);
}

/// The memory of an output is that of the workers that have it.
#[test]
fn the_file_of_an_earlier_generation_is_closed() {
    let supervisor = preloading("printf x").args(["-w", "1"]).command(script(READS, address::tcp())).spawn();
    said(&supervisor, 1);
    for _ in 0..3 {
        supervisor.reload(1);
    }
    let is_output = |(_, path): &(i32, PathBuf)| path.to_string_lossy().contains("memfd:preload");
    supervisor.eventually("one output is open", || {
        process::descriptors(supervisor.pid()).iter().filter(|found| is_output(found)).count() == 1
    });
    assert_eq!(supervisor.stop(), 0);
}
