//! Listeners that are closed, and listeners that are not, though it may look so.

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use master_process_tests::clients::{answers, waiting_clients};
use master_process_tests::gate::Gate;
use master_process_tests::load::{self, Connections, Load};
use master_process_tests::script::{lines, said, script, started};
use master_process_tests::traffic::{nothing_is_lost, pass};
use master_process_tests::{
    Supervisor, TIMEOUT, address, always, eventually, needs_root, network, process, profile, scaled, skip,
};
use rustix::process::Signal;

/// What is promised of a listener that its worker has closed: after this the address is free.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);

/// What a busy machine may take longer.
const SLACK: Duration = Duration::from_secs(3);

/// Longer than a listener that was closed is kept.
const STAYS: Duration = Duration::from_secs(5);

/// How long after the last thing that happened to a listener the supervisor checks it by itself.
const CHECKED_FOR: Duration = Duration::from_secs(10);

/// A daemon, as programs become one: a child in a session of its own, whose child is orphaned and serves.
const DAEMON: &str = "
if os.fork() == 0:
    os.setsid()
    if os.fork() != 0: os._exit(0)
    made = bound(HOST, PORT); made.listen(64)
    say('serves', INDEX, os.getpid(), PID)
    serve(made)
os.wait()
while True: signal.pause()";

/// The main thread ends and another one serves: the process is shown as a zombie without descriptors.
const WITHOUT_MAIN_THREAD: &str = "
import ctypes, platform, threading
made = bound(HOST, PORT); made.listen(64)
def run():
    say('serves', INDEX, os.getpid(), PID)
    serve(made)
threading.Thread(target=run).start()
# exit(2) of this thread alone, as pthread_exit(3) ends with it.
ctypes.CDLL(None).syscall(60 if platform.machine() == 'x86_64' else 93, 0)";

/// The processes that have said that they serve as a slot, in order: each with the first process of its worker.
fn servers(supervisor: &Supervisor, slot: u32) -> Vec<(i32, i32)> {
    let prefix = format!("serves {slot} ");
    let of = |line: &String| {
        let (server, worker) = line.strip_prefix(&prefix)?.split_once(' ')?;
        Some((server.parse().ok()?, worker.parse().ok()?))
    };
    supervisor.output().iter().filter_map(of).collect()
}

