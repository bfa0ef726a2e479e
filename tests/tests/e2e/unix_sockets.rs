//! The path of a Unix socket: whose it is, how it looks, how long it is there.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use master_process_tests::load::{self, Connections, Load};
use master_process_tests::{Supervisor, TIMEOUT, address, fixtures, needs_root, process, scaled};
use rustix::process::Signal;

fn listening_worker(path: &Path, more: &[&str]) -> Vec<String> {
    let listen = format!("listen={}", path.display());
    let words: Vec<&str> = [&[listen.as_str()], more].concat();
    fixtures::worker(&words)
}

fn passed(path: &Path, options: &[&str]) -> Supervisor {
    let listen = format!("unix:{}", path.display());
    let builder = Supervisor::builder().args(["--listen", &listen]).args(options);
    builder.command(fixtures::worker(&["accept=3", "notify"])).spawn()
}

fn mode(path: &Path) -> Option<u32> {
    path.metadata().ok().map(|metadata| metadata.permissions().mode() & 0o7777)
}

/// The mode that the path has at the first moment at which a connection comes through.
fn mode_at_first_connection(path: &Path) -> u32 {
    let start = Instant::now();
    loop {
        // Without a pause: what is looked for lasts a moment, if it is there.
        if UnixStream::connect(path).is_ok() {
            return mode(path).expect("it has just been connected to");
        }
        assert!(start.elapsed() < scaled(TIMEOUT), "{} never came", path.display());
    }
}

#[test]
fn mode_is_set_before_the_first_connection() {
    for (umask, left) in [("0", 0o777), ("077", 0o700)] {
        let wrapper = ["sh", "-c", &format!("umask {umask}; exec \"$@\""), "sh"].map(str::to_owned);
        for _ in 0..10 {
            let (_folder, path) = address::unix();
            let listen = format!("unix:{}", path.display());
            let builder = Supervisor::builder().wrap(&wrapper).args(["--listen", &listen, "--ready", "none"]);
            let _supervisor = builder.command(fixtures::idle()).spawn();
            assert_eq!(mode_at_first_connection(&path), 0o664, "umask {umask}");
        }
        for _ in 0..4 {
            let (_folder, path) = address::unix();
            let builder = Supervisor::builder().wrap(&wrapper).command(listening_worker(&path, &[]));
            let _supervisor = builder.spawn();
            assert_eq!(mode_at_first_connection(&path), left, "bound by the worker, umask {umask}");
        }
        for _ in 0..4 {
            let (_folder, path) = address::unix();
            let builder = Supervisor::builder().wrap(&wrapper).args(["--socket-mode", "664"]);
            let _supervisor = builder.command(listening_worker(&path, &[])).spawn();
            assert_eq!(mode_at_first_connection(&path), 0o664, "as given, umask {umask}");
        }
    }
}

#[test]
fn socket_mode_and_owner_apply() {
    needs_root!();
    let options = ["--socket-mode", "600", "--socket-owner", "nobody:daemon"];
    let looks_right = |path: &Path| {
        let metadata = path.metadata().expect("it is there");
        assert_eq!((metadata.uid(), metadata.gid(), mode(path)), (65534, 1, Some(0o600)));
    };
    let (_folder, path) = address::unix();
    let supervisor = passed(&path, &options);
    supervisor.await_events(1, "ready");
    looks_right(&path);

    let (_folder, path) = address::unix();
    let supervisor = Supervisor::start(&options, listening_worker(&path, &[]));
    supervisor.await_events(1, "ready");
    looks_right(&path);
    supervisor.reload(1);
    looks_right(&path);

    // The owner alone; by number.
    let (_folder, path) = address::unix();
    let supervisor = passed(&path, &["--socket-owner", "12345"]);
    supervisor.await_events(1, "ready");
    let metadata = path.metadata().expect("it is there");
    assert_eq!((metadata.uid(), metadata.gid()), (12345, rustix::process::getegid().as_raw()));
}

#[test]
fn a_stale_socket_at_a_listen_path_is_removed_at_the_start() {
    let (_folder, path) = address::unix();
    drop(UnixListener::bind(&path).expect("nothing is there yet"));
    let supervisor = passed(&path, &[]);
    supervisor.await_events(1, "ready");
    assert!(load::who(path.as_path()).is_some());
}

#[test]
fn live_server_at_a_workers_path_is_kept() {
    let (_folder, path) = address::unix();
    let live = UnixListener::bind(&path).expect("nothing is there yet");
    let inode = path.metadata().expect("just made").ino();
    let options = ["--throttle", "200ms", "--throttle-max", "200ms"];
    let supervisor = Supervisor::start(&options, listening_worker(&path, &[]));
    supervisor.await_events(2, "started");
    supervisor.eventually("the log names the path", || {
        supervisor.log().iter().any(|line| line.contains("app.sock"))
    });
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(path.metadata().expect("left alone").ino(), inode);
    // The queue may hold connections that only checked for another instance; ours comes through as well.
    UnixStream::connect(&path).expect("it still answers");
    drop(live);
}

