//! Workers of several processes: wrappers, daemons, children in sessions of their own, and whoever forks without end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use master_process_tests::cgroup::Place;
use master_process_tests::load::{self, Kept, Outcome};
use master_process_tests::profile::{launcher, ordinary_user};
use master_process_tests::script::{said, script};
use master_process_tests::supervisor::await_gone;
use master_process_tests::{Supervisor, address, always, process, scaled, skip};
use rustix::process::Signal;

/// Serves one request after the other, and ends at SIGTERM when the one that it is at is answered.
const GRACEFUL: &str = "
busy = ending = False
def term(*_):
    global ending
    ending = True
    if not busy: sys.exit(0)
signal.signal(signal.SIGTERM, term)
made = bound(HOST, PORT); made.listen(64)
say('ready', PID)
while not ending:
    connection, _ = made.accept()
    busy = True
    reply(connection, AFTER)
    busy = False
";

/// How long what a crashed worker leaves behind has until SIGKILL, and a good deal for the machine.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// A server that ignores the stop signal.
const UNHEEDING: &str = "
signal.signal(signal.SIGTERM, signal.SIG_IGN)
made = bound(HOST, PORT); made.listen(64)
say('ready', PID)
serve(made)";

/// A shell that stays the parent of the program: it does not hand its stop signal on.
fn wrapped(program: Vec<String>) -> Vec<String> {
    let shell = ["sh", "-c", "\"$@\"; true", "sh"].map(str::to_owned).to_vec();
    [shell, program].concat()
}

fn graceful(address: SocketAddr, after: f32) -> Vec<String> {
    script(&format!("AFTER = {after}\n{GRACEFUL}"), address)
}

/// The pids that the servers have printed.
fn servers(supervisor: &Supervisor, count: usize) -> Vec<i32> {
    let lines = said(supervisor, count);
    lines.iter().filter_map(|line| line.strip_prefix("ready ")?.parse().ok()).collect()
}

