//! A socket for each generation at one Unix path, and with whose rights it is made.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use master_process_tests::load::{self, Connections, Load};
use master_process_tests::messages::await_failed_reload;
use master_process_tests::script::{lines, said, script_with};
use master_process_tests::traffic::{nothing_is_lost, pass};
use master_process_tests::{Supervisor, TIMEOUT, address, eventually, fixtures, needs_root, profile};
use rustix::net::sockopt::socket_peercred;
use rustix::process::Signal;

/// Binds PATH, the last word of the command line, and serves.
const SERVER: &str = "
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[2]); made.listen(64)
say('ready', RELOAD)
serve(made)";

const QUICK: [&str; 8] = ["-w", "2", "--throttle", "10ms", "--throttle-max", "10ms", "--drain", "50ms"];

/// The longest path that fits into a `sockaddr_un` with its terminating zero.
const LONGEST_PATH: usize = 107;

/// A folder that every user may use.
fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("ours");
}

fn server(text: &str, path: &Path) -> Vec<String> {
    script_with(text, address::tcp(), [path])
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    entries.map(|entry| entry.expect("read").file_name().to_string_lossy().into_owned()).collect()
}

fn only(name: &str) -> BTreeSet<String> {
    BTreeSet::from([name.to_owned()])
}

#[test]
fn process_name_cut_inside_a_character_does_no_harm() {
    // The kernel cuts a name after 15 bytes, so `/proc/PID/status` is not UTF-8.
    let name = "import ctypes\nctypes.CDLL(None).prctl(15, b'\\xc3\\xa9' * 9, 0, 0, 0)\n";
    let text = format!("{name}{}", SERVER.replace("say('ready', RELOAD)", "say('ready', INDEX, RELOAD)"));
    let (folder, path) = address::unix();
    let builder = Supervisor::builder().args(QUICK).command(server(&text, &path));
    let supervisor = builder.cwd(folder.path()).spawn();
    assert_eq!(said(&supervisor, 2), lines(&["ready 0 0", "ready 1 0"]), "no bind fails");
    let workers = supervisor.await_workers(2);
    let comm = fs::read(format!("/proc/{}/comm", workers.first().expect("two"))).expect("it runs");
    assert!(std::str::from_utf8(&comm).is_err(), "{comm:?}");
    supervisor.reload(2);
    assert_eq!(said(&supervisor, 4).len(), 4, "no bind of the new workers fails");
    supervisor.eventually("a new worker answers", || {
        load::who(path.as_path()).is_some_and(|pid| !workers.contains(&pid))
    });
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn reloads_on_a_unix_path_lose_no_request_and_leave_no_file() {
    for command in [fixtures::node("plain.js"), server(SERVER, Path::new("app.sock"))] {
        let (folder, path) = address::unix();
        let builder = Supervisor::builder().args(["-w", "4", "--throttle", "100ms"]).command(command);
        let supervisor = builder.env("LISTEN", &path).env("WORK_MS", "1").cwd(folder.path()).spawn();
        supervisor.eventually("a worker answers", || load::who(path.as_path()).is_some());
        supervisor.await_workers(4);
        let clients = Load::start(path.as_path(), 8, Connections::Fresh);
        for _ in 0..4 {
            pass(&supervisor, &clients, 100);
            supervisor.reload(4);
            supervisor
                .eventually("nothing else is in the folder", || names(folder.path()) == only("app.sock"));
        }
        pass(&supervisor, &clients, 100);
        let tally = clients.stop();
        println!("{tally}");
        assert_eq!(tally.lost() + tally.inexcusable(), 0, "{tally}");
        assert_eq!(supervisor.stop(), 0);
        assert!(names(folder.path()).is_empty(), "the end leaves nothing behind");
        assert_eq!(names(folder.path()), BTreeSet::new(), "the folder is empty at the end");
    }
}

#[test]
fn failed_reload_leaves_no_file_beside_the_path() {
    let (folder, path) = address::unix();
    let flag = folder.path().join("broken");
    // It binds, which makes its generation's socket, and dies before it listens.
    let text = "
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[2])
if RELOAD and os.path.exists(sys.argv[3]): sys.exit(1)
made.listen(64)
say('ready')
serve(made)";
    let mut command = server(text, &path);
    command.push(flag.to_str().expect("UTF-8").to_owned());
    let options = ["-w", "2", "--throttle", "10ms", "--throttle-max", "10ms", "--reload-attempts", "2"];
    let supervisor = Supervisor::start(&options, command);
    said(&supervisor, 2);
    supervisor.await_rest();
    let old = supervisor.await_workers(2);
    let clients = Load::start(path.as_path(), 4, Connections::Fresh);
    fs::write(&flag, "").expect("ours");
    supervisor.signal(Signal::HUP);
    await_failed_reload(&supervisor);
    supervisor.eventually("the old ones are alone", || supervisor.workers() == old);
    let expected: BTreeSet<String> = ["app.sock", "broken"].map(str::to_owned).into();
    supervisor.eventually("no temporary file is left", || names(folder.path()) == expected);
    fs::remove_file(&flag).expect("ours");
    supervisor.reload(2);
    pass(&supervisor, &clients, 100);
    nothing_is_lost(clients);
    supervisor.eventually("nothing else is in the folder", || names(folder.path()) == only("app.sock"));
}

