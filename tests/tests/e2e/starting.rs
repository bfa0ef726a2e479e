//! What a worker is started with, and where: its user's variables, and the directory that is in place by then.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use master_process_tests::cgroup::Place;
use master_process_tests::supervisor::Builder;
use master_process_tests::{Supervisor, always, fixtures, needs_root, process, profile, skip};
use rustix::process::Signal;

/// The variables of a login, as a supervisor of another user has them.
fn as_somebody_else() -> Builder {
    Supervisor::builder()
        .env("HOME", "/tmp/of-the-supervisor")
        .env("USER", "supervisor")
        .env("LOGNAME", "supervisor")
        .env("SHELL", "/bin/of-the-supervisor")
        .command(fixtures::worker(&["env"]))
}

/// `USER`, `LOGNAME`, `HOME` and `SHELL` of a worker.
fn login_of(builder: Builder) -> [Option<String>; 4] {
    let supervisor = builder.spawn();
    let environment = supervisor.await_environment(|_| true);
    let value = |name: &str| environment[name].as_str().map(str::to_owned);
    let login = ["USER", "LOGNAME", "HOME", "SHELL"].map(value);
    assert_eq!(supervisor.stop(), 0);
    login
}

/// A field of a user's entry in `/etc/passwd`.
fn entry(user: &str, field: usize) -> String {
    let text = fs::read_to_string("/etc/passwd").expect("every host has it");
    let mut entries = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = entries.find(|fields| fields[0] == user).expect("the user is there");
    found[field].to_owned()
}

#[test]
fn user_sets_home_logname_and_shell() {
    needs_root!();
    let text = |text: &str| Some(text.to_owned());
    let root = [text("root"), text("root"), text(&entry("root", 5)), text(&entry("root", 6))];
    assert_eq!(login_of(as_somebody_else().args(["--user", "root"])), root);
    assert_eq!(login_of(as_somebody_else().args(["--user", "0"])), root, "the same user by its id");
    // Its shell is one that denies logins.
    let nobody = login_of(as_somebody_else().args(["--user", "nobody"]));
    assert_eq!(nobody, [text("nobody"), text("nobody"), text(&entry("nobody", 5)), None]);
}

#[test]
fn uid_without_an_entry_sets_no_home() {
    needs_root!();
    let id = profile::ordinary_user().to_string();
    let login = login_of(as_somebody_else().args(["--user", &id, "--group", &id]));
    assert_eq!(login, [None, None, None, None]);
}

#[test]
fn login_variables_stay_without_user() {
    let text = |text: &str| Some(text.to_owned());
    let expected = [
        text("supervisor"),
        text("supervisor"),
        text("/tmp/of-the-supervisor"),
        text("/bin/of-the-supervisor"),
    ];
    assert_eq!(login_of(as_somebody_else()), expected);
    if process::is_root() {
        assert_eq!(login_of(as_somebody_else().args(["--group", "0"])), expected);
    }
}

/// Releases of a program beside each other, and `current`, a symlink to one of them.
struct Deployment {
    folder: tempfile::TempDir,
}

impl Deployment {
    /// With releases 1 and 2; the first is current.
    fn new() -> Deployment {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let deployment = Deployment { folder };
        for release in 1..=2 {
            fs::create_dir_all(deployment.release(release)).expect("ours");
            let says = "import os, time
print(RELEASE, os.environ.get('PWD'), os.getcwd(), flush=True)
time.sleep(1000)";
            let program = says.replace("RELEASE", &release.to_string());
            fs::write(deployment.release(release).join("app.py"), program).expect("ours");
        }
        deployment.make_current(1);
        deployment
    }

    fn release(&self, number: u32) -> PathBuf {
        self.folder.path().join(format!("releases/{number}"))
    }

    fn current(&self) -> PathBuf {
        self.folder.path().join("current")
    }

    fn make_current(&self, number: u32) {
        let new = self.folder.path().join("new");
        symlink(self.release(number), &new).expect("ours");
        fs::rename(new, self.current()).expect("ours");
    }

