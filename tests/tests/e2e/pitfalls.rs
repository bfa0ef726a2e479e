//! What programs do with sockets that a supervisor in the middle could get wrong.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use master_process_tests::load::{self, Connections, Kept, Load, Outcome};
use master_process_tests::script::{TWO_FAMILIES, lines, said, script, started};
use master_process_tests::traffic::{all_answer, nothing_is_lost, pass};
use master_process_tests::{
    Supervisor, TIMEOUT, address, always, eventually, process, profile, scaled, skip,
};
use rustix::process::Signal;

/// Within some seconds: what a client that is left alone may wait for an end.
const SOON: Duration = Duration::from_secs(10);

fn next_to(address: SocketAddr, offset: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port() + offset)
}

#[test]
fn clients_of_a_port_that_was_only_probed_are_refused_and_not_left_hanging() {
    // How a program looks for a free port, or whether it may have one: bind, listen, close.
    let text = "
probe = bound(HOST, PORT); probe.listen(); probe.close()
made = bound(HOST, PORT + 100); made.listen(64)
say('ready')
serve(made)";
    let probed = address::tcp();
    let supervisor = started(&["-w", "2"], text, probed);
    said(&supervisor, 2);
    // One who came too early is sent away as well.
    let early = Kept::open(probed).ok();
    eventually(SOON, "clients are refused", || {
        TcpStream::connect(probed).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    if let Some(mut early) = early {
        let asked = early.ask();
        let outcome = early.answer();
        assert!(
            asked.is_err() || matches!(outcome, Outcome::Reset | Outcome::Truncated),
            "left hanging: {outcome:?}"
        );
    }
    let workers = supervisor.await_workers(2);
    all_answer(&supervisor, next_to(probed, 100), &workers);
    // In a reload the same again.
    let new = supervisor.reload(2);
    all_answer(&supervisor, next_to(probed, 100), &new);
    eventually(SOON, "clients are refused again", || {
        TcpStream::connect(probed).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
}

#[test]
fn an_address_that_a_reload_gives_up_is_closed_and_can_be_had_again() {
    // It says that it is ready: else it would be waited for at the old address.
    let text = "
made = bound(HOST, PORT + 100 * (RELOAD % 2)); made.listen(64)
notify()
serve(made)";
    let first = address::tcp();
    let second = next_to(first, 100);
    let supervisor = started(&["-w", "2", "--throttle", "10ms"], text, first);
    supervisor.eventually("somebody answers", || load::who(first).is_some());
    for (now, before) in [(second, first), (first, second), (second, first)] {
        let new = supervisor.reload(2);
        all_answer(&supervisor, now, &new);
        eventually(SOON, "nobody is at the old address", || {
            TcpStream::connect(before).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
    }
    drop(TcpListener::bind(first).expect("nobody holds the old address"));
}

#[test]
fn a_worker_with_several_listeners_is_ready_at_its_last() {
    let text = "
signal.signal(signal.SIGTERM, lambda *_: (say('term', RELOAD, time.monotonic()), os._exit(0)))
import threading
one = bound(HOST, PORT); one.listen(64)
threading.Thread(target=serve, args=(one,), daemon=True).start()
time.sleep(0.5 if RELOAD else 0)
two = bound(HOST, PORT + 100); two.listen(64)
say('second', RELOAD, time.monotonic())
threading.Thread(target=serve, args=(two,), daemon=True).start()
while True: time.sleep(1)";
    let first = address::tcp();
    let second = next_to(first, 100);
    // A worker that leaves in the middle of an answer loses it by right.
    let drain = format!("{}ms", scaled(Duration::from_millis(20)).as_millis());
    let supervisor = started(&["-w", "2", "--throttle", "1ms", "--drain", &drain], text, first);
    said(&supervisor, 2);
    let clients = [first, second].map(|address| Load::start(address, 4, Connections::Fresh));
    for clients in &clients {
        pass(&supervisor, clients, 50);
    }
    supervisor.reload(2);
    clients.into_iter().for_each(nothing_is_lost);
    let at = |wanted: &str| -> Vec<f64> {
        let lines = supervisor.output();
        let times = lines.iter().filter_map(|line| line.strip_prefix(wanted)?.trim().parse().ok());
        times.collect()
    };
    let (listened, asked) = (at("second 1 "), at("term 0 "));
    assert_eq!((listened.len(), asked.len()), (2, 2), "{:?}", supervisor.output());
    let earliest = listened.iter().copied().fold(f64::MAX, f64::min);
    let first_asked = asked.iter().copied().fold(f64::MAX, f64::min);
    assert!(first_asked > earliest - 0.05, "asked to leave {} s before", earliest - first_asked);
}

#[test]
fn a_worker_that_shuts_its_listener_down_takes_nobody_with_it_under_load() {
    // In a reload and in life: what a graceful program does first when it is asked to leave.
    let text = "
made = bound(HOST, PORT); made.listen(64)
def leave(*_):
    made.shutdown(socket.SHUT_RDWR)
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
serve(made)";
    let address = address::tcp();
    for mode in ["slots", "shared"] {
        let options = ["-w", "3", "--share", mode, "--throttle", "50ms"];
        let supervisor = started(&options, text, address);
        supervisor.eventually("somebody answers", || load::who(address).is_some());
        let clients = Load::start(address, 6, Connections::Fresh);
        pass(&supervisor, &clients, 100);
        let new = supervisor.reload(3);
        pass(&supervisor, &clients, 100);
        let tally = clients.stop();
        // With one queue for all, one who was just accepted goes with the worker.
        assert_eq!(tally.inexcusable(), 0, "{mode}: {tally}");
        assert!(mode == "shared" || tally.lost() == 0, "{mode}: {tally}");
        all_answer(&supervisor, address, &new);
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn a_program_that_unlinks_its_path_before_it_binds_is_reachable_all_the_time() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    // What uvicorn and many others do.
    let text = "
try:
    os.unlink(sys.argv[2])
except FileNotFoundError:
    pass
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[2])
os.chmod(sys.argv[2], 0o666)
made.listen(64)
say('ready')
serve(made)";
    let mut command = script(text, address::tcp());
    command.push(path.to_str().expect("UTF-8").to_owned());
    let supervisor = Supervisor::start(&["-w", "3", "--throttle", "50ms"], command);
    said(&supervisor, 3);
    let clients = Load::start(path.as_path(), 6, Connections::Fresh);
    for _ in 0..3 {
        pass(&supervisor, &clients, 100);
        supervisor.reload(3);
    }
    // A crash and its replacement, which finds the path in use.
    pass(&supervisor, &clients, 100);
    nothing_is_lost(clients);
    let victim = *supervisor.await_workers(3).first().expect("three");
    process::signal(victim, Signal::KILL);
    supervisor.eventually("it is replaced", || {
        let workers = supervisor.workers();
        workers.len() == 3 && !workers.contains(&victim)
    });
    assert!(load::who(path.as_path()).is_some());
    assert_eq!(supervisor.stop(), 0);
    assert!(!path.exists());
}

#[test]
fn the_two_families_of_a_port_stay_apart_through_reloads() {
    let port = address::wildcard_port();
    let four = SocketAddr::from(([127, 0, 0, 1], port));
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let supervisor = started(&["-w", "2", "--throttle", "10ms"], TWO_FAMILIES, four);
    said(&supervisor, 2);
    let mut workers = supervisor.await_workers(2);
    for _ in 0..3 {
        all_answer(&supervisor, four, &workers);
        all_answer(&supervisor, six, &workers);
        workers = supervisor.reload(2);
    }
}

#[test]
fn a_dual_stack_listener_serves_both_families() {
    let text = "
made = socket.socket(socket.AF_INET6)
made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
made.bind(('::', PORT)); made.listen(64)
say('ready')
serve(made)";
    let port = address::wildcard_port();
    let four = SocketAddr::from(([127, 0, 0, 1], port));
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let supervisor = started(&["-w", "2", "--throttle", "10ms"], text, four);
    said(&supervisor, 2);
    let clients = [four, six].map(|address| Load::start(address, 2, Connections::Fresh));
    let mut workers = supervisor.await_workers(2);
    for _ in 0..2 {
        all_answer(&supervisor, four, &workers);
        all_answer(&supervisor, six, &workers);
        workers = supervisor.reload(2);
    }
    clients.into_iter().for_each(nothing_is_lost);
}

#[test]
fn a_multipath_socket_is_shared() {
    const IPPROTO_MPTCP: i32 = 262;
    let name = "a_multipath_socket_is_shared";
    let probe = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        u32::try_from(IPPROTO_MPTCP)
            .ok()
            .and_then(std::num::NonZeroU32::new)
            .map(rustix::net::Protocol::from_raw),
    );
    if probe.is_err() {
        skip!(name, "the kernel has no MPTCP");
    }
    let text = "
made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
made.bind((HOST, PORT)); made.listen(64)
say('ready')
serve(made)";
    let address = address::tcp();
    let supervisor = started(&["-w", "3", "--throttle", "10ms"], text, address);
    said(&supervisor, 3);
    let workers = supervisor.await_workers(3);
    all_answer(&supervisor, address, &workers);
    let clients = Load::start(address, 4, Connections::Fresh);
    let new = supervisor.reload(3);
    pass(&supervisor, &clients, 50);
    nothing_is_lost(clients);
    all_answer(&supervisor, address, &new);
}

#[test]
fn a_release_that_waits_otherwise_does_not_change_how_the_old_one_waits() {
    // O_NONBLOCK is of the open file: on a socket that both have, the old release's accept(2) would fail.
    let text = "
import select
waits = RELOAD not in (1, 2)
made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | (0 if waits else socket.SOCK_NONBLOCK))
made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
made.bind((HOST, PORT)); made.listen(64)
say('ready', RELOAD)
while True:
    if not waits:
        select.select([made], [], [])
    try:
        connection, _ = made.accept()
    except BlockingIOError:
        say('not blocking', RELOAD, waits)
        os._exit(1)
    connection.setblocking(True)
    reply(connection)";
    let address = address::tcp();
    let supervisor = started(&["-w", "2", "--throttle", "10ms", "--drain", "500ms"], text, address);
    said(&supervisor, 2);
    let clients = Load::start(address, 4, Connections::Fresh);
    for _ in 0..4 {
        pass(&supervisor, &clients, 50);
        supervisor.reload(2);
    }
    nothing_is_lost(clients);
    let wrong: Vec<String> =
        supervisor.output().into_iter().filter(|line| line.starts_with("not blocking")).collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn threads_that_bind_at_once_get_what_they_ask_for() {
    let text = "
import threading
gate = threading.Barrier(16)
made, results = [None] * 16, [None] * 16
def run(number):
    gate.wait()
    # Eight bind an address each, eight bind the same one.
    port = PORT + 100 + number if number < 8 else PORT
    results[number] = attempt(lambda: made.__setitem__(number, bound(HOST, port)))
    # Two that bind before either listens both succeed, alone as well: SO_REUSEADDR. One of them listens.
    if results[number] == 'ok': results[number] = attempt(lambda: made[number].listen(64))
threads = [threading.Thread(target=run, args=(number,)) for number in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
say('own', *sorted(set(results[:8])), 'same', results[8:].count('ok'))
serve(next(one for one in made[8:] if one and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)))";
    let address = address::tcp();
    let supervisor = started(&["-w", "3"], text, address);
    assert_eq!(said(&supervisor, 3), lines(&["own ok same 1"]));
    let workers = supervisor.await_workers(3);
    all_answer(&supervisor, address, &workers);
}

#[test]
fn sockets_of_one_worker_that_ask_for_reuseport_all_bind() {
    let text = "
import threading
made = []
for _ in range(4):
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind((HOST, PORT)); one.listen(64)
    made.append(one)
say('ready')
for one in made:
    threading.Thread(target=serve, args=(one,), daemon=True).start()
while True: time.sleep(1)";
    let address = address::tcp();
    let supervisor = started(&["-w", "2", "--throttle", "10ms"], text, address);
    said(&supervisor, 2);
    let clients = Load::start(address, 6, Connections::Fresh);
    pass(&supervisor, &clients, 100);
    let new = supervisor.reload(2);
    pass(&supervisor, &clients, 100);
    nothing_is_lost(clients);
    all_answer(&supervisor, address, &new);
}

#[test]
fn the_children_of_a_worker_that_forks_serve_with_it_and_do_not_outlive_it() {
    // Like gunicorn: the parent binds and waits, its children accept.
    let text = "
made = bound(HOST, PORT); made.listen(64)
for _ in range(2):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        serve(made)
say('ready', RELOAD)
while True: signal.pause()";
    let address = address::tcp();
    let supervisor = started(&["-w", "2", "--throttle", "50ms"], text, address);
    said(&supervisor, 2);
    let children = |of: &BTreeSet<i32>| -> BTreeSet<i32> {
        of.iter().flat_map(|pid| process::children(*pid)).map(|child| child.pid).collect()
    };
    let family = |of: &BTreeSet<i32>| -> BTreeSet<i32> { of.union(&children(of)).copied().collect() };
    let first = supervisor.await_workers(2);
    all_answer(&supervisor, address, &children(&first));
    let old = family(&first);
    let clients = Load::start(address, 4, Connections::Fresh);
    pass(&supervisor, &clients, 50);
    let second = supervisor.reload(2);
    pass(&supervisor, &clients, 50);
    nothing_is_lost(clients);
    eventually(SOON, "nothing of the old family is left", || old.iter().all(|pid| !process::alive(*pid)));
    // A parent that is killed takes its children with it.
    let victim = *second.first().expect("two");
    let lost = family(&BTreeSet::from([victim]));
    process::signal(victim, Signal::KILL);
    eventually(SOON, "its children are gone", || lost.iter().all(|pid| !process::alive(*pid)));
    let workers = supervisor.until("it is replaced", || {
        Some(supervisor.workers()).filter(|workers| workers.len() == 2 && !workers.contains(&victim))
    });
    supervisor.eventually("its replacement has children", || children(&workers).len() == 4);
    all_answer(&supervisor, address, &children(&workers));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_client_socket_of_a_fixed_port_connects_again_and_again_and_its_peers_see_its_end() {
    let text = "
for peer in range(6):
    out = bound(HOST, PORT)
    out.connect((HOST, PORT + 100 + peer))
    out.sendall(b'hello')
    out.close()
    say('connected', peer)
while True: signal.pause()";
    let address = address::tcp();
    let peers: Vec<TcpListener> = (0..6)
        .map(|offset| TcpListener::bind(next_to(address, 100 + offset)).expect("the address is the test's"))
        .collect();
    let supervisor = started(&["--ready", "none"], text, address);
    for peer in &peers {
        let (mut stream, from) = peer.accept().expect("the worker connected");
        assert_eq!(from, address, "from its own port");
        stream.set_read_timeout(Some(scaled(SOON))).expect("an option");
        let mut heard = String::new();
        // To the end: a copy that somebody holds would keep the connection open.
        stream.read_to_string(&mut heard).expect("its end comes soon");
        assert_eq!(heard, "hello");
    }
    assert_eq!(said(&supervisor, 6).len(), 6);
    supervisor.reload(1);
}

#[test]
fn a_length_of_a_whole_sockaddr_storage_is_understood() {
    let text = "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
made = socket.socket()
made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
where = socket.AF_INET.to_bytes(2, sys.byteorder) + PORT.to_bytes(2, 'big') + socket.inet_aton(HOST)
storage = ctypes.create_string_buffer(where, 128)
done = libc.bind(made.fileno(), storage, 128)
say('ok' if done == 0 else errno.errorcode[ctypes.get_errno()], made.getsockname()[1] == PORT)
made.listen(64)
serve(made)";
    let address = address::tcp();
    let supervisor = started(&["-w", "3"], text, address);
    assert_eq!(said(&supervisor, 3), lines(&["ok True"]));
    let workers = supervisor.await_workers(3);
    all_answer(&supervisor, address, &workers);
}

/// The number of bind(2).
const BIND: &str = if cfg!(target_arch = "x86_64") { "49" } else { "200" };

#[test]
fn a_worker_killed_while_its_bind_waits_for_an_answer_does_no_harm() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gate = folder.path().join("gate");
    let text = "
while not os.path.exists(sys.argv[2]): time.sleep(0.01)
made = bound(HOST, PORT); made.listen(64)
serve(made)";
    let address = address::tcp();
    let mut command = script(text, address);
    command.push(gate.to_str().expect("UTF-8").to_owned());
    let options = ["-w", "2", "--throttle", "1ms", "--throttle-max", "1ms"];
    let supervisor = Supervisor::start(&options, command);
    let workers = supervisor.await_workers(2);
    supervisor.signal(Signal::STOP);
    fs::write(&gate, "").expect("ours");
    for worker in &workers {
        eventually(TIMEOUT, "it waits in bind", || {
            let call = fs::read_to_string(format!("/proc/{worker}/syscall")).unwrap_or_default();
            call.split(' ').next() == Some(BIND)
        });
    }
    // One of them killed, one interrupted by a signal that it does not notice.
    let victim = *workers.first().expect("two");
    process::signal(victim, Signal::KILL);
    workers.iter().for_each(|pid| process::signal(*pid, Signal::CONT));
    supervisor.signal(Signal::CONT);
    let now = supervisor.until("it is replaced", || {
        Some(supervisor.workers()).filter(|now| now.len() == 2 && !now.contains(&victim))
    });
    assert!(now.iter().any(|pid| workers.contains(pid)), "the other one went on");
    all_answer(&supervisor, address, &now);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn signals_that_arrive_during_bind_and_listen_do_no_harm() {
    // Where the kernel lets any signal break a call off that we answer (before Linux 5.19), it is made again, and a
    // signal for each time that an answer takes would keep it from ever being made: there they come less often.
    let rare = scaled(Duration::from_millis(4)).as_secs_f64();
    let text = format!(
        "
import ctypes, platform
SECCOMP = 317 if platform.machine() == 'x86_64' else 277
SET_MODE_FILTER, NEW_LISTENER, WAIT_KILLABLE_RECV = 1, 8, 32
libc = ctypes.CDLL(None, use_errno=True)
# No filter is given: a kernel that knows the flags stumbles over that, another one over the flags.
libc.syscall(SECCOMP, SET_MODE_FILTER, NEW_LISTENER | WAIT_KILLABLE_RECV, None)
every = 0.0001 if ctypes.get_errno() == errno.EFAULT else {rare}
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, every, every)
results, kept = set(), []
for offset in range(60):
    one = socket.socket()
    kept.append(one)
    results.add(attempt(lambda: one.bind((HOST, PORT + 100 + offset)) or one.listen(4)))
signal.setitimer(signal.ITIMER_REAL, 0, 0)
say(*results)
while True: signal.pause()"
    );
    let supervisor = started(&["-w", "2"], &text, address::tcp());
    assert_eq!(said(&supervisor, 2), lines(&["ok"]));
}

/// Gives up being looked into, as programs with secrets do, before anything is bound.
const NOT_DUMPABLE: &str = "
import ctypes
PR_SET_DUMPABLE = 4
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
made = bound(HOST, PORT); made.listen(64)
say('ready')
serve(made)";

#[test]
fn workers_that_cannot_be_dumped_share_under_root() {
    if !process::is_root() {
        skip!("workers_that_cannot_be_dumped_share_under_root", "this is not root");
    }
    let address = address::tcp();
    let supervisor = started(&["-w", "2", "--user", "nobody"], NOT_DUMPABLE, address);
    said(&supervisor, 2);
    let workers = supervisor.await_workers(2);
    all_answer(&supervisor, address, &workers);
}

#[test]
fn a_worker_that_cannot_be_dumped_binds_alone_without_root_and_one_line_says_so() {
    if !process::is_root() {
        skip!("a_worker_that_cannot_be_dumped_binds_alone…", "to become another user takes root");
    }
    let user = profile::ordinary_user();
    let wrapper =
        ["setpriv".to_owned(), format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".into()];
    let address = address::tcp();
    let supervisor = Supervisor::builder().wrap(wrapper).command(script(NOT_DUMPABLE, address)).spawn();
    said(&supervisor, 1);
    assert_eq!(load::who(address), supervisor.await_workers(1).first().copied());
    let told = || supervisor.logged(&["cannot inspect its"]).len();
    supervisor.eventually("one line says so", || told() == 1);
    let victim = *supervisor.workers().first().expect("one");
    process::signal(victim, Signal::KILL);
    supervisor.eventually("another one answers", || load::who(address).is_some_and(|pid| pid != victim));
    assert_eq!(told(), 1, "{:?}", supervisor.log());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_supervisor_in_a_supervisor_shares_through_the_outer_one_and_says_so() {
    let address = address::tcp();
    let inner = master_process_tests::supervisor::binary();
    let mut command = vec![inner.to_str().expect("UTF-8").to_owned(), "-w".into(), "2".into(), "--".into()];
    command
        .extend(script("made = bound(HOST, PORT); made.listen(64); say('ready', PID); serve(made)", address));
    let supervisor = Supervisor::start(&[], command);
    let pids: BTreeSet<i32> = said(&supervisor, 2)
        .iter()
        .map(|line| line.trim_start_matches("ready ").parse().expect("a pid"))
        .collect();
    let mut seen = BTreeSet::new();
    let clients = Load::start(address, 8, Connections::Fresh);
    supervisor.eventually("both answer", || {
        seen.extend(clients.tally().pids());
        seen == pids
    });
    nothing_is_lost(clients);
    assert_eq!(
        supervisor.logged(&["seccomp", "another supervisor's filter"]).len(),
        1,
        "{:?}",
        supervisor.log()
    );
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn a_bound_socket_is_not_bound_again() {
    let text = "
made = bound(HOST, PORT)
other = attempt(lambda: made.bind((HOST, PORT + 100)))
same = attempt(lambda: made.bind((HOST, PORT)))
say(other, same, made.getsockname()[1] == PORT)
made.listen(64)
say(attempt(lambda: made.bind((HOST, PORT))))
serve(made)";
    let address = address::tcp();
    let supervisor = started(&["-w", "2"], text, address);
    assert_eq!(said(&supervisor, 4), lines(&["EINVAL EINVAL True", "EINVAL"]));
    let workers = supervisor.await_workers(2);
    all_answer(&supervisor, address, &workers);
}

#[test]
fn a_unix_socket_that_is_bound_is_not_bound_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    let text = "
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[2])
say(attempt(lambda: made.bind(sys.argv[2] + '2')))
made.listen(64)
serve(made)";
    let mut command = script(text, address::tcp());
    command.push(path.to_str().expect("UTF-8").to_owned());
    let supervisor = Supervisor::start(&["-w", "2"], command);
    assert_eq!(said(&supervisor, 2), lines(&["EINVAL"]));
    assert!(load::who(path.as_path()).is_some());
    assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 1, "no second file was made");
}

#[test]
fn a_listen_that_fails_is_not_ready() {
    let peer = address::tcp();
    let _listener = TcpListener::bind(peer).expect("the address is this test's own");
    let text = format!(
        "
out = socket.socket()
out.connect(('{}', {}))
say('connected', attempt(lambda: out.listen()))
say('unnamed', attempt(lambda: socket.socket(socket.AF_UNIX).listen()))
say('datagram', attempt(lambda: socket.socket(type=socket.SOCK_DGRAM).listen()))
time.sleep(2)
made = bound(HOST, PORT); made.listen(64)
say('ready')
serve(made)",
        peer.ip(),
        peer.port()
    );
    let address = address::tcp();
    let supervisor = started(&["--ready", "listen"], &text, address);
    let expected = ["connected EINVAL", "unnamed EINVAL", "datagram ENOTSUP"];
    assert_eq!(said(&supervisor, 3), lines(&expected));
    always(Duration::from_millis(500), "nobody is ready", || supervisor.logged(&[": listening"]).is_empty());
    supervisor.eventually("now it is", || supervisor.logged(&[": listening"]).len() == 1);
    assert!(load::who(address).is_some());
}