#[test]
fn path_returns_to_the_old_release_when_the_new_one_dies() {
    let (_folder, path) = address::unix();
    // Long enough for it to be in its probation when it dies, however slow its start is.
    let options = ["-w", "2", "--throttle", "5s", "--throttle-max", "5s", "--reload-attempts", "1"];
    let command = fixtures::listening(path.display(), &["from=1:die=0.3"]);
    let supervisor = Supervisor::start(&options, command);
    let old: BTreeSet<i32> = supervisor.await_ready(2);
    supervisor.signal(Signal::HUP);
    await_failed_reload(&supervisor);
    // A worker that is not reaped yet does not serve any more, and still has the path.
    supervisor.eventually("both are buried", || supervisor.logged(&["exited with code 1"]).len() == 2);
    supervisor.await_rest();
    assert_eq!(supervisor.workers(), old, "the old ones are alone");
    for _ in 0..20 {
        let answered = load::who(path.as_path());
        assert!(answered.is_some_and(|pid| old.contains(&pid)), "{answered:?}");
    }
}

/// The process and user at the other end, from the kernel.
fn credentials(path: &Path) -> Option<(i32, u32)> {
    let mut stream = UnixStream::connect(path).ok()?;
    let peer = socket_peercred(&stream).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").ok()?;
    let _answer = stream.read(&mut [0; 200]).ok()?;
    Some((peer.pid.as_raw_pid(), peer.uid.as_raw()))
}

#[test]
fn a_client_sees_the_credentials_of_a_worker() {
    needs_root!();
    let nobody = 65534;
    let (folder, path) = address::unix();
    open_to_all(folder.path());
    let options = [&QUICK[..], &["--user", "nobody"]].concat();
    let supervisor = Supervisor::start(&options, server(SERVER, &path));
    said(&supervisor, 2);
    let mut workers = supervisor.await_workers(2);
    for _ in 0..3 {
        let (pid, uid) = credentials(&path).expect("a worker answers");
        assert_eq!(uid, nobody);
        assert!(workers.contains(&pid), "{pid} is none of {workers:?}");
        assert_eq!(path.metadata().expect("it is there").uid(), nobody, "the file is the worker's");
        workers = supervisor.reload(2);
    }
}

#[test]
fn mode_is_set_before_a_client_can_connect() {
    let (folder, path) = address::unix();
    let wrapper = ["sh", "-c", "umask 077; exec \"$@\"", "sh"].map(str::to_owned);
    let builder = Supervisor::builder().wrap(&wrapper).args(QUICK).args(["--socket-mode", "622"]);
    let supervisor = builder.command(server(SERVER, &path)).spawn();
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (stop, folder) = (Arc::clone(&stop), folder.path().to_owned());
        std::thread::spawn(move || {
            let (mut looked, mut wrong) = (0, Vec::new());
            while !stop.load(Ordering::Relaxed) {
                // Every name that a client can connect to, the temporary one of the next generation too.
                for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                    if UnixStream::connect(entry.path()).is_ok()
                        && let Ok(metadata) = entry.path().symlink_metadata()
                    {
                        looked += 1;
                        let mode = metadata.permissions().mode() & 0o7777;
                        if mode != 0o622 {
                            wrong.push(format!("{:?} had mode {mode:o}", entry.file_name()));
                        }
                    }
                }
            }
            (looked, wrong)
        })
    };
    said(&supervisor, 2);
    for _ in 0..5 {
        supervisor.reload(2);
    }
    stop.store(true, Ordering::Relaxed);
    let (looked, wrong) = watcher.join().expect("it only looks");
    assert!(looked > 50, "only {looked} connections");
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn socket_owner_applies_to_workers_of_another_user() {
    needs_root!();
    let (folder, path) = address::unix();
    open_to_all(folder.path());
    let options = [&QUICK[..], &["--user", "nobody", "--socket-owner", "12345:54321"]].concat();
    let supervisor = Supervisor::start(&options, server(SERVER, &path));
    said(&supervisor, 2);
    for _ in 0..2 {
        let metadata = path.metadata().expect("it is there");
        assert_eq!((metadata.uid(), metadata.gid()), (12345, 54321));
        assert!(load::who(path.as_path()).is_some());
        supervisor.reload(2);
    }
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(names(folder.path()), BTreeSet::new());
}

