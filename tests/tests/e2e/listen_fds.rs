//! Sockets that the supervisor opens, or got from a service manager, and hands to every worker.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use master_process_tests::load::{self, Connections, Load};
use master_process_tests::supervisor::await_gone;
use master_process_tests::{Supervisor, address, fixtures, process};
use rustix::process::Signal;

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

#[test]
fn a_listen_socket_is_descriptor_3_of_every_worker() {
    let address = address::tcp();
    let options = ["-w", "2", "--listen", &format!("web={address}")];
    let supervisor = Supervisor::start(&options, fixtures::worker(&["env", "accept=3", "notify"]));
    supervisor.await_events(2, "ready");
    for index in ["0", "1"] {
        let environment = supervisor.await_environment(|environment| environment["WORKER_INDEX"] == index);
        assert_eq!(environment["LISTEN_FDS"], "1");
        assert_eq!(environment["LISTEN_FDNAMES"], "web");
        let pid: i32 = environment["LISTEN_PID"].as_str().and_then(|text| text.parse().ok()).expect("a pid");
        assert!(supervisor.events().iter().any(|event| event.pid == pid && event.index.to_string() == index));
    }
    let clients = Load::start(address, 8, Connections::Fresh);
    supervisor.eventually("both answer", || clients.tally().ok.len() == 2);
    assert_eq!(clients.stop().inexcusable(), 0);
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn several_listen_sockets_come_in_order_with_their_names() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("admin.sock");
    let (first, third) = (address::tcp(), address::tcp());
    let listen = [format!("web={first}"), format!("admin={}", unix(&path)), format!("other={third}")];
    let options = ["--listen", &listen[0], "--listen", &listen[1], "--listen", &listen[2]];
    // Only the second is served: what answers at the path is descriptor 4.
    let supervisor = Supervisor::start(&options, fixtures::worker(&["env", "accept=4", "notify"]));
    let worker = supervisor.await_events(1, "ready")[0].pid;
    let environment = supervisor.await_environment(|_| true);
    assert_eq!(environment["LISTEN_FDS"], "3");
    assert_eq!(environment["LISTEN_FDNAMES"], "web:admin:other");
    assert_eq!(load::who(path.as_path()), Some(worker));
    let numbers: Vec<i32> = process::descriptors(worker).iter().map(|(number, _)| *number).collect();
    assert!(numbers.starts_with(&[0, 1, 2, 3, 4, 5]), "{numbers:?}");
    assert_eq!(supervisor.stop(), 0);
    assert!(!path.exists());
}

#[test]
fn a_listen_socket_is_open_before_the_first_worker_is_there() {
    let address = address::tcp();
    let listen = address.to_string();
    let words = ["delay=1", "accept=3", "notify"];
    let supervisor = Supervisor::start(&["--listen", &listen], fixtures::worker(&words));
    let started = supervisor.await_events(1, "started")[0].pid;
    assert!(supervisor.events_named("ready").is_empty(), "it takes its time");
    assert_eq!(load::who(address), Some(started), "the connection waited");
}

#[test]
fn a_listen_socket_survives_crashes_and_reloads() {
    let address = address::tcp();
    let listen = address.to_string();
    let options = ["--listen", &listen, "--throttle", "50ms", "--throttle-max", "50ms"];
    let supervisor =
        Supervisor::start(&options, fixtures::worker(&["accept=3", "notify", "term=clean:0.3:0"]));
    let first = supervisor.await_events(1, "ready")[0].pid;
    process::signal(first, Signal::KILL);
    await_gone(first);
    let second = load::who(address).expect("the connection waits for the replacement");
    assert_ne!(first, second);
    let third = supervisor.reload(1);
    supervisor.eventually("the third answers", || load::who(address).is_some_and(|pid| third.contains(&pid)));
}

#[test]
fn a_bare_port_listens_on_every_address() {
    let mut address = address::tcp();
    address.set_port(address::wildcard_port());
    let listen = address.port().to_string();
    let supervisor = Supervisor::start(&["--listen", &listen], fixtures::worker(&["accept=3", "notify"]));
    let worker = supervisor.await_events(1, "ready")[0].pid;
    assert_eq!(load::who(address), Some(worker));
}

#[test]
fn without_sockets_there_are_no_listen_variables() {
    let supervisor = Supervisor::start(&[], fixtures::worker(&["env"]));
    let environment = supervisor.await_environment(|_| true);
    for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
        assert!(environment[name].is_null(), "{name}={}", environment[name]);
    }
}

/// Plays the service manager: opens sockets from descriptor 3 on, announces them, and becomes the supervisor.
const ACTIVATE: &str = "
import fcntl, os, socket, sys
names, addresses, command = sys.argv[1], sys.argv[2].split(','), sys.argv[3:]
sockets = []
for address in addresses:
    if address.startswith('/'):
        made = socket.socket(socket.AF_UNIX)
        made.bind(address)
    else:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        host, port = address.rsplit(':', 1)
        made.bind((host, int(port)))
    made.listen(64)
    sockets.append(made)