#[test]
fn symbolic_link_at_a_listen_path_is_kept() {
    let (folder, path) = address::unix();
    let target = folder.path().join("target");
    fs::write(&target, "precious").expect("ours");
    symlink(&target, &path).expect("ours");
    let listen = format!("unix:{}", path.display());
    let finished = Supervisor::builder().args(["--listen", &listen]).command(["true"]).run();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(path.symlink_metadata().expect("left alone").file_type().is_symlink());
    assert_eq!(fs::read_to_string(&target).expect("left alone"), "precious");
}

#[test]
fn listen_path_in_a_missing_directory_is_fatal_and_named() {
    let (folder, _) = address::unix();
    let listen = format!("unix:{}", folder.path().join("missing/app.sock").display());
    let finished = Supervisor::builder().args(["--listen", &listen]).command(["true"]).run();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.len() == 1 && finished.stderr[0].contains("missing/app.sock"), "{finished:?}");
}

#[test]
fn unlink_by_a_worker_keeps_the_listen_path() {
    let (_folder, path) = address::unix();
    // node unlinks the path when its server closes.
    let options = ["-w", "2", "--socket-mode", "664"];
    let builder = Supervisor::builder().args(options).command(fixtures::node("graceful.js"));
    let supervisor = builder.env("LISTEN", &path).spawn();
    supervisor.eventually("a worker answers", || load::who(path.as_path()).is_some());
    supervisor.await_workers(2);
    let clients = Load::start(path.as_path(), 4, Connections::Fresh);
    for _ in 0..2 {
        let old = supervisor.workers();
        supervisor.signal(Signal::HUP);
        supervisor.eventually("both are replaced", || {
            assert!(path.exists(), "the path is gone");
            let workers = supervisor.workers();
            workers.len() == 2 && workers.is_disjoint(&old)
        });
    }
    let tally = clients.stop();
    assert_eq!(tally.inexcusable() + tally.lost(), 0, "{tally}");
    assert_eq!(mode(&path), Some(0o664));
    assert_eq!(supervisor.stop(), 0);
    assert!(!path.exists(), "the path goes with the supervisor");
}

#[test]
fn path_exists_while_no_worker_lives() {
    let (_folder, path) = address::unix();
    let options = ["--throttle", "1500ms", "--throttle-max", "1500ms", "--socket-mode", "664"];
    let supervisor = Supervisor::start(&options, listening_worker(&path, &["term=default"]));
    let first = supervisor.await_events(1, "ready")[0].pid;
    process::signal(first, Signal::KILL);
    supervisor.eventually("no worker is alive", || supervisor.workers().is_empty());
    let metadata = path.metadata().expect("the path is there");
    assert!(metadata.file_type().is_socket());
    assert_eq!(mode(&path), Some(0o664));
    assert_eq!(supervisor.events_named("started").len(), 1, "still no worker");
    // Also at an end in that state.
    assert_eq!(supervisor.stop(), 0);
    assert!(!path.exists());
}

#[test]
fn the_path_is_removed_at_every_orderly_end() {
    // After --give-up.
    let (_folder, path) = address::unix();
    let options = ["--give-up", "2/30s", "--throttle", "700ms", "--throttle-max", "700ms"];
    let supervisor = Supervisor::start(&options, listening_worker(&path, &["die=0"]));
    assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(70));
    assert!(!path.exists(), "after giving up");
    // Killed by the second signal.
    let (_folder, path) = address::unix();
    let supervisor =
        Supervisor::start(&["--kill-timeout", "10min"], listening_worker(&path, &["term=ignore"]));
    supervisor.await_events(1, "ready");
    supervisor.signal(Signal::TERM);
    supervisor.await_events(1, "term");
    assert_eq!(supervisor.stop_twice(), Some(0));
    assert!(!path.exists(), "after the second signal");
    // QUIT, with a socket that was handed over.
    let (_folder, path) = address::unix();
    let supervisor = passed(&path, &[]);
    supervisor.await_events(1, "ready");
    supervisor.signal(Signal::QUIT);
    assert_eq!(supervisor.wait_exit(TIMEOUT).code(), Some(0));
    assert!(!path.exists(), "after QUIT");
    // A command that was not there: the socket was made for nothing.
    let (_folder, path) = address::unix();
    let listen = format!("unix:{}", path.display());
    let finished = Supervisor::builder().args(["--listen", &listen]).command(["/no/such/app"]).run();
    assert_eq!(finished.code, Some(127));
    assert!(!path.exists(), "after 127");
}

#[test]
fn the_next_supervisor_takes_over_the_path_of_one_that_was_killed() {
    let (_folder, path) = address::unix();
    let killed = Supervisor::start(&[], listening_worker(&path, &[]));
    killed.await_events(1, "ready");
    killed.signal(Signal::KILL);
    let _ = killed.wait_exit(Duration::from_secs(20));
    killed
        .events_named("ready")
        .iter()
        .for_each(|event| master_process_tests::supervisor::await_gone(event.pid));
    assert!(path.exists(), "it could not be removed");
    let next = Supervisor::start(&[], listening_worker(&path, &[]));
    let worker = next.await_events(1, "ready")[0].pid;
    assert_eq!(load::who(path.as_path()), Some(worker));
}