/// The result of `bind` in a worker with these group rights in a folder that only a group may write to.
fn bound_with(groups: &str, expected: &str, made: &BTreeSet<String>) {
    let (outer, _) = address::unix();
    open_to_all(outer.path());
    let folder = outer.path().join("of-a-group");
    fs::create_dir(&folder).expect("ours");
    std::os::unix::fs::chown(&folder, Some(0), Some(54321)).expect("root may");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o770)).expect("ours");
    let text = "
made = socket.socket(socket.AF_UNIX)
say(attempt(lambda: made.bind(sys.argv[2]) or made.listen(64)))
while True: signal.pause()";
    let user = profile::ordinary_user();
    let ids = [format!("--reuid={user}"), format!("--regid={user}"), groups.to_owned()];
    let mut command = vec!["setpriv".to_owned()];
    command.extend(ids);
    command.extend(server(text, &folder.join("app.sock")));
    let supervisor = Supervisor::start(&["--ready", "none"], command);
    assert_eq!(said(&supervisor, 1), lines(&[expected]), "{groups}");
    assert_eq!(&names(&folder), made, "{groups}");
}

#[test]
fn groups_of_a_worker_decide_where_it_binds() {
    needs_root!();
    bound_with("--groups=54321", "ok", &only("app.sock"));
    bound_with("--groups=54320", "EACCES", &BTreeSet::new());
    bound_with("--clear-groups", "EACCES", &BTreeSet::new());
}

#[test]
fn worker_binds_nothing_below_an_unsearchable_directory() {
    needs_root!();
    let (outer, _) = address::unix();
    open_to_all(outer.path());
    // The last folder is everybody's, the one above it root's alone.
    let inner = outer.path().join("private/open");
    fs::create_dir_all(&inner).expect("ours");
    open_to_all(&inner);
    fs::set_permissions(inner.parent().expect("two deep"), fs::Permissions::from_mode(0o700)).expect("ours");
    let text = "
made = socket.socket(socket.AF_UNIX)
say(attempt(lambda: made.bind(sys.argv[2]) or made.listen(64)))
while True: signal.pause()";
    let options = ["--ready", "none", "--user", "nobody"];
    let supervisor = Supervisor::start(&options, server(text, &inner.join("app.sock")));
    assert_eq!(said(&supervisor, 1), lines(&["EACCES"]));
    assert_eq!(names(&inner), BTreeSet::new());
}

#[test]
fn worker_does_not_use_the_supervisors_capabilities() {
    needs_root!();
    let (folder, path) = address::unix();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    // Root without CAP_DAC_OVERRIDE is an ordinary user to a folder that is another one's.
    std::os::unix::fs::chown(folder.path(), Some(12345), Some(12345)).expect("root may");
    let text = "
made = socket.socket(socket.AF_UNIX)
say(attempt(lambda: made.bind(sys.argv[2]) or made.listen(64)))
while True: signal.pause()";
    let mut command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
        .map(str::to_owned)
        .to_vec();
    command.extend(server(text, &path));
    let supervisor = Supervisor::start(&["--ready", "none"], command);
    assert_eq!(said(&supervisor, 1), lines(&["EACCES"]));
    assert_eq!(names(folder.path()), BTreeSet::new());
}

#[test]
fn in_a_chroot_an_absolute_link_stays_in_it() {
    needs_root!();
    let (root, _) = address::unix();
    let (outside, _) = address::unix();
    // The link's target is there on both sides.
    let below = outside.path().strip_prefix("/").expect("temporary folders are absolute");
    let inside = root.path().join(below);
    fs::create_dir_all(&inside).expect("ours");
    symlink(outside.path(), root.path().join("link")).expect("ours");
    let text = "
os.chroot(sys.argv[3]); os.chdir('/')
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[2]); made.listen(64)
say('ready', RELOAD)
serve(made)";
    let mut command = server(text, Path::new("/link/app.sock"));
    command.push(root.path().to_str().expect("UTF-8").to_owned());
    let supervisor = Supervisor::start(&QUICK, command);
    said(&supervisor, 2);
    assert_eq!(names(outside.path()), BTreeSet::new(), "nothing is made outside");
    let path = inside.join("app.sock");
    assert!(load::who(path.as_path()).is_some(), "inside somebody answers: {:?}", names(&inside));
    let new = supervisor.reload(2);
    assert!(load::who(path.as_path()).is_some_and(|pid| new.contains(&pid)));
    assert_eq!(names(outside.path()), BTreeSet::new(), "nothing is made outside");
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(names(&inside), BTreeSet::new());
}

