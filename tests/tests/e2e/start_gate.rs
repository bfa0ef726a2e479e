//! The start gate: supervisors of one host that start workers at the same time wait for each other.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use master_process_tests::supervisor::Builder;
use master_process_tests::{Event, Supervisor, address, fixtures, needs_root, process, profile};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

/// The line of a supervisor whose starts wait.
const WAITS: [&str; 1] = ["starts wait for those of other supervisors"];

/// A runtime directory that only the supervisors of one test share. They run as an ordinary user: the directory of root is
/// the same for all tests.
struct Host {
    folder: tempfile::TempDir,
    user: Option<u32>,
}

impl Host {
    fn new() -> Host {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let user = process::is_root().then(profile::ordinary_user);
        let host = Host { folder, user };
        host.give(host.folder.path().to_owned());
        fs::create_dir(host.directory()).expect("the folder is ours");
        host.give(host.directory());
        host
    }

    /// Makes the path one of the user.
    fn give(&self, path: PathBuf) {
        chown(path, self.user, self.user).expect("root gives it away, and others have it already");
    }

    fn directory(&self) -> PathBuf {
        self.folder.path().join("master-process")
    }

    fn place(&self, number: u32) -> PathBuf {
        self.directory().join(format!("start-{number}"))
    }

    fn supervisor(&self, places: u32) -> Builder {
        let builder = Supervisor::builder().env("XDG_RUNTIME_DIR", self.folder.path());
        let builder = builder.env("RUNTIME_DIRECTORY", "").args(["--start-gate", &places.to_string()]);
        if self.user.is_some() { builder.wrap(profile::launcher(self.user, &[])) } else { builder }
    }

    /// Holds a place, as any process of the user can, until the result is dropped.
    fn hold(&self, number: u32) -> File {
        let path = self.place(number);
        let file = File::options().create(true).truncate(false).write(true).open(&path).expect("ours");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("ours");
        self.give(path);
        flock(&file, FlockOperation::LockExclusive).expect("a lock");
        file
    }
}

fn await_waiting(supervisor: &Supervisor) {
    supervisor.eventually("its starts wait", || !supervisor.logged(&WAITS).is_empty());
}

/// How many workers of a generation were starting at the same time, at most, by their own account.
fn most_starting_at_once(supervisors: &[Supervisor], generation: i32) -> usize {
    /// A worker says that it is ready some time after the supervisor knows, and the next one may have started by then.
    const BETWEEN_BEING_AND_SAYING: f64 = 0.3;
    let of = |name: &str| -> Vec<Event> {
        let all = supervisors.iter().flat_map(|supervisor| supervisor.events_named(name));
        all.filter(|event| event.reload == generation).collect()
    };
    let (started, ready) = (of("started"), of("ready"));
    let starting_at = |moment: f64| {
        let begun = started.iter().filter(|event| event.at <= moment).count();
        begun - ready.iter().filter(|event| event.at <= moment + BETWEEN_BEING_AND_SAYING).count().min(begun)
    };
    started.iter().map(|event| starting_at(event.at)).max().unwrap_or_default()
}

