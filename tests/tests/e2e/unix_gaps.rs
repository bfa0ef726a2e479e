//! Whom clients find at a Unix path when workers come at odd moments: before, in and after a reload.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use master_process_tests::clients::{answers, waiting_clients};
use master_process_tests::load::{self, Connections, Load};
use master_process_tests::script::{said, script};
use master_process_tests::traffic::nothing_is_lost;
use master_process_tests::{Supervisor, address, process};
use rustix::process::Signal;
use tempfile::TempDir;

/// What a test's program does with its socket: `listening()` makes it, `told()` whether the test has said go.
const FUNCTIONS: &str = "
def listening():
    made = socket.socket(socket.AF_UNIX)
    made.bind(sys.argv[2]); made.listen(64)
    say('ready', RELOAD)
    return made
def told():
    return os.path.exists(sys.argv[3])
def wait():
    while not told(): time.sleep(0.01)
";

/// A supervisor of one program on a Unix path, and the file by which the test speaks to it.
struct Site {
    supervisor: Supervisor,
    folder: TempDir,
    other: TempDir,
}

impl Site {
    fn start(options: &[&str], text: &str) -> Site {
        let [folder, other] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let mut command = script(&format!("{FUNCTIONS}{text}"), address::tcp());
        let words = [folder.path().join("app.sock"), other.path().join("told")];
        command.extend(words.map(|word| word.to_str().expect("UTF-8").to_owned()));
        Site { supervisor: Supervisor::start(options, command), folder, other }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("app.sock")
    }

    fn tell(&self) {
        fs::write(self.other.path().join("told"), "").expect("ours");
    }

    /// Waits until each of these has answered at the path, and nothing else is in its folder.
    fn answer(&self, expected: &BTreeSet<i32>) {
        let mut seen = BTreeSet::new();
        self.supervisor.eventually("all of them are found at the path", || {
            // Each takes one connection after the other: those that are open at once go to several.
            seen.extend(answers(waiting_clients(self.path().as_path(), expected.len())));
            seen.is_superset(expected)
        });
        assert_eq!(&seen, expected, "only they answer");
    }

    fn leaves_one_file(&self) {
        self.supervisor.eventually("nothing else is in the folder", || {
            let entries = fs::read_dir(self.folder.path()).expect("the folder is there");
            entries.map(|entry| entry.expect("read").file_name()).eq(["app.sock"])
        });
    }
}

#[test]
fn reload_before_the_first_start_is_complete_reaches_every_worker() {
    // Of the first generation only worker 0 gets ready; of the next it is the last.
    let text = "
if not RELOAD and INDEX != '0': time.sleep(1000)
if RELOAD and INDEX == '0': wait()
serve(listening())";
    let site = Site::start(&["-w", "4", "--throttle", "100ms"], text);
    said(&site.supervisor, 1);
    let old = site.supervisor.await_workers(4);
    let clients = Load::start(site.path().as_path(), 4, Connections::Fresh);
    site.supervisor.signal(Signal::HUP);
    site.supervisor.eventually("three are ready", || site.supervisor.output().len() == 4);
    site.tell();
    let new = site.supervisor.until("the old ones are gone", || {
        Some(site.supervisor.workers()).filter(|new| new.len() == 4 && new.is_disjoint(&old))
    });
    nothing_is_lost(clients);
    site.answer(&new);
    site.leaves_one_file();
}

#[test]
fn unlink_before_bind_keeps_a_siblings_bound_socket() {
    // As php-fpm does it: check whether another instance answers, remove the file, bind.
    let text = "
made = socket.socket(socket.AF_UNIX)
if INDEX == '0':
    made.bind(sys.argv[2])
    wait()
else:
    while not os.path.exists(sys.argv[2]): time.sleep(0.01)
    say(attempt(lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[2])), attempt(lambda: os.unlink(sys.argv[2])))
    made.bind(sys.argv[2])
    open(sys.argv[3], 'w').close()
made.listen(64)
say('listens')
serve(made)";
    let site = Site::start(&["-w", "2"], text);
    said(&site.supervisor, 3);
    site.answer(&site.supervisor.await_workers(2));
    assert_eq!(site.supervisor.output().first().map(String::as_str), Some("ECONNREFUSED ok"));
    site.leaves_one_file();
}

#[test]
fn concurrent_unlink_and_bind_reaches_every_worker() {
    // Whatever comes first: no unlink comes to the kernel after a sibling's bind.
    let text = "
wait()
made = socket.socket(socket.AF_UNIX)
attempt(lambda: os.unlink(sys.argv[2]))
made.bind(sys.argv[2])
made.listen(64)
say(os.readlink(f'/proc/self/fd/{made.fileno()}'), os.path.exists(sys.argv[2]))
serve(made)";
    for _round in 0..20 {
        let site = Site::start(&["-w", "8"], text);
        // What an earlier run has left.
        drop(UnixListener::bind(site.path()).expect("the folder is ours"));
        site.supervisor.await_workers(8);
        site.tell();
        said(&site.supervisor, 8);
        let sockets: BTreeSet<String> = site.supervisor.output().into_iter().collect();
        assert_eq!(sockets.len(), 1, "{sockets:?}");
        assert!(sockets.iter().all(|line| line.ends_with("True")), "{sockets:?}");
        assert!(load::who(site.path().as_path()).is_some());
        site.leaves_one_file();
    }
}