#[test]
fn in_a_chroot_dots_do_not_lead_out() {
    needs_root!();
    let (root, _) = address::unix();
    let jail = root.path().join("jail");
    fs::create_dir(&jail).expect("ours");
    let text = "
os.chroot(sys.argv[3]); os.chdir('/')
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[2]); made.listen(64)
say('ready', RELOAD)
serve(made)";
    for path in ["../app.sock", "/../app.sock"] {
        let mut command = server(text, Path::new(path));
        command.push(jail.to_str().expect("UTF-8").to_owned());
        let supervisor = Supervisor::start(&QUICK, command);
        said(&supervisor, 2);
        assert_eq!(names(&jail), only("app.sock"), "{path}");
        assert_eq!(names(root.path()), only("jail"), "{path}");
        assert_eq!(supervisor.stop(), 0);
    }
}

/// Binds `given` with `cwd` as the working directory, reloads, and finds the socket at `found`.
fn serves_at(cwd: &Path, given: &Path, found: &Path) {
    let builder = Supervisor::builder().args(QUICK).command(server(SERVER, given)).cwd(cwd);
    let supervisor = builder.spawn();
    said(&supervisor, 2);
    // The path may be too long for a client: it comes from within its folder.
    let folder = fs::File::open(found.parent().expect("it has one")).expect("it is there");
    let short = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder)))
        .join(found.file_name().expect("it has one"));
    assert!(load::who(short.as_path()).is_some(), "{}", given.display());
    let new = supervisor.reload(2);
    eventually(TIMEOUT, "the new ones answer", || {
        load::who(short.as_path()).is_some_and(|pid| new.contains(&pid))
    });
    eventually(TIMEOUT, "nothing is left beside it", || {
        let left = names(found.parent().expect("it has one"));
        !left.iter().any(|name| name.starts_with('.'))
    });
    assert_eq!(supervisor.stop(), 0);
    assert!(!found.exists(), "{}", given.display());
}

#[test]
fn relative_paths_are_resolved_in_the_worker() {
    let (folder, path) = address::unix();
    let below = folder.path().join("below");
    fs::create_dir(&below).expect("ours");
    serves_at(folder.path(), Path::new("app.sock"), &path);
    serves_at(folder.path(), Path::new("./app.sock"), &path);
    serves_at(folder.path(), Path::new("below/../app.sock"), &path);
    serves_at(&below, Path::new("../app.sock"), &path);
    symlink(&below, folder.path().join("link")).expect("ours");
    serves_at(folder.path(), Path::new("link/app.sock"), &below.join("app.sock"));
}

#[test]
fn path_of_maximum_length_is_shared_and_reloaded() {
    let (folder, _) = address::unix();
    let room = LONGEST_PATH - folder.path().as_os_str().len() - 1;
    // The name takes it all: there is no room for a longer one beside it.
    let path = folder.path().join("n".repeat(room));
    assert_eq!(path.as_os_str().len(), LONGEST_PATH);
    serves_at(folder.path(), &path, &path);
    // The folders take it all.
    let deep = folder.path().join("d".repeat(room - 2));
    fs::create_dir(&deep).expect("ours");
    serves_at(folder.path(), &deep.join("s"), &deep.join("s"));
}

#[test]
fn relative_path_works_in_a_deep_directory() {
    let (folder, _) = address::unix();
    let deep = folder.path().join(["a-long-name-of-a-folder-for-the-application"; 8].join("/"));
    fs::create_dir_all(&deep).expect("ours");
    serves_at(&deep, Path::new("app.sock"), &deep.join("app.sock"));
}

#[test]
fn mode_and_owner_changed_by_the_program_apply_to_later_generations() {
    needs_root!();
    // Only the first generation does it, before it listens or after.
    let before = "
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[2])
if not RELOAD and INDEX == '0': os.chmod(sys.argv[2], 0o640); os.chown(sys.argv[2], 12345, 54321)
made.listen(64)
say('ready', RELOAD)
serve(made)";
    let after = "
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[2]); made.listen(64)
if not RELOAD and INDEX == '0': os.chmod(sys.argv[2], 0o640); os.chown(sys.argv[2], 12345, 54321)
say('ready', RELOAD)
serve(made)";
    for text in [before, after] {
        let (_folder, path) = address::unix();
        let supervisor = Supervisor::start(&QUICK, server(text, &path));
        // Both say the same line.
        supervisor.eventually("both are ready", || supervisor.output().len() == 2);
        for reloads in 0..3 {
            let found = path.metadata().expect("it is there");
            let access = (found.mode() & 0o7777, found.uid(), found.gid());
            assert_eq!(access, (0o640, 12345, 54321), "after {reloads} reloads: {text}");
            assert!(load::who(path.as_path()).is_some());
            supervisor.reload(2);
        }
        assert_eq!(supervisor.stop(), 0);
    }
}