#[test]
fn reload_of_many_supervisors_starts_no_more_workers_at_once_than_places() {
    let host = Host::new();
    let supervisors: Vec<Supervisor> = (0..8)
        .map(|_| {
            let command = fixtures::listening(address::tcp(), &["from=1:delay=0.6"]);
            host.supervisor(4).args(["-w", "4", "--throttle", "100ms"]).command(command).spawn()
        })
        .collect();
    for supervisor in &supervisors {
        supervisor.await_events(4, "ready");
    }
    for supervisor in &supervisors {
        supervisor.signal(Signal::HUP);
    }
    for supervisor in &supervisors {
        supervisor
            .eventually("its reload is complete", || !supervisor.logged(&["reload 1 complete"]).is_empty());
    }
    let most = most_starting_at_once(&supervisors, 1);
    assert!((2..=4).contains(&most), "{most} at once");
    assert!(supervisors.iter().any(|supervisor| !supervisor.logged(&WAITS).is_empty()));
    assert!(
        supervisors.iter().all(|supervisor| supervisor.logged(&["no place at the start gate"]).is_empty())
    );
    for supervisor in &supervisors {
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn supervisor_that_starts_alone_is_not_limited() {
    let host = Host::new();
    let command = fixtures::listening(address::tcp(), &["delay=1"]);
    let supervisor = host.supervisor(2).args(["-w", "6"]).command(command).spawn();
    supervisor.await_events(6, "ready");
    assert!(supervisor.logged(&WAITS).is_empty(), "{:?}", supervisor.log());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn place_of_a_killed_supervisor_is_free_although_its_worker_lives() {
    let host = Host::new();
    let options = ["--ready", "notify", "--orphans", "keep"];
    let first = host.supervisor(1).args(options).command(fixtures::idle()).spawn();
    let worker = *first.await_workers(1).first().expect("one");
    let inherited = process::descriptors(worker);
    assert!(inherited.iter().all(|(_, file)| *file != host.place(0)), "{inherited:?}");
    // One that does not run cannot give its place back.
    process::freeze(first.pid());
    let second = host.supervisor(1).args(["--ready", "none"]).command(fixtures::idle()).spawn();
    await_waiting(&second);
    assert!(second.workers().is_empty());
    process::signal(first.pid(), Signal::KILL);
    second.await_workers(1);
    assert!(process::alive(worker) && second.logged(&["no place at the start gate"]).is_empty());
    assert_eq!(second.stop(), 0);
}

#[test]
fn stop_ends_a_supervisor_whose_starts_wait() {
    let host = Host::new();
    let _held = [host.hold(0), host.hold(1)];
    let supervisor = host.supervisor(2).args(["-w", "3"]).command(fixtures::idle()).spawn();
    await_waiting(&supervisor);
    let since = Instant::now();
    assert_eq!(supervisor.stop(), 0);
    assert!(since.elapsed() < Duration::from_secs(20), "not when the wait is over: {:?}", since.elapsed());
    assert!(supervisor.output().is_empty());
}

#[test]
fn crashed_worker_is_replaced_while_others_hold_all_places() {
    let host = Host::new();
    let command = fixtures::listening(address::tcp(), &[]);
    let supervisor = host.supervisor(2).args(["-w", "2"]).command(command).spawn();
    let worker = supervisor.await_events(2, "ready")[0].pid;
    let _held = [host.hold(0), host.hold(1)];
    process::signal(worker, Signal::KILL);
    supervisor.await_events(3, "ready");
    assert_eq!(supervisor.logged(&["no place at the start gate"]).len(), 1, "{:?}", supervisor.log());
    // A reload waits, and the old workers serve meanwhile; a crash during the wait is repaired as well.
    supervisor.signal(Signal::HUP);
    supervisor.eventually("it reloads", || !supervisor.logged(&["reload 1: replacing"]).is_empty());
    let worker = *supervisor.workers().first().expect("two");
    process::signal(worker, Signal::KILL);
    let ready = supervisor.await_events(4, "ready");
    assert_eq!(ready[3].reload, 1, "the replacement has the current generation");
    assert!(ready.iter().filter(|event| event.reload == 1).count() == 1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn added_and_removed_workers_and_a_reload_go_on_when_a_place_is_free() {
    let host = Host::new();
    let supervisor = host.supervisor(1).command(fixtures::listening(address::tcp(), &[])).spawn();
    supervisor.await_events(1, "ready");
    let held = host.hold(0);
    supervisor.signal(Signal::TTIN);
    supervisor.eventually("a worker more", || !supervisor.logged(&["scaled from 1 to 2"]).is_empty());
    await_waiting(&supervisor);
    supervisor.signal(Signal::TTIN);
    supervisor.eventually("another", || !supervisor.logged(&["scaled from 2 to 3"]).is_empty());
    supervisor.signal(Signal::TTOU);
    supervisor.eventually("one fewer", || !supervisor.logged(&["scaled from 3 to 2"]).is_empty());
    supervisor.signal(Signal::HUP);
    supervisor.eventually("a reload", || !supervisor.logged(&["reload 1: replacing 2"]).is_empty());
    assert_eq!(supervisor.events_named("started").len(), 1);
    drop(held);
    supervisor.eventually("all are replaced", || !supervisor.logged(&["reload 1 complete"]).is_empty());
    supervisor.await_workers(2);
    assert_eq!(supervisor.events_named("started").len(), 3);
    assert_eq!(supervisor.stop(), 0);
}

/// Starts a supervisor whose places cannot be used, and gives the line that says why.
fn line_of_unusable(builder: Builder) -> String {
    let supervisor = builder.args(["-w", "2", "--ready", "none"]).command(fixtures::idle()).spawn();
    supervisor.await_workers(2);
    let lines = || supervisor.logged(&["start gate unavailable"]);
    supervisor.eventually("it says so", || !lines().is_empty());
    let lines = lines();
    assert_eq!((lines.len(), supervisor.stop()), (1, 0), "{lines:?}");
    lines.concat()
}

#[test]
fn places_that_another_user_can_hold_or_that_are_links_are_not_used() {
    let host = Host::new();
    let place = host.place(0);
    drop(host.hold(0));
    fs::set_permissions(&place, Permissions::from_mode(0o604)).expect("ours");
    assert!(line_of_unusable(host.supervisor(1)).contains("start-0: other users can open it"));
    fs::remove_file(&place).expect("ours");
    symlink(host.folder.path().join("elsewhere"), &place).expect("a link");
    assert!(line_of_unusable(host.supervisor(1)).contains("start-0: "));
    assert!(!host.folder.path().join("elsewhere").exists(), "the link was not followed");
    fs::remove_file(&place).expect("ours");
    fs::set_permissions(host.directory(), Permissions::from_mode(0o777)).expect("ours");
    assert!(line_of_unusable(host.supervisor(1)).contains("other users can write to it"));
}

#[test]
fn places_of_another_user_are_not_used() {
    needs_root!();
    let host = Host::new();
    drop(host.hold(0));
    chown(host.place(0), Some(0), Some(0)).expect("root");
    fs::set_permissions(host.place(0), Permissions::from_mode(0o604)).expect("root");
    assert!(line_of_unusable(host.supervisor(1)).contains("start-0: it belongs to another user"));
    chown(host.directory(), Some(host.user.expect("root") + 10_000), None).expect("root");
    assert!(line_of_unusable(host.supervisor(1)).contains("other users can write to it"));
}

#[test]
fn user_without_a_runtime_directory_has_no_gate() {
    let host = Host::new();
    let builder = host.supervisor(1).env("XDG_RUNTIME_DIR", "");
    assert!(line_of_unusable(builder).contains("no xdg_runtime_dir"));
}

#[test]
fn supervisors_of_root_share_the_places_of_the_host_and_no_other_user_can_open_them() {
    needs_root!();
    // A /run of their own, which the second one enters.
    let words = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /run && exec \"$@\"", "sh"];
    let options = ["--start-gate", "1", "--orphans", "keep"];
    let first =
        Supervisor::builder().wrap(words).args(options).args(["--ready", "notify", "--user", "nobody"]);
    let first = first.command(fixtures::idle()).spawn();
    first.await_workers(1);
    let root = format!("/proc/{}/root", first.pid());
    let place = PathBuf::from(&root).join("run/master-process/start-0");
    let of = fs::metadata(&place).expect("it is there");
    assert_eq!((of.mode() & 0o7777, of.uid()), (0o600, 0));
    process::freeze(first.pid());
    let target = first.pid().to_string();
    let second = Supervisor::builder().wrap(["nsenter", "--mount", "--target", &target, "--"]);
    let second = second.args(options).args(["--ready", "none"]).command(fixtures::idle()).spawn();
    await_waiting(&second);
    process::signal(first.pid(), Signal::KILL);
    second.await_workers(1);
    assert_eq!(second.stop(), 0);
}
