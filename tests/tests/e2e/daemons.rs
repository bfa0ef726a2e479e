//! Programs that go into the background, and helpers that are no daemons.

use std::collections::BTreeSet;
use std::time::Duration;

use master_process_tests::load::{self};
use master_process_tests::messages::await_reload_complete;
use master_process_tests::profile::{launcher, ordinary_user};
use master_process_tests::script::{ready_pids, said, script};
use master_process_tests::supervisor::await_gone;
use master_process_tests::{Supervisor, address, always, process};
use rustix::process::Signal;

/// A daemon as the textbook makes it: two forks, a session of its own, and the first process exits with 0.
const DAEMON: &str = "
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
PID = os.getpid()
";

#[test]
fn daemon_is_the_worker_until_it_ends() {
    let text = format!(
        "{DAEMON}
time.sleep(0.3)
made = bound(HOST, PORT); made.listen(64)
say('ready', PID)
serve(made)"
    );
    let address = address::tcp();
    let supervisor = Supervisor::start(&["--throttle", "100ms", "-w", "2"], script(&text, address));
    let daemons = ready_pids(&supervisor, 2);
    assert_eq!(supervisor.logged(&["went into the background", "is now the worker"]).len(), 2, "once each");
    let answers: BTreeSet<i32> = (0..40).filter_map(|_| load::who(address)).collect();
    assert_eq!(answers, daemons.iter().copied().collect());
    // Its end is the worker's end.
    process::signal(daemons[0], Signal::KILL);
    supervisor.eventually("it is replaced", || supervisor.output().len() == 3);
    assert_eq!(supervisor.logged(&[&format!("(pid {})", daemons[0]), "killed by sigkill"]).len(), 1);
    supervisor.signal(Signal::HUP);
    await_reload_complete(&supervisor, 1);
    await_gone(daemons[1]);
    let new = supervisor.until("the old ones are gone", || {
        let alive = ready_pids(&supervisor, 5).into_iter().filter(|pid| process::alive(*pid));
        Some(alive.collect::<BTreeSet<i32>>()).filter(|new| new.len() == 2)
    });
    let answers: BTreeSet<i32> = (0..40).filter_map(|_| load::who(address)).collect();
    assert_eq!(answers, new);
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn daemon_stays_the_worker_after_the_search_timeout() {
    let text = format!("{DAEMON}\nmade = bound(HOST, PORT); made.listen(64)\nsay('ready', PID)\nserve(made)");
    let address = address::tcp();
    let supervisor = Supervisor::start(&[], script(&text, address));
    let daemon = ready_pids(&supervisor, 1)[0];
    supervisor.eventually("it is the worker", || !supervisor.logged(&["is now the worker"]).is_empty());
    // Twice the two seconds within which the answer has to come.
    always(Duration::from_secs(4), "it lives, and no remaining process is logged", || {
        process::alive(daemon) && supervisor.logged(&["behind"]).is_empty()
    });
    assert_eq!(load::who(address), Some(daemon));
    assert_eq!(supervisor.output().len(), 1, "it is not replaced");
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn background_programs_that_never_listen_do_not_accumulate() {
    let text = format!("{DAEMON}\nsay('ready', PID)\ntime.sleep(1000)");
    let options = ["--throttle", "50ms", "--throttle-max", "50ms", "--ready-timeout", "300ms"];
    let supervisor = Supervisor::start(&options, script(&text, address::tcp()));
    let daemons = ready_pids(&supervisor, 4);
    let alive = |pid: &&i32| process::alive(**pid);
    supervisor.eventually("the earlier ones are gone", || daemons[..3].iter().filter(alive).count() == 0);
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

/// Has a helper, in a session of its own and without any listener of the server, and exits with 0 at SIGUSR1. `MADE` makes
/// the listener, and `HELPS` is what the helper does before it sleeps.
fn helped(made: &str, helps: &str, leaves: &str) -> String {
    format!(
        "
{made}
there, here = os.pipe()
helper = os.fork()
if helper == 0:
    os.setsid()
    os.closerange(3, here)
    {helps}
    os.close(here)
    time.sleep(1000)
os.close(here)
os.read(there, 1)
def leave(*_):
    {leaves}
    made.close()
    os._exit(0)
signal.signal(signal.SIGUSR1, leave)
say('helper', helper, PID)
say('ready', PID)
serve(made)"
    )
}

/// The listener of its own address.
const OWN: &str = "made = bound(HOST, PORT); made.listen(64)";

/// The pids that a worker has named first in a line that begins with this word.
fn named(supervisor: &Supervisor, word: &str) -> Vec<i32> {
    supervisor.until("a worker has printed it", || {
        let rest = supervisor.output().iter().find_map(|line| Some(line.strip_prefix(word)?.to_owned()))?;
        rest.split_whitespace().map(|pid| pid.parse().ok()).collect()
    })
}

/// A worker serves, closes its listener and exits with 0; what it leaves behind does not listen and is ended.
fn a_helper_is_no_daemon(options: &[&str], text: &str, address: impl Into<load::Target>) {
    let address = address.into();
    let options = [&["--throttle", "100ms"], options].concat();
    let supervisor = Supervisor::start(&options, script(text, address::tcp()));
    let pids = named(&supervisor, "helper");
    let (helper, server) = (pids[0], pids[1]);
    let count = if options.contains(&"2") { 2 } else { 1 };
    said(&supervisor, 2 * count);
    supervisor.eventually("it serves", || load::who(address.clone()).is_some());
    process::signal(server, Signal::USR1);
    await_gone(helper);
    supervisor.eventually("another one serves", || {
        let ready = supervisor.output().iter().filter(|line| line.starts_with("ready ")).count();
        ready == count + 1 && load::who(address.clone()).is_some()
    });
    let log = || format!("{options:?}: {:?}", supervisor.log());
    let left = supervisor.logged(&["worker", "left 1 process behind", &format!("(pid {helper})")]);
    assert_eq!(left.len(), 1, "{}", log());
    assert!(supervisor.logged(&["went into the background"]).is_empty(), "{}", log());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn helper_without_a_listener_is_not_the_worker() {
    for options in [&[][..], &["--share", "off"], &["--share", "shared", "-w", "2"], &["--monitor", "off"]] {
        let address = address::tcp();
        let made = format!("HOST, PORT = '{}', {}\n{OWN}", address.ip(), address.port());
        a_helper_is_no_daemon(options, &helped(&made, "pass", "pass"), address);
    }
}

#[test]
fn helper_beside_a_shared_path_is_not_the_worker() {
    let (_folder, path) = address::unix();
    let made =
        format!("made = socket.socket(socket.AF_UNIX); made.bind('{}'); made.listen(64)", path.display());
    a_helper_is_no_daemon(&["-w", "2"], &helped(&made, "pass", "pass"), path.as_path());
}

#[test]
fn helper_with_another_listener_is_not_the_worker() {
    let address = address::tcp();
    let made = format!("HOST, PORT = '{}', {}\n{OWN}", address.ip(), address.port());
    let helps = "other = bound(HOST, PORT + 50); other.listen(64)";
    a_helper_is_no_daemon(&[], &helped(&made, helps, "pass"), address);
}

#[test]
fn daemon_with_the_workers_listener_becomes_the_worker() {
    let leaves = "
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        say('daemon', os.getpid())
        serve(made)";
    let address = address::tcp();
    let text = helped(OWN, "pass", leaves.trim_start());
    let supervisor = Supervisor::start(&["--throttle", "100ms"], script(&text, address));
    let server = ready_pids(&supervisor, 2)[0];
    process::signal(server, Signal::USR1);
    let daemon = named(&supervisor, "daemon")[0];
    supervisor.eventually("it is the worker", || {
        !supervisor.logged(&["went into the background", "is now the worker"]).is_empty()
    });
    always(Duration::from_millis(2500), "it serves", || load::who(address) == Some(daemon));
    assert_eq!(ready_pids(&supervisor, 3), [server], "it was not replaced");
    process::signal(daemon, Signal::KILL);
    supervisor.eventually("its end is the worker's end", || ready_pids(&supervisor, 3).len() == 2);
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn daemon_with_unreadable_descriptors_becomes_the_worker() {
    // PR_SET_DUMPABLE(2const): what it has open is root's to see.
    let text = "
import ctypes
made = bound(HOST, PORT); made.listen(64)
def leave(*_):
    ctypes.CDLL(None).prctl(4, 0)
    if os.fork(): os._exit(0)
    os.setsid()
    say('daemon', os.getpid())
    serve(made)
signal.signal(signal.SIGUSR1, leave)
say('ready', PID)
serve(made)";
    let address = address::tcp();
    let builder = Supervisor::builder().args(["--throttle", "100ms"]).command(script(text, address));
    let supervisor = builder.wrap(launcher(Some(ordinary_user()), &[])).spawn();
    let server = ready_pids(&supervisor, 1)[0];
    process::signal(server, Signal::USR1);
    let daemon = named(&supervisor, "daemon")[0];
    supervisor.eventually("it is the worker", || {
        let line = [&format!("(pid {daemon})"), "is now the worker"];
        !supervisor.logged(&line).is_empty()
    });
    always(Duration::from_millis(2500), "it serves", || load::who(address) == Some(daemon));
    assert_eq!(ready_pids(&supervisor, 2), [server], "it was not replaced");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn daemon_that_notified_early_becomes_the_worker() {
    let text = "
there, here = os.pipe()
if os.fork():
    os.close(here)
    os.read(there, 1)
    os._exit(0)
os.setsid()
notify()
say('ready', os.getpid())
os.close(here)
time.sleep(1000)";
    let options = ["--ready", "notify", "--throttle", "100ms"];
    let supervisor = Supervisor::start(&options, script(text, address::tcp()));
    let daemon = ready_pids(&supervisor, 1)[0];
    supervisor.eventually("it is the worker", || {
        let line = [&format!("(pid {daemon})"), "is now the worker"];
        !supervisor.logged(&line).is_empty()
    });
    always(Duration::from_millis(1500), "it is not stopped", || process::alive(daemon));
    assert_eq!(ready_pids(&supervisor, 1), [daemon]);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn remains_of_an_unready_worker_are_killed_after_ready_timeout() {
    // The helper may still say that it is ready: it has the time-out for that.
    let text =
        format!("{}\nos.kill(PID, signal.SIGUSR1)", helped(OWN, "pass", "pass").replace("\nserve(made)", ""));
    let options =
        ["--ready", "notify", "--ready-timeout", "300ms", "--throttle", "100ms", "--throttle-max", "100ms"];
    let supervisor = Supervisor::start(&options, script(&text, address::tcp()));
    let helper = named(&supervisor, "helper")[0];
    await_gone(helper);
    let line = [&format!("(pid {helper})"), "is not listening: stopping it"];
    supervisor.eventually("it is logged", || !supervisor.logged(&line).is_empty());
    supervisor.eventually("another worker is started", || ready_pids(&supervisor, 4).len() > 1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn notification_of_a_daemon_is_accepted() {
    let text = format!(
        "{DAEMON}
where = os.environ['NOTIFY_SOCKET']
told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
while not os.path.exists('/proc/%d' % os.getppid()): pass
time.sleep(0.2)
told.sendto(b'READY=1', where)
say('ready', PID)
time.sleep(1000)"
    );
    let supervisor = Supervisor::start(&["--ready", "notify"], script(&text, address::tcp()));
    ready_pids(&supervisor, 1);
    supervisor.eventually("it is ready", || !supervisor.logged(&[": notified"]).is_empty());
    assert_eq!(supervisor.stop(), 0);
}
