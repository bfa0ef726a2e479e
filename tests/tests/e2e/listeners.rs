//! Listeners as programs use them: probed, closed, shut down, of two families, inherited by children.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use master_process_tests::load::{self, Connections, Kept, Load, Outcome};
use master_process_tests::script::{TWO_FAMILIES, said, script_with, started};
use master_process_tests::traffic::{all_answer, nothing_is_lost, pass, reload_under_load};
use master_process_tests::{Supervisor, address, eventually, process, scaled, skip};
use rustix::process::Signal;

/// Within some seconds: what a client that is left alone may wait for an end.
const SOON: Duration = Duration::from_secs(10);

fn next_to(address: SocketAddr, offset: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port() + offset)
}

#[test]
fn connections_to_a_probed_port_are_refused() {
    // How a program looks for a free port, or whether it may have one: bind, listen, close.
    let text = "
probe = bound(HOST, PORT); probe.listen(); probe.close()
made = bound(HOST, PORT + 100); made.listen(64)
say('ready')
serve(made)";
    let probed = address::tcp();
    let supervisor = started(&["-w", "2"], text, probed);
    said(&supervisor, 2);
    // A client that connected too early gets an end as well.
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
fn address_dropped_by_a_reload_is_closed_and_can_be_bound_again() {
    // It notifies: else the old address would be required of it.
    let text = "
made = bound(HOST, PORT + 100 * (RELOAD % 2)); made.listen(64)
notify()
serve(made)";
    let first = address::tcp();
    let second = next_to(first, 100);
    let supervisor = started(&["-w", "2", "--throttle", "10ms"], text, first);
    supervisor.eventually("a worker answers", || load::who(first).is_some());
    for (now, before) in [(second, first), (first, second), (second, first)] {
        let new = supervisor.reload(2);
        all_answer(&supervisor, now, &new);
        eventually(SOON, "the old address is closed", || {
            TcpStream::connect(before).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
    }
    drop(TcpListener::bind(first).expect("the old address is free"));
}

#[test]
fn worker_is_ready_when_its_last_listener_is_open() {
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
    assert!(first_asked > earliest - 0.05, "stopped {} s before", earliest - first_asked);
}

#[test]
fn shutdown_of_a_listener_under_load_loses_no_request() {
    // In a reload and in life: what a graceful program does first at the stop signal.
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
        supervisor.eventually("a worker answers", || load::who(address).is_some());
        let clients = Load::start(address, 6, Connections::Fresh);
        pass(&supervisor, &clients, 100);
        let new = supervisor.reload(3);
        pass(&supervisor, &clients, 100);
        let tally = clients.stop();
        // With one queue for all, a connection that was just accepted ends with the worker.
        assert_eq!(tally.inexcusable(), 0, "{mode}: {tally}");
        assert!(mode == "shared" || tally.lost() == 0, "{mode}: {tally}");
        all_answer(&supervisor, address, &new);
        assert_eq!(supervisor.stop(), 0);
    }
}

#[test]
fn unlink_before_bind_keeps_the_path_reachable() {
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
    let command = script_with(text, address::tcp(), [&path]);
    let supervisor = Supervisor::start(&["-w", "3", "--throttle", "50ms"], command);
    said(&supervisor, 3);
    reload_under_load(&supervisor, path.as_path(), 3, 3);
    // A crash and its replacement, which finds the path in use.
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
fn ipv4_and_ipv6_listeners_of_a_port_stay_separate_in_reloads() {
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
fn dual_stack_listener_serves_both_families() {
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
fn mptcp_listener_is_shared() {
    const IPPROTO_MPTCP: i32 = 262;
    let probe = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        u32::try_from(IPPROTO_MPTCP)
            .ok()
            .and_then(std::num::NonZeroU32::new)
            .map(rustix::net::Protocol::from_raw),
    );
    if probe.is_err() {
        skip!("the kernel has no MPTCP");
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
    let new = reload_under_load(&supervisor, address, 3, 1);
    all_answer(&supervisor, address, &new);
}

#[test]
fn nonblocking_listener_of_a_new_release_does_not_affect_the_old_one() {
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
    reload_under_load(&supervisor, address, 2, 4);
    let wrong: Vec<String> =
        supervisor.output().into_iter().filter(|line| line.starts_with("not blocking")).collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn four_reuseport_sockets_of_one_worker_all_bind() {
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
    let new = reload_under_load(&supervisor, address, 2, 1);
    all_answer(&supervisor, address, &new);
}

#[test]
fn prefork_children_serve_and_end_with_their_worker() {
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
    let second = reload_under_load(&supervisor, address, 2, 1);
    eventually(SOON, "no process of the old workers is left", || old.iter().all(|pid| !process::alive(*pid)));
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
fn client_socket_of_a_fixed_port_can_connect_repeatedly() {
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
        // To the end: a copy in another process would keep the connection open.
        stream.read_to_string(&mut heard).expect("its end comes soon");
        assert_eq!(heard, "hello");
    }
    assert_eq!(said(&supervisor, 6).len(), 6);
    supervisor.reload(1);
}
