//! Workers of several processes: wrappers, daemons, children in sessions of their own, and whoever forks without end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use master_process_tests::load::{self, Kept, Outcome};
use master_process_tests::profile::{launcher, ordinary_user};
use master_process_tests::script::{said, script};
use master_process_tests::supervisor::await_gone;
use master_process_tests::{Supervisor, address, patient, process};
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
    // The server does not heed the stop signal.
    let text = "
signal.signal(signal.SIGTERM, signal.SIG_IGN)
made = bound(HOST, PORT); made.listen(64)
say('ready', PID)
serve(made)";
    let address = address::tcp();
    let supervisor = Supervisor::start(&["-w", "2", "--throttle", "100ms"], wrapped(script(text, address)));
    let old: BTreeSet<i32> = servers(&supervisor, 2).into_iter().collect();
    let wrappers = supervisor.await_workers(2);
    let victim = *wrappers.first().expect("two");
    let left = process::children(victim)[0].pid;
    assert!(old.contains(&left));
    process::signal(victim, Signal::KILL);
    let begun = Instant::now();
    supervisor.eventually("a replacement listens", || supervisor.output().len() == 3);
    await_gone(left);
    assert!(begun.elapsed() < patient(GONE_WITHIN), "{:?}", begun.elapsed());
    assert_eq!(supervisor.logged(&["left 1 process behind", &format!("(pid {left})")]).len(), 1);
    // The replacement answers, and the other one that was there before.
    for _ in 0..20 {
        assert_ne!(load::who(address), Some(left));
    }
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
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
    let options = [options, &["--throttle", "100ms"]].concat();
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
        master_process_tests::skip!(
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