#[test]
fn replacement_of_a_crash_during_a_reload_is_reachable_after_it() {
    let text = "
if RELOAD and INDEX == '0': wait()
serve(listening())";
    let site = Site::start(&["-w", "3", "--throttle", "100ms", "--reload-batch", "1"], text);
    said(&site.supervisor, 3);
    let old = site.supervisor.await_workers(3);
    site.answer(&old);
    site.supervisor.signal(Signal::HUP);
    let waiting = site.supervisor.await_workers(4).difference(&old).copied().collect::<BTreeSet<_>>();
    // The others' turn comes after worker 0's.
    let crashed = *old.iter().max().expect("three");
    process::signal(crashed, Signal::KILL);
    site.supervisor.eventually("it is replaced", || site.supervisor.output().len() == 4);
    let replaced: BTreeSet<i32> = site.supervisor.workers().difference(&old).copied().collect();
    assert_eq!(replaced.difference(&waiting).count(), 1, "{replaced:?} beside {waiting:?}");
    site.answer(&replaced.difference(&waiting).copied().collect());
    site.tell();
    let new = site.supervisor.until("the old ones are gone", || {
        Some(site.supervisor.workers()).filter(|new| new.len() == 3 && new.is_disjoint(&old))
    });
    site.answer(&new);
    site.leaves_one_file();
}

#[test]
fn half_failed_reload_keeps_the_path_of_the_majority() {
    // Worker 0 is replaced, worker 1 cannot be.
    let text = "
if RELOAD and INDEX == '1' and not told(): sys.exit(1)
serve(listening())";
    let quick = ["--throttle", "50ms", "--throttle-max", "50ms", "--drain", "50ms"];
    let options = [&["-w", "3", "--reload-batch", "1", "--reload-attempts", "2"], &quick[..]].concat();
    let site = Site::start(&options, text);
    said(&site.supervisor, 3);
    let old = site.supervisor.await_workers(3);
    let clients = Load::start(site.path().as_path(), 4, Connections::Fresh);
    site.supervisor.signal(Signal::HUP);
    site.supervisor
        .eventually("the reload fails", || site.supervisor.logged(&["reload", "failed: "]).len() == 1);
    let kept = site.supervisor.until("two old ones are left", || {
        let both = &site.supervisor.workers() & &old;
        Some(both).filter(|both| both.len() == 2 && site.supervisor.workers().len() == 3)
    });
    site.supervisor.eventually("an old one answers", || {
        load::who(site.path().as_path()).is_some_and(|pid| kept.contains(&pid))
    });
    nothing_is_lost(clients);
    site.answer(&kept);
    // A later worker joins the serving ones, whatever their generation; and so does the one that was replaced.
    site.tell();
    for crashed in
        [*kept.iter().max().expect("two"), *(&site.supervisor.workers() - &kept).first().expect("one")]
    {
        process::signal(crashed, Signal::KILL);
        site.supervisor.eventually("it is replaced", || {
            let workers = site.supervisor.workers();
            workers.len() == 3 && !workers.contains(&crashed)
        });
    }
    site.answer(&site.supervisor.workers());
    site.leaves_one_file();
}

#[test]
fn queued_connections_are_served_by_the_next_release() {
    let site = Site::start(&["-w", "2", "--throttle", "20s"], "serve(listening())");
    said(&site.supervisor, 2);
    let old = site.supervisor.await_workers(2);
    old.iter().for_each(|pid| process::signal(*pid, Signal::KILL));
    site.supervisor.await_workers(0);
    let waiting = waiting_clients(site.path().as_path(), 1);
    site.supervisor.signal(Signal::HUP);
    let new = site.supervisor.await_workers(2);
    assert!(new.contains(&answers(waiting)[0]));
    site.answer(&new);
    site.leaves_one_file();
}

#[test]
fn queue_of_a_failed_attempt_is_served_by_the_next_one() {
    // The first attempt does not accept; the second one is there once the test has let the first one exit.
    let text = "
if RELOAD and not told():
    made = listening()
    wait(); sys.exit(1)
serve(listening())";
    let site = Site::start(&["-w", "1", "--throttle", "3s", "--throttle-max", "3s"], text);
    said(&site.supervisor, 1);
    let old = site.supervisor.await_workers(1);
    site.supervisor.signal(Signal::HUP);
    site.supervisor.eventually("the new one listens", || site.supervisor.output().len() == 2);
    site.supervisor.await_rest();
    let waiting = waiting_clients(site.path().as_path(), 1);
    site.tell();
    site.supervisor.eventually("it is dead", || site.supervisor.logged(&["exited with code 1"]).len() == 1);
    site.supervisor.await_rest();
    site.answer(&old);
    assert!(!old.contains(&answers(waiting)[0]), "by the next attempt, not by the old one");
    site.leaves_one_file();
}
