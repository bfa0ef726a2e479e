//! The corners of sharing an address: what programs do with sockets besides binding one and listening.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use master_process_tests::load::{self, Connections, Load};
use master_process_tests::script::{lines, said, started};
use master_process_tests::traffic::{nothing_is_lost, pass};
use master_process_tests::{
    Supervisor, TIMEOUT, address, always, await_some, eventually, fixtures, offset, process,
};
use rustix::process::Signal;

#[test]
fn second_bind_of_an_address_in_one_worker_fails() {
    // The search of a program for a free port relies on it.
    let text = "
one = bound(HOST, PORT); one.listen()
two = socket.socket()
say(INDEX, attempt(lambda: two.bind((HOST, PORT))))
serve(one)";
    let supervisor = started(&["-w", "2"], text, address::tcp());
    assert_eq!(said(&supervisor, 2), lines(&["0 EADDRINUSE", "1 EADDRINUSE"]));
}

#[test]
fn port_0_is_not_shared() {
    let text = "
own = bound(HOST, 0); own.listen()
say(own.getsockname()[1])
serve(own)";
    let supervisor = started(&["-w", "3"], text, address::tcp());
    let ports = said(&supervisor, 3);
    assert_eq!(ports.len(), 3, "each has a port of its own: {ports:?}");
    assert!(!ports.contains("0"));
}

#[test]
fn udp_port_is_shared_once_for_each_worker() {
    let text = "
def datagram():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((HOST, PORT))
    return made
made = datagram()
say('first ok, second', attempt(datagram))
while True: signal.pause()";
    let supervisor = started(&["-w", "2", "--ready", "none"], text, address::tcp());
    assert_eq!(said(&supervisor, 2), lines(&["first ok, second EADDRINUSE"]));
}

#[test]
fn an_outgoing_socket_bound_to_a_port_connects() {
    let peer = address::tcp();
    let listener = TcpListener::bind(peer).expect("the address is this test's own");
    let text = format!(
        "
for port in (0, PORT):
    out = bound(HOST, port)
    out.connect(('{}', {}))
    say('from', 'chosen' if out.getsockname()[1] == PORT else 'any', out.getsockname()[0] == HOST)
    out.close()
while True: signal.pause()",
        peer.ip(),
        peer.port()
    );
    let supervisor = started(&["--ready", "none"], &text, address::tcp());
    assert_eq!(said(&supervisor, 2), lines(&["from any True", "from chosen True"]));
    for _ in 0..2 {
        listener.accept().expect("the worker connected");
    }
}

#[test]
fn address_of_another_host_is_refused() {
    let text = "
say(attempt(lambda: bound('203.0.113.1', PORT)))
while True: signal.pause()";
    let supervisor = started(&["--ready", "none"], text, address::tcp());
    assert_eq!(said(&supervisor, 1), lines(&["EADDRNOTAVAIL"]));
}

#[test]
fn address_of_another_program_is_refused_until_it_ends() {
    let address = address::tcp();
    let foreign = TcpListener::bind(address).expect("the address is this test's own");
    let text = "
say(attempt(lambda: globals().update(made=bound(HOST, PORT)) or made.listen()))
if 'made' not in globals(): sys.exit(1)
serve(made)";
    let supervisor = started(&["--throttle", "50ms", "--throttle-max", "50ms"], text, address);
    assert_eq!(said(&supervisor, 2), lines(&["EADDRINUSE"]));
    drop(foreign);
    supervisor.eventually("the worker has it in the end", || load::who(address).is_some());
}

#[test]
fn invalid_bind_arguments_fail_in_the_worker() {
    let text = "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
made = socket.socket()
def raw(fd, pointer, length):
    return 'ok' if libc.bind(fd, ctypes.c_void_p(pointer), length) == 0 else errno.errorcode[ctypes.get_errno()]
buffer = ctypes.create_string_buffer(bytes([2, 0]) + PORT.to_bytes(2, 'big') + bytes(12))
good = ctypes.addressof(buffer)
say('pointer', raw(made.fileno(), 8, 16))
say('short', raw(made.fileno(), good, 4))
say('long', raw(made.fileno(), good, 4096))
say('descriptor', raw(999, good, 16))
say('file', raw(os.open('/dev/null', os.O_RDONLY), good, 16))
say('listen', 'ok' if libc.listen(999, 5) == 0 else errno.errorcode[ctypes.get_errno()])
while True: signal.pause()";
    let supervisor = started(&["--ready", "none"], text, address::tcp());
    let expected = [
        "pointer EFAULT",
        "short EINVAL",
        "long EINVAL",
        "descriptor EBADF",
        "file ENOTSOCK",
        "listen EBADF",
    ];
    assert_eq!(said(&supervisor, 6), lines(&expected));
    assert_eq!(supervisor.stop(), 0);
}

