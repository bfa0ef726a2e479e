//! `bind` and `listen` as programs call them: from threads, under signals, twice, with unusual arguments.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use master_process_tests::gate::Gate;
use master_process_tests::load::{self, Connections, Load};
use master_process_tests::script::{lines, said, script, script_with, started};
use master_process_tests::traffic::{all_answer, nothing_is_lost};
use master_process_tests::{
    Supervisor, TIMEOUT, address, always, eventually, needs_root, process, profile, scaled,
};
use rustix::process::Signal;

#[test]
fn concurrent_binds_of_threads_succeed() {
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
fn bind_with_a_sockaddr_storage_length_works() {
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
fn worker_killed_during_bind_does_no_harm() {
    let gate = Gate::new();
    let text = "
wait()
made = bound(HOST, PORT); made.listen(64)
serve(made)";
    let address = address::tcp();
    let command = gate.script(text, address);
    let options = ["-w", "2", "--throttle", "1ms", "--throttle-max", "1ms"];
    let supervisor = Supervisor::start(&options, command);
    let workers = supervisor.await_workers(2);
    supervisor.signal(Signal::STOP);
    gate.open();
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
fn signals_during_bind_and_listen_do_no_harm() {
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
fn undumpable_workers_share_under_root() {
    needs_root!();
    let address = address::tcp();
    let supervisor = started(&["-w", "2", "--user", "nobody"], NOT_DUMPABLE, address);
    said(&supervisor, 2);
    let workers = supervisor.await_workers(2);
    all_answer(&supervisor, address, &workers);
}

#[test]
fn undumpable_worker_without_root_is_unshared_and_logged() {
    needs_root!();
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
fn nested_supervisor_shares_through_the_outer_one() {
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
fn second_bind_of_a_socket_fails() {
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
fn second_bind_of_a_unix_socket_fails() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("app.sock");
    let text = "
made = socket.socket(socket.AF_UNIX)
made.bind(sys.argv[2])
say(attempt(lambda: made.bind(sys.argv[2] + '2')))
made.listen(64)
serve(made)";
    let command = script_with(text, address::tcp(), [&path]);
    let supervisor = Supervisor::start(&["-w", "2"], command);
    assert_eq!(said(&supervisor, 2), lines(&["EINVAL"]));
    assert!(load::who(path.as_path()).is_some());
    assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 1, "no second file was made");
}

#[test]
fn failed_listen_is_not_ready() {
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
    always(Duration::from_millis(500), "no worker is ready", || {
        supervisor.logged(&[": listening"]).is_empty()
    });
    supervisor.eventually("now it is", || supervisor.logged(&[": listening"]).len() == 1);
    assert!(load::who(address).is_some());
}
