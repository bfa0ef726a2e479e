//! The process tree of a worker: wrappers, deep trees, and programs that fork without end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use master_process_tests::load::{self, Kept, Outcome};
use master_process_tests::messages::await_reload_complete;
use master_process_tests::script::{ready_pids, said, script, script_with};
use master_process_tests::supervisor::await_gone;
use master_process_tests::{Supervisor, address, needs_root, process, scaled};
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

#[test]
fn wrapped_server_finishes_its_request_in_a_reload() {
    let address = address::tcp();
    let options = ["--drain", "50ms", "--kill-timeout", "20s"];
    let supervisor = Supervisor::start(&options, wrapped(graceful(address, 1.5)));
    let old = ready_pids(&supervisor, 1)[0];
    let mut slow = Kept::open(address).expect("it listens");
    slow.ask().expect("it accepts");
    supervisor.eventually("the server is at it", || !process::descriptors(old).is_empty());
    supervisor.signal(Signal::HUP);
    assert_eq!(slow.answer(), Outcome::Ok(old.to_string()));
    await_reload_complete(&supervisor, 1);
    await_gone(old);
    let line = format!("worker 0 left 1 process behind: python3 (pid {old})");
    let name = supervisor.logged(&["worker 0 left 1 process behind", &format!("(pid {old})")]);
    assert_eq!(name.len(), 1, "{line}: {:?}", supervisor.log());
    assert_ne!(load::who(address), Some(old));
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

#[test]
fn remains_of_a_killed_wrapper_are_killed_and_delay_no_replacement() {
    let address = address::tcp();
    // Its own time would be over long after the test.
    let options = ["-w", "2", "--throttle", "100ms", "--kill-timeout", "600s"];
    let supervisor = Supervisor::start(&options, wrapped(script(UNHEEDING, address)));
    let old: BTreeSet<i32> = ready_pids(&supervisor, 2).into_iter().collect();
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
    assert_eq!(supervisor.stop_twice(), Some(0));
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}

/// It closes its listener at SIGTERM, and lives on as if it finished something.
#[test]
fn queue_of_a_remaining_process_moves_to_siblings_when_it_closes_its_listener() {
    needs_root!();
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
    let command = script_with(text, address, [&folder.path().join("taken")]);
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
fn remains_of_a_killed_wrapper_are_killed_early_if_the_replacement_needs_their_port() {
    let address = address::tcp();
    let options = ["--share", "off", "--throttle", "100ms", "--kill-timeout", "600s"];
    let supervisor = Supervisor::start(&options, wrapped(script(UNHEEDING, address)));
    let old = ready_pids(&supervisor, 1)[0];
    process::signal(*supervisor.await_workers(1).first().expect("one"), Signal::KILL);
    ready_pids(&supervisor, 2);
    assert!(!process::alive(old));
}

#[test]
fn stop_group_tree_signals_every_process_at_once() {
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
    ready_pids(&supervisor, 1);
    assert_eq!(supervisor.stop(), 0, "long before the kill time-out");
    assert!(supervisor.output().contains(&"asked".to_owned()));
    assert!(supervisor.logged(&["sending sigkill"]).is_empty());
}

#[test]
fn deep_process_tree_is_killed_completely() {
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
fn fork_bomb_is_killed_and_delays_no_other_worker() {
    // Of the children of each chain no process lives for long, and the supervisor adopts each.
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
    let bomb: i32 = bomb.expect("it has printed it");
    supervisor.eventually("the other one answers", || load::who(address).is_some());
    // The loop goes on: it reads signals meanwhile.
    supervisor.signal(Signal::USR2);
    supervisor.eventually("it hears", || !supervisor.logged(&["limits of all workers paused"]).is_empty());
    process::signal(bomb, Signal::KILL);
    supervisor.eventually("its end is logged", || {
        !supervisor.logged(&[&format!("(pid {bomb})"), "killed by sigkill"]).is_empty()
    });
    supervisor.eventually("only the other one is left", || supervisor.survivors().len() == 1);
    assert!(load::who(address).is_some());
    assert_eq!(supervisor.stop(), 0);
    assert_eq!(supervisor.survivors(), Vec::<i32>::new());
}