/// One of two workers prints a line and serves no more.
fn the_other_one_serves(options: &[&str], text: &str) {
    let address = address::tcp();
    let supervisor = started(options, text, address);
    said(&supervisor, 1);
    supervisor.eventually("the other answers", || load::who(address).is_some());
    let clients = Load::start(address, 4, Connections::Fresh);
    pass(&supervisor, &clients, 100);
    nothing_is_lost(clients);
}

#[test]
fn shutdown_of_one_listener_keeps_the_others_serving() {
    let text = "
made = bound(HOST, PORT); made.listen(64)
if INDEX == '0':
    made.shutdown(socket.SHUT_RDWR)
    say('shut down')
    while True: signal.pause()
serve(made)";
    the_other_one_serves(&["-w", "2"], text);
}

#[test]
fn close_of_one_listener_keeps_the_others_serving() {
    let text = "
made = bound(HOST, PORT); made.listen(64)
if INDEX == '0':
    made.close()
    say('closed')
    while True: signal.pause()
serve(made)";
    the_other_one_serves(&["-w", "2", "--share", "shared"], text);
}

#[test]
fn the_two_families_of_one_port_are_two_sockets() {
    let port = address::wildcard_port();
    let text = "
four = bound('0.0.0.0', PORT); four.listen()
six = socket.socket(socket.AF_INET6)
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
say(attempt(lambda: six.bind(('::', PORT)) or six.listen()))
if INDEX == '0':
    serve(four)
serve(six)";
    let supervisor =
        started(&["-w", "2", "--share", "shared"], text, SocketAddr::from(([127, 0, 0, 1], port)));
    assert_eq!(said(&supervisor, 2), lines(&["ok"]));
    // Each worker answers on one of the two only, so each address has its own queue.
    let of_slot = |target: SocketAddr| load::who(target);
    let four = of_slot(SocketAddr::from(([127, 0, 0, 1], port)));
    let six = of_slot(SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port)));
    assert!(four.is_some() && six.is_some() && four != six, "{four:?} {six:?}");
}