/// Two workers whose servers are none of the supervisor's children, or do not look alive, serve for longer than a closed
/// listener would be kept, and also after one of them was killed and replaced.
fn two_keep_their_listeners(text: &str) {
    let address = address::tcp();
    let supervisor = started(&["-w", "2", "--throttle", "10ms"], text, address);
    let of = |slot| supervisor.until("it serves", || servers(&supervisor, slot).last().copied());
    let keep_answering = |expected: BTreeSet<i32>| {
        let both_answer = || {
            let mut seen = BTreeSet::new();
            supervisor.eventually("both answer", || {
                seen.extend(load::who(address));
                seen.is_superset(&expected)
            });
        };
        both_answer();
        always(STAYS, "one of them answers", || {
            load::who(address).is_some_and(|pid| expected.contains(&pid))
        });
        both_answer();
    };
    let ((first, worker), (second, _)) = (of(0), of(1));
    keep_answering(BTreeSet::from([first, second]));
    process::signal(worker, Signal::KILL);
    let (new, _) = supervisor
        .until("it is replaced", || servers(&supervisor, 0).last().copied().filter(|(pid, _)| *pid != first));
    keep_answering(BTreeSet::from([new, second]));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn listener_of_a_double_forked_daemon_stays_open() {
    two_keep_their_listeners(DAEMON);
    is_alone_and_keeps_its_listener(DAEMON);
}

#[test]
fn listener_stays_open_after_the_main_thread_ended() {
    two_keep_their_listeners(WITHOUT_MAIN_THREAD);
    is_alone_and_keeps_its_listener(WITHOUT_MAIN_THREAD);
}

/// Both have one socket. The daemon of one keeps it, which is none of the other's business.
#[test]
fn closed_listener_can_be_bound_again_while_another_workers_daemon_has_it_open() {
    let text = "
def listen():
    global made
    made = bound(HOST, PORT); made.listen(64)
listen()
if INDEX == '1':
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0: os._exit(0)
        say('daemon')
        time.sleep(1000)
    os.wait()
    serve(made)
say('listens')
wait()
made.close()
while attempt(listen) != 'ok': time.sleep(0.05)
say('again')
serve(made)";
    let (address, gate) = (address::tcp(), Gate::new());
    let options = ["-w", "2", "--share", "shared", "--monitor", "off"];
    let supervisor = Supervisor::start(&options, gate.script(text, address));
    assert_eq!(said(&supervisor, 2), lines(&["daemon", "listens"]));
    gate.open();
    assert_eq!(said(&supervisor, 3), lines(&["again", "daemon", "listens"]));
    assert_eq!(supervisor.stop(), 0);
}

fn is_alone_and_keeps_its_listener(text: &str) {
    let address = address::tcp();
    let supervisor = started(&[], text, address);
    let (server, _) = supervisor.until("it serves", || servers(&supervisor, 0).last().copied());
    always(STAYS, "it answers", || load::who(address) == Some(server));
    assert_eq!(supervisor.logged(&["no worker listens on it"]), Vec::<String>::new());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn queue_of_a_closed_listener_is_served_by_a_sibling() {
    needs_root!();
    if !network::kernel_moves_queues() {
        skip!("this kernel moves nothing from a queue that closes to another one");
    }
    let (address, gate) = (address::tcp(), Gate::new());
    let text = "
made = bound(HOST, PORT); made.listen(64)
say('serves', INDEX, PID, PID)
if INDEX != '0': serve(made)
wait()
made.close()
say('closed')
while True: signal.pause()";
    let supervisor = Supervisor::start(&["-w", "2"], gate.script(text, address));
    said(&supervisor, 2);
    let (sibling, _) = servers(&supervisor, 1).last().copied().expect("it serves");
    supervisor.eventually("both are ready", || supervisor.logged(&[": listening"]).len() == 2);
    supervisor.await_rest();
    // About half of them come to the queue of the one that does not accept.
    let waiting = waiting_clients(address, 40);
    gate.open();
    supervisor.eventually("it has closed", || supervisor.output().contains(&"closed".to_owned()));
    let closed = Instant::now();
    let answered: BTreeSet<i32> = answers(waiting).into_iter().collect();
    println!("those who waited are answered {:?} after it has closed", closed.elapsed());
    assert!(closed.elapsed() < CLOSED_WITHIN + scaled(SLACK), "after {:?}", closed.elapsed());
    assert_eq!(answered, BTreeSet::from([sibling]));
    let after: BTreeSet<i32> = answers(waiting_clients(address, 100)).into_iter().collect();
    assert_eq!(after, BTreeSet::from([sibling]), "new ones go to the sibling");
    assert_eq!(supervisor.stop(), 0);
}

/// How long after a worker that is alone has closed its listener clients are refused, and another process has bound the
/// address. `idle`: how long nothing has happened before.
fn free_after(idle: Duration, options: &[&str]) -> (Duration, Duration) {
    let (address, gate) = (address::tcp(), Gate::new());
    let text = "
made = socket.socket(); made.bind((HOST, PORT)); made.listen(64)
say('serves', INDEX, PID, PID)
wait()
made.close()
say('closed')
while True: signal.pause()";
    let supervisor = Supervisor::start(options, gate.script(text, address));
    said(&supervisor, 1);
    always(idle, "it runs", || supervisor.exited().is_none());
    gate.open();
    supervisor.eventually("it has closed", || supervisor.output().contains(&"closed".to_owned()));
    let closed = Instant::now();
    // Without a connection, which would make the supervisor look: as another server would find out.
    let mut bound = None;
    eventually(CLOSED_WITHIN + SLACK, "another process can bind it", || {
        bound = TcpListener::bind(address).ok();
        bound.is_some()
    });
    let free = closed.elapsed();
    drop(bound);
    eventually(CLOSED_WITHIN, "clients are refused", || TcpStream::connect(address).is_err());
    assert_eq!(supervisor.workers().len(), 1, "it lives");
    assert_eq!(supervisor.stop(), 0);
    (free, closed.elapsed())
}

#[test]
fn address_is_free_two_seconds_after_its_listener_closes() {
    let (free, refused) = free_after(Duration::ZERO, &[]);
    println!("free after {free:?}, refused after {refused:?}");
    assert!(free < CLOSED_WITHIN + scaled(Duration::from_millis(500)), "free after {free:?}");
}

#[test]
fn address_of_an_idle_worker_is_free_one_sample_after_its_listener_closes() {
    let idle = CHECKED_FOR + Duration::from_secs(2);
    let (free, refused) = free_after(idle, &["--monitor-interval", "1s"]);
    println!("after {idle:?} without anything: free after {free:?}, refused after {refused:?}");
    // A sample, and the time for which a successor could still come.
    assert!(free < CLOSED_WITHIN + scaled(SLACK), "free after {free:?}");
}

#[test]
fn shared_queue_address_is_free_two_seconds_after_its_listener_closes() {
    let (free, _) = free_after(Duration::ZERO, &["--share", "shared"]);
    assert!(free < CLOSED_WITHIN + scaled(Duration::from_millis(500)), "free after {free:?}");
}

#[test]
fn connection_to_a_closed_listener_of_an_idle_worker_is_reset_and_the_next_one_refused() {
    let (address, gate) = (address::tcp(), Gate::new());
    let text = "
made = bound(HOST, PORT); made.listen(64)
say('serves', INDEX, PID, PID)
wait()
made.close()
say('closed')
while True: signal.pause()";
    let supervisor = Supervisor::start(&["--monitor", "off"], gate.script(text, address));
    said(&supervisor, 1);
    always(CHECKED_FOR + Duration::from_secs(2), "it runs", || supervisor.exited().is_none());
    gate.open();
    supervisor.eventually("it has closed", || supervisor.output().contains(&"closed".to_owned()));
    let start = Instant::now();
    // Nothing has happened for long: the connection is what makes the supervisor look.
    let outcome = load::get(address, "/");
    println!("told {outcome:?} after {:?}", start.elapsed());
    assert!(
        matches!(outcome, load::Outcome::Reset | load::Outcome::Truncated | load::Outcome::Refused),
        "{outcome:?}"
    );
    assert!(start.elapsed() < CLOSED_WITHIN + scaled(SLACK), "after {:?}", start.elapsed());
    eventually(CLOSED_WITHIN, "clients are refused", || TcpStream::connect(address).is_err());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn queue_of_a_worker_that_closes_and_exits_is_served_by_its_replacement() {
    let text = "
made = bound(HOST, PORT); made.listen(64)
say('serves', INDEX, PID, PID)
if os.path.exists(sys.argv[2]): serve(made)
wait()
made.close()
say('closed')
time.sleep(0.2)  # what a program does at its end
sys.exit(0)";
    let user = process::is_root().then(profile::ordinary_user);
    for wrapper in [Vec::new(), profile::launcher(user, &[])] {
        let (address, gate) = (address::tcp(), Gate::new());
        let builder = Supervisor::builder().wrap(&wrapper).args(["--throttle", "1s", "--throttle-max", "1s"]);
        let supervisor = builder.command(gate.script(text, address)).spawn();
        said(&supervisor, 1);
        let waiting = waiting_clients(address, 5);
        gate.open();
        let answered: BTreeSet<i32> = answers(waiting).into_iter().collect();
        // The successor may answer before its line is read.
        supervisor.eventually("both have said that they serve", || servers(&supervisor, 0).len() == 2);
        let (successor, _) = servers(&supervisor, 0).last().copied().expect("it serves");
        assert_eq!(answered, BTreeSet::from([successor]), "{wrapper:?}");
        assert_eq!(supervisor.stop(), 0);
    }
}

/// Binds the path after the address and the gate, prints whether the path is there after it has removed it, and serves.
const UNLINKS: &str = "
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[3]); made.listen(64)
say('serves', INDEX, PID, PID)
wait()
if INDEX == '0':
    say('unlink', attempt(lambda: os.unlink(sys.argv[3])), os.path.exists(sys.argv[3]))
serve(made)";

#[test]
fn path_of_the_only_worker_is_unlinked_at_once() {
    let ((_folder, path), gate) = (address::unix(), Gate::new());
    let mut command = gate.script(UNLINKS, address::tcp());
    command.push(path.to_str().expect("UTF-8").to_owned());
    let supervisor = Supervisor::start(&[], command);
    said(&supervisor, 1);
    supervisor.await_rest();
    gate.open();
    supervisor.eventually("it has removed it", || supervisor.output().len() == 2);
    assert!(supervisor.output().contains(&"unlink ok False".to_owned()), "{:?}", supervisor.output());
    assert!(!path.exists());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn path_in_use_by_a_sibling_is_not_unlinked() {
    let ((_folder, path), gate) = (address::unix(), Gate::new());
    let mut command = gate.script(UNLINKS, address::tcp());
    command.push(path.to_str().expect("UTF-8").to_owned());
    let supervisor = Supervisor::start(&["-w", "2"], command);
    said(&supervisor, 2);
    supervisor.await_rest();
    let clients = Load::start(path.as_path(), 2, Connections::Fresh);
    gate.open();
    supervisor.eventually("it has removed it", || {
        supervisor.output().iter().any(|line| line.starts_with("unlink"))
    });
    assert!(
        supervisor.output().iter().any(|line| line.starts_with("unlink ok")),
        "{:?}",
        supervisor.output()
    );
    pass(&supervisor, &clients, 50);
    nothing_is_lost(clients);
    assert!(path.exists());
    assert_eq!(supervisor.stop(), 0);
}

/// Checks whether another instance answers at its path, as servers do that must not take another one's, and binds if not.
const PROBES: &str = "
probe = socket.socket(socket.AF_UNIX)
outcome = attempt(lambda: probe.connect(sys.argv[2]))
if 'unlinks' in sys.argv: attempt(lambda: os.unlink(sys.argv[2]))
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[2]); made.listen(64)
say('serves', INDEX, PID, outcome)
serve(made)";

fn is_not_answered_by_the_queue_of_its_predecessor(user: Option<u32>, unlinks: bool) {
    let (folder, path) = address::unix();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("ours");
    let mut command = script(PROBES, address::tcp());
    command.push(path.to_str().expect("UTF-8").to_owned());
    command.extend(unlinks.then(|| "unlinks".to_owned()));
    let wrapper = user.map_or_else(Vec::new, |user| profile::launcher(Some(user), &[]));
    let builder = Supervisor::builder().wrap(wrapper).args(["--throttle", "1s", "--throttle-max", "1s"]);
    let supervisor = builder.command(command).spawn();
    let outcomes = || -> Vec<(i32, String)> {
        let lines = supervisor.output();
        let of = |line: &String| {
            let (pid, outcome) = line.strip_prefix("serves 0 ")?.split_once(' ')?;
            Some((pid.parse().ok()?, outcome.to_owned()))
        };
        lines.iter().filter_map(of).collect()
    };
    supervisor.eventually("it serves", || outcomes().len() == 1);
    let victim = outcomes()[0].0;
    assert_eq!(load::who(path.as_path()), Some(victim));
    process::freeze(victim);
    let waiting = waiting_clients(path.as_path(), 3);
    process::signal(victim, Signal::KILL);
    eventually(TIMEOUT, "it is dead", || !process::alive(victim));
    let late = waiting_clients(path.as_path(), 3);
    supervisor.eventually("its replacement serves", || outcomes().len() == 2);
    let (successor, outcome) = outcomes().remove(1);
    assert_eq!(outcome, "ECONNREFUSED", "as root: {}, unlinks: {unlinks}", user.is_none());
    let answered: BTreeSet<i32> = answers(waiting).into_iter().chain(answers(late)).collect();
    assert_eq!(answered, BTreeSet::from([successor]));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn probe_of_a_path_is_refused_while_only_a_crashed_workers_queue_is_there() {
    for unlinks in [false, true] {
        is_not_answered_by_the_queue_of_its_predecessor(None, unlinks);
        if process::is_root() {
            is_not_answered_by_the_queue_of_its_predecessor(Some(profile::ordinary_user()), unlinks);
        }
    }
}

#[test]
fn reloads_and_crashes_without_privileges_lose_no_request() {
    let address = address::tcp();
    let text = "
made = bound(HOST, PORT); made.listen(64)
say('ready', RELOAD)
serve(made)";
    let user = process::is_root().then(profile::ordinary_user);
    let builder = Supervisor::builder().wrap(profile::launcher(user, &[]));
    let options = ["-w", "2", "--throttle", "50ms", "--throttle-max", "50ms"];
    let supervisor = builder.args(options).command(script(text, address)).spawn();
    assert_eq!(said(&supervisor, 2), lines(&["ready 0"]));
    let clients = Load::start(address, 4, Connections::Fresh);
    for _ in 0..3 {
        pass(&supervisor, &clients, 50);
        supervisor.reload(2);
    }
    pass(&supervisor, &clients, 50);
    nothing_is_lost(clients);
    // Connections queued when all workers are killed are served by the replacements.
    let victims = supervisor.await_workers(2);
    victims.iter().for_each(|pid| process::freeze(*pid));
    let waiting = waiting_clients(address, 20);
    victims.iter().for_each(|pid| process::signal(*pid, Signal::KILL));
    assert_eq!(answers(waiting).len(), 20);
    assert_eq!(supervisor.stop(), 0);
}