    /// A supervisor that was started in a directory that a shell calls `pwd`.
    fn started_in(&self, directory: &Path, pwd: &Path) -> Builder {
        let command = [fixtures::python(), "-S".into(), "app.py".into()];
        let builder = Supervisor::builder().args(["--ready", "none", "--throttle", "20ms"]);
        builder.cwd(directory).env("PWD", pwd).command(command)
    }
}

/// Waits until this many workers have said which release they are, by which path, and where; gives the last line.
fn last_of(supervisor: &Supervisor, count: usize) -> String {
    supervisor.until("the workers have said where they are", || {
        Some(supervisor.output()).filter(|lines| lines.len() >= count).and_then(|lines| lines.last().cloned())
    })
}

fn line(release: u32, pwd: &Path, directory: &Path) -> String {
    format!("{release} {} {}", pwd.display(), directory.display())
}

#[test]
fn reload_follows_the_symlink_of_the_start_directory() {
    let deployment = Deployment::new();
    let current = deployment.current();
    let supervisor = deployment.started_in(&current, &current).spawn();
    assert_eq!(last_of(&supervisor, 1), line(1, &current, &deployment.release(1)));
    deployment.make_current(2);
    supervisor.reload(1);
    assert_eq!(last_of(&supervisor, 2), line(2, &current, &deployment.release(2)));
    // So does the replacement of a worker that dies.
    deployment.make_current(1);
    let victim = *supervisor.await_workers(1).first().expect("one");
    process::signal(victim, Signal::KILL);
    assert_eq!(last_of(&supervisor, 3), line(1, &current, &deployment.release(1)));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn relative_chdir_follows_the_symlink() {
    let deployment = Deployment::new();
    let current = deployment.current();
    for release in 1..=2 {
        fs::create_dir(deployment.release(release).join("web")).expect("ours");
        fs::copy(deployment.release(release).join("app.py"), deployment.release(release).join("web/app.py"))
            .expect("ours");
    }
    let supervisor = deployment.started_in(&current, &current).args(["--chdir", "web"]).spawn();
    let at = |release: u32| line(release, &current.join("web"), &deployment.release(release).join("web"));
    assert_eq!(last_of(&supervisor, 1), at(1));
    deployment.make_current(2);
    supervisor.reload(1);
    assert_eq!(last_of(&supervisor, 2), at(2));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn wrong_pwd_is_ignored() {
    let deployment = Deployment::new();
    let (first, second) = (deployment.release(1), deployment.release(2));
    for wrong in [second.as_path(), Path::new("/"), Path::new("."), Path::new("/no/such/directory")] {
        let supervisor = deployment.started_in(&first, wrong).spawn();
        assert_eq!(last_of(&supervisor, 1), line(1, &first, &first));
        deployment.make_current(2);
        supervisor.reload(1);
        assert_eq!(last_of(&supervisor, 2), line(1, &first, &first), "PWD={}", wrong.display());
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn removed_start_symlink_unsets_pwd() {
    let deployment = Deployment::new();
    let (current, gone) = (deployment.current(), deployment.folder.path().join("gone"));
    let program = deployment.release(1).join("app.py");
    let command = [fixtures::python().into(), "-S".into(), program.into_os_string()];
    let supervisor = deployment.started_in(&current, &current).command(command).spawn();
    assert_eq!(last_of(&supervisor, 1), line(1, &current, &deployment.release(1)));
    // The release is still there, and nothing leads to it any more.
    fs::rename(&current, &gone).expect("ours");
    supervisor.reload(1);
    assert_eq!(last_of(&supervisor, 2), format!("1 None {}", deployment.release(1).display()));
    assert_eq!(supervisor.stop(), 0);
}

/// A folder with an executable file `app` of these bytes.
fn program(bytes: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app");
    fs::write(&path, bytes).expect("ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
    folder
}

/// Runs `./app` where it is; the line that the very first start logs, and the exit code.
fn refused(folder: &Path) -> (String, Option<i32>) {
    let finished = Supervisor::builder().cwd(folder).command(["./app", "word"]).run();
    assert_eq!(finished.stderr.len(), 1, "{finished:?}");
    assert!(finished.stdout.is_empty(), "{finished:?}");
    (finished.stderr[0].clone(), finished.code)
}

#[test]
fn script_without_interpreter_is_run_by_the_shell() {
    let folder = program(b"echo \"$0 $# $1 $2\"\nexec sleep infinity\n");
    let path = folder.path().join("app");
    for (command, name) in [("./app", "./app".to_owned()), ("app", path.display().to_string())] {
        let search = format!("/no/such/folder:{}:/usr/bin:/bin", folder.path().display());
        let builder = Supervisor::builder().cwd(folder.path()).env("PATH", search).args(["--ready", "none"]);
        let supervisor = builder.command([command, "one word", "two"]).spawn();
        supervisor.eventually("the script has its arguments", || {
            supervisor.output() == [format!("{name} 2 one word two")]
        });
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn binary_garbage_is_not_run_by_the_shell() {
    let folder = program(b"echo\0started\n");
    let (line, code) = refused(folder.path());
    assert!(line.contains("./app") && line.contains("Exec format error"), "{line}");
    assert_eq!(code, Some(126));
}

#[test]
fn missing_interpreter_is_named() {
    for (first_line, name) in [
        ("#!/no/such/interpreter\n", "/no/such/interpreter"),
        ("#! /no/such/interpreter -x\n", "/no/such/interpreter"),
        // From an editor of another system: the file looks all right.
        ("#!/bin/sh\r\necho started\r\n", "/bin/sh\\r"),
        ("#!/etc/passwd/sh\n", "/etc/passwd/sh"),
    ] {
        let folder = program(first_line.as_bytes());
        let (line, code) = refused(folder.path());
        let expected =
            format!("master-process: ./app cannot be started: interpreter {name} of ./app not found");
        assert_eq!((line, code), (expected, Some(126)), "the command itself was found");
    }
}

#[test]
fn interpreter_that_cannot_be_executed_is_named() {
    let folder = program(b"#!/etc/passwd\n");
    let (line, code) = refused(folder.path());
    assert!(
        line.contains("interpreter /etc/passwd of ./app cannot be executed: Permission denied"),
        "{line}"
    );
    assert_eq!(code, Some(126));
}

#[test]
fn missing_dynamic_loader_is_named() {
    // A copy of a program whose loader's name is changed: as with one of another distribution.
    let mut bytes = fs::read("/bin/sleep").expect("every host has it");
    let at = bytes.windows(6).position(|window| window == b"/lib64" || window == b"/lib/l");
    let at = at.expect("it is dynamic, and names its loader first");
    bytes[at..at + 4].copy_from_slice(b"/gon");
    let end = at + bytes[at..].iter().position(|byte| *byte == 0).expect("a C string");
    let loader = String::from_utf8(bytes[at..end].to_vec()).expect("ASCII");
    let folder = program(&bytes);
    let (line, code) = refused(folder.path());
    assert!(line.ends_with(&format!("interpreter {loader} of ./app not found")), "{line}");
    assert_eq!(code, Some(126));
}

#[test]
fn interpreter_removed_later_is_logged() {
    let folder = program(b"#!./sh\nexec sleep infinity\n");
    let shell = folder.path().join("sh");
    symlink("/bin/sh", &shell).expect("ours");
    let options = ["--throttle", "50ms", "--throttle-max", "50ms", "--ready", "none"];
    let supervisor = Supervisor::builder().cwd(folder.path()).args(options).command(["./app"]).spawn();
    let first = *supervisor.await_workers(1).first().expect("one");
    fs::remove_file(&shell).expect("ours");
    process::signal(first, Signal::KILL);
    supervisor.eventually("the failure is logged", || {
        !supervisor.logged(&["failed to start: interpreter ./sh of ./app not found; retrying"]).is_empty()
    });
    symlink("/bin/sh", &shell).expect("ours");
    supervisor.await_workers(1);
    assert_eq!(supervisor.stop(), 0);
}

/// Keeps everybody else from opening a file, by a lease that it does not give up: whoever executes it waits in the kernel,
/// as on a file system that does not answer. The kernel takes the lease away after 45 s.
struct Held(Child);

const HOLD: &str = "
import fcntl, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = open(sys.argv[1], 'rb')
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
sys.stdin.read()
";

impl Held {
    /// `None`: the file system has no leases.
    fn new(path: &Path) -> Option<Held> {
        let mut command = Command::new(fixtures::python());
        command.args(["-S", "-E", "-c", HOLD]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("python is here");
        let mut line = String::new();
        let mut output = BufReader::new(holder.stdout.take().expect("a pipe"));
        output.read_line(&mut line).expect("UTF-8");
        let held = Held(holder);
        (line == "held\n").then_some(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A program that no process has open until it is started.
fn sleeper() -> tempfile::TempDir {
    program(b"#!/bin/sh\nexec sleep infinity\n")
}

fn at(folder: &Path, workers: &str, ready: &str) -> Builder {
    let options = ["-v", "-w", workers, "--ready", ready, "--throttle", "50ms", "--throttle-max", "50ms"];
    Supervisor::builder().cwd(folder).args(options).command([folder.join("app")])
}

fn started_at(folder: &Path, workers: &str) -> Supervisor {
    at(folder, workers, "none").spawn()
}

/// How often a start was late. On a busy machine one may be that hangs nowhere.
fn late(supervisor: &Supervisor) -> usize {
    supervisor.logged(&["is slow to start"]).len()
}

#[test]
fn hanging_start_delays_nothing_and_fails_after_five_seconds() {
    let folder = sleeper();
    let supervisor = started_at(folder.path(), "3");
    let workers: Vec<i32> = supervisor.await_workers(3).into_iter().collect();
    let Some(held) = Held::new(&folder.path().join("app")) else {
        skip!("no leases on this file system");
    };
    let before = late(&supervisor);
    process::signal(workers[0], Signal::KILL);
    supervisor.eventually("its replacement is late", || late(&supervisor) > before);
    // Deaths, signals and other starts are dealt with meanwhile.
    process::signal(workers[1], Signal::KILL);
    supervisor.eventually("another exit is logged", || {
        !supervisor.logged(&[&format!("(pid {})", workers[1]), "sigkill"]).is_empty()
    });
    supervisor.signal(Signal::USR2);
    supervisor.eventually("a signal is heard", || !supervisor.logged(&["limits", "paused"]).is_empty());
    let failed = || supervisor.logged(&["failed to start: execve", "did not return within 5.0s"]).len();
    assert_eq!(failed(), 0, "all of that before it was over: {:?}", supervisor.log());
    supervisor.eventually("both starts have failed, and more are tried", || {
        failed() >= 2 && late(&supervisor) >= before + 3
    });
    assert_eq!(
        supervisor.workers().into_iter().collect::<Vec<_>>(),
        workers[2..],
        "no other worker is touched"
    );
    drop(held);
    supervisor.await_workers(3);
    supervisor.eventually("no child of a start that failed is left", || {
        process::children(supervisor.pid()).len() == 3
    });
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn cgroup_of_an_abandoned_start_is_removed() {
    let folder = sleeper();
    let Some(place) = Place::make(true) else { skip!("no cgroup can be made") };
    let app = folder.path().join("app");
    let options = ["-v", "-w", "1", "--ready", "none", "--throttle", "50ms", "--throttle-max", "50ms"];
    let supervisor = place.start(&options, vec![app.display().to_string()]);
    let worker = *supervisor.await_workers(1).first().expect("one");
    let Some(held) = Held::new(&app) else {
        skip!("no leases on this file system");
    };
    let on_time = late(&supervisor);
    process::signal(worker, Signal::KILL);
    supervisor
        .eventually("its replacement is late", || late(&supervisor) > on_time && place.workers().len() == 1);
    // Its cgroup is in use when the start is abandoned.
    let mut inside = Command::new("sleep").arg("1000").spawn().expect("a process");
    let abandoned = place.workers().remove(0);
    place.put(inside.id(), &abandoned);
    supervisor.eventually("its replacement is abandoned", || {
        !supervisor.logged(&["failed to start: execve", "did not return within 5.0s"]).is_empty()
    });
    drop(held);
    supervisor.await_workers(1);
    supervisor.eventually("the one worker's cgroup alone is left", || {
        place.workers().len() == 1 && place.in_use().len() == 1
    });
    inside.wait().expect("it was killed with its cgroup");
    assert_eq!(supervisor.stop(), 0);
    assert!(place.is_empty(), "{:?}", place.workers());
}

#[test]
fn hanging_first_start_is_retried() {
    let folder = sleeper();
    let Some(held) = Held::new(&folder.path().join("app")) else {
        skip!("no leases on this file system");
    };
    let supervisor = started_at(folder.path(), "2");
    supervisor.eventually("a start has failed", || {
        !supervisor.logged(&["worker 0 failed to start", "did not return within", "retrying"]).is_empty()
    });
    drop(held);
    supervisor.await_workers(2);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn supervisor_with_a_hanging_start_stops_at_once() {
    let folder = sleeper();
    let supervisor = started_at(folder.path(), "2");
    let victim = *supervisor.await_workers(2).first().expect("two");
    let Some(_held) = Held::new(&folder.path().join("app")) else {
        skip!("no leases on this file system");
    };
    let before = late(&supervisor);
    process::signal(victim, Signal::KILL);
    supervisor.eventually("its replacement is late", || late(&supervisor) > before);
    assert_eq!(supervisor.stop(), 0);
    assert!(supervisor.logged(&["did not return"]).is_empty(), "{:?}", supervisor.log());
}

#[test]
fn slow_start_succeeds() {
    let folder = sleeper();
    let supervisor = started_at(folder.path(), "2");
    let before = supervisor.await_workers(2);
    let Some(held) = Held::new(&folder.path().join("app")) else {
        skip!("no leases on this file system");
    };
    let on_time = late(&supervisor);
    supervisor.signal(Signal::HUP);
    supervisor.eventually("both are late", || late(&supervisor) == on_time + 2);
    drop(held);
    supervisor.eventually("they have replaced the old ones", || {
        let now = supervisor.workers();
        now.len() == 2 && now.is_disjoint(&before)
    });
    assert!(supervisor.logged(&["failed to start"]).is_empty(), "{:?}", supervisor.log());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn slow_start_is_complete_before_its_first_notification() {
    if !Path::new("/usr/bin/perl").exists() {
        skip!("no perl");
    }
    // Within a few milliseconds, so that it mostly has spoken before the start is looked after again.
    let says_ready = "#!/usr/bin/perl
socket(my $notify, 1, 2, 0) or die $!;
send($notify, 'READY=1', 0, pack('S a108', 1, $ENV{NOTIFY_SOCKET})) or die $!;
sleep 1000;
";
    let folder = program(says_ready.as_bytes());
    let supervisor = at(folder.path(), "6", "notify").spawn();
    supervisor.eventually("all are ready", || supervisor.logged(&["ready after"]).len() == 6);
    let before = supervisor.await_workers(6);
    let Some(held) = Held::new(&folder.path().join("app")) else {
        skip!("no leases on this file system");
    };
    let on_time = late(&supervisor);
    supervisor.signal(Signal::HUP);
    supervisor.eventually("all are late", || late(&supervisor) == on_time + 6);
    // From then on each is looked after seldom.
    always(Duration::from_millis(300), "none of them runs", || late(&supervisor) == on_time + 6);
    drop(held);
    supervisor.eventually("each has been heard, and has replaced its predecessor", || {
        let now = supervisor.workers();
        now.len() == 6 && now.is_disjoint(&before)
    });
    assert_eq!(supervisor.stop(), 0);
}