#[test]
fn socket_flags_and_name_are_unchanged() {
    let text = "
import fcntl
for kind in (0, socket.SOCK_NONBLOCK):
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    number = made.fileno()
    if kind: os.set_inheritable(number, True)
    made.bind((HOST, PORT + (1000 if kind else 0)))
    made.listen()
    close = bool(fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
    nonblock = bool(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_NONBLOCK)
    name = made.getsockname()[0] == HOST and made.getsockname()[1] % 1000 == PORT % 1000
    say('closed on exec', close, 'non-blocking', nonblock, 'named', name, made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
while True: signal.pause()";
    let supervisor = started(&[], text, address::tcp());
    let expected = [
        "closed on exec True non-blocking False named True 1",
        "closed on exec False non-blocking True named True 1",
    ];
    assert_eq!(said(&supervisor, 2), lines(&expected));
}

#[test]
fn program_behind_a_shell_shares() {
    let address = address::tcp();
    let plain = fixtures::node("plain.js").join(" ");
    // Not `exec`: the server is the shell's child.
    let line = fixtures::shell(&format!("{plain}; echo ended"));
    let builder = Supervisor::builder().args(["-w", "2"]).command(line).env("LISTEN", address.to_string());
    let supervisor = builder.env("WORK_MS", "2").spawn();
    supervisor.eventually("a worker answers", || load::who(address).is_some());
    let clients = Load::start(address, 8, Connections::Fresh);
    supervisor.eventually("both answer", || clients.tally().ok.len() == 2);
    let tally = clients.stop();
    let parents: BTreeSet<i32> =
        tally.pids().into_iter().filter_map(process::stat).map(|stat| stat.ppid).collect();
    assert_eq!(parents, supervisor.workers());
    supervisor.reload(2);
    supervisor.eventually("the new ones answer", || load::who(address).is_some());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn address_is_free_at_once_after_the_end() {
    let address = address::tcp();
    // Behind a shell, and deaf to TERM: the socket is held by a grandchild that only the last kill reaches.
    let worker = fixtures::listening(address, &["term=ignore"]).join(" ");
    for _ in 0..8 {
        let line = fixtures::shell(&format!("{worker}; echo ended"));
        let supervisor = Supervisor::start(&["-w", "4"], line);
        supervisor.await_events(4, "ready");
        supervisor.signal(Signal::TERM);
        let status = await_some(TIMEOUT, "it ends", || supervisor.exited());
        assert_eq!(status.code(), Some(0));
        // What a service manager's restart does next.
        drop(TcpListener::bind(address).expect("the address is free"));
    }
}

#[test]
fn program_that_binds_in_a_thread_shares() {
    let address = address::tcp();
    let text = "
import threading
def run():
    made = bound(HOST, PORT); made.listen(64); serve(made)
threading.Thread(target=run, daemon=True).start()
while True: signal.pause()";
    let supervisor = started(&["-w", "2"], text, address);
    supervisor.eventually("a worker answers", || load::who(address).is_some());
    supervisor.reload(2);
    supervisor.eventually("somebody new answers", || load::who(address).is_some());
}

#[test]
fn an_abstract_unix_socket_is_shared() {
    let name = format!("tests-{}", std::process::id());
    let text = format!(
        "
made = socket.socket(socket.AF_UNIX)
say(attempt(lambda: made.bind('\\0{name}') or made.listen(64)))
while True: signal.pause()"
    );
    let supervisor = started(&["-w", "2"], &text, address::tcp());
    assert_eq!(said(&supervisor, 2), lines(&["ok"]));
    supervisor.reload(2);
    assert_eq!(said(&supervisor, 4), lines(&["ok"]));
}

#[test]
fn relative_path_is_resolved_in_the_worker() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = "
made = socket.socket(socket.AF_UNIX)
made.bind('run.sock'); made.listen(64)
serve(made)";
    let options = ["-w", "2", "--chdir", folder.path().to_str().expect("UTF-8")];
    let supervisor = started(&options, text, address::tcp());
    let path = folder.path().join("run.sock");
    supervisor.eventually("a worker answers", || load::who(path.as_path()).is_some());
    supervisor.reload(2);
    assert!(load::who(path.as_path()).is_some());
    assert_eq!(supervisor.stop(), 0);
    assert!(!path.exists());
}

#[test]
fn with_sharing_off_every_worker_binds_for_itself() {
    let text = "
made = socket.socket()
say(INDEX, attempt(lambda: made.bind((HOST, PORT)) or made.listen(64)))
while True: signal.pause()";
    let supervisor = started(&["-w", "2", "--share", "off", "--ready", "none"], text, address::tcp());
    let both = said(&supervisor, 2);
    let won = both.iter().filter(|line| line.ends_with("ok")).count();
    let lost = both.iter().filter(|line| line.ends_with("EADDRINUSE")).count();
    assert_eq!((won, lost), (1, 1), "{both:?}");
}

#[test]
fn nested_supervisor_serves() {
    let address = address::tcp();
    let inner = master_process_tests::supervisor::binary();
    let inner = inner.to_str().expect("UTF-8");
    let server = fixtures::node("plain.js");
    let mut command: Vec<&str> = vec![inner, "--"];
    command.extend(server.iter().map(String::as_str));
    let supervisor = Supervisor::builder().command(command).env("LISTEN", address.to_string()).spawn();
    supervisor.eventually("the server of the inner one answers", || load::who(address).is_some());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn worker_killed_at_any_moment_of_its_start_does_no_harm() {
    let options = ["--throttle", "1ms", "--throttle-max", "1ms"];
    let (supervisor, address, _) = fixtures::listening_workers(2, &options, &[]);
    for round in 0..60_u64 {
        let victim = supervisor.until("a worker to kill", || supervisor.workers().last().copied());
        // Up to and past the moment at which it binds and listens.
        offset(Duration::from_micros(round * 700 % 40_000));
        process::signal(victim, Signal::KILL);
    }
    supervisor.await_workers(2);
    supervisor.eventually("a worker answers", || load::who(address).is_some());
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn frozen_worker_does_not_block_the_others() {
    let address = address::tcp();
    let supervisor = Supervisor::start(&["-w", "2", "--share", "shared"], fixtures::listening(address, &[]));
    let ready = supervisor.await_events(2, "ready");
    process::freeze(ready[0].pid);
    for _ in 0..50 {
        assert_eq!(load::who(address), Some(ready[1].pid));
    }
    // It is no child that has ended: it stays, and a reload gets rid of it all the same.
    always(Duration::from_millis(200), "it is not replaced", || {
        supervisor.events_named("started").len() == 2
    });
    supervisor.signal(Signal::HUP);
    eventually(TIMEOUT, "the stopped one is replaced", || !process::alive(ready[0].pid));
    supervisor.await_workers(2);
}