# Out of the way first: one may already have the number that another is to get.
high = [fcntl.fcntl(made, fcntl.F_DUPFD, 50) for made in sockets]
for number, fd in enumerate(high, 3):
    os.dup2(fd, number, True)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
";

fn activated(names: &str, addresses: &str, words: &[&str]) -> Supervisor {
    let python = fixtures::python();
    let wrapper = [python.as_str(), "-c", ACTIVATE, names, addresses];
    Supervisor::builder().wrap(wrapper).args(["-w", "2"]).command(fixtures::worker(words)).spawn()
}

#[test]
fn sockets_from_the_service_manager_are_passed_on() {
    let address = address::tcp();
    let supervisor = activated("front", &address.to_string(), &["env", "accept=3", "notify"]);
    let ready: BTreeSet<i32> = supervisor.await_ready(2);
    let environment = supervisor.await_environment(|_| true);
    assert_eq!(environment["LISTEN_FDS"], "1");
    assert_eq!(environment["LISTEN_FDNAMES"], "front");
    let pid: i32 = environment["LISTEN_PID"].as_str().and_then(|text| text.parse().ok()).expect("a pid");
    assert!(ready.contains(&pid), "LISTEN_PID is the worker's, not the supervisor's");
    assert!(load::who(address).is_some_and(|pid| ready.contains(&pid)));
    let new = supervisor.reload(2);
    supervisor.eventually("the new ones answer", || load::who(address).is_some_and(|pid| new.contains(&pid)));
    assert_eq!(supervisor.stop(), 0);
}

#[test]
fn unix_socket_of_the_service_manager_stays_after_the_end() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("activated.sock");
    let tcp = address::tcp();
    let addresses = format!("{tcp},{}", path.display());
    let supervisor = activated("a:b", &addresses, &["env", "accept=4", "notify"]);
    supervisor.await_events(2, "ready");
    assert_eq!(supervisor.await_environment(|_| true)["LISTEN_FDNAMES"], "a:b");
    assert!(load::who(path.as_path()).is_some());
    assert_eq!(supervisor.stop(), 0);
    let metadata = path.symlink_metadata().expect("the path is the service manager's to remove");
    assert!(metadata.file_type().is_socket());
}

#[test]
fn listen_fds_for_another_pid_are_ignored() {
    // LISTEN_PID of another process: descriptor 3 is whatever it is, and no socket of ours.
    let wrapper = ["sh", "-c", "exec 3</etc/passwd; LISTEN_PID=1 LISTEN_FDS=1 exec \"$@\"", "sh"];
    let supervisor = Supervisor::builder().wrap(wrapper).command(fixtures::worker(&["env"])).spawn();
    let environment = supervisor.await_environment(|_| true);
    assert!(environment["LISTEN_FDS"].is_null(), "{environment}");
}

/// Announces `count` sockets from descriptor 3 on, has a real one there, and `other` on descriptor 4.
fn activated_wrongly(count: &str, other: Option<&str>) -> Vec<String> {
    let text = "
import fcntl, os, socket, sys
count, other, command = sys.argv[1], sys.argv[2], sys.argv[3:]
made = socket.socket(); made.bind(('127.0.0.1', 0)); made.listen(8)
passed = [made.fileno()] + ([os.open(other, os.O_RDONLY)] if other else [])
# Out of the way first, as above.
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 50) for fd in passed]
os.closerange(3, 50)
for number, fd in enumerate(high, 3):
    os.dup2(fd, number, True)
os.closerange(50, 60)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=count)
os.execv(command[0], command)
";
    vec![fixtures::python(), "-c".into(), text.into(), count.into(), other.unwrap_or_default().into()]
}

#[test]
fn wrong_listen_fds_count_is_an_error_that_names_the_descriptor() {
    let cases = [
        // With one too many it was the descriptor that signals are read from.
        ("2", None, "descriptor 4, which is not open"),
        ("5", None, "descriptor 4, which is not open"),
        ("2", Some("/etc/passwd"), "descriptor 4, which is not a socket"),
        ("2", Some("/dev/null"), "descriptor 4, which is not a socket"),
        ("2000000000", None, "the count 2000000000 is too large"),
    ];
    for (count, other, expected) in cases {
        let wrapper = activated_wrongly(count, other);
        let finished = Supervisor::builder().wrap(&wrapper).command(fixtures::shell("echo started")).run();
        assert_eq!((finished.code, finished.signal), (Some(1), None), "{finished:?}");
        assert!(finished.stdout.is_empty(), "{finished:?}");
        let [line] = &finished.stderr[..] else { panic!("{finished:?}") };
        assert!(line.contains("LISTEN_FDS: ") && line.contains(expected), "{line}");
    }
    // The right count with the same wrapper, and a log that needs a descriptor of its own: TERM is seen.
    let builder = Supervisor::builder().wrap(activated_wrongly("1", None)).args(["--ready", "none"]);
    let supervisor = builder.command(fixtures::idle()).spawn();
    supervisor.await_workers(1);
    assert_eq!(supervisor.stop(), 0);
}