#[test]
fn a_request_that_a_wrapped_server_is_at_is_answered_in_a_reload_and_nobody_old_answers_after_it() {
    let address = address::tcp();
    let options = ["--drain", "50ms", "--kill-timeout", "20s"];
    let supervisor = Supervisor::start(&options, wrapped(graceful(address, 1.5)));
    let old = servers(&supervisor, 1)[0];
    let mut slow = Kept::open(address).expect("it listens");
    slow.ask().expect("it accepts");
    supervisor.eventually("the server is at it", || !process::descriptors(old).is_empty());
    supervisor.signal(Signal::HUP);
    assert_eq!(slow.answer(), Outcome::Ok(old.to_string()));
    supervisor.eventually("the reload is complete", || !supervisor.logged(&["complete after"]).is_empty());
    await_gone(old);
    let line = format!("worker 0 left 1 process behind: python3 (pid {old})");
    let name = supervisor.logged(&["worker 0 left 1 process behind", &format!("(pid {old})")]);
    assert_eq!(name.len(), 1, "{line}: {:?}", supervisor.log());
    assert_ne!(load::who(address), Some(old));
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn what_a_killed_wrapper_leaves_behind_is_ended_and_the_replacement_does_not_wait_for_it() {
    let address = address::tcp();
    // Its own time would be over long after the test.
    let options = ["-w", "2", "--throttle", "100ms", "--kill-timeout", "600s"];
    let supervisor = Supervisor::start(&options, wrapped(script(UNHEEDING, address)));
    let old: BTreeSet<i32> = servers(&supervisor, 2).into_iter().collect();
    let wrappers = supervisor.await_workers(2);
    let victim = *wrappers.first().expect("two");
    let left = process::children(victim)[0].pid;
    assert!(old.contains(&left));
    process::signal(victim, Signal::KILL);
    let begun = Instant::now();
    supervisor.eventually("a replacement listens", || supervisor.output().len() == 3);
    await_gone(left);
    assert!(begun.elapsed() < scaled(GONE_WITHIN), "{:?}", begun.elapsed());
    assert_eq!(supervisor.logged(&["left 1 process behind", &format!("(pid {left})")]).len(), 1);
    // The replacement answers, and the other one that was there before.
    for _ in 0..20 {
        assert_ne!(load::who(address), Some(left));
    }
    // The other one ignores the stop signal as well, and has 600 s for it: a second one ends it at once.
    supervisor.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

/// It closes its listener at SIGTERM, and lives on as if it finished something.
#[test]
fn who_waits_for_what_a_killed_wrapper_left_behind_is_answered_by_the_others_as_soon_as_that_has_closed_its_listener()
 {
    let name = "who_waits_for_what_a_killed_wrapper_left_behind_is_answered_by_the_others_as_soon_as_that_has_closed_its_listener";
    if !process::is_root() {
        skip!(name, "only root can have the kernel move a queue");
    }
    let text = "
made = bound(HOST, PORT); made.listen(64)
signal.signal(signal.SIGTERM, lambda *_: made.close())
try:
    os.close(os.open(sys.argv[2], os.O_CREAT | os.O_EXCL))
    say('sleeper', PID)
    while True: signal.pause()
except FileExistsError:
    say('ready', PID)
    serve(made)";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let address = address::tcp();
    let mut command = script(text, address);
    command.push(folder.path().join("taken").to_str().expect("UTF-8").to_owned());
    let supervisor = Supervisor::start(&["-w", "2", "--kill-timeout", "600s"], wrapped(command));
    let sleeper: i32 = said(&supervisor, 2)
        .iter()
        .find_map(|line| line.strip_prefix("sleeper ")?.parse().ok())
        .expect("one is");
    supervisor.eventually("both listen", || supervisor.logged(&["ready after", "listening"]).len() == 2);
    let mut waiting: Vec<Kept> = (0..16).map(|_| Kept::open(address).expect("it listens")).collect();
    waiting.iter_mut().for_each(|client| client.ask().expect("it is connected"));
    process::signal(process::stat(sleeper).expect("it lives").ppid, Signal::KILL);
    for client in &mut waiting {
        let answer = client.answer();
        assert!(matches!(answer, Outcome::Ok(_)), "{answer:?}");
    }
    assert!(process::alive(sleeper), "it is at something");
    process::signal(sleeper, Signal::KILL);
    supervisor.eventually("it is gone", || supervisor.survivors().len() == 4);
}

#[test]
fn what_a_killed_wrapper_leaves_behind_is_ended_long_before_its_time_where_the_replacement_needs_its_port() {
    let address = address::tcp();
    let options = ["--share", "off", "--throttle", "100ms", "--kill-timeout", "600s"];
    let supervisor = Supervisor::start(&options, wrapped(script(UNHEEDING, address)));
    let old = servers(&supervisor, 1)[0];
    process::signal(*supervisor.await_workers(1).first().expect("one"), Signal::KILL);
    servers(&supervisor, 2);
    assert!(!process::alive(old));
}

/// A child in a session of its own, without the worker's environment, whose parent is killed.
fn a_detached_child_is_its_workers(options: &[&str], user: Option<u32>) {
    let text = "
child = os.fork()
if child == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.execve(sys.executable, [sys.executable, '-S', '-E', '-c', 'import time; time.sleep(1000)'], {})
made = bound(HOST, PORT); made.listen(64)
say('child', child)
serve(made)";
    let options = [options, &["--throttle", "100ms", "--kill-timeout", "1s"]].concat();
    let builder = Supervisor::builder().args(&options).command(script(text, address::tcp()));
    let supervisor = match user {
        Some(user) => builder.wrap(launcher(Some(user), &[])).spawn(),
        None => builder.spawn(),
    };
    let count = if options.contains(&"-w") { 2 } else { 1 };
    let lines = said(&supervisor, count);
    let child: i32 =
        lines.iter().find_map(|line| line.strip_prefix("child ")?.parse().ok()).expect("it says");
    let worker = process::stat(child).expect("it lives").ppid;
    supervisor.eventually("it is another program", || process::environment(child).len() <= 1);
    if options.contains(&"procfs") {
        let stat = std::path::PathBuf::from(format!("/proc/{child}/stat"));
        supervisor.eventually("a sample has seen it", || {
            process::descriptors(supervisor.pid()).iter().any(|(_, file)| *file == stat)
        });
    }
    process::signal(worker, Signal::KILL);
    await_gone(child);
    supervisor.eventually("it is told of", || {
        !supervisor.logged(&["left 1 process behind", &format!("(pid {child})")]).is_empty()
    });
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn a_detached_child_without_an_environment_is_the_only_workers() {
    a_detached_child_is_its_workers(&["--monitor", "off"], None);
}

#[test]
fn a_detached_child_without_an_environment_is_the_only_workers_for_an_ordinary_user() {
    a_detached_child_is_its_workers(&["--monitor", "off"], Some(ordinary_user()));
}

#[test]
fn a_detached_child_without_an_environment_is_its_workers_where_procfs_has_seen_it() {
    a_detached_child_is_its_workers(&["-w", "2", "--monitor", "procfs", "--monitor-interval", "100ms"], None);
}

#[test]
fn a_detached_child_without_an_environment_is_its_workers_where_its_birth_was_seen_in_the_kernel() {
    if !process::is_root() {
        skip!(
            "a_detached_child_without_an_environment_is_its_workers_where_its_birth_was_seen_in_the_kernel",
            "it takes root"
        );
    }
    a_detached_child_is_its_workers(&["-w", "2", "--monitor", "ebpf"], None);
}

/// A daemon as the textbook makes it: two forks, a session of its own, and the first process exits with 0.
const DAEMON: &str = "
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
PID = os.getpid()
";

#[test]
fn a_daemon_is_the_worker_from_its_first_process_exit_to_its_own_end() {
    let text = format!(
        "{DAEMON}
time.sleep(0.3)
made = bound(HOST, PORT); made.listen(64)
say('ready', PID)
serve(made)"
    );
    let address = address::tcp();
    let supervisor = Supervisor::start(&["--throttle", "100ms", "-w", "2"], script(&text, address));
    let daemons = servers(&supervisor, 2);
    assert_eq!(supervisor.logged(&["went into the background", "is now the worker"]).len(), 2, "once each");
    let answers: BTreeSet<i32> = (0..40).filter_map(|_| load::who(address)).collect();
    assert_eq!(answers, daemons.iter().copied().collect());
    // Its end is the worker's end.
    process::signal(daemons[0], Signal::KILL);
    supervisor.eventually("it is replaced", || supervisor.output().len() == 3);
    assert_eq!(supervisor.logged(&[&format!("(pid {})", daemons[0]), "killed by sigkill"]).len(), 1);
    supervisor.signal(Signal::HUP);
    supervisor.eventually("the reload is complete", || !supervisor.logged(&["complete after"]).is_empty());
    await_gone(daemons[1]);
    let new = supervisor.until("the old ones are gone", || {
        let alive = servers(&supervisor, 5).into_iter().filter(|pid| process::alive(*pid));
        Some(alive.collect::<BTreeSet<i32>>()).filter(|new| new.len() == 2)
    });
    let answers: BTreeSet<i32> = (0..40).filter_map(|_| load::who(address)).collect();
    assert_eq!(answers, new);
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn a_daemon_stays_the_worker_when_the_time_to_find_out_who_is_left_is_over() {
    let text = format!("{DAEMON}\nmade = bound(HOST, PORT); made.listen(64)\nsay('ready', PID)\nserve(made)");
    let address = address::tcp();
    let supervisor = Supervisor::start(&[], script(&text, address));
    let daemon = servers(&supervisor, 1)[0];
    supervisor.eventually("it is the worker", || !supervisor.logged(&["is now the worker"]).is_empty());
    // Twice the two seconds within which the answer has to come.
    always(Duration::from_secs(4), "it lives, and nobody is taken to be left behind", || {
        process::alive(daemon) && supervisor.logged(&["behind"]).is_empty()
    });
    assert_eq!(load::who(address), Some(daemon));
    assert_eq!(supervisor.output().len(), 1, "it is not replaced");
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn what_goes_into_the_background_and_never_listens_does_not_pile_up() {
    let text = format!("{DAEMON}\nsay('ready', PID)\ntime.sleep(1000)");
    let options = ["--throttle", "50ms", "--throttle-max", "50ms", "--ready-timeout", "300ms"];
    let supervisor = Supervisor::start(&options, script(&text, address::tcp()));
    let daemons = servers(&supervisor, 4);
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
    supervisor.until("a worker says so", || {
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
fn a_helper_that_does_not_listen_is_no_daemon() {
    for options in [&[][..], &["--share", "off"], &["--share", "shared", "-w", "2"], &["--monitor", "off"]] {
        let address = address::tcp();
        let made = format!("HOST, PORT = '{}', {}\n{OWN}", address.ip(), address.port());
        a_helper_is_no_daemon(options, &helped(&made, "pass", "pass"), address);
    }
}

#[test]
fn a_helper_of_a_worker_at_a_path_that_its_sibling_serves_as_well_is_no_daemon() {
    let (_folder, path) = address::unix();
    let made =
        format!("made = socket.socket(socket.AF_UNIX); made.bind('{}'); made.listen(64)", path.display());
    a_helper_is_no_daemon(&["-w", "2"], &helped(&made, "pass", "pass"), path.as_path());
}

#[test]
fn a_helper_that_listens_elsewhere_in_a_session_of_its_own_is_no_daemon() {
    let address = address::tcp();
    let made = format!("HOST, PORT = '{}', {}\n{OWN}", address.ip(), address.port());
    let helps = "other = bound(HOST, PORT + 50); other.listen(64)";
    a_helper_is_no_daemon(&[], &helped(&made, helps, "pass"), address);
}

#[test]
fn a_daemon_that_has_the_listener_of_a_worker_that_served_is_kept() {
    let leaves = "
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        say('daemon', os.getpid())
        serve(made)";
    let address = address::tcp();
    let text = helped(OWN, "pass", leaves.trim_start());
    let supervisor = Supervisor::start(&["--throttle", "100ms"], script(&text, address));
    let server = servers(&supervisor, 2)[0];
    process::signal(server, Signal::USR1);
    let daemon = named(&supervisor, "daemon")[0];
    supervisor.eventually("it is the worker", || {
        !supervisor.logged(&["went into the background", "is now the worker"]).is_empty()
    });
    always(Duration::from_millis(2500), "it serves", || load::who(address) == Some(daemon));
    assert_eq!(servers(&supervisor, 3), [server], "nobody was started in its place");
    process::signal(daemon, Signal::KILL);
    supervisor.eventually("its end is the worker's end", || servers(&supervisor, 3).len() == 2);
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn a_daemon_whose_descriptors_may_not_be_looked_at_is_kept() {
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
    let server = servers(&supervisor, 1)[0];
    process::signal(server, Signal::USR1);
    let daemon = named(&supervisor, "daemon")[0];
    supervisor.eventually("it is the worker", || {
        let line = [&format!("(pid {daemon})"), "is now the worker"];
        !supervisor.logged(&line).is_empty()
    });
    always(Duration::from_millis(2500), "it serves", || load::who(address) == Some(daemon));
    assert_eq!(servers(&supervisor, 2), [server], "nobody was started in its place");
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_daemon_that_has_said_that_it_is_ready_before_its_first_process_exits_is_kept() {
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
    let daemon = servers(&supervisor, 1)[0];
    supervisor.eventually("it is the worker", || {
        let line = [&format!("(pid {daemon})"), "is now the worker"];
        !supervisor.logged(&line).is_empty()
    });
    always(Duration::from_millis(1500), "it is left in peace", || process::alive(daemon));
    assert_eq!(servers(&supervisor, 1), [daemon]);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn what_a_worker_that_was_not_ready_leaves_behind_and_does_not_listen_is_ended_after_the_ready_timeout() {
    // The helper may still say that it is ready: it has the time-out for that.
    let text =
        format!("{}\nos.kill(PID, signal.SIGUSR1)", helped(OWN, "pass", "pass").replace("\nserve(made)", ""));
    let options =
        ["--ready", "notify", "--ready-timeout", "300ms", "--throttle", "100ms", "--throttle-max", "100ms"];
    let supervisor = Supervisor::start(&options, script(&text, address::tcp()));
    let helper = named(&supervisor, "helper")[0];
    await_gone(helper);
    let line = [&format!("(pid {helper})"), "is not listening: stopping it"];
    supervisor.eventually("it is told of", || !supervisor.logged(&line).is_empty());
    supervisor.eventually("another worker is started", || servers(&supervisor, 4).len() > 1);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn with_stop_group_tree_everybody_gets_the_stop_signal_at_once() {
    // The wrapper waits for its child, whatever signal comes.
    let text = "
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, lambda *_: (say('asked'), os._exit(0)))
    made = bound(HOST, PORT); made.listen(64)
    say('ready', os.getpid())
    serve(made)
signal.signal(signal.SIGTERM, lambda *_: None)
os.waitpid(child, 0)
sys.exit(0)";
    let options = ["--stop-group", "tree", "--kill-timeout", "60s"];
    let supervisor = Supervisor::start(&options, script(text, address::tcp()));
    servers(&supervisor, 1);
    assert_eq!(supervisor.stop(), 0, "long before the kill time-out");
    assert!(supervisor.output().contains(&"asked".to_owned()));
    assert!(supervisor.logged(&["sending sigkill"]).is_empty());
}

#[test]
fn of_a_worker_that_is_killed_nobody_is_left_however_deep_its_tree() {
    let text = "
depth = 0
while depth < 200 and os.fork() == 0:
    depth += 1
    if depth % 3 == 0: os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if depth == 200: say('deep')
if depth == 0:
    made = bound(HOST, PORT); made.listen(64)
    say('ready', PID)
    serve(made)
time.sleep(1000)";
    let options = ["--kill-timeout", "300ms", "-w", "2"];
    let supervisor = Supervisor::start(&options, script(text, address::tcp()));
    supervisor.eventually("all are there", || supervisor.output().len() == 4);
    assert!(supervisor.survivors().len() >= 402);
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn a_worker_that_forks_without_end_is_ended_and_holds_nobody_up() {
    // Of the children of each chain nobody lives for long, and every one is handed to the supervisor.
    let text = "
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if INDEX == '0':
    made = bound(HOST, PORT); made.listen(64)
    say('ready', PID)
    serve(made)
for child in range(500):
    if os.fork() == 0: time.sleep(1000)
for chain in range(20):
    if os.fork() == 0:
        while True:
            if os.fork(): os._exit(0)
say('bomb', PID)
while True: time.sleep(1)";
    let address = address::tcp();
    let options =
        ["-w", "2", "--kill-timeout", "500ms", "--monitor", "off", "--ready", "none", "--throttle", "60s"];
    let supervisor = Supervisor::start(&options, script(text, address));
    let bomb = said(&supervisor, 2).iter().find_map(|line| line.strip_prefix("bomb ")?.parse().ok());
    let bomb: i32 = bomb.expect("it says so");
    supervisor.eventually("the other one answers", || load::who(address).is_some());
    // The loop goes on: it reads signals meanwhile.
    supervisor.signal(Signal::USR2);
    supervisor.eventually("it hears", || !supervisor.logged(&["limits of all workers paused"]).is_empty());
    process::signal(bomb, Signal::KILL);
    supervisor.eventually("its end is told of", || {
        !supervisor.logged(&[&format!("(pid {bomb})"), "killed by sigkill"]).is_empty()
    });
    supervisor.eventually("nobody is left but the other one", || supervisor.survivors().len() == 1);
    assert!(load::who(address).is_some());
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn a_daemon_that_says_it_is_ready_is_heard() {
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
    servers(&supervisor, 1);
    supervisor.eventually("it is ready", || !supervisor.logged(&[": notified"]).is_empty());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn what_a_daemon_beside_its_worker_uses_is_its_workers_where_procfs_measures() {
    let text = "
made = bound(HOST, PORT); made.listen(64)
say('ready', PID)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        used = b'x' * (200 << 20) if INDEX == '0' else b''
        time.sleep(1000)
    os._exit(0)
serve(made)";
    let limits = ["--max-memory", "100MiB", "--memory-failures", "2", "--monitor-delay", "0"];
    let options = [&["-w", "2", "--monitor", "procfs", "--monitor-interval", "100ms"][..], &limits].concat();
    let supervisor = Supervisor::start(&options, script(text, address::tcp()));
    servers(&supervisor, 2);
    supervisor.eventually("it is over its limit", || {
        !supervisor.logged(&["worker 0", "exceeded --max-memory ("]).is_empty()
    });
    assert!(supervisor.logged(&["worker 1", "exceeded --max-memory ("]).is_empty());
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

/// A child that has become another user in a session of its own, and uses a good deal of memory.
const OTHER_USER: &str = "
child = os.fork()
if child == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    used = b'x' * (100 << 20)
    say('child', INDEX, PID, os.getpid())
    time.sleep(1000)
signal.signal(signal.SIGUSR1, lambda *_: say('high', PID))
made = bound(HOST, PORT); made.listen(64)
serve(made)";

/// Each of two workers has a child of another user: it is measured as the worker's, and ended with it.
fn a_child_of_another_user_is_its_workers(options: &[&str], launcher: Vec<String>) {
    let limits = ["--max-memory", "140MiB", "--memory-high-signal", "USR1", "--monitor-delay", "0"];
    let quick = ["-w", "2", "--monitor-interval", "100ms", "--kill-timeout", "1s", "--throttle", "100ms"];
    let supervisor = Supervisor::builder()
        .args(limits)
        .args(quick)
        .args(options)
        .wrap(launcher)
        .command(script(OTHER_USER, address::tcp()))
        .spawn();
    let children = || -> Vec<(String, i32, i32)> {
        let lines = supervisor.output().into_iter();
        let found = lines.filter_map(|line| {
            let words: Vec<&str> = line.strip_prefix("child ")?.split(' ').collect();
            Some((words[0].to_owned(), words[1].parse().ok()?, words[2].parse().ok()?))
        });
        found.collect()
    };
    let measured = |worker: i32| supervisor.output().contains(&format!("high {worker}"));
    supervisor.eventually("the memory of both is their workers'", || {
        let children = children();
        children.len() == 2 && children.iter().all(|(_, worker, _)| measured(*worker))
    });
    let (slot, worker, child) = children().remove(0);
    assert_eq!(process::status(child, "Uid").as_deref(), Some("65534\t65534\t65534\t65534"));
    process::signal(worker, Signal::KILL);
    await_gone(child);
    let (left, who) = (format!("worker {slot} left 1 process behind"), format!("(pid {child})"));
    supervisor.eventually("it is told of", || !supervisor.logged(&[&left, &who]).is_empty());
    supervisor.eventually("the replacement has one", || children().len() == 3);
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn a_child_that_became_another_user_is_its_workers_where_its_birth_was_seen_in_the_kernel() {
    if !process::is_root() {
        skip!(
            "a_child_that_became_another_user_is_its_workers_where_its_birth_was_seen_in_the_kernel",
            "it takes root"
        );
    }
    a_child_of_another_user_is_its_workers(&["--monitor", "ebpf"], Vec::new());
}

/// As in a container: root may not look into the processes of other users.
#[test]
fn a_child_that_became_another_user_is_its_workers_where_its_environment_cannot_be_read() {
    if !process::is_root() {
        skip!(
            "a_child_that_became_another_user_is_its_workers_where_its_environment_cannot_be_read",
            "it takes root"
        );
    }
    let launcher = ["setpriv", "--bounding-set", "-sys_ptrace"].map(str::to_owned).to_vec();
    a_child_of_another_user_is_its_workers(&["--monitor", "procfs"], launcher);
}

#[test]
fn a_child_that_became_another_user_is_its_workers_in_a_cgroup() {
    let Some(place) = Place::make(true).filter(|_| process::is_root()) else {
        skip!("a_child_that_became_another_user_is_its_workers_in_a_cgroup", "it takes root and a cgroup");
    };
    a_child_of_another_user_is_its_workers(&[], place.launcher());
    assert!(place.is_empty(), "{:?}", place.workers());
}
